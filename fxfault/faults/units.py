"""Broken units of parallel hardware, and the elements that they compute."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import uniform_int63


def faulty_units(key: int, units: int, probability: float, device: torch.device) -> Tensor:
    """Draw the hardware units that are broken: ceil(units * probability) of them.

    Args:
        key: stream of the run (seed and trial; the same hardware runs every layer).
        units: number of parallel units.
        probability: 0 to 1.

    Returns:
        Sorted unit numbers, int64.
    """
    # The product may come out a rounding above a whole number, which is none more.
    count = math.ceil(units * probability * (1 - 1e-12))
    order = torch.argsort(uniform_int63(key, torch.arange(units)))
    return order[:count].sort().values.to(device)


def unit_positions(units: Tensor, parallel: int, layout: Layout) -> Tensor:
    """The elements of a sample that a broken unit computes: row-major positions, int64.

    The accelerator computes a sample's elements in channels-last order; element i runs
    on unit i mod `parallel`.

    Args:
        units: numbers of the broken units, int64.
        parallel: number of parallel units.
        layout: samples and elements of the tensor; the first dimension of a row is the channel.
            The rows of a sample come one after the other, in whatever pieces they lie.
    """
    elements = layout.elements
    rounds = torch.arange(-(-elements // parallel), device=units.device)[:, None] * parallel
    order = (rounds + units).flatten()
    order = order[: _count_below(order, elements)]
    channels = layout.row_shape[0] if layout.row_shape else 1
    spatial = math.prod(layout.row_shape[1:])
    row, place = order // max(1, channels * spatial), order % max(1, channels * spatial)
    return row * channels * spatial + (place % channels) * spatial + place // channels


def _count_below(ascending: Tensor, limit: int) -> int:
    """How many of some ascending numbers are below a limit.

    Of the last round only; a read from the device, made once for a layout and cached by
    the caller.
    """
    return int((ascending < limit).sum())
