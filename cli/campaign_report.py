"""What a store of trials says, as text: estimates of each cell, weak sites, and where they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fxfault.campaign.analysis import (
    EARLY,
    UNFINISHED,
    UNSURE,
    Estimate,
    Summary,
    Table,
    states,
    summarise,
)
from fxfault.campaign.background import Background
from fxfault.campaign.comparison import Difference, overall
from fxfault.campaign.ranking import (
    HeatMap,
    RankedSite,
    heat_map,
    never_called,
    rank_sites,
    weakest,
)
from fxfault.campaign.site_counts import SiteCounts, count_by_site
from fxfault.campaign.store import Store
from fxfault.campaign.study import Study
from fxfault.chance import no_better_than_chance

NOTHING = "-"
# Of the cells that need attention so many are named.
_MOST_NAMED = 10


@dataclass(frozen=True)
class Findings:
    """A store that was read, and what it says.

    Attributes:
        path: of the store.
        study: that it holds.
        fingerprint: of what the study was run on.
        table: the rows.
        summary: the estimates.
        states: what has become of each cell.
        background: what is known of the network and of where the study was run.
    """

    path: Path
    study: Study
    fingerprint: Mapping[str, Any]
    table: Table
    summary: Summary
    states: Sequence[str]
    background: Background

    @property
    def trials(self) -> int:
        """Finished trials of all cells."""
        return int(self.summary.trials.sum())

    @cached_property
    def site_counts(self) -> dict[str, SiteCounts]:
        """What the trials that struck one site alone counted, by its name."""
        return count_by_site(self.table, self.summary.cells)

    @cached_property
    def never_called(self) -> list[str]:
        """Sites that no forward of the evaluation reached."""
        noted = list(self.background.never_called)
        return noted + [name for name in never_called(self.summary) if name not in noted]

    @cached_property
    def doubts(self) -> list[str]:
        """Why an accuracy without faults is none to measure from, of each checkpoint."""
        classes = self.background.classes
        first = {cell: row for row, cell in reversed(list(enumerate(self.table["cell"].tolist())))}
        found: dict[str | None, str | None] = {}
        for index, cell in enumerate(self.summary.cells):
            if index in first and classes is not None and cell.checkpoint not in found:
                golden, samples = (
                    int(self.table[name][first[index]]) for name in ("golden_correct", "samples")
                )
                found[cell.checkpoint] = no_better_than_chance(golden, samples, classes)
        several = len(found) > 1
        return [
            f"{checkpoint}: {doubt}" if several else doubt
            for checkpoint, doubt in found.items()
            if doubt is not None
        ]

    @cached_property
    def ranked(self) -> list[RankedSite]:
        """The sites that were struck alone, the weakest first."""
        return rank_sites(self.table, self.summary)


def read_findings(path: Path, confidence: float = 95.0) -> Findings:
    """Read a store and estimate all that a report shows.

    Args:
        path: of the store.
        confidence: of the intervals, in percent.

    Raises:
        StoreError: there is no such store.
    """
    with Store.open(path) as store:
        study = Study.from_dict(store.study, str(path))
        cells = store.settings()
        table, fingerprint = store.table(), store.fingerprint
        background = Background.from_dict(store.background)
    shared = [study.shares_faults(cell) for cell in cells]
    summary = summarise(table, cells, shared, confidence)
    found = states(study, table, cells, shared)
    return Findings(path, study, fingerprint, table, summary, found, background)


# -- numbers --------------------------------------------------------------------------------


def figure(value: float, decimals: int = 2) -> str:
    """Write a number; a NaN is a dash.

    >>> figure(83.214), figure(float("nan")), figure(-0.001)
    ('83.21', '-', '0.00')
    """
    if math.isnan(value):
        return NOTHING
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """Write an estimate with its interval, which may be missing.

    >>> with_interval(83.214, 82.0, 84.4), with_interval(8.0, float("nan"), float("nan"))
    ('83.21 [82.00, 84.40]', '8.00')
    """
    if math.isnan(low) or math.isnan(high):
        return figure(value)
    return f"{figure(value)} [{figure(low)}, {figure(high)}]"


def counted(number: int, what: str) -> str:
    """Write a number of things.

    >>> counted(1, "cell"), counted(1200, "trial")
    ('1 cell', '1,200 trials')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time in the two units that matter.

    >>> duration(0.0123), duration(75), duration(7260), duration(200_000)
    ('0.012 s', '1 min 15 s', '2 h 1 min', '2 days 7 h')
    """
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, hours = round(seconds) // 60, round(seconds / 60) // 60
    if seconds < 3600:
        return f"{minutes} min {round(seconds) % 60} s"
    if hours < 48:
        return f"{hours} h {round(seconds / 60) % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def lined_up(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    r"""Set a table so that its columns line up.

    >>> print("\n".join(lined_up(["Site", "SDC"], [["stem", "1.00"], ["a", "12.00"]], left=1)))
    Site |   SDC
    ------------
    stem |  1.00
    a    | 12.00

    Args:
        head: the heads of the columns.
        rows: texts, as many in each as there are columns.
        left: so many columns, the first ones, are flush left.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(
            text.ljust(width) if place < left else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    return [lines[0], "-" * (sum(widths) + 3 * (len(widths) - 1)), *lines[1:]]


# -- the report -----------------------------------------------------------------------------


def report_lines(findings: Findings) -> list[str]:
    """The whole report."""
    parts = [setting_lines(findings), cell_lines(findings), state_lines(findings)]
    if findings.ranked:
        parts.append(ranking_lines(findings.ranked, findings.summary.confidence))
        parts.append(heat_lines(heat_map(findings.summary)))
    return "\n\n".join("\n".join(part) for part in parts).split("\n")


def setting_lines(findings: Findings) -> list[str]:
    """What was run."""
    study, summary = findings.study, findings.summary
    experiment = study.experiment
    assert experiment.model is not None
    assert experiment.dataset is not None
    samples = findings.table["samples"]
    number = f", {int(samples[0])} samples" if len(samples) else ""
    lines = [
        f"Study: {findings.path}",
        f"Network: {experiment.model.name}",
        f"Data: {experiment.dataset.name}{number}",
        f"Seed: {study.seed}",
        f"Cells: {len(summary.cells)}, trials: {findings.trials:,}, "
        f"{duration(float(findings.table['seconds'].sum()))} of computing",
    ]
    golden = golden_by_checkpoint(summary)
    lines += [f"Golden accuracy: {accuracy}% ({name})" for name, accuracy in golden.items()]
    lines += [f"Note: {doubt}" for doubt in findings.doubts]
    if findings.never_called:
        lines.append(f"Never called in this evaluation: {', '.join(findings.never_called)}")
    lines.append(f"Intervals: {summary.confidence:g}%, for other draws of faults on the same data")
    return lines


def golden_by_checkpoint(summary: Summary) -> dict[str | None, str]:
    """Accuracy without faults, in percent, of each checkpoint that has trials."""
    return {
        cell.checkpoint: figure(golden)
        for cell, golden in zip(summary.cells, summary.golden.tolist(), strict=True)
        if not math.isnan(golden)
    }


def cell_lines(findings: Findings) -> list[str]:
    """A table with a row for each cell; the intervals of all columns are in the export."""
    summary = findings.summary
    several = len({cell.checkpoint for cell in summary.cells}) > 1
    top = any(not math.isnan(value) for value in summary["top5"].value)
    settings = ["Site", "Fault", "Rate", *(["Checkpoint"] if several else [])]
    head = [*settings, "Trials", "Accuracy", "Fall", "SDC", "Critical", "Masked"]
    head += [*(["Top 5"] if top else []), "Hit", "State"]
    rows = []
    for index, cell in enumerate(summary.cells):
        row = [cell.place, cell.fault, cell.rate_text]
        row += [str(cell.checkpoint)] if several else []
        row += [str(int(summary.trials[index])), _entry(summary["accuracy"], index)]
        row += [_value(summary["fall"], index), _entry(summary["sdc"], index)]
        row += [_value(summary[name], index) for name in ("critical_sdc", "masked")]
        row += [_value(summary["top5"], index)] if top else []
        rate = float(summary["fault_rate"].value[index])
        row += [NOTHING if math.isnan(rate) else f"{rate:.4g}"]
        rows.append([*row, findings.states[index]])
    title = "Cells (percent, with interval; Fall in points; Critical: was right, now wrong; Masked:"
    more = "of struck samples; Hit: of exposed values; all intervals: export --what cells):"
    lines = [title, more, *lined_up(head, rows, len(settings))]
    single = int((np.isnan(summary["accuracy"].low) & (summary.trials == 1)).sum())
    if single:
        lines.append(f"{counted(single, 'cell')} of one trial: no interval of the accuracy.")
    return lines


def _value(estimate: Estimate, index: int) -> str:
    return figure(float(estimate.value[index]))


def _entry(estimate: Estimate, index: int) -> str:
    return with_interval(
        float(estimate.value[index]), float(estimate.low[index]), float(estimate.high[index])
    )


def state_lines(findings: Findings) -> list[str]:
    """Which cells stopped early, and which were never sure."""
    counts, rule = Counter(findings.states), findings.study.stop
    if rule is None:
        done = len(findings.states) - counts[UNFINISHED]
        each = counted(findings.study.max_trials, "trial")
        return [f"{done} of {len(findings.states)} cells have their {each}."]
    wanted = f"±{rule.margin:g} points at {rule.confidence:g}%"
    lines = [
        f"Stop rule ({wanted}, {rule.min_trials} to {rule.max_trials} trials): "
        f"{counts[EARLY]} of {len(findings.states)} cells stopped early."
    ]
    for state, text in (
        (UNSURE, f"never got within {wanted}"),
        (UNFINISHED, "are not finished"),
    ):
        named = [
            f"{cell.place} {cell.fault} {cell.rate_text}"
            for cell, found in zip(findings.summary.cells, findings.states, strict=True)
            if found == state
        ]
        if named:
            lines.append(f"{len(named)} {text}: {and_more(named)}.")
    return lines


def ranking_lines(ranked: Sequence[RankedSite], confidence: float) -> list[str]:
    """The table of sites struck alone, the weakest first."""
    rows = [
        [
            str(site.rank),
            f"{site.rank_low}-{site.rank_high}",
            site.name,
            with_interval(site.fall, site.fall_low, site.fall_high),
            figure(site.sdc),
            str(site.trials),
        ]
        for site in ranked
    ]
    title = "Layer ranking (each struck alone, mean over all settings that all layers have):"
    head = ["Rank", f"{confidence:g}%", "Site", "Fall", "SDC", "Trials"]
    return [title, *lined_up(head, rows, left=3), *standing_lines(ranked)]


def standing_lines(ranked: Sequence[RankedSite]) -> list[str]:
    """What a ranking needs to have said where it has no single weakest site; else nothing.

    >>> site = RankedSite("stem", 1, 1, 2, 0.0, -0.1, 0.1, 0.0, 10)
    >>> standing_lines([site])
    ['No site lost accuracy.']
    """
    if not ranked:
        return []
    first = [site.name for site in weakest(ranked)]
    if not first:
        return ["No site lost accuracy."]
    return [f"Tied for weakest: {and_more(first)}."] if len(first) > 1 else []


def and_more(names: Sequence[str], most: int = _MOST_NAMED) -> str:
    """Name some things, and count the rest.

    >>> and_more(["a", "b", "c", "d"], most=2), and_more(["a", "b"])
    ('a, b and 2 more', 'a, b')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def heat_lines(found: HeatMap) -> list[str]:
    """SDC rate by site and fault, in percent."""
    rows = [
        [site, *(figure(float(value), 1) for value in values)]
        for site, values in zip(found.sites, found.values, strict=True)
    ]
    rates = ", ".join(found.rates)
    title = f"SDC rate in percent, by layer and fault (mean over the rates {rates}):"
    return [title, *lined_up(["Site", *found.faults], rows, left=1)]


# -- other commands -------------------------------------------------------------------------


def status_lines(findings: Findings) -> list[str]:
    """How far a study is."""
    counts, study = Counter(findings.states), findings.study
    total = len(findings.states)
    lines = [
        f"Study: {findings.path}",
        f"Cells: {total - counts[UNFINISHED]} of {total} finished",
        f"Trials: {findings.trials:,}",
        *state_lines(findings)[: 2 if study.stop is not None else 1],
    ]
    if not counts[UNFINISHED]:
        return [*lines, f"Finished; see fxfault-campaign report --store {findings.path}"]
    least = study.max_trials if study.stop is None else study.stop.min_trials
    trials = findings.summary.trials
    missing = int((least - trials[trials < least]).sum())
    seconds = findings.table["seconds"]
    if len(seconds) and missing:
        left = duration(missing * float(seconds.mean()))
        lines.append(f"Missing: at least {counted(missing, 'trial')}, about {left} on one worker")
    return [*lines, f"Go on with: fxfault-campaign resume --store {findings.path}"]


def comparison_lines(
    differences: Sequence[Difference], names: tuple[str, str], confidence: float
) -> list[str]:
    """The table of two studies, and their average."""
    a, b = names
    head = ["Site", "Fault", "Rate", "Trials", "A", "B", "B - A", "B better"]
    rows = []
    for difference in differences:
        cell = difference.cell
        assert cell is not None
        rows.append([cell.place, cell.fault, cell.rate_text, *_figures(difference)])
    mean = overall(differences)
    lines = [
        f"A: {a}",
        f"B: {b}",
        "",
        f"Accuracy under faults (percent; B - A in percentage points, {confidence:g}% interval):",
        *lined_up(head, rows, left=3),
        "",
        f"Mean over {len(differences)} cells: B - A = "
        f"{with_interval(mean.value, mean.low, mean.high)} points",
    ]
    clear = [difference for difference in differences if difference.is_clear]
    better = sum(difference.value > 0 for difference in clear)
    lines.append(
        f"B is clearly better in {better}, A in {len(clear) - better} of {len(differences)} cells."
    )
    if any(not difference.paired for difference in differences):
        lines.append(
            "Not in pairs, as seeds or trial numbers differ: studies with one seed tell more."
        )
    return lines


def _figures(difference: Difference) -> list[str]:
    a, b = difference.trials
    share = difference.b_better
    return [
        f"{a} pairs" if difference.paired else f"{a}, {b}",
        figure(difference.a),
        figure(difference.b),
        with_interval(difference.value, difference.low, difference.high),
        NOTHING if math.isnan(share) else f"{100 * share:.1f}%",
    ]
