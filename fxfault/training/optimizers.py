"""The optimiser and the learning rates of an experiment.

The learning rate of an epoch is a pure function of the sections `optimizer` and `scheduler`: a plan
can be printed without torch, and a resumed training follows it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fxfault.experiment.sections import ExperimentConfig
from fxfault.experiment.training_sections import OptimizerConfig, SchedulerConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimiser that a configuration names; only `sgd` uses `momentum`."""
    import torch

    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=decay)


def build_scheduler(
    config: ExperimentConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the scheduler of an optimiser, to be stepped once after each epoch."""
    import torch

    factor = rate_factor(config.scheduler, config.training.epochs)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def learning_rate(config: ExperimentConfig, epoch: int) -> float:
    """Learning rate of an epoch, counted from 0.

    >>> from fxfault.experiment.training_sections import TrainingConfig
    >>> config = ExperimentConfig(
    ...     training=TrainingConfig(epochs=4),
    ...     optimizer=OptimizerConfig(learning_rate=0.1),
    ...     scheduler=SchedulerConfig(name="step", step_size=2),
    ... )
    >>> [round(learning_rate(config, epoch), 6) for epoch in range(4)]
    [0.1, 0.1, 0.01, 0.01]
    """
    factor = rate_factor(config.scheduler, config.training.epochs)
    return config.optimizer.learning_rate * factor(epoch)


def rate_factor(config: SchedulerConfig, epochs: int) -> Callable[[int], float]:
    """Make the factor on the initial learning rate, a function of the epoch (from 0).

    With W warm-up epochs the factor first rises linearly, (epoch + 1) / (W + 1); the schedule
    starts at epoch W. `cosine` counts its epochs from there and is periodic beyond T_max, like
    torch's `CosineAnnealingLR`; `step` and `multistep` count all epochs, so that a milestone is the
    first epoch with the new rate.

    >>> factor = rate_factor(SchedulerConfig(name="cosine", warmup_epochs=1), epochs=5)
    >>> [round(factor(epoch), 3) for epoch in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    >>> factor = rate_factor(SchedulerConfig(name="multistep", milestones=(1, 3)), epochs=4)
    >>> [round(factor(epoch), 3) for epoch in range(4)]
    [1.0, 0.1, 0.1, 0.01]

    Args:
        config: the section `scheduler`.
        epochs: epochs of the whole training.

    Reference:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
        equation 5 with a minimum of 0.
    """
    warmup = config.warmup_epochs
    period = config.T_max or max(1, epochs - warmup)

    def factor(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        if config.name == "cosine":
            return (1 + math.cos(math.pi * (epoch - warmup) / period)) / 2
        if config.name == "step":
            return config.gamma ** (epoch // config.step_size)
        if config.name == "multistep":
            return config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
        return 1.0

    return factor
