"""Figures of docs/real-networks.md: networks with weights from packages, under faults.

    python -m benchmarks.real_networks mnist --pictures docs/images
    python -m benchmarks.real_networks encoder --pictures docs/images
    python -m benchmarks.real_networks segmenter --pictures docs/images

It prints a table of means, and draws them with 95 % intervals (Student's t over the trials). For
`mnist`, `--run lfc=FOLDER` adds a network that `fxfault train --config mnist_lfc` trained there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxfault
from fxfault.campaign.estimates.intervals import student_t
from fxfault.data import build_dataset
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import load_model
from fxfault.results.pictures.drawing import (
    BLUE,
    GREEN,
    GRID,
    ORANGE,
    PINK,
    new_figure,
    plot_settings,
    rendered,
    scale_rates,
)

SETTINGS = {
    "enabled": True,
    "apply_during": "eval",
    "seed": 42,
    "injection_type": "bit_flip",
    "probability": 0.0,
}

# Percent of all words of all sites, and trials at each rate.
RATES = {
    "mnist": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "encoder": (0.01, 0.1, 1.0, 10.0),
    "segmenter": (0.01, 0.1, 1.0, 10.0),
}
TRIALS = {"mnist": 5, "encoder": 3, "segmenter": 3}

Curves = dict[str, list[list[float]]]  # a value for each rate and trial, by the name of a curve
Measure = Callable[[Tensor, Tensor], float]  # of outputs and golden outputs


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("mnist", "encoder", "segmenter"))
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--pictures", type=Path, help="folder for the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves, unit = _MEASURED[options.what](dict(run.split("=", 1) for run in options.run))
    _print(curves, RATES[options.what])
    if options.pictures:
        _draw(curves, RATES[options.what], unit, options.pictures / f"network_{options.what}.png")


def _mnist(runs: dict[str, str]) -> tuple[Curves, str]:
    curves: Curves = {}
    for name in ("lenet", "tfc", *runs):
        experiment = load_experiment(f"mnist_{name}")
        path = f"{runs[name]}/best.ckpt" if name in runs else experiment.checkpoint.path
        model, _ = load_model(experiment, path)
        data: Any = build_dataset("mnist_5k", "test", kwargs=experiment.dataset.kwargs)  # type: ignore[union-attr]

        def accuracy(outputs: Tensor, golden: Tensor, labels: Tensor = data.labels) -> float:
            return 100 * float((outputs.argmax(1) == labels).float().mean())

        bits = experiment.quantization.act_bit_width
        for bit in ("random", "msb_flip"):
            curves[f"{name} ({bits} bit), {bit}"] = _swept(
                "mnist", model, data.images, accuracy, bit
            )
    return curves, "Accuracy (%)"


def _encoder(runs: dict[str, str]) -> tuple[Curves, str]:
    from fxfault.networks import sentence_encoder
    from fxfault.networks.sentences import Sentences

    def distance(outputs: Tensor, golden: Tensor) -> float:
        return float((1 - torch.cosine_similarity(outputs, golden)).mean())

    model, tokens = sentence_encoder.quantised(), Sentences("test").tokens
    return {
        f"bit {bit}": _swept("encoder", model, tokens, distance, "bit_flip", bit)
        for bit in (7, 6, 5, 4)
    }, "Cosine distance to golden"


def _segmenter(runs: dict[str, str]) -> tuple[Curves, str]:
    from fxfault.networks import digit_segmenter
    from fxfault.networks.digit_mosaics import BACKGROUND, Mosaics

    test = Mosaics("test")
    ink = test.labels != BACKGROUND

    def accuracy(outputs: Tensor, golden: Tensor) -> float:
        return 100 * float((outputs.argmax(1) == test.labels)[ink].float().mean())

    def changed(outputs: Tensor, golden: Tensor) -> float:
        return 100 * float((outputs.argmax(1) != golden.argmax(1)).float().mean())

    model = digit_segmenter.trained()
    return {
        "accuracy on digits": _swept("segmenter", model, test.images, accuracy, "random"),
        "changed pixels": _swept("segmenter", model, test.images, changed, "random"),
    }, "Share of pixels (%)"


_MEASURED: dict[str, Callable[[dict[str, str]], tuple[Curves, str]]] = {
    "mnist": _mnist,
    "encoder": _encoder,
    "segmenter": _segmenter,
}


def _swept(
    what: str,
    model: nn.Module,
    inputs: Tensor,
    measure: Measure,
    injection_type: str,
    bit: int | None = None,
) -> list[list[float]]:
    """Values without faults first, then at each rate, of each trial."""
    own = {"injection_type": injection_type, "bit": bit}
    faulty: Any = fxfault.transform(model.eval(), {**SETTINGS, **own})
    faulty = fxfault.freeze(faulty)
    with torch.no_grad():
        golden = faulty(inputs)
        return [[measure(golden, golden)]] + [
            [measure(outputs, golden) for outputs in _trials(faulty, inputs, rate, TRIALS[what])]
            for rate in RATES[what]
        ]


def _trials(faulty: Any, inputs: Tensor, rate: float, trials: int) -> Iterator[Tensor]:
    for site in faulty.faults:
        site.set_probability(rate)
    for trial in range(trials):
        faulty.faults.reset(trial=trial)
        yield faulty(inputs)


def _print(curves: Curves, rates: tuple[float, ...]) -> None:
    width = max(map(len, curves))
    print(" " * width, *(f"{rate:>8g} %" for rate in (0.0, *rates)))
    for name, values in curves.items():
        means = [float(np.mean(trials)) for trials in values]
        print(f"{name:{width}}", *(f"{mean:10.4g}" for mean in means))


# Curves of one network share a colour, those of one fault their dashes.
_COLOURS = (BLUE, ORANGE, GREEN, PINK)
_DASHES = ("-", "--")


def _draw(curves: Curves, rates: tuple[float, ...], unit: str, file: Path) -> None:
    families = list(dict.fromkeys(name.partition(", ")[0] for name in curves))
    faults = list(dict.fromkeys(name.partition(", ")[2] for name in curves))
    with plot_settings():
        figure, axes = new_figure(6.6, 3.8)
        for name, values in curves.items():
            family, _, fault = name.partition(", ")
            look = {
                "color": _COLOURS[families.index(family)],
                "linestyle": _DASHES[faults.index(fault)],
            }
            trials = np.array(values[1:])
            means = trials.mean(axis=1)
            low, high = student_t(means, trials.var(axis=1, ddof=1), trials.shape[1])
            axes.plot(rates, means, marker="o", markersize=3, label=name, **look)
            axes.fill_between(rates, low, high, color=look["color"], alpha=0.2, linewidth=0)
        scale_rates(axes, rates, widest=10)
        axes.set(xlabel="Words struck (%, logarithmic)", ylabel=unit)
        axes.grid(axis="y", color=GRID)
        axes.legend(frameon=False, fontsize="small")
        file.write_bytes(rendered(figure, "png"))


if __name__ == "__main__":
    main()
