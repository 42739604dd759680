"""Whether a network without faults is any better than guessing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxfault.evaluation.full.predictions import Predictions

LEVEL = 0.01


def no_better_than_chance(correct: int, samples: int, classes: int) -> str | None:
    """Say that an accuracy is no better than that of guessing, if it is not.

    Faults cost nothing where nothing is left to lose, so that a campaign on a network with the
    wrong weights, labels or preprocessing finds it to withstand all of them. Chance is one class
    in so many; an accuracy is better if guesses would be right so often with a probability below
    1 %, by the binomial distribution, one-sided.

    >>> no_better_than_chance(51, 500, 10)
    'golden accuracy 10.2% is no better than chance (10 classes): wrong weights, labels or \
preprocessing?'
    >>> no_better_than_chance(70, 500, 10) is None
    True

    Args:
        correct: samples that are predicted rightly without faults.
        samples: at least 1.
        classes: that the network gives scores for.

    Returns:
        The sentence, without its full stop; None where the accuracy is better.
    """
    if at_least(correct, samples, 1 / classes) < LEVEL:
        return None
    return (
        f"golden accuracy {100 * correct / samples:.1f}% is no better than chance "
        f"({classes} class{'' if classes == 1 else 'es'}): wrong weights, labels or preprocessing?"
    )


def doubt_of(golden: Predictions) -> str | None:
    """What `no_better_than_chance` says of predictions without faults; None if nothing."""
    if golden.classes is None:
        return None
    return no_better_than_chance(golden.correct, len(golden.labels), golden.classes)


def at_least(count: int, number: int, chance: float) -> float:
    """How probable it is that at least so many of some independent trials succeed.

    >>> round(at_least(2, 3, 0.5), 3), at_least(0, 3, 0.5), at_least(3, 3, 1.0)
    (0.5, 1.0, 1.0)

    Args:
        count: of successes, at most `number`.
        number: of trials.
        chance: of each to succeed, above 0 and at most 1.
    """
    if count <= 0 or chance >= 1:
        return 1.0
    # By hand, as scipy need not be installed where trials are run.
    log, log_not = math.log(chance), math.log1p(-chance)
    whole = math.lgamma(number + 1)
    terms = [
        math.exp(
            whole
            - math.lgamma(k + 1)
            - math.lgamma(number - k + 1)
            + k * log
            + (number - k) * log_not
        )
        for k in range(count, number + 1)
    ]
    return min(1.0, math.fsum(terms))
