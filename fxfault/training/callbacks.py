"""Lightning callbacks of `fxfault.training`: records, checkpoints and their files."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

# Import this first: see there.
from fxfault.training.lightning_import import Callback, LightningModule, Trainer  # isort: skip
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fxfault.config.curriculum import epoch_plan
from fxfault.errors import DataError, FxFaultError
from fxfault.experiment.sections import ExperimentConfig
from fxfault.files.access import write_atomically
from fxfault.files.sources import Sources
from fxfault.messages import quote_error
from fxfault.models.checkpoints import read_content
from fxfault.training.calibration import calibration_state, restore_calibration
from fxfault.training.generators import generator_states, restore_generators
from fxfault.training.optimizers import learning_rate
from fxfault.training.run_folder import BEST, LAST, METRICS, RunFolder

if TYPE_CHECKING:
    from fxfault.training.learner import Learner
    from fxfault.training.objective import Objective

_KEY = "fxfault"

Row = dict[str, float]
"""Measurements of an epoch by name, the columns of metrics.csv."""


class Interrupted(FxFaultError):
    """A training that was asked to stop and saved its state.

    Attributes:
        epoch: epoch, from 0, in which it will resume.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"stopped in epoch {epoch}")
        self.epoch = epoch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a new file and renames it, so that a kill or a full disk leaves the old one.

    Args:
        most: as for `read_checkpoint`.

    Attributes:
        written: SHA-256 of the written files, in hexadecimal, by path.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.written: dict[str, str] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint into an existing folder; a folder that vanished is an error."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        write_atomically(path, content)
        self.written[str(path)] = hashlib.sha256(content).hexdigest()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it."""
        return read_checkpoint(path, self.most)


def read_checkpoint(path: str | Path, most: int) -> dict[str, Any]:
    """Read a checkpoint that `fxfault train` wrote.

    Args:
        path: the file.
        most: largest allowed size, packed and unpacked, in bytes; see
            `fxfault.models.checkpoints.most_bytes`.

    Raises:
        DataError: the file cannot be read, or `fxfault train` did not write it.
    """
    prefix = f"checkpoint {str(path)!r}"
    try:
        content = read_content(Path(path), prefix, most, "name one that fxfault train wrote")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch raises almost anything for bytes that are no checkpoint
        raise DataError(f"{prefix} cannot be read: {quote_error(error)}") from error
    if not isinstance(checkpoint, dict) or _KEY not in checkpoint:
        raise DataError(f"{prefix} was not written by fxfault train")
    return checkpoint


@dataclass(eq=False)
class Record(Callback):
    """Keeps the measurements of each epoch, in metrics.csv and in checkpoints.

    Attributes:
        config: the experiment.
        folder: folder of metrics.csv; None writes nothing.
        rows: one row for each finished epoch.
    """

    config: ExperimentConfig
    folder: RunFolder | None
    rows: list[Row] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)
    _generators: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the generators; nothing draws numbers between here and the first step."""
        if self._generators is not None:
            restore_generators(self._generators)
            self._generators = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Learner) -> None:  # type: ignore[override]
        epoch = trainer.current_epoch
        row: Row = {"epoch": epoch, "learning_rate": learning_rate(self.config, epoch)}
        row.update(pl_module.epoch_metrics())
        if pl_module.faulty is not None:
            faults = self.config.fault_injection
            plan = epoch_plan(faults, epoch)
            if not plan.several:
                strikes = plan.noisy and faults.apply_during != "eval"
                row["probability"] = plan.probability if strikes else 0.0
            row["fault_rate"] = float(trainer.callback_metrics["fault_rate"])
        row["seconds"] = time.perf_counter() - self._started
        self.rows.append(row)
        # The module and the callback that injects faults log the rest.
        own = ("learning_rate", "steps", "probability", "seconds")
        logged = {name: row[name] for name in own if name in row}
        pl_module.log_dict(logged, on_step=False, on_epoch=True, rank_zero_only=True)
        if self.folder is not None and trainer.is_global_zero:
            self.folder.write(METRICS, to_csv(self.rows))

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Learner, checkpoint: dict[str, Any]
    ) -> None:
        calibration = calibration_state(pl_module)
        weights = checkpoint["state_dict"]
        for path, state in calibration.items():
            # Add a scale before its first step: Brevitas leaves it out, but readers need all.
            for name, tensor in state["tensors"].items():
                if name in dict(pl_module.get_submodule(path).named_parameters(recurse=False)):
                    weights.setdefault(f"{path}.{name}", tensor)
        checkpoint[_KEY] = {
            "rows": copy.deepcopy(self.rows),
            "totals": pl_module.totals.sums.cpu(),
            "calibration": calibration,
            "generators": generator_states(),
            "processes": trainer.world_size,
        }

    def on_load_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Learner, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint[_KEY]
        self.rows = copy.deepcopy(state["rows"])
        pl_module.totals.sums = state["totals"].clone()
        restore_calibration(pl_module, state["calibration"])
        self._generators = state["generators"]


@dataclass(eq=False)
class Checkpoints(Checkpoint):
    """Saves `last.ckpt` before the first epoch and after each, and `best.ckpt` after the best.

    The best epoch has the highest validation accuracy, or the best value of the metric, and among
    equals the lowest validation loss.

    Attributes:
        config: the experiment.
        record: the measurements.
        folder: folder of the checkpoints; None keeps the best weights in memory.
        stop: function that tells whether the training was asked to stop.
        files: writer of the checkpoints.
        sources: checkpoints that the training started from, checked after each save.
        best: row of the best epoch so far.
        best_content: SHA-256 of its file; None if there is none, or an older fxfault wrote it.
        best_weights: weights of the network in that epoch, if there is no folder.
    """

    config: ExperimentConfig
    record: Record
    folder: RunFolder | None
    stop: Callable[[], bool]
    files: AtomicCheckpointIO
    sources: Sources
    best: Row | None = None
    best_content: str | None = None
    best_weights: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, LAST)  # so that a run killed at any moment can resume

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # The end of the epoch, which comes next, is a better place to stop.
        if trainer.strategy.reduce_boolean_decision(self.stop(), all=False):
            self._save(trainer, LAST)
            raise Interrupted(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Learner) -> None:  # type: ignore[override]
        row = self.record.rows[-1]
        # Save the best first: `last.ckpt` names the best epoch, whose file must then exist.
        wanted = self.config.checkpoint.save_best
        objective = pl_module.objective
        if wanted and (
            self.best is None or self._rank(row, objective) > self._rank(self.best, objective)
        ):
            self.best = row
            if self.folder is None:
                self.best_weights = copy.deepcopy(pl_module.network.state_dict())
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        stopped = trainer.strategy.reduce_boolean_decision(self.stop(), all=False)
        if stopped and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            raise Interrupted(trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Row of the best epoch and SHA-256 of its file."""
        return {"best": self.best, "best_content": self.best_content}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best epoch."""
        self.best = state_dict["best"]
        self.best_content = state_dict.get("best_content")

    def _rank(self, row: Row, objective: Objective) -> tuple[float, float]:
        prefix = "faulty_val" if self.config.checkpoint.best_by == "faulty" else "val"
        return objective.rank(row[f"{prefix}_{objective.facts.column}"]), -row[f"{prefix}_loss"]

    def _save(self, trainer: Trainer, name: str) -> None:
        if self.folder is not None:
            self.folder.check_is_same()
            path = self.folder.file(name)
            trainer.save_checkpoint(path)
            if name == BEST:
                self.best_content = self.files.written.get(str(path))
        self.sources.check()


def to_csv(rows: list[Row]) -> str:
    """Write rows as a table.

    >>> print(to_csv([{"epoch": 0, "train_loss": 0.5}]), end="")
    epoch,train_loss
    0,0.5
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
