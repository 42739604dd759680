"""The operations that the insert pass puts into a graph.

`fault_inject` strikes one activation; `begin_forward` moves the clock. Work follows
the number of hits: only the elements that are hit are read, converted and written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect
from torch.utils import _pytree as pytree

from fxfault.codes import Word, fits, to_codes, to_values
from fxfault.errors import SiteError
from fxfault.quant_tensors import IntQuantTensor, makes_private_tensor
from fxfault.random_numbers import rehash, stream_key
from fxfault.sampling import (
    Hits,
    Layout,
    faulty_units,
    hits_at,
    random_hits,
    unit_positions,
)
from fxfault.sites import NOT_CODES, FaultSite, FaultSites

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


def recomputing() -> bool:
    """Whether a backward runs: gradient checkpointing then repeats a forward."""
    return torch._C._current_graph_task_id() != -1  # type: ignore[attr-defined]


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
    if not site.armed:
        return x
    quantised = x if handed_over is None else handed_over
    if not isinstance(quantised, IntQuantTensor):
        raise SiteError(
            f"site {site.name}: expected an IntQuantTensor from {site.module_type}, got "
            f"{type(x).__name__}; enable its quantiser, or set `unsupported: skip`"
        )
    value = _strike(quantised, site)
    return value if handed_over is not None else x._replace(value=value)


class FaultInject(torch.autograd.Function):
    """Overwrite some elements of a tensor, with a choice of gradients.

    `ste` (straight-through) passes every gradient on; `zero_faulty` stops it exactly at
    the elements that were hit. A gradient towards the written values does not exist.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, index: Tensor, faulty: Tensor, passed: Tensor | None
    ) -> Tensor:
        """Copy `value` and write `faulty` at the flat row-major positions `index`.

        Args:
            ctx: of autograd.
            value: any shape and memory format, which the result keeps.
            index: positions, int64, one dimension.
            faulty: what to write there.
            passed: None for `ste`; for `zero_faulty`, 1 at the positions whose gradient
                passes all the same because they only fill the index up, else 0.
        """
        ctx.zero_faulty = passed is not None
        if passed is not None:
            ctx.save_for_backward(index, passed)
        return _write(value.clone(), index, faulty)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Pass the gradient on, without the hit elements if so asked."""
        if ctx.zero_faulty:
            index, passed = ctx.saved_tensors
            grad_output = grad_output.clone().put_(index, grad_output.take(index) * passed)
        return grad_output, None, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _strike(x: Any, site: FaultSite) -> Tensor:
    """Find the hits, corrupt their codes, record them, and write the values back."""
    value = x.value
    site.signed, site.scale = x.signed, x.scale.detach()
    layout = Layout.of(tuple(value.shape), _batch_of(site, value))
    site.elements = layout.elements
    if value.numel() == 0:
        return value
    word = _word(x, site)
    with torch.no_grad():
        again = recomputing()
        key = site.stream(again)
        hits = _hits(site, key, layout, value.device)
        scale = _at(x.scale, value, hits.index)
        zero_point = _at(x.zero_point, value, hits.index)
        original = _read(value.detach(), hits.index)
        codes, valid = to_codes(original, scale, zero_point, word)
        _check(site, hits, valid)

        def draw(stream: int) -> Tensor:
            return rehash(hits.bits, stream)

        corrupted = site.fault_model.corrupt(codes, word, draw)
        if hits.writes is not None:
            corrupted = torch.where(hits.writes, corrupted, codes)
        if site.statistics is not None and not again:
            _record(site, x, hits, codes, corrupted)
        faulty = to_values(corrupted, scale, zero_point, value.dtype)
        faulty = torch.where(corrupted == codes, original, faulty)
    if hits.index.numel() == 0:
        return value
    if _may_overwrite(value, site):
        return _write(value, hits.index, faulty)
    return FaultInject.apply(value, hits.index, faulty, _passed(site, hits, value.dtype))


def _read(values: Tensor, index: Tensor) -> Tensor:
    """`values.take(index)`, which is five times faster on a view where there is one."""
    if values.is_contiguous():
        return values.view(-1).index_select(0, index)
    return values.take(index)


def _write(values: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`values.put_(index, new)`, which is twice as fast on a view where there is one."""
    if values.is_contiguous():
        values.view(-1).scatter_(0, index, new)
        return values
    return values.put_(index, new)


def _may_overwrite(value: Tensor, site: FaultSite) -> bool:
    """Whether the copy can be spared: nobody else sees the activation, no gradient needs it.

    Small tensors are copied faster than the question is answered.
    """
    if site.layer is None or torch.is_grad_enabled() or value.numel() < SMALL:
        return False
    return makes_private_tensor(site.layer)


def _passed(site: FaultSite, hits: Hits, dtype: torch.dtype) -> Tensor | None:
    """Which of the written positions pass their gradient on; None: all of them."""
    if site.gradient_mode == "ste":
        return None
    if hits.writes is None:
        return torch.zeros((), dtype=dtype, device=hits.index.device)
    return (~hits.writes).to(dtype)


def _batch_of(site: FaultSite, value: Tensor) -> int:
    """The batch of the current forward; before any, the tensor's own leading dimension."""
    if site.clock.batch is None:
        return value.shape[0] if value.dim() else 1
    return site.clock.batch


def _word(x: Any, site: FaultSite) -> Word:
    """The word of this activation. Reading a learned width costs nothing on the CPU."""
    bit_width: int | Tensor | None = site.quantiser.bit_width
    if bit_width is None and x.bit_width.device.type == "cpu":
        bit_width = round(x.bit_width.item())
    elif bit_width is None:
        bit_width = x.bit_width.round().long().reshape(())
    if isinstance(bit_width, int):
        _check_width(x, site, bit_width)
    return Word(bit_width, x.signed, site.quantiser.narrow_range, site.quantiser.binary)


def _check_width(x: Any, site: FaultSite, bit_width: int) -> None:
    dtype = x.value.dtype
    if not fits(bit_width, dtype):
        raise SiteError(
            f"site {site.name}: {bit_width}-bit codes do not fit {dtype}; allowed: 1 to 32 bits "
            "that the dtype holds exactly (bfloat16 8, float16 11, float32 24); use a wider dtype"
        )


def _hits(site: FaultSite, key: int, layout: Layout, device: torch.device) -> Hits:
    first = site.clock.first_sample
    if site.hw_units is None:
        return random_hits(key, first, layout, site.probability / 100, device)
    run = (site.clock.seed, site.clock.trial)
    wanted = (run, layout, site.probability, device)
    if site._cache.get("units") != wanted:
        units_key = stream_key("units", *run)
        units = faulty_units(units_key, site.hw_units, site.probability / 100, device)
        site._cache = {"units": wanted, "index": unit_positions(units, site.hw_units, layout)}
    return hits_at(site._cache["index"], key, first, layout)


def _at(parameter: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """A quantisation parameter at the hit elements: one number, or one for each of them."""
    parameter = parameter.detach()
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.expand(value.shape).take(index)


def _check(site: FaultSite, hits: Hits, valid: Tensor) -> None:
    """Refuse values that are no codes, and draws that did not span a sample.

    On the CPU at once. Elsewhere looking would wait for the device, so the verdict is kept
    there until somebody asks for it (`FaultSites.check`).
    """
    if valid.device.type == "cpu" and not bool(valid.all()):
        raise SiteError(
            f"site {site.name}: {int((~valid).sum())} of {valid.numel()} values that were to be "
            f"hit {NOT_CODES}"
        )
    if valid.device.type != "cpu":
        sound = valid.all() if hits.complete is None else valid.all() & hits.complete
        site.sound = sound if site.sound is None else site.sound & sound


def _record(site: FaultSite, x: Any, hits: Hits, codes: Tensor, corrupted: Tensor) -> None:
    """Add one forward to the statistics; the activation is read once, the hits once."""
    assert site.statistics is not None
    clean, faulty = codes.double(), corrupted.double()
    if hits.real is not None:
        clean, faulty = clean * hits.real, faulty * hits.real
        injected = hits.real.sum().double()
    else:
        injected = torch.tensor(float(codes.numel()), dtype=torch.float64, device=codes.device)
    change = faulty - clean
    square = _sum_of_squares(x)
    site.statistics.record_sums(
        site.index,
        elements=x.value.numel(),
        injected=injected,
        squared_change=change.square().sum(),
        clean_square=square,
        faulty_square=square + (faulty.square() - clean.square()).sum(),
        product=square + (clean * change).sum(),
    )


def _sum_of_squares(x: Any) -> Tensor:
    """Sum of code² over the whole activation.

    Codes are rounded before they are squared: a sum over values would leave a rest where
    all codes are 0, and a 16-bit float has too few digits for it.
    """
    value, scale, zero_point = x.value.detach(), x.scale.detach(), x.zero_point.detach()
    if value.dtype in (torch.float16, torch.bfloat16):
        value, scale = value.float(), scale.float()
    codes = value / scale
    codes = codes.add_(zero_point).round_()
    return torch.linalg.vector_norm(codes, dtype=torch.float64).square().round()
