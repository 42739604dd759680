"""Accuracy of a network under faults: for each probability, and for each site alone.

Everything is in percent. One evaluation of the whole data under one set of faults is a trial;
trial k draws its faults from `model.faults.reset(trial=k)`, so that it is the same whenever and
wherever it is run. The `std` of a result is the sample standard deviation (divisor n - 1) of the
accuracies of its trials: how far the accuracy moves from one draw of faults to the next on the same
data. It is neither the standard error of the mean nor the uncertainty that comes from the size of
the data set, and it is 0 where there is one trial.

Results come out of generators one by one, so that a caller may show each and stop at any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxfault.campaign.rows import TrialRow
from fxfault.campaign.study import Cell, samples_share_faults
from fxfault.campaign.trials import Trials
from fxfault.config import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.fault_models import get_fault_model, label_of
from fxfault.predictions import OnBatch, Runner, predict
from fxfault.site import FaultSite
from fxfault.sites import FaultSites, faults_of
from fxfault.statistics import FaultStatistics

if TYPE_CHECKING:
    from fxfault.campaign.analysis import Summary, Table
    from fxfault.campaign.ranking import RankedSite


def accuracy(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    on_batch: OnBatch | None = None,
) -> float:
    """Give the share of samples whose highest score is that of their label, in percent.

    See `fxfault.predictions.predict` for what the model and the loader may give.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    >>> accuracy(nn.Identity(), DataLoader(TensorDataset(scores, labels)))
    75.0

    Args:
        model: gives scores, shape (N, classes).
        loader: gives batches of (inputs, labels); labels are integers, shape (N,) or (N, 1).
        device: where the model is.
        on_batch: called after each batch.

    Raises:
        DataError: there is no sample, the scores have another shape, or the labels are none.
    """
    return predict(model, loader, device, on_batch).accuracy


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What the trials of one cell found; all figures in percent.

    >>> counts = {"samples": 50, "golden_correct": 45, "sdc": 9, "critical_sdc": 7, "top5": None}
    >>> seen = {"faults": 60, "elements": 1200, "struck": 30, "masked": 21, "seconds": 0.1}
    >>> cell = Cell.of(injection_type="random", probability=5.0)
    >>> rows = [
    ...     TrialRow(cell=cell.key, trial=k, correct=correct, **counts, **seen)
    ...     for k, correct in enumerate([40, 42])
    ... ]
    >>> result = CellResult(cell=cell, rows=tuple(rows))
    >>> result.runs, result.mean, round(result.std, 3), result.degradation, result.injection_rate
    ((80.0, 84.0), 82.0, 2.828, 8.0, 5.0)

    Attributes:
        cell: what was struck, and how.
        rows: of its trials, trial 0 first.
        index: of the site, where one was struck alone.
        run_layers: the one site of each trial, by index, where `mode: layer` names one.
        statistics: what was injected in all trials together; None if nobody asked.
        shared: whether the samples of a trial have something of their faults in common.
    """

    cell: Cell
    rows: tuple[TrialRow, ...]
    index: int | None = None
    run_layers: tuple[int, ...] | None = None
    statistics: FaultStatistics | None = field(default=None, compare=False)
    shared: bool = False

    @property
    def runs(self) -> tuple[float, ...]:
        """Accuracy of each trial."""
        return tuple(100.0 * row.correct / row.samples for row in self.rows)

    @property
    def baseline(self) -> float:
        """Accuracy without faults."""
        return self._percent("golden_correct", "samples")

    @property
    def mean(self) -> float:
        """Mean accuracy of the trials."""
        return self._percent("correct", "samples")

    @property
    def std(self) -> float:
        """Sample standard deviation of the trials' accuracies (see the module); 0 for one."""
        return stdev(self.runs) if len(self.runs) > 1 else 0.0

    @property
    def degradation(self) -> float:
        """What the faults cost: baseline minus mean, in percentage points."""
        return self.baseline - self.mean

    @property
    def injection_rate(self) -> float:
        """Elements that were hit, of all where faults could strike; 0 without any."""
        return self._percent("faults", "elements")

    def total(self, count: str) -> int:
        """Add up a count of the trials: a field of `TrialRow`."""
        return sum(getattr(row, count) for row in self.rows)

    def _percent(self, part: str, whole: str) -> float:
        return 100.0 * self.total(part) / (self.total(whole) or 1)


def estimate(results: Sequence[CellResult], confidence: float = 95.0) -> Summary:
    """Give all estimates of some results with their intervals, as a campaign has them.

    Accuracy has Student's interval over trials, rates have Wilson's; it needs scipy
    (`fxfault[cli]`).

    Args:
        results: each of a cell of its own.
        confidence: of the intervals, in percent.

    Raises:
        ConfigError: scipy is not installed.
    """
    return _estimate(results, confidence)[1]


def rank(results: Sequence[CellResult], confidence: float = 95.0) -> list[RankedSite]:
    """Order sites that were struck alone by what their faults cost, the most vulnerable first.

    Sites that cost the same share a rank and stand in the order of the results; the interval of a
    rank spans all that share it (`fxfault.campaign.ranking`). It needs scipy (`fxfault[cli]`).

    Args:
        results: of `FaultEvaluation.per_layer`.
        confidence: of the intervals, in percent.

    Raises:
        ConfigError: scipy is not installed.
    """
    from fxfault.campaign.ranking import rank_sites

    return rank_sites(*_estimate(results, confidence), fewest=1)


def _estimate(results: Sequence[CellResult], confidence: float) -> tuple[Table, Summary]:
    from fxfault.campaign.analysis import summarise, table_of

    cells = [result.cell for result in results]
    table = table_of([row for result in results for row in result.rows], cells)
    shared = [result.shared for result in results]
    return table, summarise(table, cells, shared, confidence)


def with_probability(config: FaultInjectionConfig, probability: float) -> FaultInjectionConfig:
    """Give a configuration with another probability, in percent, or with one at all."""
    return dataclasses.replace(config, probability=float(probability), num_faults=None)


def with_num_faults(config: FaultInjectionConfig, num_faults: int) -> FaultInjectionConfig:
    """Give a configuration with so many faults in each sample, in place of a probability."""
    default = FaultInjectionConfig().probability
    return dataclasses.replace(config, num_faults=num_faults, probability=default)


@dataclass(frozen=True)
class FaultEvaluation:
    """Evaluates a transformed model under faults; between results nothing is kept here.

    It is a small campaign, each result one of its cells: the trials are those of a study with the
    same settings (`fxfault.campaign.trials`), kept in memory instead of in a store.

    How the model is run is the runner's business: in full, or incrementally
    (`fxfault.incremental`), with the same results.

    >>> import fxfault
    >>> from brevitas.nn import QuantReLU
    >>> from fxfault.predictions import FullRunner
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

    What strikes is said by the configuration that the model was transformed with, and by what is
    asked for here; what was set at single sites by hand does not count. While a generator is in
    use the sites are set as it needs them. When it ends, is closed or raises, every site has its
    faults and selection back, and trial and statistics are as they were.

    Attributes:
        runner: runs the model on the data.
        num_runs: trials for each result, at least 1.
        track_statistics: measure what is injected, site by site.
        on_batch: called with a number of samples whenever some are done.
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
        """Accuracy without faults, in percent."""
        return self.runner.golden(self.on_batch).accuracy

    def check(
        self, configs: Iterable[FaultInjectionConfig], *, each_alone: bool = False
    ) -> tuple[str, ...]:
        """See ahead of any trial that the model can be struck as some configurations say.

        Args:
            configs: as for `evaluate`.
            each_alone: whether sites will be struck alone, too, as `per_layer` does, and as
                trials of a model in mode `layer` do anyway.

        Returns:
            Names of sites that no forward of the evaluation reaches, whatever the batch.

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
        """Evaluate as some configurations say, one after the other.

        Args:
            configs: each that of the model (`faults.config`) with another rate, or with other
                faults; what they say of times and seeds does not count.

        Raises:
            ConfigError: one of them is not allowed, or `apply_during` is `train`, so that no fault
                would strike.
            SiteError: one of them does not fit the sites, or no site that it strikes is ever
                called.
        """
        with self._trials() as trials:
            for config in configs:
                yield self._result(trials, config)

    def sweep(self, probabilities: Iterable[float]) -> Iterator[CellResult]:
        """Evaluate at each probability in turn, with all selected sites struck together.

        Args:
            probabilities: in percent; each is set at every site.

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
            ConfigError: the configuration has `faults`, which say themselves where they strike; or
                as `evaluate`.
            SiteError: there is no site with such an index, or none of them is ever called.
        """
        if config.faults is not None:
            raise ConfigError(
                "faults: each of them says where it strikes, so that no site can be struck alone; "
                "leave them out, or evaluate them as they are"
            )
        faults = self.faults
        chosen = faults.matching(config.layers) if layers is None else layers
        sites = [faults[index] for index in chosen]
        with self._trials() as trials:
            called = [site for site in sites if site.name not in trials.never_called]
            for site in called or sites:  # Where none is, the first is refused.
                yield self._result(trials, config, site)

    @contextmanager
    def _trials(self) -> Iterator[Trials]:
        with _settings_restored(self.faults):
            if self.faults.clock.apply_during == "train":
                raise ConfigError(
                    "apply_during: is 'train', so that no fault strikes in an evaluation; "
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
        rows, struck = [], []
        for number in range(self.num_runs):
            rows.append(trials.run(cell.key, number))
            struck.append([site.index for site in faults if site.selected])
        drawn = faults.config.mode == "layer" and alone is None
        return CellResult(
            cell=cell,
            rows=tuple(rows),
            index=None if alone is None else alone.index,
            run_layers=tuple(indices[0] for indices in struck) if drawn else None,
            statistics=recorded,
            shared=samples_share_faults(config),
        )


def _cell_of(config: FaultInjectionConfig, faults: FaultSites, alone: FaultSite | None) -> Cell:
    """The cell that a study would have for what a configuration says."""
    entry = config.entries()[0]
    if config.faults is not None:
        name = " + ".join(map(str, config.entries()))
        # By their text, as a fault model may be an object without a name.
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
            site.restore(setting)
            site.selected = selected
