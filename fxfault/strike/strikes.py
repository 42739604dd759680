"""Strike an activation, outside compiled code.

Only the elements that are hit are read, converted, corrupted and written. What does not change
from forward to forward is in the plan of the site (`fxfault.strike.plan`).
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults import kernels
from fxfault.faults.codes import Parameter, to_codes, to_values
from fxfault.faults.fault_models import BitModel
from fxfault.faults.random_numbers import rehash
from fxfault.faults.sampling import Hits, Numbers, on_host
from fxfault.quantisers.quant_tensors import IntQuantTensor, makes_private_tensor
from fxfault.sites.site import FaultSite, why_no_codes
from fxfault.strike.contracts import checked, is_checked
from fxfault.strike.gradients import FaultInject, Struck
from fxfault.strike.moments import Moment, moment_of
from fxfault.strike.places import read, write
from fxfault.strike.plan import Part, Plan, note_sound, plan_of
from fxfault.strike.sums import Change, Notes, notes_of

Quantiser: TypeAlias = tuple[Parameter, Parameter, Parameter]
"""Scale and zero point, and how far from a code a value may lie, in codes."""

# Elements up to which a copy is made without asking whether it is needed.
SMALL = 1 << 16

# Hits up to which it is likely enough that there is none.
FEW = 5

_SIGN = 1 << 63
_NOTHING = np.empty((3, 0), np.int64)


def with_value(x: Any, activation: Any, value: Tensor | None) -> Any:
    """What goes on in the place of an activation that was struck."""
    if value is None or value is activation.value:  # Struck in place, or not at all.
        return x
    if activation is not x:  # A plain value, of which the layer handed the QuantTensor over.
        return value
    return x._replace(value=value)


def strike_values(x: Any, site: FaultSite, moment: Moment) -> Tensor:
    """Strike the values of an activation and see to their gradient.

    Args:
        x: IntQuantTensor of any shape.
        site: state and settings of the place.
        moment: what the strike follows from.

    Returns:
        The values with faults; those that came in, where nothing is hit or nobody else sees them.

    Raises:
        SiteError: `x` has no integer word, or a value that is hit is no code of it.
    """
    if site.observer is not None:
        return site.observer(x)
    if not isinstance(x, IntQuantTensor):
        raise SiteError(
            f"site {site.name}: expected an IntQuantTensor from {site.module_type}, got "
            f"{type(x).__name__}; enable its quantiser, transform the model again if its forward "
            "was replaced, or set `unsupported: skip`"
        )
    value: Tensor = x.value
    if not value.requires_grad:
        notes = None if site.statistics is None else notes_of(x, site)
        written = _faulty(x, site, moment, value, notes)
        return value if written is None else written
    notes = notes_of(x, site, stopping=site.gradient_mode == "zero_faulty")
    written = _faulty(x, site, moment, value.detach(), notes)
    if written is None:
        return value
    stopped = None if notes is None else notes.stopped
    faulty: Tensor = FaultInject.apply(value, Struck(written, stopped))
    return faulty


def overwrite(x: Any, site: FaultSite, hits: Tensor | None = None) -> None:
    """Strike an activation in place, if the site is armed.

    Args:
        x: IntQuantTensor; its values are part of no gradient's graph.
        site: state and settings of the place.
        hits: None, or bool in the shape of the values, all false: takes note of what is hit.
    """
    moment = moment_of(site)
    if moment is None:
        return
    if site.observer is not None:
        values = site.observer(x)
        if values is not x.value:
            x.value.copy_(values)
        return
    notes = notes_of(x, site, stopping=hits is not None)
    _faulty(x, site, moment, x.value, notes, in_place=True)
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
    """Strike a copy of the values, or the values themselves where nobody else sees them.

    Args:
        x: IntQuantTensor.
        site: state and settings of the place.
        moment: what the strike follows from.
        clean: the values, part of no gradient's graph.
        notes: takes what is changed; None where nobody asks.
        in_place: strike the values themselves in any case.

    Returns:
        The values with faults; None where nothing was written.
    """
    batch = moment.batch
    if batch is None:  # No forward has begun: by the tensor's own leading dimension.
        batch = clean.shape[0] if clean.dim() else 1
    if clean.numel() == 0:
        site.seen.elements = site.layout_of(tuple(clean.shape), batch).elements
        return None
    plan, scale, zero_point = plan_of(site, x, batch)
    quantiser, samples = (scale, zero_point, plan.limit), plan.layout.samples
    # Small tensors are copied faster than it is asked whether anybody else sees them.
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
    for part in plan.parts:
        source = part.spread.source(moment.key, numbers)
        strike = _by_loop if part.draws_in_loop else _hit_by_hit
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
        plan: of the site, which the loops take.
        part: of the plan, whose hits the loop draws.
        clean: the values, any shape.
        written: those with faults so far, changed in place; None: there are none yet.
        quantiser: scale, zero point and limit, all of them numbers.
        source: key and numbers that the hits follow from.
        notes: takes what is changed; None where nobody asks.

    Returns:
        The values with faults; None where there still are none.

    Raises:
        SiteError: a value is no code.
    """
    key, numbers = source
    assert plan.order is not None
    assert part.loop is not None
    where = (
        (key ^ _SIGN) - _SIGN,  # The 64 bits as a signed number.
        on_host(numbers),
        plan.layout.elements,
        part.gap_scale,
        plan.layout.outer,
    )
    if written is None:
        if part.expected < FEW:  # Looked at twice rather than copied for nothing.
            hit = np.zeros(len(numbers), bool)
            kernels.samples_hit(where, hit)
            if np.count_nonzero(hit) == 0:
                return None
        written = clean.clone()
    memory = written if plan.order == kernels.ROW_MAJOR else written.movedim(1, -1)
    flat, word = memory.view(-1).numpy(), plan.word.for_loops
    given: tuple[Any, ...] = (flat, *plan.order, *where, *quantiser, word, *part.loop)
    if notes is None:
        count, wrong, _ = kernels.strike(*given, *kernels.START, _NOTHING)  # type: ignore[call-arg]
        if wrong:
            _refuse(part.spread.site, wrong, count)
    else:
        _note_by_loop(part, given, len(numbers), notes)
    return written


def _note_by_loop(part: Part, given: tuple[Any, ...], samples: int, notes: Notes) -> None:
    """Let the loop of `_by_loop` tell what it changes; `given` is all but where it goes on."""
    place = kernels.START
    while place[0] < samples:
        record = np.empty((3, part.room), np.int64)
        count, wrong, place = kernels.strike(*given, *place, record)  # type: ignore[call-arg]
        if wrong:
            _refuse(part.spread.site, wrong, count)
        if count:
            index, codes, corrupted = torch.from_numpy(record[:, :count])
            notes.add(Change(Hits(index), codes, corrupted))


def _hit_by_hit(
    plan: Plan,
    part: Part,
    clean: Tensor,
    written: Tensor | None,
    quantiser: Quantiser,
    source: tuple[int, Numbers],
    notes: Notes | None,
) -> Tensor | None:
    """Draw the hits of a fault first, then strike them; as `_by_loop`, but for any plan."""
    for hits in part.spread.hits(*source, clean.device):
        written = clean.clone() if written is None else written
        if part.loop is None:
            change = _write(plan, part, written, quantiser, hits)
        else:
            change = _at_by_loop(plan, part, written, quantiser, hits)
        if notes is not None:
            notes.add(change)
    return written


def _at_by_loop(plan: Plan, part: Part, values: Tensor, quantiser: Quantiser, hits: Hits) -> Change:
    """Strike hits that are drawn already, by a compiled loop."""
    bits, fault = hits.bits, part.loop
    assert fault is not None
    assert plan.order is not None
    if hits.struck is not None:
        bits, fault = hits.struck, (fault[0], 0, 0)
    assert bits is not None
    record = np.empty((2, hits.index.numel()), np.int64)
    memory = values if plan.order == kernels.ROW_MAJOR else values.movedim(1, -1)
    wrong = kernels.strike_at(
        memory.view(-1).numpy(),
        tuple(plan.order),
        hits.index.numpy(),
        bits.numpy(),
        quantiser,  # type: ignore[arg-type]  # All numbers, where there is an order.
        plan.word.for_loops,
        fault,
        record,
    )
    if wrong:
        _refuse(part.spread.site, wrong, record.shape[1])
    codes, corrupted = torch.from_numpy(record)
    return Change(hits, codes, corrupted)


def _write(plan: Plan, part: Part, values: Tensor, quantiser: Quantiser, hits: Hits) -> Change:
    """Corrupt the values that are hit, in place: on any device, with any fault model.

    Args:
        plan: of the site.
        part: of the plan, whose hits they are.
        values: any shape, dtype and memory format; an element is in the hits of one call only.
        quantiser: scale, zero point and limit.
        hits: at least one.

    Raises:
        SiteError: a value is no code (on the CPU; elsewhere see `FaultSites.check`), or a fault
            model of the user's breaks a rule.
    """
    site, model, word = part.spread.site, part.model, plan.word
    scale, zero_point = (_at(parameter, values, hits.index) for parameter in quantiser[:2])
    original = read(values, hits.index)
    codes, distance = to_codes(original, scale, zero_point, word)
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
    faulty = to_values(corrupted, scale, zero_point, values.dtype)
    # What a fault leaves as it was keeps its bits, a -0.0 too.
    write(values, hits.index, torch.where(corrupted == codes, original, faulty))
    return Change(hits, codes, corrupted)


def _at(parameter: Parameter, values: Tensor, index: Tensor) -> Parameter:
    """A quantisation parameter at some elements: one number, or one for each of them."""
    if isinstance(parameter, Tensor) and parameter.dim() > 0:
        return parameter.expand(values.shape).take(index)
    return parameter


def _check(site: FaultSite, distance: Tensor, limit: Parameter, hits: Hits) -> None:
    """Refuse values that are no codes, and draws that did not span a sample.

    On the CPU at once. Elsewhere looking would wait for the device, so the verdict is
    kept there until somebody asks for it (`FaultSites.check`).
    """
    if not distance.is_cpu:
        sound = (distance <= limit).all()
        note_sound(site, sound if hits.complete is None else sound & hits.complete)
    elif not distance.max() <= limit:  # So that a NaN is refused.
        _refuse(site, int((~(distance <= limit)).sum()), distance.numel())


def _refuse(site: FaultSite, wrong: int, count: int) -> NoReturn:
    raise SiteError(
        f"site {site.name}: {wrong} of {count} values that were to be hit {why_no_codes(site)}"
    )
