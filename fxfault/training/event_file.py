"""TensorBoard events, written at once: what a Lightning logger writes, without its thread.

TensorBoard's own writer works in a thread, in which a full disk or a folder that vanished is an
error that nobody can catch.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# First: see there.
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
    """Writes what is logged as scalars, into one file for each session of a training.

    Args:
        folder: where it is written; made when something is.
        hide_from: step from which on the events of earlier sessions are hidden, as they were
            written after the checkpoint that this session goes on from; None hides nothing.
    """

    def __init__(self, folder: Path, hide_from: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.hide_from = hide_from
        self._path: Path | None = None

    @property
    def name(self) -> str:
        """Part of no path: there is one folder."""
        return ""

    @property
    def version(self) -> str:
        """Part of no path: there is one folder."""
        return ""

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self.folder)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        """The run's folder holds its configuration: nothing is repeated here."""

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars.

        Raises:
            OSError: the folder's parent is gone, the disk is full, or the like.
        """
        values = [Summary.Value(tag=tag, simple_value=float(v)) for tag, v in metrics.items()]
        event = Event(wall_time=time.time(), step=step or 0, summary=Summary(value=values))
        self._write([*self._first_events(), event])

    def _first_events(self) -> list[Any]:
        if self._path is not None:
            return []
        self.folder.mkdir(exist_ok=True)
        now = time.time()
        self._path = self.folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if self.hide_from is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self.hide_from, session_log=start))
        return events

    def _write(self, events: list[Any]) -> None:
        assert self._path is not None
        with open(self._path, "ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
