"""A module whose forward is generated from a graph, and which is otherwise as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode

from fxfault.passes.sharing import shell


class TracedModule(GraphModule):
    """A `GraphModule` that keeps the class, attributes and children of its source.

    `torch.fx.GraphModule` copies over only what its graph names, in the order of use,
    and forgets the rest: unused modules, the order of `state_dict`, methods such as
    `clip_weights`. Here the object stays what it was (`isinstance` holds) and only its
    forward comes from the graph.

    A forward that asks for `self.training` has two graphs: `graph` for evaluation and
    `train_graph` for training; the mode at the time of the call picks one.
    """

    train_graph: Graph | None

    def __init_subclass__(cls, **options: Any) -> None:
        """Do not tell the source's class of the classes made for generated code."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with its hooks."""
        # Looked up anew, because tracing replaces it; and not through super(), because a
        # source that was itself generated brings a `__call__` that would come back here.
        return nn.Module.__call__(self, *args, **kwargs)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graph, and the one for training where it differs."""
        return (self.graph,) if self.train_graph is None else (self.graph, self.train_graph)

    def recompile(self) -> PythonCode:
        """Generate the forward from the graph, or from both."""
        code = super().recompile()
        train_graph = self.__dict__.get("train_graph")
        if train_graph is not None:
            kind: Any = type(self)
            evaluate, train = kind.forward, _compile(train_graph)

            def forward(self: TracedModule, *args: Any, **kwargs: Any) -> Any:
                return (train if self.training else evaluate)(self, *args, **kwargs)

            kind.forward = forward
        return code

    @property
    def train_code(self) -> str | None:
        """The code for training where it differs."""
        if self.train_graph is None:
            return None
        return self.train_graph.python_code("self").src

    def extra_repr(self) -> str:
        """What the source says of itself, and how many sites the module carries."""
        sites = self.__dict__.get("faults")
        own = super().extra_repr()
        return own if sites is None else ", ".join(filter(None, [own, f"faults={sites!r}"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModule:
        # GraphModule's own version rebuilds the module tree in the order of use.
        new: Any = object.__new__(_own_class(type(self)))
        memo[id(self)] = new
        graphs = ("_graph", "train_graph")
        for name, value in self.__dict__.items():
            if name not in graphs:
                new.__dict__[name] = copy.deepcopy(value, memo)
        _set_graphs(new, *(copy.deepcopy(self.__dict__[name]) for name in graphs))
        return new

    def __copy__(self) -> TracedModule:
        return twin_of_traced(self)  # type: ignore[return-value]

    def _replicate_for_data_parallel(self) -> Any:
        # GraphModule's own version copies the module, and with it the children that
        # torch.nn.parallel.replicate is about to replace.
        return nn.Module._replicate_for_data_parallel(self)


def adopt(module: nn.Module, graph: Graph, train_graph: Graph | None) -> TracedModule:
    """Turn a module, in place, into one whose forward comes from a graph.

    Args:
        module: an object of ours (see `fxfault.passes.sharing`).
        graph: the graph for evaluation, and for training too where they agree.
        train_graph: the graph for training where they differ.
    """
    source = type(module)
    if issubclass(source, TracedModule):
        source = source.__bases__[1]  # Traced again: its class before the first time.
    module.__class__ = _class_from((TracedModule, source), source)
    defaults = GraphModule(nn.Module(), Graph())
    for name, value in vars(defaults).items():
        module.__dict__.setdefault(name, value)
    for name in ("_code", "_graph", "meta"):  # What a source that was traced before left there.
        module.__dict__[name] = vars(defaults)[name]
    _set_graphs(module, graph, train_graph)
    return module  # type: ignore[return-value]


def twin_of_traced(module: nn.Module) -> nn.Module:
    """`shell`, for modules that may be traced: the new object has graphs of its own."""
    if not isinstance(module, TracedModule):
        return shell(module)
    new = shell(module, _own_class(type(module)))
    _set_graphs(new, copy.deepcopy(module.graph), copy.deepcopy(module.train_graph))
    return new


def _set_graphs(module: Any, graph: Graph, train_graph: Graph | None) -> None:
    module.__dict__["train_graph"] = train_graph
    if train_graph is not None:
        train_graph.owning_module = module
    module.graph = graph


def _own_class(kind: type) -> type:
    """A class like `kind` for one more object: generated code lives in the class."""
    return _class_from(kind.__bases__, kind)


def _class_from(bases: tuple[type, ...], named_like: type) -> type:
    names = {"__module__": named_like.__module__, "__doc__": named_like.__doc__}
    new = type(named_like.__name__, bases, names)
    new.__qualname__ = named_like.__qualname__
    return new


def _compile(graph: Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<train graph>", "exec"), namespace)
    return namespace["forward"]


def why_no_room(module: nn.Module) -> str | None:
    """Say which name of a `GraphModule` a module uses for something else; None: none."""
    kind = type(module)
    if isinstance(module, GraphModule) or "backport.fx" in kind.__module__:
        return None  # It was generated itself, and means the same by them.
    taken = set(dir(TracedModule)) | set(vars(GraphModule(nn.Module(), Graph())))
    taken -= set(dir(nn.Module)) | set(vars(nn.Module())) | {"__weakref__", "__init_subclass__"}
    own = set(vars(module)) | set(module._modules) | set(module._buffers) | set(module._parameters)
    for base in kind.__mro__:
        if base not in (nn.Module, object):
            own |= set(vars(base)) - {"__module__", "__doc__", "__dict__", "__annotations__"}
    clash = sorted(name for name in taken & own if not name.startswith("__"))
    return f"it has an attribute called {clash[0]}" if clash else None
