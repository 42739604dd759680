"""Collects what a strike changed, for statistics, lists, and gradients that end at hits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.faults.codes import Parameter
from fxfault.faults.float_words import FloatWord
from fxfault.faults.sampling import Hits, Numbers
from fxfault.quantisers.quant_tensors import IntQuantTensor, plain
from fxfault.sites.settings import AT_ZERO
from fxfault.sites.site import FaultSite
from fxfault.strike.gradients import stopped_at
from fxfault.strike.moments import recomputing
from fxfault.strike.plan import Part, Plan, float_word_of, one_number
from fxfault.strike.records import Change, Records


def notes_of(x: Any, site: FaultSite, stopping: bool = False) -> Notes | None:
    """A collector for the changes of a strike; None if nobody asks for them.

    Args:
        x: an `IntQuantTensor` before the strike.
        site: the site.
        stopping: whether gradients end at hits.
    """
    asked = site.statistics is not None or site.recorder is not None
    recorded = asked and not recomputing() and _is_new(site)
    return Notes(x, site, recorded, stopping) if recorded or stopping else None


def _is_new(site: FaultSite) -> bool:
    """Whether the faults of a strike were not recorded yet: those of a memory stay for a trial."""
    if site.stored is None or site.setting is AT_ZERO:  # A measurement counts the strikes.
        return True
    clock = site.clock
    draw = (site.statistics, site.recorder, clock.passes, site.stream(), clock.stored_draw)
    if site.caches.get("recorded") == draw:
        return False
    site.caches["recorded"] = draw
    return True


class Notes:
    """Collects the changes of one strike, part by part."""

    def __init__(self, x: Any, site: FaultSite, recorded: bool, stopping: bool) -> None:
        """Start a collection.

        Args:
            x: an `IntQuantTensor` before the strike.
            site: the site.
            recorded: whether the site's statistics and its recorder want the changes.
            stopping: whether gradients end at hits.
        """
        self._value, self._site, self._stopping = plain(x), site, stopping
        self._sums: Sums | None = None
        if recorded and site.statistics is not None:
            self._sums = Sums(x, site, site.statistics.cosine)
        self._recorded = recorded
        self._records: Records | None = None
        self._hits: list[Hits] = []
        self._changes: list[Change] = []

    def begin(
        self, plan: Plan, quantiser: tuple[Parameter, ...], call: int, numbers: Numbers
    ) -> None:
        """Take the facts of the strike that the list of hits needs.

        Args:
            plan: the plan of the site.
            quantiser: scale and zero point first.
            call: which call of the site in its forward this is.
            numbers: the numbers of the samples.
        """
        if self._recorded and self._site.recorder is not None:
            shape, dtype = self._value.shape, self._value.dtype
            self._records = Records(self._site, plan, quantiser, call, numbers, shape, dtype)

    def add(self, part: Part, change: Change) -> None:
        """Add a part of the changes, by one fault of the plan."""
        if self._records is not None:
            self._records.add(part, change)
        if self._sums is not None and len(self._site.faults) > 1:
            self._changes.append(change)  # Two faults may hit the same element.
        elif self._sums is not None:
            self._sums.add(change)
        if self._stopping:
            self._hits.append(change.hits)

    def finish(self) -> None:
        """Hand the changes to the site's statistics."""
        if self._sums is None:
            return
        if self._changes:
            self._sums.add(merged(self._changes))
        self._sums.record(self._site)

    @property
    def stopped(self) -> tuple[Tensor, Tensor] | None:
        """Positions where gradients end; see `fxfault.strike.gradients.Struck`."""
        return stopped_at(self._hits, self._value) if self._hits else None


def merged(parts: list[Change]) -> Change:
    """Merge the changes of several faults, from the first code of an element to its last.

    An element that two faults of one forward hit counts as one hit.

    Args:
        parts: at least one change, in the order of the strikes.

    Returns:
        As many entries as the parts have; those that are `real` hold the merged changes.
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
    """The sums behind the statistics of one forward; exact, in float64.

    The numbers that a float word stands for take the place of codes. Infinities and NaN that faults
    make are counted, and left out of the other sums.

    With clean codes c and changes d, the sum of (c + d)² over all elements is
    Σc² + 2Σcd + Σd², and d is 0 except at hits.
    """

    def __init__(self, x: Any, site: FaultSite, cosine: bool) -> None:
        """Read the activation before the strike, if the cosine similarity is measured."""
        value = plain(x)
        self.elements = value.numel()
        self.floats = None if isinstance(x, IntQuantTensor) else float_word_of(x, site)[0]
        self.clean_square = None
        if cosine:
            self.clean_square = (
                _sum_of_squares(x) if self.floats is None else _square_of_numbers(x, site)
            )
        zero = torch.zeros((), dtype=torch.float64, device=value.device)
        self.injected, self.product, self.change_square = zero, zero, zero
        self.nonfinite = zero

    def add(self, part: Change) -> None:
        """Add a part of the changes."""
        hits, codes, corrupted = part
        if self.floats is not None:
            codes, corrupted = self._numbers(self.floats, part)
        change = (corrupted - codes).double()
        if hits.real is None:
            self.injected = self.injected + codes.numel()
        else:
            change = change * hits.real
            self.injected = self.injected + hits.real.sum()
        self.product = self.product + torch.dot(codes.double(), change)
        self.change_square = self.change_square + torch.dot(change, change)

    def _numbers(self, floats: FloatWord, part: Change) -> tuple[Tensor, Tensor]:
        """The numbers before and after the faults; where one is not finite, 0 and 0."""
        before, after = (floats.numbers(codes).double() for codes in part[1:])
        arisen = before.isfinite() & ~after.isfinite() & _real(part.hits)
        self.nonfinite = self.nonfinite + arisen.sum()
        both = before.isfinite() & after.isfinite()
        return torch.where(both, before, 0.0), torch.where(both, after, 0.0)

    def record(self, site: FaultSite) -> None:
        """Add the forward to the statistics of a site."""
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
            nonfinite=None if self.floats is None else self.nonfinite,
        )


def _square_of_numbers(x: Any, site: FaultSite) -> Tensor:
    """Sum of the squares of all finite numbers that a float tensor holds."""
    value, scale = plain(x).detach().double(), float_word_of(x, site)[1]
    return (value / scale).nan_to_num(0.0, 0.0, 0.0).square().sum()


def _sum_of_squares(x: Any) -> Tensor:
    """Sum of code² over the whole activation.

    With one scale and no zero point, the values are read once and not converted to codes; their
    rounding errors of 2**-24 stay below what the statistics show. A 16-bit float has too few
    digits for that, and a zero point leaves a remainder even if all codes are 0.
    """
    value = x.value.detach()
    scale, zero_point = one_number(x.scale), one_number(x.zero_point)
    short = value.dtype in (torch.float16, torch.bfloat16)
    if not short and isinstance(scale, float) and zero_point == 0:
        length = torch.linalg.vector_norm(value, dtype=torch.float64)
        return (length / scale).square().round()
    if short:
        value, scale = value.float(), x.scale.detach().float()
    codes = value / scale
    codes = codes.add_(zero_point).round_()
    return torch.linalg.vector_norm(codes, dtype=torch.float64).square().round()
