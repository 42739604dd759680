"""`fxfault-campaign plan`: how many trials a study needs, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxfault.campaign.estimates.intervals import sample_size
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.study import Study
from fxfault.cli.terminal.text import duration
from fxfault.evaluation.rows import TrialRow
from fxfault.messages import counted


@dataclass(frozen=True)
class Measured:
    """Measurements of two trials.

    Attributes:
        cells: the cells of the study.
        rows: the two trials, one of the first and one of the last cell.
        bits: bit width of each site that has a constant one, by name.
    """

    cells: Sequence[Cell]
    rows: Sequence[TrialRow]
    bits: dict[str, int]

    @property
    def seconds(self) -> float:
        """Mean time of a trial, in seconds."""
        return sum(row.seconds for row in self.rows) / len(self.rows)

    @property
    def samples(self) -> int:
        """Number of samples in the data set."""
        return self.rows[0].samples


def plan_lines(
    study: Study, measured: Measured, margin: float, confidence: float, workers: int
) -> list[str]:
    """Say how many trials a margin needs, and how long the study will take.

    Args:
        study: the study.
        measured: measurements of two of its trials.
        margin: half width of the interval of a rate, in percentage points.
        confidence: confidence of that interval, in percent.
        workers: number of workers that share the work.
    """
    cells, seconds = len(measured.cells), measured.seconds / workers
    populations = [_population(measured, row) for row in measured.rows]
    needed = [sample_size(margin, confidence, population) for population in populations]
    trials = [math.ceil(number / measured.samples) for number in needed]
    lines = [f"{counted(cells, 'cell')}, {counted(measured.samples, 'sample')} in a trial", ""]
    lines += [f"For a rate within ±{margin:g} points at {confidence:g}% (Leveugle et al. 2009):"]
    for row, population, samples, number in zip(
        measured.rows, populations, needed, trials, strict=True
    ):
        lines.append(
            f"  {Cell.from_key(row.cell).place}: {samples:,} samples of "
            f"{population:,} possible faults, {counted(number, 'trial')} for each cell"
        )
    each = duration(measured.seconds)
    lines += ["", f"Time ({each} a trial, measured on two; {counted(workers, 'worker')}):"]
    for what, number in _lengths(study, max(trials)):
        total = number * cells
        lines.append(f"  {what}: {counted(total, 'trial')}, {duration(total * seconds)}")
    return lines


def _lengths(study: Study, by_formula: int) -> list[tuple[str, int]]:
    formula = ("by this sample size", by_formula)
    if study.stop is None:
        return [("as the file says", study.max_trials), formula]
    return [
        ("at least, if every cell stops at once", study.stop.min_trials),
        ("at most, if none stops early", study.stop.max_trials),
        formula,
    ]


def _population(measured: Measured, row: TrialRow) -> int:
    """How many single-bit faults are possible at the sites of a cell, over all samples."""
    cell = Cell.from_key(row.cell)
    sites = measured.bits if cell.layers is None else cell.layers
    # The largest width, as a row has the sum of the elements of all sites.
    bits = max((measured.bits[site] for site in sites if site in measured.bits), default=1)
    return row.elements * bits
