"""`run.json` of a training: what repeats it, and what it measured."""

from __future__ import annotations

import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxfault.experiment.sections import ExperimentConfig
from fxfault.results.reports.environment import machine, versions
from fxfault.training.run_folder import RECORD, RunFolder

if TYPE_CHECKING:
    import torch

    from fxfault.training.run import TrainingResult

SCHEMA = "fxfault-train/1"
_MOST_BYTES = 2**24  # of run.json, which grows with each --resume
_PACKAGES = ("fxfault", "torch", "brevitas", "lightning", "torchvision", "numpy", "scikit-learn")


@dataclass(kw_only=True)
class TrainingRecord:
    """The facts about a run before it ends.

    Attributes:
        command: the command line.
        repeat: a command line that repeats the run.
        start: path and SHA-256 of the weights that training starts from; None if they are random.
        devices: number of processes.
        sessions: command and times of each earlier session of the run.
        started: start of this session, as `time.time` gives it.
    """

    command: str
    repeat: str
    start: Mapping[str, str | None] | None
    config: ExperimentConfig
    device: torch.device
    devices: int
    sessions: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def continue_from(self, folder: RunFolder) -> None:
        """Take the sessions and the start of a resumed run from its `run.json`."""
        named = self.config.checkpoint.init_from
        self.start = None if named is None else {"path": named, "sha256": None}
        try:
            record = json.loads(folder.read(RECORD, _MOST_BYTES))
        except (OSError, ValueError):
            return  # The run was killed before it was written, or someone edited the file.
        if isinstance(record, dict) and isinstance(record.get("sessions"), list):
            self.sessions = record["sessions"]
            self.start = record.get("start", self.start)

    def to_json(self, rows: Sequence[Mapping[str, float]], result: TrainingResult | None) -> str:
        """Write the record, with the rows of the finished epochs; `result` comes at the end."""
        started = datetime.datetime.fromtimestamp(self.started, datetime.timezone.utc)
        session = {
            "command": self.command,
            "started": started.replace(microsecond=0).isoformat(),
            "seconds": round(time.time() - self.started, 3),
        }
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": result is not None,
            "repeat": self.repeat,
            "start": self.start,
            "seed": self.config.seed.value,
            "fault_seed": self.config.fault_injection.seed,
            **machine(self.device, devices=self.devices),
            "sessions": [*self.sessions, session],
            "epochs": len(rows),
            "last": rows[-1] if rows else None,
        }
        if result is not None:
            document["best"] = result.best
            document["calibrated"] = result.calibrated
            if not result.metric.is_accuracy:
                document["metric"] = result.metric.to_dict()
            document[f"test_{result.metric.column}"] = result.test_value
            document[f"faulty_test_{result.metric.column}"] = result.faulty_test_value
        document["versions"] = versions(*_PACKAGES)
        document["platform"] = f"{platform.platform()} {sys.implementation.name}"
        return json.dumps(_without_nan(document), indent=2, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """Put null in the place of numbers that JSON does not have, such as a lost metric."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
