"""A module whose forward is generated from a graph, and which is otherwise as it was."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode
from torch.nn.modules import module as torch_hooks
from torch.utils.hooks import RemovableHandle

from fxfault.functional import begin_forward
from fxfault.passes.tracing.guards import Guard, Present, Scope, freeze_value
from fxfault.passes.tracing.own_forward import Transformed, class_from, source_class
from fxfault.passes.tracing.sharing import shell, with_replacements
from fxfault.sites.fault_sites import FaultSites

_EMPTY = inspect.Parameter.empty
_PLAIN = frozenset({bool, int, float, str})  # Which have no attributes of their own.
_PAST_NONE = "{} is None, which the graph was not traced for"
_OTHER_VALUE = "{} was given, which the graph was traced without"


class Terms(NamedTuple):
    """What a graph answers for; a forward that is about something else runs as Python code.

    Attributes:
        guards: what the forward read while it was traced, besides its inputs.
        parts: modules whose layers the graph calls, with the names of their children and, of
            these, the containers that are part of the graph (`Present` for layers).
    """

    guards: tuple[Guard, ...] = ()
    parts: tuple[tuple[nn.Module, tuple[str, ...], tuple[Any, ...]], ...] = ()


class TracedModule(Transformed, GraphModule):
    """A `GraphModule` that keeps the class, attributes and children of its source.

    `torch.fx.GraphModule` copies over only what its graph names, in the order of use,
    and forgets the rest: unused modules, the order of `state_dict`, methods such as
    `clip_weights`. Here the object stays what it was (`isinstance` holds) and only its
    forward comes from the graph.

    A forward that asks for `self.training` has two graphs: `graph` for evaluation and
    `train_graph` for training; the mode at the time of the call picks one.

    The graph answers only for what it was traced for. A call that gives an optional argument
    another value than its default, and one after the forward would find other settings, hooks
    or layers than were traced, runs the source's own forward (`why_own_forward` says why), whose
    layers strike their outputs themselves.
    """

    train_graph: Graph | None
    _terms: Terms

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an object of the source's class: `self.__class__(...)` means that one."""
        return source_class(cls)(*args, **kwargs)

    def __init_subclass__(cls, **options: Any) -> None:
        """Do not tell the source's class of the classes made for generated code."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with its hooks."""
        # Looked up anew, because tracing replaces it; and not through super(), because a
        # source that was itself generated brings a `__call__` that would come back here.
        call = own_call(source_class(type(self))) or nn.Module.__call__
        return call(self, *args, **kwargs)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graph, and the one for training where it differs."""
        return (self.graph,) if self.train_graph is None else (self.graph, self.train_graph)

    def recompile(self) -> PythonCode:
        """Generate the forward from the graph, or from both."""
        code = super().recompile()
        kind: Any = type(self)
        train_graph = self.__dict__.get("train_graph")
        evaluate = kind.forward
        train = evaluate if train_graph is None else compile_graph(train_graph)

        def forward(self: TracedModule, *args: Any, **kwargs: Any) -> Any:
            graph = train if self.training else evaluate
            sites = self._sites
            if torch.compiler.is_dynamo_compiling():
                return _run_compiled(self, sites, graph, args, kwargs)
            why = self.why_own_forward(args, kwargs)
            self.__dict__["_ran_own_forward"] = why
            if sites is None:
                return (graph if why is None else source_class(kind).forward)(self, *args, **kwargs)
            if why is None:
                with sites.running_graph(self.__dict__["_number"]):
                    return graph(self, *args, **kwargs)
            with sites.running_graph(None):
                return self._run_own_forward(sites, args, kwargs)

        forward.__signature__ = inspect.signature(evaluate)  # type: ignore[attr-defined]
        kind.forward = forward
        return code

    def why_own_forward(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> str | None:
        """Why a call would run the source's own forward and not the graph; None: the graph.

        Args:
            args: of the call; without any, its arguments are not judged.
            kwargs: of the call.
        """
        why = self._why_arguments(args, kwargs or {})
        return why or self._why_changed()

    def _why_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        kind: Any = type(self)
        needed, parameters = _signature_of(kind)
        if not kwargs and len(args) <= needed:
            for number, value in enumerate(args):
                if value is None:
                    return _PAST_NONE.format(list(parameters)[number])
            return None
        given = dict(zip(parameters, args, strict=False)) | dict(kwargs)
        for name, value in given.items():
            default = parameters.get(name, _EMPTY)
            if default is _EMPTY:
                if value is None:
                    return _PAST_NONE.format(name)
            elif value is not default and (
                freeze_value(value) != freeze_value(default) or freeze_value(value) is None
            ):
                return _OTHER_VALUE.format(name)
        return None

    def _why_changed(self) -> str | None:
        terms = self.__dict__["_terms"]
        for guard in terms.guards:
            holder, name, value, _, _ = guard
            # The usual case in place, as it is asked in each forward.
            is_plain = type(value) in _PLAIN and type(holder) is not Scope
            if not (is_plain and holder.__dict__.get(name) is value) and not guard.holds():
                return f"{guard.label} is not what it was when the graph was traced"
        for module, names, containers in terms.parts:
            children = module._modules
            same = tuple(children) == names
            for child, container in zip(children.values(), containers if same else (), strict=same):
                same = same and (child is container or (container is Present and child is not None))
            if not same:
                return f"layers of {type(module).__name__} were added, taken out or replaced"
        return self._why_hooked(terms)

    def _why_hooked(self, terms: Terms) -> str | None:
        """Hooks of what is part of the graph, which the graph would pass by."""
        if torch_hooks._global_forward_hooks or torch_hooks._global_forward_pre_hooks:
            return "there are global forward hooks"
        if self.__dict__.get("_without_hooks") == RemovableHandle.next_id:
            return None  # No hook was added anywhere since.
        for module, _, _ in terms.parts:
            hooks = (module._forward_hooks, module._forward_pre_hooks)
            hooks += (module._backward_hooks, module._backward_pre_hooks)  # type: ignore[assignment]
            if module is not self and any(hooks):
                return f"a {type(module).__name__} in it has hooks"
        self.__dict__["_without_hooks"] = RemovableHandle.next_id
        return None

    def _run_own_forward(self, sites: FaultSites, args: Any, kwargs: Any) -> Any:
        own = source_class(type(self)).forward
        if self.__dict__.get("_begins"):
            bound = inspect.signature(own).bind(self, *args, **kwargs)
            _, *inputs = bound.arguments.values()
            begin_forward(sites, *inputs)
        return own(self, *args, **kwargs)

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
        new: Any = twin_of_traced(self)
        terms = new.__dict__["_terms"]
        new.__dict__["_terms"] = Terms(*with_replacements(tuple(terms), {id(self): new}))
        return new

    def _replicate_for_data_parallel(self) -> Any:
        # GraphModule's own version copies the module, and with it the children that
        # torch.nn.parallel.replicate is about to replace.
        return nn.Module._replicate_for_data_parallel(self)


def adopt(module: nn.Module, graph: Graph, train_graph: Graph | None, terms: Terms) -> TracedModule:
    """Turn a module, in place, into one whose forward comes from a graph.

    Args:
        module: an object of ours (see `fxfault.passes.tracing.sharing`).
        graph: the graph for evaluation, and for training too where they agree.
        train_graph: the graph for training where they differ.
        terms: what the graphs answer for.
    """
    source = type(module)
    module.__class__ = class_from((TracedModule, source), source)
    defaults = GraphModule(nn.Module(), Graph())
    for name, value in vars(defaults).items():
        module.__dict__.setdefault(name, value)
    for name in ("_code", "_graph", "meta"):  # What a source that was traced before left there.
        module.__dict__[name] = vars(defaults)[name]
    module.__dict__["_terms"] = terms
    _set_graphs(module, graph, train_graph)
    return module  # type: ignore[return-value]


def _run_compiled(module: Any, sites: Any, graph: Any, args: Any, kwargs: Any) -> Any:
    """Run a graph as code that is being compiled; its caller sees to what it answers for."""
    if sites is None:
        return graph(module, *args, **kwargs)
    before = sites.running
    sites.running = module._number
    output = graph(module, *args, **kwargs)
    sites.running = before
    return output


def release(module: nn.Module) -> None:
    """Give a module of ours its source's class and forward back, to be traced anew."""
    if not isinstance(module, TracedModule):
        return
    module.__class__ = source_class(type(module))
    ours = {"train_graph", "_terms", "_number", "_begins", "_without_hooks", "_ran_own_forward"}
    if not _is_graph_module(module):
        ours |= _names_of_graph_modules()
    for name in ours:
        module.__dict__.pop(name, None)


def own_call(kind: type) -> Any:
    """The `__call__` that a class has in the place of that of all modules; None: it has none."""
    call: Any = kind.__call__
    if call in (nn.Module.__call__, TracedModule.__call__):
        return None
    return None if "GraphModule" in getattr(call, "__qualname__", "") else call


@functools.lru_cache(maxsize=1024)
def _signature_of(kind: type) -> tuple[int, dict[str, Any]]:
    """How many inputs stand first without a default, and the default of each by name."""
    parameters = list(inspect.signature(source_class(kind).forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    first = [p.default is _EMPTY and p.kind is not p.KEYWORD_ONLY for p in named]
    needed = first.index(False) if False in first else len(first)
    return needed, {p.name: p.default for p in named}


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
    return class_from(kind.__bases__, kind)


def compile_graph(graph: Graph, name: str = "<train graph>") -> Callable[..., Any]:
    """The forward that a graph generates; `name` stands for its file in tracebacks."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, name, "exec"), namespace)
    return namespace["forward"]


def why_no_room(module: nn.Module) -> str | None:
    """Say which name of a `GraphModule` a module uses for something else; None: none."""
    kind = type(module)
    if _is_graph_module(module):
        return None  # It was generated itself, and means the same by them.
    taken = set(dir(TracedModule)) | _names_of_graph_modules()
    taken -= set(dir(nn.Module)) | {"__weakref__", "__init_subclass__"}
    own = set(vars(module)) | set(module._modules) | set(module._buffers) | set(module._parameters)
    for base in kind.__mro__:
        if base not in (nn.Module, object):
            own |= set(vars(base)) - {"__module__", "__doc__", "__dict__", "__annotations__"}
    clash = sorted(name for name in taken & own if not name.startswith("__"))
    return f"it has an attribute called {clash[0]}" if clash else None


def _is_graph_module(module: nn.Module) -> bool:
    return isinstance(module, GraphModule) or "backport.fx" in type(module).__module__


def _names_of_graph_modules() -> set[str]:
    """Attributes that a `GraphModule` has, and other modules have not."""
    return set(vars(GraphModule(nn.Module(), Graph()))) - set(vars(nn.Module()))
