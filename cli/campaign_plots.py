"""Pictures of what a campaign found: resilience curves, layer ranking, heat map.

Colours are Okabe and Ito's; lines differ in their dashes and markers too. Importing this module
does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fxfault.campaign.analysis import Summary
from fxfault.campaign.ranking import Curve, HeatMap, RankedSite, curves, heat_map
from fxfault.cli.campaign_report import standing_lines
from fxfault.cli.figures import MOST_BARS, new_figure, plot_settings, rendered, shortened

# What a page in a dark scheme changes; see `dark_scheme`.
INK, MUTED, LINE, GRID, NOT_KNOWN = "#000000", "#555555", "#8c8c8c", "#e6e6e6", "#d9d9d9"
_GOLDEN = "#666666"
_DARK = {
    INK: "#e4e6e9",
    "#ffffff": "none",
    MUTED: "#a9b0b8",
    LINE: "#7c848d",
    GRID: "#30363d",
    NOT_KNOWN: "#3d444d",
    _GOLDEN: "#a0a7af",
    "#0072b2": "#4ba3dc",
}
# Of what is weak: the more accuracy is lost, the darker.
WEAKNESS = "YlOrRd"
# Stand on that, in both schemes.
_ON_LIGHT, _ON_DARK = "#111111", "#fefefe"

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vPX"
_MOST_PANELS = 6
_LONGEST_TITLE = 80
_MOST_TICKS = 12
# A map of more fields than this goes without numbers in them.
_MOST_NUMBERS = 400
# Inches of a row of a map of many sites.
_CLOSE = 0.17
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "handlelength": 2.6}


def pictures(
    summary: Summary, ranked: Sequence[RankedSite], file_format: str
) -> Mapping[str, bytes]:
    """Draw all pictures that a study has something for.

    Args:
        summary: the estimates.
        ranked: the sites that were struck alone.
        file_format: one of `fxfault.cli.figures.FORMATS`.

    Returns:
        The files by name, without the ending.
    """
    found = {}
    drawn = curves(summary)
    if drawn:
        found["accuracy"] = curves_picture(drawn, _golden(summary), file_format)
    if ranked:
        found["ranking"] = ranking_picture(ranked, summary.confidence, file_format)
        found["heat_map"] = heat_picture(heat_map(summary), file_format)
    return found


def _golden(summary: Summary) -> dict[str | None, float]:
    return {
        cell.checkpoint: golden
        for cell, golden in zip(summary.cells, summary.golden.tolist(), strict=True)
        if not math.isnan(golden)
    }


# -- accuracy against probability -----------------------------------------------------------


def curves_picture(
    drawn: Sequence[Curve], golden: Mapping[str | None, float], file_format: str
) -> bytes:
    """Draw accuracy against the rate of faults: a line for each fault, a panel for each place.

    Args:
        drawn: at least one.
        golden: accuracy without faults of each checkpoint, in percent.
        file_format: one of `fxfault.cli.figures.FORMATS`.
    """
    groups: dict[tuple[str, str | None], list[Curve]] = {}
    for curve in drawn:
        groups.setdefault((curve.place, curve.checkpoint), []).append(curve)
    panels = list(groups.items())[:_MOST_PANELS]
    styles = _styles(list(dict.fromkeys(curve.fault for curve in drawn)))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with plot_settings():
        size = (6.6 if columns == 1 else 9.6), 0.6 + 3.6 * rows
        figure, axes = new_figure(*size, nrows=rows, ncols=columns, sharey=True, squeeze=False)
        for panel, ((place, checkpoint), members) in zip(axes.flat, panels, strict=False):
            _draw_curves(panel, members, styles)
            panel.axhline(golden[checkpoint], color=_GOLDEN, linewidth=1, label="golden, no faults")
            panel.set_title(_title(place, checkpoint, len(golden)), fontsize=10)
            panel.set_xlabel(_rate_label(members[0]))
            panel.grid(axis="y", color=GRID)
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        for panel in axes[:, 0]:
            panel.set_ylabel("Accuracy (%)")
        lines = [panel.get_legend_handles_labels() for panel in axes.flat[: len(panels)]]
        named = {label: line for pair in lines for line, label in zip(*pair, strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=4, **_LEGEND)
        return rendered(figure, file_format)


def _rate_label(curve: Curve) -> str:
    if curve.counted:
        return "Faults per sample (logarithmic)"
    return "Fault probability of each value (%, logarithmic)"


def _title(place: str, checkpoint: str | None, checkpoints: int) -> str:
    names = {"each": "each site struck alone, mean", "all": "all sites struck together"}
    title = names.get(place, shortened(place))
    return f"{title}\n{checkpoint}" if checkpoints > 1 else title


def _styles(faults: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A look for each fault; many (the bits of a word) go from light to dark."""
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
    """Colours from pale to strong, on white and on black."""
    import matplotlib
    from matplotlib.colors import to_hex

    shades = matplotlib.colormaps["viridis"]
    steps = [step / (number - 1) for step in range(number)]
    return [(to_hex(shades(0.8 * (1 - t))), to_hex(shades(0.35 + 0.65 * t))) for t in steps]


def curve_label(curve: Curve, most: int) -> str:
    """The fault of a curve; a bit that only some of the sites have is no mean over all.

    Args:
        curve: the curve.
        most: sites that any curve beside it is the mean of.
    """
    few = "" if curve.sites == most else f" ({curve.sites} of {most} sites)"
    return f"{curve.fault}{few}"


def dark_scheme(summary: Summary) -> dict[str, str]:
    """Give the colours that a page in a dark scheme puts in the place of those of the pictures.

    Args:
        summary: that the pictures are of.
    """
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
        label = curve_label(curve, most)
        axes.plot(curve.rates, curve.accuracy, markersize=4, label=label, zorder=3, **style)
        colour = style["color"]
        if len(curve.rates) > 1:
            axes.fill_between(
                curve.rates, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0
            )
        else:
            sides = [curve.accuracy - curve.low, curve.high - curve.accuracy]
            axes.errorbar(curve.rates, curve.accuracy, sides, color=colour, capsize=3, fmt="none")
    _scale(axes, sorted(rates))


def _scale(axes: Any, rates: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    positive = [rate for rate in rates if rate > 0]
    if positive and len(positive) < len(rates):
        # 0 has a place on this axis; on a logarithmic one it has none.
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    elif positive:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: format(place, "g")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(rates) <= _MOST_TICKS:
        axes.set_xticks(rates)
        axes.xaxis.set_minor_locator(NullLocator())


# -- ranking --------------------------------------------------------------------------------


def ranking_picture(ranked: Sequence[RankedSite], confidence: float, file_format: str) -> bytes:
    """Draw what faults at each site alone cost, with intervals, the weakest at the top.

    Of more than `MOST_BARS` sites the weakest are drawn, and the picture says so.

    Args:
        ranked: at least one.
        confidence: of the intervals, in percent.
        file_format: one of `fxfault.cli.figures.FORMATS`.
    """
    shown = list(ranked[:MOST_BARS])
    names = [f"{shortened(site.name)}  ({_places(site)})" for site in shown]
    falls = [site.fall for site in shown]
    with plot_settings():
        figure, axes = new_figure(
            4.8 + 0.08 * max(map(len, names)), max(2.4, 1.3 + 0.28 * len(shown))
        )
        axes.barh(range(len(shown)), falls, height=0.7, color=_COLOURS[0], alpha=0.35)
        below = [site.fall - site.fall_low for site in shown]
        above = [site.fall_high - site.fall for site in shown]
        axes.errorbar(
            falls, range(len(shown)), xerr=[below, above], fmt="o", markersize=4,
            color="black", elinewidth=1.2, capsize=3,
        )  # fmt: skip
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            f"Accuracy lost (percentage points), mean over settings\nwith {confidence:g}% interval"
        )
        for line in standing_lines(ranked):
            axes.set_title(shortened(line.rstrip("."), _LONGEST_TITLE), fontsize=10, loc="left")
        left_out = f" (the {len(shown)} weakest of {len(ranked)})" if shown != list(ranked) else ""
        axes.set_ylabel(f"Site (interval of its rank){left_out}")
        return rendered(figure, file_format)


def _places(site: RankedSite) -> str:
    if site.rank_low == site.rank_high:
        return f"rank {site.rank}"
    return f"rank {site.rank_low}-{site.rank_high}"


# -- heat map -------------------------------------------------------------------------------


def heat_picture(found: HeatMap, file_format: str) -> bytes:
    """Draw the SDC rate by site and fault.

    Args:
        found: at least one site and fault.
        file_format: one of `fxfault.cli.figures.FORMATS`.
    """
    import matplotlib

    names = [shortened(site) for site in found.sites]
    with plot_settings():
        width = 2.6 + 0.08 * max(map(len, names)) + 0.62 * len(found.faults)
        height = 1.6 + (0.32 if len(names) <= MOST_BARS else _CLOSE) * len(names)
        figure, axes = new_figure(max(4.0, width), max(2.6, height))
        shades = matplotlib.colormaps[WEAKNESS].with_extremes(bad=NOT_KNOWN)
        edges = [np.arange(size + 1) - 0.5 for size in found.values.shape[::-1]]
        look = {"edgecolors": "white", "linewidth": 0.8, "vmin": 0}
        image = axes.pcolormesh(*edges, found.values, cmap=shades, **look)
        axes.invert_yaxis()
        axes.set_xticks(range(len(found.faults)), found.faults, rotation=45, ha="right")
        small = {"fontsize": 7.5} if len(names) > MOST_BARS else {}
        axes.set_yticks(range(len(names)), names, **small)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if found.values.size <= _MOST_NUMBERS:
            _write_numbers(axes, found, image)
        rates = ", ".join(found.rates)
        label = f"SDC rate (%)\nmean over rates {rates}" if len(found.rates) < 5 else "SDC rate (%)"
        figure.colorbar(image).set_label(label, labelpad=8)
        return rendered(figure, file_format)


def _write_numbers(axes: Any, found: HeatMap, image: Any) -> None:
    for row, values in enumerate(found.values.tolist()):
        for column, value in enumerate(values):
            if not math.isnan(value):
                text = f"{value:.1f}" if value < 99.95 else "100"
                colour = _ON_LIGHT if image.norm(value) < 0.7 else _ON_DARK
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
