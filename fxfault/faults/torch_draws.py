"""Draws of a fixed size: as many gaps as a sample may need, by torch, on any device.

No size is read back, so nobody waits for a device. Without Numba, the CPU draws so too.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fxfault.faults.kernels import SAMPLE_SHIFT
from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import counter_hash, uniform_open

# Work on this many hits at once, so that their temporaries fit a core's L2 cache.
PART = 3 << 13

Numbers: TypeAlias = "range | Tensor"
"""The numbers of a batch's samples, from 0: a range, or int64 with one dimension."""


class Hits(NamedTuple):
    """Elements of a tensor that are hit, or a part of them.

    Attributes:
        index: flat row-major positions, int64, one dimension.
        bits: 64 random bits for each hit, from which its fault is drawn; int64, same length. None
            if nothing is left to draw.
        real: bool, same length; false for entries that only fill the tensor up to its fixed
            length. Such an entry repeats a hit of its sample, or is at element 0 of a sample
            without hits and must not change it. None if every entry is a hit.
        writes: bool, same length; true for hits and their repetitions. None if `real` is None.
        complete: a bool tensor, false in the (astronomically rare) case that the fixed number of
            draws did not reach the end of a sample; or None.
        struck: the pattern of the struck bits of each word, int64, same length; or None.
    """

    index: Tensor  # type: ignore[assignment]
    bits: Tensor | None = None
    real: Tensor | None = None
    writes: Tensor | None = None
    complete: Tensor | None = None
    struck: Tensor | None = None


def fixed_hits(
    key: int,
    numbers: Numbers,
    layout: Layout,
    probability: float,
    device: torch.device,
    draws: int | None = None,
) -> Hits:
    """Draw enough gaps to span every sample, and turn the surplus into fillers.

    A binomial count exceeds its mean by 9 standard deviations and 60 with a probability below
    1e-17 for each sample (Chernoff's bound, which is worst at large counts, in the normal tail).

    Args:
        key, numbers, layout, probability, device: as for `fxfault.faults.sampling.random_hits`.
        draws: gaps of each sample; default: as above.
    """
    elements = layout.elements
    if draws is None:
        draws = draws_for(elements, probability, deviations=9, more=60)
    streams = on_device(numbers, device)[:, None] << SAMPLE_SHIFT
    bits = counter_hash(key, streams + torch.arange(draws, device=device))
    ends = gaps(bits, gap_scale(probability), elements).add_(1).cumsum(1)
    real = ends <= elements
    start = torch.arange(layout.samples, device=device)[:, None] * elements
    flat = ends + (start - 1)
    struck = real[:, :1].expand_as(real)
    return Hits(
        index=torch.where(real, flat, torch.where(struck, flat[:, :1], start)).flatten(),
        bits=torch.where(real, bits, bits[:, :1]).flatten(),
        real=real.flatten(),
        writes=struck.flatten(),
        complete=(ends[:, -1] >= elements).all(),
    )


def gaps(bits: Tensor, scale: float, most: int) -> Tensor:
    """The gaps before hits: floor(ln u * scale), at most `most`; int64, in the shape of the bits.

    Libraries round a logarithm differently in its last place. On the CPU, a gap for which this
    matters is computed again as the compiled loops do it.

    Args:
        bits: 64 random bits for each gap, int64, any shape.
        scale: what `gap_scale` returns.
        most: the largest gap that makes a difference.
    """
    u = uniform_open(bits)
    # On a device in place, where `u` is not read again.
    exact = (u.log() if u.is_cpu else u.log_()).mul_(scale)
    if exact.is_cpu:
        # Each of the two logarithms and products errs by less than 2 units of the last place.
        close = (exact - exact.round()).abs_() < exact * 2.0**-49
        for place in (close & (exact < most + 1)).nonzero().unbind(1):
            exact[place] = u[place].apply_(math.log).mul_(scale)
    return exact.clamp_(max=most).long()


def words_of(hits: Hits, bits: Layout, width: int) -> Hits:
    """Join the bits of each word, in hits of a fixed size, which stays.

    The bits of a word are neighbours within their sample. Fillers come last; they repeat the last
    word of the sample, with its bits.
    """
    assert hits.real is not None
    index, real = (part.view(bits.samples, -1) for part in (hits.index, hits.real))
    word = torch.where(real, index // width, index[:, :1] // width).cummax(1).values
    first = real.clone()
    first[:, 1:] &= word[:, 1:] != word[:, :-1]
    starts = first.clone()
    starts[:, 0] = True
    group = starts.flatten().cumsum(0) - 1
    struck = torch.where(real, 1 << (index % width), 0).flatten()
    together = torch.zeros_like(struck).scatter_add_(0, group, struck)
    return Hits(
        index=word.flatten(),
        real=first.flatten(),
        writes=hits.writes,
        complete=hits.complete,
        struck=together[group],
    )


def draws_for(elements: int, probability: float, deviations: int, more: int) -> int:
    """The number of gaps to draw: above the mean number of hits, up to the number of elements."""
    mean = elements * probability
    spread = math.sqrt(mean * (1 - probability))
    return min(elements, math.ceil(mean + deviations * spread) + more)


def gap_scale(probability: float) -> float:
    """The factor that turns ln u into the gap before a hit; 0 if every element is hit."""
    return 1 / math.log1p(-probability) if probability < 1 else 0.0


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for it."""
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_device(numbers: Numbers, device: torch.device) -> Tensor:
    """The numbers of samples, int64."""
    if isinstance(numbers, range):
        return torch.arange(numbers.start, numbers.stop, device=device)
    return moved(numbers, device)
