"""What Lightning calls while `fxfault.training` runs it: records, checkpoints and their files."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

# First: see there.
from fxfault.training.lightning_import import Callback, LightningModule, Trainer  # isort: skip
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fxfault.config.curriculum import epoch_plan
from fxfault.errors import DataError, FxFaultError
from fxfault.evaluation.incremental.free_memory import free_memory
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
    from fxfault.training.classifier import Classifier

_KEY = "fxfault"

Row = dict[str, float]
"""What was measured in an epoch, by name: the columns of metrics.csv."""


class Interrupted(FxFaultError):
    """A training that was asked to stop, and saved where it was.

    Attributes:
        epoch: the epoch, from 0, in which it goes on.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"stopped in epoch {epoch}")
        self.epoch = epoch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a new file and renames it, so that a kill or a full disk leaves the old one.

    Attributes:
        written: SHA-256 of what was written, in hexadecimal, by the path.
    """

    def __init__(self, most: int | None = None) -> None:
        """Write nothing yet; `most` is that of `read_checkpoint`."""
        super().__init__()
        self.most = most
        self.written: dict[str, str] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; its folder must be there, as one that vanished is an error."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        write_atomically(path, content)
        self.written[str(path)] = hashlib.sha256(content).hexdigest()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, executing nothing that is in it."""
        return read_checkpoint(path, self.most)


def read_checkpoint(path: str | Path, most: int | None = None) -> dict[str, Any]:
    """Read a checkpoint that a training wrote.

    Args:
        path: of the file.
        most: bytes that it may have and unpack to, see `fxfault.models.checkpoints.most_bytes`;
            default: as much as there is memory.

    Raises:
        DataError: it cannot be read, or is none.
    """
    prefix = f"checkpoint {str(path)!r}"
    try:
        limit = free_memory() if most is None else most
        content = read_content(Path(path), prefix, limit, "name one that fxfault-train wrote")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # bytes that are no checkpoint make torch raise almost anything
        raise DataError(f"{prefix} cannot be read: {quote_error(error)}") from error
    if not isinstance(checkpoint, dict) or _KEY not in checkpoint:
        raise DataError(f"{prefix} was not written by fxfault-train")
    return checkpoint


class Record(Callback):
    """Keeps what each epoch measured, writes metrics.csv, and carries it through checkpoints.

    Args:
        config: the experiment.
        folder: where metrics.csv is written; None writes nothing.

    Attributes:
        rows: one for each finished epoch.
    """

    def __init__(self, config: ExperimentConfig, folder: RunFolder | None) -> None:
        self.config = config
        self.folder = folder
        self.rows: list[Row] = []
        self._started = time.perf_counter()
        self._generators: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Last before training: nothing draws numbers between here and the first step."""
        if self._generators is not None:
            restore_generators(self._generators)
            self._generators = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        epoch = trainer.current_epoch
        row: Row = {"epoch": epoch, "learning_rate": learning_rate(self.config, epoch)}
        row.update(pl_module.epoch_metrics())
        if pl_module.faulty is not None:
            if not epoch_plan(self.config.fault_injection, epoch).several:
                row["probability"] = _probability(self.config, epoch)
            row["fault_rate"] = float(trainer.callback_metrics["fault_rate"])
        row["seconds"] = time.perf_counter() - self._started
        self.rows.append(row)
        # The rest is logged by the module and by the callback that injects faults.
        own = ("learning_rate", "steps", "probability", "seconds")
        logged = {name: row[name] for name in own if name in row}
        pl_module.log_dict(logged, on_step=False, on_epoch=True, rank_zero_only=True)
        if self.folder is not None and trainer.is_global_zero:
            self.folder.write(METRICS, to_csv(self.rows))

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: Classifier,  # type: ignore[override]
        checkpoint: dict[str, Any],
    ) -> None:
        calibration = calibration_state(pl_module)
        weights = checkpoint["state_dict"]
        for path, state in calibration.items():
            # A scale before its first step, which Brevitas leaves out: a reader is to find all.
            for name, tensor in state["tensors"].items():
                if name in dict(pl_module.get_submodule(path).named_parameters(recurse=False)):
                    weights.setdefault(f"{path}.{name}", tensor)
        checkpoint[_KEY] = {
            "rows": copy.deepcopy(self.rows),
            "totals": pl_module.totals.state(),
            "calibration": calibration,
            "generators": generator_states(),
            "processes": trainer.world_size,
        }

    def on_load_checkpoint(
        self,
        trainer: Trainer,
        pl_module: Classifier,  # type: ignore[override]
        checkpoint: dict[str, Any],
    ) -> None:
        state = checkpoint[_KEY]
        self.rows = copy.deepcopy(state["rows"])
        pl_module.totals.restore(state["totals"])
        restore_calibration(pl_module, state["calibration"])
        self._generators = state["generators"]


class Checkpoints(Checkpoint):
    """Saves `last.ckpt` before the first epoch and after each, and `best.ckpt` when it is better.

    Better is a higher validation accuracy, and of equal ones the lower validation loss.

    Args:
        config: the experiment.
        record: what was measured.
        folder: where they are written; None keeps the best weights in memory.
        stop: tells whether the training was asked to stop.
        files: what writes them.
        sources: what the training started from, looked at after each save.

    Attributes:
        best: the row of the best epoch so far.
        best_content: SHA-256 of its file; None where there is none, or an older fxfault wrote it.
        best_weights: of the network in that epoch, where there is no folder.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        record: Record,
        folder: RunFolder | None,
        stop: Callable[[], bool],
        files: AtomicCheckpointIO,
        sources: Sources,
    ) -> None:
        self.files, self.sources = files, sources
        self.best_content: str | None = None
        self.record = record
        self.folder = folder
        self.stop = stop
        self.saves_best = config.checkpoint.save_best
        self.prefix = "faulty_val" if config.checkpoint.best_by == "faulty" else "val"
        self.best: Row | None = None
        self.best_weights: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, LAST)  # Killed at any moment, there is something to go on from.

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # The epoch is about to end, which is the better place to stop.
        if trainer.strategy.reduce_boolean_decision(self.stop(), all=False):
            self._save(trainer, LAST)
            raise Interrupted(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        row = self.record.rows[-1]
        # The best first: a `last` that calls an epoch the best must find that file there.
        if self.saves_best and (self.best is None or self._rank(row) > self._rank(self.best)):
            self.best = row
            if self.folder is None:
                self.best_weights = copy.deepcopy(pl_module.network.state_dict())
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        stopped = trainer.strategy.reduce_boolean_decision(self.stop(), all=False)
        if stopped and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            raise Interrupted(trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The row of the best epoch, and the content of its file."""
        return {"best": self.best, "best_content": self.best_content}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on looking for a better one."""
        self.best = state_dict["best"]
        self.best_content = state_dict.get("best_content")

    def _rank(self, row: Row) -> tuple[float, float]:
        return row[f"{self.prefix}_accuracy"], -row[f"{self.prefix}_loss"]

    def _save(self, trainer: Trainer, name: str) -> None:
        if self.folder is not None:
            self.folder.check_is_same()
            path = self.folder.file(name)
            trainer.save_checkpoint(path)
            if name == BEST:
                self.best_content = self.files.written.get(str(path))
        self.sources.check()


def to_csv(rows: list[Row]) -> str:
    """Give rows as a table.

    >>> print(to_csv([{"epoch": 0, "train_loss": 0.5}]), end="")
    epoch,train_loss
    0,0.5
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _probability(config: ExperimentConfig, epoch: int) -> float:
    """Of a hit in the noisy steps of an epoch, in percent; 0 where it has none."""
    faults = config.fault_injection
    plan = epoch_plan(faults, epoch)
    return plan.probability if plan.noisy and faults.apply_during != "eval" else 0.0
