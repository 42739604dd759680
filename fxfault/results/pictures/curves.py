"""The metric against how often faults strike: lines, or bars if there is a single rate.

A panel has few lines that a reader can tell apart: the faults that cost the most have colours,
dashes and markers, the others are grey. Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fxfault.campaign.estimates.ranking import Curve
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.pictures.drawing import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    LINE,
    MEMORY_COLOURS,
    ORANGE,
    PINK,
    SCREEN,
    Look,
    draw_bars,
    draw_whiskers,
    new_figure,
    plot_settings,
    rendered,
    scale_rates,
    shortened,
)
from fxfault.results.reports.text import bits_together, per_each

_COLOURS = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9", INK)
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vPX"
_MOST_PANELS = 6
_MOST_LINES = 4
_Style = Mapping[str, Any]


def curves_picture(
    drawn: Sequence[Curve],
    golden: Mapping[str | None, float],
    file_format: str,
    metric: MetricFacts = ACCURACY,
    look: Look = SCREEN,
    chance: float | None = None,
) -> bytes:
    """Draw a metric against the rate of faults, a panel for each place.

    With a single rate, bars show what each fault costs. Of more than six places, the first six are
    drawn, and the picture says so.

    Args:
        drawn: the curves.
        golden: the metric without faults, by checkpoint.
        file_format: one of `FORMATS`.
        metric: what the metric is.
        look: style and size.
        chance: accuracy of guessing in percent; drawn only where lines come near it.
    """
    groups = panels_of(drawn)
    panels = list(groups.items())[:_MOST_PANELS]
    several = len({curve.memories for curve in drawn}) > 1
    is_single = has_single_rate(drawn)
    columns = 1 if look.is_narrow else min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = 6.6 if columns == 1 else 9.6
    each = 3.4 if not look.is_narrow else 2.5
    if is_single:
        each = 1.0 + 0.27 * max(len(members) for members in groups.values())
    with plot_settings(look):
        grid: dict[str, Any] = {"sharex": True} if is_single else {"sharey": True}
        size = look.of(width, 0.3 + each * rows)
        figure, axes = new_figure(*size, nrows=rows, ncols=columns, squeeze=False, **grid)
        styles = _styles(groups.values(), metric, golden)
        for panel, (key, members) in zip(axes.flat, panels, strict=False):
            place, checkpoint, kinds = key
            if is_single:
                draw_losses(panel, members, golden[checkpoint], metric)
                colours = [MEMORY_COLOURS[kind] for kind in kinds]
                if several and len(colours) == 1:
                    for bar in panel.patches:
                        bar.set_facecolor(colours[0])
            else:
                draw_curves(panel, members, golden[checkpoint], metric, chance, styles)
                panel.legend(**_legend(look))
            title = _title(place, members[0], kinds if several else (), checkpoint, len(golden))
            panel.set_title(title, fontsize="medium", loc="left")
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        below = _label_once(axes, len(panels))
        if len(panels) < len(groups):
            below += f"\n({len(groups) - len(panels)} more groups of sites are not drawn)"
        if below:
            figure.supxlabel(below.strip(), fontsize="medium")
        return rendered(figure, file_format)


def has_single_rate(drawn: Sequence[Curve]) -> bool:
    """Whether all curves have the same single rate, so that bars are drawn in place of lines."""
    return len({rate for curve in drawn for rate in curve.rates}) == 1


def panels_of(
    drawn: Sequence[Curve],
) -> dict[tuple[str, str | None, tuple[str, ...]], list[Curve]]:
    """The curves of each place, checkpoint and memory; those of all sites come first."""
    groups: dict[tuple[str, str | None, tuple[str, ...]], list[Curve]] = {}
    for curve in sorted(drawn, key=lambda curve: curve.partial):
        groups.setdefault((curve.place, curve.checkpoint, curve.memories), []).append(curve)
    return groups


def _label_once(axes: Any, panels: int) -> str:
    """Keep the titles of axes at the outer panels; returns that below all, if they share it."""
    columns, labels = axes.shape[1], {panel.get_xlabel() for panel in axes.flat[:panels]}
    for number, panel in enumerate(axes.flat[:panels]):
        if number % columns:
            panel.set_ylabel("")
        if len(labels) == 1:
            panel.set_xlabel("")
        if number + columns >= panels:
            panel.tick_params(labelbottom=True)  # Also if the place below it is empty.
    return labels.pop() if len(labels) == 1 else ""


def _legend(look: Look) -> dict[str, Any]:
    return {"fontsize": look.small, "handlelength": 2.4, "framealpha": 0.75, "edgecolor": "none"}


# -- lines ----------------------------------------------------------------------------------


def draw_curves(
    axes: Any,
    members: Sequence[Curve],
    golden: float,
    metric: MetricFacts = ACCURACY,
    chance: float | None = None,
    styles: Mapping[str, _Style] | None = None,
) -> None:
    """Draw curves of one place on some axes, with bands for their intervals.

    The faults that cost the most at the highest rate have a colour, the others are grey.

    Args:
        axes: where to draw.
        members: the curves, one for each fault.
        golden: the metric without faults.
        metric: what the metric is.
        chance: accuracy of guessing in percent; drawn only if a line comes near it.
        styles: colour, dashes and marker of faults by name, if several panels share them.
    """
    ordered = sorted(members, key=lambda curve: -_loss(curve, golden, metric))
    chosen, others = ordered[:_MOST_LINES], ordered[_MOST_LINES:]
    shared = styles or _styles([members], metric, {members[0].checkpoint: golden})
    for curve in chosen:
        style = shared[curve.fault]
        axes.plot(curve.rates, curve.values, markersize=4, label=curve.fault, zorder=3, **style)
        if len(curve.rates) > 1:
            look = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(curve.rates, curve.low, curve.high, **look)
        else:
            sides = [curve.values - curve.low, curve.high - curve.values]
            axes.errorbar(curve.rates, curve.values, sides, color=style["color"], fmt="none")
    for number, curve in enumerate(others):
        label = _named(others) if number == 0 else None
        axes.plot(curve.rates, curve.values, color=LINE, linewidth=0.8, label=label, zorder=2)
    axes.axhline(golden, color=GREY, linewidth=1, linestyle=(0, (6, 3)), label="golden, no faults")
    lowest = min(float(np.nanmin(curve.values)) for curve in members)
    if chance is not None and lowest < (golden + chance) / 2:
        axes.axhline(
            chance, color=GREY, linestyle=":", linewidth=1.2, label=f"chance ({chance:.3g}%)"
        )
    scale_rates(axes, sorted({rate for curve in members for rate in curve.rates}), widest=1)
    axes.set_xlabel(_rate_label(members[0]))
    axes.set_ylabel(f"{metric.title}{metric.in_unit}")
    axes.grid(axis="y", color=GRID)


def _loss(curve: Curve, golden: float, metric: MetricFacts) -> float:
    loss = float(metric.loss(golden, curve.values[-1]))
    return -math.inf if math.isnan(loss) else loss


def _named(others: Sequence[Curve]) -> str:
    """The grey lines by their faults, if these are few.

    >>> from types import SimpleNamespace
    >>> _named([SimpleNamespace(fault=f"bit_flip {bit}") for bit in range(3)])
    'bit_flip 0 to 2'
    """
    names = bits_together(sorted(curve.fault for curve in others))
    return ", ".join(names) if len(names) <= 2 else f"{len(others)} other faults"


def _styles(
    groups: Any, metric: MetricFacts, golden: Mapping[str | None, float]
) -> dict[str, _Style]:
    """A style for each fault that any panel shows in colour, the same in all panels."""
    faults: dict[str, None] = {}
    for members in groups:
        level = golden[members[0].checkpoint]
        ordered = sorted(members, key=lambda curve: -_loss(curve, level, metric))
        faults.update(dict.fromkeys(curve.fault for curve in ordered[:_MOST_LINES]))
    return {
        fault: {
            "color": _COLOURS[number % len(_COLOURS)],
            "linestyle": _DASHES[number % len(_DASHES)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }
        for number, fault in enumerate(faults)
    }


def _rate_label(curve: Curve) -> str:
    if curve.counted:
        return f"Faults {per_each(curve.memories)} (logarithmic)"
    return "Fault probability of each value (%, logarithmic)"


def _title(
    place: str, curve: Curve, memories: Sequence[str], checkpoint: str | None, checkpoints: int
) -> str:
    names = {"each": "each site alone, mean", "all": "all sites together"}
    title = names.get(place, shortened(place))
    if curve.partial:
        title = f"{title} alone" if curve.sites == 1 else f"{curve.sites} sites alone: {title}"
    if memories and (place in names or curve.partial):
        title = f"{' and '.join(memories)}: {title}"
    return f"{title}\n{checkpoint}" if checkpoints > 1 else title


# -- bars -----------------------------------------------------------------------------------


def draw_losses(
    axes: Any, members: Sequence[Curve], golden: float, metric: MetricFacts = ACCURACY
) -> None:
    """Draw a bar for what each fault costs at the single rate that all curves have.

    The arguments are those of `draw_curves`.
    """
    losses = [float(metric.loss(golden, curve.values[0])) for curve in members]
    ends = [sorted(metric.loss(golden, np.array([c.low[0], c.high[0]]))) for c in members]
    draw_bars(axes, [curve.fault for curve in members], losses)
    draw_whiskers(axes, losses, [low for low, _ in ends], [high for _, high in ends])
    first = members[0]
    at = f"{first.rates[0]:g}%"
    if first.counted:
        at = f"{first.rates[0]:g} faults {per_each(first.memories)}"
    axes.set_xlabel(f"{metric.title} lost{metric.in_points} at {at}")
