"""What the sites of a model showed in each batch of a pass, by which struck samples are counted.

Samples may differ in shape from batch to batch: images of several sizes, token sequences padded to
the longest of their batch. A sample is struck or not by the number of its own elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxfault.evaluation.full.predictions import OnBatch
from fxfault.evaluation.full.struck import samples_hit_anywhere
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.site import Extent, FaultSite


@dataclass(frozen=True)
class _Seen:
    """What one site showed in a batch; equal for batches that differ in their size alone.

    Attributes:
        elements: elements of one sample, or of the batch; None if the batch did not reach the site.
        layout: how they lie, written for one sample if each sample has a share.
        by_samples: whether each sample has one.
        extent: what `num_faults` is spread over.
        calls: how often a container called the site.
    """

    elements: int | None
    layout: Layout | None
    by_samples: bool
    extent: Extent | None
    calls: int

    @classmethod
    def of(cls, site: FaultSite) -> _Seen:
        """Note what a site shows now."""
        seen, layout = site.seen, site.seen.layout
        if seen.elements is None or layout is None:
            return cls(seen.elements, None, True, seen.extent, site._calls[1])
        by_samples = layout.samples == seen.batch
        layout = replace(layout, samples=1) if by_samples else layout
        return cls(seen.elements, layout, by_samples, seen.extent, site._calls[1])

    def show(self, site: FaultSite, samples: int) -> None:
        """Let a site show this again, as for a batch of so many samples."""
        seen, layout = site.seen, self.layout
        if layout is not None and self.by_samples:
            layout = replace(layout, samples=samples)
        seen.elements, seen.extent = self.elements, self.extent
        seen.layout, seen.batch = layout, samples
        site._calls = (site._calls[0], self.calls)


class SeenByBatch:
    """Notes what sites show while the batches of a pass run."""

    def __init__(self, model: nn.Module) -> None:
        """Take a transformed model; the words of its weights are the same in each batch."""
        self._model = model
        self._sites = [site for site in faults_of(model) if site.stored is None]
        self._batches: list[tuple[_Seen, ...]] = []

    @contextmanager
    def noting(self, on_batch: OnBatch | None) -> Iterator[OnBatch]:
        """Note each batch that the block runs.

        Afterwards, a site that the last batch did not reach shows what it did before.

        Yields:
            A function that the block calls after each batch, as it would call `on_batch`.
        """
        last = [site.seen.elements for site in self._sites]

        def note(samples: int) -> None:
            self._batches.append(tuple(map(_Seen.of, self._sites)))
            for number, site in enumerate(self._sites):
                if site.seen.elements is not None:
                    last[number], site.seen.elements = site.seen.elements, None
            if on_batch is not None:
                on_batch(samples)

        for site in self._sites:
            site.seen.elements = None
        try:
            yield note
        finally:
            for site, elements in zip(self._sites, last, strict=True):
                if site.seen.elements is None:
                    site.seen.elements = elements

    def samples_hit(self, numbers: Tensor, sizes: Sequence[int]) -> Tensor:
        """Which samples any site hit, as the sites are set now; bool, shape (samples,).

        Args:
            numbers: numbers of the samples, int64, shape (samples,).
            sizes: number of samples in each batch.
        """
        alike: dict[tuple[_Seen, ...], list[int]] = {}
        for batch, seen in enumerate(self._batches):
            alike.setdefault(seen, []).append(batch)
        before = [(_Seen.of(site), site.seen.batch or 1) for site in self._sites]
        parts = numbers.split(list(sizes))
        hit: dict[int, Tensor] = {}
        try:
            for shown, batches in alike.items():
                some = [sizes[batch] for batch in batches]
                for site, own in zip(self._sites, shown, strict=True):
                    own.show(site, some[-1])
                these = torch.cat([parts[batch] for batch in batches])
                found = samples_hit_anywhere(self._model, these, some)
                hit.update(zip(batches, found.split(some), strict=True))
        finally:
            for site, (own, samples) in zip(self._sites, before, strict=True):
                own.show(site, samples)
        return torch.cat([hit[batch] for batch in range(len(sizes))])
