"""Metrics: what an evaluation measures, built in or of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.metrics.facts import ACCURACY, MetricFacts
    from fxfault.metrics.metric import Metric, make_metric

__all__ = ["ACCURACY", "Metric", "MetricFacts", "make_metric"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.metrics.facts": ["ACCURACY", "MetricFacts"],
        "fxfault.metrics.metric": ["Metric", "make_metric"],
    },
)
