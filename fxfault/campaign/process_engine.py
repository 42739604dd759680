"""Run trials in several processes of this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from fxfault.campaign.crew import BATCHES_EACH, Crew, Worker
from fxfault.campaign.patience import TICK
from fxfault.campaign.rows import TrialRow
from fxfault.campaign.worker import work

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from fxfault.campaign.plan import Plan

_PATIENCE = 10.0  # seconds for a worker to end


@dataclass(eq=False, kw_only=True)
class _Process(Worker):
    """A process of this machine, and a pipe to it."""

    process: SpawnProcess
    connection: Connection


class ProcessEngine(Crew[_Process]):
    """Runs trials in several processes, which are started anew (`spawn`), not forked.

    As everywhere with `spawn`, a script that uses it needs `if __name__ == "__main__":`.
    A worker that is killed, or stands still, costs the trial that it was at.
    """

    def __init__(self, workers: int | None = None, trial_timeout: float | None = None) -> None:
        """Start nothing yet.

        Args:
            workers: how many; default: one for each core that this process may use.
            trial_timeout: seconds that a trial may take; default: see
                `fxfault.campaign.patience`.
        """
        super().__init__(trial_timeout)
        self.workers = workers or _cores()
        self.slots = self.workers * BATCHES_EACH

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
        return _Process(number, process=process, connection=ours)

    def _give(self, worker: _Process, cell: str, trials: list[int]) -> None:
        message = json.dumps({"cell": cell, "trials": trials}).encode()
        # Where it is dead `_listen` will see it; the batch is noted as its own.
        with suppress(OSError):
            worker.connection.send_bytes(message)

    def _listen(self) -> list[TrialRow]:
        """Wait for a message or a death, and see to all that there are."""
        by_handle: dict[Any, _Process] = {}
        for worker in self._workers:
            by_handle[worker.connection] = by_handle[worker.process.sentinel] = worker
        ready = wait(list(by_handle), TICK)
        self._clock.look()
        heard = {id(by_handle[handle]): by_handle[handle] for handle in ready}
        return [row for worker in heard.values() for row in self._hear(worker)]

    def _end(self, worker: _Process) -> None:
        worker.process.kill()
        _buried(worker)

    def _hear(self, worker: _Process) -> list[TrialRow]:
        rows: list[TrialRow] = []
        try:
            while worker.connection.poll():
                rows += self._heed(worker, *json.loads(worker.connection.recv_bytes()))
        except (EOFError, OSError):
            self._replace(worker, _buried(worker))
        else:
            if not worker.process.is_alive() and not worker.connection.poll():
                self._replace(worker, _buried(worker))
        return rows


def _buried(worker: _Process) -> str:
    """Wait for the end of a worker; returns how it ended, in words."""
    worker.connection.close()
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
