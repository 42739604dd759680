"""The result of the trials of one cell, kept in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev

from fxfault.campaign.estimates.crossed import Changes
from fxfault.campaign.studies.cell import Cell
from fxfault.evaluation.rows import TrialRow
from fxfault.messages import counted
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.sites.statistics import FaultStatistics


@dataclass(frozen=True, kw_only=True, repr=False)
class CellResult:
    """The result of the trials of one cell, in the unit of the metric; rates are in percent.

    >>> counts = {"samples": 50, "golden_correct": 45, "sdc": 9, "critical_sdc": 7, "top5": None}
    >>> seen = {"faults": 60, "elements": 1200, "struck": 30, "masked": 21, "seconds": 0.1}
    >>> cell = Cell.of(injection_type="random", probability=5.0)
    >>> rows = [
    ...     TrialRow(cell=cell.key, trial=k, correct=correct, **counts, **seen)
    ...     for k, correct in enumerate([40, 42])
    ... ]
    >>> result = CellResult(cell=cell, rows=tuple(rows))
    >>> result.runs, result.mean, round(result.std, 3), result.degradation, result.injection_rate
    ((80.0, 84.0), 82.0, 2.828, 8.0, 5.0)

    Attributes:
        cell: the cell: what was struck, and how.
        rows: the rows of its trials, trial 0 first.
        index: index of the site if one was struck alone.
        run_layers: index of the struck site of each trial in `mode: layer`.
        statistics: injection statistics over all trials; None if they were not asked for.
        shared: whether the samples of a trial share some of their faults.
        metric: what the metric is.
        changes: for a metric that is a mean over samples, by how much each trial moved the values
            of samples; else None.
    """

    cell: Cell
    rows: tuple[TrialRow, ...]
    index: int | None = None
    run_layers: tuple[int, ...] | None = None
    statistics: FaultStatistics | None = field(default=None, compare=False)
    shared: bool = False
    metric: MetricFacts = ACCURACY
    changes: Changes | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        cell, metric, trials = self.cell, self.metric, counted(len(self.rows), "trial")
        where = f"{cell.place} {cell.fault} {cell.rate_text}"
        return f"CellResult({where}: {metric.name} {metric.shown(self.mean)}, {trials})"

    @property
    def runs(self) -> tuple[float, ...]:
        """The metric of each trial; NaN if it has no value."""
        return tuple(row.measure for row in self.rows)

    @property
    def baseline(self) -> float:
        """The metric without faults."""
        if self.metric.is_accuracy:
            return self._percent("golden_correct", "samples")
        return self.rows[0].golden_measure

    @property
    def mean(self) -> float:
        """Mean of the metric over the trials that have a value; NaN if none has."""
        if self.metric.is_accuracy:
            return self._percent("correct", "samples")
        return fmean(self._values) if self._values else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation of the trials (see the module); 0 for one with a value."""
        return stdev(self._values) if len(self._values) > 1 else 0.0

    @property
    def _values(self) -> list[float]:
        return [value for value in self.runs if not math.isnan(value)]

    @property
    def degradation(self) -> float:
        """What is lost to the faults: how much worse the mean is than the baseline."""
        return float(self.metric.loss(self.baseline, self.mean))

    @property
    def injection_rate(self) -> float:
        """Share of the exposed elements that were hit; 0 if none was exposed."""
        return self._percent("faults", "elements")

    def for_other_samples(self, confidence: float = 95.0) -> tuple[float, float]:
        """Interval of `degradation` for other samples as well as for other draws of faults.

        Both ends are NaN for a metric that is no mean over samples, and for the accuracy. The
        interval is a bootstrap over samples and trials (`fxfault.campaign.estimates.crossed`).

        Args:
            confidence: in percent.
        """
        from fxfault.campaign.estimates.crossed import crossed_bootstrap

        if self.changes is None:
            return math.nan, math.nan
        low, high = crossed_bootstrap(self.changes, confidence)
        return (-high, -low) if self.metric.higher_is_better else (low, high)

    def total(self, count: str) -> int:
        """Add up a count of the trials: a field of `TrialRow` that is not None."""
        return sum(getattr(row, count) for row in self.rows)

    def _percent(self, part: str, whole: str) -> float:
        return 100.0 * self.total(part) / (self.total(whole) or 1)
