"""All pictures of a study: resilience curves, layer ranking, map, and the network.

Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxfault.campaign.estimates.ranking import NOTHING_LOST, Curve, curves
from fxfault.results.pictures.campaign_network_picture import network_picture
from fxfault.results.pictures.curves import curves_picture
from fxfault.results.pictures.drawing import (
    BLUE,
    GREY,
    GRID,
    INK,
    LINE,
    MUTED,
    NOT_KNOWN,
    SCREEN,
    Look,
)
from fxfault.results.pictures.heat_map import heat_picture
from fxfault.results.pictures.ranking import ranking_picture
from fxfault.results.reports.campaign_findings import Findings, golden_by_checkpoint

# The colours of a dark page for those of the pictures.
DARK = {
    INK: "#e4e6e9",
    "#ffffff": "none",
    MUTED: "#a9b0b8",
    LINE: "#7c848d",
    GRID: "#30363d",
    NOT_KNOWN: "#3d444d",
    GREY: "#a0a7af",
    BLUE.lower(): "#4ba3dc",
}


def pictures(findings: Findings, file_format: str, look: Look = SCREEN) -> dict[str, bytes]:
    """Draw all pictures that a study has results for; their names have no file extension.

    A picture in which nothing happened is not drawn; see `not_drawn`.
    """
    found = {}
    summary, ranked, background = findings.summary, findings.ranked, findings.background
    metric, kinds, quiet = summary.metric, findings.memories, not_drawn(findings)
    drawn = curves(summary)
    name = "accuracy" if metric.is_accuracy else "curves"
    if drawn and name not in quiet:
        golden = golden_by_checkpoint(summary)
        classes = background.classes
        chance = 100 / classes if classes and metric.is_accuracy else None
        found[name] = curves_picture(drawn, golden, file_format, metric, look, chance)
    if ranked and "ranking" not in quiet:
        found["ranking"] = ranking_picture(
            ranked, summary.confidence, file_format, kinds, metric, look
        )
    if ranked and "heat_map" not in quiet:
        found["heat_map"] = heat_picture(findings.heat_map, file_format, kinds, look)
    if background.nodes:
        falls = {site.name: site.fall for site in ranked}
        found["network"] = network_picture(background, falls, file_format, metric, look)
    return found


def not_drawn(findings: Findings) -> list[str]:
    """Names of the pictures that would show nothing, as no fault moved anything in them."""
    summary, ranked = findings.summary, findings.ranked
    found = []
    if _is_flat(curves(summary), golden_by_checkpoint(summary)):
        found.append("accuracy" if summary.metric.is_accuracy else "curves")
    if ranked and all(abs(site.fall) <= NOTHING_LOST * site.unit for site in ranked):
        found.append("ranking")
    if ranked and not np.nan_to_num(findings.heat_map.map.values).any():
        found.append("heat_map")
    return found


def _is_flat(drawn: Sequence[Curve], golden: dict[str | None, float]) -> bool:
    """Whether no point of some curves differs from the golden value."""
    return bool(drawn) and all(
        math.isnan(value) or math.isclose(value, golden[curve.checkpoint], rel_tol=1e-12)
        for curve in drawn
        for value in curve.values.tolist()
    )
