"""A study that takes a second, workers that fail, and rows without their times."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fxfault.campaign import Cell, Study
from fxfault.campaign.records.store import Store
from fxfault.campaign.workers.trial_runner import TrialRunner
from fxfault.campaign.workers.worker import work
from fxfault.evaluation.rows import TrialRow

SMALL: dict[str, Any] = {
    "dataset": {"name": "fake", "kwargs": {"size": 24, "image_size": 8, "in_channels": 1}},
    "model": {"name": "quant_digits"},
    "quantization": {"weight_bit_width": 4, "act_bit_width": 4},
    "training": {"batch_size": 16},
    "checkpoint": {"path": "bundled:digits"},
    "seed": 7,
    "axes": {
        "layers": ["each", "all"],
        "injection_type": ["random", "msb_flip"],
        "probability": [2.0],
    },
    # Some cells reach the margin at once, some later, some never.
    "stop": {"margin": 6.0, "min_trials": 4, "max_trials": 14},
}


def small_study(**changes: Any) -> Study:
    """Return the study with some sections replaced; None leaves a section out."""
    content = {**SMALL, **changes}
    return Study.from_dict({key: value for key, value in content.items() if value is not None})


def stopped_at_half_a_message(connection: Connection, plan: str, number: int) -> None:
    """Work, but stop in the middle of a message if the file `$STOPPED` does not exist yet."""
    try:
        Path(os.environ["STOPPED"]).touch(exist_ok=False)
    except FileExistsError:
        work(connection, plan, number)
    os.write(connection.fileno(), (1000).to_bytes(4, "big") + b'["facts", ')
    os.kill(os.getpid(), signal.SIGSTOP)


def slow_at_trial_2(connection: Connection, plan: str, number: int) -> None:
    """Work, but never end trial 2 of a cell."""
    run = TrialRunner.run

    def slow(self: TrialRunner, cell: Cell, trial: int) -> TrialRow:
        time.sleep(600 if trial == 2 else 0)
        return run(self, cell, trial)

    TrialRunner.run = slow  # type: ignore[method-assign]
    work(connection, plan, number)


def outcome(path: Path) -> list[tuple[Any, ...]]:
    """Read the rows of a store without their times."""
    with Store.open(path) as store:
        return [without_time(row) for row in store.rows()]


def without_time(row: TrialRow) -> tuple[Any, ...]:
    """Return the fields of a row that are the same in each run."""
    return tuple(value for name, value in vars(row).items() if name != "seconds")
