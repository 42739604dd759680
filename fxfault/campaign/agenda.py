"""Which trials of a study are still to be run.

A cell has the trials 0, 1, ...; how many follows from its trials in that order
(`fxfault.campaign.stopping`), never from which came in first. So the rows that a study ends with
are the same on one worker and on many, and after any number of interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fxfault.campaign.rows import TrialRow
from fxfault.campaign.stopping import trials_wanted
from fxfault.campaign.study import Cell, Study


@dataclass(frozen=True)
class Batch:
    """Trials of one cell that a worker runs one after the other.

    Attributes:
        cell: key of the cell.
        trials: their numbers.
    """

    cell: str
    trials: tuple[int, ...]


@dataclass
class _CellState:
    """How far one cell is.

    Attributes:
        wanted: trials that the cell is to have as far as its rows tell.
        rows: its finished trials by number.
        waiting: numbers of those to be handed out, the next one last.
        running: numbers of those that were handed out and are not finished.
    """

    wanted: int = 0
    rows: dict[int, TrialRow] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)

    @property
    def expected(self) -> int:
        """Trials that the cell will have at least; a study that was cut has more of them."""
        return max(self.wanted, len(self.rows))

    def look(self, study: Study) -> bool:
        """Ask whether more trials are wanted now that all are there; returns whether not."""
        wanted = trials_wanted(study, list(self.rows.values()), self.wanted)
        missing = [number for number in range(wanted) if number not in self.rows]
        self.wanted, self.waiting = wanted, missing[::-1]
        return not missing


class Agenda:
    """Hands out trials and takes their rows, cell after cell in the order of the study.

    >>> study = Study.from_dict({**Study.from_yaml("digits_study").to_dict(), "stop": None,
    ...                          "trials": 3})
    >>> cells = study.cells(["stem.act"], {"stem.act": 4})[:1]
    >>> agenda = Agenda(study, cells, lambda key: [])
    >>> agenda.next(2).trials, agenda.next(2).trials, agenda.next(2)
    ((0, 1), (2,), None)
    >>> agenda.done
    False

    Attributes:
        finished_cells: how many have all their trials.
        trials: finished trials of all cells.
        running: trials that were handed out and are not finished.
    """

    def __init__(
        self, study: Study, cells: Sequence[Cell], rows: Callable[[str], Sequence[TrialRow]]
    ) -> None:
        """Take stock.

        Args:
            study: says how many trials a cell gets.
            cells: all of its cells.
            rows: gives the finished trials of a cell by its key; asked once for each.
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
        """Trials that the study will have at least."""
        return self._wanted_of_finished + sum(state.expected for state in self._open.values())

    def next(self, most: int) -> Batch | None:
        """Hand out up to `most` trials of one cell; None where all are running that can be."""
        for key, state in self._open.items():
            if state.waiting:
                trials = tuple(state.waiting.pop() for _ in range(min(most, len(state.waiting))))
                state.running.update(trials)
                self.running += len(trials)
                return Batch(key, trials)
        return None

    def take(self, row: TrialRow) -> bool:
        """Take the row of a finished trial; returns whether it is one that was missing.

        A worker that is killed just after it sent a row may have its trial run again.
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
