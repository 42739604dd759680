"""Confidence intervals of what a campaign measures.

These intervals cover the uncertainty that a campaign can make small: faults are drawn at random,
and a campaign makes a limited number of draws. They take the data as given and say nothing about
how other data would behave: an accuracy on 500 samples is uncertain by some percentage points on
its own, whatever the number of trials.

All functions take arrays and return arrays of the same shape, so that a million cells cost a few
calls. Confidences are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fxfault.errors import ConfigError

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]
"""Lower and upper ends; both are NaN if there are too few trials to tell."""

_RESAMPLES = 2000
# The bootstrap resamples longer series in this many runs of equal length.
_MOST_BLOCKS = 1000
_PAIRS_AT_ONCE = 1_000_000  # 8 MB an array


def _distributions() -> Any:
    try:
        from scipy import special  # Imports in a tenth of the time of `scipy.stats`.
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
    """Two-sided critical values of Student's t; NaN without a degree of freedom."""
    freedom = np.asarray(freedom, dtype=np.float64)
    # A quantile takes microseconds, and cells share few numbers of trials.
    different, places = np.unique(freedom, return_inverse=True)
    usable = np.where(different > 0, different, np.nan)
    values: Floats = -_distributions().stdtrit(usable, _tail(confidence))
    return values[places].reshape(freedom.shape)


# -- rates ----------------------------------------------------------------------------------


def wilson(successes: ArrayLike, trials: ArrayLike, confidence: float = 95.0) -> Interval:
    """Wilson's score interval of a rate; it has a width at 0 and at 1, too.

    The coverage is about nominal if the trials are independent and share one chance. If the chance
    differs between them (some samples are fragile and some are not), the interval is too wide,
    never too narrow. `scipy.stats` has it for one integer count at a time.

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
    # At the ends rounding leaves 1e-18 instead of 0.
    low = np.where(count == 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(count == number, 1.0, np.minimum(centre + half, 1.0))
    empty = number <= 0
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def clustered_wilson(
    rate: ArrayLike, samples: ArrayLike, variance: ArrayLike, trials: ArrayLike, confidence: float
) -> Interval:
    """Interval of a rate if all samples of a trial share their faults.

    A broken hardware unit strikes the same elements of every sample, so that a trial is one draw,
    however many samples it has. Kish's design effect gives the number of independent samples that
    would scatter as the trials do; Wilson's interval takes this number, with Student's t in place
    of z because the trials only estimate it.

    Reference: E. L. Korn and B. I. Graubard, "Confidence Intervals for Proportions with Small
    Expected Number of Positive Counts Estimated from Survey Data", Survey Methodology 24 (1998).

    Args:
        rate: rate over all trials.
        samples: number of samples of all trials together.
        variance: sample variance of the rates of single trials, which are of about equal size;
            NaN for one trial.
        trials: number of trials.
        confidence: in percent.
    """
    rate, samples = np.asarray(rate, np.float64), np.asarray(samples, np.float64)
    number = np.asarray(trials, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = rate * (1 - rate) / samples  # Variance of the mean of independent samples.
        effect = np.asarray(variance, np.float64) / number / expected
        # Without any scatter there is none to judge by: then each trial counts once.
        effect = np.where(effect > 0, np.maximum(effect, 1.0), samples / number)
        effective = samples / effect
    return _score_interval(rate * effective, effective, _student(confidence, number - 1))


# -- means over trials ----------------------------------------------------------------------


def student_t(
    mean: ArrayLike, variance: ArrayLike, trials: ArrayLike, confidence: float = 95.0
) -> Interval:
    """Student's t interval of a mean over trials.

    It is right if trials scatter about normally, as an accuracy over hundreds of samples does. One
    trial gives NaN. Equal trials give an interval without width, unlike `scipy.stats.t.interval`,
    which gives NaN; a caller must allow for that (see `fxfault.campaign.estimates.summary`).

    >>> low, high = student_t(mean=90.0, variance=4.0, trials=4)
    >>> round(float(low), 2), round(float(high), 2)
    (86.82, 93.18)

    Args:
        mean: mean over the trials.
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


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, confidence: float = 95.0
) -> tuple[float, float, float]:
    """Bootstrap interval of the mean of `a - b` over pairs, and how surely `a` is above `b`.

    A pair is one trial number under one seed, so that both networks had the same faults as far as
    they can: what both have in common cancels out.

    The ends are percentiles of the resampled means, taken a little further out (the expanded
    percentile interval, which `scipy.stats.bootstrap` lacks), as bare percentiles cover too rarely
    if there are few trials.

    >>> low, high, above = paired_bootstrap([5.0, 9.0, 7.0, 8.0], [4.0, 8.0, 5.0, 7.0])
    >>> low > 0, above
    (True, 1.0)

    Reference: T. C. Hesterberg, "What Teachers Should Know About the Bootstrap", The American
    Statistician 69 (2015), section 4.3.

    Args:
        a: one value for each trial, shape (trials,).
        b: values of the same trials, same shape.
        confidence: in percent.

    Returns:
        Lower and upper end, and the share of resamples in which the mean of `a` is the greater
        (a tie counts half). All are NaN for fewer than two trials.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(difference) < 2:
        return _UNKNOWN
    return _judged(_resampled_means(difference, 0), len(difference), confidence)


def bootstrap_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = 95.0
) -> tuple[float, float, float]:
    """Bootstrap interval of the mean of `a` minus the mean of `b`, for trials that are not pairs.

    Args:
        a: one value for each trial, shape (trials,).
        b: values of other trials, any number of them.
        confidence: in percent.

    Returns:
        As `paired_bootstrap`.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    fewest = min(len(first), len(second))
    if fewest < 2:
        return _UNKNOWN
    differences = _resampled_means(first, (0, 0)) - _resampled_means(second, (0, 1))
    return _judged(differences, fewest, confidence)


_UNKNOWN = (math.nan, math.nan, math.nan)


def _resampled_means(values: Floats, seed: int | tuple[int, ...]) -> Floats:
    """Means of resamples, shape (_RESAMPLES,).

    Long series are added up in runs first: resampling the runs gives the same interval.
    """
    length = math.ceil(len(values) / _MOST_BLOCKS)
    starts = np.arange(0, len(values), length)
    sums = np.add.reduceat(values, starts)
    counts = np.add.reduceat(np.ones_like(values), starts)
    chances = np.full(len(sums), 1 / len(sums))
    drawn = np.random.default_rng(seed).multinomial(len(sums), chances, size=_RESAMPLES)
    return (drawn @ sums) / (drawn @ counts)


def _judged(means: Floats, trials: int, confidence: float) -> tuple[float, float, float]:
    t = float(_student(confidence, trials - 1))
    tail = float(_distributions().ndtr(-math.sqrt(trials / (trials - 1)) * t))
    low, high = np.quantile(means, [tail, 1 - tail])
    above = np.mean(means > 0) + np.mean(means == 0) / 2
    return float(low), float(high), float(above)


# -- ranks ----------------------------------------------------------------------------------


def rank_intervals(
    tables: Sequence[ArrayLike],
    confidence: float = 95.0,
    least_variances: Sequence[ArrayLike] | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Rank columns by their means over trials, the greatest first, with intervals of the ranks.

    Equal means share the first of their places (1, 2, 2, 4). The interval of a column leaves out
    the places of those columns that are surely above or below it: Student's t over trials compares
    each pair of columns, at a level divided by the number of comparisons (Bonferroni). The
    interval therefore covers all ranks that truly equal columns share, with the stated confidence.
    Percentiles of resampled ranks do not: of five equal columns they leave out a shared rank half
    of the time.

    Columns stay paired: a row is the same trial in all of them. A column may end before others
    (NaN from there on). The means of a column are averaged over the tables, which are independent
    draws of faults.

    >>> scores = np.array([[9.0, 1.0, 1.2], [8.0, 1.3, 0.9], [9.5, 0.8, 1.1], [8.8, 1.0, 1.0]])
    >>> ranks, low, high = rank_intervals([scores])
    >>> ranks.tolist(), low.tolist(), high.tolist()
    ([1.0, 3.0, 2.0], [1.0, 2.0, 2.0], [1.0, 3.0, 3.0])
    >>> ranks, low, high = rank_intervals([scores[:, [0, 1, 1]]])
    >>> ranks.tolist(), low.tolist(), high.tolist()
    ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [1.0, 3.0, 3.0])

    References: M. Mogstad, J. P. Romano, A. M. Shaikh and D. Wilhelm, "Inference for Ranks with
    Applications to Mobility across Neighbourhoods and Academic Achievement across Countries", The
    Review of Economic Studies 91 (2024), for the intervals; B. L. Welch, "The Generalization of
    `Student's' Problem when Several Different Population Variances are Involved", Biometrika 34
    (1947), for the degrees of freedom of several tables.

    Args:
        tables: at least one table of scores, one for each trial and column, shape
            (trials, columns); the numbers of trials may differ.
        confidence: confidence of each interval, in percent.
        least_variances: for each table, lower bounds of the variances of the means, shape
            (columns,): a few trials may lie closer together by chance, as counts of rare events
            do.

    Returns:
        Rank of each column, from 1, and the lower and upper end of its interval: all ranks if
        a column has a single trial.
    """
    scores = [_Scores(np.asarray(table, np.float64)) for table in tables]
    means = np.round(sum((table.means for table in scores), np.zeros(())), _DECIMALS)
    columns = len(means)
    ranks = 1 + np.searchsorted(np.sort(-means), -means).astype(np.float64)
    if columns < 2 or min(table.fewest for table in scores) < 2:
        return ranks, np.ones_like(ranks), np.full_like(ranks, columns)
    least = sum((np.asarray(v, np.float64) for v in least_variances or ()), np.zeros(columns))
    tail = _tail(confidence) / (columns - 1)
    low, high = np.empty((2, columns))
    step = max(1, _PAIRS_AT_ONCE // columns)
    for start in range(0, columns, step):
        part = slice(start, start + step)
        surely = _chance_of_order(scores, means, least, part) <= tail
        above = surely & (means > means[part, None])
        low[part] = 1 + above.sum(axis=1)
        high[part] = columns - (surely & ~above).sum(axis=1)
    return ranks, low, high


# Scores are in percent: smaller differences are rounding.
_DECIMALS = 10


class _Scores:
    """The means of one table, and the variances of their differences."""

    def __init__(self, table: Floats) -> None:
        there = ~np.isnan(table)
        self.there = there.astype(np.float64)
        self.numbers = self.there.sum(axis=0)
        self.fewest = int(self.numbers.min())
        with np.errstate(invalid="ignore"):
            self.means: Floats = np.where(there, table, 0.0).sum(axis=0) / self.numbers
        self.rest = np.where(there, table - self.means, 0.0)

    def of_pairs(self, part: slice) -> tuple[Floats, Floats]:
        """Variances of the differences of means, and their degrees of freedom.

        Args:
            part: the columns to compare with all columns.

        Returns:
            Both of shape (part, columns).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            own = (self.rest**2).sum(axis=0) / (self.numbers - 1) / self.numbers
            common = self.there[:, part].T @ self.there
            together = self.rest[:, part].T @ self.rest / (common - 1)
            shared = together * common / np.outer(self.numbers[part], self.numbers)
        variances = own[part, None] + own - 2 * np.where(common > 1, shared, 0.0)
        freedom = np.minimum(self.numbers[part, None], self.numbers) - 1
        return np.maximum(variances, 0.0), freedom


def _chance_of_order(
    scores: Sequence[_Scores], means: Floats, least: Floats, part: slice
) -> Floats:
    """One-sided p-values of the differences between means, shape (part, columns); 1 if equal."""
    differences = np.abs(means[part, None] - means)
    variances, squares = np.zeros((2, *differences.shape))
    freedom = np.zeros_like(differences)
    for table in scores:
        own, own_freedom = table.of_pairs(part)
        variances += own
        squares += own**2 / own_freedom
        freedom += own_freedom
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(squares > 0, variances**2 / squares, freedom)
        errors = np.sqrt(np.maximum(variances, least[part, None] + least))
        chances = _distributions().stdtr(freedom, -differences / errors)
    return np.where(differences == 0, 1.0, chances)


# -- sample size ----------------------------------------------------------------------------


def sample_size(
    margin: float, confidence: float = 95.0, population: float = math.inf, rate: float = 0.5
) -> int:
    """Return how many faults to draw to know a rate within a margin.

    n = N / (1 + e² (N - 1) / (t² p (1 - p)))

    >>> sample_size(5.0), sample_size(1.0), sample_size(1.0, 95.0, population=10_000)
    (385, 9604, 4900)

    Reference: R. Leveugle, A. Calvez, P. Maistri and P. Vanhauwaert, "Statistical Fault Injection:
    Quantified Error and Confidence", DATE 2009.

    Args:
        margin: half width e of the interval, in percentage points.
        confidence: in percent; t is the normal quantile.
        population: number N of possible faults.
        rate: guess p of the rate, a fraction; 0.5 needs the most faults.

    Raises:
        ConfigError: a number is out of its range.
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
