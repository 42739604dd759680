"""The LightningModule that trains a network, and the LightningDataModule with its batches."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# Import this first: see there.
from fxfault.training.lightning_import import LightningModule  # isort: skip
from lightning.pytorch import LightningDataModule

from fxfault.errors import SiteError, TrainingError
from fxfault.experiment.sections import ExperimentConfig
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.settings import Setting
from fxfault.sites.site import FaultSite
from fxfault.training.batches import Collate, Shard, TrainingLoader, evaluation_loader
from fxfault.training.fault_aware import FaultAwareTraining, is_noisy
from fxfault.training.model_errors import quoting_model
from fxfault.training.objective import Objective, Totals, ValidationPass
from fxfault.training.optimizers import build_optimizer, build_scheduler


class Learner(LightningModule):
    """Trains a network as an experiment says.

    Each epoch logs `train_loss`, `noisy_steps`, `train_accuracy` (percent) if there is no `metric`,
    and `val_loss` and `val_accuracy` or `val_METRIC` of each validation loader, with the prefix
    `faulty_` for the second. Faults strike only in the second, if `apply_during` says so, with the
    probability and type of the configuration itself rather than those of a curriculum. A callback
    gets the training values from `epoch_metrics`, as its hook runs earlier.

    Args:
        network: the network.
        config: experiment with sections `training`, `optimizer` and `scheduler`, and `metric` and
            `dataset.batch` for another task than classification.
        faulty: the callback that injects faults, if any.

    Attributes:
        objective: the loss and the measure.
        totals: sums over the training steps of the epoch.
        last_loss: loss of the last training step.
        last_step_noisy: whether faults could strike in that step.
    """

    def __init__(
        self, network: nn.Module, config: ExperimentConfig, faulty: FaultAwareTraining | None = None
    ) -> None:
        super().__init__()
        self.objective = Objective.of(config, network)
        self.network = network
        self.config = config
        self.faulty = faulty
        self.totals = Totals()
        self.last_loss = 0.0
        self.last_step_noisy = False
        self._validation: list[ValidationPass] = []
        self._schedule: list[tuple[FaultSite, Setting]] = []
        self._metrics: dict[str, float] = {}

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Outputs of the network.

        Raises:
            DataError: the network fails; its error is quoted.
        """
        during = "a training step" if self.training else "an evaluation"
        with quoting_model(during, inputs, keywords):
            return self.network(*inputs, **keywords)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.config.optimizer, self.parameters())
        return [optimizer], [build_scheduler(self.config, optimizer)]

    def on_train_epoch_start(self) -> None:
        self.totals = Totals()

    def training_step(self, given: Any, batch_idx: int) -> Tensor:
        """Loss of a batch.

        Raises:
            DataError: the network, the loss or the data fails.
            TrainingError: the loss is not finite; no parameter was updated.
        """
        objective, unsound = self.objective, None
        batch = objective.take(given)
        try:
            with quoting_model("a training step", batch.inputs, batch.keywords):
                output = self(*batch.inputs, **batch.keywords)
                loss = objective.loss(output, batch.targets, smoothing=objective.smoothing)
                objective.loss.check_gradient(loss)
                self.last_loss = float(loss.detach())
        except SiteError as error:  # NaN reached a site, which means a NaN loss in a noisy step.
            self.last_loss, unsound = math.nan, error
        self.last_step_noisy = is_noisy(self._sites)
        self._check_finite(batch_idx, unsound)
        hits = objective.hits(output, batch)
        self.totals.add(loss, hits, batch.samples, self.last_step_noisy)
        return loss

    @property
    def _sites(self) -> FaultSites | None:
        return None if self.faulty is None else self.faulty.faults

    def _check_finite(self, batch_idx: int, unsound: SiteError | None) -> None:
        # All processes stop together, as one alone would wait for the others for ever.
        is_broken = not math.isfinite(self.last_loss)
        if not self.trainer.strategy.reduce_boolean_decision(is_broken, all=False):
            return
        kind = "a noisy step" if self.last_step_noisy else "a clean step"
        last_epoch = (self.trainer.max_epochs or 0) - 1
        steps = int(self.trainer.num_training_batches)
        reason = f" ({unsound})" if unsound is not None else ""
        raise TrainingError(
            f"the loss is {self.last_loss} in epoch {self.current_epoch} (of 0 to {last_epoch}), "
            f"step {batch_idx} (of 0 to {steps - 1}), {kind}{reason}: lower "
            f"optimizer.learning_rate or set training.gradient_clip"
            + (", or lower fault_injection.probability" if self.last_step_noisy else "")
        ) from unsound

    def on_validation_epoch_start(self) -> None:
        self._validation = []
        sites = self._sites
        self._schedule = [(site, site.setting) for site in sites or ()]
        if sites is not None:
            # Not the curriculum's faults of this epoch: epochs must be comparable.
            sites.set_faults(self.config.fault_injection)

    def validation_step(self, given: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self._sites is not None:
            self._sites.enabled = dataloader_idx == 1
        if dataloader_idx == len(self._validation):
            self._validation.append(ValidationPass(self.objective, *self._validation))
        batch = self.objective.take(given)
        output = self(*batch.inputs, **batch.keywords)
        self._validation[dataloader_idx].add(output, batch)

    def on_validation_epoch_end(self) -> None:
        if self._sites is not None:
            self._sites.enabled = True
        for site, setting in self._schedule:
            site.setting = setting
        self._metrics = {}
        for prefix, found in zip(("val", "faulty_val"), self._validation, strict=False):
            self._metrics.update(self._means(found.totals, prefix))
            if self.objective.judge.metric is not None:
                self._metrics[f"{prefix}_{self.objective.facts.column}"] = found.metric_value()
        self._log(self._metrics)

    def on_train_epoch_end(self) -> None:
        noisy = float(self.totals.sums[4])
        self._log({"noisy_steps": noisy, **self._means(self.totals, "train")})

    def _log(self, metrics: dict[str, float]) -> None:
        # All processes have the same values; `sync_dist` only avoids a warning of Lightning.
        self.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True)

    def epoch_metrics(self) -> dict[str, float]:
        """Measurements of the epoch over all processes; every process must call this."""
        metrics = self._means(self.totals, "train")
        _, _, _, steps, noisy = self.totals.sums.tolist()
        return {"steps": steps, "noisy_steps": noisy, **metrics, **self._metrics}

    def _means(self, totals: Totals, prefix: str) -> dict[str, float]:
        sums: Any = totals.sums.to(self.device, copy=True)  # The reduction is in place.
        loss, hits, samples, *_ = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if samples == 0:
            return {}
        found = {f"{prefix}_loss": loss / samples}
        if self.objective.judge.metric is None:
            found[f"{prefix}_accuracy"] = 100 * hits / samples
        return found


class TrainingBatches(LightningDataModule):
    """The loaders of a training; each process gets its part.

    Args:
        config: experiment with sections `training`, `seed` and `fault_injection`.
        training: samples to train on.
        validation: samples held out; None needs a Trainer with `limit_val_batches=0`.
        collate: joins samples to a batch; default: that of torch.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        training: Dataset[Any],
        validation: Dataset[Any] | None,
        collate: Collate | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.training = training
        self.validation = validation
        self.collate = collate

    def train_dataloader(self) -> TrainingLoader:
        seed = self.config.seed.value
        return TrainingLoader(self.training, self.config.training, seed, self._shard, self.collate)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The validation samples without faults, and again with faults if they are enabled."""
        if self.validation is None:
            return []
        passes = 2 if self.config.needs_faulty_validation else 1
        size = self.config.training.batch_size
        return [
            evaluation_loader(self.validation, size, self._shard, self.collate)
            for _ in range(passes)
        ]

    @property
    def _shard(self) -> Shard:
        assert self.trainer is not None
        return Shard(self.trainer.global_rank, self.trainer.world_size)
