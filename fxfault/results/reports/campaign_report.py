"""The lines that `fxfault campaign` prints about stores of trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fxfault.campaign.estimates.cell_states import EARLY, UNFINISHED, UNSURE
from fxfault.campaign.estimates.comparison import Difference, overall
from fxfault.campaign.estimates.ranking import Curve, RankedSite, curves, left_out, weakest
from fxfault.campaign.estimates.summary import Summary
from fxfault.messages import and_more, counted
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.reports.campaign_findings import Findings, golden_by_checkpoint
from fxfault.results.reports.campaign_tables import at_rates, cell_table, heat_table
from fxfault.results.reports.text import NOTHING, bits_together, duration, figure, lined_up, listed


def report_lines(
    findings: Findings, tolerance: float | None = None, cells: bool = False
) -> list[str]:
    """The lines of the whole report: the verdict, then what it rests on.

    The table of all cells comes last, if `cells` asks for it or nothing else was found.
    """
    summary, drawn = findings.summary, curves(findings.summary)
    said = findings.verdict(tolerance).sentences
    parts = [[findings.study.title, *listed(said)]]
    parts.append(setting_lines(findings))
    if findings.ranked:
        memories = findings.memories if findings.has_several_memories else None
        parts.append(ranking_lines(findings.ranked, summary.confidence, memories, summary.metric))
        missing = left_out(summary)
        if missing:
            named = ", ".join(bits_together(missing))
            parts[-1].append(f"Not in this mean, as not all sites have them: {named}.")
        parts.append(heat_lines(findings))
    if drawn:
        parts.append(curve_lines(drawn, summary))
    parts.append(state_lines(findings))
    if cells or not (findings.ranked or drawn):
        parts.append(cell_lines(findings))
    else:
        number = counted(len(summary.cells), "cell")
        parts[-1].append(f"All {number} with their intervals: report --cells, or export.")
    return "\n\n".join("\n".join(part) for part in parts).split("\n")


def heat_lines(findings: Findings) -> list[str]:
    """The table of sites and faults."""
    distinct = findings.heat_map
    title = f"{distinct.map.title}, by layer and fault ({at_rates(distinct.map)}):"
    note = [distinct.note] if distinct.note else []
    return [title, *heat_table(distinct.map).lines(left=1), *note]


def curve_lines(drawn: Sequence[Curve], summary: Summary) -> list[str]:
    """The metric at each rate: a row for each fault, a table for all places."""
    metric = summary.metric
    places = {"each": "each site alone, mean", "all": "all sites together"}
    several = len({curve.checkpoint for curve in drawn}) > 1
    kinds = len({curve.memories for curve in drawn}) > 1
    rates = sorted({rate for curve in drawn for rate in curve.rates})
    unit = "" if drawn[0].counted else "%"
    shown = [f"{'k = ' if drawn[0].counted else ''}{rate:g}{unit}" for rate in rates]
    named = [
        "Struck",
        *(["Memory"] if kinds else []),
        "Fault",
        *(["Checkpoint"] if several else []),
    ]
    rows = []
    for curve in drawn:
        points = dict(
            zip(curve.rates, zip(curve.values, curve.low, curve.high, strict=True), strict=True)
        )
        row = [places.get(curve.place, curve.place)]
        row += [", ".join(curve.memories)] if kinds else []
        row += [curve.fault, *([str(curve.checkpoint)] if several else [])]
        for rate in rates:
            value = points.get(rate)
            row.append(NOTHING if value is None else metric.with_interval(*value))
        rows.append(row)
    what = f"{metric.title}{metric.in_unit} by fault and rate"
    title = f"{what}, with {summary.confidence:g} % intervals:"
    return [title, *lined_up([*named, *shown], rows, left=len(named))]


def setting_lines(findings: Findings) -> list[str]:
    """The lines that say what was run."""
    study, summary = findings.study, findings.summary
    experiment = study.experiment
    assert experiment.model is not None
    assert experiment.dataset is not None
    samples = findings.table["samples"]
    number = f", {int(samples[0])} samples" if len(samples) else ""
    labels = study.labels
    lines = [
        f"Study: {findings.path}{f' ({labels.name})' if labels.name else ''}",
        *(f"Notes: {line}" for line in (labels.notes or "").splitlines() if line.strip()),
        f"Network: {experiment.model.name}",
        f"Data: {experiment.dataset.name}{number}",
        f"Seed: {study.seed}",
        f"Cells: {len(summary.cells)}, trials: {findings.trials:,}, "
        f"{duration(float(findings.table['seconds'].sum()))} of computing",
    ]
    golden = golden_by_checkpoint(summary)
    metric = summary.metric
    if not metric.is_accuracy:
        lines.append(f"Metric: {metric.sentence}")
    for name, value in golden.items():  # No name: the network's factory loads its weights.
        shown = f"Golden {metric.name}: {metric.shown(value)}"
        lines.append(shown + (f" ({name})" if name else ""))
    lines += [f"Note: {doubt}" for doubt in findings.doubts]
    if findings.never_called:
        lines.append(f"Never called in this evaluation: {', '.join(findings.never_called)}")
    lines.append(f"Intervals: {summary.confidence:g}%, for other draws of faults on the same data")
    return lines


def cell_lines(findings: Findings) -> list[str]:
    """The table of the cells."""
    summary = findings.summary
    title, more = _cells_title(summary)
    table = cell_table(findings)
    left = [column.label for column in table.columns].index("Trials")
    lines = [title, more, *table.lines(left)]
    no_interval, name = np.isnan(summary["measure"].low), summary.metric.name
    single = int((no_interval & (summary.trials == 1)).sum())
    if single:
        lines.append(f"{counted(single, 'cell')} of one trial: no interval of the {name}.")
    quiet = int((no_interval & (summary.trials > 1)).sum())
    if quiet:
        lines.append(
            f"{counted(quiet, 'cell')} without an interval of the {name}: all trials are "
            "equal, or fewer than two have a value."
        )
    return lines


def _cells_title(summary: Summary) -> tuple[str, str]:
    """The two lines above the table of the cells."""
    metric, end = summary.metric, "Hit: of exposed values; all intervals: export --what cells):"
    due = ""
    if summary.has_due:
        due = f"DUE: {'scores' if metric.is_accuracy else 'values'} not finite; "
    title = "Cells (percent, with interval; Fall in points; Critical: was right, now wrong; Masked:"
    if metric.is_accuracy:
        return title, f"of struck samples; {due}{end}"
    unit = metric.difference_unit.strip() or "its own unit"
    masked = "Masked: of struck samples; " if metric.has_sdc else ""
    title = f"Cells (with interval; rates in percent; Fall: {metric.name} lost, in {unit};"
    return title, f"{masked}{due}{end}"


def state_lines(findings: Findings) -> list[str]:
    """Lines that say which cells stopped early, and which never became sure."""
    counts, rule = Counter(findings.states), findings.study.stop
    if rule is None:
        done = len(findings.states) - counts[UNFINISHED]
        each = counted(findings.study.max_trials, "trial")
        return [f"{done} of {len(findings.states)} cells have their {each}."]
    wanted = f"±{rule.margin:g} points at {rule.confidence:g}%"
    if rule.metric_margin is not None:
        metric = findings.summary.metric
        name = f"±{rule.metric_margin:g}{metric.difference_unit} of {metric.name}"
        wanted = f"{name}, {wanted}" if metric.has_sdc else f"{name} at {rule.confidence:g}%"
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
    ranked: Sequence[RankedSite],
    confidence: float,
    memories: Mapping[str, str] | None = None,
    metric: MetricFacts = ACCURACY,
) -> list[str]:
    """The table of sites struck alone, the weakest first.

    If `memories` has the memory of each site by name, a column shows it.
    """
    rows, has_due = [], any(site.due for site in ranked)
    for site in ranked:
        fall = metric.with_interval(site.fall, site.fall_low, site.fall_high)
        row = [str(site.rank), f"{site.rank_low}-{site.rank_high}", site.name]
        row += [memories.get(site.name, NOTHING)] if memories else []
        row += [fall, *([figure(site.sdc)] if metric.has_sdc else [])]
        row += [figure(site.due)] if has_due else []
        rows.append([*row, str(site.trials)])
    title = "Layer ranking (each struck alone, mean over all settings that all layers have):"
    named = ["Rank", f"{confidence:g}%", "Site", *(["Memory"] if memories else [])]
    head = [*named, "Fall", *(["SDC"] if metric.has_sdc else [])]
    head += [*(["DUE"] if has_due else []), "Trials"]
    return [title, *lined_up(head, rows, left=len(named)), *standing_lines(ranked, metric)]


def standing_lines(ranked: Sequence[RankedSite], metric: MetricFacts = ACCURACY) -> list[str]:
    """A line for a ranking without a single weakest site; nothing for any other.

    >>> site = RankedSite("stem", 1, 1, 2, 0.0, -0.1, 0.1, 0.0, 10)
    >>> standing_lines([site])
    ['No site lost accuracy.']
    """
    if not ranked:
        return []
    first = [site.name for site in weakest(ranked)]
    if not first:
        return [f"No site lost {metric.name}."]
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
        return [*lines, f"Finished; see fxfault campaign report --store {findings.path}"]
    least = study.max_trials if study.stop is None else study.stop.min_trials
    trials = findings.summary.trials
    missing = int((least - trials[trials < least]).sum())
    seconds = findings.table["seconds"]
    if len(seconds) and missing:
        left = duration(missing * float(seconds.mean()))
        lines.append(f"Missing: at least {counted(missing, 'trial')}, about {left} on one worker")
    return [*lines, f"Continue with: fxfault campaign resume --store {findings.path}"]


def comparison_lines(
    differences: Sequence[Difference],
    names: tuple[str, str],
    confidence: float,
    metric: MetricFacts = ACCURACY,
) -> list[str]:
    """The table of two studies, and their average."""
    a, b = names
    head = ["Site", "Fault", "Rate", "Trials", "A", "B", "B - A", "B better"]
    rows = [_difference_row(difference, metric) for difference in differences]
    mean = overall(differences)
    unit = "percent; B - A in percentage points, " if metric.unit == "%" else ""
    if metric.unit and not unit:
        unit = f"{metric.unit}; "
    better_is = (
        ""
        if metric.is_accuracy
        else (f"{'higher' if metric.higher_is_better else 'lower'} is better; ")
    )
    lines = [
        f"A: {a}",
        f"B: {b}",
        "",
        f"{metric.title} under faults ({better_is}{unit}{confidence:g}% interval):",
        *lined_up(head, rows, left=3),
        "",
        f"Mean over {len(differences)} cells: B - A = "
        f"{metric.with_interval(mean.value, mean.low, mean.high)}{metric.difference_unit}",
    ]
    clear = [difference for difference in differences if difference.is_clear]
    better = sum(difference.favours_b for difference in clear)
    lines.append(
        f"B is clearly better in {better}, A in {len(clear) - better} of {len(differences)} cells."
    )
    if any(not difference.paired for difference in differences):
        lines.append(
            "Not in pairs, as seeds or trial numbers differ: studies with one seed tell more."
        )
    return lines


def _difference_row(found: Difference, metric: MetricFacts) -> list[str]:
    cell, (a, b) = found.cell, found.trials
    assert cell is not None
    row = [cell.place, cell.fault, cell.rate_text, f"{a} pairs" if found.paired else f"{a}, {b}"]
    row += [metric.number(found.a), metric.number(found.b)]
    row.append(metric.with_interval(found.value, found.low, found.high))
    return [*row, NOTHING if math.isnan(found.b_better) else f"{100 * found.b_better:.1f}%"]
