"""When a cell has had enough trials.

The rule looks at a cell at fixed numbers of trials only: at `min_trials`, then each time that the
number has grown by half, and at `max_trials`. It judges the trials 0, 1, ... up to that number, so
that the answer depends on the study alone, not on the number of workers or the order in which
their trials came in.

Such a rule stops a little too soon if the first trials happen to lie close together, so that its
interval covers the truth a little less often than nominal; the effect fades as `min_trials` grows.
docs/campaigns.md gives its size.

Reference: Y. S. Chow and H. Robbins, "On the Asymptotic Theory of Fixed-Width Sequential Confidence
Intervals for the Mean", The Annals of Mathematical Statistics 36 (1965).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.stop_rule import look_points
from fxfault.campaign.studies.study import Study
from fxfault.metrics.facts import ACCURACY, DATA, SAMPLE, MetricFacts

if TYPE_CHECKING:
    from fxfault.evaluation.rows import TrialRow


def trials_wanted(study: Study, rows: Sequence[TrialRow], unsure_before: int = 0) -> int:
    """Return how many trials a cell is to have, as far as its rows tell.

    The cell is finished once it has all trials below this number; until then, run the missing
    ones and ask again.

    Args:
        study: the study, with a stop rule or a number of trials.
        rows: finished trials of one cell, in any order.
        unsure_before: skip looks at fewer trials than this; they found the cell unsure before.
    """
    if study.stop is None:
        return study.max_trials
    by_trial = {row.trial: row for row in rows}
    for look in look_points(study.stop)[:-1]:  # At the last look the cell ends anyway.
        if look < unsure_before:
            continue
        first = [by_trial[number] for number in range(look) if number in by_trial]
        if len(first) < look or is_sure(study, first):
            return look
    return study.stop.max_trials


def is_sure(study: Study, rows: Sequence[TrialRow]) -> bool:
    """Whether the intervals of the metric and SDC rate are both as narrow as the stop rule asks.

    Args:
        study: a study with a stop rule.
        rows: trials of one cell, at least one.
    """
    from fxfault.campaign.estimates.cell_states import JUDGED, is_within
    from fxfault.campaign.estimates.summary import summarise, table_of

    assert study.stop is not None
    cell = Cell.from_key(rows[0].cell)
    shared = [study.shares_faults(cell)]
    metric = ACCURACY
    if study.experiment.metric is not None:  # How wide an interval is does not depend on the rest.
        each = DATA if rows[0].sdc is None else SAMPLE
        metric = MetricFacts(study.experiment.metric.name, each=each)
    table, confidence = table_of(rows, [cell]), study.stop.confidence
    summary = summarise(table, [cell], shared, confidence, metric, JUDGED)
    return bool(is_within(summary, study.stop)[0])
