"""Without Numba, torch and NumPy draw and strike, with the same faults bit for bit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import blocked_numba
import numpy as np
import pytest
import torch

from fxfault.faults import kernels, torch_draws, without_loops
from fxfault.faults.layouts import Layout
from fxfault.faults.random_numbers import counter_hash, stream_key, uniform_open
from fxfault.faults.sampling import Share, exact_hits, random_hits, random_upsets
from fxfault.faults.sampling import samples_hit_at_random as samples_hit

CPU = torch.device("cpu")


@pytest.mark.skipif(not kernels.HAVE_NUMBA, reason="Numba is not installed")
def test_every_word_gets_the_same_faults_in_a_process_without_numba() -> None:
    told = subprocess.run(
        [sys.executable, str(Path(blocked_numba.__file__))],
        capture_output=True,
        text=True,
        check=True,
    )
    other = json.loads(told.stdout)
    expected = blocked_numba.found()
    assert other["numba"] is False
    assert other["found"] == expected
    struck = [case for case, text in expected.items() if "Error" not in text]
    assert len(struck) > 60
    assert len({expected[case] for case in struck}) > 0.9 * len(struck)  # All are not clean.


@pytest.fixture
def parts_of(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Give a function that draws with the loops and without, each as one sorted list."""
    if not kernels.HAVE_NUMBA:
        pytest.skip("Numba is not installed")

    def both(draw, *arguments):  # type: ignore[no-untyped-def]
        results = []
        for have in (True, False):
            monkeypatch.setattr(kernels, "HAVE_NUMBA", have)
            rows = []
            for part in draw(*arguments):
                drawn = part.struck if part.bits is None else part.bits
                rows += zip(part.index.tolist(), drawn.tolist(), strict=True)
            results.append(sorted(rows))
        return results

    return both


LAYOUTS = [
    Layout(1, 1, (1,)),
    Layout(9, 1, (3, 50)),
    Layout(6, 4, (5, 7), 4),
    Layout(3, 1, (30_000,)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("percent", [1e-4, 3.0, 60.0, 100.0])
def test_hits_are_the_same(parts_of, layout: Layout, percent: float) -> None:  # type: ignore[no-untyped-def]
    numbers = range(7, 7 + layout.samples)
    draws = [(random_hits, ()), (random_upsets, (5,))]
    for draw, width in draws:
        by_loop, by_torch = parts_of(draw, 42, numbers, layout, *width, percent / 100, CPU)
        assert by_loop == by_torch
        assert by_loop or percent * layout.elements < 100


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("count", [1, 40, 150, 200])
def test_exact_numbers_of_hits_are_the_same(parts_of, count: int, width: int) -> None:  # type: ignore[no-untyped-def]
    share = Share(40, 160, 200, width)
    by_loop, by_torch = parts_of(
        exact_hits, 1000 + count, 5, torch.tensor([3, 0, 2**31, 8]), share, count, CPU
    )
    assert by_loop == by_torch
    assert by_loop


def test_samples_that_are_hit_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.HAVE_NUMBA:
        pytest.skip("Numba is not installed")
    by_loop = samples_hit(3, range(4000), 100, 0.01)
    monkeypatch.setattr(kernels, "HAVE_NUMBA", False)
    assert torch.equal(samples_hit(3, range(4000), 100, 0.01), by_loop)
    assert 0.5 < by_loop.double().mean() < 0.8  # 1 - 0.99**100 is 0.63.


@pytest.mark.skipif(not kernels.HAVE_NUMBA, reason="Numba is not installed")
def test_gaps_beside_a_whole_number_are_those_of_the_loops() -> None:
    """The scale is chosen so that the last place of the logarithm decides, for every gap."""
    bits = counter_hash(stream_key("gaps"), torch.arange(3000))
    u = uniform_open(bits)
    differ = 0
    for number, one in enumerate(u.tolist()):
        whole = 1 + number % 50
        for scale in (whole / math.log(one), np.nextafter(whole / math.log(one), -np.inf)):
            expected = int(kernels._gap(np.uint64(int(bits[number]) % 2**64), float(scale)))
            found = torch_draws.gaps(bits[number : number + 1], float(scale), 100)
            assert int(found) == expected
            differ += int((u[number].log() * scale).floor()) != whole
    assert differ > 100  # Some lie below the whole number.


def test_a_draw_that_ends_too_early_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(5, 1, (400,))
    given = (9, range(5), layout, layout, None, 0.2)
    expected = [part.index.tolist() for part in without_loops.hits_in_parts(*given)]
    with monkeypatch.context() as patch:
        patch.setattr(torch_draws, "draws_for", lambda *_, **__: 3)
        again = [part.index.tolist() for part in without_loops.hits_in_parts(*given)]
    assert again == expected
    assert len(expected[0]) > 300
