"""Which elements of a tensor are hit.

Work follows the number of hits, not of elements: the gaps between hits are drawn
(geometric), never a mask. Each sample has its own stream of random numbers, so its
hits do not depend on the batch that it comes in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxfault.random_numbers import (
    counter_hash,
    grid_hash,
    uniform_int63,
    uniform_open,
    uniform_open_numpy,
)

if TYPE_CHECKING:
    import numpy.typing as npt

# Draws, or hits, that are worked on together: their temporaries fit a core's L2 cache.
PART = 3 << 13

# Up to so many rows, copying their beginnings is faster than a mask.
_FEW_ROWS = 16

# The counters of a sample start at its number, shifted by so many bits: no two of 2**32 samples
# with up to 2**32 elements share one.
_SAMPLE = 32

_Array: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True)
class Layout:
    """How the elements of a tensor belong to the samples of a batch.

    A leading dimension of k times the batch holds k rows (windows, tokens) for each
    sample; any other tensor is one sample.

    >>> Layout.of((12, 3, 8, 8), batch=4)
    Layout(samples=4, rows=3, row_shape=(3, 8, 8))
    >>> Layout.of((7, 5), batch=4).samples
    1

    Attributes:
        samples: number of samples that the tensor holds.
        rows: consecutive rows of the leading dimension in one sample.
        row_shape: shape of one row, channels first.
    """

    samples: int
    rows: int
    row_shape: tuple[int, ...]

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, shape: tuple[int, ...], batch: int) -> Layout:
        """Lay a tensor's shape out over a batch of `batch` samples."""
        if not shape:
            return cls(1, 1, ())
        leading = shape[0]
        samples = batch if batch > 0 and leading % batch == 0 and leading > 0 else 1
        return cls(samples, leading // samples, tuple(shape[1:]))

    @functools.cached_property
    def elements(self) -> int:
        """Elements of one sample."""
        return self.rows * math.prod(self.row_shape)


@dataclass(frozen=True)
class Hits:
    """Elements that are hit: all of a tensor's, or a part of them.

    Attributes:
        index: flat positions in row-major order of the shape, int64, one dimension.
        bits: 64 random bits for each, that its fault may be drawn from; int64, same length.
        real: None where every entry is a hit; otherwise bool, false for an entry that
            only fills the tensor up to its fixed length. A filler repeats a hit of its
            sample, or stands at element 0 of a sample without hits and must not change it.
        writes: None, or bool: the entry is a hit or repeats one.
        complete: None, or a bool tensor that is false in the (astronomically rare) case
            that the fixed number of draws did not reach the end of a sample.
    """

    index: Tensor
    bits: Tensor
    real: Tensor | None = None
    writes: Tensor | None = None
    complete: Tensor | None = None


def random_hits(
    key: int,
    first_sample: int,
    layout: Layout,
    probability: float,
    device: torch.device,
    *,
    fixed_size: bool | None = None,
) -> Iterator[Hits]:
    """Hit every element independently with the same probability.

    The gap before each hit is geometric, floor(ln u / ln(1 - p)), so a rate of 1e-9 is
    as exact as one of 0.5 and no rate is rounded to "none" or "at least one".

    Args:
        key: stream of the site (seed, trial and site).
        first_sample: number of the batch's first sample; its faults follow from it.
        layout: samples and elements of the tensor.
        probability: 0 to 1, for each element.
        device: where the positions are wanted.
        fixed_size: draw a number of gaps that is known beforehand, so that no size has to
            be read back from a device; default: only off the CPU. The hits are the same.

    Yields:
        The hits, in parts that stay in the processor's cache; never an empty one. Those of
        a fixed size are one part.

    Reference: Devroye, "Non-Uniform Random Variate Generation", 1986, X.2 (geometric
        variates by inversion).
    """
    if probability <= 0 or layout.elements == 0:
        return
    if fixed_size or (fixed_size is None and device.type != "cpu"):
        yield _fixed_hits(key, first_sample, layout, probability, device)
        return
    draws = min(_draws(layout.elements, probability, deviations=3, more=4), PART)
    together = max(1, PART // draws)
    for first in range(0, layout.samples, together):
        samples = np.arange(first, min(first + together, layout.samples), dtype=np.uint64)
        streams = (samples + np.uint64(first_sample)) << np.uint64(_SAMPLE)
        yield from _hits_of_samples(key, streams, samples, layout.elements, probability, draws)


def _hits_of_samples(
    key: int, streams: _Array, samples: _Array, elements: int, probability: float, draws: int
) -> Iterator[Hits]:
    """Draw until every sample is spanned, `draws` gaps for each at a time.

    Args:
        key: stream of the site.
        streams: the first counter of each sample, uint64.
        samples: their numbers within the tensor, uint64.
        elements: of one sample.
        probability: of a hit.
        draws: gaps in one go.
    """
    scale = _gap_scale(probability)
    drawn = 0
    last = (samples.astype(np.int64) + 1) * elements - 1
    reached = last - elements
    while True:
        bits = grid_hash(key, streams, drawn, draws)
        gaps = uniform_open_numpy(bits)
        np.log(gaps, out=gaps)
        gaps *= scale
        np.minimum(gaps, elements, out=gaps)
        flat = gaps.astype(np.int64)
        flat += 1
        flat[:, 0] += reached
        np.cumsum(flat, axis=1, out=flat)
        index, kept = _up_to(last, flat, bits)
        going = flat[:, -1] < last
        ended = not going.any()  # Before the hits are worked on, which takes the caches.
        if index.size:
            yield Hits(torch.from_numpy(index), torch.from_numpy(kept.view(np.int64)))
        if ended:
            return
        streams, last, reached = streams[going], last[going], flat[going, -1]
        drawn += draws


def _up_to(last: _Array, flat: _Array, bits: _Array) -> tuple[_Array, _Array]:
    """The positions, ascending in each row, that are not beyond the row's last, and their bits."""
    if len(flat) > _FEW_ROWS:
        real = flat <= last[:, None]
        return flat[real], bits[real]
    counts = [int(row.searchsorted(end, "right")) for row, end in zip(flat, last, strict=True)]
    index, kept = (
        np.concatenate([row[:count] for row, count in zip(table, counts, strict=True)])
        for table in (flat, bits)
    )
    return index, kept


def _fixed_hits(
    key: int, first_sample: int, layout: Layout, probability: float, device: torch.device
) -> Hits:
    """Draw as many gaps as surely span every sample, and fill up what is too many.

    With 9 standard deviations and 60 more than the mean, a binomial count exceeds the
    number with a probability under 1e-17 for each sample (Chernoff's bound, worst where
    the normal tail is, at large counts).
    """
    elements = layout.elements
    samples = torch.arange(layout.samples, device=device)[:, None]
    draws = _draws(elements, probability, deviations=9, more=60)
    streams = (samples + first_sample) << _SAMPLE
    bits = counter_hash(key, streams + torch.arange(draws, device=device))
    gaps = uniform_open(bits).log_().mul_(_gap_scale(probability))
    ends = gaps.clamp_(max=elements).long().add_(1).cumsum(1)
    real = ends <= elements
    start = samples * elements
    flat = ends + (start - 1)
    struck = real[:, :1].expand_as(real)
    return Hits(
        index=torch.where(real, flat, torch.where(struck, flat[:, :1], start)).flatten(),
        bits=torch.where(real, bits, bits[:, :1]).flatten(),
        real=real.flatten(),
        writes=struck.flatten(),
        complete=(ends[:, -1] >= elements).all(),
    )


def _draws(elements: int, probability: float, deviations: int, more: int) -> int:
    """How many gaps to draw for a sample: more than the mean number of its hits."""
    mean = elements * probability
    spread = math.sqrt(mean * (1 - probability))
    return min(elements, math.ceil(mean + deviations * spread) + more)


def _gap_scale(probability: float) -> float:
    """What turns ln u into the gap before a hit, which is 0 where all are hit."""
    return 1 / math.log1p(-probability) if probability < 1 else 0.0


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
        layout: samples and elements of the tensor; dimension 1 is the channel.
    """
    elements = layout.elements
    rounds = torch.arange(-(-elements // parallel), device=units.device)[:, None] * parallel
    order = (rounds + units).flatten()
    order = order[: _count_below(order, elements)]
    channels = layout.row_shape[0] if layout.row_shape else 1
    spatial = math.prod(layout.row_shape[1:])
    row, place = order // max(1, channels * spatial), order % max(1, channels * spatial)
    return row * channels * spatial + (place % channels) * spatial + place // channels


def hits_at(positions: Tensor, key: int, first_sample: int, layout: Layout) -> Iterator[Hits]:
    """Hits at the same places of every sample, with random bits of each sample's own.

    Args:
        positions: row-major positions in a sample, int64, one dimension.
        key: stream of the site.
        first_sample: number of the batch's first sample.
        layout: samples and elements of the tensor.

    Yields:
        The hits, in parts of whole samples; never an empty one.
    """
    if positions.numel() == 0:
        return
    together = max(1, PART // positions.numel())
    for samples in torch.arange(layout.samples, device=positions.device).split(together):
        counters = ((samples[:, None] + first_sample) << _SAMPLE) + positions
        index = samples[:, None] * layout.elements + positions
        yield Hits(index.flatten(), counter_hash(key, counters).flatten())


def _count_below(ascending: Tensor, limit: int) -> int:
    """How many of some ascending numbers are below a limit.

    Of the last round only; a read from the device, made once for a layout and cached by
    the caller.
    """
    return int((ascending < limit).sum())
