"""Estimates while a study runs, from the trials so far."""

from __future__ import annotations

import math

from fxfault.campaign.estimates.intervals import student_t
from fxfault.campaign.estimates.ranking import NOTHING_LOST
from fxfault.evaluation.rows import TrialRow
from fxfault.metrics.facts import ACCURACY, MetricFacts

_ROUNDING = 1e-5  # What the sum of squares leaves of a variance of 0, as a half width.


class RunningMeans:
    """The metric of each cell, by default the accuracy in percent, by the cell's key.

    >>> counts = {"samples": 50, "golden_correct": 45, "sdc": 9, "critical_sdc": 7, "top5": None}
    >>> seen = {"faults": 60, "elements": 1200, "struck": 30, "masked": 21, "seconds": 0.1}
    >>> means = RunningMeans()
    >>> for trial, correct in enumerate([40, 42]):
    ...     means.add(TrialRow(cell="stem", trial=trial, correct=correct, **counts, **seen))
    >>> mean, half = means.of("stem")
    >>> mean, round(half, 1), means.weakest()
    (82.0, 25.4, (8.0, ['stem']))
    """

    def __init__(self, metric: MetricFacts = ACCURACY) -> None:
        """Start without trials; `metric` says which way is better."""
        self.metric = metric
        # Trials, sum and sum of squares of the metric, and the golden one.
        self._sums: dict[str, tuple[int, float, float, float]] = {}

    def add(self, row: TrialRow) -> None:
        """Add a trial; one without a value does not count."""
        value, golden = row.measure, row.golden_measure
        number, total, squares, _ = self._sums.get(row.cell, (0, 0.0, 0.0, 0.0))
        if not math.isnan(value):
            number, total, squares = number + 1, total + value, squares + value**2
        self._sums[row.cell] = number, total, squares, golden

    def of(self, cell: str) -> tuple[float, float]:
        """The mean over the trials, and the half width of its interval.

        The half width is NaN for one trial, and if all are equal: nothing tells how they scatter.
        """
        number, total, squares, _ = self._sums[cell]
        mean = total / number if number else math.nan
        if number < 2:
            return mean, math.nan
        _, high = student_t(mean, max(0.0, squares - total * mean) / (number - 1), number)
        half = float(high) - mean
        return mean, half if half > _ROUNDING * abs(mean) else math.nan

    def weakest(self) -> tuple[float, list[str]]:
        """The most that a cell lost, in the unit of the metric, and the cells that lost it.

        If no cell lost anything, 0 and no cell.
        """
        loss = self.metric.loss
        falls = {cell: loss(s[3], s[1] / s[0]) for cell, s in self._sums.items() if s[0]}
        most = max(falls.values(), default=0.0)
        # A percentage point, or a hundredth of what the metric is without faults.
        unit = 1.0
        if not self.metric.is_accuracy:
            unit = max((abs(s[3]) for s in self._sums.values()), default=0.0) / 100
        nothing = NOTHING_LOST * unit
        if most <= nothing:
            return 0.0, []
        return most, [cell for cell, fall in falls.items() if fall > most - nothing]
