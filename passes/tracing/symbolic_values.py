"""The values that flow through a model while it is traced."""

from __future__ import annotations

import dis
import operator
import sys
from typing import Any

from torch.fx import Proxy
from torch.fx.proxy import Attribute, TraceError


class StandIn:
    """Stands for a value that only a forward knows, without being a `Proxy`."""


class ValueProxy(Proxy):
    """A symbolic value that refuses questions which tracing would silently answer wrongly.

    For any proxy `isinstance(value, QuantTensor)` is false and `hasattr(value, name)` is true, so
    a branch on them would be traced the wrong way. After a refusal the container keeps its own
    forward.

    Attributes:
        known_type: the type that the value will have, if the layer that makes it leaves no doubt;
            `isinstance` is answered by it.
    """

    known_type: type | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") == "abc" and frame.f_back is not None:
            frame = frame.f_back
        if is_library(frame) and frame.f_code.co_name != "is_tensor":
            return type(self)
        if self.known_type is not None:
            return self.known_type
        raise TraceError("its forward asks for the type of a value")

    def __getattr__(self, k: str) -> ValueAttribute:
        frame = sys._getframe(1)
        if not is_library(frame) and "CALL" in _current_instruction(frame):
            raise TraceError("its forward looks up an attribute of a value by name")
        return ValueAttribute(self, k)

    def __hash__(self) -> int:
        if not is_library(sys._getframe(1)):
            raise TraceError("its forward uses a value as a key of a dict or set")
        return id(self)

    def __str__(self) -> str:
        return self._text(sys._getframe(1))

    def __repr__(self) -> str:
        return self._text(sys._getframe(1))

    def __format__(self, form: str) -> str:
        return self._text(sys._getframe(1))

    def _text(self, frame: Any) -> str:
        if not is_library(frame):
            raise TraceError("its forward converts a value to a string")
        return f"ValueProxy({self.node.name})"

    def __setattr__(self, name: str, value: Any) -> None:
        if not is_library(sys._getframe(1)):
            raise TraceError("its forward sets an attribute of a value")
        super().__setattr__(name, value)


class ValueAttribute(ValueProxy, Attribute):
    """An attribute or a method of a symbolic value."""


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def method(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# Record `x += y` as written: Proxy would make it `x = x + y`, which does not change aliases of x.
for _name in "iadd isub imul itruediv ifloordiv imatmul iand ior ixor ipow imod".split():
    setattr(ValueProxy, f"__{_name}__", _in_place(_name))


def _current_instruction(frame: Any) -> str:
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return instruction.opname
    return ""


def first_argument(frame: Any) -> Any:
    """The first variable of running code, which is `self` in a method; None if it has none."""
    first = frame.f_code.co_varnames[:1]
    return frame.f_locals.get(first[0]) if first else None


def is_library(frame: Any) -> bool:
    """Whether code belongs to torch or to us, and may see that a value is a proxy."""
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in ("torch", "fxfault", "inspect", "copy")
