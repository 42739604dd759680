"""Run trials in several processes of this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from fxfault.campaign.agenda import Batch
from fxfault.campaign.muster import Muster
from fxfault.campaign.rows import TrialRow
from fxfault.campaign.worker import retold, work

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from fxfault.campaign.bench import Facts, Plan

# A batch that runs and one that waits, so that no worker waits for the driver.
BATCHES_EACH = 2

_PATIENCE = 10.0  # seconds for a worker to end


@dataclass
class _Worker:
    """A process, and what it was given to do."""

    number: int
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    batches: deque[tuple[str, deque[int]]] = field(default_factory=deque)


class ProcessEngine:
    """Runs trials in several processes, which are started anew (`spawn`), not forked.

    As everywhere with `spawn`, a script that uses it needs `if __name__ == "__main__":`.
    A worker that is killed costs the trial that it was at.
    """

    def __init__(self, workers: int | None = None) -> None:
        """Start nothing yet.

        Args:
            workers: how many; default: one for each core that this process may use.
        """
        self.workers = workers or _cores()
        self.slots = self.workers * BATCHES_EACH
        self._plan = ""
        self._muster = Muster()
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[str, deque[int]]] = deque()

    def start(self, plan: Plan) -> Facts:
        """See `Engine.start`; returns as soon as one worker is ready."""
        from fxfault.campaign.bench import Facts

        self._plan = plan.to_json()
        self._workers = [self._started(number) for number in range(self.workers)]
        while self._muster.facts is None:
            self._listen()
        return Facts(**self._muster.facts)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        self._waiting.append((batch.cell, deque(batch.trials)))
        self._hand_out()

    def receive(self) -> list[TrialRow]:
        """See `Engine.receive`."""
        while True:
            rows = self._listen()
            self._hand_out()
            if rows:
                return rows

    def close(self) -> None:
        """See `Engine.close`."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            self._buried(worker)
        self._workers = []

    # -- workers ------------------------------------------------------------------------

    def _started(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, self._plan, number), name=f"trials {number}", daemon=True
        )
        with _interrupts_held_back():
            process.start()
        theirs.close()  # So that the worker's death closes the pipe.
        return _Worker(number, process, ours)

    def _hand_out(self) -> None:
        for depth in range(BATCHES_EACH):
            for worker in self._workers:
                if self._waiting and worker.ready and len(worker.batches) <= depth:
                    self._give(worker, self._waiting.popleft())

    def _give(self, worker: _Worker, batch: tuple[str, deque[int]]) -> None:
        worker.batches.append(batch)
        message = json.dumps({"cell": batch[0], "trials": list(batch[1])}).encode()
        # Where it is dead `_listen` will see it; the batch is noted as its own.
        with suppress(OSError):
            worker.connection.send_bytes(message)

    def _listen(self) -> list[TrialRow]:
        """Wait for a message or a death, and see to all that there are."""
        by_handle: dict[Any, _Worker] = {}
        for worker in self._workers:
            by_handle[worker.connection] = by_handle[worker.process.sentinel] = worker
        heard = {id(by_handle[handle]): by_handle[handle] for handle in wait(list(by_handle))}
        return [row for worker in heard.values() for row in self._hear(worker)]

    def _hear(self, worker: _Worker) -> list[TrialRow]:
        rows: list[TrialRow] = []
        try:
            while worker.connection.poll():
                kind, content = json.loads(worker.connection.recv_bytes())
                if kind == "row":
                    rows.append(self._noted(worker, TrialRow.from_list(content)))
                elif kind == "facts":
                    self._muster.enlist(worker.number, content)
                    worker.ready = True
                else:
                    raise retold(content, f"worker {worker.number}")
        except (EOFError, OSError):
            self._replace(worker)
        else:
            if not worker.process.is_alive() and not worker.connection.poll():
                self._replace(worker)
        return rows

    def _noted(self, worker: _Worker, row: TrialRow) -> TrialRow:
        cell, trials = worker.batches[0]
        assert (cell, trials.popleft()) == (row.cell, row.trial)
        if not trials:
            worker.batches.popleft()
        return row

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in the place of a dead one, and hand its trials out again."""
        place = self._workers.index(worker)
        del self._workers[place]
        status = self._buried(worker)
        if worker.batches:
            cell, trials = worker.batches[0]
            self._muster.lose((cell, trials[0]), status)
        elif not worker.ready:
            self._muster.lose(None, status)
        self._waiting.extendleft(reversed(worker.batches))
        self._workers.insert(place, self._started(worker.number))

    def _buried(self, worker: _Worker) -> str:
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
