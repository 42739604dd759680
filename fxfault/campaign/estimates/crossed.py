"""An interval for other samples as well as for other draws of faults.

All other intervals take the data as given. If each trial says how far it moved the value of each
sample, the samples can be resampled, too. Every change is that of one sample against itself without
faults, so that what makes samples differ from each other cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxfault.campaign.estimates.intervals import Floats, student_t

_RESAMPLES = 2000
# More samples are resampled in this many runs of neighbours, which gives the same interval.
_MOST_BLOCKS = 1000


@dataclass(frozen=True)
class Changes:
    """By how much trials moved the values of samples, added up over blocks of neighbours.

    Attributes:
        sums: changes added up, shape (trials, blocks).
        counts: number of samples with a value, shape (trials, blocks).
    """

    sums: Floats
    counts: Floats

    @classmethod
    def of(cls, trials: Iterable[NDArray[Any]]) -> Changes:
        """Add up trials, each with the changes of all samples, shape (samples,), one by one.

        >>> Changes.of([np.array([1.0, np.nan]), np.array([2.0, 3.0])]).counts.tolist()
        [[1.0, 0.0], [1.0, 1.0]]
        """
        sums, counts = [], []
        for changes in trials:
            length = math.ceil(len(changes) / _MOST_BLOCKS)
            starts = np.arange(0, len(changes), length)
            there = np.isfinite(changes)
            sums.append(np.add.reduceat(np.where(there, changes, 0.0), starts))
            counts.append(np.add.reduceat(there.astype(np.float64), starts))
        return cls(np.stack(sums), np.stack(counts))


def crossed_bootstrap(changes: Changes, confidence: float = 95.0) -> tuple[float, float]:
    """Bootstrap interval of the mean change over samples and trials.

    Trials and samples are each drawn with replacement, independently: a drawn sample brings its
    changes in all drawn trials. The mean of such resamples scatters at least as much as that over
    other samples and other draws of faults does. The ends are those of Student's t with this
    standard error, and with the degrees of freedom of the smaller of the two numbers: percentiles
    of so few trials as people run would lie too close together.

    >>> trials = [np.array([0.0, 1.0, 2.0, 1.0]), np.array([0.5, 1.5, 2.0, 1.0])]
    >>> low, high = crossed_bootstrap(Changes.of(trials))
    >>> low < 1.125 < high
    True

    Reference: A. B. Owen, "The Pigeonhole Bootstrap", The Annals of Applied Statistics 1 (2007).

    Args:
        changes: the changes of all samples in all trials.
        confidence: in percent.

    Returns:
        Lower and upper end; NaN for fewer than two trials or samples, or without any change.
    """
    trials, blocks = changes.sums.shape
    if min(trials, blocks) < 2 or not changes.sums.any():
        return math.nan, math.nan
    random = np.random.default_rng(0)
    rows, columns = (_drawn(random, size) for size in (trials, blocks))
    sums = ((rows @ changes.sums) * columns).sum(axis=1)
    counts = ((rows @ changes.counts) * columns).sum(axis=1)
    with np.errstate(invalid="ignore"):
        means = sums / counts
    fewest = min(trials, blocks)
    # Drawn trials scatter less than trials by this factor, much for a few of them.
    variance = np.nanvar(means) * fewest / (fewest - 1)
    mean = changes.sums.sum() / changes.counts.sum()
    low, high = student_t(mean, variance * fewest, fewest, confidence)
    return float(low), float(high)


def _drawn(random: np.random.Generator, size: int) -> Floats:
    """How often each of some things is drawn, shape (resamples, size)."""
    return random.multinomial(size, np.full(size, 1 / size), _RESAMPLES).astype(np.float64)
