"""Compile a frozen model with torch.compile if that works, and report the result.

In compiled code the fault sites are operators (`fxfault.strike.operators`) that read their state at
run time, so that nothing is compiled again when probabilities, trials or fault models change.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxfault.errors import FxFaultError
from fxfault.faults.torch_versions import whole_graphs, why_not_compiled
from fxfault.passes.exact_arithmetic import exact_backend
from fxfault.passes.freeze import freeze
from fxfault.passes.sites_of_model import sites_or_none, without_faults
from fxfault.passes.tracing.traced_module import TracedModule
from fxfault.quantisers.frozen_layers import FrozenLayer
from fxfault.quantisers.quant_tensors import plain


@dataclass(frozen=True)
class Difference:
    """How compiled outputs without faults differ from those without a compiler.

    Attributes:
        values: number of values that differ.
        total: number of values that were compared.
        largest: largest absolute difference; NaN if only one of two values is NaN.
    """

    values: int
    total: int
    largest: float


@dataclass(frozen=True)
class Compilation:
    """The result of compiling a model; its text is one sentence.

    Attributes:
        model: the frozen model to use from now on, compiled or not.
        why_not: why the model is not compiled; empty if it is.
        seconds: the time that compiling took.
        difference: the difference of the outputs for the first batch; None if they agree to the
            last bit or nothing is compiled.
        call: the function that calls of the model run; None if nothing is compiled.
    """

    model: nn.Module
    why_not: str = ""
    seconds: float = 0.0
    difference: Difference | None = None
    call: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    def switch(self, on: bool) -> None:
        """Switch compiled code on, as it is at first, or off."""
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
    """Freeze a model and compile its forwards with torch.compile.

    Evaluate the `model` of the result as usual. Its forwards without gradients run compiled code,
    with the same faults, if their inputs are like the given ones; a batch may have any size of at
    least 2 if the model allows it. All other forwards run without compiled code. Nothing is ever
    compiled for a second kind of input.

    If there is no compiler, or torch cannot compile the model as a whole, the model is only frozen
    and `why_not` gives the reason.

    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(4, 4, bias=True), QuantReLU(bit_width=4)).eval()
    >>> made = compile(model, torch.randn(8, 4), backend="aot_eager")
    >>> made.compiled, made.difference
    (True, None)

    Args:
        model: in eval mode; transformed or not, frozen or not.
        inputs: the inputs of the first batch, as the model is called with them.
        backend: the backend of torch.compile; all but Inductor are for tests.
        exact: whether to round as the model does without a compiler, as far as we know how; see
            `fxfault.passes.exact_arithmetic`. Compiled code is a little slower then.

    Returns:
        The frozen model (`model` itself if it is frozen already) and the result of compiling. The
        fault sites, clock and statistics of the model are unchanged.

    Raises:
        FreezeError: the model is in training mode.
    """
    frozen = freeze(model)
    frozen.__dict__["_compiled_call_impl"] = None
    why_not = why_not_compiled()
    if not why_not and backend == "inductor":
        why_not = _why_no_compiler(inputs)
    if why_not:
        return Compilation(frozen, why_not)
    compiler = exact_backend(backend) if exact else backend
    started = time.perf_counter()
    with without_faults(frozen), torch.no_grad():
        expected = frozen(*inputs)
        why_not = _why_words_decide(frozen)
        if why_not:
            return Compilation(frozen, why_not)
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
    """A call of a compiled model, in the place where `nn.Module.compile` leaves compiled code."""

    def __init__(
        self, model: nn.Module, inputs: Sequence[Any], backend: Any, any_batch: bool
    ) -> None:
        """Prepare to compile a frozen model at the first call, perhaps for any batch size."""
        self._model = [model]
        self._layers = [layer for layer in model.modules() if isinstance(layer, FrozenLayer)]
        self._traced = [part for part in model.modules() if isinstance(part, TracedModule)]
        # Compile the forward, whose code belongs to this model alone: torch counts compilations
        # by code, and gives up after some.
        self._run = torch.compile(model.forward, fullgraph=True, dynamic=False, backend=backend)
        self._any_batch = any_batch
        self._batch = _batch_of(inputs)
        self._kind = self._kind_of(inputs)
        self._compiled = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run compiled code if it was made for such inputs, else the model itself."""
        (model,) = self._model
        unusual = kwargs or model._forward_hooks or model._forward_pre_hooks
        own_forward = any(part.why_own_forward() is not None for part in self._traced)
        if unusual or own_forward or torch.is_grad_enabled() or self._kind_of(args) != self._kind:
            return model._call_impl(*args, **kwargs)
        for layer in self._layers:
            layer.refresh()
        if not self._compiled:
            args = self._marked(args)
            self._compiled = True
        with whole_graphs():
            return self._run(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Return None: a copy of the model is not compiled."""

    def _kind_of(self, inputs: Sequence[Any]) -> list[Any]:
        """The properties of inputs that compiled code depends on."""
        leaves, structure = pytree.tree_flatten(inputs)
        batch = _batch_of(inputs)
        any_size = self._any_batch and batch > 1
        kinds = [_kind(x, batch if any_size else None) for x in leaves]
        return [structure, any_size, *kinds]

    def _marked(self, inputs: Sequence[Any]) -> Any:
        """The inputs, with the batch dimension marked as one of any size."""
        if not self._any_batch or self._batch < 2:
            return inputs
        leaves, structure = pytree.tree_flatten(inputs)
        for i, x in enumerate(leaves):
            if isinstance(x, Tensor) and x.dim() and x.shape[0] == self._batch:
                leaves[i] = x.detach()  # The mark must not stay on the user's tensor.
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


def _why_no_compiler(inputs: Sequence[Any]) -> str:
    """Why Inductor cannot compile for the CPU; empty if it can or another device is in use."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    if any(x.device.type != "cpu" for x in tensors):
        return ""
    names = {"win32": "cl", "darwin": "clang++"}
    compiler = os.environ.get("CXX") or names.get(sys.platform, "g++")
    if shutil.which(compiler):
        return ""
    return f"torch.compile needs a C++ compiler, and there is no {compiler} (see CXX)"


def _why_words_decide(model: nn.Module) -> str:
    """Why code that follows the words of each call is needed; empty if it is not."""
    for site in sites_or_none(model) or ():
        if any(site.before.values()) and (site.quantiser.narrow_range or len(site.before) > 1):
            return (
                f"site {site.name} gets words that are struck before, of a narrow range or in one "
                "of several calls, and compiled code cannot follow them"
            )
    return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _difference(found: Any, expected: Any) -> Difference | None:
    """How two outputs of one model differ; None if they agree."""
    pairs = list(zip(_values_in(found), _values_in(expected), strict=True))
    differ = [(a != b) & ~(a.isnan() & b.isnan()) for a, b in pairs]
    gaps = [
        (a.double() - b.double()).abs()[where] for (a, b), where in zip(pairs, differ, strict=True)
    ]
    values = sum(map(len, gaps))
    if values == 0:
        return None
    total = sum(where.numel() for where in differ)
    return Difference(values, total, float(torch.cat(gaps).max()))


def _values_in(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output, is_leaf=lambda x: plain(x) is not x)
    return [plain(x) for x in leaves if isinstance(plain(x), Tensor)]
