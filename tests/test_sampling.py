"""Which elements are hit: statistics, and independence of how samples come in.

Statistical tests draw with fixed keys, so that they always end alike. Each docstring says
with which probability a correct sampler would fail for a key chosen blindly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxfault.faults import Word, get_fault_model, kernels, sampling
from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import counter_hash, rehash, stream_key
from fxfault.faults.sampling import (
    Hits,
    Share,
    exact_hits,
    hits_at,
    random_hits,
    random_upsets,
    samples_hit_exactly,
)
from fxfault.faults.units import faulty_units, unit_positions

CPU = torch.device("cpu")


def chi_square_limit(degrees: int, z: float = 4.753) -> float:
    """Where a chi-square variable lies above with probability 1e-6 (Wilson and Hilferty, 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + z * math.sqrt(spread)) ** 3


def layout_of(samples: int, elements: int) -> Layout:
    return Layout(samples, 1, (elements,))


def hits_of(parts: Iterator[Hits]) -> Hits:
    """All parts as one, in ascending order but for the one part of a fixed size."""
    drawn = list(parts)
    assert all(part.index.numel() for part in drawn)
    if not drawn:
        return Hits(*[torch.empty(0, dtype=torch.int64)] * 2)
    if drawn[0].real is not None:
        assert len(drawn) == 1
        return drawn[0]
    index, order = torch.cat([part.index for part in drawn]).sort()
    return Hits(index, torch.cat([part.bits for part in drawn])[order])


def drawn_hits(key: int, first: int, layout: Layout, *arguments: Any, **options: Any) -> Hits:
    numbers = range(first, first + layout.samples)
    return hits_of(random_hits(key, numbers, layout, *arguments, **options))


def hit_matrix(
    samples: int, elements: int, probability: float, key: int = 1, first: int = 0, **options: Any
) -> Tensor:
    """A row for each sample, 1 where it is hit; every hit must be there once."""
    layout = layout_of(samples, elements)
    hits = drawn_hits(key, first, layout, probability, CPU, **options)
    index = hits.index if hits.real is None else hits.index[hits.real]
    assert index.unique().numel() == index.numel()
    matrix = torch.zeros(samples * elements)
    matrix[index] = 1
    return matrix.reshape(samples, elements)


# -- statistics --------------------------------------------------------------------------

RATES = [0.0005, 0.03, 0.25, 0.5, 0.8, 0.97]


def binomial(n: int, p: float) -> list[float]:
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(n + 1)
    ]
    return [math.exp(value) for value in logs]


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("probability", RATES)
def test_number_of_hits_is_binomial(probability: float, fixed_size: bool) -> None:
    """Chi-square of 8,000 samples' counts against the binomial: fails with probability 1e-6."""
    samples, elements = 8000, 300
    matrix = hit_matrix(samples, elements, probability, fixed_size=fixed_size)
    observed = torch.bincount(matrix.sum(1).long(), minlength=elements + 1).tolist()
    expected = [samples * value for value in binomial(elements, probability)]
    bins: list[list[float]] = [[0.0, 0.0]]
    for have, want in zip(observed, expected, strict=True):
        bins[-1][0] += have
        bins[-1][1] += want
        if bins[-1][1] >= 20:
            bins.append([0.0, 0.0])
    rest = bins.pop()
    bins[-1] = [bins[-1][0] + rest[0], bins[-1][1] + rest[1]]
    statistic = sum((have - want) ** 2 / want for have, want in bins)
    assert len(bins) >= 2
    assert statistic < chi_square_limit(len(bins) - 1)


@pytest.mark.parametrize("probability", RATES)
def test_positions_are_uniform(probability: float) -> None:
    """Chi-square of how often each of 300 positions is hit: fails with probability 1e-6."""
    samples, elements = 6000, 300
    counts = hit_matrix(samples, elements, probability, key=2).sum(0).double()
    variance = samples * probability * (1 - probability)
    statistic = float((counts - samples * probability).square().sum()) / variance
    assert statistic < chi_square_limit(elements)
    assert statistic > elements - 4.753 * math.sqrt(2 * elements)  # nor too even


@pytest.mark.parametrize("probability", [0.03, 0.25, 0.8])
def test_elements_are_hit_independently(probability: float) -> None:
    """Correlation of neighbours at lags 1 to 40, as one chi-square: fails with 1e-6."""
    samples, elements, lags = 4000, 300, range(1, 41)
    excess = (hit_matrix(samples, elements, probability, key=3) - probability).double()
    variance = probability * (1 - probability)
    statistic = 0.0
    for lag in lags:
        product_sum = float((excess[:, lag:] * excess[:, :-lag]).sum())
        statistic += product_sum**2 / (samples * (elements - lag) * variance**2)
    assert statistic < chi_square_limit(len(lags))


@pytest.mark.parametrize("probability", [0.03, 0.25, 0.8])
def test_samples_are_hit_independently(probability: float) -> None:
    """Correlation of samples 1 to 40 apart, as one chi-square: fails with probability 1e-6."""
    samples, elements, lags = 4000, 300, range(1, 41)
    excess = (hit_matrix(samples, elements, probability, key=4) - probability).double()
    variance = probability * (1 - probability)
    statistic = 0.0
    for lag in lags:
        product_sum = float((excess[lag:] * excess[:-lag]).sum())
        statistic += product_sum**2 / ((samples - lag) * elements * variance**2)
    assert statistic < chi_square_limit(len(lags))


def test_sites_and_trials_are_hit_independently() -> None:
    """Correlation between all pairs of ten keys: a chi-square that fails with 1e-6."""
    probability, shape = 0.1, (300, 1000)
    keys = [stream_key(0, trial, "eval", site) for trial in (0, 1) for site in "abcde"]
    excess = [(hit_matrix(*shape, probability, key=k) - probability).double() for k in keys]
    pairs = [(i, j) for i in range(10) for j in range(i)]
    variance = (probability * (1 - probability)) ** 2 * shape[0] * shape[1]
    statistic = sum(float((excess[i] * excess[j]).sum()) ** 2 / variance for i, j in pairs)
    assert statistic < chi_square_limit(len(pairs))


def test_one_part_in_a_million_of_a_hundred_million_elements() -> None:
    """1e-4 % of 1e8 elements, 60 times: Poisson with mean 100 each.

    Each count is within 5.2 standard deviations (fails with 60 * 1e-6) and their sum within
    4.9 of its own (1e-6).
    """
    layout = layout_of(1, 10**8)
    counts = [
        drawn_hits(stream_key("rare", i), i, layout, 1e-4 / 100, CPU).index.numel()
        for i in range(60)
    ]
    assert all(abs(count - 100) < 52 for count in counts)
    assert abs(sum(counts) - 6000) < 4.9 * math.sqrt(6000)
    assert max(counts) > min(counts)


def test_the_lowest_rate_of_the_design_is_neither_zero_nor_at_least_one() -> None:
    """1e-7 % of 1e9 elements in 2,000 samples: Poisson with mean 1 each.

    The sum and the number of samples without a hit are within 4.9 standard deviations, and
    the positions even over ten bins: fails with probability 3e-6.
    """
    samples, elements = 2000, 10**9
    hits = drawn_hits(5, 0, layout_of(samples, elements), 1e-7 / 100, CPU)
    assert abs(hits.index.numel() - samples) < 4.9 * math.sqrt(samples)
    without = samples - (hits.index // elements).unique().numel()
    none = math.exp(-1)
    assert abs(without - samples * none) < 4.9 * math.sqrt(samples * none * (1 - none))
    within = hits.index % elements
    assert int(within.min()) >= 0
    assert int(within.max()) < elements
    counts = torch.bincount(within // (elements // 10), minlength=10).double()
    expected = hits.index.numel() / 10
    assert float(((counts - expected) ** 2 / expected).sum()) < chi_square_limit(9)


def test_a_rate_just_below_everything() -> None:
    """1 - 1e-4: about 40 of 400,000 elements are spared; fails with probability 1e-6."""
    matrix = hit_matrix(4, 100_000, 1 - 1e-4, key=6)
    spared = int((matrix == 0).sum())
    assert abs(spared - 40) < 4.9 * math.sqrt(40)


@pytest.mark.parametrize("fixed_size", [False, True])
def test_nothing_and_everything(fixed_size: bool) -> None:
    assert hit_matrix(5, 40, 0.0, fixed_size=fixed_size).sum() == 0
    assert hit_matrix(5, 40, 1.0, fixed_size=fixed_size).sum() == 200
    assert hit_matrix(5, 0, 0.5, fixed_size=fixed_size).sum() == 0


@pytest.mark.parametrize("probability", [5e-324, 1e-300, 1e-20])
def test_rates_below_any_use_hit_nothing(probability: float) -> None:
    assert hit_matrix(50, 10**5, probability).sum() == 0


def test_samples_of_one_element() -> None:
    """Half of 10,000 one-element samples: within 4.9 standard deviations, fails with 1e-6."""
    assert abs(float(hit_matrix(10_000, 1, 0.5, key=8).sum()) - 5000) < 4.9 * 50


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False)])
def test_random_codes_are_uniform_whatever_the_clean_code(
    width: int, signed: bool, narrow: bool
) -> None:
    """Chi-square of 60,000 faulty codes for each of three clean codes: 1e-6 each."""
    word = Word(width, signed, narrow)
    low, high = int(word.min), int(word.max)
    size = high - low + 1
    layout = layout_of(300, 1000)
    hits = drawn_hits(stream_key("codes", width), 0, layout, 0.2, CPU)

    def draw(stream: int) -> Tensor:
        return rehash(hits.bits, stream)

    for clean in (low, (low + high) // 2, high):
        codes = torch.full_like(hits.index, clean)
        faulty = get_fault_model("random").corrupt(codes, word, draw)
        counts = torch.bincount(faulty - low, minlength=size).double()
        assert counts.numel() == size
        expected = codes.numel() / size
        statistic = float(((counts - expected) ** 2 / expected).sum())
        if size > 1:
            assert statistic < chi_square_limit(size - 1)


def test_random_codes_do_not_follow_the_position() -> None:
    """Contingency of faulty code (16) and position (16 bins): chi-square, fails with 1e-6."""
    layout = layout_of(500, 1600)
    hits = drawn_hits(11, 0, layout, 0.1, CPU)
    numbers = rehash(hits.bits, 0)
    place = (hits.index % 1600) // 100
    counts = torch.bincount(place * 16 + numbers % 16, minlength=256).double()
    expected = hits.index.numel() / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < chi_square_limit(255)


def test_random_codes_do_not_follow_the_gap_before_the_hit() -> None:
    """Both come from the same 64 bits. Contingency of gap (8 equally likely bins) and code (16):
    chi-square, fails with probability 1e-6."""
    layout = layout_of(500, 16000)
    hits = drawn_hits(12, 0, layout, 0.01, CPU)
    same = hits.index[1:] // 16000 == hits.index[:-1] // 16000
    gaps = (hits.index[1:] - hits.index[:-1])[same].double()
    order = gaps.argsort(stable=True).argsort() * 8 // gaps.numel()
    codes = (rehash(hits.bits, 0) % 16)[1:][same]
    counts = torch.bincount(order * 16 + codes, minlength=128).double()
    expected = gaps.numel() / 128
    assert float(((counts - expected) ** 2 / expected).sum()) < chi_square_limit(127)


# -- single bits -------------------------------------------------------------------------


def upsets(key: int, samples: int, elements: int, width: int, p: float, **options: Any) -> Tensor:
    """A row of bits for each sample, those of a word beside each other; 1 where one is hit."""
    layout = layout_of(samples, elements)
    bits = torch.zeros(samples * elements, width, dtype=torch.int64)
    for part in random_upsets(key, range(samples), layout, width, p, CPU, **options):
        index, struck = part.index, part.struck
        assert struck is not None
        if part.real is not None:
            assert part.writes is not None
            of = dict(zip(index[part.real].tolist(), struck[part.real].tolist(), strict=True))
            for place, pattern, writes in zip(
                index.tolist(), struck.tolist(), part.writes.tolist(), strict=True
            ):
                assert pattern == of[place] if writes else place not in of
            index, struck = index[part.real], struck[part.real]
        assert index.unique().numel() == index.numel()
        assert bool((struck > 0).all())
        assert not bits[index].any()
        bits[index] = struck[:, None] >> torch.arange(width) & 1
    return bits.reshape(samples, -1)


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("probability", [0.003, 0.2, 0.9, 1.0])
def test_bits_are_hit_as_elements_of_their_own_would_be(probability: float, width: int) -> None:
    """So that what is shown of elements above holds for bits."""
    as_elements = hit_matrix(60, 50 * width, probability, key=3).long()
    assert torch.equal(upsets(3, 60, 50, width, probability), as_elements)
    fixed = upsets(3, 60, 50, width, probability, fixed_size=True)
    assert torch.equal(fixed, as_elements)


def test_bits_of_a_word_are_hit_independently() -> None:
    """Number of hit bits in 80,000 words of 8: chi-square against the binomial, 1e-6."""
    counts = upsets(17, 200, 400, 8, 0.3).reshape(-1, 8).sum(1)
    observed = torch.bincount(counts, minlength=9).double()
    expected = 80_000 * torch.tensor(binomial(8, 0.3), dtype=torch.float64)
    assert float(((observed - expected) ** 2 / expected).sum()) < chi_square_limit(8)


def test_upsets_do_not_depend_on_the_size_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = upsets(3, 20, 70, 4, 0.4)
    for size in (1, 7, 64):
        monkeypatch.setattr(sampling, "PART", size)
        assert torch.equal(upsets(3, 20, 70, 4, 0.4), whole)


# -- exactly so many ---------------------------------------------------------------------


def floyd(key: int, number: int, total: int, count: int) -> list[int]:
    """The oracle, in Python integers and a set."""
    counters = (number << 32) + torch.arange(count)
    hashed = [bits % 2**64 for bits in counter_hash(key, counters).tolist()]
    drawn: set[int] = set()
    for j, bits in enumerate(hashed):
        most = total - count + j
        candidate = int((bits >> 11) * 2.0**-53 * (most + 1))
        drawn.add(most if candidate in drawn else candidate)
    return sorted(drawn)


def drawn_exactly(
    sizes: list[int], count: int, samples: int = 1, key: int = 1, first: int = 0, width: int = 1
) -> list[Tensor]:
    """For each of several sites a row of bits for each sample, 1 where it is hit."""
    total, low, sites = sum(sizes), 0, []
    for size in sizes:
        share = Share(low, low + size, total, width)
        matrix = torch.zeros(samples * size // width, width, dtype=torch.int64)
        numbers = range(first, first + samples)
        for hits in exact_hits(key, 5, numbers, share, count, CPU):
            assert bool((hits.index.diff() > 0).all())
            if hits.struck is None:
                matrix[hits.index] = 1
            else:
                matrix[hits.index] = hits.struck[:, None] >> torch.arange(width) & 1
        matrix = matrix.reshape(samples, size)
        struck = samples_hit_exactly(key, numbers, share, count)
        assert torch.equal(struck, matrix.any(1))
        sites.append(matrix)
        low += size
    return sites


@pytest.mark.parametrize(("total", "count"), [(1, 1), (5, 5), (40, 7), (10**9, 30), (300, 299)])
def test_what_is_drawn_together_is_what_the_oracle_draws(total: int, count: int) -> None:
    drawn = np.empty((6, count), np.int64)
    numbers = np.array([0, 1, 2, 9, 2**31, 5], np.uint64)
    kernels.draw_distinct(77, numbers, total, drawn)
    assert drawn.tolist() == [floyd(77, int(n), total, count) for n in numbers]


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 17, 59, 60])
def test_exactly_so_many_in_every_sample(count: int, width: int) -> None:
    sites = drawn_exactly([12, 40, 8], count, samples=200, width=width)
    assert torch.equal(torch.cat(sites, 1).sum(1), torch.full((200,), count))
    later = drawn_exactly([12, 40, 8], count, samples=150, first=50, width=width)
    for whole, part in zip(sites, later, strict=True):
        assert torch.equal(whole[50:], part)


def test_every_set_of_elements_is_equally_likely() -> None:
    """All 20 sets of 3 of 6, in 40,000 samples: chi-square, fails with probability 1e-6."""
    hit = torch.cat(drawn_exactly([2, 4], 3, samples=40_000), 1)
    which = (hit << torch.arange(6)).sum(1)
    counts = torch.bincount(which, minlength=64).double()
    counts = counts[counts > 0]
    assert counts.numel() == 20
    assert float(((counts - 2000) ** 2 / 2000).sum()) < chi_square_limit(19)


def test_each_element_is_hit_as_often_as_any_other() -> None:
    """50 of 1,000 in 4,000 samples: chi-square over the elements, fails with probability 1e-6."""
    hit = torch.cat(drawn_exactly([300, 700], 50, samples=4000, key=8), 1).sum(0).double()
    variance = 4000 * 0.05 * 0.95 * 1000 / 999  # without replacement
    statistic = float((hit - 200).square().sum()) / variance
    assert statistic < chi_square_limit(999)
    assert statistic > 999 - 4.753 * math.sqrt(2 * 999)  # nor too even


def test_the_count_of_a_site_is_hypergeometric() -> None:
    """9 of 60, of which 20 are the site's, in 20,000 samples: chi-square, 1e-6."""
    counts = drawn_exactly([20, 40], 9, samples=20_000, key=4)[0].sum(1)
    chance = [math.comb(20, k) * math.comb(40, 9 - k) / math.comb(60, 9) for k in range(10)]
    expected = torch.tensor(chance, dtype=torch.float64) * 20_000
    observed = torch.bincount(counts, minlength=10).double()
    few = expected < 20
    joined = [torch.cat([x[~few], x[few].sum()[None]]) for x in (observed, expected)]
    statistic = float(((joined[0] - joined[1]) ** 2 / joined[1]).sum())
    assert statistic < chi_square_limit(len(joined[0]) - 1)


def test_exact_hits_have_random_bits_of_sample_and_element() -> None:
    share = Share(0, 50, 50, 1)
    whole = hits_of(exact_hits(1, 9, range(30), share, 8, CPU))
    part = hits_of(exact_hits(1, 9, range(10, 30), share, 8, CPU))
    assert torch.equal(whole.bits[80:], part.bits)
    given = hits_of(hits_at(torch.arange(50), 9, range(30), layout_of(30, 50)))
    assert torch.equal(whole.bits, given.bits[whole.index])
    other = hits_of(exact_hits(1, 10, range(30), share, 8, CPU))
    assert torch.equal(other.index, whole.index)
    assert not (other.bits == whole.bits).any()


# -- independence of the batch -----------------------------------------------------------


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("probability", [1e-5, 0.003, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_same_hits_whatever_the_batch(batch: int, probability: float, fixed_size: bool) -> None:
    samples, elements = 130, 211
    whole = hit_matrix(samples, elements, probability)
    parts = [
        hit_matrix(
            min(batch, samples - first), elements, probability, first=first, fixed_size=fixed_size
        )
        for first in range(0, samples, batch)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_samples_far_along_have_hits_of_their_own() -> None:
    far = hit_matrix(20, 500, 0.1, first=10**12)
    assert torch.equal(far[3:], hit_matrix(17, 500, 0.1, first=10**12 + 3))
    assert not torch.equal(far, hit_matrix(20, 500, 0.1))


@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.3, 0.95, 1.0])
def test_fixed_size_gives_the_same_hits(probability: float) -> None:
    layout = layout_of(40, 900)
    plain = drawn_hits(3, 5, layout, probability, CPU, fixed_size=False)
    fixed = drawn_hits(3, 5, layout, probability, CPU, fixed_size=True)
    assert fixed.real is not None
    assert fixed.complete is not None
    assert bool(fixed.complete)
    assert torch.equal(fixed.index[fixed.real], plain.index)
    assert torch.equal(fixed.bits[fixed.real], plain.bits)


def test_size_of_a_fixed_draw_does_not_depend_on_the_draws() -> None:
    layout = layout_of(8, 700)
    sizes = {
        drawn_hits(key, 0, layout, 0.02, CPU, fixed_size=True).index.numel() for key in range(20)
    }
    assert len(sizes) == 1


def test_fillers_of_a_fixed_draw_change_nothing() -> None:
    """A filler stands on a hit of its own sample, or on an element that it leaves alone."""
    layout = layout_of(200, 50)
    hits = drawn_hits(4, 0, layout, 0.01, CPU, fixed_size=True)
    assert hits.real is not None
    assert hits.writes is not None
    struck = set(hits.index[hits.real].tolist())
    assert struck < set(range(200 * 50))
    assert set(hits.index[hits.writes].tolist()) == struck
    assert not struck & set(hits.index[~hits.writes].tolist())
    assert bool((hits.writes | ~hits.real).all())
    assert (hits.index // 50).unique().numel() == 200
    assert 0 < len({index // 50 for index in struck}) < 200  # some samples have no hit


def test_numbers_for_words_follow_from_sample_and_element() -> None:
    layout = layout_of(30, 400)
    plain = drawn_hits(3, 0, layout, 0.05, CPU)
    numbers = rehash(plain.bits, 0)
    of = dict(zip(plain.index.tolist(), numbers.tolist(), strict=True))
    assert len(set(of.values())) == len(of)
    later = drawn_hits(3, 10, layout_of(20, 400), 0.05, CPU)
    shifted = rehash(later.bits, 0)
    assert [of[index + 10 * 400] for index in later.index.tolist()] == shifted.tolist()
    fixed = drawn_hits(3, 0, layout, 0.05, CPU, fixed_size=True)
    repeated = rehash(fixed.bits, 0)
    assert fixed.writes is not None
    pairs = zip(fixed.index[fixed.writes].tolist(), repeated[fixed.writes].tolist(), strict=True)
    assert all(of[index] == number for index, number in pairs)


# -- layouts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "batch", "samples", "rows", "row_shape"),
    [
        ((4, 3, 8, 8), 4, 4, 1, (3, 8, 8)),
        ((12, 3, 8), 4, 4, 3, (3, 8)),
        ((12,), 4, 4, 3, ()),
        ((4,), 4, 4, 1, ()),
        ((7, 5), 4, 1, 7, (5,)),
        ((2, 5), 4, 1, 2, (5,)),
        ((1, 5), 4, 1, 1, (5,)),
        ((), 4, 1, 1, ()),
        ((6, 2), 1, 1, 6, (2,)),
    ],
)
def test_layout(
    shape: tuple[int, ...], batch: int, samples: int, rows: int, row_shape: tuple[int, ...]
) -> None:
    layout = Layout.of(shape, batch)
    assert layout == Layout(samples, rows, row_shape)
    assert layout.samples * layout.elements == math.prod(shape)


@pytest.mark.parametrize(("shape", "batch"), [((0, 5), 0), ((0, 5), 4), ((4, 0), 4), ((0,), 0)])
def test_layout_of_nothing(shape: tuple[int, ...], batch: int) -> None:
    layout = Layout.of(shape, batch)
    assert drawn_hits(1, 0, layout, 0.5, CPU).index.numel() == 0


def test_rows_of_one_sample_are_drawn_as_one() -> None:
    """Windows folded into the leading dimension: the same hits for any batch."""
    whole = drawn_hits(1, 0, Layout.of((12, 50), 4), 0.1, CPU).index
    parts = [drawn_hits(1, i, Layout.of((3, 50), 1), 0.1, CPU).index + i * 150 for i in range(4)]
    assert torch.equal(torch.cat(parts), whole)


# -- faulty hardware units ---------------------------------------------------------------


def exact_units(parallel: int, percent: str) -> int:
    """ceil(parallel * percent / 100), in exact fractions of the decimal that a user writes."""
    return math.ceil(parallel * Fraction(percent) / 100)


PERCENTS = [f"{i / 10:.1f}" for i in range(1001)]


@pytest.mark.parametrize("parallel", [1, 3, 7, 100, 1024])
def test_number_of_faulty_units(parallel: int) -> None:
    for percent in PERCENTS[:: 1 if parallel == 100 else 13]:
        count = faulty_units(1, parallel, float(percent) / 100, CPU).numel()
        assert count == exact_units(parallel, percent), percent


@pytest.mark.parametrize("percent", ["1e-4", "1e-7", "1e-9", "1e-12"])
def test_the_lowest_rate_still_breaks_one_unit(percent: str) -> None:
    assert exact_units(16, percent) == 1
    assert faulty_units(1, 16, float(percent) / 100, CPU).numel() == 1


def test_faulty_units_are_distinct_and_drawn_by_the_key() -> None:
    """Each of 20 units is broken equally often over 4,000 keys: fails with probability 1e-6."""
    counts = torch.zeros(20)
    for key in range(4000):
        units = faulty_units(stream_key("units", key), 20, 0.25, CPU)
        assert units.unique().numel() == 5
        counts[units] += 1
    variance = 4000 * 0.25 * 0.75 * 20 / 19  # five of twenty without replacement
    assert float(((counts - 1000) ** 2).sum()) / variance < chi_square_limit(19)
    assert torch.equal(faulty_units(3, 20, 0.25, CPU), faulty_units(3, 20, 0.25, CPU))


def channels_last(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The places of one row in the order in which an accelerator computes them."""
    if not shape:
        yield ()
        return
    for spatial in product(*(range(size) for size in shape[1:])):
        for channel in range(shape[0]):
            yield (channel, *spatial)


def struck_by_units(shape: tuple[int, ...], batch: int, broken: set[int], parallel: int) -> Tensor:
    """The oracle: count through each sample, one element after the other."""
    struck = torch.zeros(shape, dtype=torch.bool)
    rows = shape[0] // batch
    for sample in range(batch):
        i = 0
        for row in range(rows):
            for place in channels_last(shape[1:]):
                struck[(sample * rows + row, *place)] = i % parallel in broken
                i += 1
    return struck


def mask_of(hits: Hits, shape: tuple[int, ...]) -> Tensor:
    assert hits.index.unique().numel() == hits.index.numel()
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[hits.index] = True
    return mask.reshape(shape)


@pytest.mark.parametrize("parallel", [1, 4, 7, 1000])
@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ((5, 13), 5),
        ((3, 4, 6), 3),
        ((2, 3, 4, 5), 2),
        ((2, 3, 2, 2, 3), 2),
        ((6, 3, 2, 2), 2),
        ((6,), 3),
        ((4, 1, 1, 1), 4),
    ],
)
def test_units_hit_what_they_compute(shape: tuple[int, ...], batch: int, parallel: int) -> None:
    for broken in ({0}, {parallel - 1}, set(range(0, parallel, 3))):
        layout = Layout.of(shape, batch)
        places = unit_positions(torch.tensor(sorted(broken)), parallel, layout)
        hits = hits_of(hits_at(places, 1, range(layout.samples), layout))
        expected = struck_by_units(shape, batch, broken, parallel)
        assert torch.equal(mask_of(hits, shape), expected)


def test_random_bits_at_given_positions_follow_from_sample_and_element() -> None:
    whole, later = Layout.of((6, 10), 6), Layout.of((4, 10), 4)
    positions = torch.arange(0, 10, 3)
    hits = hits_of(hits_at(positions, 7, range(6), whole))
    assert hits.bits.unique().numel() == 6 * positions.numel()
    second = hits_of(hits_at(positions, 7, range(2, 6), later))
    assert torch.equal(second.bits, hits.bits[hits.index >= 20])
    fewer = hits_of(hits_at(positions[1:], 7, range(6), whole))
    assert torch.equal(fewer.bits, hits.bits[hits.index % 10 > 0])
    assert not torch.equal(hits_of(hits_at(positions, 8, range(6), whole)).bits, hits.bits)


def test_no_unit_and_all_units() -> None:
    layout = Layout.of((2, 3, 4), 2)
    none = unit_positions(torch.empty(0, dtype=torch.int64), 5, layout)
    assert none.numel() == 0
    assert list(hits_at(none, 1, range(2), layout)) == []
    every = unit_positions(torch.arange(5), 5, layout)
    assert bool(mask_of(hits_of(hits_at(every, 1, range(2), layout)), (2, 3, 4)).all())


# -- parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3, 40])
@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.3, 1.0])
def test_hits_do_not_depend_on_the_size_of_a_part(
    monkeypatch: pytest.MonkeyPatch, samples: int, probability: float
) -> None:
    layout, numbers = layout_of(samples, 900), range(5, 5 + samples)
    whole = drawn_hits(3, 5, layout, probability, CPU)
    given = hits_of(hits_at(torch.arange(0, 900, 7), 3, numbers, layout))
    for size in (1, 7, 64):
        monkeypatch.setattr(sampling, "PART", size)
        parts = list(random_hits(3, numbers, layout, probability, CPU))
        assert all(part.index.numel() <= max(size, samples) for part in parts)
        assert torch.equal(hits_of(iter(parts)).index, whole.index)
        assert torch.equal(hits_of(iter(parts)).bits, whole.bits)
        again = hits_of(hits_at(torch.arange(0, 900, 7), 3, numbers, layout))
        assert torch.equal(again.index, given.index)
        assert torch.equal(again.bits, given.bits)
