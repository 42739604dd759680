"""Trace a model down to its fault targets; containers that cannot be traced stay as they are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import TransformError
from fxfault.passes.tracing.guards import LAYER, Guard, Present
from fxfault.passes.tracing.model_tracer import ModelTracer
from fxfault.passes.tracing.refusals import why_kept, why_untraceable
from fxfault.passes.tracing.sharing import holds, twin
from fxfault.passes.tracing.side_effects import random_states_kept
from fxfault.passes.tracing.targets import copied_rule, rule_of
from fxfault.passes.tracing.traced_module import Terms, TracedModule, adopt, release, why_no_room

_TRACING = threading.RLock()
_DEFAULTS = FaultInjectionConfig()
# By model: the containers whose graphs a check found wrong, with the reasons.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Container:
    """How a module that holds targets was handled.

    Attributes:
        path: the path in the model; empty for the model itself.
        type: the class name.
        handling: `traced` (part of its parent's graph), `own graph` (a graph of its own,
            called from its parent's), or `kept` (its own Python forward).
        reason: why it is not part of its parent's graph; empty if it is.
    """

    path: str
    type: str
    handling: str
    reason: str = ""


def trace(model: nn.Module, config: FaultInjectionConfig = _DEFAULTS) -> nn.Module:
    """Trace a model into a graph whose leaves include every fault target.

    The result shares its layers, parameters and buffers with `model` and has the same
    `state_dict`. A container whose forward cannot be traced keeps it, and its children are traced
    instead.

    >>> from brevitas.nn import QuantReLU
    >>> traced = trace(nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4)))
    >>> [str(node) for node in traced.graph.nodes]
    ['input_1', '_0', '_1', 'output']

    Args:
        model: any model; it is not changed.
        config: says what faults may strike: by its `targets`, `memory` and `word`.

    Returns:
        A `TracedModule`, or a module of the model's class if the model's own forward cannot be
        traced. `containers_of` tells how each container was handled.

    Raises:
        TransformError: the model has none of the targets.
    """
    is_target, is_copied = rule_of(config), copied_rule(config)
    if not is_copied(model) and not holds(model, is_copied):
        raise TransformError(_no_target_message(model, config))
    for path, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule":
            raise TransformError(
                f"{path or type(model).__name__} was made by torch.compile; transform the model "
                "first and compile the result"
            )
    ours = twin(model, is_copied)
    retrace(ours, is_target, known_wrong(model))
    return ours


def known_wrong(model: nn.Module) -> dict[str, str]:
    """By path, why a check made containers of a model keep their own forward."""
    return dict(_KNOWN.get(model, {}))


def note_wrong(model: nn.Module, path: str, reason: str) -> None:
    """Make a container keep its own forward whenever a model is traced from now on."""
    _KNOWN.setdefault(model, {})[path] = reason


def retrace(
    ours: nn.Module, is_target: Callable[[nn.Module], bool], keep: Mapping[str, str]
) -> None:
    """Trace our copy of a model in place, whether it was traced before or not.

    Args:
        ours: the copy (see `fxfault.passes.tracing.sharing`), without fault sites.
        is_target: tells whether faults may strike the output of a layer.
        keep: by path, why containers must keep their own forward.
    """
    plan = _Plan(is_target, keep)
    # Tracing replaces functions of torch while it lasts, so only one thread traces at a time.
    with _TRACING, random_states_kept(), torch.inference_mode(False), torch.enable_grad():
        for module in list(ours.modules()):
            release(module)
        plan.trace(ours, "")
    ours.__dict__["_containers"] = tuple(plan.containers.values())


def containers_of(model: nn.Module) -> tuple[Container, ...]:
    """How each container of a traced or transformed model was handled."""
    return model.__dict__.get("_containers", ())


def _visible(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that users know: not the parts of the layers of Brevitas and torch."""
    yield model
    is_layer = type(model).__module__.startswith(("brevitas.", "torch.nn.modules."))
    if not is_layer or isinstance(model, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        for child in model.children():
            yield from _visible(child)


def _no_target_message(model: nn.Module, config: FaultInjectionConfig) -> str:
    kinds = sorted({type(module).__name__ for module in _visible(model)})
    shown = ", ".join(kinds[:20]) + (f" and {len(kinds) - 20} more" if len(kinds) > 20 else "")
    name, memories = type(model).__name__, config.memories
    if "parameters" in memories:
        return f"{name} has no float parameter or buffer; it has {shown}"
    if "activations" not in memories:
        return (
            f"{name} has no {' or '.join(memories)} in layers of brevitas.nn; it has {shown}. "
            "Quantise them with these layers"
        )
    of_types = f"of the types {', '.join(config.targets)}; it has {shown}. "
    if config.word == "ieee":
        return f"{name} has no module {of_types}Name some of these in `targets`"
    return (
        f"{name} has no quantised activation in layers {of_types}"
        "Quantise its activations with brevitas.nn layers, name their types in `targets`, or "
        "strike floats (`word: ieee`)"
    )


class _Plan:
    """Traces a model, container by container.

    Attributes:
        containers: how each container was handled, by path.
    """

    def __init__(self, is_target: Callable[[nn.Module], bool], keep: Mapping[str, str]) -> None:
        self.is_target, self.keep = is_target, keep
        self.containers: dict[str, Container] = {}

    def trace(self, module: nn.Module, path: str, reason: str = "") -> None:
        """Give our copy of a module a generated forward, or keep its own and trace its children."""
        attempt = self._attempt(module, path)
        if isinstance(attempt, str):
            self._keep(module, path, attempt)
            return
        handling = "own graph" if path else "traced"
        if path and not reason:
            reason = "the module that calls it keeps its own forward"
        self.containers[path] = Container(path, type(module).__name__, handling, reason)
        for tracer in attempt:
            for below, kind in tracer.traced.items():
                full = joined(path, below)
                self.containers.setdefault(full, Container(full, kind, "traced"))
        for tracer in attempt:
            for below, why in tracer.refused.items():
                child = module.get_submodule(below)
                full = joined(path, below)
                if full in self.containers and self.containers[full].handling != "traced":
                    continue
                if below in tracer.branching:
                    self.trace(child, full, why)
                else:
                    self._keep(child, full, why)
        graphs = [tracer.graph for tracer in attempt]
        parts = _parts_of(module, attempt)
        terms = Terms(_guards_of(module, attempt, [part for part, _, _ in parts]), parts)
        adopt(module, graphs[0], graphs[1] if len(graphs) > 1 else None, terms)

    def _keep(self, module: nn.Module, path: str, reason: str) -> None:
        self.containers[path] = Container(path, type(module).__name__, "kept", reason)
        for name, child in module.named_children():
            is_done = isinstance(child, TracedModule) or self.is_target(child)
            if not is_done and holds(child, self.is_target):
                self.trace(child, joined(path, name))

    def _attempt(self, module: nn.Module, path: str) -> list[ModelTracer] | str:
        """Trace one module in each mode that matters; if that fails, return the reason."""
        refusal = "it is a target" if self.is_target(module) else self.keep.get(path)
        refusal = refusal or why_kept(module, is_root=not path) or why_no_room(module)
        if refusal:
            return refusal
        prefix = f"{path}." if path else ""
        refused = {
            full.removeprefix(prefix): why
            for full, why in self.keep.items()
            if full != path and full.startswith(prefix)
        }
        while True:
            tracers = _trace_modes(module, self.is_target, refused)
            if isinstance(tracers, str):
                return tracers
            # A container that failed at one of its calls becomes a leaf at all of them.
            traced = set().union(*(tracer.traced for tracer in tracers))
            failed = {
                path: why for t in tracers for path, why in t.refused.items() if path in traced
            }
            if not failed:
                return tracers
            refused.update(failed)


def _guards_of(
    module: nn.Module, tracers: list[ModelTracer], parts: Sequence[nn.Module]
) -> tuple[Guard, ...]:
    """The guards of a forward, without the layers of `parts`, which `Terms` compares."""
    found: dict[tuple[int, str], Guard] = {}
    covered = {(id(part), name) for part in parts for name in part._modules}
    for tracer in tracers:
        inside = [module, *(module.get_submodule(path) for path in tracer.traced)]
        forwards = [Guard.of(part, "forward", f"the forward of {_kind(part)}") for part in inside]
        forwards += [Guard.of(type(p), "__call__", f"the call of {_kind(p)}") for p in inside]
        for guard in (*tracer.calls.guards.values(), *forwards):
            if guard.is_entry and guard.key in covered:
                continue
            if isinstance(guard.holder, nn.Module):
                # While the forward was traced, a list was a copy: guard the original.
                guard = Guard.of(guard.holder, guard.name, guard.label)
            found.setdefault(guard.key, guard)
    # The forward got these layers from a list or a function; the graph calls them by their names.
    others = {id(layer) for guard in found.values() for layer in guard.leads_to(nn.Module)}
    for part in module.modules() if others else ():
        for name, layer in part._modules.items():
            if id(layer) in others:
                guard = Guard.of(part, LAYER + name, f"the layer {name}")
                found.setdefault(guard.key, guard)
    return tuple(found.values())


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _parts_of(
    module: nn.Module, tracers: list[ModelTracer]
) -> tuple[tuple[nn.Module, tuple[str, ...], tuple[Any, ...]], ...]:
    """The modules whose children a graph calls; see `Terms`."""
    paths = {""}
    for tracer in tracers:
        for node in tracer.graph.find_nodes(op="call_module"):
            names = str(node.target).split(".")
            paths |= {".".join(names[:length]) for length in range(1, len(names))}
    parts = {path: module.get_submodule(path) for path in sorted(paths)}
    inside = {id(part) for part in parts.values()}
    return tuple(
        (
            part,
            tuple(part._modules),
            tuple(
                child if child is None or id(child) in inside else Present
                for child in part._modules.values()
            ),
        )
        for part in parts.values()
    )


def _trace_modes(
    module: nn.Module, is_target: Callable[[nn.Module], bool], refused: dict[str, str]
) -> list[ModelTracer] | str:
    tracers: list[ModelTracer] = []
    for mode in (False, True):
        tracer = ModelTracer(is_target, mode, refused)
        try:
            tracer.trace(module)
        # A model's code may raise anything when it meets a symbolic value.
        except Exception as error:
            return why_untraceable(error)
        tracers.append(tracer)
        if not tracer.asked_for_mode:
            break
    return tracers


def joined(path: str, name: str) -> str:
    """The path of something below a module; either part may be empty."""
    return f"{path}.{name}" if path and name else path or name
