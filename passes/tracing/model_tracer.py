"""The tracer: one module, down to its fault targets."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import operator
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.proxy import TraceError

from fxfault.passes.tracing.call_tree import CallTree
from fxfault.passes.tracing.guards import contents_of, freeze_value
from fxfault.passes.tracing.refusals import is_layer, why_kept, why_no_code, why_untraceable
from fxfault.passes.tracing.sharing import holders, holds
from fxfault.passes.tracing.side_effects import Snapshot, copied_values
from fxfault.passes.tracing.symbolic_values import (
    StandIn,
    ValueAttribute,
    ValueProxy,
    first_argument,
    is_library,
)
from fxfault.quantisers.quant_tensors import output_type

# Functions that make a tensor from nothing. The graph calls them in each forward, as the model's
# own code does, and does not keep the tensor that was made while tracing.
_FACTORIES = (
    "tensor as_tensor from_numpy zeros ones full empty eye arange linspace rand randn randint "
    "randperm normal"
).split()


class ModelTracer(Tracer):
    """Traces one module; a container below it whose forward fails becomes a leaf.

    Attributes:
        traced: class names of the containers whose operations are part of the graph, by path.
        refused: reasons why containers became leaves, by path.
        branching: paths of the containers that became leaves because of a branch on
            `self.training`.
        asked_for_mode: whether the module's own forward asks for `self.training`.
        calls: the functions that the forward calls, and what they depend on.
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
        self.calls = CallTree(self._may_be_none)
        self._attributes: dict[str, Proxy] = {}
        self._contexts = _contexts()
        self._thread = threading.get_ident()
        self._values: list[weakref.ref[ValueProxy]] = []

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> Graph:
        """Trace `root`, our copy of a module; its attributes are restored afterwards."""
        holding = holders(root, self.is_target)
        ours = [m for m in root.modules() if m is root or id(m) in holding]
        with copied_values(ours):
            before = Snapshot(root)
            try:
                with (
                    self._training_flags(root),
                    self._factories_recorded(),
                    self._autograd_functions_refused(),
                    self.calls.watching(root),
                ):
                    graph = super().trace(root, concrete_args)
                self.calls.check()
                before.check()
                self._check_nothing_escaped()
            except BaseException:
                before.restore()
                self.calls.undo()
                raise
        return graph

    # -- leaves ---------------------------------------------------------------------

    def path_of_module(self, mod: nn.Module) -> str:
        """The path of a layer of the model."""
        try:
            return super().path_of_module(mod)
        except NameError:
            kind = type(mod).__name__
            raise TraceError(f"its forward calls a {kind} from outside the model") from None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a target, holds no target, or must keep its own forward."""
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
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or {}) and self._is_slice(m):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if path in self.refused or self.is_leaf_module(m, path):
            return self._call_leaf(m, path, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        kept = (self.module_stack.copy(), self.num_calls.copy(), self.traced.copy())
        mark = self.calls.mark()
        before = Snapshot(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
            self.calls.check()
            before.check()
        # A model's code may raise anything when it meets a symbolic value.
        except Exception as error:
            before.restore()
            self._erase_after(last)
            self.module_stack, self.num_calls, self.traced = kept
            self.refused[path] = self.calls.refusal or why_untraceable(error)
            self.calls.go_back(mark)
            if isinstance(error, _BranchesOnTraining) and error.path == path:
                self.branching.add(path)
            return self._call_leaf(m, path, args, kwargs)
        self.traced[path] = type(m).__name__
        return result

    def _is_slice(self, m: nn.Module) -> bool:
        """Whether a forward made the module itself, of layers of the model (`self.layers[:2]`)."""
        return type(m) in (nn.Sequential, nn.ModuleList) and all(
            child in (self.submodule_paths or {}) for child in m.children()
        )

    def _may_be_none(self, value: Proxy) -> bool:
        """Whether a value may be None in a forward; inputs that are None do not reach the graph."""
        node = value.node
        if node.op == "placeholder":
            return str(node.target).startswith("*")
        if node.op == "call_module":
            return not is_layer(self.root.get_submodule(str(node.target)))
        if node.op in ("call_function", "call_method"):
            return isinstance(value, ValueAttribute) or node.target in (
                operator.getitem,
                getattr,
                "get",
                "pop",
            )
        return node.op == "output"

    def _call_leaf(
        self, m: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if any(isinstance(x, (list, dict, set)) for x in (*args, *kwargs.values())):
            raise TraceError("its forward hands a list or a dict to a layer, which may fill it")
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

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: Any, fn: Any) -> Any:
        """Trace an optional argument at its default; other values do not reach the graph."""
        made = super()._proxy_placeholder(name, concrete_args, sig, fn)
        default = sig.parameters[name].default if name[0] != "*" else inspect.Parameter.empty
        if default is inspect.Parameter.empty:
            return made
        if freeze_value(default) is None or any(contents_of(default)):
            raise TraceError(f"its forward has a default that may change ({name})")
        return default

    def proxy(self, node: Node) -> Proxy:
        """Make a proxy that refuses the questions that it cannot answer."""
        value = ValueProxy(node, self)
        self._values.append(weakref.ref(value))
        return value

    def _check_nothing_escaped(self) -> None:
        """Refuse a forward that has put a symbolic value into a list or cache of the user."""
        self._attributes.clear()
        if any(value() is not None for value in self._values):
            gc.collect()
        if any(value() is not None for value in self._values):
            raise TraceError("its forward keeps a value outside the model")

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:
        """Note the cache of parameter proxies, from which `_erase_after` removes some."""
        if threading.get_ident() != self._thread:
            return attr_val
        self._attributes = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Proxy:
        """Record an operation, unless it is in a context that the graph would lose."""
        if _contexts() != self._contexts:
            raise TraceError("its forward switches gradients, autocast or checkpointing on or off")
        return super().create_proxy(*args, **kwargs)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Record a node, unless its name cannot be written into code."""
        if kind in ("call_module", "get_attr", "call_method"):
            why = why_no_code(str(target))
            if why is not None:
                raise TraceError(why)
        return super().create_node(kind, target, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """Lower an argument; each forward reads a training flag again."""
        if isinstance(a, _TrainingFlag):
            return a.as_argument(self)
        fresh = isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter)
        if fresh and a not in self.tensor_attrs and not self._is_buffer(a):
            raise TraceError("its forward uses a tensor that was made while tracing")
        if type(a) is OrderedDict:
            items = [[key, self.create_arg(item)] for key, item in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        named = isinstance(a, tuple) and hasattr(a, "_fields")
        own_kind = type(a) not in (list, tuple, dict, torch.Size) and not named
        if isinstance(a, (list, tuple, dict)) and own_kind:
            raise TraceError(f"its forward makes a {type(a).__name__}")
        return super().create_arg(a)

    def _is_buffer(self, tensor: torch.Tensor) -> bool:
        return any(tensor is buffer for buffer in self.root.buffers())

    # -- surroundings ---------------------------------------------------------------

    @contextlib.contextmanager
    def _training_flags(self, root: nn.Module) -> Iterator[None]:
        """Give containers and layers a symbolic `training`."""
        containers = {
            name: module
            for name, module in root.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)
        }
        flags = {name: module.training for name, module in containers.items()}
        try:
            for name, module in containers.items():
                module.__dict__["training"] = _TrainingFlag(self, name)
            yield
            for module in containers.values():
                if type(module.__dict__["training"]) is not _TrainingFlag:
                    raise TraceError("its forward switches the mode of a layer")
        finally:
            for name, module in containers.items():
                module.__dict__["training"] = flags[name]

    @contextlib.contextmanager
    def _factories_recorded(self) -> Iterator[None]:
        originals = {name: getattr(torch, name) for name in _FACTORIES}

        def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def call(*args: Any, **kwargs: Any) -> Any:
                other_thread = threading.get_ident() != self._thread
                if other_thread or not _is_method_of_module(sys._getframe(1)):
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

    @contextlib.contextmanager
    def _autograd_functions_refused(self) -> Iterator[None]:
        """Refuse a symbolic value as argument of an autograd Function; torch 2.15 would crash."""
        functions: Any = torch.autograd.Function
        original = functions.__dict__["apply"]

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(value, Proxy) for value in (*args, *kwargs.values())):
                raise TraceError("its forward calls an autograd Function")
            return original.__get__(None, cls)(*args, **kwargs)

        try:
            functions.apply = classmethod(apply)
            yield
        finally:
            functions.apply = original


def is_training(module: nn.Module) -> bool:
    """Whether a module is in training mode; traced code calls this."""
    return module.training


class _BranchesOnTraining(TraceError):
    """A container below the traced module branches on its `self.training`."""

    def __init__(self, path: str) -> None:
        super().__init__("its forward branches on self.training")
        self.path = path


class _TrainingFlag(StandIn):
    """Stands for `self.training` of a container while it is traced.

    As an argument (of functional dropout, for instance) it becomes a read of the flag in each
    forward. A branch on it needs a graph for each mode: the traced module itself is traced once
    per mode, and a container below becomes a module with graphs of its own.
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

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        return type(self) if is_library(sys._getframe(1)) else bool

    def as_argument(self, tracer: ModelTracer) -> Any:
        if not self.path:
            return bool(self)
        module = tracer.create_proxy("get_attr", self.path, (), {})
        return tracer.create_proxy("call_function", is_training, (module,), {}).node


def _is_method_of_module(frame: Any) -> bool:
    """Whether code is a method of a user's module, and not a helper that may have a cache."""
    return isinstance(first_argument(frame), nn.Module) and not is_library(frame)


def _contexts() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        # Gradient checkpointing and offloading, without which a graph would need more memory.
        _has_saved_tensors_hooks(),
    )


def _has_saved_tensors_hooks() -> bool:
    try:  # Nothing tells it plainly in torch 2.6.
        with torch.autograd.graph.disable_saved_tensors_hooks("there are some"):
            return False
    except RuntimeError:
        return True
