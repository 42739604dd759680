"""Pictures of the results of `fxfault-eval` and `fxfault-train`.

Lines differ in their colours and in their dashes. Importing this module does not import matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.errors import ConfigError
from fxfault.messages import counted
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.results.pictures.drawing import (
    BLUE,
    FORMATS,
    GREEN,
    GREY,
    GRID,
    MOST_BARS,
    MOST_TICKS,
    ORANGE,
    check_matplotlib,
    draw_bars,
    new_figure,
    plot_settings,
    rendered,
    scale_rates,
    set_headline,
    shortened,
)
from fxfault.results.reports.campaign_report import standing_lines
from fxfault.results.reports.text import per_each, percent, rate_words

if TYPE_CHECKING:
    from fxfault.campaign.cell_result import CellResult
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


def check_plot(path: Path) -> None:
    """Check before the work that a picture can be drawn, by its extension and matplotlib."""
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        allowed = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"--plot: {path} does not end in one of {allowed}")
    check_matplotlib("--plot")


def evaluation_picture(setting: Setting, findings: Findings, file_format: str) -> bytes:
    """Draw the results of `fxfault-eval`: the sweep, or with `--per-layer` the ranking."""
    if not setting.per_layer:
        fault_model = findings.results[0].cell.fault
        chance = setting.chance if findings.metric.is_accuracy else None
        return sweep_picture(findings.results, fault_model, chance, file_format)
    headline = " ".join(standing_lines([s for s, _ in findings.ranked], findings.metric)).rstrip(
        "."
    )
    return ranking_picture([result for _, result in findings.ranked], file_format, headline)


def sweep_picture(
    results: Sequence[CellResult], fault_model: str, chance: float | None, file_format: str
) -> bytes:
    """Draw the metric against how often faults strike.

    `chance` is the accuracy of guessing in percent, None if unknown.
    """
    ordered = sorted(results, key=_place)
    with plot_settings():
        figure, axes = new_figure(6.6, 4.0)
        _draw_means(axes, ordered, fault_model)
        _draw_levels(axes, ordered, chance)
        scale = _scale(axes, list(map(_place, ordered)))
        axes.set_xlabel(_rate_label(ordered[0], scale))
        if ordered[0].cell.rate is None:
            axes.set_xticks([])
        metric = ordered[0].metric
        axes.set_ylabel(
            "Test accuracy (%)" if metric.is_accuracy else f"{metric.name}{metric.in_unit}"
        )
        axes.grid(axis="y", color=GRID)
        # Outside, as a curve may be anywhere inside.
        length = sum(len(text) for text in axes.get_legend_handles_labels()[1])
        columns = 3 if length < _LEGEND_LINE else 1
        figure.legend(loc="outside upper left", ncols=columns, **_LEGEND)
        return rendered(figure, file_format)


def ranking_picture(results: Sequence[CellResult], file_format: str, headline: str = "") -> bytes:
    """Draw what faults at each site alone cost, the most vulnerable at the top.

    Of more than `MOST_BARS` sites, only the first are drawn, and the picture says so.

    Args:
        results: results of sites struck alone, the most vulnerable first.
        headline: text above the bars, such as a tie.
        file_format: one of `FORMATS`.
    """
    shown = results[:MOST_BARS]
    runs = len(shown[0].runs)
    with plot_settings():
        names = [f"{result.index}  {shortened(result.cell.place)}" for result in shown]
        figure, axes = draw_bars(
            names,
            [result.degradation for result in shown],
            0.24,
            xerr=[result.std for result in shown] if runs > 1 else None,
            error_kw={"ecolor": "black", "elinewidth": 1, "capsize": 2},
        )
        axes.set_xlabel(_cost_label(shown[0]))
        if headline:
            set_headline(axes, headline)
        if len(shown) < len(results):
            axes.set_ylabel(f"Site (the {len(shown)} most vulnerable of {len(results)})")
        else:
            axes.set_ylabel("Site struck alone")
        return rendered(figure, file_format)


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
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
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
    """Draw the share of noisy steps, and on an axis of its own the probability in them."""
    shares = [100 * row["noisy_steps"] / row["steps"] for row in rows]
    axes.bar(epochs, shares, width=1.0, color=ORANGE, alpha=0.35, linewidth=0)
    axes.set_ylabel("Noisy steps (%)", color=ORANGE)
    axes.set_ylim(0, 105)
    probability = [row.get("probability", 0.0) for row in rows]
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.plot(
        epochs, probability, drawstyle="steps-mid", marker=marker, markersize=3, color="black"
    )
    right.set_ylabel("Fault probability (%)")
    right.set_ylim(0, 1.1 * max(*probability, 1.0))


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


def _cost_label(result: CellResult) -> str:
    runs, number = len(result.runs), result.cell.num_faults
    rate = f"{rate_words(result, 0)} fault probability"
    if number is not None:
        rate = f"{counted(number, 'fault')} {per_each(result.cell.memories)}"
    metric = result.metric
    label = f"{metric.title} lost{metric.in_points}\nat {rate}"
    return f"{label}, mean ± std of {runs} runs" if runs > 1 else label


def _draw_means(axes: Any, ordered: Sequence[CellResult], fault_model: str) -> None:
    places = list(map(_place, ordered))
    means = [result.mean for result in ordered]
    runs = len(ordered[0].runs)
    label = f"{fault_model} faults" + (f" (mean ± std of {runs} runs)" if runs > 1 else "")
    axes.plot(places, means, color=BLUE, marker="o", markersize=4, label=label, zorder=3)
    if runs > 1:
        low = [result.mean - result.std for result in ordered]
        high = [result.mean + result.std for result in ordered]
        if ordered[0].metric.is_accuracy:
            low, high = [max(0.0, value) for value in low], [min(100.0, value) for value in high]
        if len(ordered) > 1:
            axes.fill_between(places, low, high, color=BLUE, alpha=0.25, linewidth=0)
        else:
            axes.errorbar(places, means, [ordered[0].std], color=BLUE, capsize=3)


def _draw_levels(axes: Any, ordered: Sequence[CellResult], chance: float | None) -> None:
    baseline = ordered[0].baseline
    axes.axhline(
        baseline,
        color=ORANGE,
        linestyle="--",
        linewidth=1.2,
        label=f"golden, no faults ({ordered[0].metric.shown(baseline)})",
    )
    lowest = min(result.mean - result.std for result in ordered)
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
