"""Strikes an activation, outside compiled code.

Only elements that are hit are read, converted, corrupted and written. The plan of the site
(`fxfault.strike.plan`) holds all that stays the same from forward to forward.
"""

from __future__ import annotations

import operator
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults import kernels
from fxfault.faults.codes import Parameter
from fxfault.faults.fault_models import BitModel
from fxfault.faults.random_numbers import rehash
from fxfault.faults.sampling import Hits, Numbers, on_host
from fxfault.quantisers.quant_tensors import IntQuantTensor, makes_private_tensor, plain
from fxfault.sites.site import FaultSite, why_no_codes
from fxfault.strike.contracts import checked, is_checked, is_ours, require_floats
from fxfault.strike.gradients import FaultInject, Struck
from fxfault.strike.moments import Moment, moment_of
from fxfault.strike.places import at, read, write
from fxfault.strike.plan import Part, Plan, note_sound, plan_of
from fxfault.strike.records import Change
from fxfault.strike.sums import Notes, notes_of

Quantiser: TypeAlias = tuple[Parameter, Parameter, Parameter]
"""Scale, zero point, and the largest distance of a value from its code, in codes."""

# A tensor of fewer elements is copied without asking whether the copy is needed.
SMALL = 1 << 16

# With fewer expected hits than this, a forward without any is likely enough to look first.
FEW = 5

_SIGN = 1 << 63
_NOTHING = np.empty((3, 0), np.int64)


def with_value(x: Any, activation: Any, value: Tensor | None) -> Any:
    """The output that replaces `x`: of its type, with the struck values of its activation."""
    # Struck in place, or not at all. (`plain` would be a call more for each strike.)
    if value is None or value is getattr(activation, "value", activation):
        return x
    if activation is not x or isinstance(x, Tensor):
        return value  # `x` is a plain value; a quantising layer handed its QuantTensor over.
    return x._replace(value=value)


def strike_values(x: Any, site: FaultSite, moment: Moment) -> Tensor:
    """Strike the values of an activation, with the gradient that the site asks for.

    Args:
        x: an `IntQuantTensor` of any shape; if the site has float words, a `FloatQuantTensor` or a
            plain tensor.
        site: the site.
        moment: the moment of the strike.

    Returns:
        The values with faults. This is the tensor of `x` itself if nothing is hit, or if nothing
        else refers to it.

    Raises:
        SiteError: `x` has no integer word, or a value that is hit is not a code.
    """
    if site.observer is not None:
        return site.observer(x)
    if not isinstance(x, IntQuantTensor):
        require_floats(x, site)
    value: Tensor = x if isinstance(x, Tensor) else x.value
    if site.stored is not None:
        _check_shape(value, site)
        if not value.requires_grad:
            return _struck_once(x, site, moment)
    if not value.requires_grad:
        asked = site.statistics is not None or site.recorder is not None
        notes = notes_of(x, site) if asked else None
        written = _faulty(x, site, moment, value, notes)
        return value if written is None else written
    notes = notes_of(x, site, stopping=site.gradient_mode == "zero_faulty")
    written = _faulty(x, site, moment, value.detach(), notes)
    if written is None:
        return value
    stopped = None if notes is None else notes.stopped
    faulty: Tensor = FaultInject.apply(value, Struck(written, stopped))
    return faulty


def _check_shape(value: Tensor, site: FaultSite) -> None:
    """Refuse a part of the words, or other words: their elements are numbered in the whole."""
    if site.stored is not None and value.shape != site.stored.shape:
        raise SiteError(
            f"site {site.name}: its words have the shape {tuple(value.shape)}, and had "
            f"{tuple(site.stored.shape)} at first; transform the model again, and let the layer "
            "quantise the whole tensor"
        )


def _struck_once(x: Any, site: FaultSite, moment: Moment) -> Tensor:
    """Strike the words of a memory, or return them as they were struck for this draw before.

    A frozen layer gives the same words in each forward; they are struck once for each trial.
    """
    value, notes = plain(x), notes_of(x, site)
    counts_writes = not (value.is_inference() or torch.is_inference_mode_enabled())
    lasts = counts_writes and all(is_ours(fault.model) for fault in site.faults)
    if not lasts:
        written = _faulty(x, site, moment, value, notes)
        return value if written is None else written
    when, made_from = (moment, value._version), _made_from(x, site)
    if notes is None and "struck" in site.caches:
        struck_when, before, struck, version = site.caches["struck"]
        same = struck_when == when and len(before) == len(made_from)
        # An embedding with `max_norm` writes to the words that it gets.
        if same and struck._version == version and all(map(operator.is_, before, made_from)):
            return struck  # type: ignore[no-any-return]
    written = _faulty(x, site, moment, value, notes)
    struck = value if written is None else written
    site.caches["struck"] = (when, made_from, struck, struck._version)
    return struck


def _made_from(x: Any, site: FaultSite) -> list[Any]:
    """The objects that decide how words are struck at a moment."""
    scale, zero_point = getattr(x, "scale", None), getattr(x, "zero_point", None)
    parts: list[Any] = [plain(x), scale, zero_point, site.setting]
    if any(fault.num_faults is not None for fault in site.faults):  # Spread over all sites.
        for other in site.peers:
            parts += (other.selected, other.setting, other.seen.extent)
    return parts


def overwrite(x: Any, site: FaultSite, hits: Tensor | None = None) -> None:
    """Strike an activation in place, if the site is armed.

    Args:
        x: an `IntQuantTensor` outside the autograd graph, or a plain tensor of float words.
        site: the site.
        hits: None, or a mask to fill: bool in the shape of the values, all false; true at hits.
    """
    moment = moment_of(site)
    if moment is None:
        return
    own = plain(x)
    if site.observer is not None:
        values = site.observer(x)
        if values is not own:
            own.copy_(values)
        return
    _check_shape(own, site)
    notes = notes_of(x, site, stopping=hits is not None)
    _faulty(x, site, moment, own, notes, in_place=True)
    stopped = None if notes is None else notes.stopped
    if hits is not None and stopped is not None:
        index, factor = stopped
        write(hits, index, (factor == 0).expand_as(index))


def _faulty(
    x: Any,
    site: FaultSite,
    moment: Moment,
    clean: Tensor,
    notes: Notes | None,
    in_place: bool = False,
) -> Tensor | None:
    """Strike a copy of the values, or the values themselves if nothing else refers to them.

    Args:
        x: an `IntQuantTensor`.
        site: the site.
        moment: the moment of the strike.
        clean: the values, outside the autograd graph.
        notes: collects the changes; None if nobody asks for them.
        in_place: whether to strike the values themselves in any case.

    Returns:
        The values with faults; None if nothing was written.
    """
    batch = moment.batch
    if batch is None:  # No forward has begun: take the tensor's own leading dimension.
        batch = clean.shape[0] if clean.dim() else 1
    if clean.numel() == 0:
        site.seen.elements = site.layout_of(tuple(clean.shape), batch).elements
        return None
    plan, scale, zero_point = plan_of(site, x, batch)
    if moment.call == 1:
        site.seen.calls = {1: plan.layout}
    else:
        site.seen.calls[moment.call] = plan.layout
    quantiser, samples = (scale, zero_point, plan.limit), plan.layout.samples
    # For a small tensor, a copy takes less time than the question who else refers to it.
    in_place = in_place or (
        site.layer is not None
        and bool(plan.parts)
        and clean.numel() >= SMALL
        and not x.value.requires_grad
        and makes_private_tensor(site.layer, site.caches)
    )
    written = clean if in_place else None
    if moment.given is None:
        numbers: Numbers = range(moment.first_sample, moment.first_sample + samples)
    else:
        numbers = moment.given[:samples]
    if notes is not None:
        notes.begin(plan, quantiser, moment.call, numbers)
    for part in plan.parts:
        source = part.spread.source(moment.key, numbers, moment.call)
        # The loop that draws does not tell which bits a hit struck.
        strike = _by_loop if part.draws_in_loop and site.recorder is None else _hit_by_hit
        written = strike(plan, part, clean, written, quantiser, source, notes)
    if notes is not None:
        notes.finish()
    return written


def _by_loop(
    plan: Plan,
    part: Part,
    clean: Tensor,
    written: Tensor | None,
    quantiser: Quantiser,
    source: tuple[int, Numbers],
    notes: Notes | None,
) -> Tensor | None:
    """Draw the hits of a fault and strike them, in one compiled loop.

    Args:
        plan: a plan of the site with a memory order.
        part: a part of the plan that draws in the loop.
        clean: the values, any shape.
        written: the values with the faults so far, changed in place; None if there are none yet.
        quantiser: scale, zero point and limit, all numbers.
        source: the key and the sample numbers that determine the hits.
        notes: collects the changes; None if nobody asks for them.

    Returns:
        The values with faults; None if there are still none.

    Raises:
        SiteError: a value is not a code.
    """
    key, numbers = source
    assert plan.order is not None
    assert part.loop is not None
    where = (
        (key ^ _SIGN) - _SIGN,  # the 64 bits as a signed number
        on_host(numbers),
        plan.layout.elements,
        part.gap_scale,
        plan.layout.outer,
    )
    if written is None:
        if part.expected < FEW and not kernels.any_hit(*where):
            return None  # To look twice takes less time than to copy for nothing.
        written = clean.clone()
    memory = (written.data_ptr(), plan.like)
    given: tuple[Any, ...] = (
        *(*memory, *plan.order, *where, *quantiser),
        *(plan.word.for_loops, *part.loop),
    )
    if notes is None:
        count, wrong, _ = kernels.strike(*given, *kernels.START, _NOTHING)  # type: ignore[call-arg]
        if wrong:
            _refuse(part.spread.site, wrong, count)
    else:
        _note_by_loop(part, given, len(numbers), notes)
    return written


def _note_by_loop(part: Part, given: tuple[Any, ...], samples: int, notes: Notes) -> None:
    """Run the loop of `_by_loop` piece by piece and note its changes; `given` lacks the place."""
    place = kernels.START
    while place[0] < samples:
        record = np.empty((3, part.room), np.int64)
        count, wrong, place = kernels.strike(*given, *place, record)  # type: ignore[call-arg]
        if wrong:
            _refuse(part.spread.site, wrong, count)
        if count:
            index, codes, corrupted = torch.from_numpy(record[:, :count])
            notes.add(part, Change(Hits(index), codes, corrupted))


def _hit_by_hit(
    plan: Plan,
    part: Part,
    clean: Tensor,
    written: Tensor | None,
    quantiser: Quantiser,
    source: tuple[int, Numbers],
    notes: Notes | None,
) -> Tensor | None:
    """Draw the hits of a fault, then strike them; like `_by_loop`, but for any plan."""
    for hits in part.spread.hits(*source, clean.device):
        written = clean.clone() if written is None else written
        if part.loop is None:
            change = _write(plan, part, written, quantiser, hits)
        else:
            change = _at_by_loop(plan, part, written, quantiser, hits)
        if notes is not None:
            notes.add(part, change)
    return written


def _at_by_loop(plan: Plan, part: Part, values: Tensor, quantiser: Quantiser, hits: Hits) -> Change:
    """Strike given hits by a compiled loop."""
    bits, fault = hits.bits, part.loop
    assert fault is not None
    assert plan.order is not None
    if hits.struck is not None:
        bits, fault = hits.struck, (fault[0], 0, 0)
    assert bits is not None
    record = np.empty((2, hits.index.numel()), np.int64)
    wrong = kernels.strike_at(
        values.data_ptr(),
        plan.like,
        tuple(plan.order),
        hits.index.numpy(),
        bits.numpy(),
        quantiser,  # type: ignore[arg-type]  # All are numbers if there is an order.
        plan.word.for_loops,
        fault,
        record,
    )
    if wrong:
        _refuse(part.spread.site, wrong, record.shape[1])
    codes, corrupted = torch.from_numpy(record)
    return Change(hits, codes, corrupted)


def _write(plan: Plan, part: Part, values: Tensor, quantiser: Quantiser, hits: Hits) -> Change:
    """Corrupt the values that are hit, in place, on any device and with any fault model.

    Args:
        plan: the plan of the site.
        part: the part of the plan that the hits belong to.
        values: the values, any shape, dtype and memory format.
        quantiser: scale, zero point and limit.
        hits: at least one hit; each element occurs once.

    Raises:
        SiteError: a value is not a code (on the CPU; elsewhere `FaultSites.check` says so), or a
            user's fault model breaks a rule.
    """
    site, model, word = part.spread.site, part.model, plan.word
    scale, zero_point = (at(p, values.shape, hits.index) for p in quantiser[:2])
    original = read(values, hits.index)
    codes, distance = plan.to_codes(original, scale, zero_point)
    lost = ~original.isfinite() if site.follows_floats else None
    if lost is not None:  # An infinity or NaN that an earlier fault has made goes on as it is.
        codes, distance = torch.where(lost, word.highest, codes), distance.masked_fill(lost, 0.0)
    _check(site, distance, plan.limit, hits)

    def draw(stream: int) -> Tensor:
        assert hits.bits is not None
        return rehash(hits.bits, stream)

    def corrupt() -> Tensor:
        if hits.struck is None:
            return model.corrupt(codes, word, draw)
        assert isinstance(model, BitModel)
        return model.corrupt_bits(codes, word, hits.struck)

    corrupted = corrupt() if is_checked(site, model) else checked(site, model, codes, word, corrupt)
    if hits.writes is not None:
        corrupted = torch.where(hits.writes, corrupted, codes)
    if lost is not None:
        corrupted = torch.where(lost, codes, corrupted)
    faulty = plan.to_values(corrupted, scale, zero_point, values.dtype)
    # A value whose code stays keeps its bits, even -0.0.
    write(values, hits.index, torch.where(corrupted == codes, original, faulty))
    return Change(hits, codes, corrupted)


def _check(site: FaultSite, distance: Tensor, limit: Parameter, hits: Hits) -> None:
    """Refuse values that are not codes, and draws that did not span a sample.

    On the CPU this happens at once. To look at another device would mean to wait for it, so the
    verdict stays there until `FaultSites.check` reads it.
    """
    if not distance.is_cpu:
        sound = (distance <= limit).all()
        note_sound(site, sound if hits.complete is None else sound & hits.complete)
    elif not distance.max() <= limit:  # Written so that a NaN is refused.
        _refuse(site, int((~(distance <= limit)).sum()), distance.numel())


def _refuse(site: FaultSite, wrong: int, count: int) -> NoReturn:
    raise SiteError(
        f"site {site.name}: {wrong} of {count} values that were to be hit {why_no_codes(site)}"
    )
