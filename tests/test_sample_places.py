"""Where the elements of a sample lie, against plain integers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fxfault.faults.layouts import Layout
from fxfault.faults.sampling import Share, exact_hits, hits_at, random_hits, random_upsets

CPU = torch.device("cpu")

# (samples, outer, consecutive rows in a piece, shape of a row)
SMALL = [
    *itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2), ((), (1,), (2,), (3, 2))),
]


def oracle(samples: int, outer: int, each: int, row: tuple[int, ...]) -> list[list[int]]:
    """The flat positions of each sample: a tensor of numbers, whose samples are taken out."""
    sizes = (outer, samples, each, *row)
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return [
        [
            sum(i * s for i, s in zip((o, n, *rest), strides, strict=True))
            for o in range(outer)
            for rest in itertools.product(*map(range, (each, *row)))
        ]
        for n in range(samples)
    ]


def layout_of(samples: int, outer: int, each: int, row: tuple[int, ...]) -> Layout:
    return Layout(samples, outer * each, row, outer)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_element_of_every_sample_lies_where_plain_integers_say(case) -> None:
    layout, expected = layout_of(*case), oracle(*case)
    index = torch.arange(layout.samples * layout.elements)
    assert layout.place(index).view(layout.samples, -1).tolist() == expected
    assert sorted(itertools.chain(*expected)) == index.tolist()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_hits_are_those_of_consecutive_samples_in_other_places(case) -> None:
    layout, places = layout_of(*case), oracle(*case)
    plain = Layout(layout.samples, layout.rows, layout.row_shape)
    numbers = range(3, 3 + layout.samples)

    def moved(index: torch.Tensor) -> list[int]:
        return [places[i // layout.elements][i % layout.elements] for i in index.tolist()]

    for fixed in (False, True):
        for draw in (
            lambda where: random_hits(7, numbers, where, 0.4, CPU, fixed_size=fixed),  # noqa: B023
            lambda where: random_upsets(7, numbers, where, 3, 0.2, CPU, fixed_size=fixed),  # noqa: B023
        ):
            for hits, expected in zip(draw(layout), draw(plain), strict=True):
                assert hits.index.tolist() == moved(expected.index)
                for name in ("bits", "real", "writes", "struck"):
                    a, b = getattr(hits, name), getattr(expected, name)
                    assert (a is None and b is None) or torch.equal(a, b), name
    units = torch.arange(0, layout.elements, 2)
    for hits, expected in zip(
        hits_at(units, 7, numbers, layout), hits_at(units, 7, numbers, plain), strict=True
    ):
        assert hits.index.tolist() == moved(expected.index)
        assert torch.equal(hits.bits, expected.bits)
    total = layout.elements * 2
    for width, low in ((1, layout.elements), (2, 0)):
        share = Share(low, low + layout.elements * width, total, width)
        given = (1, 7, numbers, share, total // 2, CPU)
        found, expected = list(exact_hits(*given, layout)), list(exact_hits(*given))
        assert len(found) == len(expected)
        for hits, plain_hits in zip(found, expected, strict=True):
            assert hits.index.tolist() == moved(plain_hits.index)
            assert (hits.bits is None) == (plain_hits.bits is None)
            assert hits.bits is None or torch.equal(hits.bits, plain_hits.bits)
            assert hits.struck is None or torch.equal(hits.struck, plain_hits.struck)


def test_many_hits_in_several_parts_lie_right() -> None:
    layout, numbers = Layout(5, 6, (9000,), 3), range(5)
    plain = Layout(5, 6, (9000,))
    found = torch.cat([h.index for h in random_hits(3, numbers, layout, 0.3, CPU)])
    expected = torch.cat([h.index for h in random_hits(3, numbers, plain, 0.3, CPU)])
    assert len(found) > 1 << 15
    assert torch.equal(found, plain_places(expected, layout))
    assert np.unique(found.numpy()).size == len(found)


def plain_places(index: torch.Tensor, layout: Layout) -> torch.Tensor:
    grid = torch.arange(layout.samples * layout.elements)
    grid = grid.view(layout.outer, layout.samples, -1).transpose(0, 1).reshape(-1)
    return grid[index]
