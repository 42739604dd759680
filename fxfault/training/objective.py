"""What a training makes small, and what its validation and test measure.

Without a `metric`, validation counts the samples with the right class, as an evaluation does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.data.batches import Batch, Taker, take_apart
from fxfault.errors import ConfigError
from fxfault.evaluation.full.judging import Judge, Measured, MetricJudge
from fxfault.evaluation.full.labels import labels_of
from fxfault.evaluation.full.predictions import CLASSES, scores_of
from fxfault.evaluation.rows import value_under_faults
from fxfault.experiment.parts import load_metric, load_taker
from fxfault.experiment.sections import ExperimentConfig
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.training.losses import Loss, make_loss


@dataclass(frozen=True)
class Objective:
    """The loss and the measure of a training, and how its batches are taken apart.

    >>> sections = {"training": {"loss": "mse"}, "metric": {"name": "mse", "unit": "mm"}}
    >>> objective = Objective.of(ExperimentConfig.from_dict(sections), nn.Linear(3, 1))
    >>> objective.loss.name, objective.facts.shown(30.0)
    ('mse', '30 mm')

    Attributes:
        loss: what is made small.
        smoothing: share of each label that the loss of a training step spreads over all classes.
        judge: measures validation and test.
        facts: what is known of the measure before the first batch.
        forward: the forward of the network, whose parameters tell inputs from targets.
        taker: the user's function that takes batches apart; None for the rules.
    """

    loss: Loss
    smoothing: float
    judge: Judge
    facts: MetricFacts
    forward: Callable[..., Any]
    taker: Taker | None

    @classmethod
    def of(cls, config: ExperimentConfig, network: nn.Module) -> Objective:
        """Make what an experiment names for a network.

        Raises:
            ConfigError: there is no such loss or metric, or the metric cannot guide a training.
            DataError: the user's code cannot be imported.
        """
        metric, settings = load_metric(config), config.training
        if metric is not None and metric.needs_golden:
            raise ConfigError(
                f"metric: {metric.name} compares outputs with those of the same network without "
                "faults, and says nothing of how well it learned; name one that compares with "
                "targets"
            )
        forward = network.forward
        return cls(
            loss=make_loss(settings.loss, settings.loss_kwargs),
            smoothing=settings.label_smoothing,
            judge=CLASSES if metric is None else MetricJudge(metric, forward=forward),
            facts=ACCURACY if metric is None else metric.declared,
            forward=forward,
            taker=load_taker(config),
        )

    def take(self, given: Any) -> Batch:
        """Take a batch of a data loader apart.

        Raises:
            DataError: see `fxfault.data.batches.take_apart`.
        """
        return take_apart(given, forward=self.forward, taker=self.taker)

    def hits(self, output: Any, batch: Batch) -> Tensor | None:
        """Number of samples with the right class; None with a metric.

        Raises:
            DataError: the network gives no scores, or the labels are no classes.
        """
        if self.judge.metric is not None:
            return None
        scores = scores_of(output, batch.samples).detach()
        return (scores.argmax(1) == labels_of(batch.targets, classes=scores.shape[1])).sum()

    def rank(self, value: float) -> float:
        """A number that is higher for a better value, and lowest for one that is missing."""
        if math.isnan(value):
            return -math.inf
        return value if self.facts.higher_is_better else -value


class Taken:
    """The batches of a loader, taken apart anew in each pass."""

    def __init__(self, loader: Iterable[Any], objective: Objective) -> None:
        """Take a loader, and what takes its batches apart."""
        self._loader, self._objective = loader, objective

    def __iter__(self) -> Iterator[Batch]:
        return map(self._objective.take, self._loader)


class Totals:
    """Sums over the batches of an epoch, which a checkpoint saves.

    Attributes:
        sums: float64 tensor of shape (5,): loss times samples, correct samples (0 with a metric),
            samples, steps, noisy steps.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)

    def add(self, loss: Tensor, hits: Tensor | None, samples: int, noisy: bool = False) -> None:
        """Add a batch without copying anything from the device."""
        batch = self.sums.new_tensor([0, 0, samples, 1, noisy], device=loss.device)
        batch[0] = loss.detach().double() * samples
        if hits is not None:
            batch[1] = hits
        self.sums = self.sums.to(loss.device) + batch


class ValidationPass:
    """What one pass of validation measures.

    Attributes:
        totals: sums of the loss and, without a metric, of the correct samples.
    """

    def __init__(self, objective: Objective, clean: ValidationPass | None = None) -> None:
        """Start a pass; `clean` is that without faults, for a pass under faults."""
        self.totals = Totals()
        self._objective, self._clean = objective, clean
        self._sizes: list[int] = []
        self._tally: Any = None
        if objective.judge.metric is not None:
            self._tally = objective.judge.tally(None if clean is None else clean._own)

    def add(self, output: Any, batch: Batch) -> None:
        """Add a batch, with its targets on the device of the output.

        Raises:
            DataError: the loss or the metric cannot use the output, or the metric has no finite
                value without faults.
        """
        loss = self._objective.loss(output, batch.targets)
        self.totals.add(loss, self._objective.hits(output, batch), batch.samples)
        if self._tally is not None:
            self._tally.add(output, batch)
            self._sizes.append(batch.samples)

    def metric_value(self) -> float:
        """The value of the metric over the samples of all processes; every process must call this.

        It is NaN if faults leave it no finite value.
        """
        if self._clean is None:
            return self._joined.value
        return value_under_faults(self._clean._joined, self._joined)

    @functools.cached_property
    def _own(self) -> Measured:
        """The result for the samples of this process."""
        measured: Measured = self._tally.result(tuple(self._sizes))
        return measured

    @functools.cached_property
    def _joined(self) -> Measured:
        return _joined(self._own)


def check_processes(objective: Objective, processes: int) -> None:
    """Refuse several processes for a metric that none of them can compute from its own part.

    Raises:
        ConfigError: the metric gives one number for all data.
    """
    metric = objective.judge.metric
    if processes > 1 and metric is not None and metric.collects:
        raise ConfigError(
            f"devices: got {processes}, but metric {metric.name!r} gives one number for all data, "
            "of which each process sees a part; train in one process"
        )


def _joined(own: Measured) -> Measured:
    """The result for the samples of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, (own.records, own.sizes))
    records = torch.cat([records for records, _ in parts])
    sizes = tuple(size for _, sizes in parts for size in sizes)
    value = own.metric.value_of(records, sizes)
    return Measured(own.metric, value, records, sizes)
