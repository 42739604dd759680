"""What a metric says about itself: which way is better, and when a sample counts as changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Metric = TypeVar("Metric", bound=Callable[..., object])


def declared(
    *,
    higher_is_better: bool,
    unit: str = "",
    tolerance: float = 0.0,
    needs_golden: bool = False,
) -> Callable[[Metric], Metric]:
    """Note on a function or a class what kind of metric it is.

    The notes become attributes of the same names, and a class hands them on to its instances.

    >>> @declared(higher_is_better=False, unit="m")
    ... def depth_error(outputs, targets):
    ...     return (outputs - targets).abs().flatten(1).mean(1)
    >>> depth_error.unit, depth_error.tolerance, depth_error.needs_golden
    ('m', 0.0, False)

    Args:
        higher_is_better: whether a larger value is a better one.
        unit: the unit of the values, as it is printed after them.
        tolerance: the largest distance of a sample's value from its value without faults at which
            the sample does not count as an SDC, in the unit of the values. With 0, any change
            counts.
        needs_golden: whether the targets of the metric are the outputs for the same samples
            without faults, in place of labels.

    Raises:
        ValueError: the tolerance is negative or no number.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance}; allowed: 0 or more")

    def note(metric: Metric) -> Metric:
        for name, value in (
            ("higher_is_better", higher_is_better),
            ("unit", unit),
            ("tolerance", tolerance),
            ("needs_golden", needs_golden),
        ):
            setattr(metric, name, value)
        return metric

    return note
