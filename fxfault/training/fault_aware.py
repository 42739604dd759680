"""Fault-aware training with PyTorch Lightning, by one line in a script that is there.

>>> from fxfault.training import FaultAwareTraining
>>> callback = FaultAwareTraining({"enabled": True, "probability": 5.0, "step_interval": 0.5})
>>> from lightning.pytorch import Trainer  # after fxfault.training.fault_aware, see below
>>> trainer = Trainer(callbacks=[callback], logger=False)  # trainer.fit(task, loader)

Import this module before `lightning` where torchvision was built for another torch than the
one installed: Lightning alone cannot be imported there.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping
from typing import Any

import torch.distributed
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError, FxFaultError, SiteError
from fxfault.messages import got
from fxfault.passes.injector import FaultInjector
from fxfault.passes.transform import transform
from fxfault.sites.clock import FaultClock
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.statistics import FaultStatistics
from fxfault.training.lightning_import import Callback, LightningModule, Trainer
from fxfault.training.network_slot import NetworkSlot, find_network

# What of a clock's state is set by the configuration, rather than a place in the schedule.
_SETTINGS = ("enabled", "apply_during", "epoch_interval", "step_interval", "seed")


class FaultAwareTraining(Callback):
    """Inject faults into the network of a LightningModule while a Trainer runs it.

    When `fit`, `validate`, `test` or `predict` starts, the network is replaced by
    `fxfault.transform(network, cfg)`, which shares its parameters; when it ends, also by an
    error or Ctrl-C, the network itself is put back. Checkpoints have the keys that they have
    without the callback. Where `enabled` is false, nothing is done at all.

    Each training epoch starts the epoch of the schedule (`FaultSites.start_epoch`). Each
    forward of the network in training mode is one step of it; so, with
    `accumulate_grad_batches`, each micro-batch is drawn clean or noisy for itself. Each pass
    of validation, also the sanity check, numbers its samples from 0 and leaves those of
    training alone; predicting counts as evaluation.

    `fault_rate` is logged at the end of each training epoch: elements hit, in percent of the
    elements of the forwards in which faults struck. With `apply_during` of `eval` or `both`,
    `val_fault_rate` and `test_fault_rate` are logged too. With `log_statistics` the same is
    done for each site: `faults/<site>/rate`, and, once faults struck there,
    `faults/<site>/rmse` and `faults/<site>/cosine`.

    Several processes (`ddp`) hit the samples that they have with the faults that one process
    hits them with in the joined batch, which is their batches one after the other, in the
    order of their ranks; and the statistics are those of all of them.

    The state of the callback in a checkpoint is where the schedule stands, and the
    statistics: a run that goes on from there (`trainer.fit(ckpt_path=...)`) has the noisy
    steps and the faults of one that was never stopped. The settings are those of `cfg`, as it
    is then; only a seed that was drawn because `cfg` has none comes from the checkpoint. In
    the middle of an epoch, Lightning itself goes on with the right batch only where the loader
    has `state_dict` and `load_state_dict`; and of the statistics of the started epoch, one
    process of several saves its own.

    >>> FaultAwareTraining({"enabled": True, "probability": 500.0})
    Traceback (most recent call last):
    ...
    fxfault.errors.InvalidConfigError: fault_injection.probability: got 500.0 (float), \
allowed: a number from 0 to 100

    Attributes:
        config: what to inject, where and when.
        faults: the network's sites while the Trainer runs it; None before and after.
        statistics: what was recorded since the Trainer started, up to the last whole epoch
            or pass of evaluation, without the sanity check; None before.
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
        """Check the settings; the network is looked for when the Trainer starts.

        Args:
            cfg: what `fxfault.transform` takes, or the path of a YAML file with a
                `fault_injection` section.
            network: path of the network in the LightningModule (`model.backbone`). None: the
                one child that holds layers that faults can strike.
            log_statistics: log RMSE, rate and cosine similarity for each site. Where neither
                this nor `track_statistics` is set, cosine similarity is not measured.
            example_inputs: of one batch, a tensor or a tuple of the arguments of a call: the faulty
                network is compared with the given one before it trains; see `fxfault.check`.

        Raises:
            ConfigError: a setting is not allowed, or the file cannot be read.
        """
        super().__init__()
        if network is not None and not isinstance(network, str):
            raise ConfigError(
                f"network: got {got(network)}, allowed: the path of a module, or null"
            )
        self.config = _read(cfg)
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
        # Where a run would go on that is stopped now, if that is not where the clock stands:
        # at the start of a batch that has started, and not in a pass of evaluation.
        self._position: dict[str, Any] | None = None
        self._evaluating = False
        self._called = False  # whether training called the network

    # -- putting the faulty network in and taking it out -----------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the faulty network in, before optimisers and strategy look at the module.

        Raises:
            ConfigError: there is no module at `network`; or it is not given, and several
                modules could be meant.
            SiteError: there is nothing that faults can strike.
        """
        try:
            self._ensure(trainer, pl_module)
        except FxFaultError:
            # The module's own hooks, which run next, may make the network: see `_ensure`.
            if not _builds_later(pl_module):
                raise

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ensure(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the network itself back, with the modes of its layers as they are now."""
        self._put_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Do what `teardown` does, which Lightning does not call after an error."""
        self._put_back()

    def _ensure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the faulty network in, unless it is there.

        It is not there where the module makes its network in `setup` or `configure_model`.
        Then it comes after the optimisers, which is no harm: it shares the parameters.
        """
        if not self.config.enabled:
            return
        if self._faulty is not None and self._slot.holds(self._faulty):
            return
        self._take_out()
        self._path = find_network(pl_module, self.network, tuple(self.config.targets))
        network = pl_module.get_submodule(self._path)
        self._share_seed(trainer)
        self._faulty = transform(network, self.config, self._examples(network))
        self._slot = NetworkSlot.of(pl_module, network)
        self._slot.replace(network, by=self._faulty)
        self.faults = faults_of(self._faulty)
        self.faults.told_quiet = True  # Lightning validates before it trains.
        self.faults.shard(trainer.global_rank, trainer.world_size)
        cosine = self.log_statistics or self.config.track_statistics
        recorded = FaultStatistics(len(self.faults), self.faults.names, cosine=cosine)
        self.faults.set_statistics(recorded)
        self.statistics, self._epoch = _empty(self.faults), _empty(self.faults)
        self.noisy_step = self._called = False

    def _examples(self, network: nn.Module) -> Any:
        """The example inputs, where the network is."""
        device = next((parameter.device for parameter in network.parameters()), None)
        return pytree.tree_map_only(Tensor, lambda x: x.to(device), self.example_inputs)

    def _share_seed(self, trainer: Trainer) -> None:
        """Let all processes have the seed that one of them draws, where `cfg` has none."""
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
        finally:  # After a failure of the device nothing can be read from it any more.
            self._take_out()
            self.faults = self._position = None
            self._resumed = self._evaluating = False

    # -- training ------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where the checkpoint stands, if there is one."""
        if self.faults is None or not self._resumed:
            return
        self._resume(self.faults)
        if self.faults.clock.epoch != trainer.current_epoch:
            # Saved after the last step of an epoch; Lightning 2.6 then starts the next one
            # without its hook.
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch of the schedule."""
        if self.faults is None or self.statistics is None:
            return
        self.statistics.merge(self._epoch)  # of an epoch that a checkpoint saw end
        self._epoch = _empty(self.faults)
        self.faults.start_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note where a run goes on that is stopped before the batch ends."""
        if self.faults is not None:
            self._position = self.faults.clock.state()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note whether the step was a noisy one."""
        self._position = None
        if self.faults is not None:
            self.noisy_step = any(site.armed and site.strikes for site in self.faults)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the epoch recorded.

        Raises:
            SiteError: no step called the network in training mode, so that no fault can have
                struck; or, off the CPU, values that were struck were no codes.
        """
        if self.faults is None or self.statistics is None:
            return
        self._called |= self.faults.clock.step > 0
        if _strikes(self.faults, "train"):
            self._require(self._called, pl_module, " in training mode")
        self._epoch.merge(_take(self.faults))
        self._log(pl_module, "", self._epoch)
        self.statistics.merge(self._epoch)
        self._epoch = _empty(self.faults)

    # -- evaluation ----------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record_evaluation(pl_module, "val_")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_evaluation(pl_module, "test_")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, pl_module)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_evaluation(pl_module, None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation()

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ensure(trainer, pl_module)
        if self.faults is None:
            return
        self._epoch.merge(_take(self.faults))
        self._position, self._evaluating = self.faults.clock.state(), True
        self.faults.clock.reset()

    def _record_evaluation(self, pl_module: LightningModule, prefix: str | None) -> None:
        if self.faults is None or self.statistics is None or not _strikes(self.faults, "eval"):
            return
        self._require(self.faults.clock.forward > 0, pl_module, "")
        recorded = _take(self.faults)
        if prefix is not None:
            self._log(pl_module, prefix, recorded)
        self.statistics.merge(recorded)

    def _end_evaluation(self) -> None:
        if self.faults is None or self._position is None:
            return
        _go_to(self.faults.clock, self._position)
        self._position, self._evaluating = None, False
        self.faults.new_statistics()

    # -- going on after a stop -------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and the statistics: numbers, texts and mappings."""
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
        """Keep what `state_dict` gave until training starts."""
        if self.config.enabled:
            self._state, self._resumed = state_dict, True

    def _resume(self, faults: FaultSites) -> None:
        position = self._state["clock"]
        if self._draws_seed:
            faults.clock.seed = position["seed"]
            self.config = dataclasses.replace(self.config, seed=position["seed"])
            faults.select(self.config.layers)  # In `layer` mode the seed may draw it.
        _go_to(faults.clock, position)  # This applies the curriculum too.
        self.statistics = _read_statistics(faults, self._state["statistics"])
        self._epoch = _read_statistics(faults, self._state["epoch"])
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
            for layer in recorded.layer_stats.values():
                values[f"faults/{layer.name}/rate"] = layer.injection_rate
                if layer.sample_count:
                    values[f"faults/{layer.name}/rmse"] = layer.avg_rmse
                    values[f"faults/{layer.name}/cosine"] = layer.avg_cosine_similarity
        for name, value in values.items():
            # All processes have the same value; not to say so would make Lightning warn.
            pl_module.log(prefix + name, value, on_step=False, on_epoch=True, sync_dist=True)


def _read(cfg: Any) -> FaultInjectionConfig:
    if isinstance(cfg, (str, os.PathLike)):
        return FaultInjectionConfig.from_yaml(cfg)
    if isinstance(cfg, Mapping):
        return FaultInjectionConfig.from_dict(cfg)
    if not isinstance(cfg, FaultInjectionConfig):
        raise ConfigError(
            f"cfg: got {got(cfg)}, allowed: a FaultInjectionConfig, its mapping, or the path of a "
            "YAML file"
        )
    cfg.validate()
    return cfg


def _builds_later(pl_module: LightningModule) -> bool:
    """Whether the module may make its network in hooks that run after `Callback.setup`."""
    kind, base = type(pl_module), LightningModule
    return kind.setup is not base.setup or kind.configure_model is not base.configure_model


def _strikes(faults: FaultSites, mode: str) -> bool:
    return faults.clock.apply_during in (mode, "both")


def _go_to(clock: FaultClock, position: Mapping[str, Any]) -> None:
    """Let a clock stand where another stood, with its own settings."""
    own = clock.state()
    clock.restore({**position, **{name: own[name] for name in _SETTINGS}})


def _empty(faults: FaultSites) -> FaultStatistics:
    return FaultStatistics(len(faults), faults.names)


def _read_statistics(faults: FaultSites, content: Mapping[str, Any]) -> FaultStatistics:
    return _empty(faults).merge(FaultStatistics.from_dict(content))


def _take(faults: FaultSites) -> FaultStatistics:
    """What all processes recorded since the last time; each of them must ask at this moment.

    Raises:
        SiteError: off the CPU, values that were struck were no codes.
    """
    faults.check()
    taken, recorded = _empty(faults), faults.statistics
    if recorded is None:
        return taken
    faults.set_statistics(FaultStatistics(len(faults), faults.names, cosine=recorded.cosine))
    if faults.clock.world_size == 1 or not torch.distributed.is_initialized():
        return taken.merge(recorded)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, recorded.to_dict())
    for part in parts:
        taken.merge(FaultStatistics.from_dict(part))
    return taken
