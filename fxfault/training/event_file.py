"""Write TensorBoard events at once, without TensorBoard's writer thread.

Nobody can catch an error in that thread, such as a full disk or a folder that vanished.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Import this first: see there.
import fxfault.training.lightning_import  # noqa: F401  # isort: skip
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fxfault.errors import FxFaultError
from fxfault.messages import quote_error

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
except ImportError as error:
    raise FxFaultError(
        f"TensorBoard cannot be imported ({quote_error(error)}); install it with "
        'pip install "fxfault[train]"'
    ) from error


class EventFile(Logger):
    """A logger that writes scalars into one file for each session of a training.

    Args:
        folder: folder of the file, created at the first write.
        hide_from: first step whose events from earlier sessions are hidden, because they come
            after the checkpoint that this session resumes from; None hides nothing.
    """

    def __init__(self, folder: Path, hide_from: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.hide_from = hide_from
        self._path: Path | None = None

    @property
    def name(self) -> str:
        """Empty, as it is not part of a path."""
        return ""

    version = name

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self.folder)

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        """Write nothing: the run's folder holds its configuration."""

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars.

        Raises:
            OSError: the file cannot be written.
        """
        now, events = time.time(), []
        if self._path is None:
            self.folder.mkdir(exist_ok=True)
            self._path = self.folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
            if self.hide_from is not None:
                start = SessionLog(status=SessionLog.START)
                events.append(Event(wall_time=now, step=self.hide_from, session_log=start))
        values = [Summary.Value(tag=tag, simple_value=float(v)) for tag, v in metrics.items()]
        events.append(Event(wall_time=now, step=step or 0, summary=Summary(value=values)))
        with open(self._path, "ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
