"""Follow every function that a forward calls while it is traced.

Each function of the user is read (`fxfault.passes.tracing.code_reading`) when it is entered, with
the values of the moment. What it takes from outside must be constant, and becomes a guard
(`fxfault.passes.tracing.guards`). If it asks `x is None` of a symbolic value, the trace is refused.
Functions of torch, of fxfault and of a few stateless modules of Python are trusted. Code that
cannot be read is refused: its container keeps its own Python forward.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy, Tracer
from torch.fx.proxy import TraceError

from fxfault.passes.tracing.attribute_reads import ConstantsNoted, attributes_noted
from fxfault.passes.tracing.code_reading import IS_QUESTION, Code, Load, read_code
from fxfault.passes.tracing.guards import FACTS, Guard, Scope, contents_of, put_back
from fxfault.passes.tracing.outside_reads import (
    guards_for,
    is_library_class,
    is_of_library,
    is_trusted,
)
from fxfault.passes.tracing.symbolic_values import StandIn, first_argument, is_library

# Attributes of a class that Python itself looks up.
_IMPLIED = ("__init__", "__new__", "__call__")
_TRACE = Tracer.trace.__code__
# Python's own modules whose functions keep no state that a network could read.
_STATELESS = frozenset(
    "abc functools collections typing enum dataclasses operator contextlib types numbers "
    "fractions math _collections_abc weakref".split()
)


class CallTree:
    """Reads the functions that are called while it watches.

    Attributes:
        guards: what the trace depends on besides its inputs, by holder and name.
        refusal: why the container that is being traced must keep its forward; None if it need not.
    """

    def __init__(self, may_be_none: Callable[[Proxy], bool]) -> None:
        """Prepare to watch; `may_be_none` tells if a symbolic value can be None in a forward."""
        self.guards: dict[tuple[int, str], Guard] = {}
        self.refusal: str | None = None
        self._may_be_none = may_be_none
        self._root: nn.Module | None = None
        self._known: set[int] = set()
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._names = set(_IMPLIED)
        self._holders: dict[int, Any] = {}

    @contextlib.contextmanager
    def watching(self, root: nn.Module) -> Iterator[None]:
        """Watch the calls of this thread while a module is traced; debuggers pause meanwhile."""
        before, self._root = sys.gettrace(), root
        self._known = {id(module) for module in root.modules()}
        self._classes = _state_of_classes(root)
        self.watch()
        try:
            with attributes_noted(self._note_attribute), ConstantsNoted(self._note_tensor):
                yield
        finally:
            sys.settrace(before)

    def watch(self) -> None:
        """Start to watch, or start again: Python stops after an exception of ours."""
        # Python 3.12 reports opcodes from the first settrace on that follows such a wish.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._on_call)

    def check(self) -> None:
        """Raise TraceError if something was refused, or if something that was read has changed."""
        if self.refusal is not None:
            raise TraceError(self.refusal)
        for guard in self.guards.values():
            if not guard.holds():
                raise TraceError(f"its forward changes {guard.label}")
        for kind, before in self._classes:
            for name in _changed(kind, before):
                raise TraceError(f"its forward changes {kind.__name__}.{name}")

    def undo(self) -> None:
        """Undo what the forward has changed outside of the model."""
        for guard in self.guards.values():
            if not isinstance(guard.holder, nn.Module) and not guard.holds():
                guard.restore()
        for now, before in self._contents:
            put_back(now, before)
        for kind, values in self._classes:
            for name in _changed(kind, values):
                if name in values:
                    setattr(kind, name, values[name])
                else:
                    delattr(kind, name)

    def mark(self) -> tuple[Any, ...]:
        """The present knowledge, for `go_back`."""
        return self.guards.copy(), self._names.copy(), self._holders.copy()

    def go_back(self, mark: tuple[Any, ...]) -> None:
        """Undo what the forward has changed since a mark, and forget what was read."""
        self.undo()
        self.guards, self._names, self._holders = mark
        self.refusal = None
        self.watch()

    # -- frames -------------------------------------------------------------------------

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if is_library(frame) or _root_of(frame) in _STATELESS or _serves_library(frame):
            return None
        code = read_code(frame.f_code)
        try:
            self._read(frame, code)
        except TraceError as error:
            self.refusal = self.refusal or str(error)
            raise
        if not code.questions:
            return None

        def on_step(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "opcode" and frame.f_lasti in code.questions:
                self._answer(frame, code.questions[frame.f_lasti])
            return on_step

        # Python 3.13 reports opcodes of frames that have a function for it by then.
        frame.f_trace = on_step
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return on_step

    def _read(self, frame: FrameType, code: Code) -> None:
        if code.refusal is not None:
            raise TraceError(code.refusal)
        for load in code.outside:
            if load.kind == "free":
                self._read_free(frame, load)
            elif load.name in frame.f_globals:
                scope = Scope(frame.f_globals, str(frame.f_globals.get("__name__", "")))
                found = guards_for(scope, str(load.name), load.chain)
                # Attributes that are read by their names have guards of their own.
                self._add(found, with_classes=not load.chain)
        self._learn(names=_names_in(frame.f_code), holders=_classes_of(frame))

    def _learn(self, names: Iterable[str] = (), holders: Iterable[Any] = ()) -> None:
        """Guard what code may read of the classes and Python modules that it holds as values.

        Args:
            names: new names that code uses for attributes.
            holders: new classes and Python modules.
        """
        new_names = set(names) - self._names
        new_holders = [h for h in holders if id(h) not in self._holders and _has_state(h)]
        known = list(self._holders.values())
        self._names |= new_names
        self._holders |= {id(holder): holder for holder in new_holders}
        for holder in known:
            self._add_names(holder, new_names)
        for holder in new_holders:
            self._add_names(holder, self._names)

    def _add_names(self, holder: Any, names: Iterable[str]) -> None:
        for name in sorted(names):
            if isinstance(holder, ModuleType):
                if name in vars(holder):
                    self._add(guards_for(Scope(vars(holder), holder.__name__), name, ()))
            elif not is_of_library(holder, name):
                self._add(guards_for(holder, name, ()))

    def _read_free(self, frame: FrameType, load: Load) -> None:
        name = str(load.name)
        if name == "__class__" or name not in frame.f_locals or _is_nested(frame):
            return
        cell = _cell_of(frame, name)
        if cell is None:
            raise TraceError(f"its forward reads the outer variable {name}, which cannot be found")
        self._add(guards_for(Scope(cell, frame.f_code.co_name), name, load.chain))

    def _add(self, guards: list[Guard], with_classes: bool = True) -> None:
        for number, guard in enumerate(guards, 1):
            if guard.key not in self.guards:
                self.guards[guard.key] = guard
                self._contents += contents_of(guard.now())
            # Code does not hold the classes and modules on the way to an attribute.
            if with_classes or number == len(guards):
                self._learn(holders=guard.leads_to(type, ModuleType))

    # -- modules ------------------------------------------------------------------------

    def _note_attribute(self, module: nn.Module, name: str, is_self: bool) -> None:
        if (id(module), name) in self.guards:
            return
        is_own = name in vars(module)
        if not is_own and name != "__dict__" and is_of_library(type(module), name):
            return
        if type(module).__module__ == nn.Sequential.__module__ and id(module) not in self._known:
            return  # A slice of a container that the forward has just made.
        label = f"self.{name}" if is_self else f"{type(module).__name__}.{name}"
        try:
            if name == "__dict__":
                raise TraceError(f"its forward reads {label}, which may change")
            guard = Guard.of(module, name, label)
            self.guards[guard.key] = guard
            if not is_own:
                self._contents += contents_of(guard.now())
            self._learn(holders=guard.leads_to(type, ModuleType))
        except TraceError as error:
            self.refusal = self.refusal or str(error)
            raise

    def _note_tensor(self, tensor: Tensor) -> None:
        """Note that the forward asks for the dtype, shape or the like of a parameter or buffer."""
        for module in [] if self._root is None else self._root.modules():
            for name, own in (*module._parameters.items(), *module._buffers.items()):
                if own is tensor:
                    label = f"the type or shape of {name}"
                    guard = Guard.of(module, FACTS + name, label)
                    self.guards.setdefault(guard.key, guard)
                    return

    # -- questions ----------------------------------------------------------------------

    def _answer(self, frame: FrameType, operands: tuple[Load, ...]) -> None:
        """Refuse `a is b` of a symbolic value, unless b is None and a is certainly a tensor."""
        values = [_look_up(frame, load) for load in operands]
        proxies = [value for value in values if issubclass(type(value), (Proxy, StandIn))]
        if not proxies:
            return
        others = [value for value in values if not any(value is proxy for proxy in proxies)]
        of_none = len(proxies) == 1 and all(other is None for other in others)
        is_known = isinstance(proxies[0], Proxy) and type(proxies[0]) is not _Unknown
        if of_none and is_known and not self._may_be_none(proxies[0]):
            return
        self.refusal = self.refusal or IS_QUESTION
        raise TraceError(IS_QUESTION)


def _names_in(code: CodeType) -> set[str]:
    """The names that code may use for attributes, its text constants included."""
    texts = {const for const in code.co_consts if isinstance(const, str) and const.isidentifier()}
    return texts | set(code.co_names)


def _classes_of(frame: FrameType) -> tuple[type, ...]:
    """The class of a class method, or the parent classes of a method that uses super()."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    if issubclass(type(first), type):
        return (first,)  # type: ignore[return-value]
    return type(first).__mro__[1:] if "__class__" in code.co_freevars else ()


def _has_state(holder: Any) -> bool:
    """Whether a class or Python module is the user's, and not of a library."""
    return not (is_trusted(holder) or (isinstance(holder, type) and is_library_class(holder)))


def _state_of_classes(root: nn.Module) -> list[tuple[type, dict[str, Any]]]:
    """The present attributes of a network's classes, except those of libraries."""
    kinds = {kind for module in root.modules() for kind in type(module).__mro__}
    return [(kind, dict(vars(kind))) for kind in kinds if not is_library_class(kind)]


def _changed(kind: type, before: dict[str, Any]) -> list[str]:
    now = vars(kind)
    names = [name for name in {**before, **now} if not name.startswith("__")]
    return [name for name in names if now.get(name, names) is not before.get(name, names)]


def _serves_library(frame: FrameType) -> bool:
    """Whether installed code was called by torch or by us, and not by a network."""
    caller: FrameType | None = frame
    while caller is not None and _is_installed(caller):
        caller = caller.f_back
    return caller is not frame and (caller is None or is_library(caller))


def _is_installed(frame: FrameType) -> bool:
    """Whether code belongs to Python or a package, and is not a method of a module."""
    if is_library(frame) or issubclass(type(first_argument(frame)), nn.Module):
        return False
    root = _root_of(frame)
    # The methods of a named tuple have globals of their own.
    is_python = root in sys.stdlib_module_names or root.startswith("namedtuple_")
    return is_python or "site-packages" in frame.f_code.co_filename


def _root_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_nested(frame: FrameType) -> bool:
    """Whether the function was defined during this trace, by a function that still runs."""
    outer = frame.f_back
    while outer is not None and outer.f_code is not _TRACE:
        if _holds(outer.f_code, frame.f_code):
            return True
        outer = outer.f_back
    return False


def _holds(code: CodeType, inner: CodeType) -> bool:
    return any(
        const is inner or _holds(const, inner)
        for const in code.co_consts
        if isinstance(const, CodeType)
    )


def _cell_of(frame: FrameType, name: str) -> CellType | None:
    """The cell of a variable of an enclosing function, found through the running function."""
    code = frame.f_code
    index = code.co_freevars.index(name)
    own = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    methods = [value for kind in type(own).__mro__ for value in vars(kind).values()]
    for candidates in (methods, gc.get_referrers(code)):
        for function in candidates:
            if isinstance(function, FunctionType) and function.__code__ is code:
                cell = (function.__closure__ or ())[index]
                if cell.cell_contents is frame.f_locals[name]:
                    return cell
    return None


def _look_up(frame: FrameType, load: Load) -> Any:
    """The value of a simple expression; for an attribute of a proxy, a proxy."""
    if load.kind == "constant":
        return load.name
    if load.kind == "global":
        value = frame.f_globals.get(str(load.name))
    else:
        value = frame.f_locals.get(str(load.name))
    for name in load.chain:
        if issubclass(type(value), Proxy):
            return object.__new__(_Unknown)
        value = _attribute(value, name)
    return value


class _Unknown(Proxy):
    """Stands for an attribute of a symbolic value, about which nothing is known."""


def _attribute(value: Any, name: str) -> Any:
    """An attribute; for a parameter of a module, the parameter and not a symbolic value."""
    if isinstance(value, nn.Module):
        for table in (vars(value), value._modules, value._parameters, value._buffers):
            if name in table:
                return table[name]
    return getattr(value, name, None)
