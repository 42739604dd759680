"""The verdict on some estimates: what costs what, the tolerable rate, what to protect first.

A sentence claims no more than the intervals show. It names those that cannot be told apart, and
says so if there is no interval, or if a study is not finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxfault.campaign.estimates.cell_states import UNFINISHED, UNSURE
from fxfault.campaign.estimates.ranking import (
    RankedSite,
    left_out,
    may_be_weakest,
    site_cells,
    weakest,
)
from fxfault.campaign.estimates.summary import Summary, mean_of_cells
from fxfault.campaign.estimates.tolerance import Tolerable, tolerable_rates, usual_tolerance
from fxfault.campaign.studies.cell import Cell
from fxfault.messages import and_more, counted
from fxfault.metrics.facts import MetricFacts
from fxfault.results.reports.text import bits_together, with_interval

_MOST_NAMED = 4


@dataclass(frozen=True)
class Verdict:
    """What some estimates say, in sentences and in values.

    Attributes:
        sentences: the verdict, one sentence each, with full stops.
        tolerance: the largest cost that counts as tolerable, in the unit of the metric; None if
            there is no such number.
        tolerable: the highest tolerable rate of each fault and place.
        weakest: names of the sites of which each may be the weakest; empty without a ranking.
    """

    sentences: tuple[str, ...]
    tolerance: float | None
    tolerable: tuple[Tolerable, ...]
    weakest: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        tolerable = [
            {
                "place": found.place,
                "fault": found.fault,
                "checkpoint": found.checkpoint,
                "rate": found.rate,
                "is_highest": found.is_highest,
            }
            for found in self.tolerable
        ]
        return {
            "sentences": list(self.sentences),
            "tolerance": self.tolerance,
            "tolerable": tolerable,
            "weakest": list(self.weakest),
        }


def verdict(
    summary: Summary,
    ranked: Sequence[RankedSite] = (),
    *,
    states: Sequence[str] = (),
    doubts: Sequence[str] = (),
    tolerance: float | None = None,
) -> Verdict:
    """Judge some estimates.

    Args:
        summary: the estimates of all cells.
        ranked: the sites that were struck alone, the weakest first.
        states: the state of each cell of a study; of results in memory none, or a single
            `UNFINISHED` if some are missing.
        doubts: why the results without faults leave little to measure.
        tolerance: the largest cost that is accepted, in the unit of the metric; by default
            `usual_tolerance`.
    """
    if tolerance is None:
        tolerance = usual_tolerance(summary)
    tolerable = [] if tolerance is None else tolerable_rates(summary, tolerance)
    first = may_be_weakest(ranked)
    sentences = [f"No verdict: {doubt}" for doubt in doubts]
    if not doubts:
        sentences = list(_without_doubt(summary, ranked, tolerable, tolerance))
    sentences += _reservations(summary, states, tolerance)
    ended = tuple(s if s.endswith((".", "?")) else f"{s}." for s in sentences)
    return Verdict(ended, tolerance, tuple(tolerable), tuple(site.name for site in first))


def _without_doubt(
    summary: Summary,
    ranked: Sequence[RankedSite],
    tolerable: Sequence[Tolerable],
    tolerance: float | None,
) -> list[str]:
    quiet = _nothing_happened(summary)
    if quiet:
        return [quiet]
    sentences = [_costliest(summary)]
    if ranked:
        sentences.append(_about_the_weakest(summary, ranked))
    if tolerance is not None and tolerable:
        sentences += _about_tolerance(summary, tolerable, tolerance)
    if len(ranked) > 1 and weakest(ranked):
        sentences.append(_protect(summary, ranked))
    return sentences


def _cost(metric: MetricFacts, text: str) -> str:
    """Say a cost, which is a rise of a metric whose lower values are better.

    >>> from fxfault.metrics.facts import ACCURACY
    >>> _cost(ACCURACY, "3.00"), _cost(MetricFacts("error", higher_is_better=False), "0.2")
    ('cost 3.00 points of accuracy', 'raise the error by 0.2')
    """
    if metric.higher_is_better:
        unit = metric.difference_unit
        return f"cost {text}{unit}{' of' if unit else ' of the'} {metric.name}"
    return f"raise the {metric.name} by {text}{metric.difference_unit}"


def amount(metric: MetricFacts, value: float) -> str:
    """Write a tolerance with its unit.

    >>> from fxfault.metrics.facts import ACCURACY
    >>> amount(ACCURACY, 1.0), amount(ACCURACY, 0.5), amount(MetricFacts("psnr", "dB"), 0.25)
    ('1 point', '0.5 points', '0.25 dB')
    """
    if metric.unit == "%":
        return f"{value:g} point{'' if value == 1 else 's'}"
    return f"{value:.4g}{metric.difference_unit}"


def _interval(metric: MetricFacts, value: float, low: float, high: float) -> str:
    """Write a cost with its interval, and a small one so that it does not look like none.

    >>> from fxfault.metrics.facts import ACCURACY
    >>> _interval(ACCURACY, 0.004, -0.001, 0.009), _interval(ACCURACY, 3.0, math.nan, math.nan)
    ('less than 0.01 [0.00, 0.01]', '3.00 (no interval)')
    """
    text = metric.with_interval(value, low, high)
    if metric.unit == "%" and 0 < value < 0.005:
        text = text.replace("0.00", "less than 0.01", 1)
    return text if not math.isnan(low) else f"{text} (no interval)"


# -- what costs what ------------------------------------------------------------------------


def _nothing_happened(summary: Summary) -> str:
    """A sentence if no cell moved anything; else empty."""
    falls = summary["fall"].value
    if (np.nan_to_num(falls) != 0).any() or summary.has_due:
        return ""
    tried = f"in any of {counted(len(summary.cells), 'cell')}"
    if not summary.has_sdc:
        return f"No fault moved the {summary.metric.name} {tried}"
    sdc = summary["sdc"]
    if np.isnan(sdc.value).all() or np.nanmax(sdc.value) > 0:
        return ""
    things = "prediction" if summary.metric.is_accuracy else "value"
    end = with_interval(0.0, 0.0, float(np.nanmax(sdc.high)))
    return f"No fault changed a {things} {tried}: an SDC rate of {end} % or less in each"


def _costliest(summary: Summary) -> str:
    """Say which cell costs the most; the golden value is beside it."""
    fall, metric = summary["fall"], summary.metric
    if np.isnan(fall.value).all():
        return f"No trial gave a value of the {metric.name}"
    index = int(np.nanargmax(fall.value))
    most = fall.value[index]
    if most <= 0:
        return f"On average over its trials, no cell lost {metric.name}"
    cell = summary.cells[index]
    several = len({cell.checkpoint for cell in summary.cells}) > 1
    where = _named(cell, several)
    cost = _interval(metric, most, fall.low[index], fall.high[index])
    golden = metric.shown(summary.golden[index])
    text = f"The costliest cell is {where}: its faults {_cost(metric, cost)} (golden {golden})"
    tied = [i for i in np.flatnonzero(fall.value == most) if i != index]
    if tied:
        names = [_named(summary.cells[i], several) for i in tied]
        text += f"; the same for {and_more(names, 2)}"
    return text


def _named(cell: Cell, several: bool) -> str:
    """A cell in words, with its checkpoint if there are several."""
    rate = "" if cell.rate is None else f" at {cell.rate_text}"
    text = f"{cell.fault}{rate} in {_place(cell.place)}"
    return f"{text} ({cell.checkpoint})" if several else text


def _place(place: str) -> str:
    """The struck sites in words."""
    if place.count(" ") > _MOST_NAMED and not place.startswith("all "):
        return f"{place.count(' ') + 1} sites together"
    if place == "all":
        return "all sites together"
    if " " not in place:
        return _site(place)
    text = place if place.startswith("all ") else place.replace(" ", ", ")
    return f"{text} together"


def _site(name: str) -> str:
    """A site in words: the names of `nn.Sequential` are numbers.

    >>> _site("layer1.0"), _site("3")
    ('layer1.0', 'site 3')
    """
    return f"site {name}" if name.isdecimal() else name


def _about_the_weakest(summary: Summary, ranked: Sequence[RankedSite]) -> str:
    metric, first = summary.metric, may_be_weakest(ranked)
    sites = f"{len(ranked)} sites"
    if not first:
        return f"None of the {sites} lost {metric.name} when struck alone"
    if len(ranked) == 1:
        return f"Only {_site(ranked[0].name)} was struck alone, so that there is nothing to rank"
    best = first[0]
    settings = len({key for key, found in site_cells(summary).items() if len(found) >= len(ranked)})
    mean = f", averaged over {counted(settings, 'setting')}" if settings > 1 else ""
    lost = _interval(metric, best.fall, best.fall_low, best.fall_high)
    alone = f"faults there alone {_cost(metric, lost)}{mean}"
    if len(first) == 1:
        text = f"Of {sites}, {_site(best.name)} is the weakest: {alone}"
    elif len(first) == len(ranked):
        text = (
            f"The {sites} cannot be told apart; the largest estimate is {_site(best.name)}: {alone}"
        )
    else:
        others = and_more([_site(site.name) for site in first[1:]], _MOST_NAMED)
        text = (
            f"Of {sites}, the weakest is {_site(best.name)} or one of {others}, which cannot be "
            f"told apart; for {_site(best.name)}, {alone}"
        )
    if best.fall_low <= 0:
        text += ". That may be nothing: the interval contains 0"
    missing = left_out(summary)
    if missing:
        text += (
            f". Not in this mean, as not all sites have them: {and_more(bits_together(missing))}"
        )
    return text


# -- the tolerable rate ---------------------------------------------------------------------


def _about_tolerance(
    summary: Summary, tolerable: Sequence[Tolerable], tolerance: float
) -> list[str]:
    """A sentence for each group of sites that was struck together or each alone."""
    groups: dict[tuple[str, str | None, tuple[str, ...]], list[Tolerable]] = {}
    for found in tolerable:
        groups.setdefault((found.place, found.checkpoint, found.memories), []).append(found)
    several = len({key[1] for key in groups}) > 1
    mixed = len({key[2] for key in groups}) > 1
    lines = []
    for (place, checkpoint, memories), members in list(groups.items())[:_MOST_NAMED]:
        kinds = f" of {' and '.join(memories)}" if mixed else ""
        where = f"each site{kinds} struck alone"
        if place != "each":
            where = f"{_place(place).removesuffix(' together')} struck"
            where += " together" if _place(place).endswith(" together") else ""
        where += f" ({checkpoint})" if several else ""
        lines.append(
            f"With {where}, faults are tolerable {_rates(members)}{_beyond(summary, members)}"
        )
    if len(groups) > _MOST_NAMED:
        lines.append(f"{len(groups) - _MOST_NAMED} more groups of sites are in the tables")
    meaning = (
        f"Tolerable means a loss of at most {amount(summary.metric, tolerance)}, by the upper "
    )
    return [*lines, f"{meaning}end of the {summary.confidence:g} % interval of every cell"]


def _rates(members: Sequence[Tolerable]) -> str:
    """The faults by their highest tolerable rate, the highest first."""
    by_rate: dict[float, list[Tolerable]] = {}
    for found in members:
        by_rate.setdefault(-1.0 if found.rate is None else found.rate, []).append(found)
    parts = []
    for rate, found_here in sorted(by_rate.items(), reverse=True):
        names = and_more(bits_together(found.fault for found in found_here), 6)
        if rate < 0:
            parts.append(f"at no tested rate with {names}")
            continue
        highest = " (the highest tested)" if all(f.is_highest for f in found_here) else ""
        parts.append(f"up to {found_here[0].rate_text}{highest} with {names}")
    return "; ".join(parts)


def _beyond(summary: Summary, members: Sequence[Tolerable]) -> str:
    """The costliest of the cells that rule out a higher rate where the least is tolerable."""
    fall = summary["fall"]
    lowest = min(-1.0 if found.rate is None else found.rate for found in members)
    cells = [
        found.beyond
        for found in members
        if found.beyond is not None and (found.rate is None or found.rate == lowest)
    ]
    if not cells:
        return ""
    index = max(cells, key=lambda cell: float(fall.value[cell]))
    cell, metric = summary.cells[index], summary.metric
    cost = _interval(metric, fall.value[index], fall.low[index], fall.high[index])
    where = f" in {_site(cell.place)}" if cell.single_site is not None else ""
    return (
        f". Not shown to be tolerable: {cell.fault} at {cell.rate_text}{where}, a loss of "
        f"{cost}{metric.difference_unit}"
    )


# -- what to protect ------------------------------------------------------------------------


def _protect(summary: Summary, ranked: Sequence[RankedSite]) -> str:
    first = may_be_weakest(ranked)
    names = [_site(site.name) + _worst_bit(summary, site.name) for site in first[:_MOST_NAMED]]
    if len(first) > _MOST_NAMED:
        names.append(f"{len(first) - _MOST_NAMED} more")
    text = f"Protect first: {', '.join(names)}"
    if len(first) > 1:
        text += "; the study does not tell in which order"
    return text


def _worst_bit(summary: Summary, name: str) -> str:
    """The bit of a site that costs the most, if its bits were struck one by one."""
    bits: dict[int, list[int]] = {}
    for sites in site_cells(summary).values():
        index = sites.get(name)
        if index is not None and isinstance(summary.cells[index].bit, int):
            bits.setdefault(int(str(summary.cells[index].bit)), []).append(index)
    rates = {tuple(sorted(str(summary.cells[i].rate) for i in cells)) for cells in bits.values()}
    if len(bits) < 2 or len(rates) > 1:
        return ""
    means = {bit: mean_of_cells(summary["fall"], np.array(cells)) for bit, cells in bits.items()}
    order = sorted(means, key=lambda bit: -float(means[bit][0]))
    best, second = order[:2]
    if float(means[best][0]) <= 0 or not means[best][1] > means[second][2]:
        return ""  # Two bits that cannot be told apart by their intervals.
    return f" (bit {best} above all, of {len(bits)} bits)"


# -- what the verdict leaves open -----------------------------------------------------------


def _reservations(summary: Summary, states: Sequence[str], tolerance: float | None) -> list[str]:
    """Sentences on missing trials and on wide intervals."""
    found = []
    unfinished, unsure = states.count(UNFINISHED), states.count(UNSURE)
    cells = counted(len(summary.cells), "cell")
    if unfinished:
        what = f"{unfinished} of {cells} lack trials"
        if len(states) != len(summary.cells):
            what = "results are missing"
        found.append(f"Not finished: {what}, so this may change")
    if unsure:
        found.append(
            f"{unsure} of {cells} never became as precise as the stop rule asks: their intervals "
            "are wide"
        )
    single = int(((summary.trials == 1) & np.isnan(summary["measure"].low)).sum())
    if single:
        found.append(
            f"{single} of {cells} {'has' if single == 1 else 'have'} one trial and no interval of "
            f"the {summary.metric.name}: more trials would give one"
        )
    fall = summary["fall"]
    widths = (fall.high - fall.low)[~np.isnan(fall.high)] / 2
    widest = float(widths.max(initial=0.0))
    if tolerance is not None and widest > tolerance and not unsure:
        found.append(
            f"Some intervals are wide: up to ±{summary.metric.number(widest)}"
            f"{summary.metric.difference_unit}, which is more than the tolerance; more trials "
            "would narrow them"
        )
    return found
