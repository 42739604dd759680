"""Repeat some batches in full and without compiled code, and compare the predictions.

By default little is verified: one batch with struck samples for each setting of the sites (a cell
of a study, a rate of a sweep), in the first trial under that setting. All default verification
together may take `SMALL` of the time of the evaluations, including the fault-free one. The very
first batch is always verified; any other that would take too long waits for a later trial of its
setting.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.errors import ConfigError, FxFaultError
from fxfault.evaluation.full.model_state import in_eval_mode, recording
from fxfault.evaluation.full.predictions import ranked, scores_of
from fxfault.faults.random_numbers import uniform_float
from fxfault.sites.fault_sites import faults_of

# The share of the time of evaluations that default verification may take.
SMALL = 0.02


class Verification:
    """Verifies the predictions of a runner, sample by sample."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str,
        share: float | None,
        made_by: str,
        instead: str,
    ) -> None:
        """Prepare to verify a runner.

        Args:
            model: what `fxfault.transform` returned; its calls run the whole of it, uncompiled.
            loader: batches of (inputs, labels), the same in each pass.
            device: the device of the model.
            share: share of the batches to repeat, in percent; the faults, their seed and the trial
                decide which ones. None: a few, see above.
            made_by: kind of the verified runs, in a word, for the error.
            instead: advice if predictions are wrong, for the error.

        Raises:
            ConfigError: `share` is not within 0 and 100.
        """
        check_share(share)
        self.model, self.loader, self.device = model, loader, device
        self.share, self.made_by, self.instead = share, made_by, instead
        self._ran = self._spent = 0.0  # Seconds of all evaluations, and of verifying by default.
        self._settings: set[Any] = set()  # Those with a batch verified by default.

    def note(self, seconds: float) -> None:
        """Count the time of an evaluation."""
        self._ran += seconds

    def check(self, sizes: Sequence[int], numbers: Tensor, top: Tensor, struck: Tensor) -> None:
        """Repeat batches with the faults that are set now, and compare.

        Args:
            sizes: number of samples in each batch.
            numbers: numbers of the samples, see `fxfault.evaluation.full.predictions`.
            top: the predictions, see `Predictions.top`.
            struck: which samples were hit, bool, shape (samples,).

        Raises:
            FxFaultError: predictions differ.
        """
        if self.share is not None:
            self._compare(self._chosen(len(sizes), self.share), sizes, numbers, top)
            return
        setting, done = self._setting, len(self._settings)
        too_long = done and self._spent * (1 + 1 / done) > SMALL * self._ran
        if setting in self._settings or too_long:
            return
        batches = [b for b, part in enumerate(struck.split(list(sizes))) if part.any()]
        if not batches:
            return
        clock = faults_of(self.model).clock
        drawn = uniform_float(clock.seed, "verify one", setting, clock.trial)
        started = time.perf_counter()
        self._compare([batches[int(drawn * len(batches))]], sizes, numbers, top)
        self._spent += time.perf_counter() - started
        self._settings.add(setting)

    def _compare(
        self, chosen: Sequence[int], sizes: Sequence[int], numbers: Tensor, top: Tensor
    ) -> None:
        if not chosen:
            return
        faults, offsets = faults_of(self.model), [0, *accumulate(sizes)]
        with in_eval_mode(self.model), torch.no_grad(), recording(faults, None):
            for batch, inputs in some_batches(self.loader, chosen):
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

    @property
    def _setting(self) -> tuple[Any, ...]:
        """The armed sites with their faults."""
        return tuple((s.name, *map(str, s.faults)) for s in faults_of(self.model) if s.armed)

    def _chosen(self, batches: int, share: float) -> list[int]:
        if share == 0:
            return []
        clock, setting = faults_of(self.model).clock, list(self._setting)
        return [
            batch
            for batch in range(batches)
            if 100 * uniform_float(clock.seed, "verify", setting, clock.trial, batch) < share
        ]


def check_share(share: float | None) -> None:
    """Check a share of the batches; None stands for a few of them.

    Raises:
        ConfigError: it is not a number from 0 to 100.
    """
    if share is None:
        return
    if isinstance(share, bool) or not 0 <= share <= 100:
        raise ConfigError(f"verify: got {share!r}, allowed: a number from 0 to 100 (percent)")


def some_batches(loader: Iterable[Any], wanted: Sequence[int]) -> Iterable[tuple[int, Tensor]]:
    """Yield the inputs of some batches, with their numbers."""
    left = set(wanted)
    if not left:
        return
    for number, (inputs, _) in enumerate(loader):
        if number in left:
            yield number, inputs
            left.remove(number)
            if not left:
                return
