"""Reads and writes elements of a tensor by their flat row-major positions."""

from __future__ import annotations

import torch
from torch import Tensor

from fxfault.faults.codes import Parameter


def at(parameter: Parameter, shape: torch.Size, index: Tensor) -> Parameter:
    """A quantisation parameter at some elements: one number, or one for each element."""
    if isinstance(parameter, Tensor) and parameter.dim() > 0:
        return parameter.expand(shape).take(index)
    return parameter


def read(values: Tensor, index: Tensor) -> Tensor:
    """Return `values.take(index)`; on a contiguous tensor a view makes it five times faster."""
    if values.is_contiguous():
        return values.view(-1).index_select(0, index)
    return values.take(index)


def write(values: Tensor, index: Tensor, new: Tensor) -> None:
    """Do `values.put_(index, new)`; on a contiguous tensor a view makes it twice as fast."""
    if values.is_contiguous():
        flat = values.view(-1)
        if flat.element_size() == 2:  # `scatter_` computes 16-bit floats, which changes NaN.
            flat, new = flat.view(torch.int16), new.view(torch.int16)
        flat.scatter_(0, index, new)
    else:
        values.put_(index, new)
