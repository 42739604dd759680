"""The tables of a report, for the console and the page: texts to read, numbers to sort by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fxfault.campaign.estimates.ranking import Curve, HeatMap, RankedSite
from fxfault.campaign.estimates.site_counts import SiteCounts
from fxfault.campaign.records.background import SiteNote
from fxfault.cli.reports.campaign_findings import Findings
from fxfault.cli.terminal.text import NOTHING, figure, lined_up, per_each, with_interval
from fxfault.messages import counted


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


def _small(value: float) -> Entry:
    return Entry(NOTHING if math.isnan(value) else f"{value:.4g}", value)


_DUE = "Predictions lost to scores that are not finite"


def _if_any(has_due: bool, column: Any) -> list[Any]:
    """What shows DUE: nothing if there is none, as with integer words."""
    return [column] if has_due else []


def _share(part: int, whole: int) -> Entry:
    return _numbered(100 * part / whole if whole else math.nan)


# -- figures as tables ----------------------------------------------------------------------


def curve_table(drawn: Sequence[Curve], confidence: float) -> Table:
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
        Column(f"Accuracy (%) [{confidence:g} %]", True),
    ]
    rows = []
    for curve in drawn:
        place = "each site alone" if curve.place == "each" else curve.place
        same = [Entry(curve.fault)]
        same += [Entry(", ".join(curve.memories))] if len(kinds) > 1 else []
        same.append(Entry(place))
        same += [Entry(str(curve.checkpoint))] if several else []
        same.append(_whole(curve.sites))
        points = zip(curve.rates, curve.accuracy, curve.low, curve.high, strict=True)
        for rate, *accuracy in points:
            rows.append(Row([*same, Entry(f"{rate:g}", rate), _estimated(*accuracy)]))
    return Table("curves", "The points of the curves", columns, rows)


def _counts_of(kinds: Iterable[Sequence[str]]) -> str:
    """The head of numbers of faults."""
    named = dict.fromkeys(map(per_each, kinds))
    return f"Faults {' or '.join(named)}"


def ranking_table(
    ranked: Sequence[RankedSite], confidence: float, memories: Mapping[str, str] | None = None
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
        Column(f"Accuracy lost (points) [{confidence:g} %]", True),
        Column("SDC (%)", True, "Predictions that faults changed"),
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
                _estimated(site.fall, site.fall_low, site.fall_high),
                _numbered(site.sdc),
                *_if_any(has_due, _numbered(site.due)),
                _whole(site.trials),
            ]
        )
        for site in ranked
    ]
    caption = "Sites struck alone, mean over all settings that all sites have"
    return Table("ranking", caption, columns, rows)


def heat_table(found: HeatMap) -> Table:
    """The SDC rate by site and fault."""
    rows = [
        Row([Entry(site), *(_numbered(value, 1) for value in values)])
        for site, values in zip(found.sites, found.values, strict=True)
    ]
    columns = [Column("Site"), *(Column(fault, True) for fault in found.faults)]
    caption = f"SDC rate (%), mean over the rates {', '.join(found.rates)}"
    return Table("heat-map", caption, columns, rows)


# -- sites ----------------------------------------------------------------------------------

_SITE_COLUMNS = (
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
    Column("Masked", True, "Of struck samples, those with the golden prediction"),
    Column("SDC", True, "Samples whose prediction changed, over all these trials"),
    Column("DUE", True, "Samples whose scores are not finite, over all these trials"),
    Column("Lost", True, "Accuracy, mean over all settings that all sites have"),
)


def site_table(findings: Findings) -> Table:
    """A row for each site, with its properties and its counts."""
    sites = findings.background.sites or _sites_by_name(findings)
    elements = [site.elements for site in sites]
    total = sum(number or 0 for number in elements) if None not in elements else 0
    falls = {site.name: site.fall for site in findings.ranked}
    has_due = any(counts.due for counts in findings.site_counts.values())
    columns = [column for column in _SITE_COLUMNS if has_due or column.label != "DUE"]
    rows = []
    several = findings.has_several_memories
    for site in sites:
        entries = _what_it_is(site, total)
        entries[1:1] = [Entry(site.memory)] if several else []
        entries += _what_was_counted(findings.site_counts.get(site.name), has_due)
        entries.append(_numbered(falls.get(site.name, math.nan)))
        rows.append(Row(entries, f"site-{site.index}"))
    caption = "In the order of execution; shares and rates in percent, accuracy lost in points"
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


def _what_was_counted(counts: SiteCounts | None, has_due: bool) -> list[Entry]:
    if counts is None:
        return [_whole(0), *[_whole(None)] * (5 + has_due)]
    rate = 100 * counts.faults / counts.elements if counts.elements else math.nan
    return [
        _whole(counts.trials),
        _whole(counts.faults),
        _small(rate),
        _share(counts.struck, counts.samples),
        _share(counts.masked, counts.struck),
        _share(counts.sdc, counts.samples),
        *_if_any(has_due, _share(counts.due, counts.samples)),
    ]


# -- cells ----------------------------------------------------------------------------------


def cell_table(findings: Findings, most: int | None = None) -> Table:
    """A row for each cell, or for the first cells if there are more than `most`."""
    summary = findings.summary
    several = len({cell.checkpoint for cell in summary.cells}) > 1
    top = not np.isnan(summary["top5"].value).all()
    kinds = len({cell.memories for cell in summary.cells}) > 1
    columns = [
        Column("Site"),
        *([_MEMORY] if kinds else []),
        Column("Fault"),
        Column("Rate", True),
        *([Column("Checkpoint")] if several else []),
        Column("Trials", True),
        Column("Accuracy", True),
        Column("Fall", True, "Of accuracy, in points"),
        Column("SDC", True, "Predictions that faults changed"),
        Column("Critical", True, "Was right without faults, is wrong with them"),
        *_if_any(summary.has_due, Column("DUE", True, _DUE)),
        Column("Masked", True, "Of struck samples, those with the golden prediction"),
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
        for name in (
            "accuracy",
            "fall",
            "sdc",
            "critical_sdc",
            *_if_any(summary.has_due, "due"),
            "masked",
            *(["top5"] if top else []),
        ):
            part = summary[name]
            value, low, high = part.value[index], part.low[index], part.high[index]
            has_interval = name in ("accuracy", "sdc", "due")
            entries.append(_estimated(value, low, high) if has_interval else _numbered(value))
        entries.append(_small(summary["fault_rate"].value[index]))
        rows.append(Row([*entries, Entry(findings.states[index])]))
    left_out = len(summary.cells) - len(rows)
    notes = ["All intervals: fxfault-campaign export --what cells."]
    notes += [f"It has {counted(left_out, 'cell')} more, too."] if left_out else []
    caption = f"Estimates of each cell in percent, with {summary.confidence:g} % intervals"
    return Table("cells", caption, columns, rows, notes)
