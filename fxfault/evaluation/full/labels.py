"""Check the labels of a classifier's data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.errors import DataError


def labels_of(given: Any, first: int | None = None, classes: int | None = None) -> Tensor:
    """Check the labels of a batch: one class for each sample.

    Comparing predictions with labels of another kind would raise no error, but would count each
    prediction many times or never.

    >>> labels_of(torch.tensor([[2], [0]], dtype=torch.uint8))
    tensor([2, 0])
    >>> labels_of(torch.tensor([2, 0, 3]), first=64, classes=3)
    Traceback (most recent call last):
    ...
    fxfault.errors.DataError: labels: got 3 for sample 66; allowed: 0 to 2, as the model gives \
scores for 3 classes

    Args:
        given: labels, integers, shape (N,) or (N, 1).
        first: number of the first sample of the batch, for messages; None counts within the batch.
        classes: number of classes that the model scores; None if not known yet.

    Returns:
        The labels as int64, shape (N,), on the same device.

    Raises:
        DataError: the labels have another shape or type, or one is not the number of a class.
    """
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise DataError(f"labels: got a {kind} for a batch; allowed: {_LABELS}") from error
    if not (labels.dim() == 1 or (labels.dim() == 2 and labels.shape[1] == 1)):
        raise DataError(
            f"labels: got shape {tuple(labels.shape)} for a batch; allowed: {_LABELS}"
            f"{' (of one-hot or soft labels their argmax)' if labels.dim() == 2 else ''}"
        )
    labels = labels.reshape(-1)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        value = f"{labels[0].item()} ({kind}){_of_sample(0, first)}" if len(labels) else kind
        raise DataError(f"labels: got {value}; allowed: {_LABELS}")
    labels = labels.to(torch.int64)
    if classes is not None:
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise DataError(
                f"labels: got {int(labels[place])}{_of_sample(place, first)}; allowed: 0 to "
                f"{classes - 1}, as the model gives scores for {classes} classes"
            )
    return labels


_LABELS = "integers of shape (N,) or (N, 1), for each sample the number of its class"


def _of_sample(place: int, first: int | None) -> str:
    return f" for sample {place} of a batch" if first is None else f" for sample {first + place}"
