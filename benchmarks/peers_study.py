"""A whole study side by side: one layer struck alone, by fxfault, plain hooks, MRFI, PyTorchFI.

    python -m benchmarks.peers_study [--turns N] [--threads N] [--json FILE]

`python -m benchmarks.peers` runs it too. Random bits flip in one layer of a network, at 1 %, 1e-3,
1e-4 and 1e-6 of its elements; a trial evaluates 256 images of 32 x 32 in batches of 64. All
contenders (`benchmarks.peers_trials`) run in turns in one process. The table has the mean time of a
trial, with a 95 % interval over the turns, by the depth of the struck layer; the ratio is that to
fxfault, which is printed first.

Quantised: quant_cnv with 2-bit weights and activations; each of its nine activations is struck.
Float: a twin of it (`benchmarks.peers_tools`), as MRFI and PyTorchFI do not support Brevitas; the
outputs of its nine convolutions and linear layers are struck. A tool that is not installed is
skipped (`pip install mrfi pytorchfi`). PyTorchFI sets values where the others flip bits.

The faults of all trials are counted. If a contender strikes another number than the rate asks for,
by more than six standard deviations, nothing is printed: the times would not be comparable.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import run_benchmark, seconds_of, verdict
from benchmarks.networks import BATCH, outputs_of, quant_cnv
from benchmarks.peers_tools import float_twin, why_no_tool
from benchmarks.peers_trials import (
    Batches,
    ByFxfault,
    ByHooks,
    ByMrfi,
    ByPytorchfi,
    Contender,
    Outcome,
)
from fxfault.campaign.estimates.intervals import student_t

IMAGES = 256
RATES = (1e-2, 1e-3, 1e-4, 1e-6)
# Lower bounds of the time of plain hooks over that of fxfault, for the quantised network.
BOUNDS = {1e-2: 8.0, 1e-6: 150.0}
OURS, HOOKS = "fxfault", "plain hooks"
FLOAT_LAYERS = (nn.Conv2d, nn.Linear)
WIDTH = 25


@dataclass(frozen=True)
class Subject:
    """A network with its contenders.

    Attributes:
        name: name in the table.
        layers: names of the layers that are struck, in the order of execution.
        elements: number of elements of each for all data.
        contenders: contenders by name; the first is fxfault.
        skipped: why other contenders do not take part, by name.
    """

    name: str
    layers: Sequence[str]
    elements: Sequence[int]
    contenders: Mapping[str, Contender]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Times:
    """Seconds of trials in turns.

    Attributes:
        seconds: one for each turn.
    """

    seconds: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def mean(self) -> float:
        """Mean seconds of a trial."""
        return float(self.seconds.mean())

    def interval(self) -> tuple[float, float]:
        """A 95 % interval of the mean."""
        return _interval(self.mean, self.seconds)

    def over(self, other: Times) -> tuple[float, tuple[float, float]]:
        """The ratio of this mean to another one, and a 95 % interval.

        The interval is that of the pairs' distances from the ratio (a linearised ratio estimator).
        """
        ratio = self.mean / other.mean
        return ratio, _interval(ratio, (self.seconds - ratio * other.seconds) / other.mean)


def _interval(mean: float, values: Any) -> tuple[float, float]:
    if len(values) < 2:
        return mean, mean
    low, high = student_t(mean, np.var(values, ddof=1), len(values))
    return float(low), float(high)


@torch.no_grad()
def measure_study(turns: int) -> dict[str, Any]:
    """Print and return the times of both networks."""
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    model, images = quant_cnv(IMAGES)
    data = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    subjects = [quantised(model, data), floating(float_twin(images[:BATCH]), data)]
    return {subject.name: measure_subject(subject, turns) for subject in subjects}


def quantised(model: nn.Module, data: Batches) -> Subject:
    """A Brevitas network whose activations are struck."""
    ours = _prepared(model, data)
    layers = [model.get_submodule(name) for name in ours.names]
    elements = [ours.trials.exposure.elements[name] or 0 for name in ours.names]
    return Subject(
        "quantised",
        ours.names,
        [count * sum(len(images) for images, _ in data) for count in elements],
        {OURS: ours, HOOKS: ByHooks(model, data, layers)},
        {},
    )


def _prepared(model: nn.Module, data: Batches, **settings: Any) -> ByFxfault:
    started = time.perf_counter()
    ours = ByFxfault(model, data, **settings)
    print(f"\nfxfault: {time.perf_counter() - started:.2f} s before the first trial, once")
    if ours.why_full is not None:
        print(f"fxfault: {ours.why_full}")
    return ours


def floating(model: nn.Module, data: Batches) -> Subject:
    """A float network whose convolutions and linear layers have their outputs struck."""
    layers = {path: layer for path, layer in model.named_modules() if type(layer) in FLOAT_LAYERS}
    outputs = outputs_of(model, data[0][0], *FLOAT_LAYERS)
    samples = sum(len(images) for images, _ in data)
    ours = _prepared(model, data, word="ieee", targets=[kind.__name__ for kind in FLOAT_LAYERS])
    contenders: dict[str, Contender] = {OURS: ours}
    contenders[HOOKS] = ByHooks(model, data, list(layers.values()))
    skipped: dict[str, str] = {}
    others = {
        "MRFI": ("mrfi", lambda: ByMrfi(model, data, list(layers))),
        "PyTorchFI": ("pytorchfi", lambda: ByPytorchfi(model, data, FLOAT_LAYERS, len(layers))),
    }
    for name, (package, make) in others.items():
        missing = why_no_tool(package)
        if missing is None:
            contenders[name] = make()
        else:
            skipped[name] = missing
    return Subject(
        "float",
        list(layers),
        [output[0].numel() * samples for output in outputs],
        contenders,
        skipped,
    )


def measure_subject(subject: Subject, turns: int, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """Print and return the times of all contenders for a network, by rate and layer."""
    print(f"\n{subject.name}: ms a trial (95 % interval), ratio to fxfault")
    for name, contender in subject.contenders.items():
        print(f"  {name} {contender.version}".rstrip())
    for name, why in subject.skipped.items():
        print(f"  {name}: left out, {why}")
    found: dict[str, Any] = {"skipped": dict(subject.skipped)}
    for rate in rates:
        print(f"\n{subject.name}, {rate:g} of the elements")
        print(f"{'layer':<15}{'faults':>9}" + "".join(f"{n:>{WIDTH}}" for n in subject.contenders))
        times: list[dict[str, Times]] = []
        changed = dict.fromkeys(subject.contenders, 0)
        for site, layer in enumerate(subject.layers):
            outcomes, seconds = _turns(subject, site, rate, turns)
            times.append({name: Times(np.array(taken)) for name, taken in seconds.items()})
            expected = subject.elements[site] * rate
            _check_counts(f"{layer}, {rate:g}", outcomes, expected)
            for name, made in outcomes.items():
                changed[name] += sum(outcome.changed for outcome in made)
            _print_row(layer, expected, times[-1])
        together = {
            name: Times(np.mean([row[name].seconds for row in times], axis=0)) for name in times[0]
        }
        _print_row("mean", float(np.mean(subject.elements)) * rate, together)
        found[f"{rate:g}"] = _summary(subject, rate, times, together, changed, turns)
    return found


def _turns(
    subject: Subject, site: int, rate: float, turns: int
) -> tuple[dict[str, list[Outcome]], dict[str, list[float]]]:
    """Run one trial of each contender in every turn, after one that does not count."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in subject.contenders}
    seconds: dict[str, list[float]] = {name: [] for name in subject.contenders}
    names = list(subject.contenders)
    for contender in subject.contenders.values():
        contender.aim(site, rate)
    for turn in range(-1, turns):
        for name in names if turn % 2 else reversed(names):
            made: list[Outcome] = []
            trial = functools.partial(subject.contenders[name].trial, turn + 1)
            taken = seconds_of(lambda trial=trial, made=made: made.append(trial()))  # type: ignore[misc]
            outcomes[name] += made
            if turn >= 0:
                seconds[name].append(taken)
    for contender in subject.contenders.values():
        contender.release()
    return outcomes, seconds


def _check_counts(where: str, outcomes: Mapping[str, Sequence[Outcome]], expected: float) -> None:
    """Compare the faults of each contender with the rate.

    Raises:
        SystemExit: they differ by more than six standard deviations of a Poisson number, and six.
    """
    for name, made in outcomes.items():
        faults, mean = sum(outcome.faults for outcome in made), expected * len(made)
        if abs(faults - mean) > 6 * mean**0.5 + 6:
            raise SystemExit(
                f"{where}: {name} struck {faults} elements in {len(made)} trials, {mean:.1f} were "
                "expected, so the times mean nothing"
            )


def _print_row(name: str, faults: float, times: Mapping[str, Times]) -> None:
    cells = []
    for contender, time_of in times.items():
        low, high = (1e3 * bound for bound in time_of.interval())
        cell = f"{1e3 * time_of.mean:.2f} ({max(0.0, low):.1f}-{high:.1f})"
        if contender != OURS:
            cell += f" {time_of.over(times[OURS])[0]:.4g}x"
        cells.append(f"{cell:>{WIDTH}}")
    print(f"{name:<15}{faults:>9.4g}" + "".join(cells))


def _summary(
    subject: Subject,
    rate: float,
    times: Sequence[Mapping[str, Times]],
    together: Mapping[str, Times],
    changed: Mapping[str, int],
    turns: int,
) -> dict[str, Any]:
    """Print and return what all layers say together."""
    trials = len(subject.layers) * (turns + 1) * IMAGES
    shares = ", ".join(f"{name} {100 * count / trials:.2g} %" for name, count in changed.items())
    print(f"predictions that faults changed: {shares}")
    result: dict[str, Any] = {}
    for name, mine in together.items():
        if name != OURS:
            ratio, (low, high) = mine.over(together[OURS])
            first, last = (t[name].over(t[OURS])[0] for t in (times[0], times[-1]))
            line = f"{name} / fxfault: {ratio:.4g} ({low:.4g} - {high:.4g}), all layers alike; "
            line += f"{first:.4g} for the first layer, {last:.4g} for the last"
            if name == HOOKS and subject.name == "quantised" and rate in BOUNDS:
                line += f"   at least {BOUNDS[rate]:g}: {verdict(ratio >= BOUNDS[rate])}"
            print(line)
            result[name] = {"ratio": ratio, "interval": [low, high]}
    return {
        "over_fxfault": result,
        "changed": dict(changed),
        "seconds": {
            layer: {name: mine.seconds.tolist() for name, mine in row.items()}
            for layer, row in zip(subject.layers, times, strict=True)
        },
    }


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-peers-study/1", 5, measure_study)
