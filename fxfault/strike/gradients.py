"""The gradient of an activation that was struck."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxfault.faults.sampling import Hits
from fxfault.strike.places import read, write


class Struck(NamedTuple):
    """An activation after a strike.

    Attributes:
        values: the values with faults.
        stopped: None if every gradient passes; otherwise the flat row-major positions of the hits
            (int64, one dimension) and the factor of the gradient at each: 0, or 1 at positions
            that only pad the index.
    """

    values: Tensor
    stopped: tuple[Tensor, Tensor] | None = None


class FaultInject(torch.autograd.Function):
    """Replace clean values by faulty ones, with a choice of gradients.

    `ste` (straight-through) passes every gradient; `zero_faulty` stops the gradient at exactly
    the elements that were hit. The written values get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, faults: Struck) -> Tensor:
        """Return the values with faults.

        Args:
            ctx: the context of autograd.
            value: the clean values, any shape and memory format.
            faults: the result of the strike. It is not a plain tensor, because autograd treats an
                output that is also an input as a view and forbids changes in place.
        """
        ctx.zero_faulty = faults.stopped is not None
        if faults.stopped is not None:
            ctx.save_for_backward(*faults.stopped)
        return faults.values

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Pass the gradient; with `zero_faulty`, stop it at the elements that were hit."""
        if ctx.zero_faulty:
            index, factor = ctx.saved_tensors
            grad_output = grad_output.clone()
            if factor.dim() == 0 and grad_output.is_contiguous():
                grad_output.view(-1).index_fill_(0, index, 0.0)
            else:
                # Not a product with the factor: infinity times 0 is not 0.
                kept = torch.where(factor == 0, 0.0, read(grad_output, index))
                write(grad_output, index, kept)
        return grad_output, None


def stopped_at(hits: list[Hits], values: Tensor) -> tuple[Tensor, Tensor]:
    """Positions where gradients end, and the factor at each; see `Struck`."""
    index = torch.cat([part.index for part in hits])
    if all(part.writes is None for part in hits):  # Only padded hits have `writes`.
        return index, torch.zeros((), dtype=values.dtype, device=index.device)
    stops = torch.cat([_writes(part) for part in hits])
    if len(hits) > 1:  # Padding of one fault may lie at a hit of another one.
        anywhere = torch.zeros(values.numel(), dtype=torch.uint8, device=index.device)
        stops = anywhere.scatter_reduce_(0, index, stops.byte(), "amax")[index].bool()
    return index, (~stops).to(values.dtype)


def _writes(hits: Hits) -> Tensor:
    return torch.ones_like(hits.index, dtype=torch.bool) if hits.writes is None else hits.writes
