"""Compile a frozen model with torch.compile, where that works, and say what came of it.

In compiled code the fault sites are operators (`fxfault.operators`) that follow their state at
run time, so that nothing is compiled again when probabilities, trials or fault models change.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxfault.errors import FxFaultError, SiteError
from fxfault.frozen_layers import FrozenLayer
from fxfault.passes.exact_arithmetic import exact_backend
from fxfault.passes.freeze import freeze
from fxfault.passes.traced_module import TracedModule
from fxfault.quant_tensors import plain
from fxfault.sites import FaultSites, faults_of


@dataclass(frozen=True)
class Difference:
    """How compiled outputs differ from those without a compiler, without faults.

    Attributes:
        values: how many values differ in any bit.
        total: how many were compared.
        largest: largest absolute difference; NaN where one is NaN and the other is not.
    """

    values: int
    total: int
    largest: float


@dataclass(frozen=True)
class Compilation:
    """What came of compiling a model; as a text, one sentence.

    Attributes:
        model: the frozen model to go on with, compiled or not.
        why_not: why it is not compiled; empty if it is.
        seconds: that compiling took.
        difference: of the outputs for the first batch; None where they agree to the last bit, or
            nothing is compiled.
        call: what calls of the model run; None where nothing is compiled.
    """

    model: nn.Module
    why_not: str = ""
    seconds: float = 0.0
    difference: Difference | None = None
    call: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    def switch(self, on: bool) -> None:
        """Let calls of the model run compiled code, as they do at first, or not."""
        self.model.__dict__["_compiled_call_impl"] = self.call if on else None

    @property
    def compiled(self) -> bool:
        """Whether calls of the model run compiled code."""
        return not self.why_not

    def __str__(self) -> str:
        if self.why_not:
            return f"not compiled: {self.why_not}"
        what = f"compiled in {self.seconds:.0f} s; without faults, outputs for the first batch are"
        found = self.difference
        if found is None:
            return f"{what} bit for bit those without torch.compile"
        return (
            f"{what} not quite those without torch.compile ({found.values} of {found.total} values "
            f"differ, by at most {found.largest:.2g}): compare compiled runs with compiled runs"
        )


def compile(
    model: nn.Module, *inputs: Any, backend: str = "inductor", exact: bool = False
) -> Compilation:
    """Freeze a model and let its forwards run code made by torch.compile.

    Evaluations are then run as before, on the `model` of the result. Forwards without
    gradients whose inputs are like the given ones run compiled code, with the same faults; a batch
    may have any size of at least 2, where the model allows it. All other forwards run
    without it. Nothing is ever compiled for a second kind of input.

    Where there is no compiler, or torch cannot compile the model as a whole, the model is left as
    it is and `why_not` says so.

    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(4, 4, bias=True), QuantReLU(bit_width=4)).eval()
    >>> made = compile(model, torch.randn(8, 4), backend="aot_eager")
    >>> made.compiled, made.difference
    (True, None)

    Args:
        model: in eval mode; transformed or not, frozen or not.
        inputs: the first batch, as the model is called with it.
        backend: of torch.compile; all but Inductor are for tests.
        exact: round as the model does without a compiler, as far as we know how; see
            `fxfault.passes.exact_arithmetic`. Compiled code is a little slower then.

    Returns:
        The frozen model (`model` itself where it is frozen already) and what came of it. Its fault
        sites, clock and statistics are as they were.

    Raises:
        FreezeError: the model is in training mode.
    """
    frozen = freeze(model)
    frozen.__dict__["_compiled_call_impl"] = None
    why_not = _why_no_compiler(inputs) if backend == "inductor" else ""
    if why_not:
        return Compilation(frozen, why_not)
    compiler = exact_backend(backend) if exact else backend
    started = time.perf_counter()
    with _without_faults(frozen), torch.no_grad():
        expected = frozen(*inputs)
        for any_batch in (True, False):
            call = _CompiledCall(frozen, inputs, compiler, any_batch)
            try:
                found = call(*inputs)
                break
            except FxFaultError:
                raise
            except RuntimeError as error:  # No narrower class holds all that torch raises here.
                why_not = f"torch.compile failed: {_first_line(error)}"
        else:
            return Compilation(frozen, why_not)
    seconds = time.perf_counter() - started
    made = Compilation(frozen, "", seconds, _difference(found, expected), call)
    made.switch(True)
    return made


class _CompiledCall:
    """What a compiled model does when it is called.

    torch's modules look for it where `nn.Module.compile` leaves compiled code, too.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[Any], backend: Any, any_batch: bool
    ) -> None:
        """Prepare to compile a model at the first call.

        Args:
            model: frozen.
            inputs: of the first call.
            backend: of torch.compile.
            any_batch: whether to compile for batches of any size.
        """
        self._model = [model]
        self._layers = [layer for layer in model.modules() if isinstance(layer, FrozenLayer)]
        self._traced = [part for part in model.modules() if isinstance(part, TracedModule)]
        # Of the forward, whose code belongs to this model alone: torch counts by code how often
        # something was compiled, and gives up.
        self._run = torch.compile(model.forward, fullgraph=True, dynamic=False, backend=backend)
        self._any_batch = any_batch
        self._batch = _batch_of(inputs)
        self._kind = self._kind_of(inputs)
        self._compiled = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run compiled code where it was made for such inputs."""
        (model,) = self._model
        unusual = kwargs or torch.is_grad_enabled() or _has_hooks(model)
        unusual = unusual or any(part.why_own_forward() is not None for part in self._traced)
        if unusual or self._kind_of(args) != self._kind:
            return model._call_impl(*args, **kwargs)
        for layer in self._layers:
            layer.refresh()
        if not self._compiled:
            args = self._marked(args)
            self._compiled = True
        return self._run(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the model is not compiled."""

    def _kind_of(self, inputs: Sequence[Any]) -> list[Any]:
        """What compiled code depends on in its inputs."""
        leaves, structure = pytree.tree_flatten(inputs)
        batch = _batch_of(inputs)
        any_size = self._any_batch and batch > 1
        kinds = [_kind(x, batch if any_size else None) for x in leaves]
        return [structure, any_size, *kinds]

    def _marked(self, inputs: Sequence[Any]) -> Any:
        """The inputs, with the batch marked as what may be of any size."""
        if not self._any_batch or self._batch < 2:
            return inputs
        leaves, structure = pytree.tree_flatten(inputs)
        for i, x in enumerate(leaves):
            if isinstance(x, Tensor) and x.dim() and x.shape[0] == self._batch:
                leaves[i] = x.detach()  # The mark stays on a tensor: on one of ours.
                torch._dynamo.mark_dynamic(leaves[i], 0)
        return pytree.tree_unflatten(leaves, structure)


def _batch_of(inputs: Sequence[Any]) -> int:
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    return max(leaves, key=lambda x: x.dim()).shape[0] if leaves else 1


def _kind(x: Any, batch: int | None) -> Any:
    if not isinstance(x, Tensor):
        return x
    free = x.dim() > 0 and x.shape[0] == batch
    shape = (-1, *x.shape[1:]) if free else tuple(x.shape)
    return shape, x.stride(), x.dtype, x.device


def _has_hooks(model: nn.Module) -> bool:
    return bool(model._forward_hooks or model._forward_pre_hooks)


@contextmanager
def _without_faults(model: nn.Module) -> Iterator[FaultSites | None]:
    """Let no site strike, and put the clock back."""
    try:
        sites = faults_of(model)
    except SiteError:
        yield None
        return
    clock, enabled = sites.clock.state(), sites.enabled
    sites.enabled = False
    try:
        yield sites
    finally:
        sites.clock.restore(clock)
        sites.enabled = enabled


def _why_no_compiler(inputs: Sequence[Any]) -> str:
    """Why Inductor cannot compile for the CPU; empty if it can, or another device is in use."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    if any(x.device.type != "cpu" for x in tensors):
        return ""
    names = {"win32": "cl", "darwin": "clang++"}
    compiler = os.environ.get("CXX") or names.get(sys.platform, "g++")
    if shutil.which(compiler):
        return ""
    return f"torch.compile needs a C++ compiler, and there is no {compiler} (see CXX)"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _difference(found: Any, expected: Any) -> Difference | None:
    """How two outputs of one model differ; None where they agree to the last bit."""
    pairs = [(a, b) for a, b in zip(_values_in(found), _values_in(expected), strict=True)]
    differ = [(a != b) & ~(a.isnan() & b.isnan()) for a, b in pairs]
    values = sum(int(where.sum()) for where in differ)
    if values == 0:
        return None
    gaps = [
        (a.double() - b.double()).abs()[where] for (a, b), where in zip(pairs, differ, strict=True)
    ]
    total = sum(where.numel() for where in differ)
    return Difference(values, total, float(torch.cat(gaps).max()))


def _values_in(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output, is_leaf=lambda x: plain(x) is not x)
    return [plain(x) for x in leaves if isinstance(plain(x), Tensor)]
