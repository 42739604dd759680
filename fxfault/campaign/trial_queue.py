"""The trials of a study that are still to be run.

A cell has the trials 0, 1, ...; their number depends on the results in that order
(`fxfault.campaign.estimates.stopping`), never on which came in first. A study therefore ends with
the same rows on one worker and on many, and after any number of interruptions.
"""

from __future__ import annotations

import heapq
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fxfault.campaign.estimates.stopping import trials_wanted
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.study import Study
from fxfault.campaign.workers.engine import Batch
from fxfault.evaluation.rows import TrialRow


@dataclass(slots=True)
class _CellState:
    """The progress of one cell.

    Attributes:
        place: number of the cell in the study.
        wanted: number of trials that the cell is to have, as far as its rows tell.
        finished: number of finished trials.
        rows: finished trials, by number; only under a stop rule, which judges them. Without one, a
            cell may have millions.
        missing: numbers of the trials that are neither finished nor running, without an end.
        running: numbers of the trials handed out but not finished.
    """

    place: int
    wanted: int = 0
    finished: int = 0
    rows: dict[int, TrialRow] = field(default_factory=dict)
    missing: deque[range] = field(default_factory=lambda: deque([range(sys.maxsize)]))
    running: set[int] = field(default_factory=set)

    def recall(self, study: Study, rows: Iterable[TrialRow]) -> None:
        """Take the rows of earlier runs, in the order of their numbers."""
        for row in rows:
            rest = self.missing.pop()
            if row.trial > rest.start:
                self.missing.append(range(rest.start, row.trial))
            self.missing.append(range(row.trial + 1, sys.maxsize))
            self.keep(study, row)

    def keep(self, study: Study, row: TrialRow) -> None:
        """Count a finished trial."""
        self.finished += 1
        if study.stop is not None:
            self.rows[row.trial] = row

    @property
    def expected(self) -> int:
        """Least number of trials of the cell; a store may have more than the study now asks for."""
        return max(self.wanted, self.finished)

    @property
    def is_waiting(self) -> bool:
        """Whether there are trials to hand out."""
        return self.missing[0].start < self.wanted

    def hand_out(self, most: int) -> tuple[int, ...]:
        """Hand out up to `most` trials, in the order of their numbers."""
        trials: list[int] = []
        while self.is_waiting and len(trials) < most:
            first = self.missing.popleft()
            end = min(first.stop, self.wanted, first.start + most - len(trials))
            trials.extend(range(first.start, end))
            if end < first.stop:
                self.missing.appendleft(range(end, first.stop))
        self.running.update(trials)
        return tuple(trials)

    def look(self, study: Study) -> bool:
        """Ask the stop rule for more trials; return whether the cell is finished."""
        self.wanted = trials_wanted(study, list(self.rows.values()), self.wanted)
        return not self.is_waiting


class TrialQueue:
    """Hand out trials and take their rows, cell by cell in the order of the study.

    >>> study = Study.from_dict({**Study.from_yaml("digits_study").to_dict(), "stop": None,
    ...                          "trials": 3})
    >>> cells = study.cells(["stem.act"], {"stem.act": 4})[:1]
    >>> queue = TrialQueue(study, cells, lambda key: [])
    >>> queue.next(2).trials, queue.next(2).trials, queue.next(2)
    ((0, 1), (2,), None)
    >>> queue.done
    False

    Attributes:
        finished_cells: number of cells that have all their trials.
        trials: number of finished trials of all cells.
        wanted: least number of trials that the study will have.
        running: number of trials handed out but not finished.
    """

    def __init__(
        self, study: Study, cells: Sequence[Cell], rows: Callable[[str], Iterable[TrialRow]]
    ) -> None:
        """Find out which trials are missing.

        Args:
            study: the study, which decides how many trials a cell gets.
            cells: all cells of the study.
            rows: returns the finished trials of the cell with a given key, in the order of their
                numbers; called once per cell.
        """
        self.study = study
        self.finished_cells, self.trials, self.wanted, self.running = 0, 0, 0, 0
        self._keys = [cell.key for cell in cells]
        self._open: dict[str, _CellState] = {}
        # Places of the cells with trials to hand out. With a thousand workers, hundreds of cells
        # wait for their last rows; to pass over them for each batch would take long.
        self._waiting: list[int] = []  # A heap.
        for place, key in enumerate(self._keys):
            state = _CellState(place)
            state.recall(study, rows(key))
            self.trials += state.finished
            self.wanted += state.expected
            self._open[key] = state
            self._look(key)

    @property
    def done(self) -> bool:
        """Whether all cells have all their trials."""
        return not self._open

    def next(self, most: int) -> Batch | None:
        """Hand out up to `most` trials of one cell; None if none is waiting."""
        if not self._waiting:
            return None
        key = self._keys[self._waiting[0]]
        state = self._open[key]
        trials = state.hand_out(most)
        self.running += len(trials)
        if not state.is_waiting:
            heapq.heappop(self._waiting)
        return Batch(key, trials)

    def take(self, row: TrialRow) -> bool:
        """Take the row of a finished trial; return whether the trial was running.

        If a worker is killed just after it sent a row, its trial may run twice.
        """
        state = self._open.get(row.cell)
        if state is None or row.trial not in state.running:
            return False
        before = state.expected
        state.running.remove(row.trial)
        state.keep(self.study, row)
        self.wanted += state.expected - before
        self.running -= 1
        self.trials += 1
        if not state.running and not state.is_waiting:
            self._look(row.cell)
        return True

    def _look(self, key: str) -> None:
        state = self._open[key]
        before = state.expected
        is_finished = state.look(self.study)
        self.wanted += state.expected - before
        if is_finished:
            del self._open[key]
            self.finished_cells += 1
        else:
            heapq.heappush(self._waiting, state.place)
