"""Accuracy of classifiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.decisions import NONE, check_scores, classes_of, top_classes
from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, refusal, tensor_of


@declared(higher_is_better=True, unit="%")
def top1(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Whether the best class is the right one: 100 or 0 for each sample.

    The mean over the samples is the accuracy in percent.

    >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [float("nan"), 0.2]])
    >>> top1(scores, torch.tensor([1, 1, 0])).tolist()
    [100.0, 0.0, nan]

    Args:
        outputs: scores, shape (samples, classes), or what holds them (see
            `fxfault.metrics.outputs.tensor_of`).
        targets: integers, shape (samples,) or (samples, 1), the right classes.
        output: the item of the outputs that counts.

    Returns:
        float64, shape (samples,); NaN where there is no decision (see
        `fxfault.metrics.decisions.decisions`).

    Raises:
        DataError: the shapes or types are others.
    """
    return _top(outputs, targets, output, 1)


@declared(higher_is_better=True, unit="%")
def top5(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Whether the right class is among the best five: 100 or 0 for each sample.

    >>> top5(torch.arange(12.0).reshape(2, 6), torch.tensor([0, 1])).tolist()
    [0.0, 100.0]

    Args:
        outputs: scores, shape (samples, classes), at least five classes, or what holds them.
        targets: integers, shape (samples,) or (samples, 1), the right classes.
        output: the item of the outputs that counts.

    Returns:
        float64, shape (samples,); NaN where there is no decision.

    Raises:
        DataError: the shapes or types are others.

    Reference:
        Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 115, 2015,
        section 4.1.
    """
    return _top(outputs, targets, output, 5)


def _top(outputs: Any, targets: Any, output: Output, most: int) -> Tensor:
    metric = f"top{most}"
    scores = tensor_of(outputs, output, metric=metric)
    check_scores(scores, "(samples, classes)", metric=metric)
    if scores.dim() != 2 or scores.shape[1] < most:
        least = f", at least {most} classes" if most > 1 else ""
        found = f"outputs of shape {tuple(scores.shape)}"
        raise refusal(metric, found, f"scores of shape (samples, classes){least}")
    best = top_classes(scores, most)
    labels = classes_of(targets, best[:, 0], scores.shape[1], metric=metric)
    right = (best == labels[:, None]).any(1).to(torch.float64) * 100
    return right.masked_fill(best[:, 0] == NONE, torch.nan)
