"""The operations that the insert pass puts into a graph.

`fault_inject` strikes one activation; `begin_forward` moves the clock. Work follows
the number of hits: only the elements that are hit are read, converted and written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect
from torch.utils import _pytree as pytree

from fxfault.errors import SiteError
from fxfault.quant_tensors import IntQuantTensor, makes_private_tensor
from fxfault.random_numbers import stream_key
from fxfault.recomputation import Moment, moment_of, recomputing
from fxfault.sampling import (
    Hits,
    Layout,
    faulty_units,
    hits_at,
    random_hits,
    unit_positions,
)
from fxfault.sites import FaultSite, FaultSites
from fxfault.strikes import Strike, Sums, read, write

SMALL = 1 << 16  # elements


@has_side_effect  # type: ignore[untyped-decorator]
@torch.compiler.disable  # type: ignore[untyped-decorator]
def begin_forward(sites: FaultSites, *inputs: Any) -> None:
    """Move the clock of a model's sites: one forward of the whole model starts.

    Args:
        sites: the model's sites.
        inputs: the model's inputs; the leading dimension of the tensor with most
            dimensions among them is the batch.
    """
    if not recomputing():
        sites.clock.begin(_batch_size(inputs))


def _batch_size(inputs: tuple[Any, ...]) -> int:
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    # The one with most dimensions, the first of those: a temperature or a table of weights
    # that comes along has fewer than the samples.
    return max(leaves, key=lambda x: x.dim()).shape[0] if leaves else 1


def fault_inject(x: Any, site: FaultSite) -> Any:
    """Strike a quantised activation with the faults of a site.

    Where the site is not armed, the very object that came in goes on.

    Args:
        x: what the activation layer returned: an `IntQuantTensor` of any shape, in
            float16, bfloat16, float32 or float64, or the plain value of one that the
            layer handed over (`fxfault.layer_outputs`).
        site: state and settings of the place.

    Returns:
        What came in, of the same type and memory format, with faults.

    Raises:
        SiteError: the value has no integer word, or its dtype cannot hold the codes.
    """
    handed_over = None if site.handover is None else site.handover.take(x)
    # What a backward repeats may have been armed, whatever the site is now.
    if not site.armed and (torch.compiler.is_compiling() or not recomputing()):
        return x
    value = _strike(x if handed_over is None else handed_over, site)
    if value is None:
        return x
    return value if handed_over is not None else x._replace(value=value)


@dataclass(frozen=True)
class Struck:
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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _strike(x: Any, site: FaultSite) -> Tensor | None:
    """Strike the values of an activation and see to their gradient.

    Returns:
        The values with faults; those that came in, where nothing is hit; None where the site
        is not armed.
    """
    moment = moment_of(site)
    if moment is None:
        return None
    if not isinstance(x, IntQuantTensor):
        raise SiteError(
            f"site {site.name}: expected an IntQuantTensor from {site.module_type}, got "
            f"{type(x).__name__}; enable its quantiser, or set `unsupported: skip`"
        )
    value: Tensor = x.value
    site.signed, site.scale = x.signed, x.scale.detach()
    layout = Layout.of(tuple(value.shape), _batch_of(moment, value))
    site.elements = layout.elements
    if value.numel() == 0:
        return value
    with torch.no_grad():
        struck = _write_faults(x, site, moment, layout)
    if struck is None:
        return value
    return FaultInject.apply(value, struck) if value.requires_grad else struck.values


def _write_faults(x: Any, site: FaultSite, moment: Moment, layout: Layout) -> Struck | None:
    """Strike a copy of the values, or the values themselves where nobody else sees them.

    Returns:
        None where nothing is hit.
    """
    value = x.value.detach()
    again = recomputing()
    sums = None if site.statistics is None or again else Sums(x, site.statistics.cosine)
    needs_grad = x.value.requires_grad
    struck: Tensor | None = None
    kept: list[Hits] = []
    for hits in _hits(site, moment, layout, value.device):
        if struck is None:
            strike = Strike(x, site)
            alone = not needs_grad and _may_overwrite(value, site)
            struck = value if alone else value.clone()
        codes, corrupted = strike.write(struck, hits)
        if sums is not None:
            sums.add(hits, codes, corrupted)
        if needs_grad and site.gradient_mode == "zero_faulty":
            kept.append(hits)
    if sums is not None:
        sums.record(site)
    if struck is None:
        return None
    return Struck(struck, _stopped(kept, value.dtype) if kept else None)


def _stopped(hits: list[Hits], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where gradients end, and which of them pass all the same; see `Struck`."""
    index = torch.cat([part.index for part in hits])
    writes = hits[0].writes  # Only hits of a fixed size have them, and these are one part.
    if writes is None:
        return index, torch.zeros((), dtype=dtype, device=index.device)
    return index, (~writes).to(dtype)


def _may_overwrite(value: Tensor, site: FaultSite) -> bool:
    """Whether the copy can be spared: nobody else sees the activation.

    Small tensors are copied faster than the question is answered.
    """
    if site.layer is None or value.numel() < SMALL:
        return False
    return makes_private_tensor(site.layer)


def _batch_of(moment: Moment, value: Tensor) -> int:
    """The batch of the forward; before any, the tensor's own leading dimension."""
    if moment.batch is None:
        return value.shape[0] if value.dim() else 1
    return moment.batch


def _hits(site: FaultSite, moment: Moment, layout: Layout, device: torch.device) -> Iterator[Hits]:
    key, first = moment.key, moment.first_sample
    if site.hw_units is None:
        return random_hits(key, first, layout, site.probability / 100, device)
    run = (site.clock.seed, site.clock.trial)
    wanted = (run, layout.rows, layout.row_shape, site.probability, device)
    if site._cache.get("units") != wanted:
        units_key = stream_key("units", *run)
        units = faulty_units(units_key, site.hw_units, site.probability / 100, device)
        site._cache = {"units": wanted, "places": unit_positions(units, site.hw_units, layout)}
    return hits_at(site._cache["places"], key, first, layout)
