"""Rank the sites that were struck alone by what their faults cost in the metric.

The metric is the accuracy by default. A cost is a fall of a metric whose higher value is the better
one, and a rise of any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxfault.campaign.estimates.intervals import Floats, rank_intervals
from fxfault.campaign.estimates.summary import Integers, Summary, Table, mean_of_cells
from fxfault.campaign.studies.cell import Cell
from fxfault.metrics.facts import ACCURACY, MetricFacts

Setting = tuple[str, str, str | None]
"""The settings that compared sites share: fault with its bit, rate, checkpoint."""


@dataclass(frozen=True)
class RankedSite:
    """A site struck alone, averaged over the settings of the study that all sites have.

    Attributes:
        name: name of the site.
        rank: 1 for the site whose faults cost the most; sites with equal costs share the first of
            their places (1, 2, 2, 4).
        rank_low: lower end of the rank's interval, which spans the places of all that share it.
        rank_high: upper end of the rank's interval.
        fall: the cost in the unit of the metric; accuracy lost in percentage points without one.
        fall_low: lower end of the interval of `fall`.
        fall_high: upper end of the interval of `fall`.
        sdc: SDC rate, in percent; NaN if the metric cannot tell.
        trials: number of trials over all settings.
        due: DUE rate, in percent.
        unit: a cost of this size counts like a percentage point of accuracy, for rounding.
    """

    name: str
    rank: int
    rank_low: int
    rank_high: int
    fall: float
    fall_low: float
    fall_high: float
    sdc: float
    trials: int
    due: float = 0.0
    unit: float = 1.0


def setting_of(cell: Cell) -> Setting:
    """The setting that a cell shares with cells of other sites."""
    return cell.fault, cell.rate_text, cell.checkpoint


def site_cells(summary: Summary) -> dict[Setting, dict[str, int]]:
    """Return the indices of the cells that struck a single site, by setting and site.

    A store of an earlier version has trials of sites that are never called. They exposed no
    element, so that their cost of zero says nothing; they are left out.
    """
    found: dict[Setting, dict[str, int]] = {}
    for index, cell in enumerate(summary.cells):
        if cell.single_site is not None and was_struck(summary, index):
            found.setdefault(setting_of(cell), {})[cell.single_site] = index
    return found


def never_called(summary: Summary) -> list[str]:
    """Names of sites whose trials, each of the site alone, exposed no element."""
    struck: dict[str, bool] = {}
    for index, cell in enumerate(summary.cells):
        name = cell.single_site
        if name is not None and summary.trials[index]:
            struck[name] = struck.get(name, False) or was_struck(summary, index)
    return [name for name, hit in struck.items() if not hit]


def was_struck(summary: Summary, index: int) -> bool:
    """Whether a cell has trials that exposed anything; those of a site never called do not."""
    return bool(summary.trials[index] and summary["fault_rate"].n[index])


def rank_sites(
    table: Table, summary: Summary, settings: Sequence[Setting] = (), fewest: int = 2
) -> list[RankedSite]:
    """Rank the sites that were struck alone, the weakest first.

    All settings have equal weights. Only settings that all sites have count: other sites would
    not be comparable.

    Args:
        table: the rows of a study.
        summary: the summary of these rows.
        settings: the settings to average over; default: all.
        fewest: least number of sites that make a ranking.

    Returns:
        The ranking; empty if fewer than `fewest` sites can be compared.
    """
    by_setting = site_cells(summary)
    wanted = {key: by_setting[key] for key in settings or by_setting if key in by_setting}
    names = list(dict.fromkeys(name for sites in wanted.values() for name in sites))
    common = {key: sites for key, sites in wanted.items() if len(sites) == len(names)}
    if len(names) < fewest or not common:
        return []
    columns = np.array([[sites[name] for name in names] for sites in common.values()])
    falls = Falls(table, summary.metric)
    least = _least_variances(table, columns, summary)
    scores = [falls.of(row) for row in columns]
    unit = _unit(summary)
    scaled = [part / unit**2 for part in least]
    ranks, low, high = rank_intervals([s / unit for s in scores], summary.confidence, scaled)
    fall, fall_low, fall_high = mean_of_cells(summary["fall"], columns)
    sdc, due = (summary[name].value[columns].mean(axis=0) for name in ("sdc", "due"))
    trials = summary.trials[columns].sum(axis=0)
    ranked = [
        RankedSite(
            name=name,
            rank=int(ranks[i]),
            rank_low=int(low[i]),
            rank_high=int(high[i]),
            fall=float(fall[i]),
            fall_low=float(fall_low[i]),
            fall_high=float(fall_high[i]),
            sdc=float(sdc[i]),
            trials=int(trials[i]),
            due=float(due[i]),
            unit=unit,
        )
        for i, name in enumerate(names)
    ]
    return sorted(ranked, key=lambda site: site.rank)


def _unit(summary: Summary) -> float:
    """A hundredth of the largest golden value: what a percentage point is to an accuracy.

    Without a golden value apart from 0, it is a hundredth of the largest fall.
    """
    if summary.metric.is_accuracy:
        return 1.0
    for values in (summary.golden, summary["fall"].value):
        largest = float(np.nanmax(np.abs(values), initial=0.0))
        if largest > 0:
            return largest / 100
    return 1.0


def _least_variances(table: Table, columns: Integers, summary: Summary) -> list[Floats]:
    """Lower bound of the variance of the cost in each cell, in squared units of the metric.

    The accuracy lost counts samples that turned wrong, less those that turned right. A few such
    events scatter by chance as a Poisson variable does, even if the trials happen to be alike: one
    event among 2,500 samples tells two sites apart as little as none. The bound counts one event
    more than was seen, spread over the settings, as zero events do not prove a rate of zero.

    The sum of changes of any other metric scatters as a compound Poisson variable, whose variance
    is the expected sum of their squares. The event more is an average one of the table. If a metric
    has no value for each sample, there is no such bound, and it is 0.

    Args:
        table: the rows.
        columns: indices of the cells, shape (settings, sites).
        summary: the summary of the rows.
    """
    cells = len(summary.cells)
    samples = np.bincount(table["cell"], weights=table["samples"], minlength=cells)
    if not summary.metric.is_accuracy:
        squares = np.nan_to_num(table["squares"], nan=0.0)
        sums = np.bincount(table["cell"], weights=squares, minlength=cells)
        moved = np.nansum(table["sdc"])
        one = squares.sum() / moved / len(columns) if moved else 0.0
        return [(sums[row] + one) / samples[row] ** 2 for row in columns]
    lost = table["critical_sdc"]
    # Of the samples without a prediction, those that were right are lost, too. Their number is
    # unknown: the most that it can be makes the bound cautious, and exact without such samples.
    lost = lost + np.minimum(table["due"], np.maximum(table["golden_correct"] - lost, 0))
    gained = table["correct"] - table["golden_correct"] + lost
    events = np.bincount(table["cell"], weights=lost + gained, minlength=cells)
    return [(100.0 / samples[row]) ** 2 * (events[row] + 1 / len(columns)) for row in columns]


def left_out(summary: Summary) -> list[str]:
    """Faults with their bits that no ranking takes, as not all sites struck alone have them."""
    by_setting = site_cells(summary)
    every = {name for sites in by_setting.values() for name in sites}
    used = {fault for (fault, _, _), sites in by_setting.items() if len(sites) == len(every)}
    return [f for f in dict.fromkeys(fault for fault, _, _ in by_setting) if f not in used]


def may_be_weakest(ranked: Sequence[RankedSite]) -> list[RankedSite]:
    """The sites of which each may be the weakest: the interval of its rank begins at 1.

    The list is empty if no site lost anything.
    """
    return [site for site in ranked if site.rank_low == 1] if weakest(ranked) else []


def weakest(ranked: Sequence[RankedSite]) -> list[RankedSite]:
    """The sites whose faults cost the most: one, or several that are tied.

    The list is empty if no site lost anything.

    >>> weakest([RankedSite("stem", 1, 1, 2, 0.0, -0.1, 0.1, 0.0, 10)])
    []
    """
    return [site for site in ranked if site.rank == 1 and site.fall > NOTHING_LOST * site.unit]


# In percentage points, or hundredths of the golden value of a metric; less is rounding.
NOTHING_LOST = 1e-9


class Falls:
    """What faults cost in each trial, in the unit of the metric, sorted by cell for fast access."""

    def __init__(self, table: Table, metric: MetricFacts = ACCURACY) -> None:
        """Take the rows of a study, and what its metric is."""
        if metric.is_accuracy:
            lost = 100.0 * (table["golden_correct"] - table["correct"]) / table["samples"]
        else:
            lost = metric.loss(table["golden"], table["value"])
        order = np.argsort(table["cell"], kind="stable")
        self._values: Floats = lost[order]
        self._trials: Integers = table["trial"][order]
        self._cells: Integers = table["cell"][order]

    def of(self, cells: Sequence[int] | Integers) -> Floats:
        """Return the trials of some cells side by side.

        Returns:
            Shape (trial numbers, cells); NaN if a cell has no trial of that number, or the trial
            has no value.
        """
        starts = np.searchsorted(self._cells, cells, side="left")
        ends = np.searchsorted(self._cells, cells, side="right")
        parts = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
        numbers = 1 + max(int(self._trials[part].max(initial=-1)) for part in parts)
        falls = np.full((numbers, len(parts)), np.nan)
        for column, part in enumerate(parts):
            falls[self._trials[part], column] = self._values[part]
        return falls


@dataclass(frozen=True)
class HeatMap:
    """A measure of each site and fault, averaged over the rates and checkpoints that both have.

    Attributes:
        sites: names of the sites, in the order of the study.
        faults: fault models; one entry for each bit of a model.
        values: the measure, shape (sites, faults); NaN if a rate has no trial.
        rates: texts of the rates that were averaged, ascending.
        label: what the measure is, with its unit.
    """

    sites: tuple[str, ...]
    faults: tuple[str, ...]
    values: Floats
    rates: tuple[str, ...]
    label: str = "SDC rate (%)"

    @property
    def title(self) -> str:
        """The label as words at the start of a line."""
        return self.label.replace(" (%)", " in percent")


def heat_map(summary: Summary) -> HeatMap:
    """Average the SDC rate of sites struck alone, by site and fault.

    If the metric has no value for each sample, there is no such rate. Then it is the cost of the
    faults, in the unit of the metric.
    """
    measure, label = "sdc", "SDC rate (%)"
    if not summary.has_sdc:
        measure, label = "fall", f"{summary.metric.name} lost{summary.metric.in_points}"
    by_setting = site_cells(summary)
    sites = tuple(dict.fromkeys(name for found in by_setting.values() for name in found))
    faults = tuple(dict.fromkeys(fault for fault, _, _ in by_setting))
    sums, numbers = np.zeros((2, len(sites), len(faults)))
    for (fault, _, _), found in by_setting.items():
        for name, index in found.items():
            place = sites.index(name), faults.index(fault)
            sums[place] += summary[measure].value[index]
            numbers[place] += 1
    # A mean over fewer rates would not be comparable.
    values = np.where(numbers == numbers.max(axis=0), sums, np.nan) / np.maximum(numbers, 1)
    cells = [summary.cells[index] for found in by_setting.values() for index in found.values()]
    rates = {cell.rate or 0.0: cell.rate_text for cell in cells}
    return HeatMap(sites, faults, values, tuple(rates[rate] for rate in sorted(rates)), label)


# The place, fault, checkpoint and memories of a curve.
_Key = tuple[str, str, "str | None", tuple[str, ...]]


@dataclass(frozen=True)
class Curve:
    """The metric against how often faults strike.

    Attributes:
        place: `all`, names of the struck sites, `each` for the mean over all sites struck alone,
            or the names of those of them that have this fault, if not all have it.
        fault: fault model with its bit.
        checkpoint: the weights.
        rates: probabilities in percent, or numbers of faults in each sample (for weights in each
            trial), ascending.
        values: mean of the metric at each rate.
        low: lower ends of the intervals; NaN if there is none.
        high: upper ends of the intervals.
        counted: whether the rates are numbers of faults.
        sites: number of sites struck alone and averaged; 1 if sites were struck together.
        partial: whether only some of the sites have this fault, such as a bit of wide words.
        memories: what is struck, such as `activations`.
    """

    place: str
    fault: str
    checkpoint: str | None
    rates: tuple[float, ...]
    values: Floats
    low: Floats
    high: Floats
    counted: bool = False
    sites: int = 1
    memories: tuple[str, ...] = ("activations",)
    partial: bool = False


def curves(summary: Summary) -> list[Curve]:
    """Return a curve for each fault and each group of sites that was struck together.

    Sites of one memory that were struck alone make one curve, their mean. A fault that only some of
    them have makes a curve of these sites, so that no mean over some stands for a mean over all.
    Rates that not all sites of a curve have are left out. Cells of several faults, each with its
    own rate, are on no curve.
    """
    groups: dict[_Key, dict[float, list[int]]] = {}
    alone: dict[tuple[str | None, tuple[str, ...]], set[str]] = {}
    for index, cell in enumerate(summary.cells):
        if was_struck(summary, index) and cell.rate is not None:
            place = cell.place if cell.single_site is None else "each"
            key = place, cell.fault, cell.checkpoint, cell.memories
            groups.setdefault(key, {}).setdefault(cell.rate, []).append(index)
            if cell.single_site is not None:
                alone.setdefault(key[2:], set()).add(cell.single_site)
    return [_curve(key, found, summary, alone) for key, found in groups.items()]


def _curve(
    key: _Key,
    found: Mapping[float, Sequence[int]],
    summary: Summary,
    alone: Mapping[tuple[str | None, tuple[str, ...]], set[str]],
) -> Curve:
    most = max(map(len, found.values()))
    points = sorted((rate, cells) for rate, cells in found.items() if len(cells) == most)
    cells = np.array([cells for _, cells in points]).T  # A column for each rate.
    rates = tuple(rate for rate, _ in points)
    counted = summary.cells[cells.flat[0]].num_faults is not None
    place, fault, checkpoint, memories = key
    partial = place == "each" and len(cells) < len(alone[checkpoint, memories])
    if partial:
        place = ", ".join(summary.cells[index].place for index in cells[:, 0])
    means = mean_of_cells(summary["measure"], cells)
    return Curve(place, fault, checkpoint, rates, *means, counted, len(cells), memories, partial)
