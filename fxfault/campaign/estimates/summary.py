"""Turn the rows of a store into estimates for each cell, with intervals.

Nothing here loops over rows: a million of them take about a second.

`measure` (the metric, by default the accuracy), `fall` and `top5` are means over trials, with
Student's t interval; `sdc`, `critical_sdc`, `due`, `fault_rate` and `masked` are rates over samples
or elements, with Wilson's interval. All take the data as given (see
`fxfault.campaign.estimates.intervals`). The fall compares each trial with the golden run on the
same samples, so that what makes samples differ from each other cancels out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxfault.campaign.estimates.intervals import Floats, clustered_wilson, student_t, wilson
from fxfault.campaign.studies.cell import Cell
from fxfault.errors import FxFaultError
from fxfault.evaluation.rows import COUNTS, REALS, TrialRow
from fxfault.metrics.facts import ACCURACY, MetricFacts

Integers = NDArray[np.int64]
Table = Mapping[str, NDArray[Any]]
"""Columns by the names of the fields of `TrialRow`; `cell` is an index into a list of cells, and
what a row has not is NaN."""

ESTIMATES = ("measure", "fall", "sdc", "critical_sdc", "due", "masked", "fault_rate", "top5")


@dataclass(frozen=True)
class Estimate:
    """One measure of all cells, shape (cells,).

    Rates are in percent. The metric and its fall are in the unit of the metric; without one they
    are in percent and in percentage points.

    Attributes:
        value: the estimate; NaN without data.
        low: lower end of the interval; NaN if there is none.
        high: upper end of the interval.
        n: number of trials, samples or elements that the interval counts.
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
        trials: numbers of finished trials, shape (cells,).
        golden: the metric without faults, shape (cells,).
        seconds: mean time of a trial, in seconds, shape (cells,).
        confidence: confidence of all intervals, in percent.
        estimates: the estimates, by the names in `ESTIMATES`.
        metric: what the metric is.
    """

    cells: tuple[Cell, ...]
    trials: Integers
    golden: Floats
    seconds: Floats
    confidence: float
    estimates: Mapping[str, Estimate]
    metric: MetricFacts = ACCURACY

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    @property
    def has_due(self) -> bool:
        """Whether any prediction was lost to scores that are not finite.

        Integer words cannot make such scores; reports show DUE only if there is any.
        """
        return bool((self["due"].value > 0).any())

    @property
    def has_sdc(self) -> bool:
        """Whether SDCs are counted; a metric without a value for each sample cannot tell them."""
        return self.metric.has_sdc

    @property
    def shown(self) -> list[str]:
        """Names of the estimates that a report shows.

        `due` is left out if no cell has any (see `has_due`), and so is what a metric does not
        count.
        """
        hidden = set() if self.has_due else {"due"}
        hidden |= set() if self.metric.is_accuracy else {"critical_sdc", "top5"}
        hidden |= set() if self.has_sdc else {"sdc", "masked"}
        return [name for name in self.estimates if name not in hidden]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each cell as plain values: its settings, and each estimate with its interval.

        NaN becomes None. The metric has the name of its `MetricFacts.column`.
        """
        shown = {name: name for name in self.shown}
        shown["measure"] = self.metric.column
        for index, cell in enumerate(self.cells):
            row: dict[str, Any] = {**cell.columns, "trials": int(self.trials[index])}
            row["golden"] = _plain(self.golden[index])
            for of, name in shown.items():
                estimate = self.estimates[of]
                row[name] = _plain(estimate.value[index])
                row[f"{name}_low"] = _plain(estimate.low[index])
                row[f"{name}_high"] = _plain(estimate.high[index])
                row[f"{name}_n"] = int(estimate.n[index])
            row["seconds_per_trial"] = _plain(self.seconds[index])
            yield row


def _plain(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def table_of(rows: Sequence[TrialRow], cells: Sequence[Cell]) -> Table:
    """Put rows into columns, as `Store.table` returns them.

    Args:
        rows: rows of these cells, in any order.
        cells: the cells, without duplicates.
    """
    places = {cell.key: index for index, cell in enumerate(cells)}
    table = {
        name: np.array([getattr(row, name) for row in rows], np.float64)
        for name in (*COUNTS, "seconds", *REALS)
    }
    table["trial"] = table["trial"].astype(np.int64)
    return {**table, "cell": np.array([places[row.cell] for row in rows], np.int64)}


def summarise(
    table: Table,
    cells: Sequence[Cell],
    shared: Sequence[bool] | None = None,
    confidence: float = 95.0,
    metric: MetricFacts = ACCURACY,
    names: Collection[str] = ESTIMATES,
) -> Summary:
    """Estimate the measures of all cells.

    Args:
        table: the rows.
        cells: the cells that the column `cell` indexes.
        shared: for each cell, whether all samples of a trial have the same faults (a broken unit,
            a stuck bit); default: False for all.
        confidence: confidence of the intervals, in percent.
        metric: what the metric is.
        names: the estimates to make, of `ESTIMATES`; `measure` and `fall` are always there. The
            stop rule needs two of them, thousands of times.
    """
    sums = _Sums(table, len(cells))
    chosen = np.zeros(len(cells), bool) if shared is None else np.asarray(shared, bool)
    with np.errstate(invalid="ignore"):
        seconds = sums["seconds"] / sums.trials
    rates = {
        "sdc": ("sdc", "samples"),
        "critical_sdc": ("critical_sdc", "samples"),
        "due": ("due", "samples"),
        "masked": ("masked", "struck"),
        "fault_rate": ("faults", "elements"),
    }
    found = {
        name: _rates(sums, *parts, chosen, confidence)
        for name, parts in rates.items()
        if name in names
    }
    if "top5" in names:
        found["top5"] = _means(sums, "top5", chosen, confidence)
    measure, fall, golden = _measured(sums, chosen, confidence, metric)
    estimates = {"measure": measure, "fall": fall, **found}
    _check_possible(
        {**estimates, "golden": Estimate(golden, golden, golden, sums.trials)}, cells, metric
    )
    return Summary(tuple(cells), sums.trials, golden, seconds, confidence, estimates, metric)


def _measured(
    sums: _Sums, shared: NDArray[np.bool_], confidence: float, metric: MetricFacts
) -> tuple[Estimate, Estimate, Floats]:
    """The metric, its fall, and the metric without faults."""
    if metric.is_accuracy:
        measure = _means(sums, "correct", shared, confidence)
        with np.errstate(invalid="ignore"):
            golden = 100.0 * sums["golden_correct"] / sums["samples"]
        low, high = golden - measure.high, golden - measure.low
        return measure, Estimate(golden - measure.value, low, high, measure.n), golden
    values, there = sums.table["value"], ~np.isnan(sums.table["value"])
    # Golden values of a cell are all the same: the first is exact, their mean may be rounded.
    golden = np.full(sums.cells, np.nan)
    golden[sums.codes[::-1]] = sums.table["golden"][::-1]
    number = sums.of(there)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of the changes, which are small beside the values, so that less is lost to rounding.
        change = np.where(there, values - golden[sums.codes], 0.0)
        mean = np.where(number > 0, sums.of(change) / number, np.nan)
        rest = np.where(there, change - mean[sums.codes], 0.0)
        variance = sums.of(rest * rest) / np.where(number > 1, number - 1, np.nan)
    low, high = student_t(mean, variance, number, confidence)
    # If all trials are equal, nothing tells by how much others might differ.
    equal = sums.are_equal(values)
    low, high = np.where(equal, np.nan, low), np.where(equal, np.nan, high)
    trials = number.astype(np.int64)
    measure = Estimate(golden + mean, golden + low, golden + high, trials)
    if metric.higher_is_better:
        return measure, Estimate(-mean, -high, -low, trials), golden
    return measure, Estimate(mean, low, high, trials), golden


def _check_possible(
    estimates: Mapping[str, Estimate], cells: Sequence[Cell], metric: MetricFacts
) -> None:
    """Check that estimates are percentages within their intervals, apart from those of a metric.

    Raises:
        FxFaultError: an estimate is not, because of a bug in this version or in the one that
            stored the rows.
    """
    rounding = 1e-6
    for name, estimate in estimates.items():
        if name in ("measure", "fall", "golden") and not metric.is_accuracy:
            continue
        least = -100.0 if name == "fall" else 0.0
        value, low, high = estimate.value, estimate.low, estimate.high
        # Comparisons with NaN are false.
        wrong = (value < least - rounding) | (value > 100.0 + rounding)
        wrong |= (low > value + rounding) | (high < value - rounding)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            cell = cells[place]
            raise FxFaultError(
                f"{name} {value[place]:.2f} [{low[place]:.2f}, {high[place]:.2f}] of cell "
                f"{cell.place}, {cell.fault}, {cell.rate_text} cannot be: this is a bug in "
                "fxfault, now or when the rows were stored; please report it with the study, and "
                "use none of its figures"
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
        """Add up a column; a trial without a value makes the sum of its cell NaN."""
        # float64 holds sums up to 2**53 exactly.
        sums = np.bincount(self.codes, weights=values, minlength=self.cells)
        return sums.astype(np.float64, copy=False)  # Without rows, bincount gives integers.

    def variance(self, part: str, whole: str) -> Floats:
        """Sample variance of the trials' shares `part / whole`, linearised in the two columns.

        For trials of equal size, such as samples, it is the exact sample variance of the shares.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self[part] / self[whole]
            size = self[whole] / self.trials
            rest = self.table[part] - share[self.codes] * self.table[whole]
            spread = self.of(rest * rest) / np.where(self.trials > 1, self.trials - 1, np.nan)
            variance: Floats = spread / size**2
        return variance

    def are_equal(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether all trials of a cell have the same value; those without one do not count."""
        there = ~np.isnan(values)
        codes, values = self.codes[there], values[there]
        first = np.full(self.cells, np.nan)
        first[codes[::-1]] = values[::-1]
        others = np.bincount(codes, weights=values != first[codes], minlength=self.cells)
        equal: NDArray[np.bool_] = others == 0
        return equal


def _means(sums: _Sums, name: str, shared: NDArray[np.bool_], confidence: float) -> Estimate:
    """Percent of samples, as a mean over trials with Student's t.

    If all trials are equal, t has no width, and two trials of 24 samples are often equal by chance:
    all of them wrong, say. Then the interval has the width of the rate of samples without their
    golden prediction, by Wilson.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 100.0 * sums[name] / sums["samples"]
        shares = sums.table[name] / sums.table["samples"]
        rate = (sums["sdc"] + sums["due"]) / sums["samples"]
    low, high = student_t(value, 100.0**2 * sums.variance(name, "samples"), sums.trials, confidence)
    least = wilson(rate * sums["samples"], sums["samples"], confidence)
    if shared.any():
        none = np.zeros_like(rate)
        wide = clustered_wilson(rate, sums["samples"], none, sums.trials, confidence)
        least = np.where(shared, wide[0], least[0]), np.where(shared, wide[1], least[1])
    half = 100.0 * np.maximum(least[1] - rate, rate - least[0])
    # One trial has a width only if it changed nothing: else nothing tells how trials scatter.
    equal = sums.are_equal(shares) & ((sums.trials > 1) | (rate == 0)) & (sums.trials > 0)
    low, high = np.where(equal, value - half, low), np.where(equal, value + half, high)
    return Estimate(value, np.maximum(low, 0.0), np.minimum(high, 100.0), sums.trials)


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


def mean_of_cells(estimate: Estimate, cells: Integers) -> tuple[Floats, Floats, Floats]:
    """Average an estimate over cells with equal weights.

    Cells are independent draws of faults, so that the squares of their half widths add up.

    Args:
        estimate: the estimate of all cells.
        cells: indices of the cells to average, shape (cells, ...).

    Returns:
        Mean, lower and upper end of its interval, each of shape (...).
    """
    value = estimate.value[cells]
    mean = value.mean(axis=0)
    below, above = value - estimate.low[cells], estimate.high[cells] - value
    down, up = (np.sqrt((side**2).sum(axis=0)) / len(cells) for side in (below, above))
    return mean, mean - down, mean + up
