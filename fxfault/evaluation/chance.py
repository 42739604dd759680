"""Decide whether a network without faults predicts well enough to measure what faults do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfault.evaluation.full.predictions import Predictions

LEVEL = 0.01


def no_better_than_chance(correct: int, samples: int, classes: int) -> str | None:
    """Return a sentence if an accuracy is no better than guessing.

    If there is nothing left to lose, faults cost nothing: a network with the wrong weights, labels
    or preprocessing seems to withstand all of them. An accuracy is better than chance if guesses,
    each right with probability 1 / classes, would be right as often with a probability below 1 %
    (one-sided binomial test).

    >>> no_better_than_chance(51, 500, 10)
    'golden accuracy 10.2% is no better than chance (10 classes): wrong weights, labels or \
preprocessing?'
    >>> no_better_than_chance(70, 500, 10) is None
    True

    Args:
        correct: number of samples predicted correctly without faults.
        samples: number of samples, at least 1.
        classes: number of classes that the network scores.

    Returns:
        The sentence, without its full stop; None if the accuracy is better.
    """
    if at_least(correct, samples, 1 / classes) < LEVEL:
        return None
    return (
        f"golden accuracy {100 * correct / samples:.1f}% is no better than chance "
        f"({classes} class{'' if classes == 1 else 'es'}): wrong weights, labels or preprocessing?"
    )


def doubt_of(golden: Any) -> str | None:
    """Return a sentence if predictions without faults leave little to measure, else None.

    They are no better than chance (`no_better_than_chance`; not tested for unknown classes), or
    some samples have none. Nobody knows what chance gives in any other metric.

    >>> import torch
    >>> from fxfault.evaluation.full.predictions import Predictions
    >>> doubt_of(Predictions(torch.tensor([[1, 0], [-1, -1]]), torch.tensor([1, 0])))
    'without faults, the scores of 1 of 2 samples are not finite: no effect of a fault is counted \
for them'
    """
    if not golden.facts.is_accuracy:
        return None
    made: Predictions = golden
    samples, missing, doubts = made.samples, made.unpredicted, []
    if made.classes is not None:
        doubts.append(no_better_than_chance(made.correct, samples, made.classes))
    if missing:
        doubts.append(
            f"without faults, the scores of {missing} of {samples} samples are not finite: no "
            "effect of a fault is counted for them"
        )
    return "; ".join(doubt for doubt in doubts if doubt) or None


def at_least(count: int, number: int, chance: float) -> float:
    """Probability of at least `count` successes in independent trials.

    >>> round(at_least(2, 3, 0.5), 3), at_least(0, 3, 0.5), at_least(3, 3, 1.0)
    (0.5, 1.0, 1.0)

    Args:
        count: number of successes, at most `number`.
        number: number of trials.
        chance: probability of each success, above 0 and at most 1.
    """
    if count <= 0 or chance >= 1:
        return 1.0
    # Written out because workers may lack scipy.
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
