"""`fxfault-campaign plan`: how many trials a study needs, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxfault.campaign.intervals import sample_size
from fxfault.campaign.rows import TrialRow
from fxfault.campaign.study import Cell, Study
from fxfault.cli.campaign_report import counted, duration

if TYPE_CHECKING:
    from fxfault.campaign.engines import OnNote
    from fxfault.campaign.plan import Plan


@dataclass(frozen=True)
class Measured:
    """What two trials showed.

    Attributes:
        cells: of the study.
        rows: the two trials, of the first and the last cell.
        bits: bits of the word at each site whose width is constant, by name.
    """

    cells: Sequence[Cell]
    rows: Sequence[TrialRow]
    bits: dict[str, int]

    @property
    def seconds(self) -> float:
        """Mean time of a trial."""
        return sum(row.seconds for row in self.rows) / len(self.rows)

    @property
    def samples(self) -> int:
        """Samples of the data."""
        return self.rows[0].samples


def measure(plan: Plan, on_note: OnNote) -> Measured:
    """Run a trial of the first and of the last cell: of the cheapest and the dearest place.

    Each follows another one of its cell, which warms up and tries what is faster.

    Args:
        plan: of one worker.
        on_note: called with what a user should know.

    Raises:
        FxFaultError: something that the study names cannot be used.
    """
    from fxfault.campaign.bench import Bench

    bench = Bench(plan, on_note=on_note)
    facts = bench.facts()
    cells = facts.cells(bench.study)
    rows = []
    for cell in (cells[0], cells[-1]):
        bench.run(cell, 1)
        rows.append(bench.run(cell, 0))
    return Measured(cells, rows, dict(facts.bit_widths))


def plan_lines(
    study: Study, measured: Measured, margin: float, confidence: float, workers: int
) -> list[str]:
    """Say what a margin needs, and what the study will take.

    Args:
        study: the study.
        measured: two trials of it.
        margin: half width of the interval of a rate, in percentage points.
        confidence: of that interval, in percent.
        workers: that share the work.
    """
    cells, seconds = len(measured.cells), measured.seconds / workers
    needed = [_needed(measured, row, margin, confidence) for row in measured.rows]
    trials = [math.ceil(number / measured.samples) for number in needed]
    lines = [f"{counted(cells, 'cell')}, {counted(measured.samples, 'sample')} in a trial", ""]
    lines += [f"For a rate within ±{margin:g} points at {confidence:g}% (Leveugle et al. 2009):"]
    for row, samples, number in zip(measured.rows, needed, trials, strict=True):
        cell = Cell.from_key(row.cell)
        population = _population(measured, row)
        lines.append(
            f"  {cell.place}: {samples:,} samples of "
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
    """Faults of a single bit that the data could meet at the sites of a cell."""
    cell = Cell.from_key(row.cell)
    sites = measured.bits if cell.layers is None else cell.layers
    # Of sites with unlike widths the widest, as the rows add their elements up.
    bits = max((measured.bits[site] for site in sites if site in measured.bits), default=1)
    return row.elements * bits


def _needed(measured: Measured, row: TrialRow, margin: float, confidence: float) -> int:
    return sample_size(margin, confidence, _population(measured, row))
