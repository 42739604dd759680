"""What the tests of `fxfault train` share: quick arguments, and reading what it wrote."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from commands import Run

from fxfault.cli import train
from fxfault.training import callbacks

read_checkpoint = partial(callbacks.read_checkpoint, most=2**25)


# Digits with faults, two epochs of four steps; whatever else is tuned in the bundled file.
DIGITS = [
    "--config", "digits_fat", "--set", "training.epochs=2", "--set", "training.batch_size=256",
    "--set", "seed.value=42", "--set", "fault_injection.seed=42",
    "--set", "optimizer.learning_rate=0.003", "--set", "checkpoint.save_best=true",
    "--set", "scheduler.T_max=4",  # Else the schedule depends on the number of epochs.
]  # fmt: skip


# The same with a network of few layers: a run of it takes a third of the time.
FAST = [*DIGITS, "--set", "model.name=fuzz.tiny:network"]


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder, with no trace of a run that another test made."""
    monkeypatch.chdir(folder)
    for name in ("FXFAULT_RUN_FOLDER", "FXFAULT_RUN_RESUMES", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # So that what the command sets is taken away again.
        monkeypatch.delenv(name)


class Trained(NamedTuple):
    """A whole run that several tests look at; they change only copies of its folder."""

    run: Run
    folder: Path

    def copied_to(self, name: str = "run") -> Path:
        """Copy the folder of the run into the test's own."""
        return Path(shutil.copytree(self.folder, name))


def train_once(factory: pytest.TempPathFactory, *more: str) -> Trained:
    base = factory.mktemp("trained")
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        in_folder(base, patched)
        status = train.main([*FAST, *more, "--out", "run"])
    return Trained(Run(status, out.getvalue(), err.getvalue()), base / "run")


def table(folder: str | Path) -> list[dict[str, str]]:
    text = (Path(folder) / "metrics.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def record(folder: str | Path) -> Any:
    return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def listing() -> dict[str, bytes]:
    files = (Path(folder, name) for folder, _, names in os.walk(".") for name in names)
    return {str(file): file.read_bytes() for file in files}
