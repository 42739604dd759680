"""What the compiled loops draw, by torch and NumPy, where Numba is not installed.

Each function gives the numbers that its namesake in `fxfault.faults.kernels` or
`fxfault.faults.sampling` gives, bit for bit, and takes longer. Hits of whole samples are drawn at
once, which takes about 100 bytes for each hit of a sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fxfault.faults.kernels import SAMPLE_SHIFT
from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import counter_hash
from fxfault.faults.torch_draws import (
    PART,
    Hits,
    Numbers,
    draws_for,
    fixed_hits,
    gap_scale,
    gaps,
    on_device,
    words_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

_CPU = torch.device("cpu")


def hits_in_parts(
    key: int,
    numbers: Numbers,
    layout: Layout,
    targets: Layout,
    width: int | None,
    probability: float,
) -> Iterator[Hits]:
    """Hit every element of `targets`, in parts of whole samples that are never empty.

    Args:
        key, numbers, layout, probability: as for `fxfault.faults.sampling.random_hits`.
        targets: the elements to hit: those of `layout`, or with a `width` their bits.
        width: bits of a word if bits are hit.
    """
    together = max(1, PART // draws_for(targets.elements, probability, deviations=9, more=60))
    for first in range(0, layout.samples, together):
        part = numbers[first : first + together]
        within = dataclasses.replace(targets, samples=len(part))
        hits = _spanning(key, part, within, probability)
        hits = hits if width is None else words_of(hits, within, width)
        real = hits.real
        assert real is not None
        if bool(real.any()):
            index = layout.place(hits.index[real] + first * layout.elements)
            bits, struck = (None if x is None else x[real] for x in (hits.bits, hits.struck))
            yield Hits(index, bits, struck=struck)


def _spanning(key: int, numbers: Numbers, layout: Layout, probability: float) -> Hits:
    """Draw hits of a fixed size, once more in the rare case that they span a sample not."""
    hits = fixed_hits(key, numbers, layout, probability, _CPU)
    assert hits.complete is not None
    if bool(hits.complete):
        return hits
    return fixed_hits(key, numbers, layout, probability, _CPU, draws=layout.elements)


def samples_hit(key: int, numbers: Numbers, elements: int, probability: float) -> Tensor:
    """Which samples have a hit; bool, one for each number."""
    bits = counter_hash(key, on_device(numbers, _CPU) << SAMPLE_SHIFT)
    return gaps(bits, gap_scale(probability), elements) < elements


def draw_distinct(key: int, numbers: npt.NDArray[np.uint64], total: int, drawn: Ints) -> None:
    """Draw distinct numbers from 0 to `total` - 1; see `fxfault.faults.kernels.draw_distinct`."""
    count = drawn.shape[1]
    starts = torch.from_numpy(numbers.astype(np.int64)) << SAMPLE_SHIFT
    bits = counter_hash(key, starts[:, None] + torch.arange(count))
    most = torch.arange(total - count, total)
    uniform = (bits >> 11).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53)
    drawn[:] = uniform.mul_(most + 1).long().numpy()
    twice = (np.diff(np.sort(drawn, axis=1), axis=1) == 0).any(axis=1)
    for row in np.flatnonzero(twice):  # Only these need Floyd's algorithm.
        taken: set[int] = set()
        for number, last in zip(drawn[row].tolist(), most.tolist(), strict=True):
            taken.add(last if number in taken else number)
        drawn[row] = sorted(taken)
    drawn.sort(axis=1)


def take_between(drawn: Ints, low: int, high: int, width: int, index: Ints, struck: Ints) -> int:
    """Select the numbers of one site; see `fxfault.faults.kernels.take_between`."""
    row, column = np.nonzero((drawn >= low) & (drawn < high))
    number = drawn[row, column] - low
    within = number // width
    position = row * ((high - low) // width) + within
    found, first = np.unique(position, return_index=True)
    if found.size:
        index[: found.size] = found
        struck[: found.size] = np.bitwise_or.reduceat(1 << (number - within * width), first)
    return int(found.size)
