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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxfault.errors import ConfigError, FxFaultError
from fxfault.evaluation.full.model_state import in_eval_mode, recording
from fxfault.faults.random_numbers import uniform_float
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    from fxfault.data.batches import Batch
    from fxfault.evaluation.full.judging import Judge

# The share of the time of evaluations that default verification may take.
SMALL = 0.02


class Verification:
    """Verifies the predictions of a runner, sample by sample."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str,
        judge: Judge,
        share: float | None,
        made_by: str,
        instead: str,
    ) -> None:
        """Prepare to verify a runner.

        Args:
            model: what `fxfault.transform` returned; its calls run the whole of it, uncompiled.
            loader: batches of (inputs, labels), the same in each pass.
            device: the device of the model.
            judge: what is kept of the outputs.
            share: share of the batches to repeat, in percent; the faults, their seed and the trial
                decide which ones. None: a few, see above.
            made_by: kind of the verified runs, in a word, for the error.
            instead: advice if predictions are wrong, for the error.

        Raises:
            ConfigError: `share` is not within 0 and 100.
        """
        check_share(share)
        self.model, self.loader, self.device, self.judge = model, loader, device, judge
        self.share, self.made_by, self.instead = share, made_by, instead
        self._ran = self._spent = 0.0  # Seconds of all evaluations, and of verifying by default.
        self._settings: set[Any] = set()  # Those with a batch verified by default.

    def note(self, seconds: float) -> None:
        """Count the time of an evaluation."""
        self._ran += seconds

    def check(self, made: Any, numbers: Tensor) -> None:
        """Repeat batches with the faults that are set now, and compare.

        Args:
            made: the result, which says which samples were hit.
            numbers: numbers of the samples, see `fxfault.evaluation.full.predictions`.

        Raises:
            FxFaultError: predictions differ.
        """
        if self.share is not None:
            self._compare(self._chosen(len(made.sizes), self.share), made, numbers)
            return
        setting, done = self._setting, len(self._settings)
        too_long = done and self._spent * (1 + 1 / done) > SMALL * self._ran
        if setting in self._settings or too_long:
            return
        batches = [b for b, part in enumerate(made.struck.split(list(made.sizes))) if part.any()]
        if not batches:
            return
        clock = faults_of(self.model).clock
        drawn = uniform_float(clock.seed, "verify one", setting, clock.trial)
        started = time.perf_counter()
        self._compare([batches[int(drawn * len(batches))]], made, numbers)
        self._spent += time.perf_counter() - started
        self._settings.add(setting)

    def _compare(self, chosen: Sequence[int], made: Any, numbers: Tensor) -> None:
        if not chosen:
            return
        faults, offsets = faults_of(self.model), [0, *accumulate(made.sizes)]
        what = "predicts another class" if self.judge.metric is None else "has another output"
        with in_eval_mode(self.model), torch.no_grad(), recording(faults, None):
            for number, batch in some_batches(self.loader, chosen, self.judge, self.device):
                samples = slice(offsets[number], offsets[number + 1])
                with faults.samples(numbers[samples]):
                    output = self.model(*batch.inputs, **batch.keywords)
                differs = made.differing(number, output, batch).nonzero()
                if len(differs):
                    raise FxFaultError(
                        f"verify: batch {number}, sample {samples.start + int(differs[0])}: the "
                        f"full run {what} than the {self.made_by} one, for "
                        f"{len(differs)} of {batch.samples} samples (trial {faults.trial}); "
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


def some_batches(
    loader: Iterable[Any], wanted: Sequence[int], judge: Judge, device: torch.device | str
) -> Iterable[tuple[int, Batch]]:
    """Yield some batches on a device, with their numbers."""
    left = set(wanted)
    if not left:
        return
    for number, given in enumerate(loader):
        if number in left:
            yield number, judge.take(given, 0).to(device)
            left.remove(number)
            if not left:
                return
