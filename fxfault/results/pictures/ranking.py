"""The sites that were struck alone, as bars with intervals, the weakest at the top.

Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fxfault.campaign.estimates.ranking import RankedSite
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.pictures.drawing import (
    MEMORY_COLOURS,
    MOST_BARS,
    MUTED,
    SCREEN,
    Look,
    draw_bars,
    draw_whiskers,
    memories_of,
    name_memories,
    new_figure,
    plot_settings,
    rendered,
    set_headline,
    shortened,
    size_of_bars,
)
from fxfault.results.reports.campaign_report import standing_lines

_NONE: Mapping[str, str] = {}
_LONGEST_NARROW = 20  # Characters of a name in a narrow picture.


def ranking_picture(
    ranked: Sequence[RankedSite],
    confidence: float,
    file_format: str,
    memories: Mapping[str, str] = _NONE,
    metric: MetricFacts = ACCURACY,
    look: Look = SCREEN,
    setting: str = "mean over settings",
) -> bytes:
    """Draw what faults at each site alone cost, with intervals, the weakest at the top.

    Of more than `MOST_BARS` sites, only the weakest are drawn, and the picture says so.

    Args:
        ranked: the sites, the weakest first.
        confidence: of the intervals, in percent.
        file_format: one of `FORMATS`.
        memories: what each site is, by name; several kinds get colours.
        metric: what the metric is.
        look: style and size.
        setting: under which faults this was measured.
    """
    shown = list(ranked[:MOST_BARS])
    with plot_settings(look):
        figure, axes = new_figure(*size_of_bars([site.name for site in shown], look))
        kinds = memories_of(memories, (site.name for site in ranked))
        draw_ranking(axes, ranked, confidence, memories, metric, look, setting)
        if len(kinds) > 1:
            name_memories(figure, kinds, look)
        return rendered(figure, file_format)


def draw_ranking(
    axes: Any,
    ranked: Sequence[RankedSite],
    confidence: float = 95.0,
    memories: Mapping[str, str] = _NONE,
    metric: MetricFacts = ACCURACY,
    look: Look = SCREEN,
    setting: str = "mean over settings",
) -> None:
    """Draw the bars of `ranking_picture` on some axes; the arguments are the same."""
    shown = list(ranked[:MOST_BARS])
    falls = [site.fall for site in shown]
    colours = {}
    if len(memories_of(memories, (site.name for site in ranked))) > 1:
        kinds = [memories.get(site.name, "activations") for site in shown]
        colours = {"color": [MEMORY_COLOURS[kind] for kind in kinds]}
    longest = _LONGEST_NARROW if look.is_narrow else 36
    draw_bars(axes, [shortened(site.name, longest) for site in shown], falls, **colours)
    draw_whiskers(axes, falls, [s.fall_low for s in shown], [s.fall_high for s in shown])
    for number, site in enumerate(shown):
        axes.annotate(
            _places(site), (1.0, number), xytext=(4, 0), textcoords="offset points",
            xycoords=axes.get_yaxis_transform(), va="center", fontsize=look.small, color=MUTED,
        )  # fmt: skip
    known = not all(math.isnan(site.fall_low) for site in shown)
    interval = f"with {confidence:g}% interval" if known else "one run, so no interval"
    axes.set_xlabel(f"{metric.title} lost{metric.in_points}\n{setting}, {interval}")
    for line in standing_lines(ranked, metric):
        set_headline(axes, line.rstrip("."))
    left_out = f"\n(the {len(shown)} weakest of {len(ranked)})" if len(shown) < len(ranked) else ""
    axes.set_ylabel(f"Site struck alone{left_out}")


def _places(site: RankedSite) -> str:
    if site.rank_low == site.rank_high:
        return f"rank {site.rank}"
    return f"rank {site.rank_low}-{site.rank_high}"
