"""The tables of a report, for the console and the page: texts to read, numbers to sort by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fxfault.campaign.estimates.ranking import Curve, HeatMap, RankedSite
from fxfault.campaign.estimates.site_counts import SiteCounts
from fxfault.campaign.records.background import SiteNote
from fxfault.messages import counted
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.reports.campaign_findings import Findings
from fxfault.results.reports.text import NOTHING, figure, lined_up, per_each, with_interval


class Entry(NamedTuple):
    """A field of a table: its text, and the number to sort by (NaN last; None: by the text)."""

    text: str
    number: float | None = None

    @property
    def order(self) -> str | None:
        """The number as the page has it, empty for a NaN; None to sort by the text."""
        if self.number is None:
            return None
        return "" if math.isnan(self.number) else repr(float(self.number))


class Column(NamedTuple):
    """A column of a table: its head, whether it holds numbers, and what the head means."""

    label: str
    is_number: bool = False
    meaning: str = ""


_MEMORY = Column("Memory", False, "What the site is: activations, weights, biases or parameters")


class Row(NamedTuple):
    """A row of a table: its entries, the first as its head, and its id if a link leads to it."""

    entries: Sequence[Entry]
    name: str = ""


class Table(NamedTuple):
    """A table with its id on the page; the notes are sentences for its caption."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def lines(self, left: int) -> list[str]:
        """The table as text, with so many columns, from the first, flush left."""
        rows = [[entry.text for entry in row.entries] for row in self.rows]
        return lined_up([column.label for column in self.columns], rows, left)


def plain_table(name: str, caption: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values."""
    rows = [Row([Entry(key), Entry(value)]) for key, value in pairs]
    return Table(name, caption, [Column("What"), Column("Value")], rows)


def _numbered(value: float, decimals: int = 2) -> Entry:
    return Entry(figure(value, decimals), value)


def _whole(value: int | None) -> Entry:
    return Entry(NOTHING, math.nan) if value is None else Entry(f"{value:,}", value)


def _estimated(value: float, low: float, high: float) -> Entry:
    return Entry(with_interval(value, low, high), value)


def _measured(metric: MetricFacts, value: float, low: float, high: float) -> Entry:
    return Entry(metric.with_interval(value, low, high), value)


def _small(value: float, digits: int = 4) -> Entry:
    return Entry(NOTHING if math.isnan(value) else f"{value:.{digits}g}", value)


_DUE = "Predictions lost to scores that are not finite"


def _if_any(has_due: bool, column: Any) -> list[Any]:
    """What shows DUE: nothing if there is none, as with integer words."""
    return [column] if has_due else []


def _share(part: int | None, whole: int) -> Entry:
    return _numbered(math.nan if part is None or not whole else 100 * part / whole)


def _points(metric: MetricFacts) -> str:
    """The unit of a loss in brackets."""
    return " (points)" if metric.unit == "%" else metric.in_unit


def _changed(metric: MetricFacts) -> str:
    """What an SDC is."""
    if metric.is_accuracy:
        return "Predictions that faults changed"
    return f"Samples whose {metric.name} faults moved by more than {metric.tolerance:g}"


def _kept(metric: MetricFacts) -> str:
    """What masked is."""
    what = "prediction" if metric.is_accuracy else "value"
    return f"Of struck samples, those with the golden {what}"


# -- figures as tables ----------------------------------------------------------------------


def curve_table(drawn: Sequence[Curve], confidence: float, metric: MetricFacts = ACCURACY) -> Table:
    """The points of the resilience curves."""
    several = len({curve.checkpoint for curve in drawn}) > 1
    kinds = dict.fromkeys(curve.memories for curve in drawn)
    columns = [
        Column("Fault"),
        *([_MEMORY] if len(kinds) > 1 else []),
        Column("Struck"),
        *([Column("Checkpoint")] if several else []),
        Column("Sites", True, "Struck alone, and averaged"),
        Column(_counts_of(kinds) if drawn[0].counted else "Rate (%)", True),
        Column(f"{metric.title}{metric.in_unit} [{confidence:g} %]", True),
    ]
    rows = []
    for curve in drawn:
        place = "each site alone" if curve.place == "each" else curve.place
        same = [Entry(curve.fault)]
        same += [Entry(", ".join(curve.memories))] if len(kinds) > 1 else []
        same.append(Entry(place))
        same += [Entry(str(curve.checkpoint))] if several else []
        same.append(_whole(curve.sites))
        points = zip(curve.rates, curve.values, curve.low, curve.high, strict=True)
        for rate, *value in points:
            rows.append(Row([*same, Entry(f"{rate:g}", rate), _measured(metric, *value)]))
    return Table("curves", "The points of the curves", columns, rows)


def _counts_of(kinds: Iterable[Sequence[str]]) -> str:
    """The head of numbers of faults."""
    named = dict.fromkeys(map(per_each, kinds))
    return f"Faults {' or '.join(named)}"


def ranking_table(
    ranked: Sequence[RankedSite],
    confidence: float,
    memories: Mapping[str, str] | None = None,
    metric: MetricFacts = ACCURACY,
) -> Table:
    """The sites that were struck alone, the weakest first.

    If `memories` has the memory of each site by name, a column shows it.
    """
    has_due = any(site.due for site in ranked)
    columns = [
        Column("Site"),
        *([_MEMORY] if memories else []),
        Column("Rank", True),
        Column(
            f"Rank, {confidence:g} %",
            True,
            "Interval of the rank: places of sites that are not surely weaker or stronger",
        ),
        Column(f"{metric.title} lost{_points(metric)} [{confidence:g} %]", True),
        *_if_any(metric.has_sdc, Column("SDC (%)", True, _changed(metric))),
        *_if_any(has_due, Column("DUE (%)", True, _DUE)),
        Column("Trials", True),
    ]
    rows = [
        Row(
            [
                Entry(site.name),
                *([Entry(memories.get(site.name, NOTHING))] if memories else []),
                _whole(site.rank),
                Entry(f"{site.rank_low}–{site.rank_high}", site.rank_low + site.rank_high / 1e6),
                _measured(metric, site.fall, site.fall_low, site.fall_high),
                *_if_any(metric.has_sdc, _numbered(site.sdc)),
                *_if_any(has_due, _numbered(site.due)),
                _whole(site.trials),
            ]
        )
        for site in ranked
    ]
    caption = "Sites struck alone, mean over all settings that all sites have"
    return Table("ranking", caption, columns, rows)


def at_rates(found: HeatMap) -> str:
    """Say at which rates the values of a map were measured."""
    if len(found.rates) == 1:
        return f"at {found.rates[0]}"
    return f"mean over the rates {', '.join(found.rates)}"


def heat_table(found: HeatMap) -> Table:
    """The SDC rate by site and fault, or what else the heat map shows."""
    rows = [
        Row([Entry(site), *(_in_map(found, value) for value in values)])
        for site, values in zip(found.sites, found.values, strict=True)
    ]
    columns = [Column("Site"), *(Column(fault, True) for fault in found.faults)]
    caption = f"{found.label}, {at_rates(found)}"
    return Table("heat-map", caption, columns, rows)


def _in_map(found: HeatMap, value: float) -> Entry:
    """A value of a heat map: percentages with one decimal, others in three digits."""
    return _numbered(value, 1) if found.label == HeatMap.label else _small(value, 3)


# -- sites ----------------------------------------------------------------------------------


def _site_columns(metric: MetricFacts) -> list[Column]:
    """The columns of the table of sites."""
    sample = "prediction" if metric.is_accuracy else "value"
    lost = "scores are" if metric.is_accuracy else "value is"
    return [
        Column("Site"),
        _MEMORY,
        Column("#", True, "Place in the order of execution"),
        Column("Layer", False, "Class of the layer"),
        Column("Bits", True, "Bits of the word"),
        Column("Signed"),
        Column("Elements", True, "Of one sample, or of a weight or bias"),
        Column("Share", True, "Of the elements of all sites"),
        Column("Trials", True, "In which the site was struck alone"),
        Column("Hits", True, "Elements that were hit in these trials"),
        Column("Rate", True, "Hits, of the elements that were exposed"),
        Column("Struck", True, "Samples in which anything was hit"),
        *_if_any(metric.has_sdc, Column("Masked", True, _kept(metric))),
        *_if_any(
            metric.has_sdc,
            Column("SDC", True, f"Samples whose {sample} changed, over all these trials"),
        ),
        Column("DUE", True, f"Samples whose {lost} not finite, over all these trials"),
        Column("Lost", True, f"{metric.title}, mean over all settings that all sites have"),
    ]


def site_table(findings: Findings) -> Table:
    """A row for each site, with its properties and its counts."""
    sites = findings.background.sites or _sites_by_name(findings)
    elements = [site.elements for site in sites]
    total = sum(number or 0 for number in elements) if None not in elements else 0
    falls = {site.name: site.fall for site in findings.ranked}
    has_due = any(counts.due for counts in findings.site_counts.values())
    metric = findings.summary.metric
    columns = [column for column in _site_columns(metric) if has_due or column.label != "DUE"]
    rows = []
    several = findings.has_several_memories
    for site in sites:
        entries = _what_it_is(site, total)
        entries[1:1] = [Entry(site.memory)] if several else []
        counts = findings.site_counts.get(site.name)
        entries += _what_was_counted(counts, has_due, metric.has_sdc)
        fall = falls.get(site.name, math.nan)
        entries.append(Entry(metric.number(fall), fall))
        rows.append(Row(entries, f"site-{site.index}"))
    unit = metric.difference_unit.strip()
    lost = f"{metric.name} lost{f' in {unit}' if unit else ''}"
    caption = f"In the order of execution; shares and rates in percent, {lost}"
    columns = [column for column in columns if several or column is not _MEMORY]
    return Table("sites", caption, columns, rows)


def _sites_by_name(findings: Findings) -> list[SiteNote]:
    """The sites that cells name, for a store without notes on the network."""
    cells = findings.summary.cells
    names = dict.fromkeys(name for cell in cells for name in cell.layers or ())
    return [SiteNote(name, i, NOTHING, None, None, None) for i, name in enumerate(names)]


def _what_it_is(site: SiteNote, total: int) -> list[Entry]:
    signed = {None: NOTHING, True: "yes", False: "no"}[site.signed]
    return [
        Entry(site.name),
        _whole(site.index),
        Entry(site.module_type),
        _whole(site.bit_width),
        Entry(signed),
        _whole(site.elements),
        _share(site.elements or 0, total),
    ]


def _what_was_counted(counts: SiteCounts | None, has_due: bool, has_sdc: bool) -> list[Entry]:
    if counts is None:
        return [_whole(0), *[_whole(None)] * (3 + 2 * has_sdc + has_due)]
    rate = 100 * counts.faults / counts.elements if counts.elements else math.nan
    return [
        _whole(counts.trials),
        _whole(counts.faults),
        _small(rate),
        _share(counts.struck, counts.samples),
        *_if_any(has_sdc, _share(counts.masked, counts.struck)),
        *_if_any(has_sdc, _share(counts.sdc, counts.samples)),
        *_if_any(has_due, _share(counts.due, counts.samples)),
    ]


# -- cells ----------------------------------------------------------------------------------


def cell_table(findings: Findings, most: int | None = None) -> Table:
    """A row for each cell, or for the first cells if there are more than `most`."""
    summary = findings.summary
    several = len({cell.checkpoint for cell in summary.cells}) > 1
    metric, shown = summary.metric, summary.shown
    top = "top5" in shown and not np.isnan(summary["top5"].value).all()
    kinds = len({cell.memories for cell in summary.cells}) > 1
    unit = metric.difference_unit.strip()
    columns = [
        Column("Site"),
        *([_MEMORY] if kinds else []),
        Column("Fault"),
        Column("Rate", True),
        *([Column("Checkpoint")] if several else []),
        Column("Trials", True),
        Column(metric.title, True),
        Column("Fall", True, f"Of {metric.name}{f', in {unit}' if unit else ''}"),
        *_if_any(metric.has_sdc, Column("SDC", True, _changed(metric))),
        *_if_any(
            metric.is_accuracy,
            Column("Critical", True, "Was right without faults, is wrong with them"),
        ),
        *_if_any(summary.has_due, Column("DUE", True, _DUE)),
        *_if_any(metric.has_sdc, Column("Masked", True, _kept(metric))),
        *([Column("Top 5", True)] if top else []),
        Column("Hit", True, "Of the elements that were exposed"),
        Column("State"),
    ]
    rows = []
    for index, cell in enumerate(summary.cells[:most]):
        rate = math.nan if cell.rate is None else cell.rate
        entries = [Entry(cell.place), *([Entry(", ".join(cell.memories))] if kinds else [])]
        entries += [Entry(cell.fault), Entry(cell.rate_text, rate)]
        entries += [Entry(str(cell.checkpoint))] if several else []
        entries.append(_whole(int(summary.trials[index])))
        for name in shown:
            if name == "fault_rate" or (name == "top5" and not top):
                continue
            part = summary[name]
            value, low, high = part.value[index], part.low[index], part.high[index]
            if name == "measure":
                entries.append(_measured(metric, value, low, high))
            elif name == "fall":
                entries.append(Entry(metric.number(value), value))
            elif name in ("sdc", "due"):
                entries.append(_estimated(value, low, high))
            else:
                entries.append(_numbered(value))
        entries.append(_small(summary["fault_rate"].value[index]))
        rows.append(Row([*entries, Entry(findings.states[index])]))
    left_out = len(summary.cells) - len(rows)
    notes = ["All intervals: fxfault campaign export --what cells."]
    notes += [f"It has {counted(left_out, 'cell')} more, too."] if left_out else []
    rates = "in percent" if metric.is_accuracy else f"({metric.name}{metric.in_unit}, rates in %)"
    caption = f"Estimates of each cell {rates}, with {summary.confidence:g} % intervals"
    return Table("cells", caption, columns, rows, notes)
