"""Compare two studies, cell by cell and on average.

Two trials are a pair if both studies have the same seed, their cells have the same sites and
faults, and the trials have the same number: then the faults hit their samples at the same places.
What both networks have in common cancels out in the difference, so that far fewer trials tell
them apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxfault.campaign.estimates.intervals import Floats, bootstrap_difference, paired_bootstrap
from fxfault.campaign.estimates.ranking import Falls
from fxfault.campaign.estimates.summary import Estimate, Summary, Table, mean_of_cells
from fxfault.campaign.studies.cell import Cell
from fxfault.errors import FxFaultError


@dataclass(frozen=True)
class Difference:
    """How much better study B is than study A under the same faults, in the unit of the metric.

    Attributes:
        cell: the cell of A; None for the average over cells.
        a: the metric of A; without one the accuracy in percent.
        b: the metric of B.
        value: B minus A.
        low: lower end of the interval of `value`; NaN with fewer than two trials.
        high: upper end of the interval.
        b_better: fraction of the resamples in which B is better.
        trials: numbers of trials of A and of B that were compared.
        paired: whether the trials were compared in pairs.
        higher_is_better: whether a higher value of the metric is the better one.
    """

    cell: Cell | None
    a: float
    b: float
    value: float
    low: float
    high: float
    b_better: float
    trials: tuple[int, int]
    paired: bool
    higher_is_better: bool = True

    @property
    def favours_b(self) -> bool:
        """Whether B is the better one."""
        return self.value > 0 if self.higher_is_better else self.value < 0

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Side:
    """One of the two studies.

    Attributes:
        table: the rows of the study.
        summary: the summary of these rows.
        seed: the seed of the faults.
    """

    table: Table
    summary: Summary
    seed: int


def compare(a: Side, b: Side) -> list[Difference]:
    """Compare the cells that both studies have.

    If each study has a single checkpoint, the two may differ: then the studies compare them.

    Returns:
        A difference for each common cell with trials, in the order of A.

    Raises:
        FxFaultError: the studies have no cell in common, or other metrics.
    """
    if a.summary.metric != b.summary.metric:
        raise FxFaultError(
            f"the studies have other metrics: A has {a.summary.metric.sentence}; B has "
            f"{b.summary.metric.sentence}; compare studies with the same metric"
        )
    one_each = all(len({cell.checkpoint for cell in s.summary.cells}) == 1 for s in (a, b))
    of_b = {
        _identity(cell, one_each): index
        for index, cell in enumerate(b.summary.cells)
        if b.summary.trials[index]
    }
    pairs = [
        (index, of_b[_identity(cell, one_each)])
        for index, cell in enumerate(a.summary.cells)
        if a.summary.trials[index] and _identity(cell, one_each) in of_b
    ]
    if not pairs:
        raise FxFaultError(
            f"the studies have no cell in common: A has {_kinds(a.summary)}, "
            f"B has {_kinds(b.summary)}; compare studies with the same axes"
        )
    falls = Falls(a.table, a.summary.metric), Falls(b.table, b.summary.metric)
    return [_difference((a, b), falls, pair) for pair in pairs]


def _identity(cell: Cell, without_checkpoint: bool) -> str:
    checkpoint = None if without_checkpoint else cell.checkpoint
    return json.dumps({**cell.settings, "checkpoint": checkpoint}, sort_keys=True)


def _kinds(summary: Summary) -> str:
    faults = dict.fromkeys(cell.fault for cell in summary.cells)
    rates = dict.fromkeys(cell.rate_text for cell in summary.cells)
    places = dict.fromkeys(cell.place for cell in summary.cells)
    return f"{', '.join(faults)} at {', '.join(rates)} on {', '.join(places)}"


def _difference(
    sides: tuple[Side, Side], falls: tuple[Falls, Falls], cells: tuple[int, int]
) -> Difference:
    a, b = sides
    # The metric of each trial, by its number; NaN if there is no such trial.
    higher = a.summary.metric.higher_is_better
    sign = 1.0 if higher else -1.0
    one, two = (
        side.summary.golden[cell] - sign * fall.of([cell])[:, 0]
        for side, fall, cell in zip(sides, falls, cells, strict=True)
    )
    both = min(len(one), len(two))
    common = ~np.isnan(one[:both]) & ~np.isnan(two[:both])
    paired = a.seed == b.seed and int(common.sum()) > 1
    if paired:  # Both values are those of the pairs, too.
        one, two = one[:both][common], two[:both][common]
    else:
        one, two = one[~np.isnan(one)], two[~np.isnan(two)]
    judge = paired_bootstrap if paired else bootstrap_difference
    low, high, above = judge(two, one, a.summary.confidence)
    return Difference(
        cell=a.summary.cells[cells[0]],
        a=_mean(one),
        b=_mean(two),
        value=_mean(two) - _mean(one),
        low=low,
        high=high,
        b_better=above if higher else 1.0 - above,
        trials=(len(one), len(two)),
        paired=paired,
        higher_is_better=higher,
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")  # If no trial has a value.


def overall(differences: Sequence[Difference]) -> Difference:
    """Average the differences of all cells with equal weights.

    Args:
        differences: at least one difference.
    """
    value, low, high = np.array([(d.value, d.low, d.high) for d in differences]).T
    of_cells = Estimate(value, low, high, np.ones(len(value), np.int64))
    mean, down, up = mean_of_cells(of_cells, np.arange(len(value)))
    return Difference(
        cell=None,
        a=float(np.mean([d.a for d in differences])),
        b=float(np.mean([d.b for d in differences])),
        value=float(mean),
        low=float(down),
        high=float(up),
        b_better=float("nan"),
        trials=(sum(d.trials[0] for d in differences), sum(d.trials[1] for d in differences)),
        paired=all(d.paired for d in differences),
        higher_is_better=differences[0].higher_is_better,
    )
