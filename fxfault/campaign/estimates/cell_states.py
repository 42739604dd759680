"""Whether cells have had enough trials, over all cells of a study at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fxfault.campaign.estimates.summary import Summary, Table, summarise
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.stop_rule import look_points
from fxfault.metrics.facts import ACCURACY, MetricFacts

if TYPE_CHECKING:
    from fxfault.campaign.studies.stop_rule import StopRule
    from fxfault.campaign.studies.study import Study

JUDGED = ("measure", "sdc")
"""The estimates that a stop rule judges."""

# States of a cell; see `states`.
EARLY, DONE, UNSURE, UNFINISHED = "stopped early", "done", "not sure", "unfinished"


def states(
    study: Study,
    table: Table,
    cells: Sequence[Cell],
    shared: Sequence[bool] | None = None,
    metric: MetricFacts = ACCURACY,
) -> list[str]:
    """Return the state of each cell.

    Returns:
        `EARLY`: the stop rule ended the cell before `max_trials`; `DONE`: the cell has all its
        trials and, under a stop rule, is sure; `UNSURE`: the cell has all its trials and is not
        sure; `UNFINISHED`: trials are missing.
    """
    trials = np.bincount(table["cell"], minlength=len(cells))
    if study.stop is None:
        return [DONE if number >= study.max_trials else UNFINISHED for number in trials]
    rule = study.stop
    summary = summarise(table, cells, shared, rule.confidence, metric, JUDGED)
    sure = is_within(summary, rule)
    whole = trials >= rule.max_trials
    stopped = sure & np.isin(trials, look_points(rule))
    rest = ~whole & ~stopped & (trials > rule.min_trials)
    stopped |= _stopped_before(rule, table, cells, shared, rest, metric)
    ended = np.where(sure, DONE, UNSURE)
    return [str(s) for s in np.where(whole, ended, np.where(stopped, EARLY, UNFINISHED))]


def _stopped_before(
    rule: StopRule,
    table: Table,
    cells: Sequence[Cell],
    shared: Sequence[bool] | None,
    chosen: NDArray[np.bool_],
    metric: MetricFacts,
) -> NDArray[np.bool_]:
    """Which of the chosen cells the rule ends at fewer trials than they have.

    A cell has more trials if an earlier version of the study asked for them (see
    `fingerprint.conflicts`).
    """
    stopped = np.zeros(len(cells), bool)
    looks = look_points(rule)[:-1] if chosen.any() else ()
    own = chosen[table["cell"]]
    part = {name: column[own] for name, column in table.items()} if looks else {}
    for look in looks:
        first = part["trial"] < look
        seen = {name: column[first] for name, column in part.items()}
        summary = summarise(seen, cells, shared, rule.confidence, metric, JUDGED)
        stopped |= is_within(summary, rule) & (summary.trials == look)
    return stopped


def is_within(summary: Summary, rule: StopRule) -> NDArray[np.bool_]:
    """Whether the intervals of the metric and of the SDC rate are both within a rule's margins.

    The metric alone is not enough: if faults rarely matter, a few trials may all be equal, and
    only the interval of the SDC rate accounts for the number of samples. If no trial moved a
    metric that is no accuracy, its interval has no width, and the SDC rate decides. If there is no
    SDC rate either, the cell is never within.

    Args:
        summary: the summary of a study; a cell with fewer than two trials is never within.
        rule: the rule; its margins are the largest half widths.

    Returns:
        Booleans, shape (cells,).
    """
    measure, sdc = summary["measure"], summary["sdc"]
    margin = rule.margin if rule.metric_margin is None else rule.metric_margin
    # False for NaN, the width of a single trial.
    within = measure.high - measure.low <= 2 * margin
    if summary.has_sdc:
        quiet = np.zeros(len(within), bool)
        if not summary.metric.is_accuracy:
            quiet = (measure.value == summary.golden) & np.isnan(measure.low)
        within = (within | quiet) & (sdc.high - sdc.low <= 2 * rule.margin)
    return within & (summary.trials > 1)
