"""Which samples and elements an evaluation hit, without a look at its activations.

Seed, trial, site, number of the call and number of the sample determine which of so many elements
are hit. So it is enough to note the calls of each site in each batch, and how many elements each
call had. Samples may differ in shape from batch to batch. Python code may call a site more often
for some batches than for others, and with other sizes (a head for several scales).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxfault.evaluation.full.model_state import in_eval_mode
from fxfault.evaluation.full.predictions import OnBatch
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.site import Extent, FaultSite
from fxfault.strike.draws import elements_hit, samples_hit


@dataclass(frozen=True)
class _Seen:
    """What one site showed in a batch; equal for batches that differ in their size alone.

    Attributes:
        calls: of each armed call the number, the elements of one sample (or of the batch, if the
            activation belongs to it), and whether each sample has as many.
        extent: what `num_faults` is spread over.
    """

    calls: tuple[tuple[int, int, bool], ...]
    extent: Extent | None

    @classmethod
    def of(cls, site: FaultSite) -> _Seen:
        """Note what a site showed since its calls were cleared."""
        seen, samples = site.seen, site.seen.batch or 1
        calls = [(n, x.elements, x.samples == samples) for n, x in sorted(seen.calls.items())]
        return cls(tuple(calls), seen.extent)


class HitsByBatch:
    """Notes the calls of sites while the batches of an evaluation run, and counts from them."""

    def __init__(self, model: nn.Module) -> None:
        """Take a transformed model; the words of its weights are the same in each batch."""
        self._model = model
        self._sites = [site for site in faults_of(model) if site.stored is None]
        self._seen: dict[tuple[_Seen, ...], list[int]] = {}
        self._passed: dict[FaultSite, int] = {}
        self._numbers = torch.zeros(0, dtype=torch.int64)
        self._sizes: Sequence[int] = ()

    def clear(self) -> None:
        """Forget the calls of a forward that comes to nothing, or of one before the first batch."""
        for site in self._sites:
            site.seen.calls = {}

    def note(self, batch: int) -> None:
        """Note the calls of the forward of a batch, which has just ended."""
        self._seen.setdefault(tuple(map(_Seen.of, self._sites)), []).append(batch)
        self.clear()

    def following(self, on_batch: OnBatch | None) -> OnBatch:
        """Make a function to call after each batch in place of `on_batch`, which notes it."""
        self.clear()
        done = 0

        def noted(samples: int) -> None:
            nonlocal done
            self.note(done)
            done += 1
            if on_batch is not None:
                on_batch(samples)

        return noted

    def pass_over(self, exposed: Iterable[tuple[FaultSite, int]]) -> None:
        """Count elements at sites that no forward reached, as nothing there was hit.

        Args:
            exposed: sites that are armed there, and the number of their elements.
        """
        for site, elements in exposed:
            self._passed[site] = self._passed.get(site, 0) + elements

    def close(self, numbers: Tensor, sizes: Sequence[int]) -> HitsByBatch:
        """End the evaluation.

        Args:
            numbers: numbers of all samples, int64, shape (samples,).
            sizes: number of samples in each batch; nothing was hit in those that were not noted.
        """
        self._numbers, self._sizes = numbers, sizes
        return self

    def samples(self) -> Tensor:
        """See `fxfault.evaluation.full.hits.Hits.samples`."""
        hit = torch.zeros(len(self._numbers), dtype=torch.bool)
        with in_eval_mode(self._model):
            for site in faults_of(self._model):
                if site.stored is None:
                    for draw in self._draws(site):
                        hit[draw.places] |= draw.samples_hit()
                elif site.armed and site.strikes:
                    hit |= samples_hit(site, self._numbers, site.stored.layout)
        return hit

    def of(self, site: FaultSite) -> tuple[int, int]:
        """See `fxfault.evaluation.full.hits.Hits.of`; not for weights and biases."""
        hits, elements = 0, self._passed.get(site, 0)
        with in_eval_mode(self._model):
            for draw in self._draws(site):
                hits += draw.elements_hit()
                elements += draw.layout.elements * len(draw.numbers)
        return hits, elements

    def _draws(self, site: FaultSite) -> Iterator[_Draw]:
        """The calls of a site in this evaluation, those of alike batches together."""
        parts = self._numbers.split(list(self._sizes))
        rows = torch.arange(len(self._numbers)).split(list(self._sizes))
        number, before = self._sites.index(site), [one.seen.extent for one in self._sites]
        try:
            for seen, batches in self._seen.items():
                self._show([one.extent for one in seen])  # `num_faults` may be over all sites.
                places = torch.cat([rows[batch] for batch in batches])
                for call, elements, by_samples in seen[number].calls:
                    numbers, each = self._numbers[places], None
                    if not by_samples:  # It has one draw, by the number of the first sample.
                        numbers = torch.cat([parts[batch][:1] for batch in batches])
                        each = torch.tensor([len(parts[batch]) for batch in batches])
                    yield _Draw(site, call, numbers, Layout(1, 1, (elements,)), places, each)
        finally:
            self._show(before)

    def _show(self, extents: Iterable[Extent | None]) -> None:
        for site, extent in zip(self._sites, extents, strict=True):
            site.seen.extent = extent


@dataclass(frozen=True)
class _Draw:
    """The faults of one call of a site in batches that are alike.

    Attributes:
        site: the site.
        call: number of the call in its forward.
        numbers: the number of a sample for each draw, int64.
        layout: elements of one draw.
        places: places of the samples in the data, int64.
        each: how many samples share each draw, int64; None if each has its own.
    """

    site: FaultSite
    call: int
    numbers: Tensor
    layout: Layout
    places: Tensor
    each: Tensor | None

    @property
    def _drawn(self) -> tuple[FaultSite, Tensor, Layout, int, int]:
        name = self.site.name if self.call == 1 else f"{self.site.name}#{self.call}"
        return self.site, self.numbers, self.layout, self.site.clock.stream(name), self.call

    def samples_hit(self) -> Tensor:
        """Whether each sample is hit, bool; all are if hardware units are broken in Python code."""
        if self.site.counts_calls and self.site.setting.hw_units is not None:
            return torch.ones(len(self.places), dtype=torch.bool)
        hit = samples_hit(*self._drawn)
        return hit if self.each is None else hit.repeat_interleave(self.each)

    def elements_hit(self) -> int:
        """How many elements are hit."""
        return elements_hit(*self._drawn)
