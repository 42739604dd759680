"""Run some batches in full and without compiled code, too, and compare what is predicted.

By default little is: of each setting of the sites (a cell of a study, a rate of a sweep) one batch
with struck samples, in the first trial under that setting. All that is verified by default may take
`SMALL` of the time that the evaluations have taken, the fault-free one among them. The very first
batch is verified whatever it takes; any other that would take too much waits for a later trial of
its setting.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.errors import ConfigError, FxFaultError
from fxfault.evaluation.full.predictions import in_eval_mode, ranked, recording, scores_of
from fxfault.faults.random_numbers import uniform_float
from fxfault.sites.fault_sites import faults_of

# The share of the time of evaluations that verifying may take by default.
SMALL = 0.02


@dataclass
class _Account:
    """What evaluations took, and what of them was verified by default; in seconds.

    Attributes:
        ran: by all evaluations.
        spent: on verifying.
        settings: those of which a batch was verified.
    """

    ran: float = 0.0
    spent: float = 0.0
    settings: set[Any] = field(default_factory=set)

    def allows(self) -> bool:
        """Whether there is time to verify another batch, which takes what the others took."""
        done = len(self.settings)
        return done == 0 or self.spent * (1 + 1 / done) <= SMALL * self.ran


@dataclass(frozen=True)
class Verification:
    """Checks the predictions of a runner by sample.

    Attributes:
        model: what `fxfault.transform` returned; its calls run the whole of it, uncompiled.
        loader: gives the batches.
        device: where the model is.
        share: of the batches that are run once more, in percent; which ones follows from the
            faults, their seed and the trial. None: a few, see above.
        made_by: how the predictions were made, in a word.
        instead: what to do where they are wrong, for the error.
    """

    model: nn.Module
    loader: Iterable[Any]
    device: torch.device | str
    share: float | None
    made_by: str
    instead: str
    _account: _Account = field(default_factory=_Account, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_share(self.share)

    def note(self, seconds: float) -> None:
        """Take note of what an evaluation took."""
        self._account.ran += seconds

    def check(
        self, sizes: Sequence[int], numbers: Tensor, top: Tensor, struck: Tensor | None = None
    ) -> None:
        """Run batches with the faults that are set now, and compare.

        Args:
            sizes: samples in each of the batches.
            numbers: of the samples, see `fxfault.evaluation.full.predictions.sample_numbers`.
            top: the predictions, see `Predictions.top`.
            struck: which samples were hit, bool; None where that is not known.

        Raises:
            FxFaultError: they differ.
        """
        if self.share is not None:
            self._compare(self._chosen(len(sizes)), sizes, numbers, top)
            return
        setting = self._setting
        if setting in self._account.settings or not self._account.allows():
            return
        chosen = self._one_of(sizes, struck)
        if chosen:
            started = time.perf_counter()
            self._compare(chosen, sizes, numbers, top)
            self._account.spent += time.perf_counter() - started
            self._account.settings.add(setting)

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
        """What strikes now."""
        return tuple((s.name, *map(str, s.faults)) for s in faults_of(self.model) if s.armed)

    def _one_of(self, sizes: Sequence[int], struck: Tensor | None) -> list[int]:
        """One batch, drawn from those with struck samples; none where there are none."""
        batches: Sequence[int] = range(len(sizes))
        if struck is not None:
            batches = [b for b, part in enumerate(struck.split(list(sizes))) if part.any()]
        if not batches:
            return []
        clock = faults_of(self.model).clock
        drawn = uniform_float(clock.seed, "verify one", self._setting, clock.trial)
        return [batches[int(drawn * len(batches))]]

    def _chosen(self, batches: int) -> list[int]:
        if not self.share:
            return []
        faults = faults_of(self.model)
        clock, struck = faults.clock, [(s.name, *map(str, s.faults)) for s in faults if s.armed]
        return [
            batch
            for batch in range(batches)
            if 100 * uniform_float(clock.seed, "verify", struck, clock.trial, batch) < self.share
        ]


def check_share(share: float | None) -> None:
    """See that a share of the batches is one; None is the default, a few of them.

    Raises:
        ConfigError: it is not a number from 0 to 100.
    """
    if share is None:
        return
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
