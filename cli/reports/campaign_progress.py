"""The progress of `fxfault-campaign run`: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.campaign.estimates.ranking import NOTHING_LOST
from fxfault.cli.terminal.progress import Progress
from fxfault.cli.terminal.text import and_more, counted, duration, figure

if TYPE_CHECKING:
    from fxfault.campaign.driver import Progress as StudyProgress
    from fxfault.campaign.studies.cell import Cell
    from fxfault.evaluation.rows import TrialRow

# Without a terminal, for instance in the log of a cluster job.
_LINE_EVERY = 30.0  # seconds


class CampaignProgress(Progress):
    """Shows how far a study is.

    Attributes:
        kept: number of trials in the store.
    """

    def __init__(self, wanted: bool) -> None:
        super().__init__(wanted)
        self.kept = 0
        self._wanted = wanted
        self._below: Any = None
        self._estimates: _Estimates | None = None
        self._last_line = time.perf_counter()

    @property
    def is_new(self) -> bool:
        """Whether no study was shown yet."""
        return self._estimates is None

    def follow(self, study: StudyProgress) -> None:
        """Show the trials that were just stored."""
        if self._estimates is None:
            self._estimates = _Estimates(study.cells)
            self._begin(study)
        for row in study.rows:
            self._estimates.add(row)
        new, self.kept = study.trials - self.kept, study.trials
        if self._bar is not None:
            self._bar.total = study.wanted  # The stop rule may ask for more and more.
            self.describe(f"{study.finished_cells}/{len(study.cells)} cells", "")
            self.advance(new)
            text = self._estimates.text(study.rows)
            # A line that is wider than the terminal would wrap.
            width = shutil.get_terminal_size().columns - 1
            self._below.set_description_str(text[:width])
        elif self._wanted and time.perf_counter() - self._last_line > _LINE_EVERY:
            self._last_line = time.perf_counter()
            self.say("; ".join(filter(None, [_how_far(study), self._estimates.text(study.rows)])))

    def close(self) -> None:
        """Remove the bar; lines can still be printed."""
        if self._below is not None:
            self._below.close()
            self._below = None
        super().close()

    def _begin(self, study: StudyProgress) -> None:
        kept = f", {study.earlier} of them there" if study.earlier else ""
        cells, trials = counted(len(study.cells), "cell"), counted(study.wanted, "trial")
        self.say(f"{cells}, at least {trials}{kept}")
        self.start(study.wanted, " trials")
        if self._bar is not None:
            from tqdm import tqdm

            # Trials of earlier runs are done, but do not count for the speed of this run.
            self._bar.initial = self._bar.n = study.earlier
            self._below = tqdm(total=0, bar_format="{desc}", position=1, leave=False)
        self.kept = study.earlier


def finished_text(study: StudyProgress, store: Path) -> str:
    """Say that a study is finished."""
    new = study.trials - study.earlier
    took = f", {new} of them in {duration(study.seconds)}" if new else ", all there before"
    cells, trials = counted(len(study.cells), "cell"), counted(study.trials, "trial")
    return f"Finished: {cells}, {trials}{took}\nSee fxfault-campaign report --store {store}"


def interrupted_text(kept: int, store: Path) -> str:
    """Say how many trials of an interrupted study are kept, and how to continue it."""
    if not kept:
        return "interrupted before the first trial was finished"
    trials = f"{counted(kept, 'trial')} {'is' if kept == 1 else 'are'}"
    resume = f"fxfault-campaign resume --store {store}"
    return f"interrupted: {trials} kept in {store}; continue with: {resume}"


def _how_far(study: StudyProgress) -> str:
    cells, trials = counted(len(study.cells), "cell"), counted(study.wanted, "trial")
    text = (
        f"{study.finished_cells} of {cells}, {study.trials:,} of at least {trials}, "
        f"{study.rate:.1f} trials/s"
    )
    missing = study.wanted - study.trials
    if missing and study.rate:
        text += f", at least {duration(missing / study.rate)} left"
    return text


class _Estimates:
    """Estimates from the trials of this run so far."""

    def __init__(self, cells: tuple[Cell, ...]) -> None:
        self._cells = {cell.key: cell for cell in cells}
        # Trials, sums and sums of squares of the accuracy, in percent.
        self._sums: dict[str, tuple[int, float, float]] = {}
        self._golden: dict[str, float] = {}

    def add(self, row: TrialRow) -> None:
        """Add a trial."""
        accuracy = 100 * row.correct / row.samples
        number, total, squares = self._sums.get(row.cell, (0, 0.0, 0.0))
        self._sums[row.cell] = number + 1, total + accuracy, squares + accuracy**2
        self._golden[row.cell] = 100 * row.golden_correct / row.samples

    def text(self, rows: tuple[TrialRow, ...]) -> str:
        """Write the accuracy of the current cell, and the cell that lost most."""
        if not rows:
            return ""
        now = f"{self._named(rows[-1].cell)}: accuracy {self._accuracy(rows[-1].cell)}"
        falls = {key: self._fall(key) for key in self._sums}
        most = max(falls.values())
        if most <= NOTHING_LOST:
            return f"{now}; nothing lost so far"
        worst = [self._named(key) for key, fall in falls.items() if fall > most - NOTHING_LOST]
        return f"{now}; most lost so far: {figure(most, 1)} points at {and_more(worst, most=1)}"

    def _named(self, key: str) -> str:
        cell = self._cells[key]
        return f"{cell.place} {cell.fault} {cell.rate_text}"

    def _fall(self, key: str) -> float:
        number, total, _ = self._sums[key]
        return self._golden[key] - total / number

    def _accuracy(self, key: str) -> str:
        from fxfault.campaign.estimates.intervals import student_t

        number, total, squares = self._sums[key]
        mean = total / number
        if number < 2:
            return f"{mean:.1f}%"
        variance = max(0.0, squares - total * mean) / (number - 1)
        _, high = student_t(mean, variance, number)
        return f"{mean:.1f} ± {float(high) - mean:.1f}%"
