"""The tables of the page: text to be read, and numbers to be sorted by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fxfault.campaign.analysis import Estimate
from fxfault.campaign.background import SiteNote
from fxfault.campaign.ranking import Curve, HeatMap, RankedSite
from fxfault.campaign.site_counts import SiteCounts
from fxfault.cli.campaign_report import NOTHING, Findings, counted, figure, with_interval

# A page of more rows than this would be slow to open.
MOST_ROWS = 10_000


@dataclass(frozen=True)
class Entry:
    """What stands in a field of a table.

    Attributes:
        text: to be read.
        number: to be sorted by; None: the text. A NaN comes last.
    """

    text: str
    number: float | None = None

    @property
    def order(self) -> str | None:
        """The number for the page; empty where there is none to sort by."""
        if self.number is None:
            return None
        return "" if math.isnan(self.number) else repr(float(self.number))


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its head.
        is_number: whether its entries are numbers.
        meaning: what they are, if the head is too short for it.
    """

    label: str
    is_number: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table; its first entry is its head.

    Attributes:
        entries: as many as there are columns.
        name: that a link on the page calls it by, if any does.
    """

    entries: Sequence[Entry]
    name: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: that the page calls it by.
        caption: what it holds.
        columns: from the left.
        rows: from the top.
        notes: what is to be known of it, in sentences.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)


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


def _share(part: int, whole: int) -> Entry:
    return _numbered(100 * part / whole if whole else math.nan)


# -- figures as tables ----------------------------------------------------------------------


def curve_table(drawn: Sequence[Curve], confidence: float) -> Table:
    """The points of the resilience curves."""
    several = len({curve.checkpoint for curve in drawn}) > 1
    rate = "Faults per sample" if drawn[0].counted else "Rate (%)"
    columns = [
        Column("Fault"),
        Column("Struck"),
        *([Column("Checkpoint")] if several else []),
        Column("Sites", True, "Struck alone, and averaged"),
        Column(rate, True),
        Column(f"Accuracy (%) [{confidence:g} %]", True),
    ]
    rows = []
    for curve in drawn:
        points = zip(curve.rates, curve.accuracy, curve.low, curve.high, strict=True)
        for rate_value, value, low, high in points:
            place = "each site alone" if curve.place == "each" else curve.place
            entries = [Entry(curve.fault), Entry(place)]
            entries += [Entry(str(curve.checkpoint))] if several else []
            entries += [_whole(curve.sites), Entry(f"{rate_value:g}", rate_value)]
            entries.append(_estimated(float(value), float(low), float(high)))
            rows.append(Row(entries))
    return Table("curves", "The points of the curves", columns, rows)


def ranking_table(ranked: Sequence[RankedSite], confidence: float) -> Table:
    """The sites that were struck alone, the weakest first."""
    columns = [
        Column("Site"),
        Column("Rank", True),
        Column(
            f"Rank, {confidence:g} %",
            True,
            "Interval of the rank: places of sites that are not surely weaker or stronger",
        ),
        Column(f"Accuracy lost (points) [{confidence:g} %]", True),
        Column("SDC (%)", True, "Predictions that faults changed"),
        Column("Trials", True),
    ]
    rows = [
        Row(
            [
                Entry(site.name),
                _whole(site.rank),
                Entry(f"{site.rank_low}–{site.rank_high}", site.rank_low + site.rank_high / 1e6),
                _estimated(site.fall, site.fall_low, site.fall_high),
                _numbered(site.sdc),
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
        Row([Entry(site), *(_numbered(float(value), 1) for value in values)])
        for site, values in zip(found.sites, found.values, strict=True)
    ]
    columns = [Column("Site"), *(Column(fault, True) for fault in found.faults)]
    caption = f"SDC rate (%), mean over the rates {', '.join(found.rates)}"
    return Table("heat-map", caption, columns, rows)


# -- sites ----------------------------------------------------------------------------------

_SITE_COLUMNS = (
    Column("Site"),
    Column("#", True, "Place in the order of execution"),
    Column("Layer", False, "Class of the activation layer"),
    Column("Bits", True, "Bits of the word"),
    Column("Signed"),
    Column("Elements", True, "Of one sample"),
    Column("Share", True, "Of the elements of all sites"),
    Column("Trials", True, "In which the site was struck alone"),
    Column("Hits", True, "Elements that were hit in these trials"),
    Column("Rate", True, "Hits, of the elements that were exposed"),
    Column("Struck", True, "Samples in which anything was hit"),
    Column("Masked", True, "Of struck samples, those with the golden prediction"),
    Column("SDC", True, "Samples whose prediction changed, over all these trials"),
    Column("Lost", True, "Accuracy, mean over all settings that all sites have"),
)


def site_table(findings: Findings) -> Table:
    """What is known of each site."""
    sites = findings.background.sites or _sites_by_name(findings)
    elements = [site.elements for site in sites]
    total = sum(number or 0 for number in elements) if None not in elements else 0
    falls = {site.name: site.fall for site in findings.ranked}
    rows = [
        Row(
            [
                *_what_it_is(site, total),
                *_what_was_counted(findings.site_counts.get(site.name)),
                _numbered(falls.get(site.name, math.nan)),
            ],
            f"site-{site.index}",
        )
        for site in sites
    ]
    caption = "In the order of execution; shares and rates in percent, accuracy lost in points"
    return Table("sites", caption, _SITE_COLUMNS, rows)


def _sites_by_name(findings: Findings) -> list[SiteNote]:
    """The sites that cells name, where nothing else is known of them."""
    cells = findings.summary.cells
    names = dict.fromkeys(name for cell in cells for name in cell.layers or ())
    return [SiteNote(name, i, NOTHING, None, None, None) for i, name in enumerate(names)]


def _what_it_is(site: SiteNote, total: int) -> list[Entry]:
    signed = {None: NOTHING, True: "yes", False: "no"}[site.signed]
    known = total and site.elements is not None
    share = 100 * (site.elements or 0) / total if known else math.nan
    kind = Entry(site.module_type)
    return [
        Entry(site.name), _whole(site.index), kind, _whole(site.bit_width), Entry(signed),
        _whole(site.elements), _numbered(share),
    ]  # fmt: skip


def _what_was_counted(counts: SiteCounts | None) -> list[Entry]:
    if counts is None:
        return [_whole(0), *[_whole(None)] * 5]
    rate = 100 * counts.faults / counts.elements if counts.elements else math.nan
    return [
        _whole(counts.trials),
        _whole(counts.faults),
        Entry(NOTHING if math.isnan(rate) else f"{rate:.4g}", rate),
        _share(counts.struck, counts.samples),
        _share(counts.masked, counts.struck),
        _share(counts.sdc, counts.samples),
    ]


# -- cells ----------------------------------------------------------------------------------


def cell_table(findings: Findings) -> Table:
    """A row for each cell, of a very large study for the first ones."""
    summary = findings.summary
    several = len({cell.checkpoint for cell in summary.cells}) > 1
    top = any(not math.isnan(value) for value in summary["top5"].value)
    columns = [
        Column("Site"),
        Column("Fault"),
        Column("Rate", True),
        *([Column("Checkpoint")] if several else []),
        Column("Trials", True),
        Column("Accuracy", True),
        Column("Fall", True, "Of accuracy, in points"),
        Column("SDC", True, "Predictions that faults changed"),
        Column("Critical", True, "Was right without faults, is wrong with them"),
        Column("Masked", True, "Of struck samples, those with the golden prediction"),
        *([Column("Top 5", True)] if top else []),
        Column("Hit", True, "Of the elements that were exposed"),
        Column("State"),
    ]
    rows = []
    for index, cell in enumerate(summary.cells[:MOST_ROWS]):
        rate = math.nan if cell.rate is None else cell.rate
        entries = [Entry(cell.place), Entry(cell.fault), Entry(cell.rate_text, rate)]
        entries += [Entry(str(cell.checkpoint))] if several else []
        entries.append(_whole(int(summary.trials[index])))
        entries += [_entry(summary["accuracy"], index), _value(summary["fall"], index)]
        entries += [_entry(summary["sdc"], index)]
        entries += [_value(summary[name], index) for name in ("critical_sdc", "masked")]
        entries += [_value(summary["top5"], index)] if top else []
        hit = float(summary["fault_rate"].value[index])
        entries.append(Entry(NOTHING if math.isnan(hit) else f"{hit:.4g}", hit))
        rows.append(Row([*entries, Entry(findings.states[index])]))
    left_out = len(summary.cells) - len(rows)
    notes = ["All intervals: fxfault-campaign export --what cells."]
    notes += [f"It has {counted(left_out, 'cell')} more, too."] if left_out else []
    caption = f"Estimates of each cell in percent, with {summary.confidence:g} % intervals"
    return Table("cells", caption, columns, rows, notes)


def _value(estimate: Estimate, index: int) -> Entry:
    return _numbered(float(estimate.value[index]))


def _entry(estimate: Estimate, index: int) -> Entry:
    return _estimated(
        float(estimate.value[index]), float(estimate.low[index]), float(estimate.high[index])
    )
