"""Check a transformed model against the one that it was made from, without faults.

Tracing makes assumptions about Python code, and the check tests them on real inputs. With injection
disabled a transformed model must give the same outputs, buffers and gradients as the given model,
bit for bit, and each call of a target layer must meet exactly one strike. A container whose graph
gives other results keeps its own Python forward from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import SiteError, TransformError
from fxfault.faults.bits import same_bits
from fxfault.messages import quote_error
from fxfault.passes.freeze import is_frozen
from fxfault.passes.inner_calls import inner_strikes
from fxfault.passes.insert import InsertFaults
from fxfault.passes.layer_quantisers import LayerQuantisers, struck_of
from fxfault.passes.results import Call, alike, results_of
from fxfault.passes.sites_of_model import without_faults
from fxfault.passes.strip import StripFaults
from fxfault.passes.tracing.containers import (
    Container,
    containers_of,
    known_wrong,
    note_wrong,
    retrace,
    trace,
)
from fxfault.passes.tracing.targets import rule_of
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.measuring import armed_at_zero
from fxfault.sites.site import FaultSite

EVAL, TRAIN = "eval", "train"
DIFFERS = "they differ"
UNSTABLE = (
    "its results differ from run to run with the same inputs and random numbers, so that "
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
    """The findings of a check; its text is one line.

    Attributes:
        modes: the modes in which the two models agree (`eval`, `train`).
        kept: the containers that keep their own forward from now on, with reasons.
        not_compared: why the models could not be compared, by mode.
        not_called: names of the sites that the inputs do not reach in eval mode.
    """

    modes: tuple[str, ...]
    kept: tuple[Container, ...]
    not_compared: Mapping[str, str]
    not_called: tuple[str, ...]

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
    gradients too, on copies of both models. If they differ, the innermost container that differs
    keeps its own forward (`inspect` says so) whenever `model` is transformed, and the models are
    compared again. Sites keep their settings. In eval mode each call of a target layer must meet
    exactly one strike, and the check measures which elements of an activation belong to which
    sample (`model.faults.measure`).

    Modes, buffers, attributes, random states and the count of samples are restored afterwards.

    >>> import torch, fxfault
    >>> from brevitas.nn import QuantReLU
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> faulty = fxfault.transform(model, {"enabled": True, "probability": 1.0})
    >>> print(check(faulty, model, torch.randn(8, 4)))
    bit for bit the given model in eval and train mode

    Args:
        faulty: the result of `fxfault.transform`; it may be changed.
        model: the model that `faulty` was made from.
        inputs: the inputs of one batch, as the models are called.
        modes: the modes to compare in.
        measure: whether to measure how samples lie, which an evaluation otherwise does itself.
        named_inputs: inputs by keyword.

    Raises:
        SiteError: `faulty` has no sites, or a layer was called more or less often than struck.
        TransformError: the models have different weights, or they differ and no container of
            `faulty` can be blamed.
    """
    sites = faults_of(faulty)
    _require_same_weights(faulty, model)
    call = Call(inputs, named_inputs)
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
    if EVAL in agreed and measure and not named_inputs:  # Samples are found in inputs by position.
        sites.measure_layouts(*inputs)
    found = Check(tuple(agreed), tuple(kept), not_compared, not_called)
    sites.checked = str(found)
    return found


def _require_same_weights(faulty: nn.Module, model: nn.Module) -> None:
    found, expected = faulty.state_dict(), model.state_dict()
    for name in {**expected, **found}:
        a, b = found.get(name), expected.get(name)
        if a is not b and not (isinstance(a, Tensor) and isinstance(b, Tensor) and same_bits(a, b)):
            raise TransformError(
                f"check: {name} is not the same in the two models; give the model that "
                f"{type(faulty).__name__} was made from"
            )


def _difference(
    faulty: nn.Module, model: nn.Module, call: Call, mode: str, strikes: _Strikes
) -> str | None:
    """Compare the models; returns None if they agree, `DIFFERS`, or why they cannot be compared."""
    compared = functools.partial(results_of, call=call, training=mode == TRAIN)
    with without_faults(faulty):
        try:
            expected = compared(model)
        except Exception as error:
            if mode == EVAL:
                raise
            return f"the given model raises {quote_error(error)}"
        try:
            with strikes.counted() if mode == EVAL else nullcontext():
                found = compared(faulty)
            if alike(found, expected):
                if mode == EVAL:
                    strikes.check()
                return None
        except SiteError:
            raise
        except Exception as error:  # The given model did not raise.
            strikes.raised = quote_error(error)
            return DIFFERS
        return DIFFERS if alike(compared(model), expected) else UNSTABLE


class _Strikes:
    """Counts how often layers are called, and how often they are struck."""

    def __init__(self, sites: FaultSites) -> None:
        self.sites = sites
        self.not_called: tuple[str, ...] = ()  # Names of the sites that were not reached.
        self.raised = ""  # The error of the transformed model.
        self._calls = [0] * len(sites.outputs)
        self._stored_calls = [0] * len(sites)
        self._inside = inner_strikes(sites)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count meanwhile; the sites are armed at 0 %."""
        with ExitStack() as hooks, armed_at_zero(self.sites) as self._statistics:
            for number, output in enumerate(self.sites.outputs):
                count = functools.partial(self._count, number)
                hooks.callback(output.layer[0].register_forward_pre_hook(count).remove)
            for layer in self.sites.clock.model.modules():
                if (struck := struck_of(layer)) is not None:
                    # After the forward: a layer with a hook before it strikes its words itself.
                    count = functools.partial(self._count_stored, struck)
                    hooks.callback(layer.register_forward_hook(count).remove)
            for calls in self._inside:
                hooks.callback(calls.counted.register_forward_pre_hook(calls.count).remove)
            yield
        self.not_called = tuple(site.name for site in self.sites if not self._struck(site))

    def _count(self, number: int, *_: Any) -> None:
        self._calls[number] += 1

    def _count_stored(self, struck: LayerQuantisers, *_: Any) -> None:
        for site in (site for stand_in in struck.struck.values() for site in stand_in.sites):
            if site.stored is not None:
                self._stored_calls[site.index] += 1

    def _struck(self, site: FaultSite) -> int:
        return self._statistics.layer_stats[site.index].sample_count

    def check(self) -> None:
        """Require that each call of a layer met one strike.

        Python code may also ask for words without a call of their layer.
        """
        for site, called in zip(self.sites, self._stored_calls, strict=True):
            if self._struck(site) < called:
                raise SiteError(
                    f"site {site.name}: its layer was called {called} times, and its words were "
                    f"struck {self._struck(site)} times; its forward gets them in a way that "
                    "fxfault does not see: let it call its quantiser, or leave it out by `layers`"
                )
        for output, called in zip(self.sites.outputs, self._calls, strict=True):
            sites = {id(site): site for calls in output.sites.values() for site in calls}
            met = sum(map(self._struck, sites.values()))
            if met != called:
                name = next(iter(sites.values())).name
                raise SiteError(
                    f"site {name}: its layer was called {called} times and struck {met} times; a "
                    "container reaches it in a way that fxfault does not see; please report it"
                )
        for calls in self._inside:
            met = sum(map(self._struck, calls.sites))
            if met != calls.number:
                raise SiteError(
                    f"site {calls.sites[0].name}: its quantiser was called {calls.number} times "
                    f"and its words were struck {met} times; a layer reaches it in a way that "
                    "fxfault does not see; please report it"
                )


def _keep_innermost(
    faulty: nn.Module, model: nn.Module, call: Call, mode: str, raised: str
) -> Container:
    """Make the innermost container that differs keep its own forward."""
    candidates = [c for c in containers_of(faulty) if c.handling != "kept"]
    if is_frozen(faulty):
        raise TransformError(
            f"{type(model).__name__}: the frozen model differs from the given one in {mode} mode; "
            "thaw it, call fxfault.check, and freeze it again"
        )
    if not candidates:
        raise TransformError(_OWN_FAULT.format(type(model).__name__, mode))
    config = faults_of(faulty).config
    path = _innermost(model, [c.path for c in candidates], config, call, mode)
    if path is None:  # Each graph alone is right: blame the outermost container.
        path = min((c.path for c in candidates), key=lambda p: (p.count("."), len(p)))
    why = _RAISED.format(raised, mode) if raised else _KEPT.format(mode)
    kept = Container(path, type(model.get_submodule(path)).__name__, "kept", why)
    note_wrong(model, path, kept.reason)
    _rebuild(faulty, known_wrong(model))
    return kept


def _innermost(
    model: nn.Module,
    paths: Sequence[str],
    config: FaultInjectionConfig,
    call: Call,
    mode: str,
) -> str | None:
    """The innermost of some containers whose graph alone gives other results; None if all agree."""
    calls: dict[str, Call] = {}

    def noting(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.setdefault(path, Call(args, kwargs).copied())

        return note

    with ExitStack() as hooks:
        for path in paths:
            module = model.get_submodule(path)
            hook = module.register_forward_pre_hook(noting(path), with_kwargs=True)
            hooks.callback(hook.remove)
        results_of(model, call, mode == TRAIN)
    for path in sorted(calls, key=lambda p: -(p.count(".") + bool(p))):
        container = model.get_submodule(path)
        expected = results_of(container, calls[path], mode == TRAIN)
        try:
            found = results_of(trace(container, config), calls[path], mode == TRAIN)
        except Exception:
            return path
        if not alike(found, expected):
            return path
    return None


def _rebuild(faulty: nn.Module, keep: Mapping[str, str]) -> None:
    """Trace a transformed model again in place; its sites keep their settings."""
    sites = faults_of(faulty)
    is_target = rule_of(sites.config)
    strip_faults: Any = StripFaults()
    strip_faults(faulty)
    retrace(faulty, is_target, keep)
    before = sites.clear()
    insert: Any = InsertFaults(sites.config, sites)
    insert(faulty)
    sites.take_over(before)
