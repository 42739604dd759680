"""Fault-aware training with PyTorch Lightning, in one line of an existing script.

>>> from fxfault.training import FaultAwareTraining
>>> callback = FaultAwareTraining({"enabled": True, "probability": 5.0, "step_interval": 0.5})
>>> from lightning.pytorch import Trainer  # after fxfault.training.fault_aware, see below
>>> trainer = Trainer(callbacks=[callback], logger=False)  # trainer.fit(task, loader)

If torchvision was built for another torch than the one installed, import this module before
`lightning`, which cannot be imported alone then.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

import torch.distributed
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.config.given import read_config
from fxfault.errors import ConfigError, FxFaultError, SiteError
from fxfault.messages import got
from fxfault.passes.injector import FaultInjector
from fxfault.passes.transform import transform
from fxfault.sites.clock import FaultClock
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.statistics import FaultStatistics
from fxfault.training.lightning_import import Callback, LightningModule, Trainer
from fxfault.training.log_names import loggable
from fxfault.training.network_slot import NetworkSlot, find_network

_LOGGER = logging.getLogger(__name__)
# Keys of a clock's state that hold settings of the configuration, not a place in the schedule.
_SETTINGS = ("enabled", "apply_during", "epoch_interval", "step_interval", "seed")


class FaultAwareTraining(Callback):
    """Inject faults into the network of a LightningModule while a Trainer runs it.

    When `fit`, `validate`, `test` or `predict` starts, the callback replaces the network by
    `fxfault.transform(network, cfg)`, which shares its parameters; when it ends, also through an
    error or Ctrl-C, the callback puts the network back. Checkpoints have the same keys as without
    the callback. If `enabled` is false, the callback does nothing.

    Each training epoch starts an epoch of the schedule (`FaultSites.start_epoch`), and each forward
    of the network in training mode is one step of it. With `accumulate_grad_batches`, each
    micro-batch is therefore drawn clean or noisy on its own. Each pass of validation, including the
    sanity check, numbers its samples from 0 and does not advance those of training; predicting
    counts as evaluation.

    The end of each training epoch logs `fault_rate`: elements hit, in percent of the elements of
    the forwards in which faults struck. With `apply_during` of `eval` or `both`, `val_fault_rate`
    and `test_fault_rate` are logged too. `log_statistics` adds values for each site:
    `faults/<site>/rate` and, once faults struck there, `faults/<site>/rmse` and
    `faults/<site>/cosine`. Every logger of the Trainer gets them; characters of a site's name that
    some loggers refuse, such as the @ of `relu@2`, become a dash.

    Several processes (`ddp`) hit their samples with the faults that one process draws for the
    joined batch, which is their batches one after the other, in the order of their ranks. The
    statistics cover all processes.

    A checkpoint holds the callback's place in the schedule and its statistics. A run resumed from
    there (`trainer.fit(ckpt_path=...)`) has the noisy steps and the faults of an uninterrupted run.
    The settings are those of the current `cfg`; only a seed that was drawn because `cfg` has none
    comes from the checkpoint. In the middle of an epoch, Lightning resumes with the right batch
    only if the loader has `state_dict` and `load_state_dict`, and with several processes each saves
    its own statistics of the started epoch only.

    >>> FaultAwareTraining({"enabled": True, "probability": 500.0})
    Traceback (most recent call last):
    ...
    fxfault.errors.InvalidConfigError: fault_injection.probability: got 500.0 (float), \
allowed: a number from 0 to 100

    Attributes:
        config: what to inject, where and when.
        faults: the network's sites while the Trainer runs it; None before and after.
        statistics: what was recorded since the Trainer started, up to the last whole epoch
            or pass of evaluation, without the sanity check; None before the start.
        noisy_step: whether faults could strike in the last training step.
    """

    def __init__(
        self,
        cfg: FaultInjectionConfig | Mapping[str, Any] | str | os.PathLike[str],
        *,
        network: str | None = None,
        log_statistics: bool = False,
        example_inputs: Any = None,
    ) -> None:
        """Check the settings; the network is searched for when the Trainer starts.

        Args:
            cfg: configuration as for `fxfault.transform`, or the path of a YAML file with a
                `fault_injection` section.
            network: path of the network in the LightningModule (`model.backbone`); default: the
                only child with layers that faults can strike.
            log_statistics: log RMSE, rate and cosine similarity for each site. Cosine similarity is
                measured only if this or `track_statistics` is set.
            example_inputs: one batch, a tensor or the tuple of a call's arguments, on which the
                faulty network is compared with the given one before training; see `fxfault.check`.

        Raises:
            ConfigError: a setting is not allowed, or the file cannot be read.
        """
        super().__init__()
        if network is not None and not isinstance(network, str):
            raise ConfigError(f"network: got {got(network)}, allowed: the path of a module or null")
        self.config = read_config(cfg, "cfg")
        self.network = network
        self.log_statistics = log_statistics
        self.example_inputs = example_inputs
        self.faults: FaultSites | None = None
        self.statistics: FaultStatistics | None = None
        self.noisy_step = False
        self._draws_seed = self.config.seed is None
        self._faulty: nn.Module | None = None
        self._path = ""
        self._slot = NetworkSlot(())
        self._state: dict[str, Any] = {}
        self._resumed = False
        self._epoch = FaultStatistics(0)  # of the training epoch, up to the last validation
        # State of the clock that a checkpoint saves instead of the current one: that at the start
        # of the current batch, or before the current pass of evaluation.
        self._position: dict[str, Any] | None = None
        self._evaluating = False
        self._called = False  # whether training called the network

    # -- replacing the network -----------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Insert the faulty network before optimisers and strategy look at the module.

        Raises:
            ConfigError: there is no module at `network`, or `network` is None and several children
                have layers that faults can strike.
            SiteError: no layer can be struck.
        """
        if not self.config.enabled and trainer.is_global_zero:
            _LOGGER.warning(
                "FaultAwareTraining injects no fault, as `enabled` of its configuration is false; "
                "set `enabled: true`, or leave the callback out"
            )
        try:
            self._ensure(trainer, pl_module)
        except FxFaultError:
            # The module may build its network in the hooks that run next: see `_ensure`.
            kind, base = type(pl_module), LightningModule
            if kind.setup is base.setup and kind.configure_model is base.configure_model:
                raise

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ensure(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the network back, with the current modes of its layers."""
        self._put_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the network back: Lightning does not call `teardown` after an error."""
        self._put_back()

    def _ensure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Insert the faulty network, unless it is there already.

        A module that builds its network in `setup` or `configure_model` gets the faulty one after
        the optimisers; that is harmless, as the two share their parameters.
        """
        if not self.config.enabled:
            return
        if self._faulty is not None and self._slot.holds(self._faulty):
            return
        self._take_out()
        self._path = find_network(pl_module, self.network, self.config)
        network = pl_module.get_submodule(self._path)
        self._share_seed(trainer)
        device = next((parameter.device for parameter in network.parameters()), None)
        inputs = pytree.tree_map_only(Tensor, lambda x: x.to(device), self.example_inputs)
        self._faulty = transform(network, self.config, inputs)
        self._slot = NetworkSlot.of(pl_module, network)
        self._slot.replace(network, by=self._faulty)
        self.faults = faults_of(self._faulty)
        self.faults.told_quiet = True  # Lightning validates before it trains.
        self.faults.shard(trainer.global_rank, trainer.world_size)
        cosine = self.log_statistics or self.config.track_statistics
        self.faults.set_statistics(_empty(self.faults, cosine))
        self.statistics, self._epoch = _empty(self.faults), _empty(self.faults)
        self.noisy_step = self._called = False

    def _share_seed(self, trainer: Trainer) -> None:
        """Give all processes the seed that one of them draws, if `cfg` has none."""
        if self._draws_seed:
            own = secrets.randbits(63) if self.config.seed is None else self.config.seed
            seed = trainer.strategy.broadcast(own)
            self.config = dataclasses.replace(self.config, seed=seed)

    def _take_out(self) -> None:
        if self._faulty is not None:
            self._slot.replace(self._faulty, by=FaultInjector().remove(self._faulty))
        self._faulty, self._slot = None, NetworkSlot(())

    def _put_back(self) -> None:
        try:
            self._state = self.state_dict()
        finally:  # After a device failure, reading the state from it fails.
            self._take_out()
            self.faults = self._position = None
            self._resumed = self._evaluating = False

    # -- training ------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume from the checkpoint, if there is one."""
        if self.faults is None or not self._resumed:
            return
        self._resume(self.faults)
        if self.faults.clock.epoch != trainer.current_epoch:
            # The checkpoint is from the end of an epoch; Lightning 2.6 starts the next one without
            # calling its hook.
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch of the schedule."""
        if self.faults is None or self.statistics is None:
            return
        self.statistics.merge(self._epoch)  # of an epoch that ended before the checkpoint
        self._epoch = _empty(self.faults)
        self.faults.start_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note where to resume if the run stops before the batch ends."""
        if self.faults is not None:
            self._position = self.faults.clock.state()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether the step was noisy."""
        self._position = None
        self.noisy_step = is_noisy(self.faults)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the statistics of the epoch.

        Raises:
            SiteError: no step called the network in training mode, so that no fault could strike;
                or, on a device other than the CPU, a fault struck values that were not codes.
        """
        if self.faults is None or self.statistics is None:
            return
        self._called |= self.faults.clock.step > 0
        if self.faults.clock.apply_during in ("train", "both"):
            self._require(self._called, pl_module, " in training mode")
        self._epoch.merge(_take(self.faults))
        self._log(pl_module, "", self._epoch)
        self.statistics.merge(self._epoch)
        self._epoch = _empty(self.faults)

    # -- evaluation ----------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a pass of evaluation, which counts its samples from 0."""
        self._ensure(trainer, pl_module)
        if self.faults is None:
            return
        self._epoch.merge(_take(self.faults))
        self._position, self._evaluating = self.faults.clock.state(), True
        self.faults.clock.reset()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the statistics of the pass, and log them unless it predicts."""
        if self.faults is None or self.statistics is None or trainer.sanity_checking:
            return
        if self.faults.clock.apply_during not in ("eval", "both"):
            return
        self._require(self.faults.clock.forward > 0, pl_module, "")
        recorded = _take(self.faults)
        if not trainer.predicting:
            self._log(pl_module, "test_" if trainer.testing else "val_", recorded)
        self.statistics.merge(recorded)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return to the place in training."""
        if self.faults is None or self._position is None:
            return
        _go_to(self.faults.clock, self._position)
        self._position, self._evaluating = None, False
        self.faults.new_statistics()

    on_test_start = on_predict_start = on_validation_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end
    on_test_end = on_predict_end = on_validation_end

    # -- resuming --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Place in the schedule and statistics, as plain values."""
        if self.faults is None or self.statistics is None or self._resumed:
            return self._state
        epoch = _empty(self.faults).merge(self._epoch)
        if self.faults.statistics is not None and not self._evaluating:
            epoch.merge(self.faults.statistics)
        return {
            "clock": self._position or self.faults.clock.state(),
            "statistics": self.statistics.to_dict(),
            "epoch": epoch.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the output of `state_dict` until training starts."""
        if self.config.enabled:
            self._state, self._resumed = state_dict, True

    def _resume(self, faults: FaultSites) -> None:
        position = self._state["clock"]
        if self._draws_seed:
            faults.clock.seed = position["seed"]
            self.config = dataclasses.replace(self.config, seed=position["seed"])
            faults.select(self.config.layers)  # In `layer` mode the seed may draw the layer.
        _go_to(faults.clock, position)  # This applies the curriculum too.
        self.statistics, self._epoch = (
            _empty(faults).merge(FaultStatistics.from_dict(self._state[key]))
            for key in ("statistics", "epoch")
        )
        self._resumed = False

    # -- statistics ------------------------------------------------------------------------

    def _require(self, called: bool, pl_module: LightningModule, how: str) -> None:
        if not called:
            raise SiteError(
                f"{type(pl_module).__name__} never called {self._path!r}{how}, and faults strike "
                "only in forwards of that module as a whole; name as `network` the one that its "
                "steps call"
            )

    def _log(self, pl_module: LightningModule, prefix: str, recorded: FaultStatistics) -> None:
        values = {"fault_rate": recorded.overall_injection_rate}
        if self.log_statistics:
            layers = recorded.layer_stats.values()
            names = loggable([layer.name for layer in layers])
            for name, layer in zip(names, layers, strict=True):
                values[f"faults/{name}/rate"] = layer.injection_rate
                if layer.sample_count:
                    values[f"faults/{name}/rmse"] = layer.avg_rmse
                    values[f"faults/{name}/cosine"] = layer.avg_cosine_similarity
        for name, value in values.items():
            # All processes have the same value; `sync_dist` only avoids a warning of Lightning.
            pl_module.log(prefix + name, value, on_step=False, on_epoch=True, sync_dist=True)


def is_noisy(faults: FaultSites | None) -> bool:
    """Whether faults could strike in the last forward."""
    return faults is not None and any(site.armed and site.strikes for site in faults)


def _go_to(clock: FaultClock, position: Mapping[str, Any]) -> None:
    """Set a clock to a position, but keep its settings."""
    own = clock.state()
    clock.restore({**position, **{name: own[name] for name in _SETTINGS}})


def _empty(faults: FaultSites, cosine: bool = True) -> FaultStatistics:
    return FaultStatistics(len(faults), faults.names, cosine=cosine)


def _take(faults: FaultSites) -> FaultStatistics:
    """Collect what all processes recorded since the last call; every process must call it.

    Raises:
        SiteError: on a device other than the CPU, a fault struck values that were not codes.
    """
    faults.check()
    taken, recorded = _empty(faults), faults.statistics
    if recorded is None:
        return taken
    faults.set_statistics(_empty(faults, recorded.cosine))
    if faults.clock.world_size == 1 or not torch.distributed.is_initialized():
        return taken.merge(recorded)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, recorded.to_dict())
    for part in parts:
        taken.merge(FaultStatistics.from_dict(part))
    return taken
