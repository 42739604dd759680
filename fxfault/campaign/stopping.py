"""When a cell has had enough trials.

The rule looks at a cell at fixed numbers of trials only: at `min_trials`, then each time that half
as many have come on top, and at `max_trials`. It judges the trials 0, 1, ... up to that number, so
that the answer follows from the study alone: not from how many workers there were, nor from the
order in which their trials came in.

A rule like this stops a little too soon where the first trials happen to lie close together, so
that its interval holds the truth a little less often than it says; that fades as `min_trials`
grows. docs/campaigns.md has what is left of it.

Reference: Y. S. Chow and H. Robbins, "On the Asymptotic Theory of Fixed-Width Sequential Confidence
Intervals for the Mean", The Annals of Mathematical Statistics 36 (1965).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxfault.campaign.study import Cell, StopRule, Study

if TYPE_CHECKING:
    from fxfault.campaign.rows import TrialRow

GROWTH = 1.5


def look_points(rule: StopRule) -> tuple[int, ...]:
    """Give the numbers of trials at which the rule looks.

    >>> look_points(StopRule(margin=1.0, min_trials=10, max_trials=50))
    (10, 15, 23, 35, 50)
    """
    points = [rule.min_trials]
    while points[-1] < rule.max_trials:
        points.append(min(math.ceil(points[-1] * GROWTH), rule.max_trials))
    return tuple(points)


def trials_wanted(study: Study, rows: Sequence[TrialRow], unsure_before: int = 0) -> int:
    """Say how many trials a cell is to have, as far as its rows tell.

    The cell is finished when the trials 0 to one less than this number are all there; until
    then, run those that are missing and ask again.

    Args:
        study: with its stop rule or its number of trials.
        rows: finished trials of one cell, in any order.
        unsure_before: looks at fewer trials than these are known to have found the cell unsure.
    """
    if study.stop is None:
        return study.max_trials
    by_trial = {row.trial: row for row in rows}
    for look in look_points(study.stop)[:-1]:  # At the last one nothing depends on the answer.
        if look < unsure_before:
            continue
        first = [by_trial[number] for number in range(look) if number in by_trial]
        if len(first) < look or is_sure(study, first):
            return look
    return study.stop.max_trials


def is_sure(study: Study, rows: Sequence[TrialRow]) -> bool:
    """Whether the intervals of accuracy and SDC rate are both as narrow as the stop rule asks.

    Args:
        study: with a stop rule.
        rows: trials of one cell, at least one.
    """
    from fxfault.campaign.analysis import is_within, summarise, table_of

    assert study.stop is not None
    cell = Cell.from_key(rows[0].cell)
    shared = [study.shares_faults(cell)]
    summary = summarise(table_of(rows, [cell]), [cell], shared, study.stop.confidence)
    return bool(is_within(summary, study.stop.margin)[0])
