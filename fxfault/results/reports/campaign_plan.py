"""`fxfault campaign plan`: how many trials a study needs, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fxfault.campaign.estimates.intervals import sample_size
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.study import Study
from fxfault.evaluation.rows import TrialRow
from fxfault.messages import counted
from fxfault.results.reports.text import duration


@dataclass(frozen=True)
class Measured:
    """Measurements of two trials, one of the first and one of the last of the study's cells.

    `bits` has the width of each site that has a constant one, by name; `memories` has the memory
    of each site that is not an activation.
    """

    cells: Sequence[Cell]
    rows: Sequence[TrialRow]
    bits: Mapping[str, int]
    memories: Mapping[str, str] = field(default_factory=dict)


def plan_lines(
    study: Study, measured: Measured, margin: float, confidence: float, workers: int
) -> list[str]:
    """Say how many trials a margin needs, and how long the study will take.

    `margin` is the half width of the interval of a rate in percentage points, `confidence` its
    confidence in percent.
    """
    cells, samples = len(measured.cells), measured.rows[0].samples
    seconds = sum(row.seconds for row in measured.rows) / len(measured.rows)
    populations = [_population(measured, row) for row in measured.rows]
    needed = [sample_size(margin, confidence, population) for population in populations]
    draws = [samples if _has_draws_for_samples(row) else 1 for row in measured.rows]
    trials = [math.ceil(number / each) for number, each in zip(needed, draws, strict=True)]
    lines = [f"{counted(cells, 'cell')}, {counted(samples, 'sample')} in a trial", ""]
    lines += [f"For a rate within ±{margin:g} points at {confidence:g}% (Leveugle et al. 2009):"]
    asked: dict[str, None] = {}  # The first and the last cell may strike the same sites.
    for row, population, drawn, number in zip(
        measured.rows, populations, needed, trials, strict=True
    ):
        what = "samples" if _has_draws_for_samples(row) else "draws"
        asked[
            f"  {Cell.from_key(row.cell).place}: {drawn:,} {what} of "
            f"{population:,} possible faults, {counted(number, 'trial')} for each cell"
        ] = None
    lines += asked
    if 1 in draws and samples > 1:
        lines.append("  (the samples of a trial share faults of weights, so that it is one draw)")
    each = f"{duration(seconds)} a trial, measured on two"
    lines += ["", f"Time ({each}; {counted(workers, 'worker')}):"]
    for what, number in _lengths(study, max(trials)):
        total = number * cells
        lines.append(f"  {what}: {counted(total, 'trial')}, {duration(total * seconds / workers)}")
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


def _has_draws_for_samples(row: TrialRow) -> bool:
    """Whether each sample of a trial has faults of its own, and not only those of weights."""
    return "activations" in Cell.from_key(row.cell).memories


def _population(measured: Measured, row: TrialRow) -> int:
    """How many single-bit faults are possible at the sites of a cell.

    Activations have them in each sample; the words of weights are there once.
    """
    cell = Cell.from_key(row.cell)
    memories = [measured.memories.get(site, "activations") for site in measured.bits]
    here = [s for s, kind in zip(measured.bits, memories, strict=True) if kind in cell.memories]
    sites = here if cell.layers is None else cell.layers
    # The largest width, as a row has the sum of the elements of all sites.
    bits = max((measured.bits[site] for site in sites if site in measured.bits), default=1)
    return row.elements * bits
