"""What a trace depends on besides its inputs, and whether it still is what it was.

A graph answers only for what it was traced for: the numbers, texts and lists that its forward
read while it was traced. Each of them is a guard. Where one does not hold any more, the container
runs its own Python forward in place of the graph (see `fxfault.passes.traced_module`).
"""

from __future__ import annotations

import enum
import functools
import random
import types
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.fx.proxy import TraceError

_CONSTANTS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    range,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    np.generic,
    slice,
)
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    np.ufunc,
    classmethod,
    staticmethod,
    property,
    functools.cached_property,
)
# Modules whose functions and constants are no state, or whose state is watched otherwise.
_TRUSTED = frozenset(
    "torch brevitas numpy math operator builtins itertools functools typing types enum "
    "collections abc dataclasses cmath _operator _functools numbers copy fxfault".split()
)
_MISSING = object()


class Same(NamedTuple):
    """Stands for an object that is compared by identity, and copied with the model it is in."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class Scope:
    """Where a global, or a variable of a function around, is kept; never copied."""

    def __init__(self, place: Any, name: str) -> None:
        """Note a place.

        Args:
            place: the dictionary of a module's globals, or a cell.
            name: what to call it.
        """
        self.place, self.name = place, name

    def get(self, name: str) -> Any:
        """The value now."""
        if isinstance(self.place, types.CellType):
            return self.place.cell_contents
        return self.place.get(name, _MISSING)

    def set(self, name: str, value: Any) -> None:
        """Put a value back."""
        if isinstance(self.place, types.CellType):
            self.place.cell_contents = value
        else:
            self.place[name] = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Scope:
        return self


class Guard(NamedTuple):
    """One value that a trace depends on.

    Attributes:
        holder: who has it: a module, a class, or a `Scope`.
        name: of the attribute or the variable.
        value: what it was.
        frozen: the same so that it can be compared; see `freeze_value`.
        label: what to call it in a message.
        presence: whether all that matters is if a layer, parameter or buffer is None.
    """

    holder: Any
    name: str
    value: Any
    frozen: Any
    label: str
    presence: bool = False

    @classmethod
    def of_attribute(cls, module: nn.Module, name: str) -> Guard:
        """The plain attribute of a module, as it is now."""
        value = vars(module)[name]
        return cls(module, name, _kept(value), freeze_value(value), f"self.{name}")

    @classmethod
    def of_presence(cls, module: nn.Module, name: str) -> Guard:
        """Whether a layer, parameter or buffer of a module is there."""
        there = _entry(module, name) is None
        return cls(module, name, there, None, f"self.{name}", presence=True)

    @property
    def is_attribute(self) -> bool:
        """Whether it is about a plain attribute of a module."""
        return isinstance(self.holder, nn.Module) and not self.presence

    @property
    def key(self) -> tuple[int, str]:
        """What it is about."""
        holder = self.holder.place if isinstance(self.holder, Scope) else self.holder
        return id(holder), self.name

    def now(self) -> Any:
        """The value as it is now."""
        if isinstance(self.holder, Scope):
            return self.holder.get(self.name)
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.name, _MISSING)
        return self.holder.__dict__.get(self.name, _MISSING)

    def holds(self) -> bool:
        """Whether it still is what it was."""
        if self.presence:
            return (_entry(self.holder, self.name) is None) == self.value
        now = self.now()
        if now is self.value and self.value is not None:
            return True
        return now is not _MISSING and freeze_value(now) == self.frozen

    def restore(self) -> None:
        """Put a constant back that a trace has changed."""
        if self.value is None or self.presence:
            return
        if isinstance(self.holder, Scope):
            self.holder.set(self.name, self.value)
        elif isinstance(self.holder, type):
            setattr(self.holder, self.name, self.value)


def _kept(value: Any) -> Any:
    """The value, if it cannot change itself; else None."""
    return value if isinstance(value, (*_CONSTANTS, *_FUNCTIONS)) else None


def _entry(module: nn.Module, name: str) -> Any:
    for table in (module._modules, module._parameters, module._buffers):
        if name in table:
            return table[name]
    return None


def freeze_value(value: Any) -> Any:
    """Something that equals that of the same value later; None: it may change unseen.

    >>> freeze_value([1, (2.0, "a")]) == freeze_value([1, (2.0, "a")])
    True
    >>> freeze_value([1]) == freeze_value([1, 2])
    False
    >>> freeze_value(object()) is None
    True
    """
    kind = type(value)
    if isinstance(value, float) and value != value:
        return (kind, "nan")
    if isinstance(value, _CONSTANTS):
        return (kind, value, str(value) if isinstance(value, float) else "")  # -0.0 is not 0.0.
    if isinstance(value, (nn.Module, torch.Tensor, *_FUNCTIONS, type, types.ModuleType)):
        return (kind, Same(value))
    if isinstance(value, types.MethodType):
        return (kind, Same(value.__func__), Same(value.__self__))
    if isinstance(value, functools.partial):
        return _frozen_items(kind, [value.func, *value.args, *_pairs(value.keywords)])
    if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return _frozen_items(kind, list(value))
    if kind in (set, frozenset):
        return _frozen_items(kind, sorted(value, key=repr))
    if isinstance(value, dict) and kind.__module__ in ("builtins", "collections"):
        return _frozen_items(kind, _pairs(value))
    return None


def _pairs(mapping: dict[Any, Any]) -> list[Any]:
    return [part for pair in mapping.items() for part in pair]


def _frozen_items(kind: type, items: list[Any]) -> Any:
    frozen = [freeze_value(item) for item in items]
    return None if any(item is None for item in frozen) else (kind, tuple(frozen))


def settle(holder: Any, name: str, chain: tuple[str, ...]) -> list[Guard]:
    """Guards for a name that a forward reads outside of its locals, with attributes of it.

    Args:
        holder: a `Scope`, or a class.
        name: in it.
        chain: the attributes that are read of it.

    Raises:
        TraceError: what is read there may change, or acts on something outside.
    """
    value = _of_holder(holder, name)
    label, guards = name, _guard(holder, name, value, name)
    for attribute in chain:
        if value is _MISSING or _is_trusted(value) or isinstance(value, (nn.Module, torch.Tensor)):
            return guards
        label = f"{label}.{attribute}"
        if isinstance(value, types.ModuleType):
            holder, name = Scope(vars(value), value.__name__), attribute
        elif isinstance(value, type):
            owner = next((k for k in value.__mro__ if attribute in vars(k)), None)
            if owner is None or owner.__module__.partition(".")[0] in _TRUSTED:
                return guards
            holder, name = owner, attribute
        elif isinstance(value, _CONSTANTS):
            return guards  # Of a constant, all is constant.
        else:
            raise TraceError(f"its forward reads {label}, which may change")
        value = _of_holder(holder, name)
        guards += _guard(holder, name, value, label)
    return guards


def _of_holder(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Scope) else vars(holder).get(name, _MISSING)


def _guard(holder: Any, name: str, value: Any, label: str) -> list[Guard]:
    """A guard for one value on the way; none where it cannot change."""
    if _is_wrapped_by_fx(value):
        value = value.__wrapped__
    if value is _MISSING or _is_trusted(value):
        return []
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        if isinstance(getattr(value, "__self__", None), (random.Random, np.random.RandomState)):
            raise TraceError("its forward draws random numbers outside the graph")
        raise TraceError(f"its forward calls {label}, whose code cannot be read")
    if isinstance(value, (nn.Module, torch.Tensor)):
        return []  # The graph, or the tracer, sees to these.
    is_settled = isinstance(value, (*_FUNCTIONS, type, types.ModuleType, types.MethodType))
    if not (is_settled or _is_constant(value)):
        raise TraceError(f"its forward reads {label}, a {type(value).__name__} that may change")
    return [Guard(holder, name, value, freeze_value(value), label)]


def _is_wrapped_by_fx(value: Any) -> bool:
    """Whether torch.fx has put a function of its own in the place of one, while it traces."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename == torch.fx._symbolic_trace.__file__


def _is_constant(value: Any) -> bool:
    """Whether a value cannot change itself, only be replaced."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_constant, value))
    return isinstance(value, (*_CONSTANTS, *_FUNCTIONS, type))


def _is_trusted(value: Any) -> bool:
    """Whether a value belongs to torch, or to a module of Python's without state."""
    if isinstance(value, (nn.Module, torch.Tensor, torch.Generator, np.random.Generator)):
        return False
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _TRUSTED
    own_self = getattr(value, "__self__", None)
    if isinstance(value, types.BuiltinFunctionType) and own_self is not None:
        if not isinstance(own_self, (type, types.ModuleType)):
            return False
        own = own_self.__name__ if isinstance(own_self, types.ModuleType) else own_self.__module__
        return str(own).partition(".")[0] in _TRUSTED
    described = value if isinstance(value, (type, *_FUNCTIONS)) else type(value)
    if described in (list, dict, set, bytearray, object) or type(described) in (property,):
        return False
    home = str(getattr(described, "__module__", None) or "").partition(".")[0]
    if isinstance(value, (type, *_FUNCTIONS)):
        return home in _TRUSTED
    # An object is trusted where it belongs to torch or describes types; containers are not.
    return home in ("torch", "brevitas", "typing", "types") and not isinstance(
        value, (types.SimpleNamespace, types.MappingProxyType)
    )
