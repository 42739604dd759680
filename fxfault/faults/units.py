"""Broken hardware units, and the elements that they compute."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import uniform_int63


def faulty_units(key: int, units: int, probability: float, device: torch.device) -> Tensor:
    """Draw the ceil(units * probability) hardware units that are broken.

    Args:
        key: stream of the run: seed and trial, as the same hardware runs every layer.
        units: number of parallel units.
        probability: 0 to 1.
        device: device of the result.

    Returns:
        Sorted unit numbers, int64.
    """
    # Rounding may lift the product above a whole number, which must not add a unit.
    count = math.ceil(units * probability * (1 - 1e-12))
    order = torch.argsort(uniform_int63(key, torch.arange(units)))
    return order[:count].sort().values.to(device)


def unit_positions(units: Tensor, parallel: int, layout: Layout) -> Tensor:
    """Return the elements of a sample that broken units compute: row-major positions, int64.

    The accelerator computes the elements of a sample row after row, each in channels-last order;
    element i runs on unit i mod `parallel`.

    Args:
        units: numbers of the broken units, int64.
        parallel: number of parallel units.
        layout: samples and elements of the tensor; the first dimension of a row is the channel.
    """
    elements = layout.elements
    rounds = torch.arange(-(-elements // parallel), device=units.device)[:, None] * parallel
    order = (rounds + units).flatten()
    # Shorten the last round. This reads from the device; the caller caches the result.
    order = order[: int((order < elements).sum())]
    channels = layout.row_shape[0] if layout.row_shape else 1
    spatial = math.prod(layout.row_shape[1:])
    row, place = order // max(1, channels * spatial), order % max(1, channels * spatial)
    return row * channels * spatial + (place % channels) * spatial + place // channels


def channels_of_units(
    units: Tensor, parallel: int, shape: tuple[int, ...], channel_dim: int
) -> Tensor:
    """Return the elements of a weight or bias that broken units hold: row-major positions, int64.

    Each unit holds the words of whole output channels: those of channel c are on unit
    c mod `parallel`.

    >>> channels_of_units(torch.tensor([1]), 2, (3, 2), channel_dim=0).tolist()
    [2, 3]

    Args:
        units: numbers of the broken units, int64.
        parallel: number of parallel units.
        shape: shape of the tensor.
        channel_dim: the dimension of the output channels.
    """
    if not shape:
        shape = (1,)
    channels = torch.arange(shape[channel_dim], device=units.device)
    broken = torch.isin(channels % parallel, units)
    places = torch.arange(math.prod(shape), device=units.device).view(shape)
    return places.index_select(channel_dim, broken.nonzero()[:, 0]).flatten().sort().values
