"""The content of a store of trials, with estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fxfault.campaign.estimates.cell_states import states
from fxfault.campaign.estimates.ranking import RankedSite, heat_map, never_called, rank_sites
from fxfault.campaign.estimates.repeats import Distinct, without_repeats
from fxfault.campaign.estimates.site_counts import SiteCounts, count_by_site
from fxfault.campaign.estimates.summary import Summary, Table, summarise
from fxfault.campaign.records.background import Background
from fxfault.campaign.records.store import Store
from fxfault.campaign.studies.study import Study
from fxfault.evaluation.chance import no_better_than_chance
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.reports.verdict import Verdict, verdict


@dataclass(frozen=True)
class Findings:
    """The content of a store: a row of the table for each trial, with estimates for each cell."""

    path: Path
    study: Study
    fingerprint: Mapping[str, Any]
    table: Table
    summary: Summary
    states: Sequence[str]
    background: Background

    @property
    def trials(self) -> int:
        """Number of finished trials."""
        return int(self.summary.trials.sum())

    @cached_property
    def site_counts(self) -> dict[str, SiteCounts]:
        """Counts of the trials that struck one site alone, by its name."""
        return count_by_site(self.table, self.summary.cells)

    @cached_property
    def never_called(self) -> list[str]:
        """Names of the sites that the evaluation never called."""
        noted = list(self.background.never_called)
        return noted + [name for name in never_called(self.summary) if name not in noted]

    @cached_property
    def doubts(self) -> list[str]:
        """Sentences on checkpoints whose accuracy without faults is no better than chance."""
        if not self.summary.metric.is_accuracy:
            return []
        classes, found = self.background.classes, {}
        cells, rows = np.unique(self.table["cell"], return_index=True)
        for cell, row in zip(cells, rows, strict=True):
            name = self.summary.cells[cell].checkpoint
            if classes is not None and name not in found:
                golden, samples = (self.table[key][row] for key in ("golden_correct", "samples"))
                found[name] = no_better_than_chance(int(golden), int(samples), classes)
        several = len(found) > 1
        return [f"{name}: {doubt}" if several else doubt for name, doubt in found.items() if doubt]

    @cached_property
    def memories(self) -> dict[str, str]:
        """What each site is, by its name; empty if all sites of the study are activations."""
        found = {site.name: site.memory for site in self.background.sites}
        return found if set(found.values()) - {"activations"} else {}

    @cached_property
    def heat_map(self) -> Distinct:
        """The map of the sites struck alone, without columns that show a fault twice."""
        widths = {site.name: site.bit_width for site in self.background.sites}
        return without_repeats(heat_map(self.summary), widths)

    def verdict(self, tolerance: float | None = None) -> Verdict:
        """The verdict; `tolerance` is in the unit of the metric (of accuracy in points)."""
        return verdict(
            self.summary,
            self.ranked,
            states=self.states,
            doubts=self.doubts,
            tolerance=tolerance,
        )

    @property
    def has_several_memories(self) -> bool:
        """Whether reports must tell what a site is."""
        return len(set(self.memories.values())) > 1

    @cached_property
    def ranked(self) -> list[RankedSite]:
        """The sites that were struck alone, the weakest first."""
        return rank_sites(self.table, self.summary)


def read_findings(path: Path, confidence: float = 95.0) -> Findings:
    """Read a store, and estimate all that a report shows; `confidence` is in percent."""
    with Store.open(path) as store:
        study = Study.from_dict(store.study, str(path))
        cells = store.settings()
        table, fingerprint = store.table(), store.fingerprint
        background = Background.from_dict(store.background)
    shared = [study.shares_faults(cell) for cell in cells]
    metric = ACCURACY
    if "metric" in fingerprint:
        metric = MetricFacts.from_dict(fingerprint["metric"])
    summary = summarise(table, cells, shared, confidence, metric)
    found = states(study, table, cells, shared, metric)
    return Findings(path, study, fingerprint, table, summary, found, background)


def golden_by_checkpoint(summary: Summary) -> dict[str | None, float]:
    """The metric without faults of each checkpoint that has trials."""
    return {
        cell.checkpoint: golden
        for cell, golden in zip(summary.cells, summary.golden.tolist(), strict=True)
        if not math.isnan(golden)
    }
