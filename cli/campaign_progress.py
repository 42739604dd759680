"""The progress of `fxfault campaign run`: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.campaign.estimates.running import RunningMeans
from fxfault.cli.terminal.progress import Progress
from fxfault.messages import and_more, counted
from fxfault.results.calls.bar import bar_type
from fxfault.results.reports.text import duration, figure

if TYPE_CHECKING:
    from fxfault.campaign.driver import Progress as StudyProgress
    from fxfault.campaign.studies.cell import Cell

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
        self._means = RunningMeans()
        self._cells: dict[str, Cell] = {}
        self._last_line = time.perf_counter()

    @property
    def is_new(self) -> bool:
        """Whether no study was shown yet."""
        return not self._cells

    def follow(self, study: StudyProgress) -> None:
        """Show the trials that were just stored."""
        if self.is_new:
            self._begin(study)
        for row in study.rows:
            self._means.add(row)
        new, self.kept = study.trials - self.kept, study.trials
        if self._bar is not None:
            self._bar.total = study.wanted  # The stop rule may ask for more and more.
            self.describe(f"{study.finished_cells}/{len(study.cells)} cells", "")
            self.advance(new)
            # A line that is wider than the terminal would wrap.
            width = shutil.get_terminal_size().columns - 1
            self._below.set_description_str(self._estimates(study)[:width])
        elif self._wanted and time.perf_counter() - self._last_line > _LINE_EVERY:
            self._last_line = time.perf_counter()
            self.say("; ".join(filter(None, [_how_far(study), self._estimates(study)])))

    def close(self) -> None:
        """Remove the bar; lines can still be printed."""
        if self._below is not None:
            self._below.close()
            self._below = None
        super().close()

    def _begin(self, study: StudyProgress) -> None:
        self._cells = {cell.key: cell for cell in study.cells}
        self._means = RunningMeans(study.metric)
        kept = f", {study.earlier} of them there" if study.earlier else ""
        cells, trials = counted(len(study.cells), "cell"), counted(study.wanted, "trial")
        self.say(f"{cells}, at least {trials}{kept}")
        self.start(study.wanted, " trials")
        if self._bar is not None:
            # Trials of earlier runs are done, but do not count for the speed of this run.
            self._bar.initial = self._bar.n = study.earlier
            self._below = bar_type()(total=0, bar_format="{desc}", position=1, leave=False)
        self.kept = study.earlier

    def _estimates(self, study: StudyProgress) -> str:
        """The metric of the current cell, and the cell that lost most."""
        if not study.rows:
            return ""
        cell = study.rows[-1].cell
        mean, half = self._means.of(cell)
        metric = self._means.metric
        digits = (lambda value: figure(value, 1)) if metric.unit == "%" else metric.number
        spread = "" if math.isnan(half) else f" ± {digits(half)}"
        unit = "%" if metric.unit == "%" else metric.difference_unit
        now = f"{self._named(cell)}: {metric.name} {digits(mean)}{spread}{unit}"
        most, worst = self._means.weakest()
        if not worst:
            return f"{now}; nothing lost so far"
        named = and_more(map(self._named, worst), most=1)
        lost = f"{digits(most)}{metric.difference_unit}"
        return f"{now}; most lost so far: {lost} at {named}"

    def _named(self, key: str) -> str:
        cell = self._cells[key]
        return f"{cell.place} {cell.fault} {cell.rate_text}"


def finished_text(study: StudyProgress, store: Path) -> str:
    """Say that a study is finished."""
    new = study.trials - study.earlier
    took = f", {new} of them in {duration(study.seconds)}" if new else ", all there before"
    cells, trials = counted(len(study.cells), "cell"), counted(study.trials, "trial")
    return f"Finished: {cells}, {trials}{took}\nSee fxfault campaign report --store {store}"


def interrupted_text(kept: int, store: Path) -> str:
    """Say how many trials of an interrupted study are kept, and how to continue it."""
    if not kept:
        return "interrupted before the first trial was finished"
    trials = f"{counted(kept, 'trial')} {'is' if kept == 1 else 'are'}"
    resume = f"fxfault campaign resume --store {store}"
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
