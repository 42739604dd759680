"""Estimates while a study runs, from the trials so far."""

from __future__ import annotations

import math

from fxfault.campaign.estimates.intervals import student_t
from fxfault.campaign.estimates.ranking import NOTHING_LOST
from fxfault.evaluation.rows import TrialRow


class RunningMeans:
    """The accuracy of each cell, in percent, by the cell's key.

    >>> counts = {"samples": 50, "golden_correct": 45, "sdc": 9, "critical_sdc": 7, "top5": None}
    >>> seen = {"faults": 60, "elements": 1200, "struck": 30, "masked": 21, "seconds": 0.1}
    >>> means = RunningMeans()
    >>> for trial, correct in enumerate([40, 42]):
    ...     means.add(TrialRow(cell="stem", trial=trial, correct=correct, **counts, **seen))
    >>> mean, half = means.accuracy("stem")
    >>> mean, round(half, 1), means.weakest()
    (82.0, 25.4, (8.0, ['stem']))
    """

    def __init__(self) -> None:
        # Trials, sum and sum of squares of the accuracy, and the golden accuracy.
        self._sums: dict[str, tuple[int, float, float, float]] = {}

    def add(self, row: TrialRow) -> None:
        """Add a trial."""
        accuracy = 100 * row.correct / row.samples
        number, total, squares, _ = self._sums.get(row.cell, (0, 0.0, 0.0, 0.0))
        golden = 100 * row.golden_correct / row.samples
        self._sums[row.cell] = number + 1, total + accuracy, squares + accuracy**2, golden

    def accuracy(self, cell: str) -> tuple[float, float]:
        """The mean over the trials, and the half width of its interval; NaN for one trial."""
        number, total, squares, _ = self._sums[cell]
        mean = total / number
        if number < 2:
            return mean, math.nan
        _, high = student_t(mean, max(0.0, squares - total * mean) / (number - 1), number)
        return mean, float(high) - mean

    def weakest(self) -> tuple[float, list[str]]:
        """The most accuracy that a cell lost, in percentage points, and the cells that lost it."""
        falls = {cell: s[3] - s[1] / s[0] for cell, s in self._sums.items()}
        most = max(falls.values())
        return most, [cell for cell, fall in falls.items() if fall > most - NOTHING_LOST]
