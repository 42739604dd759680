"""What a training shows while Lightning runs it. Importing this module imports Lightning."""

from __future__ import annotations

from typing import Any

from fxfault.cli.progress import Progress
from fxfault.cli.training_report import epoch_line
from fxfault.lightning_import import Callback, LightningModule, Trainer
from fxfault.training import Classifier
from fxfault.training_callbacks import Record, Row


class Reporter(Callback):
    """Prints a line for each epoch, and shows a bar with loss, accuracy and noise.

    Args:
        progress: where they go.

    Attributes:
        rows: of all epochs, those before a stop included.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.rows: list[Row] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        records = [callback for callback in trainer.callbacks if isinstance(callback, Record)]  # type: ignore[attr-defined]
        self.rows = records[0].rows

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.progress.start(int(trainer.num_training_batches), " steps")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: Classifier,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self.progress.visible:
            return  # Reading the sums would wait for the device.
        _, hits, samples, *_ = pl_module.totals.sums.tolist()
        accuracy = 100 * hits / max(samples, 1)
        state = "noisy" if pl_module.last_step_noisy else "clean"
        self.progress.describe(
            f"Epoch {trainer.current_epoch}/{(trainer.max_epochs or 0) - 1}",
            f"loss {pl_module.last_loss:.4f}, accuracy {accuracy:.2f}%, {state}",
        )
        self.progress.advance(1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.close()
        if trainer.is_global_zero:
            self.progress.say(epoch_line(self.rows[-1], trainer.max_epochs or 0))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: Any) -> None:
        self.progress.close()
