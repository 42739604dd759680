"""Mean intersection over union of networks that give each pixel a class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.decisions import NONE, check_scores, classes_of, decisions
from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, check_samples, refusal, tensor_of
from fxfault.metrics.sums import sample_sums


@declared(higher_is_better=True, unit="%")
class MeanIoU:
    """Mean intersection over union over the data set, in percent.

    The pixels of all samples are counted together. The IoU of a class is the number of pixels that
    are it and are predicted as it, divided by the number that are it or are predicted as it. The
    mean is over the classes, not over samples or pixels. A class that no pixel is and none is
    predicted as has no IoU, and is not among them.

    A sample has no prediction if a pixel has none: a score there is NaN or +inf, or all are -inf.
    All of its pixels then count as missed: they are in no intersection.

    >>> metric = MeanIoU()
    >>> scores = torch.tensor([[[0.9, 0.1, 0.2], [0.1, 0.9, 0.8]]])  # two classes, three pixels
    >>> metric.update(scores, torch.tensor([[0, 1, 0]]))
    >>> metric.compute(), metric.per_sample(scores, torch.tensor([[0, 1, 1]])).tolist()
    (50.0, [100.0])

    Args:
        ignore_index: the target of pixels that do not count, often 255; None if all count.
        classes: number of classes, for a network that returns classes in place of scores.
        output: the item of the outputs that counts (see `fxfault.metrics.outputs.tensor_of`).

    Attributes:
        unpredicted: number of samples without a prediction.

    Reference:
        Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 111,
        2015, section 2.2.4; Long et al., "Fully Convolutional Networks for Semantic
        Segmentation", CVPR 2015, section 5 ("mean IU").
    """

    def __init__(
        self,
        *,
        ignore_index: int | None = None,
        classes: int | None = None,
        output: Output = None,
    ) -> None:
        self.ignore_index, self.classes, self.output = ignore_index, classes, output
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._both: list[int] = []
        self._either: list[int] = []
        self.unpredicted = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the samples of a batch.

        Args:
            outputs: scores, shape (samples, classes, ...), or classes, shape (samples, ...).
            targets: integers, shape (samples, ...), the class of each pixel.

        Raises:
            DataError: the shapes or types are others, or a target is no class.
        """
        both, either, known = self._counts(outputs, targets)
        self.unpredicted += int((~known).sum())
        now = both.sum(0).tolist(), either.sum(0).tolist()
        if self._both and len(self._both) != len(now[0]):
            found = f"scores for {len(now[0])} classes after batches with {len(self._both)}"
            raise refusal("mean_iou", found, "the same classes in each batch")
        before = (self._both or [0] * len(now[0]), self._either or [0] * len(now[1]))
        self._both, self._either = (
            [a + b for a, b in zip(old, new, strict=True)]
            for old, new in zip(before, now, strict=True)
        )

    def compute(self) -> float:
        """The mean in percent; NaN if no pixel was counted."""
        shares = [b / e for b, e in zip(self._both, self._either, strict=True) if e]
        return 100 * math.fsum(shares) / len(shares) if shares else math.nan

    def per_sample(self, outputs: Any, targets: Any) -> Tensor:
        """The mean IoU of each sample alone, in percent.

        Args:
            outputs: as in `update`.
            targets: as in `update`.

        Returns:
            float64, shape (samples,); NaN where there is no prediction, or no pixel that counts.
        """
        both, either, known = self._counts(outputs, targets)
        there = either > 0
        shares = both / either.clamp(min=1).to(torch.float64)
        found = 100 * sample_sums(shares) / there.sum(1)  # 0 / 0 is NaN
        return found.masked_fill(~known, torch.nan)

    def _counts(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of each sample and class in both sets and in either, and which samples count."""
        predicted, classes = self._predicted(tensor_of(outputs, self.output, metric="mean_iou"))
        right = classes_of(targets, predicted, classes, self.ignore_index, metric="mean_iou")
        predicted, right = predicted.flatten(1), right.flatten(1)
        counts = torch.ones_like(right, dtype=torch.bool)
        if self.ignore_index is not None:
            counts = right != self.ignore_index
        known = (predicted != NONE).all(1)
        seen = counts & known[:, None]
        both = _histogram(right, classes, seen & (predicted == right))
        is_it, predicted_it = (
            _histogram(right, classes, counts),
            _histogram(predicted, classes, seen),
        )
        return both, is_it + predicted_it - both, known

    def _predicted(self, found: Tensor) -> tuple[Tensor, int]:
        """The class of each pixel, `NONE` where there is none, and the number of classes."""
        check_samples(found, metric="mean_iou")
        if found.is_floating_point():
            check_scores(found, "(samples, classes, ...)", metric="mean_iou")
            if found.dim() < 3:
                what = f"outputs of shape {tuple(found.shape)}"
                raise refusal("mean_iou", what, "scores of shape (samples, classes, ...)")
            return decisions(found), found.shape[1]
        if self.classes is None or found.is_complex():
            what = f"outputs of shape {tuple(found.shape)} ({str(found.dtype)[6:]})"
            expected = "float scores of shape (samples, classes, ...), or classes and `classes`"
            raise refusal("mean_iou", what, f"{expected}, the number of classes")
        found = found.to(torch.int64)
        return found.masked_fill((found < 0) | (found >= self.classes), NONE), self.classes


def _histogram(classes: Tensor, number: int, chosen: Tensor) -> Tensor:
    """Count the chosen pixels of each sample by class.

    Args:
        classes: int64, shape (samples, pixels).
        number: number of classes.
        chosen: bool, of the same shape; chosen pixels have a class.

    Returns:
        int64, shape (samples, number), on the CPU.
    """
    first = torch.arange(len(classes), device=classes.device)[:, None] * number
    places = (first + classes)[chosen].cpu()  # On a GPU, `bincount` has no fixed order.
    return torch.bincount(places, minlength=len(classes) * number).reshape(len(classes), number)
