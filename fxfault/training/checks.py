"""Check that the sections of an experiment agree, and fit the network, before a training."""

from __future__ import annotations

from torch import nn

from fxfault.errors import ConfigError
from fxfault.experiment.sections import ExperimentConfig
from fxfault.training.batch_norm import batch_norms
from fxfault.training.losses import CROSS_ENTROPY


def check_trainable(config: ExperimentConfig) -> None:
    """Check that the sections of an experiment agree for training.

    >>> from fxfault.experiment import load_experiment
    >>> check_trainable(load_experiment("digits", {"training.validation_fraction": 0}))
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: checkpoint.save_best: the best is chosen by validation, but \
training.validation_fraction is 0; raise it, or set save_best to false

    Raises:
        ConfigError: sections contradict each other.
    """
    settings, kept = config.training, config.checkpoint
    if settings.label_smoothing and settings.loss != CROSS_ENTROPY:
        raise ConfigError(
            f"training.label_smoothing: only `cross_entropy` smooths labels, and training.loss is "
            f"{settings.loss}; set it to 0"
        )
    moves = [name for name in ("shift", "flip") if getattr(settings, name)]
    if moves and config.metric is not None and config.metric.name not in ("top1", "top5"):
        raise ConfigError(
            f"training.{moves[0]}: it moves images and not their targets, which may be wrong for "
            f"the metric {config.metric.name}; leave it out, and augment in your data set"
        )
    if kept.save_best and config.training.validation_fraction == 0:
        raise ConfigError(
            "checkpoint.save_best: the best is chosen by validation, but "
            "training.validation_fraction is 0; raise it, or set save_best to false"
        )
    if kept.best_by == "faulty" and not config.needs_faulty_validation:
        raise ConfigError(
            "checkpoint.best_by: `faulty` needs faults while evaluating; set "
            "fault_injection.enabled to true and apply_during to both (or eval)"
        )
    if config.training.calibrate == "faulty" and not config.fault_injection.enabled:
        raise ConfigError(
            "training.calibrate: `faulty` needs faults; set fault_injection.enabled to true, or "
            "calibrate to clean"
        )


def check_network(config: ExperimentConfig, network: nn.Module) -> None:
    """Raise a `ConfigError` if `training.calibrate` finds no batch norm in a network."""
    if config.training.calibrate != "none" and not batch_norms(network):
        raise ConfigError(
            f"training.calibrate: {type(network).__name__} has no batch norm with running "
            "statistics; set it to none"
        )
