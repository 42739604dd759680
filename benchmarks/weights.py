"""The cost of faults in weights, and of studies of weights.

    python -m benchmarks.weights [--turns N] [--threads N] [--json FILE]

The network is quant_cnv with 2-bit weights and activations, frozen, on random images of 32 x 32 in
batches of 64.

- An evaluation of ten batches with 1 % of the words of every weight hit, beside one without faults.
  Each evaluation is a new trial: its weights are struck once, and not once a batch.
- A study that flips each bit of each of the nine weights alone, one evaluation of 256 images each:
  the time of full runs over that of incremental ones, which start before the struck layer.
- The same flips of weights of a float network by fxfault (`faults: {replay: FILE}`) and by
  PyTorchFI (`pip install pytorchfi`): the outputs are compared bit for bit, then the times.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import Compared, compare_in_turns, ratio_row, run_benchmark, verdict
from benchmarks.networks import BATCH, quant_cnv
from benchmarks.peers_tools import Flip, declare_weights, flips_of_weights, float_twin, why_no_tool
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.full.runner import Runner
from fxfault.sites.fault_sites import FaultSites, faults_of

BATCHES, IMAGES = 10, 256
MOST, LEAST = 1.02, 2.0
FLIPS = 100

Batches = Sequence[tuple[Tensor, Tensor]]


def measure(turns: int) -> dict[str, Any]:
    """Print and return all figures."""
    found = {"evaluation": _evaluation(turns), "study": _study(turns)}
    return {**found, "replay": _replay(turns)}


def _struck(samples: int, **faults: Any) -> tuple[Any, Batches]:
    model, images = quant_cnv(samples)
    settings = {"enabled": True, "apply_during": "eval", "memory": "weights", "seed": 1, **faults}
    faulty = fxfault.freeze(fxfault.transform(model, settings))
    labels = torch.randint(10, (samples,))
    return faulty, list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def _evaluation(turns: int) -> dict[str, Any]:
    faulty, data = _struck(BATCHES * BATCH, probability=1.0)
    clean, _ = _struck(BATCHES * BATCH, probability=1.0)
    clean.faults.enabled = False
    trials = itertools.count()

    def run(model: Any) -> None:
        model.faults.reset(trial=next(trials))
        with torch.no_grad():
            for images, _ in data:
                model(images)

    cases = {"1 % of the weights": functools.partial(run, faulty)}
    case = compare_in_turns(functools.partial(run, clean), cases, turns)["1 % of the weights"]
    print(f"\nquant_cnv, 2 bits, {BATCHES} batches of {BATCH}")
    print(f"{'faulty / clean, frozen':<26}{'median':>8}{'quartiles':>16}   bound")
    print(ratio_row("1 % of the weights", case, MOST))
    return {**asdict(case), "bound": MOST}


def _study(turns: int) -> dict[str, Any]:
    model, data = _struck(IMAGES, injection_type="bit_flip", bit=0, probability=1.0)
    faults = faults_of(model)
    full, incremental = FullRunner(model, data), IncrementalRunner(model, data)
    incremental.golden()
    if incremental.why_full is not None:
        raise SystemExit(f"nothing to compare, {incremental.why_full}")
    pairs = zip(_each(full, faults), _each(incremental, faults), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        raise SystemExit("predictions differ, so the times mean nothing")
    case = compare_in_turns(
        functools.partial(_each, incremental, faults),
        {"full": functools.partial(_each, full, faults)},
        turns,
    )["full"]
    ratio = case.ratio
    print(f"\n{'full / incremental':<26}{'median':>8}{'quartiles':>16}   bound")
    print(
        f"{'each bit of each weight':<26}{ratio.median:>8.2f}{ratio.quartiles(2):>16}   "
        f"{LEAST:g}: {verdict(ratio.median >= LEAST)}"
    )
    return {**asdict(case), "bound": LEAST}


def _each(runner: Runner, faults: FaultSites) -> list[Tensor]:
    """Evaluate with each bit of each weight struck alone; return the predicted classes."""
    predicted = []
    for chosen in faults:
        for site in faults:
            site.selected = site is chosen
        for bit in range(chosen.bit_width or 0):
            chosen.set_fault_model(fxfault.faults.get_fault_model("bit_flip", bit=bit))
            predicted.append(runner.run().top)
    return predicted


def _replay(turns: int) -> dict[str, Any] | None:
    why = why_no_tool("pytorchfi")
    if why is not None:
        print(f"\nPyTorchFI: {why}")
        return None
    _, images = quant_cnv()
    twin = float_twin(images)
    flips = flips_of_weights(twin, FLIPS)
    ours, declared = _replayed(twin, flips), declare_weights(twin, images, flips)
    with torch.no_grad():
        found, expected = ours(images), declared(images)
    if not torch.equal(found.view(torch.int32), expected.view(torch.int32)):
        raise SystemExit("fxfault and PyTorchFI differ, so the times mean nothing")
    runs: dict[str, Compared] = {}
    with torch.no_grad():
        runs["a forward"] = compare_in_turns(
            lambda: ours(images), {"tool": lambda: declared(images)}, turns
        )["tool"]
        runs["another list"] = compare_in_turns(
            lambda: _replayed(twin, flips)(images),
            {"tool": lambda: declare_weights(twin, images, flips)(images)},
            turns,
        )["tool"]
    print(f"\nfloat network, {FLIPS} flips of weights: fxfault and PyTorchFI agree bit for bit")
    print(f"{'PyTorchFI / fxfault':<26}{'median':>8}{'quartiles':>16}")
    for name, case in runs.items():
        print(ratio_row(name, case))
    return {name: asdict(case) for name, case in runs.items()}


def _replayed(twin: nn.Module, flips: Sequence[Flip]) -> Any:
    """The float network with the flips of a list."""
    rows = [f'0,{f.layer}.weight,"{f.index}",{f.bit}' for f in flips]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flips.csv"
        path.write_text("\n".join(["Injection,Layer,TensorIndex,Bit", *rows]), encoding="utf-8")
        entry = {"replay": str(path), "memory": "parameters"}
        settings = {"enabled": True, "apply_during": "eval", "seed": 1, "faults": [entry]}
        return fxfault.transform(twin, settings)


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-weights/1", 7, measure)
