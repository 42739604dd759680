"""Pictures of a study: resilience curves, layer ranking, heat map, and the network.

Lines differ in their colours, dashes and markers. Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fxfault.campaign.estimates.ranking import Curve, HeatMap, RankedSite, curves, heat_map
from fxfault.campaign.estimates.summary import Summary
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.pictures.campaign_network_picture import network_picture
from fxfault.results.pictures.drawing import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    LINE,
    MEMORY_COLOURS,
    MOST_BARS,
    MUTED,
    NOT_KNOWN,
    ORANGE,
    PINK,
    WEAKNESS,
    draw_bars,
    memories_of,
    name_memories,
    new_figure,
    plot_settings,
    rendered,
    scale_rates,
    set_headline,
    shortened,
)
from fxfault.results.reports.campaign_findings import Findings, golden_by_checkpoint
from fxfault.results.reports.campaign_report import standing_lines
from fxfault.results.reports.text import per_each

_DARK = {
    INK: "#e4e6e9",
    "#ffffff": "none",
    MUTED: "#a9b0b8",
    LINE: "#7c848d",
    GRID: "#30363d",
    NOT_KNOWN: "#3d444d",
    GREY: "#a0a7af",
    BLUE.lower(): "#4ba3dc",
}
# Text on the colours of `WEAKNESS`, in both schemes.
_ON_LIGHT, _ON_DARK = "#111111", "#fefefe"

_COLOURS = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9", INK)
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vPX"
_MOST_PANELS = 6
# A heat map of more fields than this has no numbers in them.
_MOST_NUMBERS = 400
# Height of a row in a heat map of many sites, in inches.
_CLOSE = 0.17
_NONE: Mapping[str, str] = {}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "handlelength": 2.6}


def pictures(findings: Findings, file_format: str) -> dict[str, bytes]:
    """Draw all pictures that a study has results for; their names have no file extension."""
    found = {}
    summary, ranked, background = findings.summary, findings.ranked, findings.background
    drawn, metric = curves(summary), summary.metric
    if drawn:
        golden = golden_by_checkpoint(summary)
        name = "accuracy" if metric.is_accuracy else "curves"
        found[name] = curves_picture(drawn, golden, file_format, metric)
    if ranked:
        kinds = findings.memories
        found["ranking"] = ranking_picture(ranked, summary.confidence, file_format, kinds, metric)
        found["heat_map"] = heat_picture(heat_map(summary), file_format, kinds)
    if background.nodes:
        falls = {site.name: site.fall for site in ranked}
        found["network"] = network_picture(background, falls, file_format, metric)
    return found


# -- the metric against probability ---------------------------------------------------------


def curves_picture(
    drawn: Sequence[Curve],
    golden: Mapping[str | None, float],
    file_format: str,
    metric: MetricFacts = ACCURACY,
) -> bytes:
    """Draw a metric against the rate of faults: a line for each fault, a panel for each place.

    `golden` is the metric of each checkpoint without faults.
    """
    panels = _by_place(drawn)[:_MOST_PANELS]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with plot_settings():
        size = (6.6 if columns == 1 else 9.6), 0.6 + 3.6 * rows
        figure, axes = new_figure(*size, nrows=rows, ncols=columns, sharey=True, squeeze=False)
        for panel, members in zip(axes.flat, panels, strict=False):
            _draw_panel(panel, members, drawn, golden)
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        for panel in axes[:, 0]:
            panel.set_ylabel(f"{metric.title}{metric.in_unit}")
        lines = [panel.get_legend_handles_labels() for panel in axes.flat[: len(panels)]]
        named = {label: line for pair in lines for line, label in zip(*pair, strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=4, **_LEGEND)
        return rendered(figure, file_format)


def draw_curves(
    drawn: Sequence[Curve],
    golden: Mapping[str | None, float],
    metric: MetricFacts = ACCURACY,
    axes: Any = None,
) -> Any:
    """Draw the first panel of `curves_picture` alone.

    Args:
        drawn: the curves.
        golden: the metric of each checkpoint without faults.
        metric: what the metric is.
        axes: axes to draw into; None makes a figure.

    Returns:
        The axes.
    """
    if axes is None:
        _, axes = new_figure(6.6, 4.2)
    _draw_panel(axes, _by_place(drawn)[0], drawn, golden)
    axes.set_ylabel(f"{metric.title}{metric.in_unit}")
    axes.legend(**_LEGEND)
    return axes


def _by_place(drawn: Sequence[Curve]) -> list[list[Curve]]:
    """The curves of each panel."""
    groups: dict[tuple[str, str | None, tuple[str, ...]], list[Curve]] = {}
    for curve in drawn:
        groups.setdefault((curve.place, curve.checkpoint, curve.memories), []).append(curve)
    return list(groups.values())


def _draw_panel(
    panel: Any,
    members: Sequence[Curve],
    drawn: Sequence[Curve],
    golden: Mapping[str | None, float],
) -> None:
    """Draw the curves of one place, in the styles that they have among all curves."""
    styles = _styles(list(dict.fromkeys(curve.fault for curve in drawn)))
    several = len({curve.memories for curve in drawn}) > 1
    first = members[0]
    _draw_curves(panel, members, styles)
    level = golden[first.checkpoint]
    panel.axhline(level, color=GREY, linewidth=1, label="golden, no faults")
    kinds = first.memories if several else ()
    panel.set_title(_title(first.place, kinds, first.checkpoint, len(golden)), fontsize=10)
    panel.set_xlabel(_rate_label(first))
    panel.grid(axis="y", color=GRID)


def _rate_label(curve: Curve) -> str:
    if curve.counted:
        return f"Faults {per_each(curve.memories)} (logarithmic)"
    return "Fault probability of each value (%, logarithmic)"


def _title(place: str, memories: Sequence[str], checkpoint: str | None, checkpoints: int) -> str:
    names = {"each": "each site struck alone, mean", "all": "all sites struck together"}
    title = names.get(place, shortened(place))
    if memories and place in names:
        title = f"{' and '.join(memories)}: {title}"
    return f"{title}\n{checkpoint}" if checkpoints > 1 else title


def _styles(faults: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A style for each fault; many faults, such as the bits of a word, go from light to dark."""
    colours: Sequence[Any] = _COLOURS
    if len(faults) > len(_COLOURS):
        colours = [light for light, _ in _shades(len(faults))]
    return {
        fault: {
            "color": colours[number],
            "linestyle": _DASHES[number % len(_DASHES)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }
        for number, fault in enumerate(faults)
    }


def _shades(number: int) -> list[tuple[str, str]]:
    """Colours from pale to strong, each for a white and for a black page."""
    import matplotlib
    from matplotlib.colors import to_hex

    shades = matplotlib.colormaps["viridis"]
    steps = [step / (number - 1) for step in range(number)]
    return [(to_hex(shades(0.8 * (1 - t))), to_hex(shades(0.35 + 0.65 * t))) for t in steps]


def dark_scheme(summary: Summary) -> dict[str, str]:
    """Give the colours of a dark page for those of the pictures of some estimates."""
    faults = {curve.fault for curve in curves(summary)}
    return {**_DARK, **(dict(_shades(len(faults))) if len(faults) > len(_COLOURS) else {})}


def _draw_curves(
    axes: Any, members: Sequence[Curve], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    rates: set[float] = set()
    most = max(curve.sites for curve in members)
    for curve in members:
        style = styles[curve.fault]
        rates.update(curve.rates)
        # A bit that only some sites have is not a mean over all sites.
        few = "" if curve.sites == most else f" ({curve.sites} of {most} sites)"
        label = f"{curve.fault}{few}"
        axes.plot(curve.rates, curve.values, markersize=4, label=label, zorder=3, **style)
        colour = style["color"]
        if len(curve.rates) > 1:
            axes.fill_between(
                curve.rates, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0
            )
        else:
            sides = [curve.values - curve.low, curve.high - curve.values]
            axes.errorbar(curve.rates, curve.values, sides, color=colour, capsize=3, fmt="none")
    scale_rates(axes, sorted(rates), widest=1)


# -- ranking --------------------------------------------------------------------------------


def ranking_picture(
    ranked: Sequence[RankedSite],
    confidence: float,
    file_format: str,
    memories: Mapping[str, str] = _NONE,
    metric: MetricFacts = ACCURACY,
) -> bytes:
    """Draw what faults at each site alone cost, as `draw_ranking` does, for a file."""
    with plot_settings():
        axes = draw_ranking(ranked, confidence, memories, metric)
        return rendered(axes.figure, file_format)


def draw_ranking(
    ranked: Sequence[RankedSite],
    confidence: float,
    memories: Mapping[str, str] = _NONE,
    metric: MetricFacts = ACCURACY,
    axes: Any = None,
) -> Any:
    """Draw what faults at each site alone cost, with intervals, the weakest at the top.

    Of more than `MOST_BARS` sites, only the weakest are drawn, and the picture says so. Bars have
    the colour of their memory if there are several; `memories` has that of each site by name.
    `axes` are the axes to draw into, which are returned; None makes a figure.
    """
    is_ours = axes is None
    shown = list(ranked[:MOST_BARS])
    names = [f"{shortened(site.name)}  ({_places(site)})" for site in shown]
    falls = [site.fall for site in shown]
    kinds = memories_of(memories, (site.name for site in ranked))
    colours = [MEMORY_COLOURS[memories.get(site.name, "activations")] for site in shown]
    look = {"color": colours} if len(kinds) > 1 else {}
    figure, axes = draw_bars(names, falls, 0.28, axes, alpha=0.35, **look)
    if len(kinds) > 1 and is_ours:
        name_memories(figure, kinds, alpha=0.35)
    below = [site.fall - site.fall_low for site in shown]
    above = [site.fall_high - site.fall for site in shown]
    axes.errorbar(
        falls, range(len(shown)), xerr=[below, above], fmt="o", markersize=4,
        color="black", elinewidth=1.2, capsize=3,
    )  # fmt: skip
    axes.set_xlabel(
        f"{metric.title} lost{metric.in_points}, mean over settings\nwith {confidence:g}% interval"
    )
    for line in standing_lines(ranked, metric):
        set_headline(axes, line.rstrip("."))
    left_out = f" (the {len(shown)} weakest of {len(ranked)})" if shown != list(ranked) else ""
    axes.set_ylabel(f"Site (interval of its rank){left_out}")
    return axes


def _places(site: RankedSite) -> str:
    if site.rank_low == site.rank_high:
        return f"rank {site.rank}"
    return f"rank {site.rank_low}-{site.rank_high}"


# -- heat map -------------------------------------------------------------------------------


def heat_picture(found: HeatMap, file_format: str, memories: Mapping[str, str] = _NONE) -> bytes:
    """Draw the SDC rate, or what else a map has, by site and fault.

    Sites of one memory stand together.
    """
    import matplotlib

    kinds = memories_of(memories, found.sites)
    if len(kinds) > 1:
        found = _grouped(found, memories, kinds)
    names = [shortened(site) for site in found.sites]
    with plot_settings():
        width = 2.6 + 0.08 * max(map(len, names)) + 0.62 * len(found.faults)
        height = 1.6 + (0.32 if len(names) <= MOST_BARS else _CLOSE) * len(names)
        figure, axes = new_figure(max(4.0, width), max(2.6, height))
        shades = matplotlib.colormaps[WEAKNESS].with_extremes(bad=NOT_KNOWN)
        edges = [np.arange(size + 1) - 0.5 for size in found.values.shape[::-1]]
        look = {"edgecolors": "white", "linewidth": 0.8, "vmin": 0}
        if np.nanmin(found.values, initial=0.0) < 0:  # A cost may be a gain.
            del look["vmin"]
        image = axes.pcolormesh(*edges, found.values, cmap=shades, **look)
        axes.invert_yaxis()
        axes.set_xticks(range(len(found.faults)), found.faults, rotation=45, ha="right")
        small = {"fontsize": 7.5} if len(names) > MOST_BARS else {}
        axes.set_yticks(range(len(names)), names, **small)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if len(kinds) > 1:
            for label, site in zip(axes.get_yticklabels(), found.sites, strict=True):
                label.set_color(MEMORY_COLOURS[memories.get(site, "activations")])
            name_memories(figure, kinds)
        if found.values.size <= _MOST_NUMBERS:
            _write_numbers(axes, found, image)
        rates = ", ".join(found.rates)
        label = found.label if len(found.rates) >= 5 else f"{found.label}\nmean over rates {rates}"
        figure.colorbar(image).set_label(label, labelpad=8)
        return rendered(figure, file_format)


def _grouped(found: HeatMap, memories: Mapping[str, str], kinds: Sequence[str]) -> HeatMap:
    """The same heat map with the sites of each memory below each other."""
    places = [kinds.index(memories.get(site, "activations")) for site in found.sites]
    order = sorted(range(len(places)), key=places.__getitem__)  # It keeps the order within one.
    sites = tuple(found.sites[index] for index in order)
    return replace(found, sites=sites, values=found.values[order])


def _write_numbers(axes: Any, found: HeatMap, image: Any) -> None:
    for row, values in enumerate(found.values.tolist()):
        for column, value in enumerate(values):
            if not math.isnan(value):
                text = f"{value:.3g}"
                if found.label == HeatMap.label:
                    text = f"{value:.1f}" if value < 99.95 else "100"
                colour = _ON_LIGHT if image.norm(value) < 0.7 else _ON_DARK
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
