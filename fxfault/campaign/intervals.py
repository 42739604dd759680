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
    least_variances: Sequence[ArrayLike] | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Ranks of some columns by their means over trials, the greatest first, with intervals.

    Equal means share the first of their places (1, 2, 2, 4). The interval of a column leaves out
    the places of those columns that are surely above or below it: pairs of columns are compared
    by Student's t over trials, at a level that is divided by the number of comparisons. So it
    holds all ranks that columns which are truly equal share, with the confidence that it claims.
    Percentiles of resampled ranks do not: of five equal columns they leave out a shared rank half
    of the time.

    Columns stay paired: a row is the same trial in all of them. A column may have ended before
    others (NaN from there on). Of several tables the means of a column are averaged; tables are
    independent draws of faults.

    >>> scores = np.array([[9.0, 1.0, 1.2], [8.0, 1.3, 0.9], [9.5, 0.8, 1.1], [8.8, 1.0, 1.0]])
    >>> ranks, low, high = rank_intervals([scores])
    >>> ranks.tolist(), low.tolist(), high.tolist()
    ([1.0, 3.0, 2.0], [1.0, 2.0, 2.0], [1.0, 3.0, 3.0])
    >>> ranks, low, high = rank_intervals([scores[:, [0, 1, 1]]])
    >>> ranks.tolist(), low.tolist(), high.tolist()
    ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [1.0, 3.0, 3.0])

    Reference: M. Mogstad, J. P. Romano, A. M. Shaikh and D. Wilhelm, "Inference for Ranks with
    Applications to Mobility across Neighbourhoods and Academic Achievement across Countries", The
    Review of Economic Studies 91 (2024), with Bonferroni's bound; B. L. Welch, "The Generalization
    of `Student's' Problem when Several Different Population Variances are Involved", Biometrika 34
    (1947), for the degrees of freedom of several tables.

    Args:
        tables: at least one, each with one score for each trial and column, shape
            (trials, columns); the numbers of trials may differ.
        confidence: of each interval, in percent.
        least_variances: of each table, variances of the means that a caller knows to be the least
            possible, shape (columns,): a few trials may lie closer together by chance, as counts
            of rare events do.

    Returns:
        Rank of each column, from 1, and the lower and upper end of its interval: all ranks where
        a column has a single trial.
    """
    scores = [_Scores(np.asarray(table, np.float64)) for table in tables]
    means = np.round(sum((table.means for table in scores), np.zeros(())), _DECIMALS)
    columns = len(means)
    ranks = _ranks(means)
    if columns < 2 or min(table.fewest for table in scores) < 2:
        return ranks, np.ones_like(ranks), np.full_like(ranks, columns)
    least = sum((np.asarray(v, np.float64) for v in least_variances or ()), np.zeros(columns))
    tail = _tail(confidence) / (columns - 1)
    low, high = np.empty((2, columns))
    step = max(1, _NUMBERS_AT_ONCE // (8 * columns))
    for start in range(0, columns, step):
        part = slice(start, start + step)
        surely = _chance_of_order(scores, means, least, part) <= tail
        above = surely & (means > means[part, None])
        low[part] = 1 + above.sum(axis=1)
        high[part] = columns - (surely & ~above).sum(axis=1)
    return ranks, low, high


# Scores are in percent: what differs by less than this is rounding.
_DECIMALS = 10


def _ranks(means: Floats) -> Floats:
    """Rank the greatest first; equal ones share the first of their places.

    >>> _ranks(np.array([0.5, 2.0, 0.5, 0.0])).tolist()
    [2.0, 1.0, 2.0, 4.0]
    """
    _, places, counts = np.unique(-means, return_inverse=True, return_counts=True)
    firsts: Floats = 1.0 + np.concatenate(([0], np.cumsum(counts)[:-1]))
    return firsts[places]


class _Scores:
    """One table: its means, and how surely two of them are known to differ."""

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
            part: the columns that are compared with all.

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
    """How easily means would lie so far apart if they were truly equal, one-sided.

    Returns:
        Chances, shape (part, columns); 1 for equal means.
    """
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


Weights = Callable[[np.random.Generator, int, int], Floats]


def _drawn_weights(generator: np.random.Generator, rows: int, trials: int) -> Floats:
    """How often each trial is drawn when as many as there are are drawn with replacement."""
    return generator.multinomial(trials, np.full(trials, 1 / trials), size=rows).astype(np.float64)


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
