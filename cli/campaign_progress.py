"""What `fxfault-campaign run` shows meanwhile: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fxfault.cli.campaign_report import counted
from fxfault.cli.progress import Progress

if TYPE_CHECKING:
    from fxfault.campaign.driver import Progress as StudyProgress
    from fxfault.campaign.rows import TrialRow
    from fxfault.campaign.study import Cell

# Where there is no terminal, such as in the log of a cluster job.
_LINE_EVERY = 30.0  # seconds


class CampaignProgress(Progress):
    """Shows how far a study is.

    Attributes:
        kept: trials that are in the store.
    """

    def __init__(self, wanted: bool) -> None:
        super().__init__(wanted)
        self.kept = 0
        self._wanted = wanted
        self._cells: dict[str, Cell] = {}
        self._right: dict[str, tuple[int, int]] = {}
        self._last_line = time.perf_counter()

    def follow(self, study: StudyProgress) -> None:
        """Show what is new; called each time that trials were stored."""
        if not self._cells:
            self._cells = {cell.key: cell for cell in study.cells}
            self._begin(study)
        for row in study.rows:
            right, samples = self._right.get(row.cell, (0, 0))
            self._right[row.cell] = right + row.correct, samples + row.samples
        new, self.kept = study.trials - self.kept, study.trials
        if self._bar is not None:
            self._bar.total = study.wanted  # The stop rule may ask for more and more.
            done = f"{study.finished_cells}/{len(study.cells)} cells"
            self.describe(done, self._estimate(study.rows))
            self.advance(new)
        elif self._wanted and time.perf_counter() - self._last_line > _LINE_EVERY:
            self._last_line = time.perf_counter()
            cells, trials = counted(len(study.cells), "cell"), counted(study.wanted, "trial")
            self.say(
                f"{study.finished_cells} of {cells}, {study.trials:,} of at least {trials}, "
                f"{study.rate:.1f} trials/s"
            )

    def _begin(self, study: StudyProgress) -> None:
        kept = f", {study.earlier} of them there" if study.earlier else ""
        cells, trials = counted(len(study.cells), "cell"), counted(study.wanted, "trial")
        self.say(f"{cells}, at least {trials}{kept}")
        self.start(study.wanted, " trials")
        if self._bar is not None:
            # Those of earlier runs are done but say nothing of the speed of this one.
            self._bar.initial = self._bar.n = study.earlier
        self.kept = study.earlier

    def _estimate(self, rows: tuple[TrialRow, ...]) -> str:
        """The accuracy so far of the cell that is being worked on."""
        if not rows:
            return ""
        cell = self._cells[rows[-1].cell]
        right, samples = self._right[rows[-1].cell]
        where = f"{cell.place} {cell.fault} {cell.probability:g}%"
        return f"{where}: accuracy {100 * right / samples:.1f}%"
