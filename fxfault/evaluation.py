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

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxfault.errors import ConfigError
from fxfault.predictions import OnBatch, Runner, predict
from fxfault.sites import FaultSites, faults_of
from fxfault.statistics import FaultStatistics


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
        loader: gives batches of (inputs, labels); labels are integers, shape (N,).
        device: where the model is.
        on_batch: called after each batch.

    Raises:
        DataError: there is no sample, or the scores have another shape.
    """
    return predict(model, loader, device, on_batch).accuracy


@dataclass(frozen=True, kw_only=True)
class AccuracyUnderFaults:
    """The accuracies of some trials at one probability; all figures in percent.

    >>> result = AccuracyUnderFaults(probability=5.0, baseline=90.0, runs=(80.0, 84.0))
    >>> result.mean, round(result.std, 3), result.degradation
    (82.0, 2.828, 8.0)

    Attributes:
        probability: of a hit, for each element.
        baseline: accuracy without faults.
        runs: accuracy of each trial, trial 0 first.
        statistics: what was injected in all trials together; None if nobody asked.
    """

    probability: float
    baseline: float
    runs: tuple[float, ...]
    statistics: FaultStatistics | None = field(default=None, compare=False)

    @property
    def mean(self) -> float:
        """Mean accuracy of the trials."""
        return math.fsum(self.runs) / len(self.runs)

    @property
    def std(self) -> float:
        """Sample standard deviation of the trials' accuracies (see the module); 0 for one."""
        if len(self.runs) < 2:
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((run - mean) ** 2 for run in self.runs) / (len(self.runs) - 1))

    @property
    def degradation(self) -> float:
        """What the faults cost: baseline minus mean, in percentage points."""
        return self.baseline - self.mean

    @property
    def injection_rate(self) -> float | None:
        """Elements that were hit, in percent of all where faults could strike; None if unknown."""
        return None if self.statistics is None else self.statistics.overall_injection_rate


@dataclass(frozen=True, kw_only=True)
class ProbabilityResult(AccuracyUnderFaults):
    """Accuracy with all selected sites struck together.

    Attributes:
        run_layers: the one site of each trial, by index, where `mode: layer` names one.
    """

    run_layers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class LayerResult(AccuracyUnderFaults):
    """Accuracy with one site struck alone.

    Attributes:
        index: of the site.
        name: of the site.
    """

    index: int
    name: str


def rank(results: Iterable[LayerResult]) -> list[LayerResult]:
    """Order sites by what their faults cost, the most vulnerable first; ties by index."""
    return sorted(results, key=lambda result: (-result.degradation, result.index))


@dataclass(frozen=True)
class FaultEvaluation:
    """Evaluates a transformed model under faults; between results nothing is kept here.

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
    >>> baseline = evaluation.baseline()
    >>> [result.mean for result in evaluation.sweep([0, 100], baseline)]
    [100.0, 0.0]

    While a generator is in use the sites are set as it needs them. When it ends, is closed or
    raises, every site has its probability and selection back, and trial and statistics are
    as they were.

    Attributes:
        runner: runs the model on the data.
        num_runs: trials for each result, at least 1.
        track_statistics: measure what is injected.
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

    def sweep(self, probabilities: Iterable[float], baseline: float) -> Iterator[ProbabilityResult]:
        """Evaluate at each probability in turn, with all selected sites struck together.

        Args:
            probabilities: in percent; each is set at every site.
            baseline: what `baseline()` gave.

        Raises:
            ConfigError: a probability is not within 0 and 100, or `apply_during` is `train`, so
                that no fault would strike.
        """
        with _settings_restored(self.faults):
            self._arm()
            for probability in probabilities:
                self.faults.set_probability(probability)
                statistics = self._new_statistics()
                trials = [self._trial(number) for number in range(self.num_runs)]
                yield ProbabilityResult(
                    probability=float(probability),
                    baseline=baseline,
                    runs=tuple(reached for reached, _ in trials),
                    statistics=statistics,
                    run_layers=self._single_layers([struck for _, struck in trials]),
                )

    def per_layer(
        self, probability: float, baseline: float, layers: Sequence[int] | None = None
    ) -> Iterator[LayerResult]:
        """Evaluate with each site struck alone, in the order of execution; see `rank`.

        Args:
            probability: in percent.
            baseline: what `baseline()` gave.
            layers: indices of the sites; default: those that are selected, or all of them with
                `mode: layer`, which selects a single one.

        Raises:
            ConfigError: as `sweep`.
            SiteError: there is no site with such an index.
        """
        faults = self.faults
        if layers is None:
            every = faults.config.mode == "layer"
            layers = [site.index for site in faults if site.selected or every]
        chosen = [faults[index] for index in layers]
        with _settings_restored(faults):
            self._arm()
            faults.set_probability(probability)
            for site in chosen:
                statistics = self._new_statistics()
                trials = [self._trial(number, site.index) for number in range(self.num_runs)]
                yield LayerResult(
                    probability=float(probability),
                    baseline=baseline,
                    runs=tuple(reached for reached, _ in trials),
                    statistics=statistics,
                    index=site.index,
                    name=site.name,
                )

    def _arm(self) -> None:
        clock = self.faults.clock
        if clock.apply_during == "train":
            raise ConfigError(
                "apply_during: is 'train', so that no fault strikes in an evaluation; transform "
                "the model with 'eval' or 'both'"
            )
        clock.enabled = True

    def _trial(self, number: int, only: int | None = None) -> tuple[float, list[int]]:
        """Evaluate once; returns the accuracy and the indices of the sites struck."""
        faults = self.faults
        faults.reset(trial=number)
        if only is not None:
            # Not `select`, which in mode `layer` takes the site of the configuration.
            for site in faults:
                site.selected = site.index == only
        reached = self.runner.run(self.on_batch).accuracy
        return reached, [site.index for site in faults if site.selected]

    def _new_statistics(self) -> FaultStatistics | None:
        if self.track_statistics:
            return self.faults.new_statistics()
        self.faults.set_statistics(None)
        return None

    def _single_layers(self, struck: list[list[int]]) -> tuple[int, ...] | None:
        if self.faults.config.mode != "layer":
            return None
        return tuple(indices[0] for indices in struck)


@contextmanager
def _settings_restored(faults: FaultSites) -> Iterator[None]:
    enabled, trial, statistics = faults.enabled, faults.trial, faults.statistics
    settings = [(site, site.probability, site.selected) for site in faults]
    try:
        yield
    finally:
        faults.reset(trial=trial)
        faults.enabled = enabled
        faults.set_statistics(statistics)
        for site, probability, selected in settings:
            site.probability, site.selected = probability, selected
