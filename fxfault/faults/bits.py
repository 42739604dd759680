"""Compare tensors bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Any, b: Any) -> bool:
    """Whether two tensors, or two plain values, are equal bit for bit.

    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    >>> same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    True
    """
    if a is b:
        return True
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits_of(a), bits_of(b))


def bits_of(tensor: Tensor) -> Tensor:
    """The memory of a tensor as integers, so that NaN equals itself and 0.0 is not -0.0."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return tensor
    return tensor.view(_INTEGER_OF_SIZE[tensor.element_size()])
