"""Sums in float64 with the same bits for every batch size, device and number of threads."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def sample_sums(values: Tensor) -> Tensor:
    """Add up the values of each sample in float64.

    `torch.sum` splits a large sum by the number of threads, by the shape of the whole batch and by
    the device, and rounds by how it is split. Here, the second half of each sample's values is
    added to the first until one is left, so that the order follows from the number of values alone.

    >>> sample_sums(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
    [6.0, 15.0]

    Args:
        values: numbers, shape (samples, ...).

    Returns:
        float64, shape (samples,).

    Reference:
        Higham, "The accuracy of floating point summation", SIAM J. Sci. Comput. 14, 1993:
        pairwise summation, with an error that grows with the logarithm of the number of terms.
    """
    rows = in_rows(values.to(torch.float64))
    if rows.shape[1] == 0:
        return rows.new_zeros(len(rows))
    while rows.shape[1] > 1:
        half = (rows.shape[1] + 1) // 2
        added = rows[:, :half].clone()
        added[:, : rows.shape[1] - half] += rows[:, half:]
        rows = added
    return rows[:, 0].clone()


def total(values: Iterable[float]) -> float:
    """Add up numbers of 0 or more with one rounding, so that their order does not matter.

    >>> total([0.1] * 10), sum([0.1] * 10), total([1e308, 1e308])
    (1.0, 0.9999999999999999, inf)
    """
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def finite_samples(values: Tensor) -> Tensor:
    """Whether all values of a sample are finite; bool, shape (samples,).

    Args:
        values: numbers, shape (samples, ...).
    """
    return in_rows(values.isfinite()).all(1)


def in_rows(values: Tensor) -> Tensor:
    """The values with a row for each sample, also if there is no sample.

    >>> in_rows(torch.zeros(0, 2, 3)).shape, in_rows(torch.zeros(4)).shape
    (torch.Size([0, 6]), torch.Size([4, 1]))

    Args:
        values: shape (samples, ...).
    """
    return values.reshape(len(values), math.prod(values.shape[1:]))
