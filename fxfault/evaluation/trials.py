"""One trial: the sites are set to what a cell asks for, the data is evaluated, effects are counted.

Studies (`fxfault.campaign.workers.trial_runner`) and small evaluations
(`fxfault.campaign.fault_evaluation`) both run here, so that the same settings give the same rows in
either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from fxfault.errors import FOREIGN, SiteError
from fxfault.evaluation.exposure import Exposure
from fxfault.evaluation.full.predictions import in_eval_mode
from fxfault.evaluation.rows import TrialRow, measure
from fxfault.foreign import is_out_of_memory, told
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.evaluation.full.predictions import OnBatch, Runner


class Trials:
    """Runs trials of a transformed model on one set of data.

    What `set` changes at the sites stays; who wants it back keeps it.

    Attributes:
        runner: runs the model on the data.
        faults: its sites.
        golden: predictions without faults.
        exposure: counts elements and hits.
    """

    def __init__(
        self,
        runner: Runner,
        on_batch: OnBatch | None = None,
        named: Callable[[str], str] = str,
    ) -> None:
        """Evaluate without faults, if that was not done yet, and see what each site has.

        Args:
            runner: with a model whose sites strike in an evaluation.
            on_batch: called with a number of samples whenever a trial has done some.
            named: gives the words for a cell's key in messages.
        """
        self.runner, self.on_batch, self._named = runner, on_batch, named
        self.faults = faults_of(runner.model)
        self.golden = runner.golden()  # Kept: asking the runner looks at all parameters.
        batches = (inputs.to(runner.device) for inputs, _ in runner.loader)
        samples = len(self.golden.labels)
        self.exposure = Exposure(self.faults, next(batches), samples, batches)
        self._sites: frozenset[str] | None = None

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of sites that no forward reaches, so that no fault can strike there."""
        return self.exposure.never_called

    def set(self, config: FaultInjectionConfig, sites: Iterable[str] | None = None) -> None:
        """Let the sites be struck as a configuration says.

        Args:
            config: fault models, rates and layers; what it says of times and seeds does not count.
            sites: names of those that are struck; default: what `config.layers` selects, of which
                a model in mode `layer` has one taken out for each trial.

        Raises:
            FxFaultError: a site or a fault model is not there, or they do not fit each other, or
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
            cell: key that its row is to have.
            trial: its number, which its faults are drawn from.

        Raises:
            FxFaultError: the model fails, or cannot be struck as it was set; what code of somebody
                else's raised is quoted, with the trial.
        """
        try:
            return self._run(cell, trial)
        except FOREIGN as error:
            named = told(error, f"trial {trial} of {self._named(cell)}")
            on_device = is_out_of_memory(error) and not isinstance(error, MemoryError)
            if named is error or on_device:  # Callers know what to lower.
                raise
            raise named from error

    def _run(self, cell: str, trial: int) -> TrialRow:
        started = time.perf_counter()
        self.faults.reset(trial=trial)
        self._keep_to_sites()
        with in_eval_mode(self.runner.model):
            faulty, hits, elements = self.exposure.measured(lambda: self.runner.run(self.on_batch))
        row = measure(
            self.golden, faulty, cell=cell, trial=trial, faults=hits, elements=elements, seconds=0.0
        )
        return replace(row, seconds=time.perf_counter() - started)

    def _keep_to_sites(self) -> None:
        # Not `select`, which in mode `layer` takes the site of the configuration.
        if self._sites is not None:
            for site in self.faults:
                site.selected = site.name in self._sites
        elif self.never_called and self.faults.config.mode == "layer":
            self.faults.select(self.faults.config.layers, without=self.never_called)

    def _check_called(self, config: FaultInjectionConfig) -> None:
        """Refuse to strike where nothing ever comes by: it would be found to withstand all faults.

        Raises:
            SiteError: no site that is to be struck is ever called.
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
