"""Evaluate by compiled code where that is faster, and by another runner everywhere else.

Predictions are to be the same, and are compared. Compiled code runs the whole network on every
sample and rounds as the network does without it (`fxfault.passes.exact_arithmetic`); it is used
only where its outputs for all data, without faults, are bit for bit those without it. The other
runner may do less (`fxfault.evaluation.incremental.runner`): under every setting of the sites, the
first evaluation is its own. If that takes longer than compiled code needs at least, the same faults
are run by compiled code as well; the predictions are compared, and the faster of the two runs all
further evaluations under that setting, of which `verify` compares a share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fxfault.errors import ConfigError
from fxfault.evaluation.full.predictions import (
    FullRunner,
    OnBatch,
    Predictions,
    Runner,
    disabled,
    in_eval_mode,
    predict,
    recording,
    sample_numbers,
    scores_of,
)
from fxfault.evaluation.full.verification import Verification
from fxfault.passes.compilation import compile
from fxfault.passes.freeze import freeze
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.live_values import SampleRows, equal_samples

_LOGGER = logging.getLogger(__name__)

USED = (
    "compiled: without faults, the outputs for all data are bit for bit those without "
    "torch.compile; it runs where it is faster"
)
INSTEAD = "evaluate this model without compiled code"


class CompiledRunner:
    """Gives the predictions of another runner, some of them by compiled code.

    >>> import fxfault
    >>> from brevitas.nn import QuantIdentity, QuantReLU
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = DataLoader(TensorDataset(torch.randn(32, 8), torch.zeros(32).long()), batch_size=8)
    >>> net = nn.Sequential(QuantIdentity(), nn.Linear(8, 8), QuantReLU(), nn.Linear(8, 3)).eval()
    >>> settings = {"enabled": True, "apply_during": "eval", "probability": 1.0, "seed": 1}
    >>> model = fxfault.freeze(fxfault.transform(net, settings))
    >>> runner = CompiledRunner(FullRunner(model, data), backend="aot_eager")
    >>> golden = runner.golden()
    >>> runner.why_not is None
    True
    >>> torch.equal(runner.run().top, FullRunner(model, data).run().top)
    True

    Attributes:
        model: what `fxfault.transform` returned, frozen.
        faults: its sites.
        why_not: why no compiled code is used, as a sentence; None: it is. Known after `golden`.
    """

    def __init__(
        self,
        runner: Runner,
        verify: float | None = 0.0,
        say: Callable[[str], object] = _LOGGER.info,
        backend: str = "inductor",
    ) -> None:
        """Take another runner; nothing is run or compiled yet.

        Args:
            runner: what else there is; with a frozen model.
            verify: run this share of the batches of compiled evaluations without compiled code,
                too, and compare; in percent. `runner` verifies its own. None: a few, see
                `fxfault.evaluation.full.verification`.
            say: called with a sentence when something was compiled, or was not, or is no more
                used.
            backend: of torch.compile; all but Inductor are for tests.

        Raises:
            ConfigError: the model is not frozen, or `verify` is out of its range.
        """
        self.runner, self.say = runner, say
        self.model, self.loader, self.device = runner.model, runner.loader, runner.device
        if freeze(self.model) is not self.model:
            raise ConfigError("compile: the model is not frozen; give fxfault.freeze(model)")
        self.faults: FaultSites = faults_of(self.model)
        self.why_not: str | None = None
        self._full = FullRunner(self.model, self.loader, self.device)
        self._verification = Verification(
            self.model, self.loader, self.device, verify, "compiled", INSTEAD
        )
        self._backend = backend
        self._compilation: Any = None
        self._golden: Predictions | None = None
        self._sizes: list[int] | None = None
        self._least_seconds = 0.0
        self._is_faster: dict[tuple[Any, ...], bool] = {}

    @property
    def why_full(self) -> str | None:
        """What the other runner says of the kind, see `IncrementalRunner.why_full`; or None."""
        return getattr(self.runner, "why_full", None)

    def golden(self, on_batch: OnBatch | None = None) -> Predictions:
        """See `Runner.golden`; compiled code is made and tried the first time.

        Raises:
            DataError: there is no sample, or the model returns no scores.
        """
        golden = self.runner.golden(on_batch)
        if golden is not self._golden:  # The first, or parameters have changed.
            self._golden = golden
            self._try()
        return golden

    def run(self, on_batch: OnBatch | None = None) -> Predictions:
        """See `Runner.run`.

        Raises:
            DataError: there is no sample, or the model returns no scores.
            FxFaultError: a run of a batch without compiled code gave other predictions (`verify`).
            SiteError: values that were hit are no codes.
        """
        self.golden()
        if self.why_not is not None:
            return self.runner.run(on_batch)
        setting = self._setting()
        if setting not in self._is_faster:
            return self._run_first(setting, on_batch)
        if not self._is_faster[setting]:
            return self.runner.run(on_batch)
        started = time.perf_counter()
        made = self._run_compiled(on_batch)
        self._verification.note(time.perf_counter() - started)
        if self._verification.share != 0:
            if self._sizes is None:
                self._sizes = [len(labels) for _, labels in self.loader]
            numbers = sample_numbers(self.faults.clock, self._sizes)
            self._verification.check(self._sizes, numbers, made.top, made.struck)
        return made

    # -- compiling ----------------------------------------------------------------------

    def _try(self) -> None:
        """Compile, once; see whether the outputs are the same, and how long they take."""
        if self._compilation is None:
            inputs = next(inputs for inputs, _ in self.loader).to(self.device)
            self._compilation = compile(self.model, inputs, backend=self._backend, exact=True)
            self._compilation.switch(False)
        self._is_faster.clear()
        self.why_not = self._why_not()
        self.say(self.why_not or USED)
        if self.why_not is None:
            started = time.perf_counter()
            with self._compiled_code(), disabled(self.faults):
                predict(self.model, self.loader, self.device, faults=self.faults)
            self._least_seconds = time.perf_counter() - started

    def _why_not(self) -> str | None:
        if not self._compilation.compiled:
            return str(self._compilation)
        other, samples = self._other_outputs()
        if other == 0:
            return None
        return (
            f"compiled code is not used: without faults, {other} of {samples} samples get other "
            "outputs than without torch.compile, which rounds in another way"
        )

    def _other_outputs(self) -> tuple[int, int]:
        """Samples whose outputs differ in any bit, without faults; and all samples."""
        other = samples = 0
        with in_eval_mode(self.model), torch.no_grad(), disabled(self.faults):
            for images, labels in self.loader:
                inputs, size = images.to(self.device), len(labels)
                with self.faults.samples(torch.arange(size)):
                    expected = scores_of(self.model(inputs), size)
                    with self._compiled_code():
                        found = scores_of(self.model(inputs), size)
                other += int((~equal_samples(found, expected, SampleRows(0, 1))).sum())
                samples += size
        return other, samples

    @contextmanager
    def _compiled_code(self) -> Iterator[None]:
        self._compilation.switch(True)
        try:
            yield
        finally:
            self._compilation.switch(False)

    # -- running ------------------------------------------------------------------------

    def _setting(self) -> tuple[Any, ...]:
        """What the cost of an evaluation depends on."""
        struck = [(site.index, *map(str, site.faults)) for site in self.faults if site.armed]
        return (self.faults.statistics is None, *struck)

    def _run_first(self, setting: tuple[Any, ...], on_batch: OnBatch | None) -> Predictions:
        """Run by the other runner and, where that is slow, compare with compiled code."""
        started = time.perf_counter()
        expected = self.runner.run(on_batch)
        seconds = time.perf_counter() - started
        if seconds <= self._least_seconds:
            self._is_faster[setting] = False
            return expected
        with recording(self.faults, None):  # This trial is counted already.
            started = time.perf_counter()
            found = self._run_compiled(None)
            self._is_faster[setting] = time.perf_counter() - started < seconds
        other = int((found.top != expected.top).any(1).sum())
        if other:
            self.why_not = (
                f"compiled code is not used any more: under the faults of trial "
                f"{self.faults.trial} it predicts other classes for {other} of "
                f"{len(expected.labels)} samples"
            )
            self.say(self.why_not)
        return expected

    def _run_compiled(self, on_batch: OnBatch | None) -> Predictions:
        with self._compiled_code():
            return self._full.run(on_batch)
