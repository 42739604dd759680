"""The plan of a site: all that stays the same from strike to strike.

From forward to forward only the moment changes: the key of the random numbers and the sample
numbers. Everything else depends on the site's setting and on the shape, dtype, memory layout and
word of its activation. A plan holds it until one of these changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults import kernels
from fxfault.faults.codes import (
    MAX_BIT_WIDTH,
    Parameter,
    Word,
    fits,
    is_wide,
    to_codes,
    to_values,
    tolerance,
)
from fxfault.faults.fault_models import BitMaskModel, BitModel, FaultModel, RandomStrategy
from fxfault.faults.float_words import FloatWord, IeeeWord
from fxfault.faults.layouts import Layout
from fxfault.faults.sampling import room_for
from fxfault.faults.torch_draws import gap_scale
from fxfault.quantisers.float_tensors import float_words
from fxfault.quantisers.quant_tensors import IntQuantTensor, plain
from fxfault.sites.settings import SiteFault
from fxfault.sites.site import FaultSite
from fxfault.strike.contracts import is_ours
from fxfault.strike.draws import Spread, spread_of

_LOOP_TYPES = (torch.float32, torch.float64)
_LOOP_EFFECTS = {"flip": kernels.FLIP, "clear": kernels.CLEAR, "set": kernels.SET}


@dataclass(frozen=True, eq=False)
class Part:
    """One fault of a plan.

    Attributes:
        spread: where the fault hits.
        model: the fault model: the effect of a hit.
        loop: the effect of a hit in the form of the compiled loops; None if they cannot apply it.
        draws_in_loop: whether the loop that strikes also draws; the rest is set only then.
        expected: expected hits of a forward.
        gap_scale: factor from ln u to a gap, in elements.
        room: hits to process together.
    """

    spread: Spread
    model: FaultModel
    loop: kernels.Fault | None
    draws_in_loop: bool = False
    expected: float = 0.0
    gap_scale: float = 0.0
    room: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """How a site is struck while its setting and the form of its activation stay the same.

    Attributes:
        made_from: the facts that the plan depends on; None if it serves one strike only, because
            some of them may change unseen (tensors, a user's fault models).
        word: the word that stores the codes.
        limit: largest distance of a value from its code, in codes.
        layout: samples and elements of the activation.
        order: memory order of the values for the compiled loops; None if they cannot strike them.
        like: an array of the dtype of the values, for the compiled loops.
        parts: the faults, in the order in which they strike; empty at 0 %.
        floats: how a float word stands for a value; None for integers.
    """

    made_from: tuple[Any, ...] | None
    word: Word
    limit: Parameter
    layout: Layout
    order: kernels.Order | None
    like: Any
    parts: tuple[Part, ...]
    floats: FloatWord | None = None

    def to_codes(self, values: Tensor, scale: Parameter, zero_point: Parameter) -> Any:
        """The codes of values, and their distances; see `fxfault.faults.codes.to_codes`."""
        if self.floats is not None:
            return self.floats.to_codes(values, scale)
        return to_codes(values, scale, zero_point, self.word)

    def to_values(
        self, codes: Tensor, scale: Parameter, zero_point: Parameter, dtype: torch.dtype
    ) -> Tensor:
        """The values of codes; see `fxfault.faults.codes.to_values`."""
        if self.floats is not None:
            return self.floats.to_values(codes, scale, dtype)
        return to_values(codes, scale, zero_point, dtype, is_wide(self.word, dtype))


def plan_of(site: FaultSite, x: Any, batch: int) -> tuple[Plan, Parameter, Parameter]:
    """The plan for an activation: the site's last plan if it still holds, else a new one.

    Updates `site.seen` by what the activation shows.

    Args:
        site: the site.
        x: an `IntQuantTensor` of at least one element; if the site has float words, a
            `FloatQuantTensor` or a plain tensor.
        batch: samples in the forward.

    Returns:
        The plan, and the scale and the zero point as `one_number` returns them.

    Raises:
        SiteError: the dtype cannot hold the codes, or the word lacks bits that are struck.
    """
    if not isinstance(x, IntQuantTensor):
        return _plan_of_floats(site, x, batch)
    value, scale, zero_point, seen = x.value, x.scale, x.zero_point, site.seen
    seen.scale = scale.detach() if scale.requires_grad else scale
    seen.signed = signed = x.signed_t.item()
    # Nearly all are numbers on the CPU; `one_number` handles the rest.
    scale = scale.item() if scale.is_cpu and scale.numel() == 1 else one_number(scale)
    if zero_point.is_cpu and zero_point.numel() == 1:
        zero_point = zero_point.item()
    else:
        zero_point = one_number(zero_point)
    constant = site.quantiser.bit_width
    width = _learned_width(x) if constant is None else constant
    facts = (
        *(site.setting, seen.arrangement, batch, value.shape, value.stride()),
        *(value.dtype, value.device, signed, isinstance(scale, float)),
        zero_point if isinstance(zero_point, float) else None,
        width if isinstance(width, int) else None,
    )
    plan: Plan | None = site.caches.get("plan")
    if plan is None or plan.made_from != facts:
        plan = site.caches["plan"] = _made(site, x, facts, batch, width, scale, zero_point)
    seen.elements, seen.word_bits = plan.layout.elements, width
    seen.layout, seen.batch = plan.layout, batch
    return plan, scale, zero_point


def float_word_of(x: Any) -> tuple[FloatWord, Parameter]:
    """The float word of a `FloatQuantTensor` or a plain tensor, and the scale of its numbers."""
    found = float_words(x)
    return (IeeeWord(x.dtype), 1.0) if found is None else (found[0], one_number(found[1]))


def _plan_of_floats(site: FaultSite, x: Any, batch: int) -> tuple[Plan, Parameter, Parameter]:
    """`plan_of` for float words."""
    value, seen = plain(x), site.seen
    word, scale = float_word_of(x)
    if not word.fits(value.dtype):
        raise SiteError(f"site {site.name}: {value.dtype} does not hold the numbers of {word}")
    seen.scale = None if isinstance(x, Tensor) else x.scale.detach()
    seen.signed = "sign" in word.roles
    facts = (
        *(site.setting, seen.arrangement, batch, value.shape, value.stride()),
        *(value.dtype, value.device, word),
    )
    plan: Plan | None = site.caches.get("plan")
    if plan is None or plan.made_from != facts:
        lasting = all(is_ours(fault.model) for fault in site.faults)
        layout = site.layout_of(tuple(value.shape), batch)
        parts = _parts(site, word.word, layout, looping=False)
        limit, made_from = word.tolerance(value.dtype), facts if lasting else None
        plan = Plan(made_from, word.word, limit, layout, None, None, parts, word)
        site.caches["plan"] = plan
    seen.elements, seen.word_bits = plan.layout.elements, len(word.roles)
    seen.layout, seen.batch = plan.layout, batch
    return plan, scale, 0.0


def _made(
    site: FaultSite,
    x: Any,
    facts: tuple[Any, ...],
    batch: int,
    width: int | Tensor,
    scale: Parameter,
    zero_point: Parameter,
) -> Plan:
    """Make the plan for an activation; it lasts if all that it depends on is in the facts."""
    value, signed = x.value, x.signed_t.item()
    known = isinstance(width, int) and isinstance(zero_point, float)
    lasting = known and all(is_ours(fault.model) for fault in site.faults)
    word, limit = _word_and_limit(site, value.dtype, width, signed, zero_point)
    layout = site.layout_of(tuple(value.shape), batch)
    order = None if is_wide(word, value.dtype) else order_for_loops(value, scale, zero_point)
    parts = _parts(site, word, layout, order is not None)
    like = kernels.LIKE.get(str(value.dtype).removeprefix("torch."))
    return Plan(facts if lasting else None, word, limit, layout, order, like, parts)


def one_number(parameter: Tensor) -> Parameter:
    """A quantisation parameter as a number if it is one on the CPU, else as a tensor."""
    if parameter.numel() != 1:
        return parameter.detach()
    return parameter.item() if parameter.is_cpu else parameter.detach().reshape(())


def order_for_loops(values: Tensor, scale: Parameter, zero_point: Parameter) -> Any:
    """The memory order of values that the loops can strike; None if they cannot."""
    simple = isinstance(scale, float) and isinstance(zero_point, float) and kernels.HAVE_NUMBA
    if not simple or values.dtype not in _LOOP_TYPES or not values.is_cpu:
        return None
    if values.is_contiguous():
        return kernels.ROW_MAJOR
    if values.dim() > 2 and values.movedim(1, -1).is_contiguous():
        return kernels.Order(values.shape[1], values[0, 0].numel())
    return None


def _parts(site: FaultSite, word: Word, layout: Layout, looping: bool) -> tuple[Part, ...]:
    """The faults that strike a site, in order."""
    if not site.strikes:
        return ()
    known = word.bit_width if isinstance(word.bit_width, int) else None
    parts = []
    for fault in site.faults:
        spread = spread_of(site, fault, layout, known)
        _check_word(site, fault.model, word, spread.width)
        if fault.strikes:
            parts.append(_part(fault, spread, word, looping))
    return tuple(parts)


def _part(fault: SiteFault, spread: Spread, word: Word, looping: bool) -> Part:
    loop = fault_for_loops(fault.model, word) if looping else None
    if loop is None or not spread.by_element:
        return Part(spread, fault.model, loop)
    layout, probability = spread.layout, spread.probability
    return Part(
        spread,
        fault.model,
        loop,
        draws_in_loop=True,
        expected=layout.samples * layout.elements * probability,
        gap_scale=gap_scale(probability),
        room=room_for(layout, probability),
    )


def fault_for_loops(model: FaultModel, word: Word) -> kernels.Fault | None:
    """A fault model in the form of the compiled loops; None if they cannot apply it.

    Args:
        model: the fault model.
        word: a word of an int width.
    """
    if type(model) is RandomStrategy:
        return (kernels.UNIFORM, 0, 0)
    if isinstance(model, BitMaskModel) and type(model).corrupt is BitMaskModel.corrupt:
        keep, flip = model.masks(word)
        return (kernels.MASKS, int(keep), int(flip))
    if isinstance(model, BitModel) and _is_built_in(type(model)):
        return _fault_of_bits(model, word)
    return None


def _is_built_in(kind: type[BitModel]) -> bool:
    """Say whether a class leaves the methods alone that the loops replace."""
    return kind.corrupt is BitModel.corrupt and kind.corrupt_bits is BitModel.corrupt_bits


def _fault_of_bits(model: BitModel, word: Word) -> kernels.Fault:
    """A `BitModel` in the form of the compiled loops, for a word of an int width."""
    if model.is_drawn:
        return (_LOOP_EFFECTS[model.effect], model.span, int(model.places(word)))
    ones, struck = int(word.all_ones), model.span
    if model.effect == "flip":
        return (kernels.MASKS, ones, struck)
    return (kernels.MASKS, ones ^ struck, struck if model.effect == "set" else 0)


def _check_word(site: FaultSite, model: FaultModel, word: Word, drawn_bits: int) -> None:
    """Refuse a word that lacks bits to strike; off the CPU, `FaultSites.check` does it later.

    Args:
        site: the site.
        model: the fault model.
        word: the word that is struck.
        drawn_bits: bits of a word to draw from; 1 if elements are drawn.

    Raises:
        SiteError: the word has too few bits.
    """
    width = word.bit_width
    if isinstance(width, int):
        site.check_word(model, width)
        return
    fewest = getattr(model, "fewest_bits", 1)
    if fewest > 1:
        note_sound(site, width >= fewest)
    if drawn_bits > 1:
        note_sound(site, width == drawn_bits)


def note_sound(site: FaultSite, sound: Tensor) -> None:
    """Keep a verdict on the device until `FaultSites.check` reads it."""
    before = site.seen.sound
    site.seen.sound = sound if before is None else before.logical_and_(sound)


def _learned_width(x: Any) -> int | Tensor:
    """The bit width of this activation: a number on the CPU, a tensor elsewhere."""
    if x.bit_width.is_cpu:
        return round(x.bit_width.item())
    learned: Tensor = x.bit_width.detach().round().long().reshape(())
    return learned


def _is_sound(bit_width: int, dtype: torch.dtype) -> bool:
    """Whether a dtype tells the codes of a word that are not too large; see `to_codes`."""
    return dtype in _LOOP_TYPES and 1 <= bit_width <= MAX_BIT_WIDTH


def _word_and_limit(
    site: FaultSite,
    dtype: torch.dtype,
    bit_width: int | Tensor,
    signed: bool,
    zero_point: Parameter,
) -> tuple[Word, Parameter]:
    """The word of an activation, and the largest distance of a value from its code, in codes."""
    if isinstance(bit_width, int) and not (fits(bit_width, dtype) or _is_sound(bit_width, dtype)):
        raise SiteError(
            f"site {site.name}: {bit_width}-bit codes do not fit {dtype}; allowed: 1 to 32 "
            "bits in float32 and float64, 8 in bfloat16, 11 in float16; use a wider dtype"
        )
    word = Word(bit_width, signed, site.quantiser.narrow_range, site.quantiser.binary)
    limit = tolerance(dtype, zero_point, word)
    return word, limit.max() if isinstance(limit, Tensor) else limit
