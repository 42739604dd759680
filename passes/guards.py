"""What a trace depends on besides its inputs, and whether it still is what it was.

A graph answers only for what it was traced for: the numbers, texts and lists that its forward
read while it was traced. Each of them is a guard. Where one does not hold any more, the container
runs its own Python forward in place of the graph (see `fxfault.passes.traced_module`).
"""

from __future__ import annotations

import copy
import enum
import functools
import operator
import random
import re
import types
from collections.abc import Iterator
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
# Types whose objects have nothing that may change. A function has defaults and attributes.
_UNCHANGING = frozenset({bool, int, float, str, type, property, torch.dtype, torch.device})
# What functions of torch are called that answer by a setting of the moment, or of the machine.
_ASKS_FOR_SETTING = re.compile(
    r"(is|are)_\w*(enabled|initialized)\w*|is_fx_\w+|get_(default|num|rng|autocast|deterministic|"
    r"float32)\w*|\w*seed|current_\w+|memory_\w+"
)
_SETTINGS = re.compile(r"(torch\.backends|numpy\.random)\b")
_MOST_ITEMS = 1000  # Of a list or a table that is compared anew in each forward.
FACTS = "facts of "  # And the name of a parameter or buffer: its type, shape and the like.
LAYER = "layer "  # And its name: which layer it is.
TABLES = ("_modules", "_parameters", "_buffers")


class _Plain:
    """The size of an object that has attributes, and nothing else."""


class Missing:
    """Stands for an attribute that is not there."""


class Present:
    """Stands for a layer or tensor, which the graph reads by its name."""


class Same(NamedTuple):
    """Stands for an object that is compared by identity, and copied with the model it is in."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Same:
        is_copied = isinstance(self.value, nn.Module)
        return Same(copy.deepcopy(self.value, memo)) if is_copied else self


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
        return self.place.get(name, Missing)

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
        holder: who has it: a module, a class or a `Scope`.
        name: of the attribute or the variable.
        value: what it was, if it cannot change itself; else None.
        frozen: the same so that it can be compared; see `freeze_value`.
        label: what to call it in a message.
    """

    holder: Any
    name: str
    value: Any
    frozen: Any
    label: str

    @classmethod
    def of(cls, holder: Any, name: str, label: str, value: Any = Missing) -> Guard:
        """What a module, a class or a `Scope` has under a name.

        Args:
            holder: who has it.
            name: of it.
            label: what to call it in a message.
            value: what it has; default: what it has now.

        Raises:
            TraceError: it may change in a way that cannot be seen.
        """
        value = _now(holder, name) if value is Missing else value
        frozen = freeze_value(value)
        if frozen is None:
            kind = type(value).__name__
            raise TraceError(f"its forward reads {label}, a {kind} that may change")
        return cls(holder, name, _kept(value), frozen, label)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        holder = self.holder
        holder = copy.deepcopy(holder, memo) if isinstance(holder, nn.Module) else holder
        return self._replace(holder=holder, frozen=copy.deepcopy(self.frozen, memo))

    @property
    def key(self) -> tuple[int, str]:
        """What it is about."""
        holder = self.holder.place if isinstance(self.holder, Scope) else self.holder
        return id(holder), self.name

    @property
    def is_entry(self) -> bool:
        """Whether all that matters is if there is a layer or a tensor of that name."""
        return self.value is Present

    def now(self) -> Any:
        """What is there now."""
        return _now(self.holder, self.name)

    def holds(self) -> bool:
        """Whether it still is what it was."""
        now = self.now()
        if now is self.value and type(now) in _UNCHANGING:
            return True
        return freeze_value(now) == self.frozen

    def layers(self) -> Iterator[nn.Module]:
        """The modules that the value leads to other than by the names of layers."""
        return (value for value in self._identities() if isinstance(value, nn.Module))

    def classes(self) -> Iterator[Any]:
        """The classes and Python modules that the value is, or leads to."""
        kinds = (type, types.ModuleType)
        return (value for value in self._identities() if isinstance(value, kinds))

    def _identities(self) -> Iterator[Any]:
        parts = [self.frozen]
        while parts:
            part = parts.pop()
            if isinstance(part, Same):
                yield part.value
            elif isinstance(part, tuple):
                parts += part

    def restore(self) -> None:
        """Put a constant back that a trace has changed."""
        if self.value is None and self.frozen != freeze_value(None):
            return  # Not a constant: see `contents_of`.
        if isinstance(self.holder, Scope):
            self.holder.set(self.name, self.value)
        elif isinstance(self.holder, type) and self.value is not Missing:
            setattr(owner_of(self.holder, self.name) or self.holder, self.name, self.value)


def _now(holder: Any, name: str) -> Any:
    """What is found under a name now."""
    if isinstance(holder, Scope):
        return holder.get(name)
    if isinstance(holder, type):
        return attribute_of_class(holder, name)
    own = holder.__dict__
    if name in TABLES:
        return tuple(own.get(name, ()))
    if name.startswith(LAYER):
        return own["_modules"].get(name.removeprefix(LAYER))
    if name.startswith(FACTS):
        name = name.removeprefix(FACTS)
        tensor = own["_parameters"].get(name, own["_buffers"].get(name))
        return None if tensor is None else facts_of(tensor)
    if name in own:
        value = own[name]
        is_read = isinstance(value, nn.Module) or hasattr(type(value), "__torch_function__")
        return Present if is_read else value
    on_class = attribute_of_class(type(holder), name)
    if on_class is not Missing:
        return on_class
    for table in TABLES:
        entries = own.get(table, ())
        if name in entries:
            return None if entries[name] is None else Present
    return Missing


def facts_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What may be asked of a tensor besides its values."""
    return (tensor.dtype, tensor.device, tensor.shape, tensor.requires_grad)


def attribute_of_class(kind: type, name: str) -> Any:
    """What a class, or one that it inherits from, has under a name.

    Classes that were made for generated code stand for those of their sources.
    """
    owner = owner_of(kind, name)
    return Missing if owner is None else owner.__dict__[name]


def owner_of(kind: type, name: str) -> type | None:
    """The class that an attribute of a class comes from."""
    kind = kind.__dict__.get("_source_class", kind)
    for owner in kind.__mro__:
        if name in owner.__dict__:
            return owner
    return None


def _kept(value: Any) -> Any:
    """The value, if it cannot change itself; else None."""
    return value if isinstance(value, (*_CONSTANTS, *_FUNCTIONS, type)) else None


def freeze_value(value: Any) -> Any:
    """Something that equals that of the same value later; None: it may change unseen.

    >>> freeze_value([1, (2.0, "a")]) == freeze_value([1, (2.0, "a")])
    True
    >>> freeze_value([1]) == freeze_value([True]), freeze_value(0.0) == freeze_value(-0.0)
    (False, False)
    >>> freeze_value(object()) is None
    True
    """
    try:
        return _freeze(value, _Budget())
    except _MayChangeError:
        return None


class _MayChangeError(Exception):
    """A value cannot be compared with what it is later."""


class _Budget:
    """How much of a value may still be looked at: a value that holds itself has no end."""

    def __init__(self) -> None:
        self.left = _MOST_ITEMS

    def take(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise _MayChangeError


def _freeze(value: Any, budget: _Budget) -> Any:
    kind = type(value)
    if isinstance(value, (nn.Module, *_FUNCTIONS, type, types.ModuleType)):
        if kind is not types.FunctionType:
            return (kind, Same(value))
        made: Any = value
        parts: list[Any] = [made.__defaults__, made.__kwdefaults__, *_pairs(vars(made))]
        budget.take(len(parts))
        code = Same(made.__code__)
        return (kind, Same(value), code, *[_frozen_or_same(p, budget) for p in parts])
    if isinstance(value, _CONSTANTS):
        # A text tells -0.0 from 0.0, and is the same for each nan.
        is_number = isinstance(value, (float, complex, np.generic))
        plain = repr(value) if is_number else value
        more = _attributes_of_constant(value)
        if not more:
            return (kind, plain)
        budget.take(len(more))
        return (kind, plain, *[_freeze(part, budget) for part in more])
    if isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *_pairs(value.keywords)]
    elif kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        parts = list(value)
    elif kind in (set, frozenset):
        parts = sorted(value, key=repr)
    elif isinstance(value, dict) and kind.__module__ in ("builtins", "collections"):
        parts = [getattr(value, "default_factory", None), *_pairs(value)]
    elif _is_plain_object(value):
        parts = [*_pairs(vars(value)), *_pairs(_of_classes(kind))]
    else:
        raise _MayChangeError
    budget.take(len(parts))
    return (kind, tuple([_freeze(part, budget) for part in parts]))


def _frozen_or_same(value: Any, budget: _Budget) -> Any:
    try:
        return _freeze(value, budget)
    except _MayChangeError:
        return Same(value)


def _attributes_of_constant(value: Any) -> list[Any]:
    """What a member of an enumeration, or an object of a class of numbers, has besides."""
    own = getattr(value, "__dict__", None)
    home = type(value).__module__.partition(".")[0]
    if own is None or home in ("torch", "numpy", "builtins"):
        return []
    own = {k: v for k, v in own.items() if not k.startswith("_")}
    return _pairs(own if isinstance(value, enum.Enum) else {**own, **_of_classes(type(value))})


def _is_plain_object(value: Any) -> bool:
    """Whether all that an object knows is in its attributes and its classes."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        return True
    if kind.__module__.partition(".")[0] in ("torch", "brevitas", "fxfault"):
        return False
    has_own = kind.__basicsize__ == _Plain.__basicsize__ and hasattr(value, "__dict__")
    lookup: Any = kind.__getattribute__
    return has_own and lookup is object.__getattribute__


def _of_classes(kind: type) -> dict[str, Any]:
    """Attributes that an object has from its classes."""
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        for name, value in vars(owner).items():
            if owner is not object and not name.startswith(("__", "_abc_")):
                found[name] = value
    return found


def _pairs(mapping: dict[Any, Any]) -> list[Any]:
    return [part for pair in mapping.items() for part in pair]


def contents_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """The lists, sets, tables and attributes in a value that can be frozen, each with a copy."""
    if isinstance(value, types.FunctionType):
        value = (value.__defaults__, value.__kwdefaults__, vars(value))
    if isinstance(value, (nn.Module, *_CONSTANTS, *_FUNCTIONS, type, types.ModuleType)):
        return
    if _is_plain_object(value):
        value = vars(value)
    if isinstance(value, (list, set, dict)):
        yield value, value.copy()
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from contents_of(item)


def put_back(now: Any, before: Any) -> None:
    """Give a list, set or table the contents of a copy of it, where they are others."""
    items, old = (list(x.items()) if isinstance(x, dict) else list(x) for x in (now, before))
    if len(items) == len(old) and all(
        a is b or (isinstance(now, dict) and a[0] is b[0] and a[1] is b[1])
        for a, b in zip(items, old, strict=True)
    ):
        return
    if isinstance(now, list):
        now[:] = before
    else:
        now.clear()
        now.update(before)


def settle(holder: Any, name: str, chain: tuple[str, ...]) -> list[Guard]:
    """Guards for a name that a forward reads outside of its locals, with attributes of it.

    Args:
        holder: a `Scope`, or a class.
        name: in it.
        chain: the attributes that are read of it.

    Raises:
        TraceError: what is read there may change, or acts on something outside.
    """
    value = _now(holder, name)
    label = f"{holder.__name__}.{name}" if isinstance(holder, type) else name
    guards = _guard(holder, name, value, label)
    for number, attribute in enumerate(chain):
        if isinstance(value, (nn.Module, torch.Tensor)) or value is Missing:
            return guards
        if is_trusted(value):
            _check_trusted(value, chain[number:], label)
            return guards
        label = f"{label}.{attribute}"
        if isinstance(value, types.ModuleType):
            holder = Scope(vars(value), value.__name__)
        elif isinstance(value, type):
            holder = value
        else:
            return guards  # All that it has is guarded with it.
        value = _now(holder, attribute)
        guards += _guard(holder, attribute, value, label)
    _check_trusted(value, (), label)
    return guards


def _guard(holder: Any, name: str, value: Any, label: str) -> list[Guard]:
    """A guard for one value on the way; none where it cannot change."""
    if _is_wrapped_by_fx(value):
        value = value.__wrapped__
    if value is Missing or is_trusted(value):
        return []
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        if isinstance(getattr(value, "__self__", None), (random.Random, np.random.RandomState)):
            raise TraceError("its forward draws random numbers outside the graph")
        raise TraceError(f"its forward calls {label}, whose code cannot be read")
    if isinstance(value, (nn.Module, torch.Tensor)):
        return []  # The graph, or the tracer, sees to these.
    return [Guard.of(holder, name, label, value)]


def _check_trusted(value: Any, chain: tuple[str, ...], label: str) -> None:
    """Refuse what a library answers by a setting of the moment, or by identity.

    Raises:
        TraceError: `torch.is_grad_enabled`, `torch.backends`, `operator.is_` and the like.
    """
    for attribute in (None, *chain):
        if attribute is not None:
            label, value = f"{label}.{attribute}", getattr(value, attribute, Missing)
        if value is operator.is_ or value is operator.is_not:
            raise TraceError(f"its forward asks whether a value is something ({label})")
        is_module = isinstance(value, types.ModuleType)
        home = value.__name__ if is_module else getattr(value, "__module__", None) or "torch"
        name = "" if is_module else str(getattr(value, "__name__", ""))
        if _SETTINGS.match(str(home)) and (is_module or callable(value)):
            raise TraceError(f"its forward asks for {label}, which may change")
        if str(home).startswith("torch") and _ASKS_FOR_SETTING.fullmatch(name):
            raise TraceError(f"its forward asks for {label}, which may change")


def _is_wrapped_by_fx(value: Any) -> bool:
    """Whether torch.fx has put a function of its own in the place of one, while it traces."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename == torch.fx._symbolic_trace.__file__


def is_trusted(value: Any) -> bool:
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
