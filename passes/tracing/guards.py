"""Guards: what a trace depends on besides its inputs, and whether that is still the same.

A graph is only right for the numbers, texts and lists that the forward read while it was traced.
Each of these is a guard. If one no longer holds, the container runs its own Python forward instead
of the graph (see `fxfault.passes.tracing.traced_module`).
"""

from __future__ import annotations

import copy
import enum
import functools
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
FUNCTIONS = (
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
# Types of which no object can change. (A function can: it has defaults and attributes.)
_UNCHANGING = frozenset({bool, int, float, str, type, property, torch.dtype, torch.device})
_MOST_ITEMS = 1000  # Each forward compares a guarded list or table again.
# A guard of this name and that of a parameter or buffer is about its dtype, shape and so on.
FACTS = "facts of "
# A guard of this name and that of a layer is about which layer it is.
LAYER = "layer "
TABLES = ("_modules", "_parameters", "_buffers")


class _Plain:
    """Has the size of an object with attributes and nothing else."""


class Missing:
    """Stands for a missing attribute."""


class Present:
    """Stands for a layer or tensor that the graph reads by its name."""


class Same(NamedTuple):
    """Stands for an object that is compared by identity; a module is copied with its model."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Same:
        return Same(copy.deepcopy(self.value, memo)) if isinstance(self.value, nn.Module) else self


class Scope:
    """A module's globals, or the cell of a variable of an enclosing function; never copied."""

    def __init__(self, place: Any, name: str) -> None:
        """Take the dictionary or the cell as `place`, and a `name` for messages."""
        self.place, self.name = place, name

    def get(self, name: str) -> Any:
        """The present value."""
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
        holder: the module, class or `Scope` that has the value.
        name: the name of the attribute or variable.
        value: the value when it was traced, if it cannot change itself; else None.
        frozen: the value in a form that can be compared; see `freeze_value`.
        label: the name in messages.
    """

    holder: Any
    name: str
    value: Any
    frozen: Any
    label: str

    @classmethod
    def of(cls, holder: Any, name: str, label: str, value: Any = Missing) -> Guard:
        """Guard what a module, a class or a `Scope` has under a name.

        Args:
            holder: the module, class or `Scope`.
            name: the name of the attribute or variable.
            label: the name in messages.
            value: the value; default: the present one.

        Raises:
            TraceError: the value may change unseen.
        """
        value = now_at(holder, name) if value is Missing else value
        frozen = freeze_value(value)
        if frozen is None:
            kind = type(value).__name__
            raise TraceError(f"its forward reads {label}, a {kind} that may change")
        kept = value if isinstance(value, (*_CONSTANTS, *FUNCTIONS, type)) else None
        return cls(holder, name, kept, frozen, label)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        holder = self.holder
        holder = copy.deepcopy(holder, memo) if isinstance(holder, nn.Module) else holder
        return self._replace(holder=holder, frozen=copy.deepcopy(self.frozen, memo))

    @property
    def key(self) -> tuple[int, str]:
        """The holder's identity and the name."""
        holder = self.holder.place if isinstance(self.holder, Scope) else self.holder
        return id(holder), self.name

    @property
    def is_entry(self) -> bool:
        """Whether the guard is only about the presence of a layer or tensor of that name."""
        return self.value is Present

    def now(self) -> Any:
        """The present value."""
        return now_at(self.holder, self.name)

    def holds(self) -> bool:
        """Whether the value is still the same."""
        now = self.now()
        if now is self.value and type(now) in _UNCHANGING:
            return True
        return freeze_value(now) == self.frozen

    def leads_to(self, *kinds: type) -> Iterator[Any]:
        """The objects of some types that the value is or holds, except layers under their names."""
        parts = [self.frozen]
        while parts:
            part = parts.pop()
            if isinstance(part, Same):
                if isinstance(part.value, kinds):
                    yield part.value
            elif isinstance(part, tuple):
                parts += part

    def restore(self) -> None:
        """Put back a constant that a trace has changed."""
        if self.value is None and self.frozen != freeze_value(None):
            return  # Not a constant: see `contents_of`.
        if isinstance(self.holder, Scope):
            self.holder.set(self.name, self.value)
        elif isinstance(self.holder, type) and self.value is not Missing:
            setattr(owner_of(self.holder, self.name) or self.holder, self.name, self.value)


def now_at(holder: Any, name: str) -> Any:
    """The present value of a name; `Missing` if there is none."""
    if isinstance(holder, Scope):
        return holder.get(name)
    if isinstance(holder, type):
        return _attribute_of_class(holder, name)
    own = holder.__dict__
    if name in TABLES:
        return tuple(own.get(name, ()))
    if name.startswith(LAYER):
        return own["_modules"].get(name.removeprefix(LAYER))
    if name.startswith(FACTS):
        name = name.removeprefix(FACTS)
        tensor = own["_parameters"].get(name, own["_buffers"].get(name))
        if tensor is None:
            return None
        return (tensor.dtype, tensor.device, tensor.shape, tensor.requires_grad)
    if name in own:
        value = own[name]
        is_read = isinstance(value, nn.Module) or hasattr(type(value), "__torch_function__")
        return Present if is_read else value
    on_class = _attribute_of_class(type(holder), name)
    if on_class is not Missing:
        return on_class
    for table in TABLES:
        entries = own.get(table, ())
        if name in entries:
            return None if entries[name] is None else Present
    return Missing


def _attribute_of_class(kind: type, name: str) -> Any:
    owner = owner_of(kind, name)
    return Missing if owner is None else owner.__dict__[name]


def owner_of(kind: type, name: str) -> type | None:
    """The class that a class has an attribute from; a generated class counts as its source."""
    kind = kind.__dict__.get("_source_class", kind)
    for owner in kind.__mro__:
        if name in owner.__dict__:
            return owner
    return None


def freeze_value(value: Any) -> Any:
    """A form of a value that equals the form of the same value later; None if it may change unseen.

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
    """A value cannot be compared with itself at a later time."""


class _Budget:
    """How many more items of a value to look at: a value that holds itself has no end."""

    def __init__(self) -> None:
        self.left = _MOST_ITEMS

    def take(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise _MayChangeError


def _freeze(value: Any, budget: _Budget) -> Any:
    kind = type(value)
    if isinstance(value, (nn.Module, *FUNCTIONS, type, types.ModuleType)):
        if kind is not types.FunctionType:
            return (kind, Same(value))
        made: Any = value
        parts: list[Any] = [made.__defaults__, made.__kwdefaults__, *_pairs(vars(made))]
        budget.take(len(parts))
        code = Same(made.__code__)
        return (kind, Same(value), code, *[_frozen_or_same(p, budget) for p in parts])
    if isinstance(value, _CONSTANTS):
        # The text tells -0.0 from 0.0, and is the same for all NaN.
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
    """The further attributes of an enumeration member or of an object of a number class."""
    own = getattr(value, "__dict__", None)
    home = type(value).__module__.partition(".")[0]
    if own is None or home in ("torch", "numpy", "builtins"):
        return []
    own = {k: v for k, v in own.items() if not k.startswith("_")}
    return _pairs(own if isinstance(value, enum.Enum) else {**own, **_of_classes(type(value))})


def _is_plain_object(value: Any) -> bool:
    """Whether an object has no state but its attributes and its classes."""
    kind = type(value)
    if kind is types.SimpleNamespace:
        return True
    if kind.__module__.partition(".")[0] in ("torch", "brevitas", "fxfault"):
        return False
    has_own = kind.__basicsize__ == _Plain.__basicsize__ and hasattr(value, "__dict__")
    lookup: Any = kind.__getattribute__
    return has_own and lookup is object.__getattribute__


def _of_classes(kind: type) -> dict[str, Any]:
    """The attributes that an object has from its classes."""
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        for name, value in vars(owner).items():
            if owner is not object and not name.startswith(("__", "_abc_")):
                found[name] = value
    return found


def _pairs(mapping: dict[Any, Any]) -> list[Any]:
    return [part for pair in mapping.items() for part in pair]


def contents_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """The lists, sets, dicts and attributes in a value that can be frozen, each with a copy."""
    if isinstance(value, types.FunctionType):
        value = (value.__defaults__, value.__kwdefaults__, vars(value))
    if isinstance(value, (nn.Module, *_CONSTANTS, *FUNCTIONS, type, types.ModuleType)):
        return
    if _is_plain_object(value):
        value = vars(value)
    if isinstance(value, (list, set, dict)):
        yield value, value.copy()
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from contents_of(item)


def same_contents(now: Any, before: Any) -> bool:
    """Whether two lists, sets or dicts hold the same objects."""
    if isinstance(now, list):
        return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
    if isinstance(now, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in before)
    return bool(now == before)


def put_back(now: Any, before: Any) -> None:
    """Give a list, set or dict the contents of its copy, if they differ."""
    if same_contents(now, before):
        return
    if isinstance(now, list):
        now[:] = before
    else:
        now.clear()
        now.update(before)
