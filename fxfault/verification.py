"""Run some batches in full and without compiled code, too, and compare what is predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.errors import ConfigError, FxFaultError
from fxfault.predictions import in_eval_mode, ranked, recording, scores_of
from fxfault.random_numbers import uniform_float
from fxfault.sites import faults_of


@dataclass(frozen=True)
class Verification:
    """Checks the predictions of a runner by sample.

    Attributes:
        model: what `fxfault.transform` returned; its calls run the whole of it, uncompiled.
        loader: gives the batches.
        device: where the model is.
        share: of the batches that are run once more, in percent; which ones follows from the
            faults, their seed and the trial.
        made_by: how the predictions were made, in a word.
        instead: what to do where they are wrong, for the error.
    """

    model: nn.Module
    loader: Iterable[Any]
    device: torch.device | str
    share: float
    made_by: str
    instead: str

    def __post_init__(self) -> None:
        check_share(self.share)

    def check(self, sizes: Sequence[int], numbers: Tensor, top: Tensor) -> None:
        """Run batches with the faults that are set now, and compare.

        Args:
            sizes: samples in each of the batches.
            numbers: of the samples, see `fxfault.predictions.sample_numbers`.
            top: the predictions, see `Predictions.top`.

        Raises:
            FxFaultError: they differ.
        """
        if not self.share:
            return
        faults, offsets = faults_of(self.model), [0, *accumulate(sizes)]
        with in_eval_mode(self.model), torch.no_grad(), recording(faults, None):
            for batch, inputs in some_batches(self.loader, self._chosen(len(sizes))):
                samples = slice(offsets[batch], offsets[batch + 1])
                with faults.samples(numbers[samples]):
                    scores = scores_of(self.model(inputs.to(self.device)), sizes[batch])
                differs = (ranked(scores).cpu() != top[samples]).any(1).nonzero()
                if len(differs):
                    raise FxFaultError(
                        f"verify: batch {batch}, sample {samples.start + int(differs[0])}: the "
                        f"full run predicts another class than the {self.made_by} one, for "
                        f"{len(differs)} of {len(scores)} samples (trial {faults.trial}); "
                        f"{self.instead}, and report it: the two should be the same"
                    )

    def _chosen(self, batches: int) -> list[int]:
        faults = faults_of(self.model)
        clock, struck = faults.clock, [(s.name, *map(str, s.faults)) for s in faults if s.armed]
        return [
            batch
            for batch in range(batches)
            if 100 * uniform_float(clock.seed, "verify", struck, clock.trial, batch) < self.share
        ]


def check_share(share: float) -> None:
    """See that a share of the batches is one.

    Raises:
        ConfigError: it is not a number from 0 to 100.
    """
    if isinstance(share, bool) or not 0 <= share <= 100:
        raise ConfigError(f"verify: got {share!r}, allowed: a number from 0 to 100 (percent)")


def some_batches(loader: Iterable[Any], wanted: Sequence[int]) -> Iterable[tuple[int, Tensor]]:
    """The inputs of some batches, with their numbers."""
    left = set(wanted)
    if not left:
        return
    for number, (inputs, _) in enumerate(loader):
        if number in left:
            yield number, inputs
            left.remove(number)
            if not left:
                return
