"""How far outputs are from those without faults, for networks without labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.decisions import NONE, decisions
from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, matched, refusal, tensor_of
from fxfault.metrics.sums import finite_samples, in_rows, sample_sums


@declared(higher_is_better=False, needs_golden=True)
def cosine(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Cosine distance of each sample's outputs from the golden ones: 1 less the cosine, 0 to 2.

    It is computed as half the squared distance of the two directions, which is the same, but is
    exactly 0 for equal outputs and keeps its digits for small angles. Outputs that are all 0 have
    no direction: their distance is 0 from others that are all 0, and 1 from the rest.

    >>> golden = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> cosine(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), golden).tolist()
    [0.0, 1.0]

    Args:
        outputs: numbers, shape (samples, ...), or what holds them (see
            `fxfault.metrics.outputs.tensor_of`).
        targets: the golden outputs of the same samples.
        output: the item of both that counts.

    Returns:
        float64, shape (samples,); NaN where a number is not finite.

    Raises:
        DataError: the shapes or types differ.
    """
    found, golden, finite = _both(outputs, targets, output, "cosine")
    a, b = _direction(found), _direction(golden)
    distance = sample_sums((a - b).square()) / 2
    # Of a direction and the zero vector, that is one half.
    no_angle = (a == 0).all(1) != (b == 0).all(1)
    return distance.masked_fill(no_angle, 1.0).masked_fill(~finite, torch.nan)


@declared(higher_is_better=False, needs_golden=True)
def l2(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Euclidean distance of each sample's outputs from the golden ones.

    >>> l2(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist()
    [5.0, 0.0]

    Args:
        outputs: numbers, shape (samples, ...), or what holds them.
        targets: the golden outputs of the same samples.
        output: the item of both that counts.

    Returns:
        float64, shape (samples,), in the unit of the outputs; NaN where a number is not finite.

    Raises:
        DataError: the shapes or types differ.
    """
    found, golden, finite = _both(outputs, targets, output, "l2")
    return sample_sums((found - golden).square()).sqrt().masked_fill(~finite, torch.nan)


@declared(higher_is_better=False, unit="%", needs_golden=True)
def changed_decisions(outputs: Any, targets: Any, *, dim: int = 1, output: Output = None) -> Tensor:
    """Share of each sample's decisions that differ from the golden ones, in percent.

    A classifier makes one decision for a sample, so that the share is 0 or 100; a network for
    segmentation makes one for each pixel, a language model one for each token.

    >>> golden = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    >>> changed_decisions(torch.tensor([[0.3, 0.4], [0.1, 0.2]]), golden).tolist()
    [0.0, 100.0]

    Args:
        outputs: scores, shape (samples, classes, ...), or classes as integers, shape
            (samples, ...), or what holds them.
        targets: the golden outputs of the same samples.
        dim: the dimension of the classes: 1, or -1 for a language model.
        output: the item of both that counts.

    Returns:
        float64, shape (samples,); NaN where a decision is missing (see
        `fxfault.metrics.decisions.decisions`) with or without faults.

    Raises:
        DataError: the shapes or types differ, or the scores have no dimension `dim`.
    """
    metric = "changed_decisions"
    found = tensor_of(outputs, output, metric=metric)
    golden = matched(found, tensor_of(targets, output, metric=metric), metric=metric, golden=True)
    known = torch.ones(len(found), dtype=torch.bool, device=found.device)
    if found.is_floating_point():
        if not (1 <= dim < found.dim() or -found.dim() < dim < 0) or found.shape[dim] == 0:
            what = f"outputs of shape {tuple(found.shape)} and `dim` {dim}"
            raise refusal(metric, what, "scores with a dimension of classes after the samples'")
        found, golden = decisions(found, dim), decisions(golden, dim)
        none = (found == NONE) | (golden == NONE)
        known = ~in_rows(none).any(1)
    changed = found != golden
    share = 100 * sample_sums(changed) / max(1, math.prod(changed.shape[1:]))
    return share.masked_fill(~known, torch.nan)


def _both(outputs: Any, targets: Any, output: Output, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both outputs in float64, a row each sample, and whether a sample's numbers are finite."""
    found = tensor_of(outputs, output, metric=metric)
    golden = matched(found, tensor_of(targets, output, metric=metric), metric=metric, golden=True)
    finite = finite_samples(found) & finite_samples(golden)
    a, b = (in_rows(values.to(torch.float64)) for values in (found, golden))
    return a, b, finite


def _direction(rows: Tensor) -> Tensor:
    """Each row at length 1; a row of zeros stays."""
    # By the largest element first, as the square of a huge or tiny number is no float.
    largest = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows.sum(1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    length = sample_sums(scaled.square()).sqrt()[:, None]
    return scaled / torch.where(length > 0, length, 1.0)
