"""The fault schedule of a training in each epoch: the plan of a curriculum.

A curriculum is a list of points. Each setting follows the points that name it: before the first of
them it has the value of the configuration, after the last one the value of that point. Between two
points, at epochs e0 and e1 with the values a and b, the value at epoch e is, with
t = (e - e0) / (e1 - e0),

    step      a
    linear    a + (b - a) * t
    cosine    a + (b - a) * (1 - cos(pi * t)) / 2

for `probability` and `step_interval`. `epoch_interval` and `injection_type` always step.

>>> from fxfault.config import FaultInjectionConfig
>>> config = FaultInjectionConfig.from_dict(
...     {
...         "interpolate": "linear",
...         "curriculum": [
...             {"epoch": 2, "probability": 1, "epoch_interval": 2},
...             {"epoch": 6, "probability": 9, "epoch_interval": 1},
...         ],
...     }
... )
>>> [epoch_plan(config, epoch).probability for epoch in range(8)]
[5.0, 5.0, 1.0, 3.0, 5.0, 7.0, 9.0, 9.0]
>>> [epoch for epoch in range(8) if epoch_plan(config, epoch).noisy]
[0, 1, 2, 4, 6, 7]

Only training has epochs: with `apply_during: eval`, every epoch has the values of the
configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxfault.config.entries import CURRICULUM_SETTINGS, CurriculumPoint, FaultEntry
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.messages import got

if TYPE_CHECKING:
    from fxfault.faults.fault_models import FaultModel

_INTERPOLATED = ("probability", "step_interval")
# The fraction of the change to the next point that is done at a fraction of the epochs until it.
_COURSES: dict[str, Callable[[float], float]] = {
    "step": lambda share: 0.0,
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}


@dataclass(frozen=True)
class EpochPlan:
    """The schedule of one epoch of training.

    >>> print(EpochPlan(3, 5.0, 0.5, 1, "random"))
    epoch 3: random at 5 %, in 50 % of the steps
    >>> print(EpochPlan(3, 5.0, 0.5, 2, "random"))
    epoch 3: no faults
    >>> print(epoch_plan(FaultInjectionConfig(num_faults=2), 3))
    epoch 3: random, 2 a sample, in 100 % of the steps

    Attributes:
        epoch: the epoch, counted from 0.
        probability: probability of a hit, in percent.
        step_interval: probability that a training step is noisy, 0 to 1.
        epoch_interval: n, if faults strike in every n-th epoch.
        injection_type: the fault model, by name or as an object.
        several: the faults, if they are not just this fault model with this probability.
    """

    epoch: int
    probability: float
    step_interval: float
    epoch_interval: int
    injection_type: str | FaultModel
    several: tuple[FaultEntry, ...] = ()

    @property
    def noisy(self) -> bool:
        """Whether any fault can strike in this epoch."""
        due = self.epoch % self.epoch_interval == 0
        return due and self.step_interval > 0 and any(entry.strikes for entry in self.entries)

    @property
    def entries(self) -> tuple[FaultEntry, ...]:
        """The faults of a noisy step."""
        own = FaultEntry(injection_type=self.injection_type, probability=self.probability)
        return self.several or (own,)

    def __str__(self) -> str:
        if not self.noisy:
            return f"epoch {self.epoch}: no faults"
        share = f"in {100 * self.step_interval:g} % of the steps"
        return f"epoch {self.epoch}: {'; '.join(map(str, self.entries))}, {share}"


def epoch_plan(config: FaultInjectionConfig, epoch: int) -> EpochPlan:
    """Return the schedule of an epoch, from the curriculum and the configuration.

    Args:
        config: the faults; `enabled` is ignored.
        epoch: the epoch, counted from 0.

    Raises:
        ConfigError: `epoch` is not an integer of at least 0.
        InvalidConfigError: the curriculum is not valid.
    """
    now = config_at(config, epoch)
    plan = EpochPlan(epoch, **{name: getattr(now, name) for name in CURRICULUM_SETTINGS})
    said = (config.faults, config.num_faults, config.bit, config.burst_length, config.rate_unit)
    if said == (None, None, None, None, "element"):
        return plan
    return dataclasses.replace(plan, several=now.entries())


def config_at(config: FaultInjectionConfig, epoch: int) -> FaultInjectionConfig:
    """Return the configuration with the values that its curriculum has in an epoch.

    Raises:
        ConfigError: `epoch` is not an integer of at least 0.
        InvalidConfigError: the curriculum is not valid.
    """
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise ConfigError(f"epoch: got {got(epoch)}, allowed: an integer of at least 0")
    points = _points(config)
    values = {
        name: _value(points, name, getattr(config, name), epoch, config.interpolate)
        for name in CURRICULUM_SETTINGS
    }
    return dataclasses.replace(config, **values)


def governed_settings(config: FaultInjectionConfig) -> frozenset[str]:
    """Return the names of the settings that the curriculum changes.

    >>> config = FaultInjectionConfig(curriculum=[{"epoch": 3, "step_interval": 0.5}])
    >>> sorted(governed_settings(config)), sorted(governed_settings(FaultInjectionConfig()))
    (['step_interval'], [])
    """
    points = _points(config)
    return frozenset(
        name
        for name in CURRICULUM_SETTINGS
        if any(getattr(point, name) is not None for point in points)
    )


def _points(config: FaultInjectionConfig) -> Sequence[CurriculumPoint]:
    if config.curriculum is None or config.apply_during == "eval":
        return ()
    # Construction checks nothing, and points may be mappings.
    given = {"curriculum": config.curriculum, "interpolate": config.interpolate}
    checked: Any = FaultInjectionConfig.from_dict(given).curriculum
    return checked


def _value(
    points: Sequence[CurriculumPoint], name: str, own: Any, epoch: int, interpolate: str
) -> Any:
    named = [(p.epoch, getattr(p, name)) for p in points if getattr(p, name) is not None]
    past = [point for point in named if point[0] <= epoch]
    ahead = [point for point in named if point[0] > epoch]
    start, value = past[-1] if past else (0, own)
    if name not in _INTERPOLATED:
        return value
    if past and ahead:
        end, goal = ahead[0]
        value += (goal - value) * _COURSES[interpolate]((epoch - start) / (end - start))
    return float(value)
