"""Pictures of the results of `fxfault eval` and `fxfault train`.

Lines differ in their colours and in their dashes. Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.campaign.fault_evaluation import estimate
from fxfault.errors import ConfigError
from fxfault.messages import counted
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.pictures.drawing import (
    BLUE,
    FORMATS,
    GREEN,
    GREY,
    GRID,
    INK,
    MOST_TICKS,
    ORANGE,
    PINK,
    SCREEN,
    Look,
    check_matplotlib,
    draw_bars,
    draw_whiskers,
    new_figure,
    plot_settings,
    rendered,
    scale_rates,
)
from fxfault.results.pictures.ranking import draw_ranking, ranking_picture
from fxfault.results.reports.evaluation_report import CONFIDENCE
from fxfault.results.reports.text import per_each, percent, rate_words

if TYPE_CHECKING:
    from fxfault.campaign.cell_result import CellResult
    from fxfault.campaign.estimates.ranking import RankedSite
    from fxfault.metrics.facts import MetricFacts
    from fxfault.results.reports.evaluation_report import Findings, Setting

# Probabilities with this ratio or more are drawn on a logarithmic axis.
_LINEAR_RANGE = 20
# Characters in a line of the legend.
_LEGEND_LINE = 84
_LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8.5,
    "columnspacing": 1.2,
    "handlelength": 1.8,
}
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("training", {"color": BLUE, "linewidth": 1.2}),
    "val": ("validation", {"color": ORANGE, "linestyle": "--"}),
    "faulty_val": ("validation under faults", {"color": GREEN, "linestyle": "-."}),
}
# Of the sweeps that are drawn on one pair of axes.
_SWEEPS = (BLUE, GREEN, PINK, INK)


def check_plot(path: Path) -> None:
    """Check before the work that a picture can be drawn, by its extension and matplotlib."""
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        allowed = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"--plot: {path} does not end in one of {allowed}")
    check_matplotlib("--plot")


def evaluation_picture(
    setting: Setting, findings: Findings, file_format: str, look: Look = SCREEN
) -> bytes:
    """Draw the results of `fxfault eval`: the sweep, or with `--per-layer` the ranking."""
    if not setting.per_layer:
        fault_model = findings.results[0].cell.fault
        return sweep_picture(findings.results, fault_model, findings.chance, file_format, look)
    named, words = _ranked(findings)
    return ranking_picture(named, CONFIDENCE, file_format, look=look, **words)


def draw_evaluation(
    axes: Any, setting: Setting, findings: Findings, label: str | None = None
) -> None:
    """Draw what `evaluation_picture` draws on some axes.

    Args:
        axes: where to draw.
        setting: what was evaluated.
        findings: the results, at least one.
        label: what the legend calls the curve of a sweep; None takes the fault model.
    """
    if setting.per_layer:
        named, words = _ranked(findings)
        draw_ranking(axes, named, CONFIDENCE, **words)
        return
    fault_model = findings.results[0].cell.fault
    if len(findings.results) == 1:
        draw_single(axes, findings.results[0], label or fault_model, findings.chance)
    else:
        draw_sweep(axes, findings.results, label or f"{fault_model} faults", findings.chance)
    lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if lines:  # A level that two results share has one entry.
        axes.legend(lines.values(), lines.keys(), **_LEGEND)


def _ranked(findings: Findings) -> tuple[list[RankedSite], dict[str, Any]]:
    """The ranked sites, and what a picture says of them."""
    at = f"at {_rate_of(findings.results[0])}"
    return [site for site, _ in findings.ranked], {"metric": findings.metric, "setting": at}


def sweep_picture(
    results: Sequence[CellResult],
    fault_model: str,
    chance: float | None,
    file_format: str,
    look: Look = SCREEN,
) -> bytes:
    """Draw the metric against how often faults strike; a single rate is a bar.

    `chance` is the accuracy of guessing in percent, None if unknown.
    """
    with plot_settings(look):
        if len(results) == 1:
            figure, axes = new_figure(*look.of(6.6, 2.0))
            draw_single(axes, results[0], fault_model, chance)
        else:
            figure, axes = new_figure(*look.of(6.6, 4.0 if not look.is_narrow else 2.8))
            draw_sweep(axes, results, f"{fault_model} faults", chance)
        handles, labels = axes.get_legend_handles_labels()
        style = {**_LEGEND, "fontsize": look.small}
        # Outside, as a curve may be anywhere inside.
        columns = 3 if sum(map(len, labels)) < _LEGEND_LINE and not look.is_narrow else 1
        if handles:
            figure.legend(loc="outside upper left", ncols=columns, **style)
        return rendered(figure, file_format)


def draw_sweep(
    axes: Any, results: Sequence[CellResult], name: str, chance: float | None = None
) -> None:
    """Draw the metric at each rate on some axes, with a band for its 95 % interval.

    Args:
        axes: where to draw.
        results: a result for each rate.
        name: what the line is called.
        chance: accuracy of guessing in percent; drawn only if the line comes near it.
    """
    ordered = sorted(results, key=_place)
    colour = _SWEEPS[len(axes.collections) % len(_SWEEPS)]  # Each curve has a band.
    _draw_means(axes, ordered, name, colour)
    _draw_levels(axes, ordered, chance, ORANGE if colour == BLUE else colour)
    scale = _scale(axes, list(map(_place, ordered)))
    axes.set_xlabel(_rate_label(ordered[0], scale))
    axes.set_ylabel(_measured(ordered[0].metric))
    axes.grid(axis="y", color=GRID)


def draw_single(
    axes: Any, result: CellResult, fault_model: str, chance: float | None = None
) -> None:
    """Draw the metric with and without the faults of one rate as two bars on some axes."""
    measure = estimate([result], CONFIDENCE)["measure"]
    at = "" if result.cell.rate is None else f" at {_rate_of(result)}"
    golden = f"golden, no faults ({result.metric.shown(result.baseline)})"
    faulty = f"{fault_model}{at} ({result.metric.shown(result.mean)})"
    draw_bars(axes, [golden, faulty], [result.baseline, result.mean])
    low, high = float(measure.low[0]), float(measure.high[0])
    draw_whiskers(axes, [result.baseline, result.mean], [math.nan, low], [math.nan, high])
    known = _interval_words(result) or ", one run, so no interval"
    axes.set_xlabel(f"{_measured(result.metric)}{known.replace(' (', ', ').rstrip(')')}")
    if chance is not None and result.mean < (result.baseline + chance) / 2:
        label = f"chance ({percent(round(chance, 2), 0)})"
        axes.axvline(chance, color=GREY, linestyle=":", linewidth=1.2, label=label)


def _measured(metric: MetricFacts) -> str:
    return "Test accuracy (%)" if metric.is_accuracy else f"{metric.name}{metric.in_unit}"


def _rate_of(result: CellResult) -> str:
    """How often faults struck, for a label."""
    if result.cell.num_faults is not None:
        return f"{counted(result.cell.num_faults, 'fault')} {per_each(result.cell.memories)}"
    return f"{rate_words(result, 0)} fault probability"


def _interval_words(result: CellResult) -> str:
    """Which interval is drawn; empty for a single run."""
    runs = len(result.runs)
    return f" (mean of {runs} runs, {CONFIDENCE:g}% interval)" if runs > 1 else ""


def training_picture(
    rows: Sequence[Mapping[str, float]],
    test_value: float | None,
    file_format: str,
    metric: MetricFacts = ACCURACY,
) -> bytes:
    """Draw the loss and the metric of each epoch of a training, and the faults if there are any.

    Args:
        rows: rows of metrics.csv.
        test_value: the metric for the test data with the final weights; None before the end.
        file_format: one of `FORMATS`.
        metric: what validation measures.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) <= MOST_TICKS else None
    noisy = any(row["noisy_steps"] for row in rows)
    with plot_settings():
        figure, panels = (
            new_figure(6.6, 6.6, nrows=3, sharex=True, height_ratios=[3, 3, 2])
            if noisy
            else new_figure(6.6, 5.0, nrows=2, sharex=True)
        )
        losses, values_of_metric = panels[:2]
        for axes, measure in ((losses, "loss"), (values_of_metric, metric.column)):
            for source, (label, style) in _CURVES.items():
                values = [row.get(f"{source}_{measure}") for row in rows]
                if any(value is not None for value in values):
                    axes.plot(epochs, values, label=label, marker=marker, markersize=3, **style)
            axes.grid(axis="y", color=GRID)
        losses.set_ylabel("Loss")
        values_of_metric.set_ylabel(f"{metric.title}{metric.in_unit}")
        if test_value is not None:
            label = f"test, at the end ({metric.shown(test_value)})"
            values_of_metric.axhline(test_value, color=GREY, linestyle=":", label=label)
        if noisy:
            _draw_schedule(panels[2], epochs, rows, marker)
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[-1].set_xlabel("Epoch")
        panels[-1].set_xlim(-0.5, max(epochs) + 0.5)
        handles, labels = values_of_metric.get_legend_handles_labels()
        if not metric.is_accuracy:  # Training measures the loss alone.
            known = dict(zip(labels, handles, strict=True))
            losses_handles, losses_labels = losses.get_legend_handles_labels()
            both = {**dict(zip(losses_labels, losses_handles, strict=True)), **known}
            handles, labels = list(both.values()), list(both)
        figure.legend(handles, labels, loc="outside upper left", ncols=2, **_LEGEND)
        return rendered(figure, file_format)


def _draw_schedule(
    axes: Any, epochs: Sequence[float], rows: Sequence[Mapping[str, float]], marker: str | None
) -> None:
    """Draw the share of noisy steps, and on an axis of its own how often faults struck in them.

    That is the probability, or what was counted if there is no single probability.
    """
    shares = [100 * row["noisy_steps"] / row["steps"] for row in rows]
    axes.bar(epochs, shares, width=1.0, color=ORANGE, alpha=0.35, linewidth=0)
    axes.set_ylabel("Noisy steps (%)", color=ORANGE)
    axes.set_ylim(0, 105)
    columns = {"probability": "Fault probability (%)", "fault_rate": "Hit (%)"}
    known = [column for column in columns if all(column in row for row in rows)]
    if not known:
        return
    rates = [row[known[0]] for row in rows]
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.plot(epochs, rates, drawstyle="steps-mid", marker=marker, markersize=3, color="black")
    right.set_ylabel(columns[known[0]])
    right.set_ylim(0, 1.1 * max(*rates, 1.0))


def _place(result: CellResult) -> float:
    return result.cell.rate or 0.0


def _rate_label(result: CellResult, scale: str) -> str:
    if result.cell.rate is None:
        return "Faults of the configuration"
    kinds = result.cell.memories
    if result.cell.num_faults is not None:
        return f"Faults {per_each(kinds)}{f' ({scale})' if scale else ''}"
    what = "activation value" if kinds == ("activations",) else f"word ({', '.join(kinds)})"
    return f"Fault probability of each {what} (%{f', {scale}' if scale else ''})"


def _draw_means(axes: Any, ordered: Sequence[CellResult], name: str, colour: str) -> None:
    places = list(map(_place, ordered))
    means = [result.mean for result in ordered]
    label = f"{name}{_interval_words(ordered[0])}"
    axes.plot(places, means, color=colour, marker="o", markersize=4, label=label, zorder=3)
    measure = estimate(ordered, CONFIDENCE)["measure"]
    axes.fill_between(places, measure.low, measure.high, color=colour, alpha=0.25, linewidth=0)


def _draw_levels(
    axes: Any, ordered: Sequence[CellResult], chance: float | None, colour: str
) -> None:
    baseline = ordered[0].baseline
    golden = f"golden, no faults ({ordered[0].metric.shown(baseline)})"
    if golden not in axes.get_legend_handles_labels()[1]:
        axes.axhline(baseline, color=colour, linestyle="--", linewidth=1.2, label=golden)
    lowest = min(result.mean for result in ordered)
    if chance is not None and lowest < (baseline + chance) / 2:
        label = f"chance ({percent(round(chance, 2), 0)})"
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1.2, label=label)
        axes.set_ylim(0, 103)


def _scale(axes: Any, places: Sequence[float]) -> str:
    """Scale the axis of the rates; returns a word for its label."""
    positive = [place for place in places if place > 0]
    is_wide = scale_rates(axes, places, _LINEAR_RANGE)
    if is_wide and len(positive) < len(places):
        axes.set_xlim(-0.12 * min(positive), 1.15 * max(positive))
    return "logarithmic" if is_wide else ""
