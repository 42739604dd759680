"""What engines with workers have in common: handing batches out, and replacing workers.

One that dies is replaced at once, and one that stands still when it has done so for too long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fxfault.campaign.workers.engine import Batch
from fxfault.campaign.workers.patience import SAY_AFTER, Clock, Patience
from fxfault.campaign.workers.worker import retold
from fxfault.campaign.workers.worker_history import MOST_TIMEOUTS, WorkerHistory
from fxfault.errors import EngineError
from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from fxfault.campaign.workers.facts import Facts
    from fxfault.campaign.workers.plan import Plan
    from fxfault.evaluation.full.predictions import OnNote

# A batch that runs and one that waits, so that no worker waits for the driver.
BATCHES_EACH = 2


@dataclass(eq=False)
class Worker:
    """Somebody who runs trials, and what was handed out to it.

    Attributes:
        number: 0 and up; one that takes the place of another has its number.
        ready: whether it is set up.
        batches: keys of cells, and the trials of them that are not finished.
        since: when it began what it is at, by the engine's clock.
        heard: when it gave the last sign of life.
        is_told_of: whether the user knows that it stands still.
    """

    number: int
    ready: bool = False
    batches: deque[tuple[str, deque[int]]] = field(default_factory=deque)
    since: float = 0.0
    heard: float = 0.0
    is_told_of: bool = False

    @property
    def trial(self) -> tuple[str, int] | None:
        """The trial that it is at; None where it is being set up, or idle."""
        return (self.batches[0][0], self.batches[0][1][0]) if self.batches else None


W = TypeVar("W", bound=Worker)


class WorkerEngine(ABC, Generic[W]):
    """An engine whose workers answer with messages: a kind and plain values.

    The kinds are `facts` (it is ready), `note` (for the user), `row`, `alive` and `error`.

    Attributes:
        workers: how many.
        slots: batches that the engine wants to have at a time.
        tells_all: whether workers tell of each trial at once, and that they are alive; else of a
            batch when it is finished.
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

    def start(self, plan: Plan, on_note: OnNote) -> Facts:
        """See `Engine.start`; returns as soon as one worker is ready."""
        from fxfault.campaign.workers.facts import Facts

        self._history.on_note = on_note
        self._plan = self._prepared(plan)
        self.slots = self.workers * BATCHES_EACH
        try:
            for number in range(self.workers):  # One by one, so that `close` ends each of them.
                self._workers.append(self._begun(number))
        except OSError as error:
            raise EngineError(
                f"worker {len(self._workers)} of {self.workers} cannot be started: "
                f"{error.strerror or error}; try fewer workers"
            ) from error
        while self._history.facts is None:
            self._hear_all()
        return Facts(**self._history.facts)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        self._waiting.append((batch.cell, deque(batch.trials)))
        self._hand_out()

    def receive(self) -> list[TrialRow]:
        """See `Engine.receive`."""
        while True:
            rows = self._hear_all()
            self._hand_out()
            if rows:
                return rows

    def _hear_all(self) -> list[TrialRow]:
        rows = self._listen()
        now = self._clock.look()
        for worker in list(self._workers):
            self._look_after(worker, now)
        return rows

    # -- for the kinds of engines -------------------------------------------------------

    @abstractmethod
    def _prepared(self, plan: Plan) -> Plan:
        """Settle how many workers there are; returns the plan for each of them."""

    @abstractmethod
    def _started(self, number: int) -> W:
        """Start a worker, and do not wait for it."""

    @abstractmethod
    def _give(self, worker: W, cell: str, trials: list[int]) -> None:
        """Hand a batch to a worker, which may be dead."""

    @abstractmethod
    def _listen(self) -> list[TrialRow]:
        """Wait for a message or a death, for about `TICK`, and see to it."""

    @abstractmethod
    def _end(self, worker: W) -> None:
        """End a worker at once that does not answer."""

    # -- common to them -----------------------------------------------------------------

    def _hand_out(self) -> None:
        for depth in range(BATCHES_EACH):
            for worker in self._workers:
                if self._waiting and worker.ready and len(worker.batches) <= depth:
                    cell, trials = self._waiting.popleft()
                    if not worker.batches:
                        self._goes_on(worker)
                    worker.batches.append((cell, trials))
                    self._give(worker, cell, list(trials))

    def _heed(self, worker: W, kind: str, content: Any) -> list[TrialRow]:
        """See to a message of a worker; returns the row, if it is one."""
        worker.heard = self._clock.now
        if kind == "alive":
            return []
        if kind == "error":
            raise retold(content, f"worker {worker.number}")
        if kind == "row":
            return [self._noted(worker, TrialRow.from_list(content))]
        if kind == "facts":
            self._history.enlist(worker.number, content)
            worker.ready = True
            self._patience.set_up(self._clock.now - worker.since)
            self._goes_on(worker)
        else:
            self._history.note(content)
        return []

    def _noted(self, worker: W, row: TrialRow) -> TrialRow:
        cell, trials = worker.batches[0]
        trial = trials.popleft()
        if (cell, trial) != (row.cell, row.trial):
            raise EngineError(
                f"worker {worker.number} answered with trial {row.trial} of {row.cell} when it was "
                f"at trial {trial} of {cell}: this is a bug in fxfault"
            )
        self._patience.trial(self._clock.now - worker.since)
        self._goes_on(worker)
        if not trials:
            worker.batches.popleft()
        return row

    def _begun(self, number: int) -> W:
        worker = self._started(number)
        self._goes_on(worker)
        return worker

    def _goes_on(self, worker: W) -> None:
        """Note that a worker begins something: time runs anew."""
        worker.since = worker.heard = self._clock.now
        worker.is_told_of = False

    def _look_after(self, worker: W, now: float) -> None:
        """Say that a worker stands still, and replace one that has done so for too long."""
        trial = worker.trial
        if worker.ready and trial is None:  # It has nothing to do.
            worker.since = now
            return
        still, mute = now - worker.since, now - worker.heard
        silent = self.tells_all and mute >= min(SAY_AFTER, still)
        again = self._history.deaths(trial)
        limit = self._patience.limit(at_trial=trial is not None, silent=silent, again=again)
        if limit is not None and trial is not None and not self.tells_all:
            limit *= len(worker.batches[0][1])
        at = "while it was set up" if trial is None else f"at trial {trial[1]} of {trial[0]}"
        if limit is not None and still > limit:
            timed_out = trial is not None and self._patience.timeout is not None
            # A timeout may be shorter than the time between two signs of life.
            how = f"not done after {still:.0f} s"
            if silent and not timed_out:
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
        """Start another worker in the place of a dead one, and hand its trials out again.

        Args:
            worker: the dead one.
            how: it died, in a few words.
            most: how often it may happen over one trial; default: `MOST_DEATHS`.
        """
        place = self._workers.index(worker)
        del self._workers[place]
        if worker.batches or not worker.ready:
            self._history.lose(worker.trial, how, most)
        self._waiting.extendleft(reversed(worker.batches))
        self._workers.insert(place, self._begun(worker.number))
