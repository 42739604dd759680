"""Evaluate under faults by repeating only the work that the faults change.

The fault-free run keeps activations (`fxfault.evaluation.incremental.golden_run`). A run under
faults starts, for each sample, at the first site that strikes it. Samples that no site strikes keep
their golden predictions. At each place with a kept activation, samples leave the run if they are
golden again and nothing will strike them later: their fault was masked. Struck samples of several
batches are packed together, so that few full batches are run.

The predictions are those of `FullRunner`, bit for bit. If samples cannot leave their batches (see
`fxfault.evaluation.incremental.batch_independence`), batches are run whole, and
`IncrementalRunner.why_full` says why.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxfault.errors import ConfigError
from fxfault.evaluation.full.hits import Hits
from fxfault.evaluation.full.hits_by_batch import HitsByBatch
from fxfault.evaluation.full.judging import Judge, MetricJudge
from fxfault.evaluation.full.model_state import disabled, in_eval_mode, state_of
from fxfault.evaluation.full.predictions import (
    CLASSES,
    OnBatch,
    ShapesDifferError,
    sample_numbers,
)
from fxfault.evaluation.full.runner import FullRunner, Result
from fxfault.evaluation.full.verification import Verification
from fxfault.evaluation.incremental.free_memory import free_memory
from fxfault.evaluation.incremental.golden_run import (
    NO_GRAPH,
    SHAPES,
    GoldenRun,
    first_batch,
    record,
    why_never_incremental,
    why_not_one,
)
from fxfault.evaluation.incremental.packs import Evaluation, KnownHits, find_strikes
from fxfault.evaluation.incremental.replay_trials import NoReplays, record_replays
from fxfault.evaluation.incremental.replays import ReplayRun
from fxfault.passes.segments import split_at_sites
from fxfault.sites.fault_sites import FaultSites, faults_of

if TYPE_CHECKING:
    from fxfault.metrics.metric import Metric

TRACKED = "statistics are tracked, which count over whole batches"
INSTEAD = "evaluate this model with full runs (FullRunner, or --no-incremental of a study)"


def check_memory(cache_memory: int | None) -> None:
    """Check an amount of memory; None is the default.

    Raises:
        ConfigError: it is not a number of bytes.
    """
    if cache_memory is not None and (isinstance(cache_memory, bool) or cache_memory < 0):
        raise ConfigError(f"cache_memory: got {cache_memory!r}, allowed: bytes, 0 and up")


class IncrementalRunner:
    """Gives the predictions of `FullRunner`, and does only the work that faults make necessary.

    >>> import fxfault
    >>> from brevitas.nn import QuantIdentity, QuantReLU
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = DataLoader(TensorDataset(torch.randn(32, 8), torch.zeros(32).long()), batch_size=8)
    >>> net = nn.Sequential(QuantIdentity(), nn.Linear(8, 8), QuantReLU(), nn.Linear(8, 3)).eval()
    >>> settings = {"enabled": True, "apply_during": "eval", "probability": 1.0, "seed": 1}
    >>> model = fxfault.freeze(fxfault.transform(net, settings))
    >>> runner = IncrementalRunner(model, data)
    >>> torch.equal(runner.run().top, FullRunner(model, data).run().top)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str = "cpu",
        cache_memory: int | None = None,
        verify: float | None = 0.0,
        metric: Metric | None = None,
    ) -> None:
        """Take a model and its data; nothing is run yet.

        Args:
            model: what `fxfault.transform` returned, on `device`; a frozen model is faster.
            loader: batches of (inputs, labels), the same in each pass.
            device: the device of the model.
            cache_memory: bytes for activations of the fault-free run, on `device`; default: a
                quarter of the memory that is free at that run. With less, runs repeat more work.
            verify: share of the batches to repeat in full and compare, in percent. None: one batch
                of each setting, as long as that takes little time, see
                `fxfault.evaluation.full.verification`.
            metric: what is measured; by default the accuracy of a classifier. The outputs for all
                data are kept for it, and what the network gives for a struck sample takes the place
                of its golden output, so that the metric sees the same batches as in a full run.

        Raises:
            ConfigError: `cache_memory` or `verify` is out of range.
            SiteError: the model has no fault sites.
        """
        check_memory(cache_memory)
        self.model, self.loader, self.device = model, loader, device
        self.faults: FaultSites = faults_of(model)
        self.judge: Judge = CLASSES
        if metric is not None:
            self.judge = MetricJudge(metric, keeps=True, forward=model.forward)
        self._verification = Verification(
            model, loader, device, self.judge, verify, "incremental", INSTEAD
        )
        self._memory = cache_memory
        self._full = FullRunner(model, loader, device, metric)
        self._golden: GoldenRun | ReplayRun | None = None
        self._why_never: str | None = None
        self._state: list[Any] | None = None

    @property
    def why_full(self) -> str | None:
        """Why a run does more than faults make necessary, as a sentence; None if it does not.

        Known after `golden`. While statistics are tracked, there is always a reason.
        """
        if self._why_never is not None:
            return f"every run is a full one: {self._why_never}"
        if self.faults.statistics is not None:
            return f"every run is a full one: {TRACKED}"
        if self._golden is not None and self._golden.why_whole is not None:
            return f"batches are run whole: {self._golden.why_whole}"
        if self._golden is not None:
            return self._why_of_batches()
        return None

    @property
    def samples_alike(self) -> bool:
        """See `Runner.samples_alike`."""
        return self._golden is not None or self._full.samples_alike

    def _why_of_batches(self) -> str | None:
        """Which selected sites have faults that belong to batches, and why."""
        sites = {
            site.name: lies.why_batch
            for site in self.faults
            if site.selected
            and (lies := site.seen.arrangement) is not None
            and lies.why_batch is not None
        }
        if not sites:
            return None
        name, why = next(iter(sites.items()))
        more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        return (
            f"batches are run whole where {name}{more} is struck: its activation belongs to the "
            f"batch, not to samples ({why})"
        )

    def golden(self, on_batch: OnBatch | None = None) -> Result:
        """See `Runner.golden`."""
        golden = self._golden_run(on_batch)
        if golden is None:
            return self._full.golden(on_batch)
        return golden.result

    def run(self, on_batch: OnBatch | None = None) -> Result:
        """See `Runner.run`."""
        golden = self._golden_run()
        if golden is None or self.faults.statistics is not None:
            return self._full.run(on_batch)
        started = time.perf_counter()
        sizes = golden.result.sizes
        numbers = sample_numbers(self.faults.clock, sizes)
        with in_eval_mode(self.model), torch.no_grad():
            seen = HitsByBatch(self.model)
            hits: Hits = seen
            if isinstance(golden, ReplayRun):
                revision = golden.run(self, numbers, on_batch, seen)
            else:
                struck = find_strikes(self.model, golden, numbers)
                evaluation = Evaluation(self, golden, numbers, struck, on_batch, seen)
                evaluation.run()
                revision = evaluation.revision
                hits = KnownHits(struck, golden.layouts, numbers) if struck.known else seen
            self.faults.check()
            seen.close(numbers, sizes)
            made = revision.result().with_hits(hits)
        self._verification.note(time.perf_counter() - started)
        self._verification.check(made, numbers)
        return made

    def _golden_run(self, on_batch: OnBatch | None = None) -> GoldenRun | ReplayRun | None:
        """The fault-free run, repeated if parameters have changed; None if all runs are full."""
        state = state_of(self.model)
        golden = self._golden
        changed = isinstance(golden, ReplayRun) and not golden.is_current(self.model)
        if self._state == state and not changed:
            return golden
        golden = self._golden = None  # Its memory is free for the new one.
        with in_eval_mode(self.model), torch.no_grad(), disabled(self.faults):
            self._why_never = why_never_incremental(self.model)
            if self._why_never in (None, NO_GRAPH):
                started = time.perf_counter()
                self._golden, self._why_never = self._recorded(on_batch)
                self._verification.note(time.perf_counter() - started)
        self._state = state_of(self.model)
        return self._golden

    def _recorded(
        self, on_batch: OnBatch | None
    ) -> tuple[GoldenRun | ReplayRun | None, str | None]:
        """The fault-free run that trials start from, or None and why they cannot."""
        budget = free_memory(self.device) // 4 if self._memory is None else self._memory
        given = (self.model, self.loader, self.device, budget, on_batch, self.judge)
        several = why_not_one(first_batch(self.judge, self.loader, self.device)) is not None
        try:
            if self._why_never is not None or several or self._is_mostly_python():
                try:
                    return record_replays(*given), None
                except NoReplays as error:
                    if self._why_never is not None or several:
                        return None, str(error)
            found = record(*given)
        except ShapesDifferError:
            return None, SHAPES
        return (None, found) if isinstance(found, str) else (found, None)

    def _is_mostly_python(self) -> bool:
        """Whether kept forwards call most sites, so that the graph can start before few of them."""
        segments = split_at_sites(self.model)
        return 2 * sum(len(s.inside) for s in segments if s.kept) > len(self.faults)
