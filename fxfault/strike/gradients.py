"""How gradients pass an activation that was struck."""

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
        stopped: None where every gradient passes; else the flat row-major positions that were
            hit (int64, one dimension) and the factor of the gradient there, which is 0, or 1
            at positions that only fill the index up.
    """

    values: Tensor
    stopped: tuple[Tensor, Tensor] | None = None


class FaultInject(torch.autograd.Function):
    """Put the faulty values in the place of the clean ones, with a choice of gradients.

    `ste` (straight-through) passes every gradient on; `zero_faulty` stops it exactly at
    the elements that were hit. A gradient towards the written values does not exist.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, faults: Struck) -> Tensor:
        """Give the values with faults.

        Args:
            ctx: of autograd.
            value: the clean values, any shape and memory format.
            faults: what became of them; no tensor itself, as autograd takes an output that is
                an input for a view and forbids to change it in place.
        """
        ctx.zero_faulty = faults.stopped is not None
        if faults.stopped is not None:
            ctx.save_for_backward(*faults.stopped)
        return faults.values

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Pass the gradient on, without the hit elements if so asked."""
        if ctx.zero_faulty:
            index, factor = ctx.saved_tensors
            grad_output = grad_output.clone()
            if factor.dim() == 0 and grad_output.is_contiguous():
                grad_output.view(-1).index_fill_(0, index, 0.0)
            else:
                # No product with the factor: infinity times 0 is not 0.
                kept = torch.where(factor == 0, 0.0, read(grad_output, index))
                write(grad_output, index, kept)
        return grad_output, None


def stopped_at(hits: list[Hits], values: Tensor) -> tuple[Tensor, Tensor]:
    """Where gradients end, and which of them pass all the same; see `Struck`."""
    index = torch.cat([part.index for part in hits])
    if all(part.writes is None for part in hits):  # Only hits of a fixed size have them.
        return index, torch.zeros((), dtype=values.dtype, device=index.device)
    stops = torch.cat([_writes(part) for part in hits])
    if len(hits) > 1:  # What fills one fault up may stand where another one hits.
        anywhere = torch.zeros(values.numel(), dtype=torch.uint8, device=index.device)
        stops = anywhere.scatter_reduce_(0, index, stops.byte(), "amax")[index].bool()
    return index, (~stops).to(values.dtype)


def _writes(hits: Hits) -> Tensor:
    return torch.ones_like(hits.index, dtype=torch.bool) if hits.writes is None else hits.writes
