"""The metric of a network under faults: for each probability, and for each site alone.

By default it is the accuracy. Rates are in percent. One evaluation of the whole data under one set
of faults is a trial; trial k draws its faults from `model.faults.reset(trial=k)`, so that it is the
same whenever and wherever it runs. The `std` of a result is the sample standard deviation (divisor
n - 1) of the values of its trials: how far the metric moves from one draw of faults to the next on
the same data. It is neither the standard error of the mean nor the uncertainty due to the size of
the data set, and it is 0 for one trial.

Generators yield results one by one, so that a caller may show each and stop at any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.estimates.crossed import Changes
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.sharing import samples_share_faults
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.evaluation.full.predictions import OnBatch
from fxfault.evaluation.full.runner import Runner
from fxfault.evaluation.trials import Trials
from fxfault.faults.fault_models import get_fault_model, label_of
from fxfault.metrics.facts import ACCURACY, SAMPLE
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.site import FaultSite

if TYPE_CHECKING:
    from fxfault.campaign.estimates.ranking import RankedSite
    from fxfault.campaign.estimates.summary import Summary, Table


def estimate(results: Sequence[CellResult], confidence: float = 95.0) -> Summary:
    """Return all estimates of some results with their intervals, as a campaign reports them.

    The metric has Student's t interval over trials, rates have Wilson's. This needs scipy
    (`fxfault[cli]`).

    Args:
        results: results of different cells.
        confidence: confidence of the intervals, in percent.

    Raises:
        ConfigError: scipy is not installed.
    """
    return _estimate(results, confidence)[1]


def rank(results: Sequence[CellResult], confidence: float = 95.0) -> list[RankedSite]:
    """Rank sites that were struck alone by what their faults cost, the most vulnerable first.

    Sites with equal costs share a rank and keep the order of the results; the interval of a rank
    spans all places that share it (`fxfault.campaign.estimates.ranking`). This needs scipy
    (`fxfault[cli]`).

    Args:
        results: results of `FaultEvaluation.per_layer`.
        confidence: confidence of the intervals, in percent.

    Raises:
        ConfigError: scipy is not installed.
    """
    from fxfault.campaign.estimates.ranking import rank_sites

    return rank_sites(*_estimate(results, confidence), fewest=1)


def _estimate(results: Sequence[CellResult], confidence: float) -> tuple[Table, Summary]:
    from fxfault.campaign.estimates.summary import summarise, table_of

    cells = [result.cell for result in results]
    table = table_of([row for result in results for row in result.rows], cells)
    shared = [result.shared for result in results]
    metric = results[0].metric if results else ACCURACY
    return table, summarise(table, cells, shared, confidence, metric)


def with_probability(config: FaultInjectionConfig, probability: float) -> FaultInjectionConfig:
    """Replace the probability (in percent) or the number of faults by this probability."""
    return dataclasses.replace(config, probability=float(probability), num_faults=None)


def with_num_faults(config: FaultInjectionConfig, num_faults: int) -> FaultInjectionConfig:
    """Replace the probability by this number of faults, of each sample or draw of weights."""
    default = FaultInjectionConfig().probability
    return dataclasses.replace(config, num_faults=num_faults, probability=default)


@dataclass(frozen=True)
class FaultEvaluation:
    """Evaluate a transformed model under faults.

    This is a small campaign, with a cell for each result: its trials are those of a study with the
    same settings (`fxfault.evaluation.trials`), kept in memory instead of in a store.

    The runner decides how to run the model: in full, or incrementally
    (`fxfault.evaluation.incremental.runner`), with the same results.

    >>> import fxfault, torch
    >>> from brevitas.nn import QuantReLU
    >>> from fxfault.evaluation import FullRunner
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = TensorDataset(torch.eye(8).repeat(8, 1), torch.arange(8).repeat(8))
    >>> model = fxfault.transform(
    ...     nn.Sequential(QuantReLU(bit_width=4, scaling_impl_type="const", max_val=1.0)),
    ...     {"enabled": True, "apply_during": "eval", "injection_type": "msb_flip", "seed": 1},
    ... )
    >>> evaluation = FaultEvaluation(FullRunner(model, DataLoader(data, batch_size=16)), num_runs=3)
    >>> evaluation.baseline()
    100.0
    >>> [result.mean for result in evaluation.sweep([0, 100])]
    [100.0, 0.0]

    The faults follow from the configuration that the model was transformed with and from the
    arguments here; settings made at single sites by hand do not count. A generator sets the sites
    as it needs them. When it ends, is closed or raises, it restores the faults and selection of
    every site, the trial and the statistics.

    Attributes:
        runner: the runner, which runs the model on the data.
        num_runs: number of trials for each result, at least 1.
        track_statistics: measure what is injected, site by site.
        on_batch: called with the number of samples done since the last call.
    """

    runner: Runner
    num_runs: int = 1
    track_statistics: bool = False
    on_batch: OnBatch | None = None

    def __post_init__(self) -> None:
        if isinstance(self.num_runs, bool) or self.num_runs < 1:
            raise ConfigError(f"num_runs: got {self.num_runs!r}, allowed: an integer of at least 1")

    @property
    def faults(self) -> FaultSites:
        """The sites of the model."""
        return faults_of(self.runner.model)

    def baseline(self) -> float:
        """The metric without faults; by default the accuracy, in percent."""
        return float(self.runner.golden(self.on_batch).value)

    def check(
        self, configs: Iterable[FaultInjectionConfig], *, each_alone: bool = False
    ) -> tuple[str, ...]:
        """Check before any trial that some configurations fit the model.

        Args:
            configs: as for `evaluate`.
            each_alone: check each site alone, too, as `per_layer` strikes them; always done for
                a model in mode `layer`.

        Returns:
            Names of sites that no forward of the evaluation reaches.

        Raises:
            ConfigError: as `evaluate`.
            SiteError: as `evaluate`.
        """
        with self._trials() as trials:
            for config in configs:
                trials.set(config)
                if each_alone or self.faults.config.mode == "layer":
                    for index in self.faults.matching(config.layers):
                        if self.faults[index].name not in trials.never_called:
                            trials.set(config, [self.faults[index].name])
            return trials.never_called

    def evaluate(self, configs: Iterable[FaultInjectionConfig]) -> Iterator[CellResult]:
        """Evaluate some configurations, one after the other.

        Args:
            configs: variants of the model's configuration (`faults.config`) with another rate or
                other faults; their schedules and seeds do not count.

        Raises:
            ConfigError: a configuration is not allowed, or `apply_during` is `train`, so that no
                fault would strike.
            SiteError: a configuration does not fit the sites, or no site that it strikes is ever
                called.
        """
        with self._trials() as trials:
            for config in configs:
                yield self._result(trials, config)

    def sweep(self, probabilities: Iterable[float]) -> Iterator[CellResult]:
        """Evaluate at each probability in turn, with all selected sites struck together.

        Args:
            probabilities: probabilities in percent.

        Raises:
            ConfigError: a probability is not within 0 and 100, or as `evaluate`.
        """
        config = self.faults.config
        return self.evaluate(with_probability(config, value) for value in probabilities)

    def per_layer(
        self, config: FaultInjectionConfig, layers: Sequence[int] | None = None
    ) -> Iterator[CellResult]:
        """Evaluate with each site struck alone, in the order of execution; see `rank`.

        Sites that are never called are left out (`check` names them).

        Args:
            config: as for `evaluate`.
            layers: indices of the sites; default: those that the configuration selects.

        Raises:
            ConfigError: the configuration has `faults`, whose entries have layers of their own;
                or as `evaluate`.
            SiteError: there is no site with such an index, or none of them is ever called.
        """
        if config.faults is not None:
            raise ConfigError(
                "faults: each entry has layers of its own, so that no site can be struck alone; "
                "leave them out, or evaluate them as they are"
            )
        faults = self.faults
        chosen = faults.matching(config.layers) if layers is None else layers
        sites = [faults[index] for index in chosen]
        with self._trials() as trials:
            called = [site for site in sites if site.name not in trials.never_called]
            for site in called or sites:  # If none is called, the first raises.
                yield self._result(trials, config, site)

    @contextmanager
    def _trials(self) -> Iterator[Trials]:
        with _settings_restored(self.faults):
            if self.faults.clock.apply_during == "train":
                raise ConfigError(
                    "apply_during: got 'train', under which no fault strikes in an evaluation; "
                    "transform the model with 'eval' or 'both'"
                )
            self.faults.enabled = True
            self.faults.set_statistics(None)
            yield Trials(self.runner, self.on_batch)

    def _result(
        self, trials: Trials, config: FaultInjectionConfig, alone: FaultSite | None = None
    ) -> CellResult:
        faults = self.faults
        cell = _cell_of(config, faults, alone)
        trials.set(config, None if alone is None else [alone.name])
        recorded = faults.new_statistics() if self.track_statistics else None
        rows, struck, changes = [], [], []
        facts = trials.golden.facts
        for number in range(self.num_runs):
            rows.append(trials.run(cell.key, number))
            if facts.each == SAMPLE and trials.last is not None:
                changes.append((trials.last.records - trials.golden.records).numpy())
            struck.append([site.index for site in faults if site.selected])
        drawn = faults.config.mode == "layer" and alone is None
        return CellResult(
            cell=cell,
            rows=tuple(rows),
            index=None if alone is None else alone.index,
            run_layers=tuple(indices[0] for indices in struck) if drawn else None,
            statistics=recorded,
            shared=samples_share_faults(config),
            metric=facts,
            changes=Changes.of(changes) if changes else None,
        )


def _cell_of(config: FaultInjectionConfig, faults: FaultSites, alone: FaultSite | None) -> Cell:
    """The cell that a study would have for a configuration."""
    entry = config.entries()[0]
    if config.faults is not None:
        name = " + ".join(map(str, config.entries()))
        # The entry's text, as a fault model may be an object without a name.
        own = [{"fault": str(entry), "layers": entry.layers} for entry in config.entries()]
        return Cell.of(faults={name: own})
    layers = None
    if alone is not None:
        layers = [alone.name]
    elif config.layers is not None:
        layers = [faults[index].name for index in faults.matching(config.layers)]
    return Cell.of(
        injection_type=label_of(get_fault_model(entry.injection_type)),
        probability=entry.probability,
        num_faults=entry.num_faults,
        bit=entry.bit,
        memory=config.memory,
        layers=layers,
    )


@contextmanager
def _settings_restored(faults: FaultSites) -> Iterator[None]:
    enabled, trial, recorded = faults.enabled, faults.trial, faults.statistics
    settings = [(site, site.setting, site.selected) for site in faults]
    try:
        yield
    finally:
        faults.reset(trial=trial)
        faults.enabled = enabled
        faults.set_statistics(recorded)
        for site, setting, selected in settings:
            site.setting = setting
            site.selected = selected
