"""The progress of a training while Lightning runs it. Importing this module imports Lightning."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fxfault.cli.terminal.progress import Progress
from fxfault.cli.training_report import epoch_line
from fxfault.training.callbacks import Record, Row
from fxfault.training.learner import Learner
from fxfault.training.lightning_import import Callback, LightningModule, Trainer


class Reporter(Callback):
    """Prints a line for each epoch, and shows a bar with loss, noise and a classifier's accuracy.

    Args:
        progress: prints the lines and shows the bar.

    Attributes:
        rows: measurements of all epochs, including those before the run was resumed.
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
        pl_module: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self.progress.visible:
            return  # Because reading the sums waits for the device.
        _, hits, samples, *_ = pl_module.totals.sums.tolist()
        accuracy = ""
        if pl_module.objective.facts.is_accuracy:
            accuracy = f"accuracy {100 * hits / max(samples, 1):.2f}%, "
        state = "noisy" if pl_module.last_step_noisy else "clean"
        self.progress.describe(
            f"Epoch {trainer.current_epoch}/{(trainer.max_epochs or 0) - 1}",
            f"loss {pl_module.last_loss:.4f}, {accuracy}{state}",
        )
        self.progress.advance(1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Learner) -> None:  # type: ignore[override]
        self.progress.close()
        if trainer.is_global_zero:
            self.progress.say(
                epoch_line(self.rows[-1], trainer.max_epochs or 0, pl_module.objective.facts)
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: Any) -> None:
        self.progress.close()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice and notices; it still raises errors."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
