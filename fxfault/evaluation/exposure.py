"""Count the elements that a trial exposes to faults, and those that it hits.

An incremental evaluation never sees whole activations; statistics that count in them would make it
run in full. But the seed, the trial, the site and the sample number alone decide which elements
are hit, so that hits can be counted without an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fxfault.data.batches import Batch
from fxfault.evaluation.full.model_state import recording
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.measuring import run_without_faults
from fxfault.sites.site import FaultSite
from fxfault.sites.statistics import FaultStatistics
from fxfault.strike.draws import elements_hit, samples_hit


class Exposure:
    """Counts elements and hits of evaluations of a model on one set of data.

    Attributes:
        elements: number of elements of one sample at each site, by name; None if samples differ.
            That of a weight or bias is exposed once, and not by each sample.
        never_called: names of the sites that no batch reaches.
    """

    def __init__(
        self,
        faults: FaultSites,
        first: Batch,
        samples: int,
        others: Iterable[Batch] = (),
        alike: bool = True,
    ) -> None:
        """Measure how many elements each site has, and whether it is called at all.

        Args:
            faults: the sites of the model.
            first: a batch, on the device of the model.
            samples: number of samples of all data.
            others: the other batches, which run until each site was called.
            alike: whether all samples have the shape of those in the first batch; if not, what is
                exposed is counted while trials run.
        """
        self.faults, self.samples = faults, samples
        faults.measure_extents(*first.inputs, **first.keywords)
        seen = _elements_of(faults, first)
        # None if the activation does not belong to samples, or a container may call the site
        # several times.
        self.elements = {
            site.name: site.elements
            if (alike or site.stored is not None)
            and _is_regular(site, seen[site.index], first.samples)
            else None
            for site in faults
        }
        quiet = {site.name for site in faults if not seen[site.index]}
        batches = iter(others)
        while quiet and (batch := next(batches, None)) is not None:
            seen = _elements_of(faults, batch)
            quiet = {name for name in quiet if not seen[faults[name].index]}
        self.never_called = tuple(site.name for site in faults if site.name in quiet)
        self.elements.update(dict.fromkeys(self.never_called, 0))

    def check(self) -> None:
        """Check that each sample has as many elements as `num_faults` or a list asks for.

        Raises:
            SiteError: it has fewer.
        """
        for site in self.faults:
            for given in (fault.given for fault in site.faults):
                if given is not None and site.seen.layout is not None:
                    given.check(site.seen.layout.sample_shape)
            elements = self.elements[site.name]
            counted = any(fault.num_faults is not None for fault in site.faults)
            if counted and site.armed and elements:
                samples_hit(site, range(1), Layout(1, 1, (elements,)))

    def measured(self, run: Callable[[], Any]) -> tuple[Any, int, int]:
        """Run an evaluation and count.

        Args:
            run: evaluates the model on all data with the present settings of its sites, and
                returns a result with `hits`.

        Returns:
            The result, the number of hit elements, and the number of exposed elements.
        """
        exposed = [site for site in self.faults if site.armed and self.elements[site.name] != 0]
        irregular = [site for site in exposed if self.elements[site.name] is None]
        statistics = self.faults.statistics
        if statistics is None and not all(site.strikes for site in irregular):
            # Nothing hits such a site, so an incremental evaluation may not come by.
            statistics = FaultStatistics(len(self.faults), self.faults.names, cosine=False)
        if statistics is not None:
            hits, elements = statistics.total_injections, statistics.total_activations
            with recording(self.faults, statistics):
                result = run()
            hits = statistics.total_injections - hits
            return result, hits, statistics.total_activations - elements
        result = run()
        counts = [result.hits.of(site) for site in irregular]
        counts += [
            (self._hits(site), self._exposed(site)) for site in exposed if site not in irregular
        ]
        return result, sum(hits for hits, _ in counts), sum(elements for _, elements in counts)

    def _exposed(self, site: FaultSite) -> int:
        elements = self.elements[site.name] or 0
        return elements if site.stored is not None else elements * self.samples

    def _hits(self, site: FaultSite) -> int:
        elements = self.elements[site.name]
        assert elements is not None
        return elements_hit(site, range(self.samples), Layout(1, 1, (elements,)))


def _is_regular(site: FaultSite, seen: int, batch: int) -> bool:
    """Whether each sample, or each trial of a memory, has the elements of the site's last call."""
    if site.stored is not None:
        return seen > 0
    by_samples = site.seen.arrangement is None or site.seen.arrangement.why_batch is None
    return bool(
        site.elements and seen == site.elements * batch and not site.counts_calls and by_samples
    )


def _elements_of(faults: FaultSites, batch: Batch) -> list[int]:
    """The number of elements of each site in a fault-free forward of one batch."""
    statistics = run_without_faults(faults, batch.inputs, batch.keywords)
    return [statistics.layer_stats[site.index].total_activations for site in faults]
