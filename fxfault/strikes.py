"""One strike: the faults of one forward at one site, written into its activation.

Only the elements that are hit are read, converted, corrupted and written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from fxfault import kernels
from fxfault.codes import Parameter, Word, fits, to_codes, to_values, tolerance
from fxfault.contracts import checked, is_checked
from fxfault.errors import SiteError
from fxfault.fault_models import BitMaskModel, BitModel, FaultModel, RandomStrategy
from fxfault.random_numbers import rehash
from fxfault.sampling import Hits
from fxfault.site import FaultSite, why_no_codes

if TYPE_CHECKING:
    import numpy.typing as npt

_NOTHING = np.empty((3, 0), np.int64)
_LOOP_TYPES = (torch.float32, torch.float64)
_LOOP_EFFECTS = {"flip": kernels.FLIP, "clear": kernels.CLEAR, "set": kernels.SET}


class Change(NamedTuple):
    """What happened to some of the elements that were hit.

    Attributes:
        hits: the elements; their `bits` are missing where a loop has used them.
        codes: before the fault, int64, one for each.
        corrupted: after it.
    """

    hits: Hits
    codes: Tensor
    corrupted: Tensor


class Strike:
    """What one forward at one site needs to know to strike, read once."""

    def __init__(self, x: Any, site: FaultSite) -> None:
        """Read the quantisation parameters of an activation.

        Args:
            x: IntQuantTensor; its values are not read.
            site: the place.

        Raises:
            SiteError: the dtype cannot hold the codes.
        """
        self.site = site
        self.scale = _one_number(x.scale)
        self.zero_point = _one_number(x.zero_point)
        bit_width = site.word_bits = _bit_width(x, site)
        self.word, self.limit = _word_and_limit(
            site, x.value.dtype, bit_width, x.signed, self.zero_point
        )

    def takes_loop(self, values: Tensor) -> bool:
        """Whether the compiled loops can strike these values, if they know the fault model."""
        simple = isinstance(self.scale, float) and isinstance(self.zero_point, float)
        if not simple or values.dtype not in _LOOP_TYPES or not values.is_cpu:
            return False
        return values.is_contiguous() or _channels_last(values).is_contiguous()

    @property
    def _quantiser(self) -> tuple[float, float, float]:
        """Scale, zero point and limit, which `takes_loop` has seen to be numbers."""
        return self.scale, self.zero_point, self.limit  # type: ignore[return-value]

    def fault_of(self, model: FaultModel) -> kernels.Fault | None:
        """What a fault model does, as the loops take it; None if they do not know it."""
        if type(model) is RandomStrategy:
            return (kernels.UNIFORM, 0, 0)
        if isinstance(model, BitMaskModel) and type(model).corrupt is BitMaskModel.corrupt:
            keep, flip = model.masks(self.word)
            return (kernels.MASKS, int(keep), int(flip))
        if isinstance(model, BitModel) and _is_built_in(type(model)):
            return _fault_of_bits(model, self.word)
        return None

    def check(self, model: FaultModel, drawn_bits: int) -> None:
        """Refuse a word of other bits than are struck; off the CPU see `FaultSites.check`.

        Args:
            model: strikes it.
            drawn_bits: so many bits are drawn from; 1 where elements are.

        Raises:
            SiteError: the word has too few.
        """
        width = self.word.bit_width
        if isinstance(width, int):
            self.site.check_word(model, width)
            return
        fewest = getattr(model, "fewest_bits", 1)
        if fewest > 1:
            _note(self.site, width >= fewest)
        if drawn_bits > 1:
            _note(self.site, width == drawn_bits)

    def by_loop(
        self, values: Tensor, fault: kernels.Fault, stream: kernels.Stream, room: int
    ) -> Iterator[Change]:
        """Draw and strike in one loop, which `takes_loop` must have allowed.

        Args:
            values: any shape; changed in place.
            fault: of `fault_of`.
            stream: where the hits come from.
            room: how many changes to give at a time; 0 gives none, which is faster.

        Raises:
            SiteError: a value is no code.
        """
        flat, order = _as_in_memory(values)
        given = (*order, *stream, *self._quantiser, self.word.for_loops, *fault)
        place = kernels.START
        while place[0] < len(stream.numbers):
            record = np.empty((3, room), np.int64) if room else _NOTHING
            count, wrong, place = kernels.strike(flat, *given, *place, record)
            if wrong:
                self._refuse(wrong, count)
            if room and count:
                index, codes, corrupted = torch.from_numpy(record[:, :count])
                yield Change(Hits(index), codes, corrupted)

    def at_by_loop(self, values: Tensor, fault: kernels.Fault, hits: Hits) -> Change:
        """Strike hits that are drawn already, where `takes_loop` allows it.

        Args:
            values: any shape; changed in place.
            fault: of `fault_of`.
            hits: at least one, of no fixed size.

        Raises:
            SiteError: a value is no code.
        """
        bits = hits.bits
        if hits.struck is not None:
            bits, fault = hits.struck, (fault[0], 0, 0)
        assert bits is not None
        record = np.empty((2, hits.index.numel()), np.int64)
        flat, order = _as_in_memory(values)
        wrong = kernels.strike_at(
            flat,
            tuple(order),
            hits.index.numpy(),
            bits.numpy(),
            self._quantiser,
            self.word.for_loops,
            fault,
            record,
        )
        if wrong:
            self._refuse(wrong, record.shape[1])
        codes, corrupted = torch.from_numpy(record)
        return Change(hits, codes, corrupted)

    def write(self, values: Tensor, hits: Hits, model: FaultModel) -> Change:
        """Corrupt the values that are hit, in place: on any device, with any fault model.

        Args:
            values: any shape, dtype and memory format; an element is in the hits of one call only.
            hits: at least one.
            model: what a hit does.

        Raises:
            SiteError: a value is no code (on the CPU; elsewhere see `FaultSites.check`).
        """
        scale, zero_point = (
            _at(parameter, values, hits.index) for parameter in (self.scale, self.zero_point)
        )
        original = read(values, hits.index)
        codes, distance = to_codes(original, scale, zero_point, self.word)
        self._check(distance, hits)

        def draw(stream: int) -> Tensor:
            assert hits.bits is not None
            return rehash(hits.bits, stream)

        def corrupt() -> Tensor:
            if hits.struck is None:
                return model.corrupt(codes, self.word, draw)
            assert isinstance(model, BitModel)
            return model.corrupt_bits(codes, self.word, hits.struck)

        if is_checked(self.site, model):
            corrupted = corrupt()
        else:
            corrupted = checked(self.site, model, codes, self.word, corrupt)
        if hits.writes is not None:
            corrupted = torch.where(hits.writes, corrupted, codes)
        faulty = to_values(corrupted, scale, zero_point, values.dtype)
        # What a fault leaves as it was keeps its bits, a -0.0 too.
        write(values, hits.index, torch.where(corrupted == codes, original, faulty))
        return Change(hits, codes, corrupted)

    def _check(self, distance: Tensor, hits: Hits) -> None:
        """Refuse values that are no codes, and draws that did not span a sample.

        On the CPU at once. Elsewhere looking would wait for the device, so the verdict is
        kept there until somebody asks for it (`FaultSites.check`).
        """
        if _must_not_wait(distance):
            sound = (distance <= self.limit).all()
            _note(self.site, sound if hits.complete is None else sound & hits.complete)
        elif not distance.max() <= self.limit:  # So that a NaN is refused.
            self._refuse(int((~(distance <= self.limit)).sum()), distance.numel())

    def _refuse(self, wrong: int, count: int) -> NoReturn:
        raise SiteError(
            f"site {self.site.name}: {wrong} of {count} values that were to be hit "
            + why_no_codes(self.site)
        )


def _channels_last(values: Tensor) -> Tensor:
    """The values with the channel as the last dimension, where there is one."""
    return values.movedim(1, -1) if values.dim() > 2 else values


def _as_in_memory(values: Tensor) -> tuple[npt.NDArray[Any], kernels.Order]:
    """The memory of values that `takes_loop` has allowed, and what lies where."""
    order = kernels.ROW_MAJOR
    if not values.is_contiguous():
        values = _channels_last(values)
        order = kernels.Order(values.shape[-1], values[0, ..., 0].numel())
    return values.numpy().reshape(-1), order


def _is_built_in(kind: type[BitModel]) -> bool:
    """Whether a class does what the loops do, and no more."""
    return kind.corrupt is BitModel.corrupt and kind.corrupt_bits is BitModel.corrupt_bits


def _fault_of_bits(model: BitModel, word: Word) -> kernels.Fault:
    """What it does to the bits of a word whose width is an int, as the loops take it."""
    if model.is_drawn:
        return (_LOOP_EFFECTS[model.effect], model.span, int(model.places(word)))
    ones, struck = int(word.all_ones), model.span
    if model.effect == "flip":
        return (kernels.MASKS, ones, struck)
    return (kernels.MASKS, ones ^ struck, struck if model.effect == "set" else 0)


def _must_not_wait(tensor: Tensor) -> bool:
    """Whether the host would wait for a device to see what a tensor holds."""
    return not tensor.is_cpu


def _note(site: FaultSite, sound: Tensor) -> None:
    """Keep on the device whether all was sound, which `FaultSites.check` looks at."""
    site.sound = sound if site.sound is None else site.sound.logical_and_(sound)


def merged(parts: list[Change]) -> Change:
    """Give the changes of several faults as one, from the first code of an element to its last.

    Two faults of one forward may hit the same element; it is one hit then.

    Args:
        parts: in the order in which they struck; at least one.

    Returns:
        One entry for each of the parts', of which those that are `real` say it all.
    """
    index = torch.cat([part.hits.index for part in parts])
    codes = torch.cat([part.codes for part in parts])
    change = torch.cat([part.corrupted for part in parts]) - codes
    real = torch.cat([_real(part.hits) for part in parts])
    index, order = index.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    group = first.cumsum(0) - 1

    def total(of_each: Tensor) -> Tensor:
        return torch.zeros_like(of_each).scatter_add_(0, group, of_each)

    before = total(codes[order] * first)
    after = before + total((change * real)[order])
    hit = total(real[order].long()) > 0
    return Change(Hits(index, real=hit), before, after)


def _real(hits: Hits) -> Tensor:
    return torch.ones_like(hits.index, dtype=torch.bool) if hits.real is None else hits.real


class Sums:
    """What the statistics of one forward are made of; exact, in float64.

    With the clean codes c and their change d, the sum over all elements of (c + d)² is
    Σc² + 2Σcd + Σd², and only the hits have a d.
    """

    def __init__(self, x: Any, cosine: bool) -> None:
        """Read the activation, before it is struck, if cosine similarity is measured."""
        self.elements = x.value.numel()
        self.clean_square = _sum_of_squares(x) if cosine else None
        zero = torch.zeros((), dtype=torch.float64, device=x.value.device)
        self.injected, self.product, self.change_square = zero, zero, zero

    def add(self, part: Change) -> None:
        """Add a part of the hits and their codes before and after."""
        hits, codes, corrupted = part
        change = (corrupted - codes).double()
        if hits.real is None:
            self.injected = self.injected + codes.numel()
        else:
            change = change * hits.real
            self.injected = self.injected + hits.real.sum()
        self.product = self.product + torch.dot(codes.double(), change)
        self.change_square = self.change_square + torch.dot(change, change)

    def record(self, site: FaultSite) -> None:
        """Add one forward to the statistics of a site."""
        assert site.statistics is not None
        clean, squares = self.clean_square, None
        if clean is not None:
            faulty = clean + 2 * self.product + self.change_square
            squares = (clean, faulty, clean + self.product)
        site.statistics.record_sums(
            site.index,
            elements=self.elements,
            injected=self.injected,
            squared_change=self.change_square,
            squares=squares,
        )


def _sum_of_squares(x: Any) -> Tensor:
    """Sum of code² over the whole activation.

    Where codes are values by one factor, the values are read once and nothing is made of
    them; their roundings, of 2**-24 each, stay below what the statistics show. A 16-bit
    float has too few digits for that, and a zero point leaves a rest where all codes are 0.
    """
    value = x.value.detach()
    scale, zero_point = _one_number(x.scale), _one_number(x.zero_point)
    short = value.dtype in (torch.float16, torch.bfloat16)
    if not short and isinstance(scale, float) and zero_point == 0:
        length = torch.linalg.vector_norm(value, dtype=torch.float64)
        return (length / scale).square().round()
    if short:
        value, scale = value.float(), x.scale.detach().float()
    codes = value / scale
    codes = codes.add_(zero_point).round_()
    return torch.linalg.vector_norm(codes, dtype=torch.float64).square().round()


def _bit_width(x: Any, site: FaultSite) -> int | Tensor:
    """The bit width of this activation. Reading a learned one costs nothing on the CPU."""
    if site.quantiser.bit_width is not None:
        return site.quantiser.bit_width
    if x.bit_width.is_cpu:
        return round(x.bit_width.item())
    learned: Tensor = x.bit_width.round().long().reshape(())
    return learned


def _word_and_limit(site: FaultSite, *facts: Any) -> tuple[Word, Parameter]:
    """The word of an activation and how far from a code a value may lie, kept for the next time.

    Args:
        site: the place.
        facts: dtype, bit width, signedness and zero point.
    """
    if any(isinstance(fact, Tensor) for fact in facts):
        return _find_word_and_limit(site, *facts)
    kept = site._cache.get("word")
    if kept is None or kept[0] != facts:
        kept = site._cache["word"] = (facts, _find_word_and_limit(site, *facts))
    found: tuple[Word, Parameter] = kept[1]
    return found


def _find_word_and_limit(
    site: FaultSite,
    dtype: torch.dtype,
    bit_width: int | Tensor,
    signed: bool,
    zero_point: Parameter,
) -> tuple[Word, Parameter]:
    if isinstance(bit_width, int) and not fits(bit_width, dtype):
        raise SiteError(
            f"site {site.name}: {bit_width}-bit codes do not fit {dtype}; allowed: 1 to 32 "
            "bits that the dtype holds exactly (bfloat16 8, float16 11, float32 24); use a wider "
            "dtype"
        )
    word = Word(bit_width, signed, site.quantiser.narrow_range, site.quantiser.binary)
    limit = tolerance(dtype, zero_point, word)
    return word, limit.max() if isinstance(limit, Tensor) else limit


def _one_number(parameter: Tensor) -> Parameter:
    """A quantisation parameter as a number where it is one and no device must be waited for."""
    if parameter.numel() != 1:
        return parameter.detach()
    return parameter.item() if parameter.is_cpu else parameter.detach().reshape(())


def _at(parameter: Parameter, values: Tensor, index: Tensor) -> Parameter:
    """A quantisation parameter at some elements: one number, or one for each of them."""
    if isinstance(parameter, Tensor) and parameter.dim() > 0:
        return parameter.expand(values.shape).take(index)
    return parameter


def read(values: Tensor, index: Tensor) -> Tensor:
    """`values.take(index)`, which is five times faster on a view where there is one."""
    if values.is_contiguous():
        return values.view(-1).index_select(0, index)
    return values.take(index)


def write(values: Tensor, index: Tensor, new: Tensor) -> None:
    """`values.put_(index, new)`, which is twice as fast on a view where there is one."""
    if values.is_contiguous():
        values.view(-1).scatter_(0, index, new)
    else:
        values.put_(index, new)
