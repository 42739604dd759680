"""Which elements of a tensor are hit.

Work follows the number of hits, not of elements: the gaps between hits are drawn
(geometric), never a mask. Each sample has its own stream of random numbers, so its
hits do not depend on the batch that it comes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxfault.random_numbers import counter_hash, uniform_int63, uniform_open


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
    def of(cls, shape: tuple[int, ...], batch: int) -> Layout:
        """Lay a tensor's shape out over a batch of `batch` samples."""
        if not shape:
            return cls(1, 1, ())
        leading = shape[0]
        samples = batch if batch > 0 and leading % batch == 0 and leading > 0 else 1
        return cls(samples, leading // samples, tuple(shape[1:]))

    @property
    def elements(self) -> int:
        """Elements of one sample."""
        return self.rows * math.prod(self.row_shape)


@dataclass(frozen=True)
class Hits:
    """The elements that are hit.

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
) -> Hits:
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

    Reference: Devroye, "Non-Uniform Random Variate Generation", 1986, X.2 (geometric
        variates by inversion).
    """
    if fixed_size is None:
        fixed_size = device.type != "cpu"
    elements = layout.elements
    if probability <= 0 or elements == 0:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return Hits(empty, empty)
    samples = torch.arange(first_sample, first_sample + layout.samples, device=device)
    keys = counter_hash(key, samples)[:, None]
    draws = _draws(elements, probability, deviations=9.0 if fixed_size else 4.0)
    bits = counter_hash(keys, torch.arange(draws, device=device))
    ends = _gaps(bits, elements, probability).cumsum(1)
    while not fixed_size and bits.shape[1] < elements and int(ends[:, -1].min()) < elements:
        drawn = bits.shape[1]
        more = counter_hash(keys, torch.arange(drawn, drawn + drawn // 4 + 8, device=device))
        ends = torch.cat([ends, ends[:, -1:] + _gaps(more, elements, probability).cumsum(1)], 1)
        bits = torch.cat([bits, more], 1)
    return _from_ends(ends, bits, elements, fixed_size)


def _draws(elements: int, probability: float, deviations: float) -> int:
    """How many gaps to draw so that they span a sample.

    With 9 standard deviations and 60 more than the mean, a binomial count exceeds the
    number with a probability under 1e-17 for each sample (Chernoff's bound, worst where
    the normal tail is, at large counts). Without a fixed size, fewer are drawn and the
    rest follows where needed.
    """
    mean = elements * probability
    spread = deviations * math.sqrt(mean * (1 - probability))
    return min(elements, math.ceil(mean + spread + (60 if deviations > 5 else 6)))


def _gaps(bits: Tensor, elements: int, probability: float) -> Tensor:
    """Distances from one hit to the next, 1 and up; no larger than `elements` + 1."""
    if probability >= 1:
        return torch.ones_like(bits)
    gaps = uniform_open(bits).log_().div_(math.log1p(-probability))
    return gaps.clamp_(max=elements).long().add_(1)


def _from_ends(ends: Tensor, bits: Tensor, elements: int, fixed_size: bool) -> Hits:
    """Turn running sums of gaps (samples, draws) into flat positions."""
    real = ends <= elements
    start = torch.arange(ends.shape[0], device=ends.device)[:, None] * elements
    flat = ends + (start - 1)
    if not fixed_size:
        entries = real.flatten().nonzero().squeeze(1)
        return Hits(flat.view(-1).index_select(0, entries), bits.view(-1).index_select(0, entries))
    struck = real[:, :1].expand_as(real)
    return Hits(
        index=torch.where(real, flat, torch.where(struck, flat[:, :1], start)).flatten(),
        bits=torch.where(real, bits, bits[:, :1]).flatten(),
        real=real.flatten(),
        writes=struck.flatten(),
        complete=(ends[:, -1] >= elements).all(),
    )


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
    """The elements that a broken unit computes: flat row-major positions, int64.

    The accelerator computes a sample's elements in channels-last order; element i runs
    on unit i mod `parallel`.

    Args:
        units: numbers of the broken units, int64.
        parallel: number of parallel units.
        layout: samples and elements of the tensor; dimension 1 is the channel.
    """
    elements = layout.elements
    device = units.device
    rounds = torch.arange(-(-elements // parallel), device=device)[:, None] * parallel
    order = (rounds + units).flatten()
    order = order[: _count_below(order, elements)]
    channels = layout.row_shape[0] if layout.row_shape else 1
    spatial = math.prod(layout.row_shape[1:])
    row, place = order // max(1, channels * spatial), order % max(1, channels * spatial)
    within = row * channels * spatial + (place % channels) * spatial + place // channels
    return (torch.arange(layout.samples, device=device)[:, None] * elements + within).flatten()


def hits_at(index: Tensor, key: int, first_sample: int, layout: Layout) -> Hits:
    """Hits at given positions, with random bits that follow from sample and element.

    Args:
        index: flat row-major positions, int64, one dimension.
        key: stream of the site.
        first_sample: number of the batch's first sample.
        layout: samples and elements of the tensor.
    """
    keys = counter_hash(key, index // layout.elements + first_sample)
    return Hits(index, counter_hash(keys, index % layout.elements))


def _count_below(ascending: Tensor, limit: int) -> int:
    """How many of some ascending numbers are below a limit.

    Of the last round only; a read from the device, made once for a layout and cached by
    the caller.
    """
    return int((ascending < limit).sum())
