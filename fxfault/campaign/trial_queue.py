"""The trials of a study that are still to be run.

A cell has the trials 0, 1, ...; their number depends on the results in that order
(`fxfault.campaign.estimates.stopping`), never on which came in first. A study therefore ends with
the same rows on one worker and on many, and after any number of interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fxfault.campaign.estimates.stopping import trials_wanted
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.study import Study
from fxfault.campaign.workers.engine import Batch
from fxfault.evaluation.rows import TrialRow


@dataclass
class _CellState:
    """The progress of one cell.

    Attributes:
        wanted: number of trials that the cell is to have, as far as its rows tell.
        rows: finished trials, by number.
        waiting: numbers of the trials still to be handed out, the next one last.
        running: numbers of the trials handed out but not finished.
    """

    wanted: int = 0
    rows: dict[int, TrialRow] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)

    @property
    def expected(self) -> int:
        """Least number of trials of the cell; a store may have more than the study now asks for."""
        return max(self.wanted, len(self.rows))

    def look(self, study: Study) -> bool:
        """Ask the stop rule for more trials; return whether the cell is finished."""
        wanted = trials_wanted(study, list(self.rows.values()), self.wanted)
        missing = [number for number in range(wanted) if number not in self.rows]
        self.wanted, self.waiting = wanted, missing[::-1]
        return not missing


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
        running: number of trials handed out but not finished.
    """

    def __init__(
        self, study: Study, cells: Sequence[Cell], rows: Callable[[str], Sequence[TrialRow]]
    ) -> None:
        """Find out which trials are missing.

        Args:
            study: the study, which decides how many trials a cell gets.
            cells: all cells of the study.
            rows: returns the finished trials of the cell with a given key; called once per cell.
        """
        self.study = study
        self.finished_cells, self.trials, self.running = 0, 0, 0
        self._wanted_of_finished = 0
        self._open: dict[str, _CellState] = {}
        for cell in cells:
            state = _CellState(rows={row.trial: row for row in rows(cell.key)})
            self.trials += len(state.rows)
            self._open[cell.key] = state
            self._look(cell.key)

    @property
    def done(self) -> bool:
        """Whether all cells have all their trials."""
        return not self._open

    @property
    def wanted(self) -> int:
        """Least number of trials that the study will have."""
        return self._wanted_of_finished + sum(state.expected for state in self._open.values())

    def next(self, most: int) -> Batch | None:
        """Hand out up to `most` trials of one cell; None if none is waiting."""
        for key, state in self._open.items():
            if state.waiting:
                trials = tuple(state.waiting.pop() for _ in range(min(most, len(state.waiting))))
                state.running.update(trials)
                self.running += len(trials)
                return Batch(key, trials)
        return None

    def take(self, row: TrialRow) -> bool:
        """Take the row of a finished trial; return whether the trial was running.

        If a worker is killed just after it sent a row, its trial may run twice.
        """
        state = self._open.get(row.cell)
        if state is None or row.trial not in state.running:
            return False
        state.running.remove(row.trial)
        state.rows[row.trial] = row
        self.running -= 1
        self.trials += 1
        if not state.running and not state.waiting:
            self._look(row.cell)
        return True

    def _look(self, key: str) -> None:
        state = self._open[key]
        if state.look(self.study):
            del self._open[key]
            self.finished_cells += 1
            self._wanted_of_finished += state.expected
