"""The results of calls, kept so that a later forward can have them in place of the calls.

A result is kept with the memory of its tensors. Each forward that takes it gets a copy of its own,
with the same shapes, strides and offsets, as later code may write into it. Tensors of one result
that share memory share it in the copy, too. A result that is one of the arguments is the argument.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fxfault.faults.bits import same_bits

_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice, enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
_CODE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module)
_MOST_PARTS = 10_000


class NotKept(Exception):
    """A result that cannot be kept, or that it would be wrong to keep."""


class Arguments:
    """The arguments of a call: their tensors, and whether the call has changed anything in them."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at the arguments before the call.

        Raises:
            NotKept: there is something among them that may change unseen.
        """
        self._given = (args, kwargs)
        self._before = list(_parts_of(self._given))
        self.tensors = [part for part, _ in self._before if isinstance(part, Tensor)]

    @property
    def changed(self) -> bool:
        """Whether anything in them is not what it was before the call."""
        now = list(_parts_of(self._given))
        return len(now) != len(self._before) or any(
            a is not b or x != y for (a, x), (b, y) in zip(now, self._before, strict=True)
        )


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors in the arguments of a call, in the order of `Arguments.tensors`."""
    return [part for part, _ in _parts_of((args, kwargs)) if isinstance(part, Tensor)]


def _parts_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object in a value, with what tells whether it was changed."""
    left, seen = [value], 0
    met: set[int] = set()
    while left:
        part = left.pop()
        seen += 1
        if seen > _MOST_PARTS:
            raise NotKept("its arguments have too many parts")
        if isinstance(part, _CODE):
            yield part, None
        elif isinstance(part, _CONSTANTS):
            yield part, part
        elif isinstance(part, Tensor):
            yield part, _version(part)
        elif id(part) not in met:
            met.add(id(part))
            inside, told = _inside(part)
            yield part, told
            left += inside


def _version(tensor: Tensor) -> int:
    if tensor.is_inference():
        raise NotKept("its arguments are tensors of inference mode, which do not count writes")
    return tensor._version


def _inside(part: Any) -> tuple[list[Any], Any]:
    """The objects directly in a container or an object, and what tells whether it was changed."""
    inside: list[Any] = []
    known = False
    if isinstance(part, (tuple, list)):
        inside, known = list(part), True
    elif isinstance(part, Mapping):
        inside, known = [x for item in part.items() for x in item], True
    if hasattr(part, "__dict__"):
        inside, known = [*inside, *vars(part).values()], True
    if not known:  # An iterator, a generator of random numbers, an array: it may change inside.
        raise NotKept(f"its arguments have a {type(part).__name__}")
    return inside, [id(x) for x in inside]


class _Given(NamedTuple):
    """Stands for a tensor of the arguments."""

    number: int


class _Own(NamedTuple):
    """Stands for a tensor of the result, as a view of kept memory."""

    memory: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class KeptValue:
    """A result of a call, kept for later forwards.

    Attributes:
        bytes: size of the memory to keep.
        is_argument: whether no tensor of the result has memory of its own.
    """

    def __init__(self, result: Any, arguments: Arguments, fixed: frozenset[int]) -> None:
        """Describe a result; `keep` also copies it.

        Args:
            result: what the call returned.
            arguments: the arguments of the call.
            fixed: addresses of the memory of the model's parameters and buffers.

        Raises:
            NotKept: the result has parts that cannot be copied, or that share memory with the
                arguments or parameters.
        """
        self._storages: list[Any] = []
        self._kept: list[Any] = []
        places: dict[int, int] = {}
        numbers = {id(tensor): n for n, tensor in enumerate(arguments.tensors)}
        taken = fixed | {_address(tensor) for tensor in arguments.tensors}

        def describe(tensor: Tensor) -> Any:
            if id(tensor) in numbers:
                return _Given(numbers[id(tensor)])
            _check(tensor)
            address = _address(tensor)
            if address in taken:
                raise NotKept("its result shares memory with its arguments or parameters")
            if address not in places:
                places[address] = len(self._storages)
                self._storages.append(tensor.untyped_storage())
            view = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
            return _Own(places[address], tensor.dtype, *view)

        self._template = _rebuilt(result, describe, Tensor)
        self.is_argument = not self._storages
        self.bytes = sum(storage.nbytes() for storage in self._storages)
        self._needs_arguments = False
        _rebuilt(self._template, self._note_given, (_Given, _Own))

    def _note_given(self, place: Any) -> Any:
        self._needs_arguments |= isinstance(place, _Given)
        return place

    def keep(self) -> None:
        """Copy the memory, and let go of the result's own."""
        self._kept = [storage.clone() for storage in self._storages]
        self._storages = []

    def forget(self) -> None:
        """Let go of the result's own memory without a copy."""
        self._storages = []

    def give(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return a fresh copy of the result, for a call with these arguments."""
        storages = [storage.clone() for storage in self._kept]
        given = tensors_in(args, kwargs) if self._needs_arguments else []

        def make(place: Any) -> Tensor:
            if isinstance(place, _Given):
                return given[place.number]
            return _view(storages[place.memory], place)

        return _rebuilt(self._template, make, (_Given, _Own))

    def is_like(self, result: Any) -> bool:
        """Whether another result of the call has the same tensors, bit for bit."""
        mine: list[Any] = []
        theirs: list[Any] = []
        _rebuilt(self._template, lambda place: mine.append(place), (_Given, _Own))
        try:
            _rebuilt(result, lambda tensor: theirs.append(tensor), Tensor)
        except NotKept:
            return False
        if len(mine) != len(theirs):
            return False
        return all(
            isinstance(place, _Given) or same_bits(_view(self._kept[place.memory], place), found)
            for place, found in zip(mine, theirs, strict=True)
        )


def _view(storage: Any, place: _Own) -> Tensor:
    made = torch.empty(0, dtype=place.dtype, device=storage.device)
    return made.set_(storage, place.offset, place.size, place.stride)


def _address(tensor: Tensor) -> int:
    if tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)  # An empty tensor has no memory.


def _check(tensor: Tensor) -> None:
    plain = type(tensor) is Tensor and tensor.layout == torch.strided
    if not plain or tensor.device.type == "meta" or tensor.is_quantized:
        raise NotKept(f"its result is a {type(tensor).__name__} of another kind")
    if tensor.requires_grad or tensor.is_inference() or tensor.is_conj() or tensor.is_neg():
        raise NotKept("its result belongs to a graph of gradients, or is a view that copies lose")


def _rebuilt(value: Any, change: Callable[[Any], Any], kinds: Any) -> Any:
    """A value of the same structure, with its tensors (or what stands for them) replaced.

    Raises:
        NotKept: the value has a part of another type.
    """
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, _CONSTANTS):
        return value
    kind: Any = type(value)
    if isinstance(value, tuple) and (kind is tuple or hasattr(kind, "_make")):
        items = [_rebuilt(item, change, kinds) for item in value]
        # The constructor of a QuantTensor makes tensors of its arguments; `_make` does not.
        return items_of(kind, items)
    if kind is list:
        return [_rebuilt(item, change, kinds) for item in value]
    if kind in (dict, OrderedDict):
        return kind((key, _rebuilt(item, change, kinds)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return _rebuilt_record(value, change, kinds)
    raise NotKept(f"its result has a {kind.__name__}")


def items_of(kind: Any, items: list[Any]) -> Any:
    """A tuple, or a named tuple, of some items."""
    return tuple(items) if kind is tuple else kind._make(items)


def _rebuilt_record(value: Any, change: Callable[[Any], Any], kinds: Any) -> Any:
    """A dataclass, which may also be a dictionary of its fields, as outputs of transformers are."""
    if not hasattr(value, "__dict__"):
        raise NotKept(f"its result has a {type(value).__name__}")
    new: Any = object.__new__(type(value)) if not isinstance(value, OrderedDict) else None
    parts = {name: _rebuilt(part, change, kinds) for name, part in vars(value).items()}
    if new is None:
        new = OrderedDict.__new__(type(value))
        for key, item in value.items():
            same = key in parts and vars(value)[key] is item
            made = parts[key] if same else _rebuilt(item, change, kinds)
            OrderedDict.__setitem__(new, key, made)
    elif isinstance(value, (tuple, list, dict, set)):
        raise NotKept(f"its result has a {type(value).__name__}")
    new.__dict__.update(parts)
    return new
