"""The result of one trial of a campaign: counts over the data, never rates.

Counts add up exactly and are the same wherever a trial runs; rates and intervals follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fxfault.errors import FxFaultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxfault.evaluation.full.predictions import Predictions

TOP = 5


@dataclass(frozen=True)
class TrialRow:
    """One finished trial: an evaluation of the whole data under one set of faults.

    A sample has no prediction if its scores are not finite (see
    `fxfault.evaluation.full.predictions.ranked`). A sample with a prediction in the golden run is
    one of three: it kept the prediction, it has another (an SDC), or it has none (a DUE). A sample
    without one in the golden run is none of them, and cannot be correct there.

    Attributes:
        cell: key of the cell of the trial.
        trial: number of the trial in the cell, from 0.
        samples: number of samples.
        correct: number of samples predicted correctly.
        golden_correct: number of samples predicted correctly without faults.
        sdc: silent data corruptions: samples with another prediction than without faults.
        critical_sdc: samples predicted correctly without faults, and wrongly with them.
        top5: samples with their label among the five highest scores; None below five classes.
        faults: number of hit elements (a hit may leave an element as it was).
        elements: number of elements exposed to faults.
        struck: samples with at least one hit element.
        masked: struck samples that kept their prediction.
        seconds: duration of the trial, the only field that differs from run to run.
        due: detected unrecoverable errors: samples with a prediction without faults, and none with
            them. 0 in a row that was stored before this was counted.
    """

    cell: str
    trial: int
    samples: int
    correct: int
    golden_correct: int
    sdc: int
    critical_sdc: int
    top5: int | None
    faults: int
    elements: int
    struck: int
    masked: int
    seconds: float
    due: int = 0

    def __post_init__(self) -> None:
        """Check that the counts are possible.

        Raises:
            FxFaultError: they are not, because of a bug in this version or in the one that stored
                the row.
        """
        counts = (self.correct, self.golden_correct, self.sdc, self.critical_sdc, self.due)
        some = (*counts, self.struck, self.masked, 0 if self.top5 is None else self.top5)
        if (
            min(some) < 0
            or max(some) > self.samples
            or self.masked > self.struck
            or max(self.correct, self.sdc) + self.due > self.samples
            or not 0 <= self.faults <= self.elements
        ):
            found = ", ".join(f"{name} {getattr(self, name)}" for name in COUNTS[1:])
            raise FxFaultError(
                f"trial {self.trial} of {self.cell} has counts that cannot be ({found}): this is "
                "a bug in fxfault, now or when the row was stored; please report it with the "
                "study, and keep no figure of it"
            )

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
COUNTS = tuple(name for name in FIELDS[1:] if name != "seconds")
"""The integer fields."""


def measure(
    golden: Predictions,
    faulty: Predictions,
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
        golden: predictions without faults.
        faulty: predictions of the trial, for the same samples in the same order.
        cell: key of the cell.
        trial: number of the trial.
        faults: number of hit elements.
        elements: number of exposed elements.
        seconds: duration of the trial.

    Raises:
        FxFaultError: the predictions have different numbers of samples, or `faulty` does not say
            which samples were struck.
    """
    if faulty.struck is None or len(golden.labels) != len(faulty.labels):
        raise FxFaultError(
            f"measure: expected a golden run and one under faults of the same samples, got "
            f"{len(golden.labels)} and {len(faulty.labels)} samples, "
            f"{'without' if faulty.struck is None else 'with'} a note of the struck ones"
        )
    # For a few hundred samples, NumPy takes a fifth of the time of torch.
    labels, top, struck = faulty.labels.numpy(), faulty.top.numpy(), faulty.struck.numpy()
    was, now = golden.top.numpy()[:, 0], top[:, 0]
    known, there = was >= 0, now >= 0
    changed, was_right, now_right = known & there & (was != now), was == labels, now == labels
    in_top = (top == labels[:, None]).any(1) if top.shape[1] >= TOP else None
    return TrialRow(
        cell=cell,
        trial=trial,
        samples=len(faulty.labels),
        correct=int(now_right.sum()),
        golden_correct=int(was_right.sum()),
        sdc=int(changed.sum()),
        critical_sdc=int((was_right & changed).sum()),
        top5=None if in_top is None else int(in_top.sum()),
        faults=faults,
        elements=elements,
        struck=int(struck.sum()),
        masked=int((struck & known & (was == now)).sum()),
        seconds=seconds,
        due=int((known & ~there).sum()),
    )
