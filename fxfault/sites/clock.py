"""When faults strike, and the random numbers that draw them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fxfault.config.curriculum import epoch_plan
from fxfault.errors import ConfigError, SiteError
from fxfault.faults.random_numbers import known_key, uniform_float

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.sites.fault_sites import FaultSites
    from fxfault.sites.handles import Handle

# Attributes that belong to one process or model, and not to a point in time.
_NOT_IN_STATE = (
    *("_model", "_on_move", "forward", "given", "handle", "measuring", "passes", "persist", "rank"),
    *("warned", "world_size"),
)

# Stands for the model before `follow`.
_NO_MODEL = SimpleNamespace(training=False)


class FaultClock:
    """When faults strike, and the stream of random numbers that draws them.

    The clock moves once for each forward of the whole model. Samples are numbered from the last
    reset, in training and in evaluation separately. A training forward is one step, which is noisy
    or clean as a whole.

    Attributes:
        enabled: the master switch.
        apply_during: `train`, `eval` or `both`.
        epoch_interval: n, if faults strike in every n-th epoch of training.
        persist: how long faults of weights and biases stay in training: a `step`, an `epoch` or
            the whole `run`.
        step_interval: probability that a training step is noisy, 0 to 1.
        seed: seed of all draws.
        trial: number of the evaluation under this seed; each has its own faults.
        epoch: the epoch; in training, each has its own faults.
        step: training steps since the last reset.
        batch: number of samples of the current forward.
        first_sample: number of the first sample of the current forward.
        given: the numbers of the samples, if `FaultSites.samples` sets them.
        passes: number of resets so far.
        rank, world_size: number of this process, and of all processes; see `FaultSites.shard`.
        measuring: whether each site shows its words, also those that others strike before.
        warned: whether `FaultSite.layout_of` has warned that layouts were not measured.
        handle: the handle through which compiled code finds the sites.
    """

    handle: Handle[FaultSites]

    def __init__(self, config: FaultInjectionConfig) -> None:
        plan = epoch_plan(config, 0)
        self.enabled = True
        self.apply_during = config.apply_during
        self.epoch_interval = plan.epoch_interval
        self.step_interval = plan.step_interval
        self.persist = config.persist
        self.rank, self.world_size = 0, 1
        self.seed = secrets.randbits(63) if config.seed is None else config.seed
        self.trial = 0
        self.epoch = 0
        # In a list, because nn.Module would take the model for a child of the clock's holder. Not
        # a weak reference, because a deep copy would keep the original.
        self._model: list[Any] = [_NO_MODEL]
        self._on_move: Callable[[], None] | None = None
        self.forward = 0  # Resets keep it, so no two forwards share a number.
        self.passes = 0
        self.given: Tensor | None = None
        self.warned = False
        self.measuring = False
        self.reset()

    def reset(self, first_sample: int = 0) -> None:
        """Number samples from `first_sample` and steps from 0 again."""
        self.passes += 1
        self.step = 0
        self.batch: int | None = None
        self.first_sample = first_sample
        self._next_sample = {True: first_sample, False: first_sample}
        self._noisy_step = True

    def follow(self, model: nn.Module) -> None:
        """Follow the mode (train or eval) of a model."""
        self._model = [model]

    def on_move(self, react: Callable[[], None]) -> None:
        """Register a function to call when `restore` leads to another seed, trial or epoch."""
        self._on_move = react

    @property
    def model(self) -> nn.Module:
        """The model that the clock follows."""
        model: nn.Module = self._model[0]
        return model

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        training: bool = self._model[0].training
        return training

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs: plain numbers, texts and a mapping.

        A process can restore the state of any process that shares its data.
        """
        kept = {k: v for k, v in vars(self).items() if k not in _NOT_IN_STATE}
        return {**kept, "_next_sample": dict(self._next_sample)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        The sites then have the values of the curriculum for that epoch and, with
        `injection_layer: -1`, the layer that the seed and trial draw.

        Raises:
            ConfigError: the mapping does not come from `state`.
        """
        expected = self.state().keys()
        if not isinstance(state, Mapping) or state.keys() != expected:
            names = sorted(map(str, state)) if isinstance(state, Mapping) else repr(state)
            raise ConfigError(f"state of the clock: got {names}, expected {sorted(expected)}")
        before = (self.seed, self.trial, self.epoch)
        vars(self).update({**state, "_next_sample": dict(state["_next_sample"])})
        if self._on_move is not None and (self.seed, self.trial, self.epoch) != before:
            self._on_move()

    def begin(self, batch: int) -> None:
        """Note that a forward of the whole model starts."""
        training = self.training
        self.forward += 1
        self.batch = batch
        if self.given is not None:
            if len(self.given) != batch:
                raise SiteError(
                    f"samples: got {len(self.given)} numbers for a batch of {batch} samples; give "
                    "one for each"
                )
            return
        self.first_sample = self._next_sample[training] + self.rank * batch
        self._next_sample[training] += self.world_size * batch
        if training:
            draw = uniform_float(self.seed, "step", self.epoch, self.step)
            self._noisy_step = draw < self.step_interval
            self.step += 1

    @property
    def why_quiet(self) -> str | None:
        """Why no site strikes in the current forward; None if the selected sites do."""
        if not self.enabled:
            return "injection is disabled"
        training = self._model[0].training  # Not `self.training`, which is slower.
        mode = "train" if training else "eval"
        if self.apply_during not in (mode, "both"):
            return f"apply_during is {self.apply_during}, the model is in {mode} mode"
        if training and self.epoch % self.epoch_interval:
            return f"epoch {self.epoch} is not one of every {self.epoch_interval}"
        if training and not self._noisy_step:
            return f"step {self.step - 1} was drawn clean (step_interval {self.step_interval:g})"
        return None

    def stream(self, site: str) -> int:
        """Return the key of a site's random numbers in the current forward."""
        when = self.epoch if self._model[0].training else "eval"
        return known_key(self.seed, self.trial, when, site)

    def stored_stream(self, site: str) -> int:
        """Return the key of the random numbers of a weight or bias in the current forward."""
        training = self._model[0].training
        if training and self.persist == "run":
            return known_key(self.seed, self.trial, "run", site)
        return self.stream(site)

    @property
    def stored_draw(self) -> int:
        """The number of the present draw of weight and bias faults, in place of a sample's."""
        is_per_step = self._model[0].training and self.persist == "step"
        return max(0, self.step - 1) if is_per_step else 0

    def hardware_stream(self, site: str) -> int:
        """Return the key of a site's broken hardware, the same for the whole trial."""
        return known_key("hardware", self.seed, self.trial, site)
