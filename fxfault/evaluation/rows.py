"""The result of one trial of a campaign: counts over the data, and the value of a metric.

Counts add up exactly and are the same wherever a trial runs; rates and intervals follow from them.
The accuracy of a classifier is a count, too. Any other metric has a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fxfault.errors import FxFaultError
from fxfault.metrics.facts import BATCH, BOTH, DATA, SAMPLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxfault.evaluation.full.judging import Measured
    from fxfault.evaluation.full.predictions import Predictions

TOP = 5


@dataclass(frozen=True)
class TrialRow:
    """One finished trial: an evaluation of the whole data under one set of faults.

    A sample has no prediction if its scores are not finite (see
    `fxfault.evaluation.full.predictions.ranked`). A sample with a prediction in the golden run is
    one of three: it kept the prediction, it has another (an SDC), or it has none (a DUE). A sample
    without one in the golden run is none of them, and cannot be correct there.

    With a metric, a sample kept its value, or it moved by more than the tolerance (an SDC), or the
    value is not finite (a DUE). If the metric is a mean over samples and some are DUE, the value of
    the trial is the golden one plus the mean change of the others, so that it compares the same
    samples. If the metric has no value for a sample, nobody can tell which samples changed. Then
    all samples of a batch are DUE if the number for the batch (or for all data) is not finite.

    Attributes:
        cell: key of the cell of the trial.
        trial: number of the trial in the cell, from 0.
        samples: number of samples.
        correct: number of samples predicted correctly; None with a metric.
        golden_correct: number of samples predicted correctly without faults; None with a metric.
        sdc: silent data corruptions: samples with another prediction than without faults, or with
            a moved value; None if the metric has no value for a sample.
        critical_sdc: samples predicted correctly without faults, and wrongly with them; None with
            a metric.
        top5: samples with their label among the five highest scores; None below five classes, and
            with a metric.
        faults: number of hit elements (a hit may leave an element as it was).
        elements: number of elements exposed to faults.
        struck: samples with at least one hit element.
        masked: struck samples that kept their prediction or value; None if the metric has no value
            for a sample.
        seconds: duration of the trial, the only field that differs from run to run.
        due: detected unrecoverable errors: samples with a prediction without faults, and none with
            them. 0 in a row that was stored before this was counted.
        value: the metric over all data; None without a metric, or if no sample has a value.
        golden: the metric without faults; None without a metric.
        squares: sum of the squared changes of the samples that have a value; None without a metric,
            if it has no value for a sample, or if the sum is too large for a number.
    """

    cell: str
    trial: int
    samples: int
    correct: int | None
    golden_correct: int | None
    sdc: int | None
    critical_sdc: int | None
    top5: int | None
    faults: int
    elements: int
    struck: int
    masked: int | None
    seconds: float
    due: int = 0
    value: float | None = None
    golden: float | None = None
    squares: float | None = None

    def __post_init__(self) -> None:
        """Check that the counts are possible.

        Raises:
            FxFaultError: they are not, because of a bug in this version or in the one that stored
                the row.
        """
        masked, sdc, correct = (n or 0 for n in (self.masked, self.sdc, self.correct))
        counts = (self.golden_correct, self.critical_sdc, self.top5)
        some = (correct, sdc, masked, self.due, self.struck, *(n or 0 for n in counts))
        real = [n for n in (self.value, self.golden, self.squares) if n is not None]
        if (
            min(some) < 0
            or max(some) > self.samples
            or masked > self.struck
            or max(correct, sdc) + self.due > self.samples
            or not 0 <= self.faults <= self.elements
            or not all(map(math.isfinite, real))
            or (self.squares or 0) < 0
            or (self.correct is None) != (self.golden is not None)
        ):
            found = ", ".join(f"{name} {getattr(self, name)}" for name in (*COUNTS[1:], *REALS))
            raise FxFaultError(
                f"trial {self.trial} of {self.cell} has counts that cannot be ({found}): this is "
                "a bug in fxfault, now or when the row was stored; please report it with the "
                "study, and keep no figure of it"
            )

    @property
    def measure(self) -> float:
        """The metric over all data, the accuracy in percent without one; NaN if it has no value."""
        if self.correct is not None:
            return 100.0 * self.correct / self.samples
        return math.nan if self.value is None else self.value

    @property
    def golden_measure(self) -> float:
        """The metric over all data without faults, the accuracy in percent without one."""
        if self.golden_correct is not None:
            return 100.0 * self.golden_correct / self.samples
        assert self.golden is not None
        return self.golden

    def same_counts(self, other: TrialRow) -> bool:
        """Whether two rows agree in everything but their times."""
        return {**vars(self), "seconds": other.seconds} == vars(other)

    def to_list(self) -> list[Any]:
        """The fields in order, as plain values."""
        return list(vars(self).values())  # `dataclasses.astuple` makes deep copies.

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> TrialRow:
        """The inverse of `to_list`."""
        return cls(*values)


FIELDS = tuple(field.name for field in fields(TrialRow))
REALS = ("value", "golden", "squares")
"""The fields of a metric, which are real numbers."""
COUNTS = tuple(name for name in FIELDS[1:] if name not in ("seconds", *REALS))
"""The integer fields."""
OPTIONAL = ("correct", "golden_correct", "sdc", "critical_sdc", "top5", "masked", *REALS)
"""The fields that may be None."""


def measure(
    golden: Any,
    faulty: Any,
    *,
    cell: str,
    trial: int,
    faults: int,
    elements: int,
    seconds: float,
) -> TrialRow:
    """Count the effects of the faults of one trial.

    >>> import torch
    >>> from fxfault.evaluation.full.predictions import Predictions
    >>> labels = torch.tensor([0, 1, 1])
    >>> golden = Predictions(torch.tensor([[0, 1], [1, 0], [0, 1]]), labels, None)
    >>> hit = torch.tensor([True, True, False])
    >>> faulty = Predictions(torch.tensor([[1, 0], [1, 0], [0, 1]]), labels, hit)
    >>> row = measure(golden, faulty, cell="{}", trial=0, faults=2, elements=9, seconds=0.1)
    >>> row.golden_correct, row.correct, row.sdc, row.critical_sdc, row.struck, row.masked, row.due
    (2, 1, 1, 1, 2, 1, 0)

    Args:
        golden: `Predictions` or `Measured` without faults.
        faulty: those of the trial, for the same samples in the same order.
        cell: key of the cell.
        trial: number of the trial.
        faults: number of hit elements.
        elements: number of exposed elements.
        seconds: duration of the trial.

    Raises:
        FxFaultError: the predictions have different numbers of samples, or `faulty` does not say
            which samples were struck.
    """
    if faulty.struck is None or golden.samples != faulty.samples:
        raise FxFaultError(
            f"measure: expected a golden run and one under faults of the same samples, got "
            f"{golden.samples} and {faulty.samples} samples, "
            f"{'without' if faulty.struck is None else 'with'} a note of the struck ones"
        )
    found = _of_classes(golden, faulty) if golden.facts.is_accuracy else _of_metric(golden, faulty)
    return TrialRow(
        cell=cell,
        trial=trial,
        samples=faulty.samples,
        faults=faults,
        elements=elements,
        struck=int(faulty.struck.sum()),
        seconds=seconds,
        **found,
    )


def _of_classes(golden: Predictions, faulty: Predictions) -> dict[str, Any]:
    """What a trial of a classifier counts."""
    assert faulty.struck is not None
    # For a few hundred samples, NumPy takes a fifth of the time of torch.
    labels, top, struck = faulty.labels.numpy(), faulty.top.numpy(), faulty.struck.numpy()
    was, now = golden.top.numpy()[:, 0], top[:, 0]
    known, there = was >= 0, now >= 0
    changed, was_right, now_right = known & there & (was != now), was == labels, now == labels
    in_top = (top == labels[:, None]).any(1) if top.shape[1] >= TOP else None
    return {
        "correct": int(now_right.sum()),
        "golden_correct": int(was_right.sum()),
        "sdc": int(changed.sum()),
        "critical_sdc": int((was_right & changed).sum()),
        "top5": None if in_top is None else int(in_top.sum()),
        "masked": int((struck & known & (was == now)).sum()),
        "due": int((known & ~there).sum()),
    }


def value_under_faults(golden: Measured, faulty: Measured) -> float:
    """The metric over all data under faults; NaN if it has no finite value.

    A mean over samples or batches is that of those which have a value under faults: their change is
    added to the golden value, so that the lost ones do not move it.

    Args:
        golden: the result without faults.
        faulty: that under faults, for the same samples in the same order.
    """
    import numpy as np

    if golden.facts.each in (DATA, BOTH):
        return faulty.value if math.isfinite(faulty.value) else math.nan
    assert golden.records is not None
    assert faulty.records is not None
    was, now = golden.records.numpy(), faulty.records.numpy()
    there = np.isfinite(was) & np.isfinite(now)
    value = faulty.value
    if not there.all():
        value = math.nan
        if there.any():
            change = now[there] - was[there]
            weights = _weights(golden)[there]
            value = golden.value + float(np.average(change, weights=weights))
    return value if math.isfinite(value) else math.nan


def _weights(golden: Measured) -> Any:
    """How many samples each record stands for."""
    import numpy as np

    assert golden.records is not None
    if golden.facts.each == BATCH:
        return np.asarray(golden.sizes, np.float64)
    return np.ones(len(golden.records))


def _of_metric(golden: Measured, faulty: Measured) -> dict[str, Any]:
    """What a trial with a metric counts and measures."""
    import numpy as np

    assert faulty.struck is not None
    none = dict.fromkeys(("correct", "golden_correct", "sdc", "critical_sdc", "top5", "masked"))
    found: dict[str, Any] = {**none, "golden": golden.value, "squares": None}
    each = golden.facts.each
    if each == DATA:
        lost = not math.isfinite(faulty.value)
        value = None if lost else faulty.value
        return {**found, "value": value, "due": faulty.samples if lost else 0}
    assert golden.records is not None
    assert faulty.records is not None
    was, now = golden.records.numpy(), faulty.records.numpy()
    known = np.isfinite(was)
    there = known & np.isfinite(now)
    change = np.where(there, now, 0.0) - np.where(there, was, 0.0)
    weights = _weights(golden)
    value = value_under_faults(golden, faulty)
    found["value"] = value if math.isfinite(value) else None
    found["due"] = int(weights[known & ~there].sum())
    if each == BATCH:
        return found
    moved = np.abs(change) > golden.facts.tolerance
    found["sdc"] = int(moved.sum())
    found["masked"] = int((faulty.struck.numpy() & there & ~moved).sum())
    with np.errstate(over="ignore"):
        squares = float((change * change).sum())
    if each == SAMPLE and math.isfinite(squares):
        found["squares"] = squares
    return found
