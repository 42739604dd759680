"""What `fxfault-campaign run` shows meanwhile: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from fxfault.campaign.ranking import NOTHING_LOST
from fxfault.cli.campaign_report import and_more, counted, duration, figure
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
        self._below: Any = None
        self._estimates: _Estimates | None = None
        self._last_line = time.perf_counter()

    @property
    def is_new(self) -> bool:
        """Whether nothing was shown of a study yet."""
        return self._estimates is None

    def follow(self, study: StudyProgress) -> None:
        """Show what is new; called each time that trials were stored."""
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
            # What is wider than the terminal would take two lines of it.
            width = shutil.get_terminal_size().columns - 1
            self._below.set_description_str(text[:width])
        elif self._wanted and time.perf_counter() - self._last_line > _LINE_EVERY:
            self._last_line = time.perf_counter()
            self.say("; ".join(filter(None, [_how_far(study), self._estimates.text(study.rows)])))

    def note(self, text: str) -> None:
        """Print what a user should know."""
        self.say(f"Note: {text}")

    def close(self) -> None:
        """Take the bar away; lines can still be printed."""
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

            # Those of earlier runs are done but say nothing of the speed of this one.
            self._bar.initial = self._bar.n = study.earlier
            self._below = tqdm(total=0, bar_format="{desc}", position=1, leave=False)
        self.kept = study.earlier


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
    """What the trials of this run say so far."""

    def __init__(self, cells: tuple[Cell, ...]) -> None:
        self._cells = {cell.key: cell for cell in cells}
        # Trials, sums and sums of squares of the accuracy, in percent.
        self._sums: dict[str, tuple[int, float, float]] = {}
        self._golden: dict[str, float] = {}

    def add(self, row: TrialRow) -> None:
        """Take a trial."""
        accuracy = 100 * row.correct / row.samples
        number, total, squares = self._sums.get(row.cell, (0, 0.0, 0.0))
        self._sums[row.cell] = number + 1, total + accuracy, squares + accuracy**2
        self._golden[row.cell] = 100 * row.golden_correct / row.samples

    def text(self, rows: tuple[TrialRow, ...]) -> str:
        """The accuracy of the cell that is being worked on, and the cell that lost most."""
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
        from fxfault.campaign.intervals import student_t

        number, total, squares = self._sums[key]
        mean = total / number
        if number < 2:
            return f"{mean:.1f}%"
        variance = max(0.0, squares - total * mean) / (number - 1)
        _, high = student_t(mean, variance, number)
        return f"{mean:.1f} ± {float(high) - mean:.1f}%"
