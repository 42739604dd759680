"""The class that a network decides for, and the classes that targets hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.outputs import as_tensor, refusal

NONE = -1
"""In place of a class where there is no decision."""


def decisions(scores: Tensor, dim: int = 1) -> Tensor:
    """The class with the highest score; of equal scores, the lower class.

    There is no decision if a score is NaN or +inf, or all are -inf: whoever reads the scores can
    tell that something went wrong. A single -inf is a score like any other, as networks mask
    classes with it.

    >>> decisions(torch.tensor([[0.5, 2.0, 2.0], [0.5, 2.0, float("nan")]])).tolist()
    [1, -1]

    Args:
        scores: real numbers, with the classes along `dim`.
        dim: the dimension of the classes.

    Returns:
        Classes, int64, with `NONE` where there is no decision; the shape has no `dim` any more.
    """
    best, where = scores.max(dim)
    return where.masked_fill(~best.isfinite(), NONE)


def top_classes(scores: Tensor, most: int) -> Tensor:
    """The classes with the highest scores, the best first, with `decisions` in column 0.

    >>> top_classes(torch.tensor([[0.5, 2.0, 2.0], [0.5, 2.0, float("nan")]]), 2).tolist()
    [[1, 2], [-1, -1]]

    Args:
        scores: real numbers, shape (samples, classes).
        most: how many classes to return.

    Returns:
        int64, shape (samples, most).
    """
    # Not `topk`: its order of equal scores may depend on the number of samples.
    values, order = scores.sort(dim=1, descending=True, stable=True)
    # NaN comes first, then +inf: the first score says all.
    return order[:, :most].masked_fill(~values[:, :1].isfinite(), NONE)


def check_scores(scores: Tensor, dims: str, *, metric: str) -> None:
    """Refuse what are not real scores for at least one class.

    Args:
        scores: the outputs; their second dimension has the classes.
        dims: the expected dimensions in words, for messages.
        metric: name of the metric, for messages.

    Raises:
        DataError: they are not.
    """
    if not scores.is_floating_point() or scores.dim() < 2 or scores.shape[1] == 0:
        kind = str(scores.dtype).removeprefix("torch.")
        found = f"outputs of shape {tuple(scores.shape)} ({kind})"
        raise refusal(metric, found, f"real scores of shape {dims}, at least one class")


def classes_of(
    targets: Any, like: Tensor, classes: int, ignore_index: int | None = None, *, metric: str
) -> Tensor:
    """Check targets that are numbers of classes.

    Args:
        targets: integers of the shape of `like`; a dimension of one after the first is allowed.
        like: a tensor of the shape and on the device that the targets must have.
        classes: number of classes that the network scores.
        ignore_index: the target of what does not count; None if everything counts.
        metric: name of the metric, for messages.

    Returns:
        Classes, int64, of the shape of `like`.

    Raises:
        DataError: the targets have another shape or type, or one is not the number of a class.
    """
    found = as_tensor(targets, metric=metric)
    shape = tuple(like.shape)
    fits = tuple(found.shape) in (shape, (*shape[:1], 1, *shape[1:]))
    kind = str(found.dtype).removeprefix("torch.")
    if not fits or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        what = f"targets of shape {tuple(found.shape)} ({kind})"
        raise refusal(metric, what, f"integers of shape {shape}, each the number of a class")
    found = found.reshape(shape).to(like.device, torch.int64)
    wrong = (found < 0) | (found >= classes)
    if ignore_index is not None:
        wrong &= found != ignore_index
    if bool(wrong.any()):
        sample, *place = (int(number) for number in wrong.nonzero()[0])
        at = f" at {tuple(place)}" if place else ""
        raise refusal(
            metric,
            f"target {int(found[wrong][0])} in sample {sample} of a batch{at}",
            f"0 to {classes - 1}, as there are scores for {classes} classes, or `ignore_index` "
            f"({'not set' if ignore_index is None else ignore_index})",
        )
    return found
