"""Confidence intervals: what a number from a campaign is worth.

Two kinds of uncertainty must be kept apart. These intervals cover the one that a campaign can make
small: that faults are drawn at random, and only so many draws were made. They hold the data as
given, and say nothing of how other data would behave; an accuracy on 500 samples is uncertain by
some percentage points on its own, whatever the number of trials.

All functions take arrays and give arrays of the same shape, so that a million cells cost a few
calls. Confidences are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fxfault.errors import ConfigError

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]
"""Lower and upper ends; both are NaN where there is nothing to judge by."""

RESAMPLES = 2000
# More trials than this are resampled in runs of equal length.
_MOST_BLOCKS = 1000
# Weights that are held at one time: 64 MB.
_NUMBERS_AT_ONCE = 8_000_000


def _distributions() -> Any:
    try:
        from scipy import special  # In a tenth of the time that `scipy.stats` takes to import.
    except ImportError as error:
        raise ConfigError(
            'intervals need scipy, which is not installed; pip install "fxfault[cli]"'
        ) from error
    return special


def _tail(confidence: float) -> float:
    if not 0 < confidence < 100:
        raise ConfigError(f"confidence: got {confidence}, allowed: a number between 0 and 100")
    return (1 - confidence / 100) / 2


def _student(confidence: float, freedom: ArrayLike) -> Floats:
    """Two-sided critical values of Student's t; NaN for no degree of freedom."""
    freedom = np.asarray(freedom, dtype=np.float64)
    # Few different numbers of trials, and a quantile takes microseconds each.
    different, places = np.unique(freedom, return_inverse=True)
    usable = np.where(different > 0, different, np.nan)
    values: Floats = -_distributions().stdtrit(usable, _tail(confidence))
    return values[places].reshape(freedom.shape)


# -- rates ----------------------------------------------------------------------------------


def wilson(successes: ArrayLike, trials: ArrayLike, confidence: float = 95.0) -> Interval:
    """Interval of a rate by Wilson's score; it has a width also at 0 and at 1.

    It holds the truth about as often as it says when the trials are independent with one and the
    same chance. Where the chance differs between them (samples that are fragile and samples that
    are not) it is too wide, never too narrow.

    >>> low, high = wilson(0, 100)
    >>> round(float(low), 4), round(float(high), 4)
    (0.0, 0.037)

    Reference: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference", JASA 22 (1927).

    Args:
        successes: at least 0 and at most `trials`; fractions are allowed.
        trials: 0 gives NaN.
        confidence: in percent.
    """
    count, number = np.broadcast_arrays(
        np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    )
    z = -float(_distributions().ndtri(_tail(confidence)))
    return _score_interval(count, number, np.float64(z))


def _score_interval(count: Floats, number: Floats, z: Floats | np.float64) -> Interval:
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = count / number
        scale = 1 + z**2 / number
        centre = (rate + z**2 / (2 * number)) / scale
        half = z / scale * np.sqrt(rate * (1 - rate) / number + z**2 / (4 * number**2))
    # At the ends rounding leaves 1e-18 where 0 is meant.
    low = np.where(count == 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(count == number, 1.0, np.minimum(centre + half, 1.0))
    empty = number <= 0
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def clopper_pearson(successes: ArrayLike, trials: ArrayLike, confidence: float = 95.0) -> Interval:
    """Interval of a rate by the binomial distribution itself; never too narrow, so often too wide.

    >>> low, high = clopper_pearson(0, 100)
    >>> round(float(low), 4), round(float(high), 4)
    (0.0, 0.0362)

    Reference: C. J. Clopper and E. S. Pearson, "The Use of Confidence or Fiducial Limits",
    Biometrika 26 (1934).

    Args:
        successes: at least 0 and at most `trials`.
        trials: 0 gives NaN.
        confidence: in percent.
    """
    count, number = np.broadcast_arrays(
        np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    )
    inverse, tail = _distributions().betaincinv, _tail(confidence)
    low = np.where(count == 0, 0.0, inverse(count, number - count + 1, tail))
    high = np.where(count == number, 1.0, inverse(count + 1, number - count, 1 - tail))
    empty = number <= 0
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def clustered_wilson(
    rate: ArrayLike, samples: ArrayLike, variance: ArrayLike, trials: ArrayLike, confidence: float
) -> Interval:
    """Interval of a rate whose samples share their faults within a trial.

    A broken hardware unit strikes the same elements of every sample, so that a trial is one draw
    and not one for each sample. Wilson's interval is taken for the number of independent samples
    that would scatter as the trials do (Kish's design effect), with Student's t for z, as that
    number is itself estimated from the trials.

    Reference: E. L. Korn and B. I. Graubard, "Confidence Intervals for Proportions with Small
    Expected Number of Positive Counts Estimated from Survey Data", Survey Methodology 24 (1998).

    Args:
        rate: over all trials.
        samples: of all trials together.
        variance: sample variance of the trials' rates, about equal in size; NaN for one trial.
        trials: number of trials.
        confidence: in percent.
    """
    rate, samples = np.asarray(rate, np.float64), np.asarray(samples, np.float64)
    number = np.asarray(trials, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = rate * (1 - rate) / samples  # of the mean, if samples were independent
        effect = np.asarray(variance, np.float64) / number / expected
        # Without any event there is no scatter: then each trial counts once.
        effect = np.where(expected > 0, np.maximum(effect, 1.0), samples / number)
        effective = samples / effect
    return _score_interval(rate * effective, effective, _student(confidence, number - 1))


# -- means over trials ----------------------------------------------------------------------


def mean_interval(values: ArrayLike, confidence: float = 95.0) -> Interval:
    """Interval of a mean over trials by Student's t; see `student_t`.

    Args:
        values: one for each trial, shape (trials,).
        confidence: in percent.
    """
    values = np.asarray(values, np.float64)
    variance = values.var(ddof=1) if len(values) > 1 else np.nan
    return student_t(values.mean(), variance, len(values), confidence)


def student_t(
    mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, confidence: float = 95.0
) -> Interval:
    """Interval of a mean over trials by Student's t.

    Right for trials that scatter about normally, which an accuracy over hundreds of samples does.
    One trial tells nothing of the scatter: NaN. Trials that are all equal give no width; a caller
    who counts rare events must mind that (see `fxfault.campaign.stopping.is_sure`).

    >>> low, high = student_t(mean=90.0, variance=4.0, trials=4)
    >>> round(float(low), 2), round(float(high), 2)
    (86.82, 93.18)

    Args:
        mean: over the trials.
        variance: sample variance of the trials (divisor n - 1).
        trials: number of trials.
        confidence: in percent.
    """
    number = np.asarray(trials, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(np.asarray(variance, np.float64) / number)
    half = _student(confidence, number - 1) * error
    centre = np.asarray(mean, np.float64)
    return np.asarray(centre - half), np.asarray(centre + half)


def bootstrap_mean(
    values: ArrayLike, confidence: float = 95.0, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of a mean over trials by resampling them: for scatter that is far from normal.

    Percentiles of the resampled means, taken a little further out, as the bare percentiles of few
    trials hold the truth too rarely.

    Reference: T. C. Hesterberg, "What Teachers Should Know About the Bootstrap", The American
    Statistician 69 (2015), section 4.3.

    Args:
        values: one for each trial, shape (trials,).
        confidence: in percent.
        resamples: how many.
        seed: of the resampling; the same seed, the same interval.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.full((), np.nan), np.full((), np.nan)
    means = _resampled(values[:, None], _drawn_weights, resamples, seed)[:, 0]
    return _percentiles(means, _expanded_tail(confidence, len(values)))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    confidence: float = 95.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats]:
    """Interval of the mean of `a - b` over pairs, and how surely `a` is above `b`.

    A pair is the same trial number under the same seed, so that both had the same faults as far as
    they can: what both have in common cancels out.

    >>> low, high, above = paired_bootstrap([5.0, 9.0, 7.0, 8.0], [4.0, 8.0, 5.0, 7.0])
    >>> bool(low > 0), float(above)
    (True, 1.0)

    Args:
        a: one for each trial, shape (trials,).
        b: of the same trials, same shape.
        confidence: in percent.
        resamples: how many.
        seed: of the resampling.

    Returns:
        Lower and upper end, and the share of resamples in which the mean of `a` is the greater
        (a tie counts half).
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(difference) < 2:
        nothing = np.full((), np.nan)
        return nothing, nothing, nothing
    means = _resampled(difference[:, None], _drawn_weights, resamples, seed)[:, 0]
    return _judged(means, _expanded_tail(confidence, len(difference)))


def bootstrap_difference(
    a: ArrayLike,
    b: ArrayLike,
    confidence: float = 95.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats]:
    """Interval of the mean of `a` minus that of `b`, of trials that are no pairs.

    Args:
        a: one for each trial, shape (trials,).
        b: of other trials, any number of them.
        confidence: in percent.
        resamples: how many.
        seed: of the resampling.

    Returns:
        As `paired_bootstrap`.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    fewest = min(len(first), len(second))
    if fewest < 2:
        nothing = np.full((), np.nan)
        return nothing, nothing, nothing
    means = [
        _resampled(values[:, None], _drawn_weights, resamples, (seed, number))[:, 0]
        for number, values in enumerate((first, second))
    ]
    return _judged(means[0] - means[1], _expanded_tail(confidence, fewest))


def _judged(means: Floats, tail: float) -> tuple[Floats, Floats, Floats]:
    above = np.mean(means > 0) + np.mean(means == 0) / 2
    low, high = _percentiles(means, tail)
    return low, high, np.asarray(above)


def rank_intervals(
    tables: Sequence[ArrayLike],
    confidence: float = 95.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats]:
    """Ranks of some columns by their means over trials, the greatest first, with intervals.

    Each resample gives every trial number a random weight, the same in all columns, so that the
    columns stay paired; a column may have ended before others (NaN from there on). The weights are
    never zero, as a column with few trials might otherwise lose all of them. Of several tables the
    column's means are averaged.

    Ranks are whole numbers, so that the interval holds the true rank more often than it says; it
    can miss it where two columns are truly equal, as there is then no true order to find.

    >>> scores = np.array([[9.0, 1.0, 1.2], [8.0, 1.3, 0.9], [9.5, 0.8, 1.1], [8.8, 1.0, 1.0]])
    >>> ranks, low, high = rank_intervals([scores])
    >>> ranks.tolist(), low.tolist(), high.tolist()
    ([1.0, 3.0, 2.0], [1.0, 2.0, 2.0], [1.0, 3.0, 3.0])

    Reference: D. B. Rubin, "The Bayesian Bootstrap", The Annals of Statistics 9 (1981).

    Args:
        tables: at least one, each with one score for each trial and column, shape
            (trials, columns); the numbers of trials may differ.
        confidence: in percent.
        resamples: how many.
        seed: of the resampling.

    Returns:
        Rank of each column, from 1, and the lower and upper end of its interval: all ranks where
        a column has a single trial.
    """
    scores = [np.asarray(table, np.float64) for table in tables]
    means = sum((np.nanmean(table, axis=0) for table in scores), np.zeros(()))
    ranks = _ranks(means[None])[0]
    fewest = min(int((~np.isnan(table)).sum(axis=0).min()) for table in scores)
    if fewest < 2:
        return ranks, np.ones_like(ranks), np.full_like(ranks, len(ranks))
    drawn = np.zeros((resamples, len(ranks)))
    for number, table in enumerate(scores):
        # Tables are independent draws of faults, so each has weights of its own.
        drawn += _resampled(table, _exponential_weights, resamples, (seed, number))
    drawn = _ranks(drawn)
    tail = _expanded_tail(confidence, fewest)
    low = np.quantile(drawn, tail, axis=0, method="lower")
    high = np.quantile(drawn, 1 - tail, axis=0, method="higher")
    return ranks, np.minimum(low, ranks), np.maximum(high, ranks)


def _ranks(means: Floats) -> Floats:
    """Rank each row, the greatest first; equal ones in the order of the columns."""
    order = np.argsort(-means, axis=1, kind="stable")
    ranks = np.empty(means.shape, np.float64)
    np.put_along_axis(ranks, order, np.arange(1.0, means.shape[1] + 1)[None], axis=1)
    return ranks


Weights = Callable[[np.random.Generator, int, int], Floats]


def _drawn_weights(generator: np.random.Generator, rows: int, trials: int) -> Floats:
    """How often each trial is drawn when as many as there are are drawn with replacement."""
    return generator.multinomial(trials, np.full(trials, 1 / trials), size=rows).astype(np.float64)


def _exponential_weights(generator: np.random.Generator, rows: int, trials: int) -> Floats:
    return generator.standard_exponential((rows, trials))


def _resampled(
    values: Floats, weights: Weights, resamples: int, seed: int | tuple[int, ...]
) -> Floats:
    """Weighted means of the columns under random weights of the rows, NaNs left out.

    Args:
        values: shape (trials, columns).
        weights: draws the weights, shape (resamples, trials).
        resamples: how many.
        seed: of the weights.

    Returns:
        Means, shape (resamples, columns).
    """
    generator = np.random.default_rng(seed)
    there = ~np.isnan(values)
    sums = _in_blocks(np.where(there, values, 0.0))
    counts = _in_blocks(there.astype(np.float64))
    rows = max(1, _NUMBERS_AT_ONCE // len(sums))
    parts = []
    for start in range(0, resamples, rows):
        drawn = weights(generator, min(rows, resamples - start), len(sums))
        parts.append((drawn @ sums) / (drawn @ counts))
    return np.concatenate(parts)


def _in_blocks(values: Floats) -> Floats:
    """Add up runs of rows where there are many: resampling runs of them tells the same.

    Args:
        values: shape (trials, columns).

    Returns:
        Sums over equal runs, the last one perhaps shorter; shape (at most `_MOST_BLOCKS`, columns).
    """
    length = math.ceil(len(values) / _MOST_BLOCKS)
    return np.add.reduceat(values, np.arange(0, len(values), length), axis=0)


def _expanded_tail(confidence: float, trials: int) -> float:
    t = float(_student(confidence, trials - 1))
    return float(_distributions().ndtr(-math.sqrt(trials / (trials - 1)) * t))


def _percentiles(means: Floats, tail: float) -> Interval:
    low, high = np.quantile(means, [tail, 1 - tail])
    return np.asarray(low), np.asarray(high)


# -- sample size ----------------------------------------------------------------------------


def sample_size(
    margin: float, confidence: float = 95.0, population: float = math.inf, rate: float = 0.5
) -> int:
    """Give how many faults must be drawn to know a rate within a margin.

    n = N / (1 + e² (N - 1) / (t² p (1 - p)))

    >>> sample_size(5.0), sample_size(1.0), sample_size(1.0, 95.0, population=10_000)
    (385, 9604, 4900)

    Reference: R. Leveugle, A. Calvez, P. Maistri and P. Vanhauwaert, "Statistical Fault Injection:
    Quantified Error and Confidence", DATE 2009.

    Args:
        margin: half width e of the interval, in percentage points.
        confidence: in percent; t is the normal quantile.
        population: number N of possible faults.
        rate: guess p of the rate, a fraction; 0.5 asks for the most.

    Raises:
        ConfigError: a number is not allowed.
    """
    if not 0 < margin < 100:
        raise ConfigError(f"margin: got {margin}, allowed: a number between 0 and 100")
    if not 0 < rate < 1:
        raise ConfigError(f"rate: got {rate}, allowed: a number between 0 and 1")
    if not population >= 1:
        raise ConfigError(f"population: got {population}, allowed: a number of at least 1")
    t = -float(_distributions().ndtri(_tail(confidence)))
    wanted = t**2 * rate * (1 - rate) / (margin / 100) ** 2
    if math.isfinite(population):
        wanted = population / (1 + (population - 1) / wanted)
    return math.ceil(wanted - 1e-6)  # A millionth is rounding.
