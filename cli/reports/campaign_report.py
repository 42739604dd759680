"""The lines that `fxfault-campaign` prints about stores of trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fxfault.campaign.estimates.comparison import Difference, overall
from fxfault.campaign.estimates.ranking import RankedSite, heat_map, weakest
from fxfault.campaign.estimates.summary import EARLY, UNFINISHED, UNSURE
from fxfault.cli.reports.campaign_findings import Findings, golden_by_checkpoint
from fxfault.cli.reports.campaign_tables import cell_table, heat_table
from fxfault.cli.terminal.text import NOTHING, duration, figure, lined_up, with_interval
from fxfault.messages import and_more, counted


def report_lines(findings: Findings) -> list[str]:
    """The lines of the whole report."""
    parts = [setting_lines(findings), cell_lines(findings), state_lines(findings)]
    if findings.ranked:
        memories = findings.memories if findings.has_several_memories else None
        parts.append(ranking_lines(findings.ranked, findings.summary.confidence, memories))
        found = heat_map(findings.summary)
        rates = ", ".join(found.rates)
        title = f"SDC rate in percent, by layer and fault (mean over the rates {rates}):"
        parts.append([title, *heat_table(found).lines(left=1)])
    return "\n\n".join("\n".join(part) for part in parts).split("\n")


def setting_lines(findings: Findings) -> list[str]:
    """The lines that say what was run."""
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
    for name, value in golden.items():  # No name: the network's factory loads its weights.
        lines.append(f"Golden accuracy: {figure(value)}%" + (f" ({name})" if name else ""))
    lines += [f"Note: {doubt}" for doubt in findings.doubts]
    if findings.never_called:
        lines.append(f"Never called in this evaluation: {', '.join(findings.never_called)}")
    lines.append(f"Intervals: {summary.confidence:g}%, for other draws of faults on the same data")
    return lines


def cell_lines(findings: Findings) -> list[str]:
    """The table of the cells."""
    summary = findings.summary
    title = "Cells (percent, with interval; Fall in points; Critical: was right, now wrong; Masked:"
    more = "of struck samples; Hit: of exposed values; all intervals: export --what cells):"
    if summary.has_due:
        more = f"of struck samples; DUE: scores not finite; {more.partition('; ')[2]}"
    table = cell_table(findings)
    left = [column.label for column in table.columns].index("Trials")
    lines = [title, more, *table.lines(left)]
    single = int((np.isnan(summary["accuracy"].low) & (summary.trials == 1)).sum())
    if single:
        lines.append(f"{counted(single, 'cell')} of one trial: no interval of the accuracy.")
    return lines


def state_lines(findings: Findings) -> list[str]:
    """Lines that say which cells stopped early, and which never became sure."""
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
    for state, text in ((UNSURE, f"never got within {wanted}"), (UNFINISHED, "are not finished")):
        named = [
            f"{cell.place} {cell.fault} {cell.rate_text}"
            for cell, found in zip(findings.summary.cells, findings.states, strict=True)
            if found == state
        ]
        if named:
            lines.append(f"{len(named)} {text}: {and_more(named)}.")
    return lines


def ranking_lines(
    ranked: Sequence[RankedSite], confidence: float, memories: Mapping[str, str] | None = None
) -> list[str]:
    """The table of sites struck alone, the weakest first.

    If `memories` has the memory of each site by name, a column shows it.
    """
    rows, has_due = [], any(site.due for site in ranked)
    for site in ranked:
        fall = with_interval(site.fall, site.fall_low, site.fall_high)
        row = [str(site.rank), f"{site.rank_low}-{site.rank_high}", site.name]
        row += [memories.get(site.name, NOTHING)] if memories else []
        row += [fall, figure(site.sdc), *([figure(site.due)] if has_due else [])]
        rows.append([*row, str(site.trials)])
    title = "Layer ranking (each struck alone, mean over all settings that all layers have):"
    named = ["Rank", f"{confidence:g}%", "Site", *(["Memory"] if memories else [])]
    head = [*named, "Fall", "SDC", *(["DUE"] if has_due else []), "Trials"]
    return [title, *lined_up(head, rows, left=len(named)), *standing_lines(ranked)]


def standing_lines(ranked: Sequence[RankedSite]) -> list[str]:
    """A line for a ranking without a single weakest site; nothing for any other.

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


# -- other commands -------------------------------------------------------------------------


def status_lines(findings: Findings) -> list[str]:
    """Lines that say how far a study is."""
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
    return [*lines, f"Continue with: fxfault-campaign resume --store {findings.path}"]


def comparison_lines(
    differences: Sequence[Difference], names: tuple[str, str], confidence: float
) -> list[str]:
    """The table of two studies, and their average."""
    a, b = names
    head = ["Site", "Fault", "Rate", "Trials", "A", "B", "B - A", "B better"]
    rows = list(map(_difference_row, differences))
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


def _difference_row(found: Difference) -> list[str]:
    cell, (a, b) = found.cell, found.trials
    assert cell is not None
    row = [cell.place, cell.fault, cell.rate_text, f"{a} pairs" if found.paired else f"{a}, {b}"]
    row += [figure(found.a), figure(found.b), with_interval(found.value, found.low, found.high)]
    return [*row, NOTHING if math.isnan(found.b_better) else f"{100 * found.b_better:.1f}%"]
