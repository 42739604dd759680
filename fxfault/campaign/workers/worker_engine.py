"""The base of engines with workers: it hands out batches, and replaces workers.

It replaces a dead worker at once, and one that stands still after a time limit.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fxfault.campaign.workers.engine import Batch
from fxfault.campaign.workers.patience import SAY_AFTER, TICK, Clock, Patience
from fxfault.campaign.workers.worker import retold
from fxfault.campaign.workers.worker_history import MOST_TIMEOUTS, WorkerHistory
from fxfault.errors import EngineError
from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from fxfault.campaign.workers.facts import Facts
    from fxfault.campaign.workers.plan import Plan
    from fxfault.evaluation.full.predictions import OnNote

# One batch runs and one waits, so that no worker waits for the driver.
BATCHES_EACH = 2

# To look after a thousand workers each time that one of them answers would take all the time.
_LOOK_EVERY = TICK / 4  # seconds


@dataclass(eq=False)
class Worker:
    """A worker, and the batches that it has.

    Attributes:
        number: the worker's number, 0 and up; a replacement has the same one
        placed: whether it has a machine; a cluster may have no room for it now
        ready: whether it is set up
        batches: the cells' keys, each with the trials that are not done
        since: the time at which its trial or set-up began, in seconds of the engine's clock
        heard: the time of its last message
        is_told_of: whether the user knows that it stands still
    """

    number: int
    placed: bool = True
    ready: bool = False
    batches: deque[tuple[str, deque[int]]] = field(default_factory=deque)
    since: float = 0.0
    heard: float = 0.0
    is_told_of: bool = False

    @property
    def trial(self) -> tuple[str, int] | None:
        """The trial that it runs, or None if it is idle or being set up."""
        return (self.batches[0][0], self.batches[0][1][0]) if self.batches else None


W = TypeVar("W", bound=Worker)


class WorkerEngine(ABC, Generic[W]):
    """An engine whose workers answer with messages: a kind and plain values.

    The kinds are `placed` (it has a machine, where this is not sure from the start), `facts` (it is
    ready), `note` (for the user), `row`, `alive` and `error`.

    Attributes:
        workers: the number of workers
        slots: the number of batches that keeps the workers busy
        tells_all: whether workers send each row at once, and signs of life; if not, they answer
            once for each batch
    """

    workers: int
    slots: int
    tells_all = True

    def __init__(self, trial_timeout: float | None = None) -> None:
        self._clock = Clock()
        self._patience = Patience(trial_timeout)
        self._plan: Plan | None = None
        self._history = WorkerHistory()
        self._workers: list[W] = []
        self._waiting: deque[tuple[str, deque[int]]] = deque()
        # The workers that have so many batches and can take another, in the order of their wait.
        self._room: tuple[dict[W, None], ...] = tuple({} for _ in range(BATCHES_EACH))
        self._looked = 0.0

    def start(self, plan: Plan, on_note: OnNote) -> Facts:
        """See `Engine.start`; returns as soon as one worker is ready."""
        from fxfault.campaign.workers.facts import Facts

        self._history.on_note = on_note
        self._plan = self._prepared(plan)
        self.slots = self.workers * BATCHES_EACH
        try:
            for number in range(self.workers):  # In a loop, so that `close` ends those before.
                self._workers.append(self._start_worker(number))
        except OSError as error:
            raise EngineError(
                f"worker {len(self._workers)} of {self.workers} cannot be started: "
                f"{error.strerror or error}; try fewer workers"
            ) from error
        while self._history.facts is None:
            self._hear_all(TICK)
        return Facts(**self._history.facts)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        self._waiting.append((batch.cell, deque(batch.trials)))
        self._hand_out()

    def receive(self, within: float | None = None) -> list[TrialRow]:
        """See `Engine.receive`."""
        until = math.inf if within is None else time.monotonic() + within
        while True:
            left = until - time.monotonic()
            rows = self._hear_all(min(max(left, 0.0), TICK))
            self._hand_out()
            if rows or left <= 0:
                return rows

    def _hear_all(self, longest: float) -> list[TrialRow]:
        rows = self._listen(longest)
        now = self._clock.look()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            for worker in list(self._workers):
                self._look_after(worker, now)
        return rows

    # -- what each engine defines -------------------------------------------------------

    @abstractmethod
    def _prepared(self, plan: Plan) -> Plan:
        """Settle the number of workers, and return their plan."""

    @abstractmethod
    def _started(self, number: int) -> W:
        """Start a worker without waiting for it."""

    @abstractmethod
    def _give(self, worker: W, cell: str, trials: list[int]) -> None:
        """Send a batch to a worker, which may be dead."""

    @abstractmethod
    def _listen(self, longest: float) -> list[TrialRow]:
        """Wait so many seconds for messages and deaths, and handle them; return the rows."""

    @abstractmethod
    def _end(self, worker: W) -> None:
        """End a worker at once, even if it does not answer."""

    # -- what all engines share -----------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give what waits to workers, first to those that have nothing."""
        for room in self._room:
            while self._waiting and room:
                worker = next(iter(room))
                cell, trials = self._waiting.popleft()
                if not worker.batches:
                    self._restart_time(worker)
                worker.batches.append((cell, trials))
                self._find_room(worker)
                self._give(worker, cell, list(trials))

    def _find_room(self, worker: W) -> None:
        """Note how many more batches a worker can take, now that this has changed."""
        for room in self._room:
            room.pop(worker, None)
        if worker.ready and len(worker.batches) < BATCHES_EACH:
            self._room[len(worker.batches)][worker] = None

    def _handle(self, worker: W, kind: str, content: Any) -> list[TrialRow]:
        """Handle a worker's message, and return its row, if it has one."""
        worker.heard = self._clock.now
        if kind == "alive":
            return []
        if kind == "placed":
            worker.placed = True
            self._restart_time(worker)
            return []
        if kind == "error":
            raise retold(content, f"worker {worker.number}")
        if kind == "row":
            return [self._checked(worker, TrialRow.from_list(content))]
        if kind == "facts":
            self._history.enlist(worker.number, content)
            worker.ready = True
            self._patience.set_up(self._clock.now - worker.since)
            self._restart_time(worker)
            self._find_room(worker)
        else:
            self._history.note(content)
        return []

    def _checked(self, worker: W, row: TrialRow) -> TrialRow:
        """Take a row's trial off the worker's list; it must be the first."""
        cell, trials = worker.batches[0]
        trial = trials.popleft()
        if (cell, trial) != (row.cell, row.trial):
            raise EngineError(
                f"worker {worker.number} answered with trial {row.trial} of {row.cell} instead of "
                f"trial {trial} of {cell}: this is a bug in fxfault"
            )
        self._patience.trial(self._clock.now - worker.since)
        self._restart_time(worker)
        if not trials:
            worker.batches.popleft()
            self._find_room(worker)
        return row

    def _start_worker(self, number: int) -> W:
        worker = self._started(number)
        self._restart_time(worker)
        return worker

    def _restart_time(self, worker: W) -> None:
        """Restart the worker's time, because it begins a trial or its set-up."""
        worker.since = worker.heard = self._clock.now
        worker.is_told_of = False

    def _look_after(self, worker: W, now: float) -> None:
        """Tell the user if a worker stands still, and replace it after the time limit."""
        trial = worker.trial
        if worker.ready and trial is None:  # It has nothing to do.
            worker.since = now
            return
        still, mute = now - worker.since, now - worker.heard
        if not worker.placed:  # It does nothing yet, so that it cannot stand still.
            if still >= SAY_AFTER and not worker.is_told_of:
                worker.is_told_of = True
                self._history.note(
                    f"worker {worker.number}: it has no machine for {still:.0f} s, as there is no "
                    "room or Python still starts; others run its trials until it has one"
                )
            return
        silent = self.tells_all and mute >= min(SAY_AFTER, still)
        again = self._history.deaths(trial)
        limit = self._patience.limit(at_trial=trial is not None, silent=silent, again=again)
        if limit is not None and trial is not None and not self.tells_all:
            limit *= len(worker.batches[0][1])
        at = "while it was set up" if trial is None else f"at trial {trial[1]} of {trial[0]}"
        if limit is not None and still > limit:
            timed_out = trial is not None and self._patience.timeout is not None
            how = f"not done after {still:.0f} s"
            if silent and not timed_out:  # A timeout may be shorter than a worker's silence.
                how = f"no sign of life for {mute:.0f} s"
            self._history.note(f"worker {worker.number}: {how} {at}; another one gets its trials")
            self._end(worker)
            most = MOST_TIMEOUTS if timed_out else None
            self._replace(worker, how, most)
        elif still >= SAY_AFTER and not worker.is_told_of:
            worker.is_told_of = True
            how = "no sign of life" if silent else "it is alive and not done"
            until = "" if limit is None else f"; another one gets its trials after {limit:.0f} s"
            self._history.note(f"worker {worker.number}: {how} for {still:.0f} s {at}{until}")

    def _replace(self, worker: W, how: str, most: int | None = None) -> None:
        """Start another worker in place of a dead one, and queue its batches again.

        Args:
            worker: the dead worker
            how: the cause of death, in a few words
            most: the number of deaths at one trial that ends the study; default: `MOST_DEATHS`
        """
        place = self._workers.index(worker)
        del self._workers[place]
        for room in self._room:
            room.pop(worker, None)
        if worker.batches or not worker.ready:
            self._history.lose(worker.trial, how, most)
        self._waiting.extendleft(reversed(worker.batches))
        self._workers.insert(place, self._start_worker(worker.number))
