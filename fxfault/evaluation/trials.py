"""Run one trial: set the sites as a cell asks, evaluate the data, and count the effects.

Studies (`fxfault.campaign.workers.trial_runner`) and small evaluations
(`fxfault.campaign.fault_evaluation`) share this code, so that the same settings give the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from fxfault.errors import FOREIGN, SiteError
from fxfault.evaluation.exposure import Exposure
from fxfault.evaluation.full.model_state import in_eval_mode
from fxfault.evaluation.rows import TrialRow, measure
from fxfault.foreign import is_out_of_memory, told
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.evaluation.full.predictions import OnBatch
    from fxfault.evaluation.full.runner import Result, Runner


class Trials:
    """Runs trials of a transformed model on one data set.

    Changes that `set` makes to the sites stay; a caller who wants the old settings back must keep
    them.

    Attributes:
        faults: the sites of the model.
        golden: the result without faults.
        exposure: counts elements and hits.
        last: the result of the last trial; None before the first.
    """

    def __init__(
        self,
        runner: Runner,
        on_batch: OnBatch | None = None,
        named: Callable[[str], str] = str,
    ) -> None:
        """Evaluate without faults, if that was not done yet, and measure the sites.

        Args:
            runner: a runner of a model with sites that strike in an evaluation.
            on_batch: called with the number of samples that a trial has done since the last call.
            named: turns the key of a cell into words for messages.
        """
        self.runner, self.on_batch, self._named = runner, on_batch, named
        self.faults = faults_of(runner.model)
        self.golden = runner.golden()  # Kept, as each call looks at all parameters.
        batches = (runner.judge.take(given, 0).to(runner.device) for given in runner.loader)
        self.exposure = Exposure(
            self.faults, next(batches), self.golden.samples, batches, runner.samples_alike
        )
        self.last: Result | None = None
        self._sites: frozenset[str] | None = None

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of sites that no forward reaches, where no fault can strike."""
        return self.exposure.never_called

    def set(self, config: FaultInjectionConfig, sites: Iterable[str] | None = None) -> None:
        """Set the faults of the sites.

        Args:
            config: fault models, rates and layers; its schedule and seed do not count.
            sites: names of the sites to strike; default: those that `config.layers` selects, of
                which a model in mode `layer` strikes one in each trial.

        Raises:
            FxFaultError: a site or a fault model does not exist, they do not fit each other, or
                none of the sites is ever called.
        """
        self._sites = None if sites is None else frozenset(sites)
        self._check_called(config)
        self.faults.select(config.layers)
        self._keep_to_sites()
        self.faults.set_faults(config)
        self.faults.check_words()
        with in_eval_mode(self.runner.model):
            self.exposure.check()

    def run(self, cell: str, trial: int) -> TrialRow:
        """Run one trial.

        Args:
            cell: key of the cell, for the row.
            trial: number of the trial, from which its faults are drawn.

        Raises:
            FxFaultError: the model fails, or cannot be struck as it was set; errors of the user's
                code are quoted, with the trial.
        """
        try:
            return self._run(cell, trial)
        except FOREIGN as error:
            named = told(error, f"trial {trial} of {self._named(cell)}")
            on_device = is_out_of_memory(error) and not isinstance(error, MemoryError)
            if named is error or on_device:  # Callers know what to do about memory.
                raise
            raise named from error

    def _run(self, cell: str, trial: int) -> TrialRow:
        started = time.perf_counter()
        self.faults.reset(trial=trial)
        self._keep_to_sites()
        with in_eval_mode(self.runner.model):
            faulty, hits, elements = self.exposure.measured(lambda: self.runner.run(self.on_batch))
        self.last = faulty
        row = measure(
            self.golden, faulty, cell=cell, trial=trial, faults=hits, elements=elements, seconds=0.0
        )
        return replace(row, seconds=time.perf_counter() - started)

    def _keep_to_sites(self) -> None:
        # Not by `select`, which in mode `layer` takes the site of the configuration.
        if self._sites is not None:
            for site in self.faults:
                site.selected = site.name in self._sites
        elif self.never_called and self.faults.config.mode == "layer":
            self.faults.select(self.faults.config.layers, without=self.never_called)

    def _check_called(self, config: FaultInjectionConfig) -> None:
        """Refuse a cell of sites that are never called: it would seem to withstand all faults.

        Raises:
            SiteError: none of the sites to strike is ever called.
        """
        if not self.never_called:
            return
        sites = [self.faults[index] for index in self.faults.matching(config.layers)]
        fixed = self.faults.config.injection_layer
        if self._sites is not None:
            sites = [site for site in self.faults if site.name in self._sites]
        elif self.faults.config.mode == "layer" and fixed >= 0:
            sites = [site for site in sites if site.index == fixed] or sites
        if all(site.name in self.never_called for site in sites):
            called = [name for name in self.faults.names if name not in self.never_called]
            raise SiteError(
                f"never called in this evaluation: {', '.join(site.name for site in sites)}; no "
                "fault can strike there, so "
                + (f"select others: {', '.join(called[:8])}" if called else "there is no result")
            )
