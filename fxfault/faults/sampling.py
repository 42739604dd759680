"""Which elements of a tensor are hit.

The work grows with the number of hits, not of elements: the (geometric) gaps between hits are
drawn, never a mask. Each sample has its own stream of random numbers, so its hits do not depend on
its batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fxfault.faults import kernels, without_loops
from fxfault.faults.kernels import SAMPLE_SHIFT
from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import counter_hash, signed
from fxfault.faults.torch_draws import (
    PART,
    draws_for,
    fixed_hits,
    gap_scale,
    moved,
    on_device,
    words_of,
)
from fxfault.faults.torch_draws import Hits as Hits  # Others import them from here.
from fxfault.faults.torch_draws import Numbers as Numbers

if TYPE_CHECKING:
    import numpy.typing as npt

# Keep up to this many numbers that are drawn for several sites together (32 MiB).
MOST_KEPT = 1 << 22


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
        hits = fixed_hits(key, numbers, targets, probability, device)
        hits = hits if width is None else words_of(hits, targets, width)
        yield hits._replace(index=layout.place(hits.index))
        return
    if not kernels.HAVE_NUMBA:
        yield from without_loops.hits_in_parts(key, numbers, layout, targets, width, probability)
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
    loops = kernels if kernels.HAVE_NUMBA else without_loops
    found = loops.take_between(drawn, share.low, share.high, share.width, index, struck)
    if found == 0:
        return
    placed = torch.from_numpy(index[:found])
    placed = placed if layout is None else layout.place(placed)
    if share.width > 1:
        yield Hits(moved(placed, device), struck=moved(torch.from_numpy(struck[:found]), device))
        return
    elements = share.high - share.low
    of_sample = on_host(numbers).view(np.int64)[index[:found] // elements]
    counters = torch.from_numpy((of_sample << SAMPLE_SHIFT) + index[:found] % elements)
    bits = counter_hash(key, counters)
    yield Hits(moved(placed, device), moved(bits, device))


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
    loops = kernels if kernels.HAVE_NUMBA else without_loops
    loops.draw_distinct(signed(joint_key), given, total, drawn)
    return drawn


def _stream_of(key: int, numbers: Numbers, layout: Layout, probability: float) -> kernels.Stream:
    """The source of a tensor's hits for the compiled loops; see `random_hits`."""
    return kernels.Stream(
        signed(key), on_host(numbers), layout.elements, gap_scale(probability), layout.outer
    )


def room_for(layout: Layout, probability: float) -> int:
    """How many hits to work on at once."""
    return min(draws_for(layout.samples * layout.elements, probability, deviations=4, more=4), PART)


def samples_hit_at_random(key: int, numbers: Numbers, elements: int, probability: float) -> Tensor:
    """Which samples `random_hits` hits at all; bool on the CPU, one for each number."""
    hit = np.zeros(len(numbers), bool)
    if probability > 0 and elements > 0:
        if not kernels.HAVE_NUMBA:
            return without_loops.samples_hit(key, numbers, elements, probability)
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
        part = on_device(numbers[first : first + together], positions.device)[:, None]
        rows = torch.arange(first, first + len(part), device=positions.device)[:, None]
        counters = (part << SAMPLE_SHIFT) + positions
        index = layout.place(rows * layout.elements + positions)
        yield Hits(index.flatten(), counter_hash(key, counters).flatten())
