"""Evaluate by compiled code if faults strike most of the network, and by another runner if not.

Compiled code runs the whole network on every sample, and rounds as the network does without it
(`fxfault.passes.exact_arithmetic`). It is used only if its outputs for all data, without faults,
are bit for bit those without it; `verify` compares predictions under faults. The other runner may
do less (`fxfault.evaluation.incremental.runner`): it repeats, for each struck sample, only what
comes after the first site that strikes it.

Which of the two evaluates follows from the draws of the faults alone, never from a clock, so that
two runs of a study do the same. A struck sample passes a share of the sites: those from the first
one that strikes it to the last. Compiled code evaluates if this share, averaged over all samples,
is at least `LEAST_SHARE`, and whenever the other runner would run all samples or whole batches.

At worst this costs a compiled pass over all data where the other runner would have repeated
little: nearly all of the network's work may lie before the first quarter of its sites, or faults
may be masked early. Under this share, compiled code is never used, even if it were the faster of
the two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fxfault.errors import ConfigError
from fxfault.evaluation.full.judging import NoRowsError
from fxfault.evaluation.full.model_state import disabled, in_eval_mode
from fxfault.evaluation.full.predictions import OnBatch, sample_numbers
from fxfault.evaluation.full.runner import FullRunner, Result, Runner
from fxfault.evaluation.full.verification import Verification
from fxfault.faults.layouts import Layout
from fxfault.passes.compilation import Compilation, compile
from fxfault.passes.freeze import freeze
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.live_values import SampleRows, equal_samples
from fxfault.sites.measuring import run_without_faults
from fxfault.strike.draws import samples_hit

_LOGGER = logging.getLogger(__name__)

LEAST_SHARE = 0.75
USED = (
    "compiled: without faults, the outputs for all data are bit for bit those without "
    "torch.compile; it runs where faults strike most of the network"
)
UNUSED = "compiled code is not used"
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
        why_not: why compiled code is never used, as a sentence; None if it is. Known after
            `golden`.
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
            runner: the other runner, with a frozen model.
            verify: share of the batches of compiled evaluations to repeat without compiled code
                and compare, in percent; `runner` verifies its own. None: a few, see
                `fxfault.evaluation.full.verification`.
            say: called with a sentence when something was compiled, or could not be.
            backend: the backend of torch.compile; all but Inductor are for tests.

        Raises:
            ConfigError: the model is not frozen, or `verify` is not within 0 and 100.
        """
        self.runner, self.say = runner, say
        self.model, self.loader, self.device = runner.model, runner.loader, runner.device
        self.judge = runner.judge
        if freeze(self.model) is not self.model:
            raise ConfigError("compile: the model is not frozen; give fxfault.freeze(model)")
        self.faults: FaultSites = faults_of(self.model)
        self.why_not: str | None = None
        data = self.model, self.loader, self.device
        metric = self.judge.metric
        self._full = FullRunner(*data, metric, keep_outputs=metric is not None and metric.collects)
        self._verification = Verification(*data, self.judge, verify, "compiled", INSTEAD)
        self._backend = backend
        self._compilation: Compilation | None = None
        self._golden: Result | None = None

    @property
    def why_full(self) -> str | None:
        """See `Runner.why_full`; the other runner's reason."""
        return self.runner.why_full

    @property
    def samples_alike(self) -> bool:
        """See `Runner.samples_alike`."""
        return self.runner.samples_alike

    def golden(self, on_batch: OnBatch | None = None) -> Result:
        """See `Runner.golden`; the first call compiles."""
        golden = self.runner.golden(on_batch)
        if golden is not self._golden:  # The first call, or parameters have changed.
            self._golden = golden
            self.why_not = self._try(golden.samples)
            self.say(self.why_not or USED)
        return golden

    def run(self, on_batch: OnBatch | None = None) -> Result:
        """See `Runner.run`."""
        numbers = sample_numbers(self.faults.clock, self.golden().sizes)
        if self.why_not is not None or not self._is_worthwhile(numbers):
            return self.runner.run(on_batch)
        started = time.perf_counter()
        with self._compiled_code():
            made = self._full.run(on_batch)
        self._verification.note(time.perf_counter() - started)
        self._verification.check(made, numbers)
        return made

    def _is_worthwhile(self, numbers: torch.Tensor) -> bool:
        """Whether compiled code evaluates under the faults that are set now; see the module."""
        if isinstance(self.runner, FullRunner) or self.why_full is not None:
            return True
        first = torch.full(numbers.shape, len(self.faults))
        with in_eval_mode(self.model):
            for site in self.faults:
                if not (site.armed and site.strikes and site.elements):
                    continue
                if site.counts_calls:  # The other runner runs whole batches.
                    return True
                hit = samples_hit(site, numbers, Layout(1, 1, (site.elements,)))
                first[hit] = first[hit].clamp(max=site.index)
        passed = len(self.faults) - first
        return bool(passed.sum() >= LEAST_SHARE * len(self.faults) * len(numbers))

    def _try(self, samples: int) -> str | None:
        """Compile, once, and return why the code is not used, as a sentence; None if it is."""
        if not self.samples_alike:
            return f"{UNUSED}: the inputs of its samples differ in shape from batch to batch"
        first = self.judge.take(next(iter(self.loader)), 0).to(self.device)
        if first.keywords:
            return f"{UNUSED}: the network has inputs by keyword ({', '.join(first.keywords)})"
        inputs = first.inputs
        if self._compilation is None:
            self._compilation = compile(self.model, *inputs, backend=self._backend, exact=True)
            self._compilation.switch(False)
        if not self._compilation.compiled:
            return str(self._compilation)
        run_without_faults(self.faults, inputs)  # Shows how many elements each site has.
        try:
            other = self._other_outputs()
        except NoRowsError:
            return f"{UNUSED}: the outputs are not tensors with a row for each sample"
        if other == 0:
            return None
        return (
            f"{UNUSED}: without faults, {other} of {samples} samples get other "
            "outputs than without torch.compile, which rounds in another way"
        )

    def _other_outputs(self) -> int:
        """The number of samples whose outputs without faults differ in any bit."""
        other = 0
        with in_eval_mode(self.model), torch.no_grad(), disabled(self.faults):
            for given in self.loader:
                batch = self.judge.take(given, 0).to(self.device)
                size, differs = batch.samples, torch.zeros(batch.samples, dtype=torch.bool)
                with self.faults.samples(torch.arange(size)):
                    expected = self.judge.rows(self.model(*batch.inputs), size)
                    with self._compiled_code():
                        found = self.judge.rows(self.model(*batch.inputs), size)
                for row, same in zip(found, expected, strict=True):
                    differs |= ~equal_samples(row, same, SampleRows(0, 1)).cpu()
                other += int(differs.sum())
        return other

    @contextmanager
    def _compiled_code(self) -> Iterator[None]:
        assert self._compilation is not None
        self._compilation.switch(True)
        try:
            yield
        finally:
            self._compilation.switch(False)
