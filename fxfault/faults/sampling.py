"""Which elements of a tensor are hit.

The work grows with the number of hits, not of elements: the (geometric) gaps between hits are
drawn, never a mask. Each sample has its own stream of random numbers, so its hits do not depend on
its batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxfault.faults import kernels
from fxfault.faults.kernels import SAMPLE_SHIFT
from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import counter_hash, signed, uniform_open

if TYPE_CHECKING:
    import numpy.typing as npt

# Work on this many hits at once, so that their temporaries fit a core's L2 cache.
PART = 3 << 13

# Keep up to this many numbers that are drawn for several sites together (32 MiB).
MOST_KEPT = 1 << 22

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


def random_hits(
    key: int,
    numbers: Numbers,
    layout: Layout,
    probability: float,
    device: torch.device,
    *,
    fixed_size: bool | None = None,
) -> Iterator[Hits]:
    """Hit every element independently with the same probability.

    The gap before each hit is geometric, floor(ln u / ln(1 - p)). So a rate of 1e-9 is as exact as
    one of 0.5, and no rate is rounded to "none" or "at least one".

    Args:
        key: stream of the site (seed, trial and site).
        numbers: numbers of the samples, on which their faults depend; one for each in the layout.
        layout: samples and elements of the tensor.
        probability: probability of a hit for each element, 0 to 1.
        device: device of the positions.
        fixed_size: whether to draw a number of gaps that is known beforehand, so that no size has
            to be read back from a device; default: unless on the CPU. The hits are the same.

    Yields:
        Hits, in parts that fit the processor's cache and are never empty; hits of a fixed size
        are one part.

    Reference: Devroye, "Non-Uniform Random Variate Generation", 1986, X.2 (geometric
        variates by inversion).
    """
    return _random(key, numbers, layout, layout, None, probability, device, fixed_size)


def random_upsets(
    key: int,
    numbers: Numbers,
    layout: Layout,
    width: int,
    probability: float,
    device: torch.device,
    *,
    fixed_size: bool | None = None,
) -> Iterator[Hits]:
    """Hit every bit independently with the same probability.

    Bits are drawn as `random_hits` draws elements: word after word, bit 0 first.

    Args:
        key, numbers, layout, device, fixed_size: as for `random_hits`.
        width: bits of a word.
        probability: probability of a hit for each bit, 0 to 1.

    Yields:
        The elements with at least one hit bit, and these bits; in parts as `random_hits`.
    """
    outer = layout.outer
    bits = Layout(layout.samples, outer, (layout.elements // outer * width,), outer)
    return _random(key, numbers, layout, bits, width, probability, device, fixed_size)


def _random(
    key: int,
    numbers: Numbers,
    layout: Layout,
    targets: Layout,
    width: int | None,
    probability: float,
    device: torch.device,
    fixed_size: bool | None,
) -> Iterator[Hits]:
    """Hit every element of `targets` (elements of `layout`, or with a `width` their bits)."""
    if probability <= 0 or targets.elements == 0:
        return
    if fixed_size or (fixed_size is None and device.type != "cpu"):
        hits = _fixed_hits(key, numbers, targets, probability, device)
        hits = hits if width is None else _words_of(hits, targets, width)
        yield hits._replace(index=layout.place(hits.index))
        return
    stream = _stream_of(key, numbers, targets, probability)
    room = room_for(targets, probability)
    place = kernels.START
    while place[0] < layout.samples:
        index, bits = np.empty((2, room), np.int64)
        if width is None:
            count, place = kernels.draw_hits(tuple(stream), place, index, bits)
        else:
            count, place = kernels.draw_upsets(tuple(stream), width, place, index, bits)
        if count:
            drawn = torch.from_numpy(bits[:count])
            found = torch.from_numpy(index[:count])
            yield Hits(found, drawn) if width is None else Hits(found, struck=drawn)


def _words_of(hits: Hits, bits: Layout, width: int) -> Hits:
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


@dataclass(frozen=True)
class Share:
    """The range of one site among the elements (or bits) of several sites, numbered together.

    Attributes:
        low: the first number of the site.
        high: one after its last number.
        total: the number of elements (or bits) of all sites.
        width: numbers of one element: 1, or the bits of its word.
    """

    low: int
    high: int
    total: int
    width: int


def exact_hits(
    joint_key: int,
    key: int,
    numbers: Numbers,
    share: Share,
    count: int,
    device: torch.device,
    layout: Layout | None = None,
) -> Iterator[Hits]:
    """Hit an exact number of elements (or bits) of each sample, at several sites together.

    Every set of them is equally likely. The host draws them without reading from the device, so
    that no forward waits.

    Args:
        joint_key: stream that all these sites share.
        key: stream of the site, for the random bits.
        numbers: numbers of the samples.
        share: the range of the site.
        count: hits of each sample, at most `share.total`.
        device: device of the positions.
        layout: samples and elements of the tensor; default: each sample is one piece.

    Yields:
        All hits of the site at once, sample after sample; nothing if there are none.
    """
    drawn = _drawn_together(joint_key, numbers, share.total, count)
    room = int(((drawn >= share.low) & (drawn < share.high)).sum())
    index, struck = np.empty((2, room), np.int64)
    found = kernels.take_between(drawn, share.low, share.high, share.width, index, struck)
    if found == 0:
        return
    placed = torch.from_numpy(index[:found])
    placed = placed if layout is None else layout.place(placed)
    if share.width > 1:
        yield Hits(_moved(placed, device), struck=_moved(torch.from_numpy(struck[:found]), device))
        return
    elements = share.high - share.low
    of_sample = on_host(numbers).view(np.int64)[index[:found] // elements]
    counters = torch.from_numpy((of_sample << SAMPLE_SHIFT) + index[:found] % elements)
    bits = counter_hash(key, counters)
    yield Hits(_moved(placed, device), _moved(bits, device))


def samples_hit_exactly(joint_key: int, numbers: Numbers, share: Share, count: int) -> Tensor:
    """Which samples `exact_hits` hits at a site; bool on the CPU, one for each number."""
    drawn = _drawn_together(joint_key, numbers, share.total, count)
    return torch.from_numpy(((drawn >= share.low) & (drawn < share.high)).any(1))


def _drawn_together(
    joint_key: int, numbers: Numbers, total: int, count: int
) -> npt.NDArray[np.int64]:
    """The hits at all sites, ascending for each sample; shape (samples, count)."""
    host = on_host(numbers)
    find = _draw_distinct.__wrapped__ if host.size * count > MOST_KEPT else _draw_distinct
    drawn: npt.NDArray[np.int64] = find(joint_key, host.tobytes(), total, count)
    return drawn


@functools.lru_cache(maxsize=4)
def _draw_distinct(joint_key: int, numbers: bytes, total: int, count: int) -> npt.NDArray[np.int64]:
    """Draw, or return the cached draw, which every site of a forward uses."""
    given = np.frombuffer(numbers, np.uint64)
    drawn = np.empty((given.size, count), np.int64)
    kernels.draw_distinct(signed(joint_key), given, total, drawn)
    return drawn


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for it."""
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _stream_of(key: int, numbers: Numbers, layout: Layout, probability: float) -> kernels.Stream:
    """The source of a tensor's hits for the compiled loops; see `random_hits`."""
    return kernels.Stream(
        signed(key), on_host(numbers), layout.elements, gap_scale(probability), layout.outer
    )


def room_for(layout: Layout, probability: float) -> int:
    """How many hits to work on at once."""
    return min(_draws(layout.samples * layout.elements, probability, deviations=4, more=4), PART)


def samples_hit_at_random(key: int, numbers: Numbers, elements: int, probability: float) -> Tensor:
    """Which samples `random_hits` hits at all; bool on the CPU, one for each number."""
    hit = np.zeros(len(numbers), bool)
    if probability > 0 and elements > 0:
        layout = Layout(len(numbers), 1, (elements,))
        kernels.samples_hit(tuple(_stream_of(key, numbers, layout, probability)), hit)
    return torch.from_numpy(hit)


def on_host(numbers: Numbers) -> npt.NDArray[np.uint64]:
    """The numbers of samples for the compiled loops."""
    if isinstance(numbers, range):
        return _counted(numbers.start, numbers.stop)
    return numbers.cpu().numpy().view(np.uint64)


@functools.lru_cache(maxsize=8)
def _counted(first: int, end: int) -> npt.NDArray[np.uint64]:
    """The numbers of a batch, cached for all sites of a forward."""
    return np.arange(first, end, dtype=np.uint64)


def _on_device(numbers: Numbers, device: torch.device) -> Tensor:
    if isinstance(numbers, range):
        return torch.arange(numbers.start, numbers.stop, device=device)
    return _moved(numbers, device)


def _fixed_hits(
    key: int, numbers: Numbers, layout: Layout, probability: float, device: torch.device
) -> Hits:
    """Draw enough gaps to span every sample, and turn the surplus into fillers.

    A binomial count exceeds its mean by 9 standard deviations and 60 with a probability below
    1e-17 for each sample (Chernoff's bound, which is worst at large counts, in the normal tail).
    """
    elements = layout.elements
    draws = _draws(elements, probability, deviations=9, more=60)
    streams = _on_device(numbers, device)[:, None] << SAMPLE_SHIFT
    bits = counter_hash(key, streams + torch.arange(draws, device=device))
    gaps = uniform_open(bits).log_().mul_(gap_scale(probability))
    ends = gaps.clamp_(max=elements).long().add_(1).cumsum(1)
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


def _draws(elements: int, probability: float, deviations: int, more: int) -> int:
    """The number of gaps to draw: above the mean number of hits, up to the number of elements."""
    mean = elements * probability
    spread = math.sqrt(mean * (1 - probability))
    return min(elements, math.ceil(mean + deviations * spread) + more)


def gap_scale(probability: float) -> float:
    """The factor that turns ln u into the gap before a hit; 0 if every element is hit."""
    return 1 / math.log1p(-probability) if probability < 1 else 0.0


def hits_at(positions: Tensor, key: int, numbers: Numbers, layout: Layout) -> Iterator[Hits]:
    """Hit the same places of every sample, each sample with its own random bits.

    Args:
        positions: row-major positions in a sample, int64, one dimension.
        key: stream of the site.
        numbers: numbers of the samples, one for each in the layout.
        layout: samples and elements of the tensor.

    Yields:
        Hits, in parts of whole samples that are never empty.
    """
    if positions.numel() == 0:
        return
    together = max(1, PART // positions.numel())
    for first in range(0, layout.samples, together):
        part = _on_device(numbers[first : first + together], positions.device)[:, None]
        rows = torch.arange(first, first + len(part), device=positions.device)[:, None]
        counters = (part << SAMPLE_SHIFT) + positions
        index = layout.place(rows * layout.elements + positions)
        yield Hits(index.flatten(), counter_hash(key, counters).flatten())
