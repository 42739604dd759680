"""Errors of networks that predict numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, matched, tensor_of
from fxfault.metrics.sums import finite_samples, sample_sums, total


@declared(higher_is_better=False)
def mae(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Mean absolute error of each sample, over its elements.

    If all samples have as many elements, as they do for a network of one output shape, the mean
    over the samples is the mean absolute error of the data set.

    >>> mae(torch.tensor([[1.0, 2.0], [3.0, float("inf")]]), torch.zeros(2, 2)).tolist()
    [1.5, nan]

    Args:
        outputs: numbers, shape (samples, ...), or what holds them (see
            `fxfault.metrics.outputs.tensor_of`).
        targets: numbers of the same shape.
        output: the item of the outputs that counts.

    Returns:
        float64, shape (samples,), in the unit of the targets; NaN where an output is not finite.

    Raises:
        DataError: the shapes or types are others, or a target is not finite.
    """
    error, finite = _errors(outputs, targets, output, "mae")
    return _mean(error.abs(), finite)


@declared(higher_is_better=False)
def mse(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Mean squared error of each sample, over its elements.

    >>> mse(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)).tolist()
    [5.0]

    Args:
        outputs: numbers, shape (samples, ...), or what holds them.
        targets: numbers of the same shape.
        output: the item of the outputs that counts.

    Returns:
        float64, shape (samples,), in the squared unit of the targets; NaN where an output is not
        finite.

    Raises:
        DataError: the shapes or types are others, or a target is not finite.
    """
    error, finite = _errors(outputs, targets, output, "mse")
    return _mean(error.square(), finite)


@declared(higher_is_better=False, unit="%")
def relative_error(outputs: Any, targets: Any, *, output: Output = None) -> Tensor:
    """Euclidean norm of each sample's error, in percent of the norm of its targets.

    A sample with targets that are all 0 has no relative error, not even without faults.

    >>> relative_error(torch.tensor([[3.0, 5.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0, 0]]))
    tensor([20., nan], dtype=torch.float64)

    Args:
        outputs: numbers, shape (samples, ...), or what holds them.
        targets: numbers of the same shape.
        output: the item of the outputs that counts.

    Returns:
        float64, shape (samples,); NaN where an output is not finite or all targets are 0.

    Raises:
        DataError: the shapes or types are others, or a target is not finite.

    Reference:
        Golub and Van Loan, "Matrix Computations", 4th edition, 2013, section 2.2.3.
    """
    error, finite = _errors(outputs, targets, output, "relative_error")
    values = matched(error, targets, metric="relative_error").to(torch.float64)
    size = sample_sums(values.square()).sqrt()
    found = 100 * sample_sums(error.square()).sqrt() / size
    return found.masked_fill(~finite | (size == 0), torch.nan)


@declared(higher_is_better=False)
class RMSE:
    """Root mean squared error of the data set, over all elements of all samples.

    It is not the mean of the samples' own roots, which `per_sample` gives. If an output of any
    sample is not finite, neither is the mean: there is no root then.

    >>> metric = RMSE()
    >>> metric.update(torch.tensor([[1.0], [7.0]]), torch.tensor([[0.0], [0.0]]))
    >>> metric.compute(), metric.per_sample(torch.ones(1, 1), torch.zeros(1, 1)).tolist()
    (5.0, [1.0])

    Args:
        output: the item of the outputs that counts.

    Attributes:
        unpredicted: number of samples with an output that is not finite.
    """

    def __init__(self, *, output: Output = None) -> None:
        self.output = output
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._squares: list[float] = []
        self._elements = 0
        self.unpredicted = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the samples of a batch; see `mse` for the arguments."""
        error, finite = _errors(outputs, targets, self.output, "rmse")
        squares = sample_sums(error.square())[finite]
        self._squares += squares.tolist()
        self._elements += error[finite].numel()
        self.unpredicted += int((~finite).sum())

    def compute(self) -> float:
        """The root, in the unit of the targets; NaN without samples, or if one is unpredicted."""
        if self.unpredicted or not self._elements:
            return math.nan
        return math.sqrt(total(self._squares) / self._elements)

    def per_sample(self, outputs: Any, targets: Any) -> Tensor:
        """Root mean squared error of each sample; float64, shape (samples,), NaN as in `mse`."""
        error, finite = _errors(outputs, targets, self.output, "rmse")
        return _mean(error.square(), finite).sqrt()


def _errors(outputs: Any, targets: Any, output: Output, metric: str) -> tuple[Tensor, Tensor]:
    """Outputs less targets in float64, and whether the outputs of each sample are finite."""
    found = tensor_of(outputs, output, metric=metric)
    expected = matched(found, targets, metric=metric)
    return found.to(torch.float64) - expected.to(torch.float64), finite_samples(found)


def _mean(values: Tensor, finite: Tensor) -> Tensor:
    return (sample_sums(values) / math.prod(values.shape[1:])).masked_fill(~finite, torch.nan)
