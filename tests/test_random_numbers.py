"""Counter-based random numbers: the right sequence, and no trace of structure.

Statistical tests draw with fixed keys, so that they always end alike. Each docstring says
with which probability a correct generator would fail for a key chosen blindly.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxfault.faults import kernels, random_numbers
from fxfault.faults.random_numbers import (
    counter_hash,
    mix64,
    stream_key,
    uniform_float,
    uniform_int63,
    uniform_open,
)

MASK = 2**64 - 1


def chi_square_limit(degrees: int, z: float = 4.753) -> float:
    """Where a chi-square variable lies above with probability 1e-6 (Wilson and Hilferty, 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + z * math.sqrt(spread)) ** 3


def chi_square(counts: Tensor, expected: float) -> float:
    return float(((counts.double() - expected) ** 2 / expected).sum())


def splitmix64(seed: int, count: int) -> list[int]:
    """The reference, in Python integers: Vigna's splitmix64.c."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def unsigned(numbers: Tensor) -> list[int]:
    return [number & MASK for number in numbers.tolist()]


# -- the sequence ------------------------------------------------------------------------


def test_the_reference_gives_the_published_numbers() -> None:
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("key", [0, 1, 1234567, 2**63 - 1, 2**63, MASK])
def test_counter_hash_is_splitmix64(key: int) -> None:
    assert unsigned(counter_hash(key, torch.arange(200))) == splitmix64(key, 200)


def test_a_number_depends_on_its_key_and_counter_only() -> None:
    counters = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    together = counter_hash(9, torch.arange(500))
    assert torch.equal(counter_hash(9, counters), together[counters])
    assert torch.equal(counter_hash(9, torch.tensor([499])), together[-1:])


def test_mixing_is_a_bijection_on_what_was_tried() -> None:
    counters = torch.cat([torch.arange(-50_000, 50_000), torch.arange(0, 2**62, 2**62 // 50_000)])
    assert mix64(counters.unique()).unique().numel() == counters.unique().numel()


def test_huge_counters() -> None:
    counters = torch.tensor([2**40, 2**62, 2**63 - 1])
    expected = [splitmix64((c * 0x9E3779B97F4A7C15) & MASK, 1)[0] for c in counters.tolist()]
    assert unsigned(counter_hash(0, counters)) == expected


# -- keys --------------------------------------------------------------------------------


def test_keys_tell_their_parts_apart() -> None:
    keys = [
        stream_key(*parts)
        for parts in [(1, "a"), (1, "b"), (2, "a"), (12,), (1, 2), ("a", 1), ("1a",), ("", 1, "a")]
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key <= MASK for key in keys)


def test_keys_are_what_they_were() -> None:
    """A literal: where it changes, the faults of every published campaign change with it."""
    assert stream_key(7, 0, "eval", "layer1.0.relu") == 4129099981991574065


def test_uniform_float_is_within_its_bounds_and_even() -> None:
    """Chi-square over 50 bins of 10,000 numbers: fails with probability 1e-6."""
    numbers = [uniform_float(3, "step", i) for i in range(10_000)]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    counts = torch.histc(torch.tensor(numbers, dtype=torch.float64), 50, 0, 1)
    assert chi_square(counts, 200) < chi_square_limit(49)


# -- uniform numbers ---------------------------------------------------------------------


def test_uniform_int63_covers_its_range() -> None:
    """Each of 63 bits is set in half of 40,000 numbers: fails with probability 63 * 1e-6."""
    numbers = uniform_int63(stream_key("bits"), torch.arange(40_000))
    assert int(numbers.min()) >= 0
    for bit in range(63):
        ones = int(((numbers >> bit) & 1).sum())
        assert abs(ones - 20_000) < 4.9 * 100
    assert int(numbers.max()) > 2**62


@pytest.mark.parametrize("size", [2, 3, 7, 15, 16, 255])
def test_uniform_int63_modulo_a_small_size(size: int) -> None:
    """Chi-square over all residues of 60,000 numbers: fails with probability 1e-6."""
    residues = uniform_int63(stream_key("residues", size), torch.arange(60_000)) % size
    counts = torch.bincount(residues, minlength=size)
    assert chi_square(counts, 60_000 / size) < chi_square_limit(size - 1)


def test_uniform_open_is_inside_and_even() -> None:
    """Chi-square over 1,000 bins of a million numbers: fails with probability 1e-6."""
    numbers = uniform_open(counter_hash(stream_key("open"), torch.arange(1_000_000)))
    assert numbers.dtype == torch.float64
    assert float(numbers.min()) > 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 1000, 0, 1)
    assert chi_square(counts, 1000) < chi_square_limit(999)


def test_uniform_open_is_fine_grained() -> None:
    """Small numbers are as even as large ones: of 4 million, about 4 lie below 1e-6.

    Poisson with mean 4: more than 20 come with probability 1e-9, none with 2 %; for this key
    there are some.
    """
    numbers = uniform_open(counter_hash(stream_key("fine"), torch.arange(4_000_000)))
    low = int((numbers < 1e-6).sum())
    assert 1 <= low <= 20
    assert bool(((numbers * 2.0**53) % 2 == 1).all())  # odd multiples of 2**-53


def test_neighbours_and_keys_are_uncorrelated() -> None:
    """Correlation over counters at lags 1 to 50, over keys, samples and lags: 1e-6 each."""
    count = 20_000
    rows = torch.stack(
        [
            uniform_open(counter_hash(stream_key("site", i), torch.arange(count))) - 0.5
            for i in range(6)
        ]
    )
    limit = 4.9 / 12 / math.sqrt(count)
    for lag in range(1, 51):
        assert abs(float((rows[0, lag:] * rows[0, :-lag]).sum()) / count) < limit
    for first in range(6):
        for second in range(first):
            assert abs(float((rows[first] * rows[second]).mean())) < limit


def test_streams_of_neighbouring_samples_are_uncorrelated() -> None:
    """Correlation of 500 pairs of neighbouring samples: a chi-square that fails with 1e-6."""
    counters = (torch.arange(501)[:, None] << 32) + torch.arange(2000)
    rows = uniform_open(counter_hash(stream_key("samples"), counters)) - 0.5
    z = (rows[1:] * rows[:-1]).sum(1) * 12 / math.sqrt(2000)
    assert float(z.square().sum()) < chi_square_limit(500)


def test_global_generators_are_neither_read_nor_moved() -> None:
    def draw() -> list[int]:
        numbers = uniform_int63(stream_key(1), torch.arange(10)).tolist()
        return [*numbers, stream_key(1), int(uniform_float(1) * 2**53)]

    first = draw()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    seeded = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert draw() == first
    assert torch.equal(torch.get_rng_state(), seeded[0])
    assert np.array_equal(np.random.get_state()[1], seeded[1])
    assert random.getstate() == seeded[2]
    torch.set_rng_state(before[0])
    random.setstate(before[2])


def test_both_ways_of_mixing_give_the_same_bits() -> None:
    """The loop on the CPU, torch's on other devices."""
    counters = counter_hash(stream_key("any"), torch.arange(5000))
    on_a_device = counters.clone()
    random_numbers._mix64_torch(on_a_device)
    assert torch.equal(on_a_device, mix64(counters))


def test_uniform_numbers_are_odd_multiples() -> None:
    bits = counter_hash(stream_key("uniform"), torch.arange(5000))
    bits[:4] = torch.tensor([0, -1, 4095, -4096])
    numbers = uniform_open(bits)
    exact = [((b % 2**64 >> 12) * 2 + 1) / 2**53 for b in bits.tolist()]
    assert numbers.tolist() == exact


def test_loops_are_compiled_where_no_folder_for_them_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def njit(cache: bool = False, **options: bool) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels.numba, "njit", njit)
    assert kernels._compiled(abs) is abs
    assert asked == [True, False]
