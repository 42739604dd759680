"""Numbers by which compiled code finds Python objects again.

A compiled graph handles tensors and numbers only. A handle is a tensor that holds a number, and
whoever gets the tensor finds the object. The tensor is an input of the graph, read from the
object itself at each call: neither compiled code nor what a compiler keeps on disk contains a
number that could mean another object in another model or process.
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
    """The number of one object; a copy of the object gets one of its own.

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
    """The object that a handle's number stands for."""
    return _handles[int(number)].owner
