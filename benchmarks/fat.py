"""The gain of fault-aware training: accuracy under faults of networks trained with and without it.

    python -m benchmarks.fat [--seeds N] [--workers N] [--json FILE] [--plot FILE]
    python -m benchmarks.fat --calibrate [--ways TEXT ...] [--epochs N]

Each way of training starts from the bundled experiment `digits_fat` and is repeated with several
seeds (weights, order, augmentation and faults of training). Every network is then evaluated on the
500 test images at each probability, three trials each, under the same faults for all networks. An
interval is Student's t over the seeds, at 95 %. It covers the mean over trainings, not the choice
of the test images.

With `--calibrate` every network is evaluated three times: unchanged, and with the statistics of its
batch norms estimated again without faults and under the faults of its training.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import logging
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy import stats

from benchmarks.measuring import load_average, machine, save_json

if TYPE_CHECKING:
    from torch import nn

    from fxfault.experiment import ExperimentConfig

PERCENTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
FAULT_MODELS = ("random", "msb_flip")
TRIALS = 3
EVALUATION_SEED = 20_000
_HALF = {"fault_injection.step_interval": 0.5}
_ZERO = {"fault_injection.gradient_mode": "zero_faulty"}
_CURRICULUM = {
    "fault_injection.interpolate": "linear",
    "fault_injection.curriculum": [
        {"epoch": 0, "probability": 0.0},
        {"epoch": 60, "probability": 15.0},
    ],
}
# Changes to `digits_fat`, which trains with 10 % faults in all steps and `ste`.
WAYS: dict[str, dict[str, Any]] = {
    "no FAT": {"fault_injection.enabled": False},
    "ste, all steps (shipped)": {},
    "ste, half of the steps": _HALF,
    "zero_faulty, all steps": _ZERO,
    "zero_faulty, half": {**_HALF, **_ZERO},
    "ste, curriculum 0 to 15 %": _CURRICULUM,
}

# With --calibrate: the weights of clean training, fine-tuned for a few epochs under faults.
_SHORT = {
    "checkpoint.init_from": "bundled:digits",
    "training.epochs": 12,
    "scheduler.warmup_epochs": 0,
    "optimizer.learning_rate": 2e-3,
}
FINE_TUNING: dict[str, dict[str, Any]] = {
    f"fine-tuned, {percent:g} % faults": {**_SHORT, "fault_injection.probability": percent}
    for percent in (10.0, 20.0, 30.0)
}

# The values of `training.calibrate`.
CALIBRATIONS = ("none", "clean", "faulty")

Accuracies = dict[str, list[float]]
"""Accuracy in percent at each of `PERCENTS`, by fault model."""


def main() -> None:
    """Train, evaluate, print, and save on request."""
    options = _parse_arguments()
    started = time.perf_counter()
    print("; ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"load average {load_average()} before; {options.seeds} seeds, {options.workers} workers")
    if options.epochs is not None:
        print(f"{options.epochs} epochs in place of those of digits_fat")
    known = [*WAYS, *FINE_TUNING] if options.calibrate else [*WAYS]
    ways = [way for way in known if any(part in way for part in options.ways)]
    measured = measure(options, ways)
    for fault_model in FAULT_MODELS:
        print("\n" + table(measured, fault_model))
    print(f"\n{(time.perf_counter() - started) / 60:.1f} min; load average {load_average()} after")
    found = {"machine": machine(), "percents": PERCENTS, "accuracies": measured}
    save_json(options.json, {"schema": "fxfault-fat/1", **found})
    if options.plot is not None:
        draw(measured, options.plot)
        print(f"saved {options.plot}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each way (default 5)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="only the ways of training with one of these texts in their name",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of each (default 120)")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="also evaluate with training.calibrate `clean` and `faulty`",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the accuracies")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, .svg, .pdf)")
    options = parser.parse_args()
    if not 2 <= options.seeds <= 10:
        parser.error(f"--seeds: got {options.seeds}, allowed: 2 to 10")
    if options.workers < 1:
        parser.error(f"--workers: got {options.workers}, allowed: 1 and up")
    known = {**WAYS, **(FINE_TUNING if options.calibrate else {})}
    if not any(part in way for way in known for part in options.ways):
        parser.error(f"--ways: got {options.ways}, allowed: parts of {'; '.join(known)}")
    return options


def measure(options: argparse.Namespace, ways: list[str]) -> dict[str, list[Accuracies]]:
    """Train and evaluate every way with every seed; print a line for each finished one."""
    calibrations = CALIBRATIONS if options.calibrate else CALIBRATIONS[:1]
    names = [_name(way, how) for way in ways for how in calibrations]
    measured: dict[str, dict[int, Accuracies]] = {name: {} for name in names}
    # One thread each: a network this small is slower on two.
    with ProcessPoolExecutor(options.workers, get_context("spawn"), _start_worker) as pool:
        tasks = {
            pool.submit(train_and_evaluate, way, seed, calibrations, options.epochs): (way, seed)
            for seed in range(options.seeds)
            for way in ways
        }
        for number, task in enumerate(as_completed(tasks), start=1):
            way, seed = tasks[task]
            for how, accuracies in task.result().items():
                name = _name(way, how)
                measured[name][seed] = accuracies
                shown = " ".join(f"{accuracy:.1f}" for accuracy in accuracies["random"])
                print(f"{number}/{len(tasks)} {name}, seed {seed}: {shown}", flush=True)
    return {
        name: [by_seed[seed] for seed in range(options.seeds)] for name, by_seed in measured.items()
    }


def _name(way: str, how: str) -> str:
    return way if how == "none" else f"  calibrated {how}: {way}"


def _start_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    # Lightning configures its loggers when it is imported.
    importlib.import_module("fxfault.training.lightning_import")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train_and_evaluate(
    way: str, seed: int, calibrations: Sequence[str], epochs: int | None
) -> dict[str, Accuracies]:
    """Train one network and evaluate it at every probability, with each calibration.

    One training serves for all calibrations: each is applied to a copy, as training does at its
    end. A test compares the two.
    """
    import torch

    from fxfault.experiment import load_experiment
    from fxfault.experiment.parts import load_model, open_test_data, open_training_data
    from fxfault.training import train
    from fxfault.training.run import calibrate

    changes = {**WAYS, **FINE_TUNING}[way]
    changes = {**changes, "seed.value": seed, "fault_injection.seed": seed}
    if epochs is not None:
        changes["training.epochs"] = epochs
    config = load_experiment("digits_fat", changes)
    torch.manual_seed(seed)
    network, _ = load_model(config, None)
    training, test = open_training_data(config), open_test_data(config).dataset
    train(config, network, training, test)
    batches = list(torch.utils.data.DataLoader(test, batch_size=250))
    found = {}
    for how in calibrations:
        if how == "faulty" and not config.fault_injection.enabled:
            # The faults of `digits_fat`, as this way trains without any.
            config = load_experiment("digits_fat", {"seed.value": seed})
        copied = copy.deepcopy(network)
        calibrate(replaced(config, how), copied, training)
        found[how] = evaluate(copied, batches)
    return found


def replaced(config: ExperimentConfig, how: str) -> ExperimentConfig:
    """Return the experiment with another `training.calibrate`."""
    training: Any = dataclasses.replace(config.training, calibrate=how)  # type: ignore[arg-type]
    return dataclasses.replace(config, training=training)


def evaluate(network: nn.Module, batches: list[Any]) -> Accuracies:
    """Measure the accuracies under every fault model at every probability."""
    import fxfault
    from fxfault.campaign import FaultEvaluation
    from fxfault.evaluation import FullRunner

    accuracies: Accuracies = {}
    for fault_model in FAULT_MODELS:
        settings = {"enabled": True, "apply_during": "eval", "seed": EVALUATION_SEED}
        faulty = fxfault.transform(network, {**settings, "injection_type": fault_model})
        evaluation = FaultEvaluation(FullRunner(faulty, batches), TRIALS)
        accuracies[fault_model] = [result.mean for result in evaluation.sweep(PERCENTS)]
    return accuracies


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval, by Student's t.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 2), round(half, 2)
    (2.0, 2.48)
    """
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return statistics.mean(values), float(half)


def table(measured: dict[str, list[Accuracies]], fault_model: str) -> str:
    """Format mean accuracies and 95 % intervals, a row for each way of training."""
    head = "".join(f"{f'{percent:g} %':>14}" for percent in PERCENTS)
    width = max(24, *(len(way) for way in measured))
    lines = [f"{fault_model + ' faults':<{width}}{head}"]
    for way, by_seed in measured.items():
        cells = _intervals(by_seed, fault_model)
        row = "".join(f"{f'{mean:.1f} ± {half:.1f}':>14}" for mean, half in cells)
        lines.append(f"{way:<{width}}{row}")
    return "\n".join(lines)


def _intervals(by_seed: list[Accuracies], fault_model: str) -> list[tuple[float, float]]:
    columns = zip(*(accuracies[fault_model] for accuracies in by_seed), strict=True)
    return [interval(list(column)) for column in columns]


def draw(measured: dict[str, list[Accuracies]], path: Path) -> None:
    """Draw accuracy against probability with 95 % bands, a panel for each fault model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, fault_model in zip(panels, FAULT_MODELS, strict=True):
        for number, (way, by_seed) in enumerate(measured.items()):
            cells = _intervals(by_seed, fault_model)
            means = [mean for mean, _ in cells]
            style = {"color": "black", "linestyle": "--"} if number == 0 else {}
            (line,) = panel.plot(PERCENTS, means, marker="o", markersize=3, label=way, **style)
            low = [max(0.0, mean - half) for mean, half in cells]
            high = [min(100.0, mean + half) for mean, half in cells]
            panel.fill_between(PERCENTS, low, high, color=line.get_color(), alpha=0.15, lw=0)
        panel.set_title(f"{fault_model} faults")
        panel.set_xlabel("elements hit (%)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy (%), mean and 95 % interval")
    panels[0].set_ylim(0, 101)
    panels[1].legend(title="trained with", fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
