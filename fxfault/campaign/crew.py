"""What engines with workers have in common: handing batches out, and replacing workers that die."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fxfault.campaign.agenda import Batch
from fxfault.campaign.errors import EngineError
from fxfault.campaign.muster import Muster
from fxfault.campaign.rows import TrialRow
from fxfault.campaign.worker import retold

if TYPE_CHECKING:
    from fxfault.campaign.bench import Facts
    from fxfault.campaign.engines import OnNote
    from fxfault.campaign.plan import Plan

# A batch that runs and one that waits, so that no worker waits for the driver.
BATCHES_EACH = 2


@dataclass(eq=False)
class Worker:
    """Somebody who runs trials, and what was handed out to it.

    Attributes:
        number: 0 and up; one that takes the place of another has its number.
        ready: whether it is set up.
        batches: keys of cells, and the trials of them that are not finished.
    """

    number: int
    ready: bool = False
    batches: deque[tuple[str, deque[int]]] = field(default_factory=deque)


W = TypeVar("W", bound=Worker)


class Crew(ABC, Generic[W]):
    """An engine whose workers answer with messages: a kind and plain values.

    The kinds are `facts` (it is ready), `note` (for the user), `row` and `error`.

    Attributes:
        workers: how many.
        slots: batches that the engine wants to have at a time.
    """

    workers: int
    slots: int

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._muster = Muster()
        self._workers: list[W] = []
        self._waiting: deque[tuple[str, deque[int]]] = deque()

    def start(self, plan: Plan, on_note: OnNote) -> Facts:
        """See `Engine.start`; returns as soon as one worker is ready."""
        from fxfault.campaign.bench import Facts

        self._muster.on_note = on_note
        self._plan = self._prepared(plan)
        self.slots = self.workers * BATCHES_EACH
        try:
            for number in range(self.workers):  # One by one, so that `close` ends each of them.
                self._workers.append(self._started(number))
        except OSError as error:
            raise EngineError(
                f"worker {len(self._workers)} of {self.workers} cannot be started: "
                f"{error.strerror or error}; try fewer workers"
            ) from error
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
        """Wait for a message or a death, and see to it."""

    # -- common to them -----------------------------------------------------------------

    def _hand_out(self) -> None:
        for depth in range(BATCHES_EACH):
            for worker in self._workers:
                if self._waiting and worker.ready and len(worker.batches) <= depth:
                    cell, trials = self._waiting.popleft()
                    worker.batches.append((cell, trials))
                    self._give(worker, cell, list(trials))

    def _heed(self, worker: W, kind: str, content: Any) -> list[TrialRow]:
        """See to a message of a worker; returns the row, if it is one."""
        if kind == "error":
            raise retold(content, f"worker {worker.number}")
        if kind == "row":
            return [self._noted(worker, TrialRow.from_list(content))]
        if kind == "facts":
            self._muster.enlist(worker.number, content)
            worker.ready = True
        else:
            self._muster.note(content)
        return []

    def _noted(self, worker: W, row: TrialRow) -> TrialRow:
        cell, trials = worker.batches[0]
        assert (cell, trials.popleft()) == (row.cell, row.trial)
        if not trials:
            worker.batches.popleft()
        return row

    def _replace(self, worker: W, how: str) -> None:
        """Start another worker in the place of a dead one, and hand its trials out again.

        Args:
            worker: the dead one.
            how: it died, in a few words.
        """
        place = self._workers.index(worker)
        del self._workers[place]
        if worker.batches:
            cell, trials = worker.batches[0]
            self._muster.lose((cell, trials[0]), how)
        elif not worker.ready:
            self._muster.lose(None, how)
        self._waiting.extendleft(reversed(worker.batches))
        self._workers.insert(place, self._started(worker.number))
