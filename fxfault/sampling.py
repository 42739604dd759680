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

from fxfault import kernels
from fxfault.kernels import SAMPLE_SHIFT
from fxfault.random_numbers import Key, counter_hash, signed, uniform_int63, uniform_open

if TYPE_CHECKING:
    import numpy.typing as npt

# Hits that are worked on together: what is made of them fits a core's L2 cache.
PART = 3 << 13

# Numbers drawn for several sites together that are kept from site to site (32 MiB).
MOST_KEPT = 1 << 22

# Why an activation belongs to no sample though samples are independent.
CONSTANT = "it is the same for every batch"

Numbers: TypeAlias = "range | Tensor"
"""The numbers of a batch's samples, 0 and up: a range, or int64 of one dimension."""


@dataclass(frozen=True)
class Layout:
    """How the elements of a tensor belong to the samples of a batch.

    In row-major order a sample's elements are `outer` pieces of the same size; in the tensor the
    first pieces of all samples come first, then their second ones, and so on. With one piece its
    rows are consecutive; two views of each sample that `torch.cat` joins are two pieces; a tensor
    of T time steps, (T, batch, features), has T.

    >>> views = Layout(samples=3, rows=2, row_shape=(5,), outer=2)
    >>> views.place(torch.tensor([0, 4, 5, 10])).tolist()  # of sample 0, and the first of sample 1
    [0, 4, 15, 5]

    Attributes:
        samples: number of samples that the tensor holds.
        rows: of one sample; its row-major elements are those of row after row.
        row_shape: shape of one row, channels first: the dimensions behind that of the samples.
        outer: pieces in which a sample lies.
    """

    samples: int
    rows: int
    row_shape: tuple[int, ...]
    outer: int = 1

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, shape: tuple[int, ...], batch: int) -> Layout:
        """Lay a tensor's shape out over a batch, as far as one sees by the shape.

        A leading dimension of k times the batch is taken to hold k consecutive rows (windows,
        tokens) for each sample; any other tensor is one sample. What is true is measured, see
        `fxfault.sample_layouts`.

        >>> Layout.of((12, 3, 8, 8), batch=4)
        Layout(samples=4, rows=3, row_shape=(3, 8, 8), outer=1)
        >>> Layout.of((7, 5), batch=4).samples
        1
        """
        if not shape:
            return cls(1, 1, ())
        leading = shape[0]
        samples = batch if batch > 0 and leading % batch == 0 and leading > 0 else 1
        return cls(samples, leading // samples, tuple(shape[1:]))

    @functools.cached_property
    def elements(self) -> int:
        """Elements of one sample."""
        return self.rows * math.prod(self.row_shape)

    def place(self, index: Tensor) -> Tensor:
        """Where elements lie in the tensor, which are counted sample after sample.

        Args:
            index: element e of sample n is n * elements + e; int64, any shape.

        Returns:
            Flat row-major positions; `index` itself where each sample is one piece.
        """
        if self.outer == 1 or self.samples == 1 or self.elements == 0:
            return index
        piece = self.elements // self.outer
        sample, within = index // self.elements, index % self.elements
        return (within // piece * self.samples + sample) * piece + within % piece


@dataclass(frozen=True)
class Arrangement:
    """How the samples of any batch lie in an activation, as it was measured.

    Along one dimension, of size outer * batch * each. See `fxfault.sample_layouts`.

    >>> views = Arrangement(dim=0, outer=2)
    >>> views.over((14, 5), batch=7)
    Layout(samples=7, rows=2, row_shape=(5,), outer=2)
    >>> views.over((6, 5), batch=3)
    Layout(samples=3, rows=2, row_shape=(5,), outer=2)
    >>> steps = Arrangement(dim=1, pieces=4)
    >>> print(steps), steps.over((4, 7, 5), batch=7)
    every N-th row (outer=4)
    (None, Layout(samples=7, rows=4, row_shape=(5,), outer=4))

    Attributes:
        dim: the dimension.
        outer: how often all samples follow each other in it; 1 where they do so once.
        each: neighbouring entries of one sample in it.
        pieces: of a sample in the activation that was measured, see `Layout.outer`.
        why_batch: why the activation belongs to the batch as a whole, so that it has one draw of
            faults; None: it belongs to samples.
        why_shared: how samples influence each other all the same; None: they do not.
        why_guessed: why other ways in which samples may lie explain as much; None: none does.
    """

    dim: int = 0
    outer: int = 1
    each: int = 1
    pieces: int = 1
    why_batch: str | None = None
    why_shared: str | None = None
    why_guessed: str | None = None

    def over(self, shape: tuple[int, ...], batch: int) -> Layout:
        """The layout of an activation of some shape, from a batch of `batch` samples.

        A shape that does not fit what was measured is one sample.
        """
        if self.why_batch is None and self.dim == 0 and self.outer == 1:
            return Layout.of(shape, batch)
        return _layout_over(self, shape, batch)

    @property
    def mixing(self) -> bool:
        """Whether samples meet each other there, or may; what no sample makes does not count."""
        shared = self.why_shared is not None or self.why_guessed is not None
        return shared or self.why_batch not in (None, CONSTANT)

    @property
    def consecutive(self) -> bool:
        """Whether each sample's rows follow each other."""
        return self.why_batch is None and self.pieces == 1

    def __str__(self) -> str:
        if self.why_batch is not None:
            return f"belong to the batch: {self.why_batch}"
        rows = "row" if self.each == 1 else f"{self.each} rows"
        text = "consecutive" if self.consecutive else f"every N-th {rows} (outer={self.pieces})"
        if self.why_guessed is not None:
            text = f"{text}, which is a guess: {self.why_guessed}"
        return text if self.why_shared is None else f"{text}, but {self.why_shared}"


@functools.lru_cache(maxsize=1024)
def _layout_over(arrangement: Arrangement, shape: tuple[int, ...], batch: int) -> Layout:
    dim, one = arrangement.dim, Layout(1, *((shape[0], shape[1:]) if shape else (1, ())))
    if arrangement.why_batch is not None or dim >= len(shape) or batch < 1:
        return one
    each, rest = divmod(shape[dim], batch)
    if rest or each == 0:
        return one
    outer = arrangement.outer
    if arrangement.each == 1 and outer > 1:
        outer = each  # As many views, or time steps, as there are here.
    elif each % outer:
        return one
    before = math.prod(shape[:dim])
    return Layout(batch, before * each, tuple(shape[dim + 1 :]), before * outer)


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
    key: Key,
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
    stream = stream_of(key, numbers, layout, probability)
    room = room_for(layout, probability)
    place = kernels.START
    while place[0] < layout.samples:
        index, bits = np.empty((2, room), np.int64)
        count, place = kernels.draw_hits(tuple(stream), place, index, bits)
        if count:
            yield Hits(torch.from_numpy(index[:count]), torch.from_numpy(bits[:count]))


def random_upsets(
    key: Key,
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
    stream = stream_of(key, numbers, bits, probability)
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
    key: Key,
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
    of_sample = _on_host(numbers).view(np.int64)[index[:found] // elements]
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
    host = _on_host(numbers)
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


def stream_of(key: Key, numbers: Numbers, layout: Layout, probability: float) -> kernels.Stream:
    """Where the hits of a tensor come from, as the loops take it; see `random_hits`."""
    assert isinstance(key, int)  # A tensor is for graphs of a device, which take no loop.
    return kernels.Stream(
        signed(key), _on_host(numbers), layout.elements, _gap_scale(probability), layout.outer
    )


def room_for(layout: Layout, probability: float) -> int:
    """How many hits to work on together."""
    return min(_draws(layout.samples * layout.elements, probability, deviations=4, more=4), PART)


def samples_hit(key: Key, numbers: Numbers, elements: int, probability: float) -> Tensor:
    """Which samples `random_hits` hits at all; bool on the CPU, one for each number."""
    struck = np.zeros(len(numbers), bool)
    if probability > 0 and elements > 0:
        layout = Layout(len(numbers), 1, (elements,))
        kernels.find_struck(tuple(stream_of(key, numbers, layout, probability)), struck)
    return torch.from_numpy(struck)


def _on_host(numbers: Numbers) -> npt.NDArray[np.uint64]:
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
    key: Key, numbers: Numbers, layout: Layout, probability: float, device: torch.device
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
    gaps = uniform_open(bits).log_().mul_(_gap_scale(probability))
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


def hits_at(positions: Tensor, key: Key, numbers: Numbers, layout: Layout) -> Iterator[Hits]:
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


def _count_below(ascending: Tensor, limit: int) -> int:
    """How many of some ascending numbers are below a limit.

    Of the last round only; a read from the device, made once for a layout and cached by
    the caller.
    """
    return int((ascending < limit).sum())
