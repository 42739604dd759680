"""From the rows of a store to estimates for each cell, each with its interval.

Nothing here loops over rows: a million of them take about a second.

What the intervals cover: `accuracy`, `fall` and `top5` are means over trials, with Student's t;
`sdc`, `critical_sdc`, `fault_rate` and `masked` are rates over samples or elements, with Wilson's
interval. All hold the data as given (see `fxfault.campaign.intervals`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxfault.campaign.intervals import Floats, clustered_wilson, student_t, wilson
from fxfault.campaign.rows import COUNTS, TrialRow
from fxfault.campaign.stopping import look_points
from fxfault.campaign.study import Cell
from fxfault.errors import FxFaultError

if TYPE_CHECKING:
    from fxfault.campaign.study import StopRule, Study

Integers = NDArray[np.int64]
Table = Mapping[str, NDArray[Any]]
"""Columns of rows: the fields of `TrialRow`; `cell` is an index into a list of cells, and `top5`
is NaN where there is none."""

ESTIMATES = ("accuracy", "fall", "sdc", "critical_sdc", "masked", "fault_rate", "top5")

# What has become of a cell.
EARLY, DONE, UNSURE, UNFINISHED = "stopped early", "done", "not sure", "unfinished"


@dataclass(frozen=True)
class Estimate:
    """One measure of all cells, in percent (`fall`: in percentage points), shape (cells,).

    Attributes:
        value: NaN where there is nothing to tell from.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
        n: what the interval counts: trials, samples or elements.
    """

    value: Floats
    low: Floats
    high: Floats
    n: Integers


@dataclass(frozen=True)
class Summary:
    """Estimates for all cells of a study, in the order of its cells.

    Attributes:
        cells: the cells.
        trials: finished trials of each, shape (cells,).
        golden: accuracy without faults, in percent, shape (cells,).
        seconds: mean time of a trial, shape (cells,).
        confidence: of all intervals, in percent.
        estimates: by name, one of `ESTIMATES`.
    """

    cells: tuple[Cell, ...]
    trials: Integers
    golden: Floats
    seconds: Floats
    confidence: float
    estimates: Mapping[str, Estimate]

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give each cell as plain values: its settings, and each estimate with its interval.

        A NaN comes as None.
        """
        for index, cell in enumerate(self.cells):
            row: dict[str, Any] = {**cell.columns, "trials": int(self.trials[index])}
            row["golden"] = _plain(self.golden[index])
            for name, estimate in self.estimates.items():
                row[name] = _plain(estimate.value[index])
                row[f"{name}_low"] = _plain(estimate.low[index])
                row[f"{name}_high"] = _plain(estimate.high[index])
                row[f"{name}_n"] = int(estimate.n[index])
            row["seconds_per_trial"] = _plain(self.seconds[index])
            yield row


def _plain(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def table_of(rows: Sequence[TrialRow], cells: Sequence[Cell]) -> Table:
    """Put rows into columns, as a store gives them.

    Args:
        rows: of these cells, in any order.
        cells: each once.
    """
    places = {cell.key: index for index, cell in enumerate(cells)}
    table = {
        name: np.array([getattr(row, name) for row in rows], np.float64)
        for name in (*COUNTS, "seconds")
    }
    table["trial"] = table["trial"].astype(np.int64)
    return {**table, "cell": np.array([places[row.cell] for row in rows], np.int64)}


def summarise(
    table: Table,
    cells: Sequence[Cell],
    shared: Sequence[bool] | None = None,
    confidence: float = 95.0,
) -> Summary:
    """Estimate all measures of all cells.

    Args:
        table: the rows.
        cells: what the column `cell` counts.
        shared: of each cell, whether all samples of a trial have the same faults (a broken unit,
            a stuck bit); default: none has.
        confidence: of the intervals, in percent.
    """
    sums = _Sums(table, len(cells))
    chosen = np.zeros(len(cells), bool) if shared is None else np.asarray(shared, bool)
    accuracy = _means(sums, "correct", confidence)
    accuracy = _with_width(accuracy, sums, chosen, confidence)
    with np.errstate(invalid="ignore"):
        golden = 100.0 * sums["golden_correct"] / sums["samples"]
        seconds = sums["seconds"] / sums.trials
    low, high = golden - accuracy.high, golden - accuracy.low
    estimates = {
        "accuracy": accuracy,
        "fall": Estimate(golden - accuracy.value, low, high, accuracy.n),
        "sdc": _rates(sums, "sdc", "samples", chosen, confidence),
        "critical_sdc": _rates(sums, "critical_sdc", "samples", chosen, confidence),
        "masked": _rates(sums, "masked", "struck", chosen, confidence),
        "fault_rate": _rates(sums, "faults", "elements", chosen, confidence),
        "top5": _means(sums, "top5", confidence),
    }
    _check_possible({**estimates, "golden": Estimate(golden, golden, golden, sums.trials)}, cells)
    return Summary(tuple(cells), sums.trials, golden, seconds, confidence, estimates)


def _check_possible(estimates: Mapping[str, Estimate], cells: Sequence[Cell]) -> None:
    """See that estimates are percentages within their intervals.

    Raises:
        FxFaultError: one is not, which is a bug, or the rows are those of an older version's.
    """
    rounding = 1e-6
    for name, estimate in estimates.items():
        least = -100.0 if name == "fall" else 0.0
        value, low, high = estimate.value, estimate.low, estimate.high
        # Comparisons with NaN, where there is nothing to tell, are false.
        wrong = (value < least - rounding) | (value > 100.0 + rounding)
        wrong |= (low > value + rounding) | (high < value - rounding)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            cell = cells[place]
            raise FxFaultError(
                f"{name} {value[place]:.2f} [{low[place]:.2f}, {high[place]:.2f}] of cell "
                f"{cell.place}, {cell.fault}, {cell.rate_text} cannot be: this is a bug in "
                "fxfault, now or when the rows were stored; please report it with the study, and "
                "keep no figure of it"
            )


class _Sums:
    """Sums over the trials of each cell, by the name of the column."""

    def __init__(self, table: Table, cells: int) -> None:
        self.table, self.cells = table, cells
        self.codes = table["cell"]
        self.trials: Integers = np.bincount(self.codes, minlength=cells).astype(np.int64)
        self._known: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._known:
            self._known[name] = self.of(self.table[name])
        return self._known[name]

    def of(self, values: NDArray[Any]) -> Floats:
        # float64 holds sums up to 2**53 exactly.
        sums = np.bincount(self.codes, weights=values, minlength=self.cells)
        return sums.astype(np.float64, copy=False)  # Integers where there is no row.

    def variance(self, part: str, whole: str) -> Floats:
        """Sample variance of the trials' shares `part / whole`, linear in the two columns.

        For trials of one size, as samples are, it is the sample variance of the shares.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self[part] / self[whole]
            size = self[whole] / self.trials
            rest = self.table[part] - share[self.codes] * self.table[whole]
            spread = self.of(rest * rest) / np.where(self.trials > 1, self.trials - 1, np.nan)
            variance: Floats = spread / size**2
        return variance


def _means(sums: _Sums, name: str, confidence: float) -> Estimate:
    """Percent of samples, as a mean over trials with Student's t."""
    with np.errstate(invalid="ignore"):
        value = 100.0 * sums[name] / sums["samples"]
    variance = 100.0**2 * sums.variance(name, "samples")
    low, high = student_t(value, variance, sums.trials, confidence)
    return Estimate(value, np.maximum(low, 0.0), np.minimum(high, 100.0), sums.trials)


def _with_width(
    accuracy: Estimate, sums: _Sums, shared: NDArray[np.bool_], confidence: float
) -> Estimate:
    """Give the accuracy of cells where no prediction ever changed the width of their SDC rate.

    Their trials are all equal, so that Student's t alone would claim to know it exactly.
    """
    quiet = (sums["sdc"] == 0) & (sums.trials > 0)
    highest = _rates(sums, "sdc", "samples", shared, confidence).high
    low = np.where(quiet, np.maximum(accuracy.value - highest, 0.0), accuracy.low)
    high = np.where(quiet, np.minimum(accuracy.value + highest, 100.0), accuracy.high)
    return Estimate(accuracy.value, low, high, accuracy.n)


def _rates(
    sums: _Sums, part: str, whole: str, shared: NDArray[np.bool_], confidence: float
) -> Estimate:
    """Percent of samples or elements, with Wilson's interval."""
    count, number = sums[part], sums[whole]
    low, high = wilson(count, number, confidence)
    with np.errstate(invalid="ignore"):
        rate = np.where(number > 0, count / np.where(number > 0, number, 1.0), np.nan)
    if shared.any():
        variance = sums.variance(part, whole)
        wide = clustered_wilson(rate, number, variance, sums.trials, confidence)
        low, high = np.where(shared, wide[0], low), np.where(shared, wide[1], high)
    return Estimate(100.0 * rate, 100.0 * low, 100.0 * high, number.astype(np.int64))


def states(
    study: Study, table: Table, cells: Sequence[Cell], shared: Sequence[bool] | None = None
) -> list[str]:
    """Say of each cell what has become of it.

    Returns:
        `EARLY`: the stop rule ended it before `max_trials`; `DONE`: it has all its trials and,
        where there is a stop rule, is sure; `UNSURE`: it has all its trials and is not sure;
        `UNFINISHED`: it is to have more.
    """
    trials = np.bincount(table["cell"], minlength=len(cells))
    if study.stop is None:
        return [DONE if number >= study.max_trials else UNFINISHED for number in trials]
    rule = study.stop
    sure = is_within(summarise(table, cells, shared, rule.confidence), rule.margin)
    whole = trials >= rule.max_trials
    stopped = sure & np.isin(trials, look_points(rule))
    rest = ~whole & ~stopped & (trials > rule.min_trials)
    stopped |= _stopped_before(rule, table, cells, shared, rest)
    ended = np.where(sure, DONE, UNSURE)
    return [str(s) for s in np.where(whole, ended, np.where(stopped, EARLY, UNFINISHED))]


def _stopped_before(
    rule: StopRule,
    table: Table,
    cells: Sequence[Cell],
    shared: Sequence[bool] | None,
    chosen: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which of some cells the rule ends at fewer trials than they have.

    They have more where the study asked for more before (see `fingerprint.conflicts`).

    Args:
        rule: the present one.
        table: the rows.
        cells: all of them.
        shared: as for `states`.
        chosen: which are looked at, shape (cells,).
    """
    stopped = np.zeros(len(cells), bool)
    looks = look_points(rule)[:-1] if chosen.any() else ()
    own = chosen[table["cell"]]
    part = {name: column[own] for name, column in table.items()} if looks else {}
    for look in looks:
        first = part["trial"] < look
        seen = {name: column[first] for name, column in part.items()}
        summary = summarise(seen, cells, shared, rule.confidence)
        stopped |= is_within(summary, rule.margin) & (summary.trials == look)
    return stopped


def is_within(summary: Summary, margin: float) -> NDArray[np.bool_]:
    """Whether the intervals of accuracy and SDC rate are both within a margin.

    The accuracy alone would not do: where faults rarely matter, a few trials may all be equal, and
    only the interval of the SDC rate still tells how many samples were looked at.

    Args:
        summary: with at least two trials in each cell that is to be sure.
        margin: largest half width, in percentage points.

    Returns:
        Shape (cells,).
    """
    within = np.ones(len(summary.cells), bool)
    for name in ("accuracy", "sdc"):
        estimate = summary[name]
        # Written so that NaN, the width of a single trial, is not within.
        within &= estimate.high - estimate.low <= 2 * margin
    return within & (summary.trials > 1)


def mean_of_cells(estimate: Estimate, cells: Integers) -> tuple[Floats, Floats, Floats]:
    """Average an estimate over cells, each counted the same.

    Cells are independent draws of faults, so that their half widths add up in squares.

    Args:
        estimate: of all cells.
        cells: indices, shape (cells, N).

    Returns:
        Mean, lower and upper end of its interval, each of shape (N,).
    """
    value = estimate.value[cells]
    mean = value.mean(axis=0)
    below, above = value - estimate.low[cells], estimate.high[cells] - value
    down, up = (np.sqrt((side**2).sum(axis=0)) / len(cells) for side in (below, above))
    return mean, mean - down, mean + up
