"""Pictures of what `fxfault-eval` and `fxfault-train` found.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; lines differ in their
dashes too. Importing this module does not import matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxfault.cli.evaluation_report import percent, rate_words
from fxfault.cli.figures import (
    FORMATS,
    MOST_BARS,
    check_matplotlib,
    new_figure,
    plot_settings,
    rendered,
    shortened,
)
from fxfault.errors import ConfigError
from fxfault.evaluation import CellResult

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
# Probabilities that lie further apart than this are drawn on a logarithmic axis.
_LINEAR_RANGE = 20
# Up to so many probabilities are all written at the axis.
_MOST_TICKS = 12
# Characters in a line of the legend, three signs included.
_LEGEND_LINE = 84
_LONGEST_TITLE = 80
_LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8.5,
    "columnspacing": 1.2,
    "handlelength": 1.8,
}
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("training", {"color": _BLUE, "linewidth": 1.2}),
    "val": ("validation", {"color": _ORANGE, "linestyle": "--"}),
    "faulty_val": ("validation under faults", {"color": _GREEN, "linestyle": "-."}),
}


def check_plot(path: Path) -> None:
    """Check before the work that a picture can be drawn.

    Raises:
        ConfigError: the extension is of no known format, or matplotlib is not installed.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        allowed = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"--plot: {path} does not end in one of {allowed}")
    check_matplotlib("--plot")


def sweep_picture(
    results: Sequence[CellResult], fault_model: str, chance: float | None, file_format: str
) -> bytes:
    """Draw accuracy against how often faults strike.

    Args:
        results: at least one.
        fault_model: its name, for the legend.
        chance: accuracy of guessing, in percent, or None.
        file_format: one of `FORMATS`.
    """
    ordered = sorted(results, key=_place)
    with plot_settings():
        figure, axes = new_figure(6.6, 4.0)
        _draw_accuracy(axes, ordered, fault_model)
        _draw_levels(axes, ordered, chance)
        scale = _scale_rates(axes, list(map(_place, ordered)))
        axes.set_xlabel(_rate_label(ordered[0], scale))
        if ordered[0].cell.rate is None:
            axes.set_xticks([])
        axes.set_ylabel("Test accuracy (%)")
        axes.grid(axis="y", color="0.9")
        # Outside: inside there is no place that is free of every curve.
        length = sum(len(text) for text in axes.get_legend_handles_labels()[1])
        columns = 3 if length < _LEGEND_LINE else 1
        figure.legend(loc="outside upper left", ncols=columns, **_LEGEND)
        return rendered(figure, file_format)


def ranking_picture(results: Sequence[CellResult], file_format: str, headline: str = "") -> bytes:
    """Draw what faults at each site alone cost, the most vulnerable at the top.

    Of more than `MOST_BARS` sites the most vulnerable are drawn, and the picture says so.

    Args:
        results: of sites struck alone, at least one, the most vulnerable first.
        headline: what is to be said above it, such as a tie.
        file_format: one of `FORMATS`.
    """
    shown = results[:MOST_BARS]
    runs = len(shown[0].runs)
    with plot_settings():
        names = [f"{result.index}  {shortened(result.cell.place)}" for result in shown]
        figure, axes = new_figure(
            4.6 + 0.08 * max(map(len, names)), max(2.4, 1.3 + 0.24 * len(shown))
        )
        errors = [result.std for result in shown] if runs > 1 else None
        axes.barh(
            range(len(shown)),
            [result.degradation for result in shown],
            xerr=errors,
            height=0.7,
            color=_BLUE,
            error_kw={"ecolor": "black", "elinewidth": 1, "capsize": 2},
        )
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(_cost_label(shown[0]))
        if headline:
            axes.set_title(shortened(headline, _LONGEST_TITLE), fontsize=10, loc="left")
        if len(shown) < len(results):
            axes.set_ylabel(f"Site (the {len(shown)} most vulnerable of {len(results)})")
        else:
            axes.set_ylabel("Site struck alone")
        return rendered(figure, file_format)


def training_picture(
    rows: Sequence[Mapping[str, float]], test_accuracy: float | None, file_format: str
) -> bytes:
    """Draw what each epoch of a training measured: loss, accuracy and, if any, faults.

    Args:
        rows: of metrics.csv, at least one.
        test_accuracy: of the weights that were kept, in percent; None before the end.
        file_format: one of `FORMATS`.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) <= _MOST_TICKS else None
    noisy = any(row["noisy_steps"] for row in rows)
    with plot_settings():
        figure, panels = (
            new_figure(6.6, 6.6, nrows=3, sharex=True, height_ratios=[3, 3, 2])
            if noisy
            else new_figure(6.6, 5.0, nrows=2, sharex=True)
        )
        losses, accuracies = panels[:2]
        for axes, measure in ((losses, "loss"), (accuracies, "accuracy")):
            for source, (label, style) in _CURVES.items():
                values = [row.get(f"{source}_{measure}") for row in rows]
                if any(value is not None for value in values):
                    axes.plot(epochs, values, label=label, marker=marker, markersize=3, **style)
            axes.grid(axis="y", color="0.9")
        losses.set_ylabel("Loss")
        accuracies.set_ylabel("Accuracy (%)")
        if test_accuracy is not None:
            label = f"test, at the end ({test_accuracy:.2f}%)"
            accuracies.axhline(test_accuracy, color=_GREY, linestyle=":", label=label)
        if noisy:
            _draw_schedule(panels[2], epochs, rows, marker)
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1].set_xlabel("Epoch")
        panels[-1].set_xlim(-0.5, max(epochs) + 0.5)
        handles, labels = accuracies.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, **_LEGEND)
        return rendered(figure, file_format)


def _draw_schedule(
    axes: Any, epochs: Sequence[float], rows: Sequence[Mapping[str, float]], marker: str | None
) -> None:
    """The share of noisy steps, and on an axis of its own the probability in them."""
    shares = [100 * row["noisy_steps"] / row["steps"] for row in rows]
    axes.bar(epochs, shares, width=1.0, color=_ORANGE, alpha=0.35, linewidth=0)
    axes.set_ylabel("Noisy steps (%)", color=_ORANGE)
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
    """Where a result stands on the axis of rates."""
    return result.cell.rate or 0.0


def _rate_label(result: CellResult, scale: str) -> str:
    if result.cell.rate is None:
        return "Faults of the configuration"
    if result.cell.num_faults is not None:
        return f"Faults per sample{f' ({scale})' if scale else ''}"
    return f"Fault probability of each activation value (%{f', {scale}' if scale else ''})"


def _cost_label(result: CellResult) -> str:
    runs, counted = len(result.runs), result.cell.num_faults is not None
    rate = f"{result.cell.num_faults} fault{'' if result.cell.num_faults == 1 else 's'} per sample"
    rate = rate if counted else f"{rate_words(result, 0)} fault probability"
    label = f"Accuracy lost (percentage points)\nat {rate}"
    return f"{label}, mean ± std of {runs} runs" if runs > 1 else label


def _draw_accuracy(axes: Any, ordered: Sequence[CellResult], fault_model: str) -> None:
    places = list(map(_place, ordered))
    means = [result.mean for result in ordered]
    runs = len(ordered[0].runs)
    label = f"{fault_model} faults" + (f" (mean ± std of {runs} runs)" if runs > 1 else "")
    axes.plot(places, means, color=_BLUE, marker="o", markersize=4, label=label, zorder=3)
    if runs > 1:
        low = [max(0.0, result.mean - result.std) for result in ordered]
        high = [min(100.0, result.mean + result.std) for result in ordered]
        if len(ordered) > 1:
            axes.fill_between(places, low, high, color=_BLUE, alpha=0.25, linewidth=0)
        else:
            axes.errorbar(places, means, [ordered[0].std], color=_BLUE, capsize=3)


def _draw_levels(axes: Any, ordered: Sequence[CellResult], chance: float | None) -> None:
    baseline = ordered[0].baseline
    axes.axhline(
        baseline,
        color=_ORANGE,
        linestyle="--",
        linewidth=1.2,
        label=f"golden, no faults ({baseline:.2f}%)",
    )
    lowest = min(result.mean - result.std for result in ordered)
    if chance is not None and lowest < (baseline + chance) / 2:
        label = f"chance ({percent(round(chance, 2), 0)})"
        axes.axhline(chance, color=_GREY, linestyle=":", linewidth=1.2, label=label)
        axes.set_ylim(0, 103)


def _scale_rates(axes: Any, places: Sequence[float]) -> str:
    """Choose the axis of the rates; returns what its label must say of it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    positive = [place for place in places if place > 0]
    is_wide = len(positive) > 1 and max(positive) / min(positive) >= _LINEAR_RANGE
    if is_wide and len(positive) < len(places):
        # 0 has a place on this axis; on a logarithmic one it has none.
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
        axes.set_xlim(-0.12 * min(positive), 1.15 * max(positive))
    elif is_wide:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: format(place, "g")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(places) <= _MOST_TICKS:
        axes.set_xticks(places)
        axes.xaxis.set_minor_locator(NullLocator())
    return "logarithmic" if is_wide else ""
