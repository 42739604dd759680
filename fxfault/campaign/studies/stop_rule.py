"""The stop rule of a study, as its file has it, and the numbers of trials at which it looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from fxfault.config.schema import section_to_dict
from fxfault.messages import got

MOST_TRIALS = 10**9


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a cell has had enough trials; see `fxfault.campaign.estimates.stopping`."""

    margin: Annotated[
        float,
        Field(
            gt=0,
            le=50,
            description="Half width, in percentage points, that the intervals of both the "
            "accuracy and the SDC rate must not exceed.",
        ),
    ]
    confidence: Annotated[
        float, Field(ge=50, lt=100, description="Confidence of these intervals, in percent.")
    ] = 95.0
    min_trials: Annotated[
        int, Field(ge=2, le=MOST_TRIALS, description="Trials that every cell gets.")
    ] = 10
    max_trials: Annotated[
        int, Field(ge=2, le=MOST_TRIALS, description="Trials after which a cell ends anyway.")
    ] = 200
    metric_margin: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(
            description="With a `metric`: half width, in its unit, that its interval must not "
            "exceed; `margin` is then for the SDC rate alone. Null without a metric."
        ),
    ] = None


def rule_to_dict(rule: StopRule) -> dict[str, Any]:
    """Return the rule as plain values; a margin that is not given is left out."""
    plain = section_to_dict(rule)
    return plain if rule.metric_margin is not None else _without(plain, "metric_margin")


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def margin_problems(rule: StopRule | None, has_metric: bool) -> list[str]:
    """List what is wrong with the margins of a rule.

    >>> margin_problems(StopRule(margin=1.0), has_metric=True)
    ['stop.metric_margin: missing, allowed: a number above 0, the half width of the interval of \
the metric in its unit']
    """
    if rule is None or (rule.metric_margin is None) != has_metric:
        return []
    if has_metric:
        return [
            "stop.metric_margin: missing, allowed: a number above 0, the half width of the "
            "interval of the metric in its unit"
        ]
    margin = got(rule.metric_margin)
    return [f"stop.metric_margin: got {margin}, allowed: null without a `metric`"]


_GROWTH = 1.5


def look_points(rule: StopRule) -> tuple[int, ...]:
    """Return the numbers of trials at which the rule looks.

    >>> look_points(StopRule(margin=1.0, min_trials=10, max_trials=50))
    (10, 15, 23, 35, 50)
    """
    points = [rule.min_trials]
    while points[-1] < rule.max_trials:
        points.append(min(math.ceil(points[-1] * _GROWTH), rule.max_trials))
    return tuple(points)
