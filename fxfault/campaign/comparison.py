"""Is one study better than another: cell by cell, and on average.

Two trials are a pair where both studies have the same seed, the cells strike the same sites by the
same faults, and the trials have the same number: then their samples were hit at the same places.
What both networks have in common cancels out in the difference, so that far fewer trials tell
them apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxfault.campaign.analysis import Summary, Table
from fxfault.campaign.intervals import bootstrap_difference, paired_bootstrap
from fxfault.campaign.ranking import Falls
from fxfault.campaign.study import Cell
from fxfault.errors import FxFaultError


class ComparisonError(FxFaultError):
    """Two studies that have nothing that can be compared."""


@dataclass(frozen=True)
class Difference:
    """How much more accurate B is than A under the same faults.

    Attributes:
        cell: of A; None for the average over cells.
        a: accuracy of A, in percent.
        b: accuracy of B.
        value: B minus A, in percentage points.
        low: lower end of the interval of `value`; NaN with fewer than two trials.
        high: upper end.
        b_better: share of the resamples in which B is the more accurate, a fraction.
        trials: pairs, or trials of A and of B.
        paired: whether trials were compared in pairs.
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

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Side:
    """One of the two studies.

    Attributes:
        table: its rows.
        summary: of the same rows.
        seed: of its faults.
    """

    table: Table
    summary: Summary
    seed: int


def compare(a: Side, b: Side) -> list[Difference]:
    """Compare the cells that both studies have.

    The checkpoint does not count where each study has a single one, as it is then what the
    studies differ in.

    Returns:
        One for each common cell with trials, in the order of A.

    Raises:
        ComparisonError: there is none.
    """
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
        raise ComparisonError(
            f"the studies have no cell in common: A has {_kinds(a.summary)}, "
            f"B has {_kinds(b.summary)}; compare studies with the same axes"
        )
    falls = Falls(a.table), Falls(b.table)
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
    # Accuracy of each trial, by its number; NaN where there is no such trial.
    one, two = (
        side.summary.golden[cell] - fall.of([cell])[:, 0]
        for side, fall, cell in zip(sides, falls, cells, strict=True)
    )
    both = min(len(one), len(two))
    common = ~np.isnan(one[:both]) & ~np.isnan(two[:both])
    paired = a.seed == b.seed and int(common.sum()) > 1
    if paired:  # The difference is that of the pairs, and so are both accuracies.
        one, two = one[:both][common], two[:both][common]
    else:
        one, two = one[~np.isnan(one)], two[~np.isnan(two)]
    judge = paired_bootstrap if paired else bootstrap_difference
    low, high, better = judge(two, one, a.summary.confidence)
    return Difference(
        cell=a.summary.cells[cells[0]],
        a=float(one.mean()),
        b=float(two.mean()),
        value=float(two.mean() - one.mean()),
        low=float(low),
        high=float(high),
        b_better=float(better),
        trials=(len(one), len(two)),
        paired=paired,
    )


def overall(differences: Sequence[Difference]) -> Difference:
    """Average the differences of all cells, each counted the same.

    Cells are independent draws of faults, so that their half widths add up in squares.

    Args:
        differences: at least one.
    """
    value = np.array([d.value for d in differences])
    below = value - np.array([d.low for d in differences])
    above = np.array([d.high for d in differences]) - value
    down, up = (float(np.sqrt((side**2).sum())) / len(value) for side in (below, above))
    mean = float(value.mean())
    return Difference(
        cell=None,
        a=float(np.mean([d.a for d in differences])),
        b=float(np.mean([d.b for d in differences])),
        value=mean,
        low=mean - down,
        high=mean + up,
        b_better=float("nan"),
        trials=(sum(d.trials[0] for d in differences), sum(d.trials[1] for d in differences)),
        paired=all(d.paired for d in differences),
    )
