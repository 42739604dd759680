"""What one trial of a campaign found: counts over the data, never rates.

Counts add up exactly and are the same wherever a trial runs; rates and their intervals follow
from them.
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

    Attributes:
        cell: key of the cell that the trial belongs to.
        trial: its number in the cell, 0 and up.
        samples: samples of the data.
        correct: those whose label has the highest score.
        golden_correct: the same without faults.
        sdc: silent data corruptions: samples with another prediction than without faults.
        critical_sdc: samples that are predicted rightly without faults and wrongly with them.
        top5: samples whose label is among the five highest scores; None below five classes.
        faults: elements that were hit (a hit may leave an element as it was).
        elements: elements that were exposed to faults.
        struck: samples in which at least one element was hit.
        masked: struck samples that have the prediction that they have without faults.
        seconds: how long the trial took; the only field that is not the same each time.
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

    def __post_init__(self) -> None:
        """See that the counts are possible: here, as no row is made elsewhere.

        Raises:
            FxFaultError: they are not, which is a bug, or the row is one of an older version's.
        """
        counts = (self.correct, self.golden_correct, self.sdc, self.critical_sdc, self.struck)
        some = (*counts, self.masked, 0 if self.top5 is None else self.top5)
        if (
            min(some) < 0
            or max(some) > self.samples
            or self.masked > self.struck
            or not 0 <= self.faults <= self.elements
        ):
            found = ", ".join(f"{name} {getattr(self, name)}" for name in COUNTS[1:])
            raise FxFaultError(
                f"trial {self.trial} of {self.cell} has counts that cannot be ({found}): this is "
                "a bug in fxfault, now or when the row was stored; please report it with the "
                "study, and keep no figure of it"
            )

    def same_counts(self, other: TrialRow) -> bool:
        """Whether two rows agree in everything but the time that was taken."""
        return self.to_list()[:-1] == other.to_list()[:-1]

    def to_list(self) -> list[Any]:
        """The fields in their order, as JSON can hold them."""
        return list(vars(self).values())  # dataclasses.astuple copies each value, deeply

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> TrialRow:
        """The inverse of `to_list`."""
        return cls(*values)


FIELDS = tuple(field.name for field in fields(TrialRow))
COUNTS = FIELDS[1:-1]
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
    """Count what the faults of one trial did.

    >>> import torch
    >>> from fxfault.evaluation.full.predictions import Predictions
    >>> labels = torch.tensor([0, 1, 1])
    >>> golden = Predictions(torch.tensor([[0, 1], [1, 0], [0, 1]]), labels, None)
    >>> hit = torch.tensor([True, True, False])
    >>> faulty = Predictions(torch.tensor([[1, 0], [1, 0], [0, 1]]), labels, hit)
    >>> row = measure(golden, faulty, cell="{}", trial=0, faults=2, elements=9, seconds=0.1)
    >>> row.golden_correct, row.correct, row.sdc, row.critical_sdc, row.struck, row.masked
    (2, 1, 1, 1, 2, 1)

    Args:
        golden: predictions without faults.
        faulty: predictions of the trial, of the same samples in the same order.
        cell: key of the cell.
        trial: number of the trial.
        faults: elements that were hit.
        elements: elements that were exposed.
        seconds: how long the trial took.

    Raises:
        FxFaultError: the predictions are of different numbers of samples, or nobody noted which
            samples were struck.
    """
    if faulty.struck is None or len(golden.labels) != len(faulty.labels):
        raise FxFaultError(
            f"measure: expected a golden run and one under faults of the same samples, got "
            f"{len(golden.labels)} and {len(faulty.labels)} samples, "
            f"{'without' if faulty.struck is None else 'with'} a note of the struck ones"
        )
    # In NumPy, which takes a fifth of the time of torch for a few hundred samples.
    labels, top, struck = faulty.labels.numpy(), faulty.top.numpy(), faulty.struck.numpy()
    was, now = golden.top.numpy()[:, 0], top[:, 0]
    changed, was_right, now_right = was != now, was == labels, now == labels
    in_top = (top == labels[:, None]).any(1) if top.shape[1] >= TOP else None
    return TrialRow(
        cell=cell,
        trial=trial,
        samples=len(faulty.labels),
        correct=int(now_right.sum()),
        golden_correct=int(was_right.sum()),
        sdc=int(changed.sum()),
        critical_sdc=int((was_right & ~now_right).sum()),
        top5=None if in_top is None else int(in_top.sum()),
        faults=faults,
        elements=elements,
        struck=int(struck.sum()),
        masked=int((struck & ~changed).sum()),
        seconds=seconds,
    )
