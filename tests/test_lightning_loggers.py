"""What the Lightning callback tells loggers and users."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from brevitas.nn import QuantLinear, QuantReLU
from torch import Tensor, nn

from fxfault.lightning import FaultAwareTraining  # isort: skip  # before lightning itself
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning_tasks import Task, loader

pytestmark = [
    # Lightning 2.6 asks torch 2.13 an old question.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Brevitas shares a `TensorClamp` between networks, and with it the mode of any other test.
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]

CONFIG = {"enabled": True, "probability": 20.0, "apply_during": "both", "seed": 7}


class Twice(nn.Module):
    """A network that calls one layer twice: its sites are `relu` and `relu@2`."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = QuantReLU(bit_width=4, max_val=3.0, scaling_impl_type="const")
        self.hidden = QuantLinear(6, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.hidden(self.relu(x))))


class Strict(Logger):
    """Refuses names as MLflow does, which takes letters, digits, and _ - . / and spaces."""

    name, version = "strict", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name in metrics:
            assert re.fullmatch(r"[\w\-./ ]+", name, re.ASCII), name
        self.logged.update(metrics)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass


def trainer(folder: Path, *loggers: Any, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(
        default_root_dir=folder, logger=list(loggers), max_epochs=1, log_every_n_steps=1,
        enable_checkpointing=False, **quiet, **options,
    )  # fmt: skip


def test_every_logger_gets_the_statistics_under_names_that_it_takes(tmp_path: Path) -> None:
    strict, table = Strict(), CSVLogger(tmp_path, name="csv", version="")
    board = TensorBoardLogger(tmp_path, name="board", version="")
    aware = FaultAwareTraining(CONFIG, log_statistics=True)
    running = trainer(tmp_path, strict, table, board, callbacks=[aware])
    running.fit(Task(Twice()), loader(), loader())  # type: ignore[arg-type]
    names = {
        f"{prefix}{name}"
        for prefix in ("", "val_")
        for name in ("fault_rate", *(f"faults/{s}/rate" for s in ("relu", "relu-2")))
    }
    assert names <= set(strict.logged)
    for name in names:
        assert 10 < strict.logged[name] < 30
    with open(tmp_path / "csv" / "metrics.csv", encoding="utf-8") as file:
        assert names <= set(next(csv.reader(file)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert names <= set(events.Tags()["scalars"])


def test_a_callback_that_injects_nothing_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forgotten = {key: value for key, value in CONFIG.items() if key != "enabled"}
    with caplog.at_level(logging.WARNING, logger="fxfault"):
        for config, said in ((CONFIG, 0), (forgotten, 1)):
            caplog.clear()
            running = trainer(tmp_path, callbacks=[FaultAwareTraining(config)])
            running.fit(Task(), loader())
            assert [r.message for r in caplog.records if "set `enabled: true`" in r.message] == [
                "FaultAwareTraining injects no fault, as `enabled` of its configuration is false; "
                "set `enabled: true`, or leave the callback out"
            ] * said
