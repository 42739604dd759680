"""A network that guesses is named; one that is better is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fxfault.evaluation.chance import LEVEL, at_least, no_better_than_chance


@pytest.mark.parametrize(
    ("count", "number", "chance"),
    [(0, 10, 0.1), (3, 10, 0.1), (10, 10, 0.5), (70, 500, 0.1), (1200, 50_000, 0.01), (5, 9, 1.0)],
)
def test_the_binomial_tail_agrees_with_scipy(count: int, number: int, chance: float) -> None:
    expected = stats.binom.sf(count - 1, number, chance)
    assert at_least(count, number, chance) == pytest.approx(expected, rel=1e-9)


def test_guesses_are_nearly_always_named() -> None:
    # 99 % of guessing networks at least; below 98 % of 1,000 with probability 0.3 %.
    right = np.random.default_rng(20090420).binomial(500, 0.1, 1000)
    named = [no_better_than_chance(int(count), 500, 10) is not None for count in right]
    assert np.mean(named) >= 1 - LEVEL - 0.01


def test_what_is_worse_than_chance_is_named_too() -> None:
    assert no_better_than_chance(0, 500, 10) == (
        "golden accuracy 0.0% is no better than chance (10 classes): wrong weights, labels or "
        "preprocessing?"
    )
    assert no_better_than_chance(64, 64, 1) is not None  # There is nothing to be right about.
    assert no_better_than_chance(497, 500, 10) is None
