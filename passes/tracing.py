"""Trace a model down to its fault targets, and keep what cannot be traced as it is."""

from __future__ import annotations

import contextlib
import dis
import functools
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.proxy import Attribute, TraceError

from fxfault.errors import TransformError
from fxfault.passes.sharing import holds, twin
from fxfault.passes.traced_module import TracedModule, adopt
from fxfault.quant_tensors import is_activation, output_type

# Functions that make a tensor from nothing. Traced code makes it anew in each forward, as
# the model's own code does, instead of keeping the one that was made while tracing.
_FACTORIES = (
    "tensor as_tensor from_numpy zeros ones full empty eye arange linspace rand randn randint "
    "randperm normal"
).split()

TARGETS = ("QuantIdentity", "QuantReLU", "QuantHardTanh")


@dataclass(frozen=True)
class Container:
    """How a module that holds targets was handled.

    Attributes:
        path: its path in the model; empty for the model itself.
        type: its class name.
        handling: `traced` (part of its parent's graph), `own graph` (a graph of its own,
            called from its parent's), or `kept` (its own Python forward).
        reason: why it is not part of its parent's graph; empty if it is.
    """

    path: str
    type: str
    handling: str
    reason: str = ""


def trace(model: nn.Module, targets: tuple[str, ...] = TARGETS) -> nn.Module:
    """Trace a model into a graph whose leaves include every fault target.

    The result shares its layers, parameters and buffers with `model` and has the same
    `state_dict`. Where a container's forward cannot be traced it keeps that forward, and
    its children are traced in its place.

    >>> from brevitas.nn import QuantReLU
    >>> traced = trace(nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4)))
    >>> [str(node) for node in traced.graph.nodes]
    ['input_1', '_0', '_1', 'output']

    Args:
        model: any model; it is not changed.
        targets: class names of the activation layers that faults may strike after.

    Returns:
        A `TracedModule`, or, where the model's own forward cannot be traced, a module of
        its class with that forward. `containers_of` tells what was done.

    Raises:
        TransformError: the model holds none of the targets.
    """

    def is_target(module: nn.Module) -> bool:
        return is_activation(module, targets)

    if not is_target(model) and not holds(model, is_target):
        raise TransformError(_no_target_message(model, targets))
    ours = twin(model, is_target)
    containers: dict[str, Container] = {}
    with _random_states_kept():
        _trace_in_place(ours, "", is_target, containers)
    ours.__dict__["_containers"] = tuple(containers.values())
    return ours


def containers_of(model: nn.Module) -> tuple[Container, ...]:
    """How each container of a traced or transformed model was handled."""
    return model.__dict__.get("_containers", ())


def _no_target_message(model: nn.Module, targets: tuple[str, ...]) -> str:
    kinds = sorted({type(module).__name__ for module in model.modules()})
    shown = ", ".join(kinds[:20]) + (f" and {len(kinds) - 20} more" if len(kinds) > 20 else "")
    return (
        f"{type(model).__name__} has no module of the types {', '.join(targets)}; it has {shown}. "
        "Quantise its activations with brevitas.nn layers, or name their types in `targets`"
    )


def _trace_in_place(
    module: nn.Module,
    path: str,
    is_target: Callable[[nn.Module], bool],
    containers: dict[str, Container],
    reason: str = "",
) -> None:
    """Give a module of ours a generated forward, or keep its own and go on below it."""
    attempt = _attempt(module, path, is_target)
    if isinstance(attempt, str):
        containers[path] = Container(path, type(module).__name__, "kept", attempt)
        _trace_children(module, path, is_target, containers)
        return
    handling = "own graph" if path else "traced"
    containers[path] = Container(path, type(module).__name__, handling, reason)
    for tracer in attempt:
        for below, kind in tracer.traced.items():
            full = _join(path, below)
            containers.setdefault(full, Container(full, kind, "traced"))
    for tracer in attempt:
        for below, why in tracer.refused.items():
            child = module.get_submodule(below)
            full = _join(path, below)
            if full in containers and containers[full].handling != "traced":
                continue
            if below in tracer.branching:
                _trace_in_place(child, full, is_target, containers, why)
            else:
                containers[full] = Container(full, type(child).__name__, "kept", why)
                _trace_children(child, full, is_target, containers)
    graphs = [tracer.graph for tracer in attempt]
    adopt(module, graphs[0], graphs[1] if len(graphs) > 1 else None)


def _trace_children(
    module: nn.Module,
    path: str,
    is_target: Callable[[nn.Module], bool],
    containers: dict[str, Container],
) -> None:
    for name, child in module.named_children():
        if isinstance(child, TracedModule) or is_target(child) or not holds(child, is_target):
            continue
        _trace_in_place(child, _join(path, name), is_target, containers)


def _attempt(
    module: nn.Module, path: str, is_target: Callable[[nn.Module], bool]
) -> list[ModelTracer] | str:
    """Trace one module for each mode that matters; on failure, say why."""
    refusal = "it is a target" if is_target(module) else why_kept(module, is_root=not path)
    if refusal:
        return refusal
    refused: dict[str, str] = {}
    while True:
        tracers = _trace_modes(module, is_target, refused)
        if isinstance(tracers, str):
            return tracers
        # A container that failed at one of its calls is called as a leaf at all of them.
        traced = set().union(*(tracer.traced for tracer in tracers))
        failed = {path: why for t in tracers for path, why in t.refused.items() if path in traced}
        if not failed:
            return tracers
        refused.update(failed)


def _trace_modes(
    module: nn.Module, is_target: Callable[[nn.Module], bool], refused: dict[str, str]
) -> list[ModelTracer] | str:
    tracers: list[ModelTracer] = []
    for mode in (False, True):
        tracer = ModelTracer(is_target, mode, refused)
        try:
            tracer.trace(module)
        # Whatever a model's code raises when it meets a symbolic value.
        except Exception as error:
            return _one_line(error)
        tracers.append(tracer)
        if not tracer.asked_for_mode:
            break
    return tracers


def why_kept(module: nn.Module, is_root: bool = False) -> str | None:
    """Why a container must keep its own forward without even trying; None: try."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript"
    library = type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.", "brevitas.nn."))
    if library and not isinstance(module, nn.Sequential):
        return "it is a layer of a library"
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return "it has no forward"
    if not is_root and (module._forward_hooks or module._forward_pre_hooks):
        return "it has forward hooks"
    if not is_root and (module._backward_hooks or module._backward_pre_hooks):
        return "it has backward hooks"
    return None


# -- the tracer -------------------------------------------------------------------------


class ModelTracer(Tracer):
    """Traces one module; a container below it whose forward fails becomes a leaf.

    Attributes:
        traced: containers whose operations are part of the graph, with their class name.
        refused: containers that became leaves, and why.
        branching: those of them that do so because they branch on `self.training`.
        asked_for_mode: whether the module's own forward asks for `self.training`.
    """

    proxy_buffer_attributes = True

    def __init__(
        self, is_target: Callable[[nn.Module], bool], mode: bool, refused: dict[str, str]
    ) -> None:
        super().__init__()
        self.is_target = is_target
        self.mode = mode
        self.traced: dict[str, str] = {}
        self.refused = dict(refused)
        self.branching: set[str] = set()
        self.asked_for_mode = False
        self._attributes: dict[str, Proxy] = {}
        self._contexts = _contexts()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> Graph:
        """Trace `root`, a module of ours; its attributes are as before afterwards."""
        before = _Snapshot(root)
        with self._training_flags(root), self._factories_recorded():
            graph = super().trace(root, concrete_args)
        before.check()
        return graph

    # -- leaves ---------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A target, what holds no target, and layers of torch.nn and brevitas.nn."""
        if self.is_target(m) or not holds(m, self.is_target):
            return True
        reason = why_kept(m)
        if reason:
            self.refused[module_qualified_name] = reason
        return reason is not None

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace through a container; if that fails, undo it and call it as a leaf."""
        path = self.path_of_module(m)
        if path in self.refused or self.is_leaf_module(m, path):
            return self._call_leaf(m, path, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        kept = (self.module_stack.copy(), self.num_calls.copy(), self.traced.copy())
        before = _Snapshot(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
            before.check()
        # Whatever a model's code raises when it meets a symbolic value.
        except Exception as error:
            before.restore()
            self._erase_after(last)
            self.module_stack, self.num_calls, self.traced = kept
            self.refused[path] = _one_line(error)
            if isinstance(error, _BranchesOnTraining) and error.path == path:
                self.branching.add(path)
            return self.create_proxy("call_module", path, args, kwargs)
        self.traced[path] = type(m).__name__
        return result

    def _call_leaf(
        self, m: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = self.create_proxy("call_module", path, args, kwargs)
        if isinstance(result, ValueProxy):
            passed_on = args[0] if args and isinstance(m, nn.Identity) else None
            result.known_type = getattr(passed_on, "known_type", None) or output_type(m)
        return result

    def _erase_after(self, last: Node | None) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
        alive = set(self.graph.nodes)
        for name in [n for n, proxy in self._attributes.items() if proxy.node not in alive]:
            del self._attributes[name]

    # -- values ---------------------------------------------------------------------

    def proxy(self, node: Node) -> Proxy:
        """Stand for a value with a proxy that refuses questions it cannot answer."""
        return ValueProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:
        """Note the cache of parameter proxies, which undoing a container must clear."""
        self._attributes = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Proxy:
        """Record an operation, unless a context that the graph would lose surrounds it."""
        if _contexts() != self._contexts:
            raise TraceError("its forward switches gradients or autocast on or off")
        return super().create_proxy(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """Lower an argument; a training flag is read anew in each forward."""
        if isinstance(a, _TrainingFlag):
            return a.as_argument(self)
        fresh = isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter)
        if fresh and a not in self.tensor_attrs and not self._is_buffer(a):
            raise TraceError("its forward uses a tensor that was made while tracing")
        return super().create_arg(a)

    def _is_buffer(self, tensor: torch.Tensor) -> bool:
        return any(tensor is buffer for buffer in self.root.buffers())

    # -- surroundings ---------------------------------------------------------------

    @contextlib.contextmanager
    def _training_flags(self, root: nn.Module) -> Iterator[None]:
        """Let containers meet a symbolic `self.training`."""
        containers = {
            name: module
            for name, module in root.named_modules()
            if module is root or (holds(module, self.is_target) and not why_kept(module))
        }
        flags = {name: module.training for name, module in containers.items()}
        try:
            for name, module in containers.items():
                module.__dict__["training"] = _TrainingFlag(self, name)
            yield
        finally:
            for name, module in containers.items():
                module.__dict__["training"] = flags[name]

    @contextlib.contextmanager
    def _factories_recorded(self) -> Iterator[None]:
        originals = {name: getattr(torch, name) for name in _FACTORIES}

        def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def call(*args: Any, **kwargs: Any) -> Any:
                if _is_library(sys._getframe(1)):
                    return original(*args, **kwargs)
                return self.create_proxy("call_function", original, args, kwargs)

            return call

        try:
            for name, original in originals.items():
                setattr(torch, name, recorded(original))
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)


def is_training(module: nn.Module) -> bool:
    """Whether a module is in training mode; what traced code calls to ask."""
    return module.training


class _BranchesOnTraining(TraceError):
    """A container below the traced module branches on its `self.training`."""

    def __init__(self, path: str) -> None:
        super().__init__("its forward branches on self.training")
        self.path = path


class _TrainingFlag:
    """Stands for `self.training` of a container while it is traced.

    As an argument (functional dropout) it becomes a read of the flag in each forward. A
    branch on it needs a graph for each mode: the traced module itself is traced once for
    each, a container below becomes a module with graphs of its own.
    """

    def __init__(self, tracer: ModelTracer, path: str) -> None:
        self.tracer = tracer
        self.path = path

    def __bool__(self) -> bool:
        if self.path:
            raise _BranchesOnTraining(self.path)
        self.tracer.asked_for_mode = True
        return self.tracer.mode

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    __hash__ = None  # type: ignore[assignment]

    def as_argument(self, tracer: ModelTracer) -> Any:
        if not self.path:
            return bool(self)
        module = tracer.create_proxy("get_attr", self.path, (), {})
        return tracer.create_proxy("call_function", is_training, (module,), {}).node


class ValueProxy(Proxy):
    """A symbolic value that refuses what tracing would silently answer wrongly.

    `isinstance(value, QuantTensor)` is false for any proxy and `hasattr(value, name)` is
    true for any name: a branch on them would be traced the wrong way. Refusing makes the
    container keep its own forward.

    Attributes:
        known_type: the type that the value will have, where the layer that makes it leaves
            no doubt; then `isinstance` is answered.
    """

    known_type: type | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") == "abc" and frame.f_back is not None:
            frame = frame.f_back
        if _is_library(frame) and frame.f_code.co_name != "is_tensor":
            return type(self)
        if self.known_type is not None:
            return self.known_type
        raise TraceError("its forward asks for the type of a value")

    def __getattr__(self, k: str) -> ValueAttribute:
        frame = sys._getframe(1)
        if not _is_library(frame) and "CALL" in _current_instruction(frame):
            raise TraceError("its forward looks an attribute of a value up by name")
        return ValueAttribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if not _is_library(sys._getframe(1)):
            raise TraceError("its forward sets an attribute of a value")
        super().__setattr__(name, value)


class ValueAttribute(ValueProxy, Attribute):
    """An attribute or a method of a symbolic value."""


def _add_in_place_operators() -> None:
    """Record `x += y` as it is: Proxy would turn it into `x = x + y`, which changes aliases."""
    import operator

    for name in "iadd isub imul itruediv ifloordiv imatmul iand ior ixor ipow imod".split():

        def method(self: Proxy, other: Any, function: Any = getattr(operator, name)) -> Proxy:
            return self.tracer.create_proxy("call_function", function, (self, other), {})

        setattr(ValueProxy, f"__{name}__", method)


_add_in_place_operators()


def _current_instruction(frame: Any) -> str:
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return instruction.opname
    return ""


def _is_library(frame: Any) -> bool:
    """Whether code belongs to torch or to us, which may look at proxies as such."""
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in ("torch", "fxfault", "inspect", "functools", "copy")


# -- what a forward must not change -----------------------------------------------------


class _Snapshot:
    """The attributes of a module and the random states, to see whether a forward moves them.

    Such an effect would happen once, while tracing, instead of in each forward.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = self._attributes()
        self.random = _random_states()

    def _attributes(self) -> dict[str, Any]:
        plain = {k: v for k, v in self.module.__dict__.items() if k not in _IGNORED}
        copies = {k: v.copy() for k, v in plain.items() if type(v) in (list, dict, set)}
        return {**plain, **copies}

    def check(self) -> None:
        now = self._attributes()
        for name in {**self.attributes, **now}:
            if not _same(self.attributes.get(name, _IGNORED), now.get(name, _IGNORED)):
                raise TraceError(f"its forward changes self.{name}")
        if not _same_random(self.random, _random_states()):
            raise TraceError("its forward draws random numbers outside the graph")

    def restore(self) -> None:
        for name in [n for n in self.module.__dict__ if n not in _IGNORED]:
            if name not in self.attributes:
                del self.module.__dict__[name]
        for name, value in self.attributes.items():
            current = self.module.__dict__.get(name)
            if type(value) is dict and type(current) is dict:
                current.clear()
                current.update(value)
            elif type(value) is list and type(current) is list:
                current[:] = value
            else:
                self.module.__dict__[name] = value


_IGNORED = frozenset({"training"})


def _same(before: Any, now: Any) -> bool:
    if type(before) is not type(now):
        return False
    if type(before) is list:
        return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
    if type(before) is dict:
        return list(before) == list(now) and all(before[k] is now[k] for k in before)
    if type(before) is set:
        return before == now
    return before is now


def _contexts() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _random_states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _same_random(before: tuple[Any, Any, torch.Tensor], now: tuple[Any, Any, torch.Tensor]) -> bool:
    numpy_same = before[1][2:] == now[1][2:] and np.array_equal(before[1][1], now[1][1])
    return before[0] == now[0] and numpy_same and torch.equal(before[2], now[2])


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    python, numpy, torch_state = _random_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, TraceError) and text else f"{type(error).__name__}: {text}"
