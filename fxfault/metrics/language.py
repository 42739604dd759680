"""Perplexity of language models."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.decisions import NONE, classes_of, decisions
from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, refusal, tensor_of
from fxfault.metrics.sums import sample_sums, total

_TOKENS_AT_ONCE = 64  # 25 MB of float64 for a vocabulary of 50,000.


@declared(higher_is_better=False)
class Perplexity:
    """Perplexity of the data set: exp of the mean negative log-likelihood of a token.

    The mean is over the tokens of all samples that count, not over samples. If a token of any
    sample has no distribution (a score is NaN or +inf, or all are -inf), there is no mean.

    >>> metric = Perplexity()
    >>> metric.update(torch.zeros(1, 3, 8), torch.tensor([[5, 0, -100]]))
    >>> round(metric.compute(), 9)  # as good as a guess among eight
    8.0

    Args:
        ignore_index: the target of tokens that do not count, such as padding; None if all count.
        shift: whether the targets are the input tokens, so that `logits[:, t]` predict
            `targets[:, t + 1]`, as in the labels of Hugging Face's causal models. If not,
            `logits[:, t]` predict `targets[:, t]`.
        output: the item of the outputs that counts (see `fxfault.metrics.outputs.tensor_of`).

    Attributes:
        unpredicted: number of samples in which a token has no distribution.

    Reference:
        Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks",
        J. Acoust. Soc. Am. 62, 1977.
    """

    def __init__(
        self, *, ignore_index: int | None = -100, shift: bool = False, output: Output = None
    ) -> None:
        self.ignore_index, self.shift, self.output = ignore_index, shift, output
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._losses: list[float] = []
        self._tokens = 0
        self.unpredicted = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the samples of a batch.

        Args:
            outputs: logits, shape (samples, tokens, vocabulary).
            targets: integers, shape (samples, tokens), the right tokens.

        Raises:
            DataError: the shapes or types are others, or a target is no token.
        """
        for loss, tokens in self._losses_of(outputs, targets):
            if math.isnan(loss):
                self.unpredicted += 1
            else:
                self._losses.append(loss)
                self._tokens += tokens

    def compute(self) -> float:
        """The perplexity; NaN without tokens, or if a sample is unpredicted."""
        if self.unpredicted:
            return math.nan
        return _exp_of_mean(total(self._losses), self._tokens)

    def per_sample(self, outputs: Any, targets: Any) -> Tensor:
        """The perplexity of each sample, over its own tokens.

        Args:
            outputs: as in `update`.
            targets: as in `update`.

        Returns:
            float64, shape (samples,); NaN where a token has no distribution, or none counts.
        """
        values = [_exp_of_mean(*found) for found in self._losses_of(outputs, targets)]
        return torch.tensor(values, dtype=torch.float64)

    def _losses_of(self, outputs: Any, targets: Any) -> list[tuple[float, int]]:
        """The negative log-likelihood of each sample, in nats, and its number of tokens."""
        logits = tensor_of(outputs, self.output, metric="perplexity")
        if logits.dim() != 3 or not logits.is_floating_point() or logits.shape[2] == 0:
            kind = str(logits.dtype).removeprefix("torch.")
            found = f"outputs of shape {tuple(logits.shape)} ({kind})"
            raise refusal("perplexity", found, "logits of shape (samples, tokens, vocabulary)")
        known = (decisions(logits, 2) != NONE).all(1)
        tokens = classes_of(
            targets, logits[:, :, 0], logits.shape[2], self.ignore_index, metric="perplexity"
        )
        if self.shift:
            logits, tokens = logits[:, :-1], tokens[:, 1:]
        counts = torch.ones_like(tokens, dtype=torch.bool)
        if self.ignore_index is not None:
            counts = tokens != self.ignore_index
        # One by one: a function of the whole batch might round by the place of a sample in it.
        return [
            (_loss(logits[n][counts[n]], tokens[n][counts[n]]) if known[n] else math.nan, size)
            for n, size in enumerate(counts.sum(1).tolist())
        ]


def _loss(logits: Tensor, tokens: Tensor) -> float:
    """The negative log-likelihood of some tokens in nats.

    Args:
        logits: shape (tokens, vocabulary), with a finite one in each row, and no NaN or +inf.
        tokens: int64, shape (tokens,).
    """
    losses = []
    for start in range(0, len(tokens), _TOKENS_AT_ONCE):
        rows = logits[start : start + _TOKENS_AT_ONCE].to("cpu", torch.float64)
        chosen = tokens[start : start + _TOKENS_AT_ONCE].to("cpu")
        rows = rows - rows.amax(1, keepdim=True)
        right = rows.gather(1, chosen[:, None])[:, 0]
        losses.append(sample_sums(rows.exp()).log() - right)
    return float(sample_sums(torch.cat(losses)[None])) if losses else 0.0


def _exp_of_mean(loss: float, tokens: int) -> float:
    if not tokens:
        return math.nan
    try:
        return math.exp(loss / tokens)
    except OverflowError:
        return math.inf
