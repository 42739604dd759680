"""An interval for other samples as well as for other draws of faults.

All other intervals take the data as given. If each trial says how far it moved the value of each
sample, the samples can be resampled, too. Every change is that of one sample against itself without
faults, so that what makes samples differ from each other cancels out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxfault.campaign.estimates.intervals import Floats, judged

_RESAMPLES = 2000
_AT_ONCE = 4_000_000  # Weights of samples in memory: 32 MB.


def crossed_bootstrap(changes: NDArray[Any], confidence: float = 95.0) -> tuple[float, float]:
    """Bootstrap interval of the mean change over samples and trials.

    Trials and samples are each drawn with replacement, independently: a drawn sample brings its
    changes in all drawn trials. The mean of such resamples scatters at least as much as that over
    other samples and other draws of faults does. The ends are percentiles, taken a little further
    out, as in `fxfault.campaign.estimates.intervals.paired_bootstrap`.

    >>> low, high = crossed_bootstrap(np.array([[0.0, 1.0, 2.0, 1.0], [0.5, 1.5, 2.0, 1.0]]))
    >>> low < 1.125 < high
    True

    Reference: A. B. Owen, "The Pigeonhole Bootstrap", The Annals of Applied Statistics 1 (2007).

    Args:
        changes: change of each sample in each trial, shape (trials, samples); NaN if the sample has
            no value.
        confidence: in percent.

    Returns:
        Lower and upper end; NaN for fewer than two trials or samples, or without any change.
    """
    trials, samples = changes.shape
    there = ~np.isnan(changes)
    known = np.where(there, changes, 0.0)
    if min(trials, samples) < 2 or not known.any():
        return math.nan, math.nan
    random = np.random.default_rng(0)
    step, means = max(1, _AT_ONCE // max(trials, samples)), np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, step):
        number = min(step, _RESAMPLES - start)
        rows, columns = (_drawn(random, size, number) for size in (trials, samples))
        sums = ((rows @ known) * columns).sum(axis=1)
        counts = ((rows @ there) * columns).sum(axis=1)
        with np.errstate(invalid="ignore"):
            means[start : start + number] = sums / counts
    low, high, _ = judged(means[~np.isnan(means)], min(trials, samples), confidence)
    return low, high


def _drawn(random: np.random.Generator, size: int, number: int) -> Floats:
    """How often each of some things is drawn, shape (number, size)."""
    return random.multinomial(size, np.full(size, 1 / size), size=number).astype(np.float64)
