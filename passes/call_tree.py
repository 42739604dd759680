"""Follow every function that a forward calls while it is traced.

Each function of the user's is read (`fxfault.passes.code_reading`) as it is entered, with the
values of the moment: what it takes from outside must be constant, and is noted as a guard
(`fxfault.passes.guards`); where it asks `x is None` of a symbolic value the trace is refused.
Functions of torch and of fxfault are trusted, and so are a few modules of Python that keep no
state. What cannot be read is refused: its container keeps its own Python forward.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from fxfault.passes.code_reading import IS_QUESTION, Code, Load, read_code
from fxfault.passes.guards import Guard, Scope, freeze_value, settle
from fxfault.passes.symbolic_values import StandIn, is_library

# Python's own modules whose functions keep no state that a network could read.
_STATELESS = frozenset(
    "abc functools collections typing enum dataclasses operator contextlib types numbers "
    "fractions math _collections_abc weakref".split()
)
_OF_MODULES = frozenset(vars(nn.Module())) | {"training"}


class CallTree:
    """Reads the functions that are called while it watches.

    Attributes:
        guards: what the trace depends on outside of its inputs, by holder and name.
        names: of the attributes that were read, of whatever object.
        refusal: why the container that is traced now must keep its forward; None so far.
    """

    def __init__(self, may_be_none: Any) -> None:
        """Prepare to watch.

        Args:
            may_be_none: says of a symbolic value whether it may be None in a forward.
        """
        self.guards: dict[tuple[int, str], Guard] = {}
        self.names: set[str] = set()
        self.refusal: str | None = None
        self._may_be_none = may_be_none

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls of this thread; a debugger or a coverage tool rests meanwhile."""
        before = sys.gettrace()
        self.watch()
        try:
            yield
        finally:
            sys.settrace(before)

    def watch(self) -> None:
        """Go on watching: Python stops after an exception of ours."""
        sys.settrace(self._on_call)

    def check(self) -> None:
        """Raise TraceError if something was refused, or what was read is no longer what it was."""
        if self.refusal is not None:
            raise TraceError(self.refusal)
        for guard in self.guards.values():
            if not guard.holds():
                guard.restore()
                raise TraceError(f"its forward changes {guard.label}")

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
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False

        def on_step(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "opcode" and frame.f_lasti in code.questions:
                self._answer(frame, code.questions[frame.f_lasti])
            return on_step

        return on_step

    def _read(self, frame: FrameType, code: Code) -> None:
        if code.refusal is not None:
            raise TraceError(code.refusal)
        for load in code.outside:
            if load.kind == "free":
                self._read_free(frame, load)
            elif load.name in frame.f_globals:
                scope = Scope(frame.f_globals, str(frame.f_globals.get("__name__", "")))
                self._add(settle(scope, str(load.name), load.chain))
        self.names |= code.attributes
        for value in list(frame.f_locals.values()):
            if issubclass(type(value), nn.Module):
                self._read_module(value, code)

    def _read_free(self, frame: FrameType, load: Load) -> None:
        name = str(load.name)
        if name == "__class__" or name not in frame.f_locals or _is_nested(frame):
            return
        cell = _cell_of(frame, name)
        if cell is None:
            raise TraceError(f"its forward reads {name}, whose place cannot be found")
        self._add(settle(Scope(cell, frame.f_code.co_name), name, load.chain))

    def _read_module(self, module: nn.Module, code: Code) -> None:
        """Note the plain attributes of a module that the code reads, its class's too."""
        names = set(code.attributes)
        if code.by_name:
            names |= {name for name in vars(module) if not name.startswith("_")}
        for name in sorted(names - _OF_MODULES):
            if name in vars(module):
                must = name in code.attributes
                self._add_attribute(module, name, must)
                continue
            for table in (module._modules, module._parameters, module._buffers):
                if name in table:
                    self._put(Guard.of_presence(module, name))
            owner = next((kind for kind in type(module).__mro__ if name in vars(kind)), None)
            if owner is not None and not is_library_class(owner):
                self._add(settle(owner, name, ()))

    def _add_attribute(self, module: nn.Module, name: str, must: bool) -> None:
        value = vars(module)[name]
        if isinstance(value, nn.Module) or hasattr(type(value), "__torch_function__"):
            return  # Layers are called, and tensors read, by the graph itself.
        if freeze_value(value) is None:
            if must:
                kind = type(value).__name__
                raise TraceError(f"its forward reads self.{name}, a {kind} that may change")
            return
        self._put(Guard.of_attribute(module, name))

    def _add(self, guards: list[Guard]) -> None:
        for guard in guards:
            self._put(guard)

    def _put(self, guard: Guard) -> None:
        self.guards.setdefault(guard.key, guard)

    # -- questions ----------------------------------------------------------------------

    def _answer(self, frame: FrameType, operands: tuple[Load, ...]) -> None:
        """Refuse `a is b` of a symbolic value, unless it surely is a tensor and b is None."""
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


def is_library_class(kind: type) -> bool:
    """Whether a class is one of torch's or Brevitas's, whose attributes are no state."""
    return kind.__module__.partition(".")[0] in ("torch", "brevitas", "builtins", "fxfault")


def _serves_library(frame: FrameType) -> bool:
    """Whether installed code runs because torch or we have called it, and not a network."""
    caller: FrameType | None = frame
    while caller is not None and _is_installed(caller):
        caller = caller.f_back
    return caller is not frame and (caller is None or is_library(caller))


def _is_installed(frame: FrameType) -> bool:
    """Whether code is Python's own or of a package, and no method of a module."""
    if is_library(frame):
        return False
    first = frame.f_code.co_varnames[:1]
    if first and issubclass(type(frame.f_locals.get(first[0])), nn.Module):
        return False
    return _root_of(frame) in sys.stdlib_module_names or "site-packages" in frame.f_code.co_filename


def _root_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_nested(frame: FrameType) -> bool:
    """Whether the function was defined by one that is running now: it shares its locals."""
    outer = frame.f_back
    while outer is not None:
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
    """The cell of a variable of an outer function, found through the function that runs."""
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
    """The value of a simple expression; a proxy where an attribute of one is meant."""
    if load.kind == "constant":
        return load.name
    if load.kind == "global":
        value = frame.f_globals.get(load.name, None)
    else:
        value = frame.f_locals.get(str(load.name))
    for name in load.chain:
        if issubclass(type(value), Proxy):
            return object.__new__(_Unknown)
        value = _attribute(value, name)
    return value


class _Unknown(Proxy):
    """Stands for an attribute of a symbolic value, of which nothing is known."""


def _attribute(value: Any, name: str) -> Any:
    """An attribute, without symbolic values for the parameters of a module."""
    if isinstance(value, nn.Module):
        for table in (vars(value), value._modules, value._parameters, value._buffers):
            if name in table:
                return table[name]
    return getattr(value, name, None)
