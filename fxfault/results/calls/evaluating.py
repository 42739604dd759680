"""Evaluate a network under faults in one call; the numbers are those of `fxfault eval`."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.fault_evaluation import FaultEvaluation, with_num_faults, with_probability
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.evaluation.checks import insert_faults
from fxfault.evaluation.full.model_state import in_eval_mode
from fxfault.evaluation.runners import make_runner
from fxfault.experiment.sections import ExperimentConfig
from fxfault.metrics.metric import Metric
from fxfault.passes.freeze import freeze as freeze_model
from fxfault.passes.freeze import frozen_parts
from fxfault.results.calls.armed import armed, runs_of, with_lists
from fxfault.results.calls.bar import new_bar
from fxfault.results.calls.given import (
    batches_of,
    config_of,
    count_of,
    listed,
    metric_of,
    name_of_data,
    on_device,
    plain_model,
    share_of,
)
from fxfault.results.calls.measuring import Follower, measure, number_of_samples, seen_again
from fxfault.results.evaluation import EvaluationResult, LayerRanking, SweepResult
from fxfault.results.reports.evaluation_report import Findings, Setting
from fxfault.results.reports.seen_sites import SeenSites
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Config = FaultInjectionConfig | Mapping[str, Any] | str | os.PathLike[str]
_LOGGER = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    config: Config | None = None,
    *,
    runs: int | None = None,
    metric: Any = None,
    batch: Callable[[Any], Any] | None = None,
    device: str | torch.device | None = None,
    freeze: bool = True,
    compile: bool = False,
    cache_memory: int | None = None,
    verify: float | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Measure how well a quantised network does under faults.

    The network is not changed: it gets its modes back, and is moved nowhere. All runs are in
    evaluation mode.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> from torch import nn
    >>> relu = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=1.0)
    >>> data = [(torch.eye(8), torch.arange(8))]
    >>> faults = {"injection_type": "msb_flip", "probability": 30.0, "seed": 1}
    >>> evaluate(nn.Sequential(relu), data, faults, runs=3)
    EvaluationResult(accuracy 100.00%, 79.17% with 30.0% fault probability; 3 runs, seed 1)

    Args:
        model: a network with layers of Brevitas. Of a network that `fxfault.transform` or
            `fxfault.freeze` returned, the one that it was made from is evaluated, and settings made
            at its sites do not count.
        loader: batches, the same each time that it is read: a DataLoader without shuffling, or a
            list of (inputs, targets). `fxfault.data.batches` says how a batch is taken apart.
        config: what to inject and where: a configuration, its mapping, or a YAML file, of which
            only the section `fault_injection` counts. What it says of training does not: faults
            strike, even if `enabled` is false or `apply_during` is `train`. By default that of a
            transformed `model`.
        runs: number of trials, each with its own faults; by default 1, or with a list of several
            injections one for each.
        metric: what to measure: a name such as `mse`, the mapping of a section `metric`, a function
            of outputs and targets, an object with `update` and `compute`, or a
            `fxfault.metrics.Metric`. By default the accuracy of a classifier.
        batch: a function from a batch to (arguments, keywords, targets), for batches that the
            rules do not settle.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or a torch.device; by default where the network is.
            For another device the network is copied.
        freeze: quantise weights once; the results are the same.
        compile: run compiled code if faults strike most of the network; the results are the same.
        cache_memory: memory for activations that runs start from, in bytes; by default a quarter of
            the free memory.
        verify: share of the batches to repeat in full, in percent; by default as many as take
            little time.
        progress: show a bar, on a terminal or in a notebook.

    Raises:
        ConfigError: a value is not allowed, or scipy is not installed.
        DataError: the loader, the network or the metric fails, or they do not fit each other.
        TransformError: the network cannot be transformed.
        SiteError: the faults do not fit the sites of the network.
    """
    speed = _Speed(freeze, compile, cache_memory, verify)
    asked = _Asked(model, loader, config, runs, metric, batch, device, speed, progress)
    return EvaluationResult(*_measured(asked, lambda faults: (faults, (faults,))))


def sweep(
    model: nn.Module,
    loader: Iterable[Any],
    config: Config | None = None,
    *,
    rates: Sequence[float] | None = None,
    num_faults: Sequence[int] | None = None,
    runs: int | None = None,
    metric: Any = None,
    batch: Callable[[Any], Any] | None = None,
    device: str | torch.device | None = None,
    freeze: bool = True,
    compile: bool = False,
    cache_memory: int | None = None,
    verify: float | None = None,
    progress: bool = True,
) -> SweepResult:
    """Measure a network at several rates of faults, one after the other.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> from torch import nn
    >>> relu = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=1.0)
    >>> data = [(torch.eye(8), torch.arange(8))]
    >>> faults = {"injection_type": "msb_flip", "seed": 1}
    >>> found = sweep(nn.Sequential(relu), data, faults, rates=[0, 30, 100], runs=3)
    >>> [round(result.mean, 1) for result in found.results]
    [100.0, 79.2, 0.0]

    Args:
        model: as for `evaluate`.
        loader: as for `evaluate`.
        config: as for `evaluate`; without `faults`, which have rates of their own.
        rates: probabilities of a hit, in percent.
        num_faults: in place of `rates`, numbers of hits in each sample, or of weights, biases and
            parameters in each trial.
        runs: number of trials of each rate.
        metric: as for `evaluate`.
        batch: as for `evaluate`.
        device: as for `evaluate`.
        freeze: as for `evaluate`.
        compile: as for `evaluate`.
        cache_memory: as for `evaluate`.
        verify: as for `evaluate`.
        progress: as for `evaluate`.

    Raises:
        FxFaultError: as `evaluate`.
    """
    if (rates is None) == (num_faults is None):
        given = "neither" if rates is None else "both"
        raise ConfigError(f"rates, num_faults: got {given}, allowed: one, such as rates=[1, 5, 10]")

    def each_rate(faults: FaultInjectionConfig) -> _Variants:
        _refuse_own_rates(faults, "a sweep sets one rate for all of them")
        if rates is not None:
            values = listed(rates, "rates", "[1, 5, 10]")
            found = [with_probability(faults, share_of(value, "rates")) for value in values]
        else:
            counts = listed(num_faults, "num_faults", "[1, 10]")
            found = [with_num_faults(faults, count_of(k, "num_faults", least=0)) for k in counts]
        for config in found:
            config.validate()
        return found[0], tuple(found)

    speed = _Speed(freeze, compile, cache_memory, verify)
    asked = _Asked(model, loader, config, runs, metric, batch, device, speed, progress)
    return SweepResult(*_measured(asked, each_rate, sweep=True))


def rank_layers(
    model: nn.Module,
    loader: Iterable[Any],
    config: Config | None = None,
    *,
    runs: int | None = None,
    metric: Any = None,
    batch: Callable[[Any], Any] | None = None,
    device: str | torch.device | None = None,
    freeze: bool = True,
    compile: bool = False,
    cache_memory: int | None = None,
    verify: float | None = None,
    progress: bool = True,
) -> LayerRanking:
    """Strike each selected site of a network alone, and rank the sites by what that costs.

    First all of them are struck together, as by `evaluate`.

    >>> import torch
    >>> from brevitas.nn import QuantReLU
    >>> from torch import nn
    >>> first, last = (
    ...     QuantReLU(bit_width=4, scaling_impl_type="const", max_val=top) for top in (9.0, 1.0)
    ... )
    >>> data = [(torch.eye(8), torch.arange(8))]
    >>> faults = {"injection_type": "msb_flip", "probability": 30.0, "seed": 1}
    >>> ranking = rank_layers(nn.Sequential(first, last), data, faults, runs=5)
    >>> ranking.names
    ('0', '1')

    Args:
        model: as for `evaluate`.
        loader: as for `evaluate`.
        config: as for `evaluate`; without `faults`, which have layers of their own.
        runs: number of trials of each site; a ranking needs several.
        metric: as for `evaluate`.
        batch: as for `evaluate`.
        device: as for `evaluate`.
        freeze: as for `evaluate`.
        compile: as for `evaluate`.
        cache_memory: as for `evaluate`.
        verify: as for `evaluate`.
        progress: as for `evaluate`.

    Raises:
        FxFaultError: as `evaluate`.
    """

    def alone(faults: FaultInjectionConfig) -> _Variants:
        _refuse_own_rates(faults, "no site can be struck alone")
        full = dataclasses.replace(faults, mode="full_model")
        return full, (full,)

    speed = _Speed(freeze, compile, cache_memory, verify)
    asked = _Asked(model, loader, config, runs, metric, batch, device, speed, progress)
    return LayerRanking(*_measured(asked, alone, per_layer=True))


# -- the common part ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Speed:
    """How to run; the results are the same."""

    freeze: bool
    compile: bool
    cache_memory: int | None
    verify: float | None

    def __post_init__(self) -> None:
        if self.compile and not self.freeze:
            raise ConfigError("compile: only a frozen network is compiled; leave freeze=False out")
        if self.cache_memory is not None:
            count_of(self.cache_memory, "cache_memory", least=0)
        if self.verify is not None:
            share_of(self.verify, "verify")


@dataclass(frozen=True)
class _Asked:
    """The arguments of a call."""

    model: Any
    loader: Any
    config: Any
    runs: int | None
    metric: Any
    batch: Any
    device: Any
    speed: _Speed
    progress: bool


class _Noting(Follower):
    """Collects notes."""

    def __init__(self) -> None:
        self.notes: dict[str, None] = {}

    def note(self, text: str) -> None:
        self.notes[text] = None
        _LOGGER.info("%s", text)


# The configuration of the sites, and that of each rate.
_Variants = tuple[FaultInjectionConfig, tuple[FaultInjectionConfig, ...]]


def _measured(
    asked: _Asked,
    variants: Callable[[FaultInjectionConfig], _Variants],
    *,
    sweep: bool = False,
    per_layer: bool = False,
) -> tuple[Setting, Findings, tuple[str, ...]]:
    """Do what a call asks for."""
    wilson(0, 1)  # Raises now, and not after the work, if scipy is missing.
    given, of_sites = plain_model(asked.model)
    faults, changes = armed(with_lists(config_of(asked.config, of_sites)))
    base, configs = variants(faults)
    base.validate()
    wanted = None if asked.runs is None else count_of(asked.runs, "runs")
    runs = runs_of(wanted, base, "runs")
    metric, follower = metric_of(asked.metric), _Noting()
    for change in changes:
        if change.startswith("`curriculum`"):  # Of the others, the documentation speaks.
            follower.note(change)
    model, device = on_device(given, asked.device)
    batches = batches_of(asked.loader, model, asked.batch)
    with in_eval_mode(model):
        faulty = insert_faults(model, base, batches, device, metric, on_note=follower.note)
        faulty = freeze_model(faulty.eval()) if asked.speed.freeze else faulty.eval()
        setting = Setting(
            command=None,
            experiment=ExperimentConfig(fault_injection=base),
            network=type(given).__name__,
            data=name_of_data(asked.loader),
            faults=SeenSites.of(faults_of(faulty)),
            checkpoint=None,
            num_classes=None,
            samples=batches.samples,
            batches=len(batches),
            device=device,
            configs=configs,
            num_runs=runs,
            sweep=sweep,
            per_layer=per_layer,
            frozen=frozen_parts(faulty) if asked.speed.freeze else None,
        )
        return _followed(setting, asked, faulty, batches, metric, follower)


def _followed(
    setting: Setting,
    asked: _Asked,
    faulty: nn.Module,
    batches: Iterable[Any],
    metric: Metric | None,
    follower: _Noting,
) -> tuple[Setting, Findings, tuple[str, ...]]:
    """Measure what a setting says, and show a bar if that is asked for."""
    track, findings = setting.configs[0].track_statistics, Findings()
    runner = make_runner(
        faulty,
        batches,
        setting.device,
        follower.note,
        incremental=not track,
        compile=asked.speed.compile,
        cache_memory=asked.speed.cache_memory,
        verify=asked.speed.verify,
        metric=metric,
    )
    bar = new_bar(number_of_samples(setting)) if asked.progress else None
    on_batch = None if bar is None else bar.update
    evaluation = FaultEvaluation(runner, setting.num_runs, track, on_batch)
    try:
        measure(setting, evaluation, findings, follower)
    finally:
        if bar is not None:
            bar.close()
    seen = dataclasses.replace(seen_again(setting, evaluation), num_classes=findings.classes)
    return seen, findings, tuple(follower.notes)


def _refuse_own_rates(faults: FaultInjectionConfig, why: str) -> None:
    if faults.faults is not None:
        raise ConfigError(
            f"config: it has `faults`, each with its own rate, memory and layers, so that {why}; "
            "use fxfault.evaluate, or give one fault"
        )
