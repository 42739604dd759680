"""Compare a transformed model with the one that it was made from, before anything is struck.

Tracing rests on assumptions about Python code. They are checked on real inputs: with injection
disabled a transformed model gives, bit for bit, the outputs, buffers and gradients of the model
as given, and each call of a target layer meets exactly one strike. A container whose graph gives
something else keeps its own Python forward from then on.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.errors import SiteError, TransformError
from fxfault.live_values import same_bits
from fxfault.passes.freeze import is_frozen
from fxfault.passes.insert import InsertFaults
from fxfault.passes.side_effects import Snapshot, random_states_kept
from fxfault.passes.strip import StripFaults
from fxfault.passes.tracing import (
    Container,
    containers_of,
    known_wrong,
    note_wrong,
    retrace,
    trace,
)
from fxfault.quant_tensors import is_activation
from fxfault.site import FaultSite
from fxfault.sites import FaultSites, faults_of
from fxfault.statistics import FaultStatistics

EVAL, TRAIN = "eval", "train"
UNSTABLE = (
    "it gives other results each time, for the same inputs and random numbers, so that "
    "nothing can be compared"
)
_KEPT = "its graph gave other results than its own forward in {} mode"
_RAISED = "its graph raised {} in {} mode, and its own forward did not"
_OWN_FAULT = (
    "{}: the transformed model differs from the given one in {} mode, although every container "
    "keeps its own forward; this is a bug in fxfault, please report it"
)


@dataclass(frozen=True)
class Check:
    """What a check has found; as a text, one line.

    Attributes:
        modes: in which the two models were compared and agree (`eval`, `train`).
        kept: containers that keep their own forward since, and why.
        not_compared: why they could not be compared, by mode.
        not_called: names of the sites that the inputs do not lead to, in eval mode.
        seconds: that it took.
    """

    modes: tuple[str, ...]
    kept: tuple[Container, ...]
    not_compared: Mapping[str, str]
    not_called: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        parts = []
        if self.modes:
            parts.append(f"bit for bit the given model in {' and '.join(self.modes)} mode")
        parts += [f"not compared in {mode} mode: {why}" for mode, why in self.not_compared.items()]
        if self.kept:
            names = ", ".join(container.path or container.type for container in self.kept)
            parts.append(f"keeping the own forward of {names}")
        if self.not_called:
            parts.append(f"never called: {', '.join(self.not_called)}")
        return "; ".join(parts)


def check(
    faulty: nn.Module,
    model: nn.Module,
    *inputs: Any,
    modes: Sequence[str] = (EVAL, TRAIN),
    measure: bool = True,
    **named_inputs: Any,
) -> Check:
    """Compare a transformed model with the model it was made from, on real inputs.

    With injection disabled, outputs and buffers must be the same bit for bit; in training mode
    gradients too, on copies of both. Where they are not, the innermost container that differs
    keeps its own forward (`inspect` says so) whenever `model` is transformed, and the comparison is
    made again. Sites keep their settings. In eval mode each call of a target layer must meet
    exactly one strike; and it is measured which elements of an activation belong to which sample
    (`model.faults.measure`).

    Modes, buffers, attributes, random states and the count of samples are afterwards as before.

    >>> import torch, fxfault
    >>> from brevitas.nn import QuantReLU
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> faulty = fxfault.transform(model, {"enabled": True, "probability": 1.0})
    >>> print(check(faulty, model, torch.randn(8, 4)))
    bit for bit the given model in eval and train mode

    Args:
        faulty: what `fxfault.transform` returned; it may be changed.
        model: what it was made from.
        inputs: of one batch, as the models are called.
        modes: to compare in.
        measure: whether to measure, too, how samples lie; an evaluation does that by itself.
        named_inputs: the same by keyword.

    Returns:
        What was found.

    Raises:
        SiteError: `faulty` has no sites, or a layer was called more or less often than struck.
        TransformError: the models differ, and no container of `faulty` can be blamed; or they have
            other weights.
    """
    started = time.perf_counter()
    sites = faults_of(faulty)
    _require_same_weights(faulty, model)
    call = _Call(inputs, named_inputs)
    agreed, kept, not_compared = [], [], {}
    if TRAIN in modes and is_frozen(faulty):
        not_compared[TRAIN] = "it is frozen, for evaluation"
        modes = [mode for mode in modes if mode != TRAIN]
    not_called: tuple[str, ...] = ()
    for mode in modes:
        while True:
            strikes = _Strikes(sites)
            why = _difference(faulty, model, call, mode, strikes)
            not_called = strikes.not_called if mode == EVAL else not_called
            if why is None:
                agreed.append(mode)
                break
            if why is not DIFFERS:
                not_compared[mode] = why
                break
            kept.append(_keep_innermost(faulty, model, call, mode, strikes.raised))
    if EVAL in agreed and measure and not named_inputs:  # Which are found by position.
        sites.measure_layouts(*inputs)
    found = Check(
        tuple(agreed), tuple(kept), not_compared, not_called, time.perf_counter() - started
    )
    sites.checked = str(found)
    return found


DIFFERS = "they differ"


def _require_same_weights(faulty: nn.Module, model: nn.Module) -> None:
    found, expected = faulty.state_dict(), model.state_dict()
    for name in {**expected, **found}:
        a, b = found.get(name), expected.get(name)
        if a is not b and not (isinstance(a, Tensor) and isinstance(b, Tensor) and same_bits(a, b)):
            raise TransformError(
                f"check: {name} is not the same in the two models; give the model that "
                f"{type(faulty).__name__} was made from"
            )


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        """Call a model on copies of the inputs, which it may write to."""
        return model(*_copied(self.args), **_copied(dict(self.kwargs)))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return getattr(type(value), "_make", type(value))([_copied(item) for item in value])
    if type(value) is list:
        return [_copied(item) for item in value]
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


# -- comparing --------------------------------------------------------------------------


def _difference(
    faulty: nn.Module, model: nn.Module, call: _Call, mode: str, strikes: _Strikes
) -> str | None:
    """Compare; `DIFFERS`, or why it cannot be done, or None where the two agree.

    In eval mode the sites are armed to hit nothing, which changes nothing either, and counted.

    Raises:
        SiteError: a layer was called more or less often than it was struck.
    """
    compared = _results_in_place if mode == EVAL else _results_of_copy
    sites = faults_of(faulty)
    with _sites_resting(sites):
        try:
            expected = compared(model, call)
        except Exception as error:
            if mode == EVAL:
                raise
            return f"the given model raises {type(error).__name__} there: {_first_line(error)}"
        try:
            with strikes.counted() if mode == EVAL else nullcontext():
                found = compared(faulty, call)
            if _alike(found, expected):
                if mode == EVAL:
                    strikes.check()
                return None
        except SiteError:
            raise
        except Exception as error:  # The given model did not raise.
            strikes.raised = f"{type(error).__name__}: {_first_line(error)}"
            return DIFFERS
        return DIFFERS if _alike(compared(model, call), expected) else UNSTABLE


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _results_in_place(model: nn.Module, call: _Call) -> Any:
    """What one forward in eval mode returns, and leaves in buffers; then all is as before."""
    with _unchanged(model), torch.no_grad():
        model.eval()
        return _kept_values(call(model)), _by_name(model.named_buffers())


def _results_of_copy(model: nn.Module, call: _Call) -> Any:
    """Outputs, buffers and gradients of a forward and backward of a copy in training mode."""
    with random_states_kept(), torch.enable_grad():
        twin = copy.deepcopy(model).train()
        output = call(twin)
        wanted = {n: p for n, p in twin.named_parameters() if p.requires_grad}
        total = _weighted_sum(output)
        gradients: Any = [None] * len(wanted)
        if total is not None and total.requires_grad and wanted:
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        by_name = zip(wanted, gradients, strict=True)
        return _kept_values(output), _by_name(twin.named_buffers()), _by_name(by_name)


def _by_name(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values that are kept, in an order that a copy of a graph module has too."""
    return {name: _kept_values(value) for name, value in sorted(values, key=lambda pair: pair[0])}


def _weighted_sum(output: Any) -> Tensor | None:
    """A number that every value of an output has another share in."""
    total = None
    for leaf in _leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad:
            weights = torch.linspace(
                1, 2, max(1, leaf.numel()), dtype=leaf.dtype, device=leaf.device
            )
            part = (leaf.reshape(-1) * weights[: leaf.numel()]).sum()
            total = part if total is None else total + part.to(total.dtype)
    return total


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = list(vars(value).values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _kept_values(value: Any) -> Any:
    """The same with copies of the tensors, which the next forward may write to."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple):
        return tuple(_kept_values(item) for item in value)
    if isinstance(value, list):
        return [_kept_values(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _kept_values(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: _kept_values(item) for key, item in vars(value).items()}
    return value


def _alike(a: Any, b: Any) -> bool:
    """Whether two results have the same structure and the same bits."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return same_bits(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_alike, a, b))
    # An object that does not say what it equals cannot be compared.
    compares: Any = type(a).__eq__
    return compares is object.__eq__ or bool(a == b)


# -- surroundings -----------------------------------------------------------------------


@contextmanager
def _sites_resting(sites: FaultSites) -> Iterator[None]:
    """Let no site strike; then put the clock back."""
    clock, enabled = sites.clock.state(), sites.enabled
    sites.enabled = False
    try:
        yield
    finally:
        sites.clock.restore(clock)
        sites.enabled = enabled


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers, attributes and random states back."""
    modes = [(module, module.training) for module in model.modules()]
    tables = [(module, dict(module._buffers)) for module, _ in modes]
    values = {
        id(b): (b, b.detach().clone())
        for _, table in tables
        for b in table.values()
        if b is not None
    }
    before = Snapshot(model)
    with random_states_kept():
        try:
            yield
        finally:
            before.restore()
            for module, table in tables:
                module._buffers.update(table)
            with torch.no_grad():
                for buffer, value in values.values():
                    if not same_bits(buffer, value):
                        buffer.copy_(value)
            for module, training in modes:
                module.training = training


# -- strikes ----------------------------------------------------------------------------


class _Strikes:
    """Counts how often layers are called, and how often they are struck.

    Attributes:
        not_called: names of the sites that no call led to.
        raised: what the transformed model raised, and the given one did not; empty: nothing.
    """

    def __init__(self, sites: FaultSites) -> None:
        """Count at the layers of some sites, from 0."""
        self.sites = sites
        self.not_called: tuple[str, ...] = ()
        self.raised = ""
        self._calls = [0] * len(sites.outputs)
        self._statistics = FaultStatistics(len(sites), sites.names, cosine=False)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count for a while; the sites are armed, and hit nothing."""
        layers = [output.layer[0] for output in self.sites.outputs]
        handles = [
            layer.register_forward_pre_hook(functools.partial(self._count, number))
            for number, layer in enumerate(layers)
        ]
        try:
            with self.sites.armed_at_zero():
                for site in self.sites:
                    site.statistics = self._statistics
                yield
        finally:
            for handle in handles:
                handle.remove()
        self.not_called = tuple(site.name for site in self.sites if not self._struck(site))

    def _count(self, number: int, *_: Any) -> None:
        self._calls[number] += 1

    def _struck(self, site: FaultSite) -> int:
        return self._statistics.layer_stats[site.index].sample_count

    def check(self) -> None:
        """See that each call of a layer met one strike.

        Raises:
            SiteError: one did not.
        """
        for output, called in zip(self.sites.outputs, self._calls, strict=True):
            sites = {id(site): site for calls in output.sites.values() for site in calls}
            met = sum(map(self._struck, sites.values()))
            if met != called:
                name = next(iter(sites.values())).name
                raise SiteError(
                    f"site {name}: its layer was called {called} times and struck {met} times; a "
                    "container reaches it in a way that fxfault does not see; please report it"
                )


# -- keeping ----------------------------------------------------------------------------


def _keep_innermost(
    faulty: nn.Module, model: nn.Module, call: _Call, mode: str, raised: str
) -> Container:
    """Let the innermost container that differs keep its own forward; see `_Strikes.raised`."""
    candidates = [c for c in containers_of(faulty) if c.handling != "kept"]
    if is_frozen(faulty):
        raise TransformError(
            f"{type(model).__name__}: the frozen model differs from the given one in {mode} mode; "
            "thaw it, call fxfault.check, and freeze it again"
        )
    if not candidates:
        raise TransformError(_OWN_FAULT.format(type(model).__name__, mode))
    targets = tuple(faults_of(faulty).config.targets)
    path = _innermost(model, [c.path for c in candidates], targets, call, mode)
    if path is None:  # Each is right alone: the outermost one cannot be told apart.
        path = min((c.path for c in candidates), key=lambda p: (p.count("."), len(p)))
    why = _RAISED.format(raised, mode) if raised else _KEPT.format(mode)
    kept = Container(path, type(model.get_submodule(path)).__name__, "kept", why)
    note_wrong(model, path, kept.reason)
    rebuild(faulty, known_wrong(model))
    return kept


def _innermost(
    model: nn.Module, paths: Sequence[str], targets: tuple[str, ...], call: _Call, mode: str
) -> str | None:
    """The first of some containers, from the inside, whose graph alone gives other results."""
    calls: dict[str, _Call] = {}

    def noting(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.setdefault(path, _Call(_copied(args), _copied(kwargs)))

        return note

    handles = [
        model.get_submodule(path).register_forward_pre_hook(noting(path), with_kwargs=True)
        for path in paths
    ]
    try:
        _results_in_place(model, call) if mode == EVAL else _results_of_copy(model, call)
    finally:
        for handle in handles:
            handle.remove()
    results = _results_in_place if mode == EVAL else _results_of_copy
    for path in sorted(calls, key=lambda p: -(p.count(".") + bool(p))):
        container = model.get_submodule(path)
        expected = results(container, calls[path])
        try:
            found = results(trace(container, targets), calls[path])
        except Exception:
            return path
        if not _alike(found, expected):
            return path
    return None


def rebuild(faulty: nn.Module, keep: Mapping[str, str]) -> None:
    """Trace a transformed model again, in place; its sites keep their settings.

    Args:
        faulty: what `fxfault.transform` returned, not frozen.
        keep: containers that keep their own forward, by path, and why.
    """
    sites = faults_of(faulty)
    targets = tuple(sites.config.targets)

    def is_target(module: nn.Module) -> bool:
        return is_activation(module, targets)

    strip_faults: Any = StripFaults()
    strip_faults(faulty)
    retrace(faulty, is_target, keep)
    before = sites.clear()
    insert: Any = InsertFaults(sites.config, sites)
    insert(faulty)
    sites.take_over(before)
