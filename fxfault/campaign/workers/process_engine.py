"""Runs trials in several processes on this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from fxfault.campaign.workers.patience import TICK
from fxfault.campaign.workers.worker import work
from fxfault.campaign.workers.worker_engine import BATCHES_EACH, Worker, WorkerEngine
from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from fxfault.campaign.workers.fork_server import ForkServer
    from fxfault.campaign.workers.plan import Plan

# macOS has a fork server too, but its system libraries do not survive a fork.
FORKS = sys.platform == "linux"

_PATIENCE = 10.0  # seconds for a worker to end


@dataclass(eq=False, kw_only=True)
class _Process(Worker):
    """A process of this machine, and a pipe to it.

    Attributes:
        process: the process, which may not have been forked yet
        connection: our end of the pipe
        reader: the thread that reads the pipe; a message that came in part may block it for ever
    """

    process: BaseProcess
    connection: Connection
    reader: threading.Thread = field(init=False)


class ProcessEngine(WorkerEngine[_Process]):
    """Runs trials in several processes on this machine.

    On Linux, the engine starts a fork server: one process that imports torch and Brevitas and
    then forks the workers. Only the first worker waits for these imports, and all of them share
    the memory. Elsewhere each worker is a new Python (`spawn`).

    Either way, a worker imports the script that started the study, so the script needs
    `if __name__ == "__main__":`. Workers have the environment variables, stdout and stderr of the
    moment at which the engine started, and the working directory of the moment at which they
    started themselves. If a worker is killed or stands still, only the trial that it was running
    is lost, and another worker runs it again.
    """

    def __init__(self, workers: int | None = None, trial_timeout: float | None = None) -> None:
        """Start nothing yet.

        Args:
            workers: number of workers; default: one for each core that this process may use
            trial_timeout: time that a trial may take, in seconds; default: see
                `fxfault.campaign.workers.patience`
        """
        super().__init__(trial_timeout)
        self.workers = workers or _cores()
        self.slots = self.workers * BATCHES_EACH
        self._server: ForkServer | None = None
        self._inbox: SimpleQueue[tuple[_Process, bytes | None]] = SimpleQueue()

    def close(self) -> None:
        """See `Engine.close`."""
        for worker in self._workers:
            worker.process.kill()  # A stopped process obeys no other signal.
        for worker in self._workers:
            self._bury(worker)
        self._workers = []
        if self._server is not None:
            self._server.stop()

    def _prepared(self, plan: Plan) -> Plan:
        if FORKS:
            from fxfault.campaign.workers.fork_server import ForkServer

            self._server = ForkServer()
        return replace(plan, sharing=self.workers)

    def _started(self, number: int) -> _Process:
        assert self._plan is not None
        ours, theirs = multiprocessing.Pipe()
        process = self._new_process(f"trials {number}", (theirs, self._plan.to_json(), number))
        try:
            with _interrupts_blocked():
                process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()  # So that the worker's death closes the pipe.
        worker = _Process(number, process=process, connection=ours)
        worker.reader = threading.Thread(target=_read, args=(worker, self._inbox), daemon=True)
        worker.reader.start()
        return worker

    def _new_process(self, name: str, args: tuple[Connection, str, int]) -> BaseProcess:
        if self._server is None:
            context = multiprocessing.get_context("spawn")
            return context.Process(target=work, args=args, name=name, daemon=True)
        from fxfault.campaign.workers.fork_server import ForkedProcess

        return ForkedProcess(self._server, target=work, args=args, name=name)

    def _give(self, worker: _Process, cell: str, trials: list[int]) -> None:
        message = json.dumps({"cell": cell, "trials": trials}).encode()
        with suppress(OSError):  # If the worker is dead, `_listen` hands its batches out again.
            worker.connection.send_bytes(message)

    def _listen(self, longest: float) -> list[TrialRow]:
        messages = self._read_inbox(longest)
        now, rows = self._clock.look(), list[TrialRow]()
        for worker, message in messages:
            if worker not in self._workers:
                continue  # It was replaced.
            if message is None:
                self._replace(worker, self._bury(worker))
            else:
                rows += self._handle(worker, *json.loads(message))
        for worker in list(self._workers):
            # A process that the worker started may keep the pipe open after its death.
            if now - worker.heard >= 2 * TICK and not worker.process.is_alive():
                self._replace(worker, self._bury(worker))
        return rows

    def _read_inbox(self, longest: float) -> list[tuple[_Process, bytes | None]]:
        """Wait so many seconds for a message, and take all that are there."""
        messages = []
        with suppress(Empty):
            messages.append(self._inbox.get(timeout=longest))
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _end(self, worker: _Process) -> None:
        worker.process.kill()
        self._bury(worker)

    def _bury(self, worker: _Process) -> str:
        """Wait for a worker to end, and say how it ended."""
        process = worker.process
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join(_PATIENCE)
        if process.is_alive() and self._server is not None:
            self._server.stop()  # It stands still itself, and reports no death.
        process.join()
        status = process.exitcode or 0
        process.close()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _read(worker: _Process, inbox: SimpleQueue[tuple[_Process, bytes | None]]) -> None:
    """Put what a worker sends into the inbox, and None when the pipe is closed."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put((worker, worker.connection.recv_bytes()))
    inbox.put((worker, None))
    worker.connection.close()


def _cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C for a moment: a process that is started now inherits that, and never gets it.

    If Ctrl-C comes meanwhile, this process gets it afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # The first start would start it, and end the blocking.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
