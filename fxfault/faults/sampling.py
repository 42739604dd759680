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

# Hits that are worked on together: what is made of them fits a core's L2 cache.
PART = 3 << 13

# Numbers drawn for several sites together that are kept from site to site (32 MiB).
MOST_KEPT = 1 << 22

Numbers: TypeAlias = "range | Tensor"
"""The numbers of a batch's samples, 0 and up: a range, or int64 of one dimension."""


class Hits(NamedTuple):
    """Elements that are hit: all of a tensor's, or a part of them.

    Attributes:
        index: flat positions in row-major order of the shape, int64, one dimension.
        bits: 64 random bits for each, that its fault may be drawn from; int64, same length. None
            where it is drawn already.
        real: None where every entry is a hit; otherwise bool, false for an entry that
            only fills the tensor up to its fixed length. A filler repeats a hit of its
            sample, or stands at element 0 of a sample without hits and must not change it.
        writes: None, or bool: the entry is a hit or repeats one.
        complete: None, or a bool tensor that is false in the (astronomically rare) case
            that the fixed number of draws did not reach the end of a sample.
        struck: None, or which bits of each word are struck, as a pattern; int64, same length.
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

    The gap before each hit is geometric, floor(ln u / ln(1 - p)), so a rate of 1e-9 is
    as exact as one of 0.5 and no rate is rounded to "none" or "at least one".

    Args:
        key: stream of the site (seed, trial and site).
        numbers: of the samples, one for each of the layout's; their faults follow from them.
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
        hits = _fixed_hits(key, numbers, layout, probability, device)
        yield hits._replace(index=layout.place(hits.index))
        return
    stream = _stream_of(key, numbers, layout, probability)
    room = room_for(layout, probability)
    place = kernels.START
    while place[0] < layout.samples:
        index, bits = np.empty((2, room), np.int64)
        count, place = kernels.draw_hits(tuple(stream), place, index, bits)
        if count:
            yield Hits(torch.from_numpy(index[:count]), torch.from_numpy(bits[:count]))


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

    Bits are drawn as `random_hits` draws elements, with those of a word beside each other, bit 0
    first.

    Args:
        key: as for `random_hits`.
        numbers: as for `random_hits`.
        layout: samples and elements of the tensor.
        width: bits of a word.
        probability: 0 to 1, for each bit.
        device: where the positions are wanted.
        fixed_size: as for `random_hits`.

    Yields:
        The elements of which at least one bit is hit, with these bits; as `random_hits`.
    """
    outer = layout.outer
    bits = Layout(layout.samples, outer, (layout.elements // outer * width,), outer)
    if probability <= 0 or bits.elements == 0:
        return
    if fixed_size or (fixed_size is None and device.type != "cpu"):
        hits = _words_of(_fixed_hits(key, numbers, bits, probability, device), bits, width)
        yield hits._replace(index=layout.place(hits.index))
        return
    stream = _stream_of(key, numbers, bits, probability)
    room = room_for(bits, probability)
    place = kernels.START
    while place[0] < layout.samples:
        index, struck = np.empty((2, room), np.int64)
        count, place = kernels.draw_upsets(tuple(stream), width, place, index, struck)
        if count:
            yield Hits(torch.from_numpy(index[:count]), struck=torch.from_numpy(struck[:count]))


def _words_of(hits: Hits, bits: Layout, width: int) -> Hits:
    """Put the bits of one word together, in hits of a fixed size, which it stays.

    The bits of a word follow each other within their sample, and what fills a sample up comes
    last; it takes the place of the sample's last word, whose bits it repeats.
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
    """The part of one site in numbers that are drawn for several sites together.

    The elements (or bits) of the first site have the first numbers, and so on.

    Attributes:
        low: the first of the site's numbers.
        high: one after the last.
        total: of all sites together.
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
    """Hit exactly so many elements (or bits) of each sample, at several sites together.

    Every set of them is equally likely. All is drawn on the host, whose positions follow from
    nothing on the device, so that no forward waits for it.

    Args:
        joint_key: stream that all these sites have in common.
        key: stream of the site, which random bits come from.
        numbers: of the samples.
        share: the site's part.
        count: hits of each sample, at most `share.total`.
        device: where the positions are wanted.
        layout: samples and elements of the tensor; default: each sample is one piece.

    Yields:
        The hits of the site, all at once, sample after sample; nothing where it has none.
    """
    drawn = _drawn_together(joint_key, numbers, share.total, count)
    index, struck = np.empty((2, _room_between(drawn, share)), np.int64)
    found = kernels.take_between(drawn, share.low, share.high, share.width, index, struck)
    if found == 0:
        return
    placed = torch.from_numpy(index[:found])
    placed = placed if layout is None else layout.place(placed)
    if share.width > 1:
        yield Hits(_moved(placed, device), struck=_sent(struck[:found], device))
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


def _room_between(drawn: npt.NDArray[np.int64], share: Share) -> int:
    return int(((drawn >= share.low) & (drawn < share.high)).sum())


def _drawn_together(
    joint_key: int, numbers: Numbers, total: int, count: int
) -> npt.NDArray[np.int64]:
    """What is drawn for all sites, ascending for each sample; shape (samples, count)."""
    host = on_host(numbers)
    find = _draw_distinct.__wrapped__ if host.size * count > MOST_KEPT else _draw_distinct
    drawn: npt.NDArray[np.int64] = find(joint_key, host.tobytes(), total, count)
    return drawn


@functools.lru_cache(maxsize=4)
def _draw_distinct(joint_key: int, numbers: bytes, total: int, count: int) -> npt.NDArray[np.int64]:
    """Kept, as every site of a forward asks for it."""
    given = np.frombuffer(numbers, np.uint64)
    drawn = np.empty((given.size, count), np.int64)
    kernels.draw_distinct(signed(joint_key), given, total, drawn)
    return drawn


def _sent(host: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return _moved(torch.from_numpy(host), device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, which the host does not wait for."""
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _stream_of(key: int, numbers: Numbers, layout: Layout, probability: float) -> kernels.Stream:
    """Where the hits of a tensor come from, as the loops take it; see `random_hits`."""
    return kernels.Stream(
        signed(key), on_host(numbers), layout.elements, gap_scale(probability), layout.outer
    )


def room_for(layout: Layout, probability: float) -> int:
    """How many hits to work on together."""
    return min(_draws(layout.samples * layout.elements, probability, deviations=4, more=4), PART)


def samples_hit_at_random(key: int, numbers: Numbers, elements: int, probability: float) -> Tensor:
    """Which samples `random_hits` hits at all; bool on the CPU, one for each number."""
    hit = np.zeros(len(numbers), bool)
    if probability > 0 and elements > 0:
        layout = Layout(len(numbers), 1, (elements,))
        kernels.samples_hit(tuple(_stream_of(key, numbers, layout, probability)), hit)
    return torch.from_numpy(hit)


def on_host(numbers: Numbers) -> npt.NDArray[np.uint64]:
    """The numbers of samples as the loops take them."""
    if isinstance(numbers, range):
        return _counted(numbers.start, numbers.stop)
    return numbers.cpu().numpy().view(np.uint64)


@functools.lru_cache(maxsize=8)
def _counted(first: int, end: int) -> npt.NDArray[np.uint64]:
    """The numbers of a batch, which all sites of a forward ask for."""
    return np.arange(first, end, dtype=np.uint64)


def _on_device(numbers: Numbers, device: torch.device) -> Tensor:
    if isinstance(numbers, range):
        return torch.arange(numbers.start, numbers.stop, device=device)
    return _moved(numbers, device)


def _fixed_hits(
    key: int, numbers: Numbers, layout: Layout, probability: float, device: torch.device
) -> Hits:
    """Draw as many gaps as surely span every sample, and fill up what is too many.

    With 9 standard deviations and 60 more than the mean, a binomial count exceeds the
    number with a probability under 1e-17 for each sample (Chernoff's bound, worst where
    the normal tail is, at large counts).
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
    """How many gaps to draw: more than the mean number of hits, but no more than elements."""
    mean = elements * probability
    spread = math.sqrt(mean * (1 - probability))
    return min(elements, math.ceil(mean + deviations * spread) + more)


def gap_scale(probability: float) -> float:
    """What turns ln u into the gap before a hit, which is 0 where all are hit."""
    return 1 / math.log1p(-probability) if probability < 1 else 0.0


def hits_at(positions: Tensor, key: int, numbers: Numbers, layout: Layout) -> Iterator[Hits]:
    """Hits at the same places of every sample, with random bits of each sample's own.

    Args:
        positions: row-major positions in a sample, int64, one dimension.
        key: stream of the site.
        numbers: of the samples, one for each of the layout's.
        layout: samples and elements of the tensor.

    Yields:
        The hits, in parts of whole samples; never an empty one.
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
