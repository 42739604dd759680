"""Numbers through which compiled code finds Python objects.

A compiled graph handles only tensors and numbers. A handle is a tensor with a number that stands
for an object. The graph reads the tensor from the object at each call, so neither compiled code nor
a compiler's cache on disk contains a number that could mean another object in another model or
process.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Owner = TypeVar("Owner")

_numbers = itertools.count(1)
_handles: weakref.WeakValueDictionary[int, Handle[Any]] = weakref.WeakValueDictionary()


class Handle(Generic[Owner]):
    """The number of one object; a copy of the object gets its own number.

    >>> import copy
    >>> shelf = [1, 2]
    >>> handle = Handle(shelf)
    >>> owner_of(handle.number) is shelf
    True
    >>> another = copy.deepcopy(handle)
    >>> owner_of(another.number) is shelf
    False

    Attributes:
        owner: the object.
        number: int64 on the CPU, shape (1,).
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._take_number()

    def _take_number(self) -> None:
        number = next(_numbers)
        with torch.inference_mode(False):  # Operators are declared to write to it.
            self.number = torch.tensor([number], device="cpu")
        _handles[number] = self

    def __getstate__(self) -> dict[str, Owner]:
        return {"owner": self.owner}

    def __setstate__(self, state: dict[str, Owner]) -> None:
        self.owner = state["owner"]
        self._take_number()


def owner_of(number: Tensor) -> Any:
    """Return the object that a handle's number stands for."""
    return _handles[int(number)].owner
