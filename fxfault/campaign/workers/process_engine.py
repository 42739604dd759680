"""Run trials in several processes of this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from fxfault.campaign.workers.patience import TICK
from fxfault.campaign.workers.worker import work
from fxfault.campaign.workers.worker_engine import BATCHES_EACH, Worker, WorkerEngine
from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from fxfault.campaign.workers.plan import Plan

_PATIENCE = 10.0  # seconds for a worker to end


@dataclass(eq=False, kw_only=True)
class _Process(Worker):
    """A process of this machine, and a pipe to it.

    Attributes:
        reader: reads the pipe: of a message that has come in part, the rest may never come.
    """

    process: SpawnProcess
    connection: Connection
    reader: threading.Thread = field(init=False)


class ProcessEngine(WorkerEngine[_Process]):
    """Runs trials in several processes, which are started anew (`spawn`), not forked.

    As everywhere with `spawn`, a script that uses it needs `if __name__ == "__main__":`.
    A worker that is killed, or stands still, costs the trial that it was at.
    """

    def __init__(self, workers: int | None = None, trial_timeout: float | None = None) -> None:
        """Start nothing yet.

        Args:
            workers: how many; default: one for each core that this process may use.
            trial_timeout: seconds that a trial may take; default: see
                `fxfault.campaign.workers.patience`.
        """
        super().__init__(trial_timeout)
        self.workers = workers or _cores()
        self.slots = self.workers * BATCHES_EACH
        self._inbox: SimpleQueue[tuple[_Process, bytes | None]] = SimpleQueue()

    def close(self) -> None:
        """See `Engine.close`."""
        for worker in self._workers:
            worker.process.kill()  # One that was stopped gets no other signal.
        for worker in self._workers:
            _buried(worker)
        self._workers = []

    def _prepared(self, plan: Plan) -> Plan:
        return replace(plan, sharing=self.workers)

    def _started(self, number: int) -> _Process:
        assert self._plan is not None
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work,
            args=(theirs, self._plan.to_json(), number),
            name=f"trials {number}",
            daemon=True,
        )
        with _interrupts_held_back():
            process.start()
        theirs.close()  # So that the worker's death closes the pipe.
        worker = _Process(number, process=process, connection=ours)
        worker.reader = threading.Thread(target=_read, args=(worker, self._inbox), daemon=True)
        worker.reader.start()
        return worker

    def _give(self, worker: _Process, cell: str, trials: list[int]) -> None:
        message = json.dumps({"cell": cell, "trials": trials}).encode()
        # Where it is dead `_listen` will see it; the batch is noted as its own.
        with suppress(OSError):
            worker.connection.send_bytes(message)

    def _listen(self) -> list[TrialRow]:
        """Wait for a message or a death, and see to all that there are."""
        messages = self._read_inbox()
        now, rows = self._clock.look(), list[TrialRow]()
        for worker, message in messages:
            if worker not in self._workers:
                continue  # Another one has its trials.
            if message is None:
                self._replace(worker, _buried(worker))
            else:
                rows += self._heed(worker, *json.loads(message))
        for worker in list(self._workers):
            # What it started itself may hold its end of the pipe open.
            if now - worker.heard >= 2 * TICK and not worker.process.is_alive():
                self._replace(worker, _buried(worker))
        return rows

    def _read_inbox(self) -> list[tuple[_Process, bytes | None]]:
        """What came, in its order; waits for the first of it."""
        messages = []
        with suppress(Empty):
            messages.append(self._inbox.get(timeout=TICK))
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _end(self, worker: _Process) -> None:
        worker.process.kill()
        _buried(worker)


def _read(worker: _Process, inbox: SimpleQueue[tuple[_Process, bytes | None]]) -> None:
    """Pass on what a worker sends, and None when its end of the pipe is closed."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put((worker, worker.connection.recv_bytes()))
    inbox.put((worker, None))
    worker.connection.close()


def _buried(worker: _Process) -> str:
    """Wait for the end of a worker; returns how it ended, in words."""
    worker.process.join(_PATIENCE)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    status = worker.process.exitcode or 0
    worker.process.close()
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back for a moment, so that a process that is started never gets it.

    It inherits what is held back. An interrupt that comes meanwhile is ours afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # Its start, in the first one's, would end the holding back.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
