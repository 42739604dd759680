"""How often faults may strike before they cost more than one is ready to lose.

A rate is called tolerable only if it was tested: nothing is interpolated between rates, and nothing
is said about rates that no cell has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxfault.campaign.estimates.ranking import was_struck
from fxfault.campaign.estimates.summary import Summary

POINTS = 1.0  # Percentage points of accuracy; of other metrics, percent of the golden value.


@dataclass(frozen=True)
class Tolerable:
    """The highest tested rate at which a fault costs no more than a tolerance.

    At this rate and at all lower rates that were tested, the upper end of the interval of the cost
    is at most the tolerance, in every cell. The intervals belong to single cells: of twenty at
    95 %, about one misses the truth.

    Attributes:
        place: `each` for sites struck alone, which must all be within the tolerance; otherwise
            what is struck together.
        fault: fault model with its bit.
        checkpoint: the weights.
        memories: what is struck, such as `activations`.
        rate: the rate in percent, or a number of faults; None if no tested rate is tolerable.
        rate_text: the rate as text; empty if there is none.
        is_highest: whether no higher rate was tested.
        beyond: index of the cell that ends the search: of those at the next rate that are not
            within the tolerance, the one that costs the most. None if the rate is the highest, or
            if the next rate lacks trials of some sites.
    """

    place: str
    fault: str
    checkpoint: str | None
    memories: tuple[str, ...]
    rate: float | None
    rate_text: str
    is_highest: bool
    beyond: int | None


def usual_tolerance(summary: Summary) -> float | None:
    """The tolerance if a user names none: a percentage point of accuracy.

    Of any other metric it is 1 % of the smallest golden value; None if that is 0 or unknown.
    """
    if summary.metric.is_accuracy:
        return POINTS
    golden = np.abs(summary.golden[~np.isnan(summary.golden)])
    least = float(golden.min(initial=math.inf))
    return POINTS / 100 * least if 0 < least < math.inf else None


def tolerable_rates(summary: Summary, tolerance: float) -> list[Tolerable]:
    """Find the highest tolerable rate of each fault and place.

    >>> from fxfault.campaign.estimates.summary import summarise, table_of
    >>> from fxfault.campaign.studies.cell import Cell
    >>> from fxfault.evaluation.rows import TrialRow
    >>> cells = [Cell.of(injection_type="random", probability=rate) for rate in (1.0, 5.0)]
    >>> counts = {"samples": 500, "golden_correct": 490, "top5": None, "faults": 9}
    >>> counts |= {"elements": 90, "struck": 400, "masked": 300, "seconds": 0.1}
    >>> rows = [
    ...     TrialRow(cell=cell.key, trial=k, correct=490 - n, sdc=n, critical_sdc=n, **counts)
    ...     for cell, lost in zip(cells, [(0, 1, 1), (90, 95, 99)]) for k, n in enumerate(lost)
    ... ]
    >>> (found,) = tolerable_rates(summarise(table_of(rows, cells), cells), tolerance=1.0)
    >>> found.rate_text, found.is_highest, cells[found.beyond].rate_text
    ('1%', False, '5%')

    Args:
        summary: the estimates of all cells; those of sites that are never called are left out.
        tolerance: the largest cost that is accepted, in the unit of the metric (of accuracy in
            percentage points).
    """
    groups: dict[tuple[str, str, str | None, tuple[str, ...]], dict[float, list[int]]] = {}
    for index, cell in enumerate(summary.cells):
        if cell.rate is None or (summary.trials[index] and not was_struck(summary, index)):
            continue
        # A rate of 0 strikes nothing, so that it is tolerable without saying anything.
        if cell.rate > 0:
            place = "each" if cell.single_site is not None else cell.place
            key = place, cell.fault, cell.checkpoint, cell.memories
            groups.setdefault(key, {}).setdefault(cell.rate, []).append(index)
    return [_highest(key, found, summary, tolerance) for key, found in groups.items()]


def _highest(
    key: tuple[str, str, str | None, tuple[str, ...]],
    found: dict[float, list[int]],
    summary: Summary,
    tolerance: float,
) -> Tolerable:
    places = {summary.cells[index].place for cells in found.values() for index in cells}
    reached, beyond = None, None
    for rate, cells in sorted(found.items()):
        outside = [index for index in cells if not _is_within(summary, index, tolerance)]
        if outside or {summary.cells[index].place for index in cells} != places:
            beyond = _costliest(summary, outside)
            break
        reached = rate
    text = "" if reached is None else summary.cells[found[reached][0]].rate_text
    return Tolerable(*key, reached, text, reached == max(found), beyond)


def _is_within(summary: Summary, index: int, tolerance: float) -> bool:
    # False for NaN: without an interval nothing is shown.
    return bool(summary["fall"].high[index] <= tolerance)


def _costliest(summary: Summary, cells: Sequence[int]) -> int | None:
    known = [index for index in cells if not math.isnan(summary["fall"].value[index])]
    return max(known, key=lambda index: float(summary["fall"].value[index]), default=None)
