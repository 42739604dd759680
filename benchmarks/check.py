"""What it costs to compare a transformed network with the given one before the first fault.

    python -m benchmarks.check [--turns N] [--threads N] [--json FILE]

- `fxfault-eval --config digits`: the comparison of its first batch, beside one pass of the given
  network over the test data. It must be below that.
- A per-layer study: quant_cnv with 2-bit weights and activations on 256 random images of 32 x 32
  in batches of 64, each of its nine sites struck alone at 1 % in ten trials. The comparison of its
  first batch must be less than 3 % of the study.

In both, the comparison is what the commands run: the given network and the transformed one, in
eval mode, with strikes counted. Check and reference are timed in turns, in one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import fxfault
from benchmarks.incremental import BATCH, IMAGES, network
from benchmarks.measuring import (
    Compared,
    compare_in_turns,
    load_average,
    machine,
    parse_options,
    verdict,
)
from fxfault.evaluation import IncrementalRunner
from fxfault.evaluation.checks import check_model
from fxfault.evaluation.full.predictions import predict
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import Batches, load_model, open_test_data
from fxfault.sites.fault_sites import faults_of

CPU = torch.device("cpu")
TRIALS = 10


def main() -> None:
    """Measure, print, and save where asked."""
    options = parse_options(__doc__, turns=5)
    torch.set_num_threads(options.threads)
    before = load_average()
    result: dict[str, Any] = {"schema": "fxfault-check/1", "machine": machine()}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"load average {before} before, {options.turns} turns")
    print(f"\n{'check / reference':<44}{'seconds':>9}{'median':>8}{'quartiles':>16}   bound")
    result["cases"] = {
        "digits, one batch / one pass of the data": asdict(digits(options.turns)),
        "CNV, one batch / per-layer study": asdict(study(options.turns)),
    }
    result["load_average"] = {"before": before, "after": load_average()}
    print(f"\nload average {result['load_average']['after']} after")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"saved {options.json}")


def digits(turns: int) -> Compared:
    """The check of an evaluation, beside a pass over its data."""
    experiment = load_experiment("digits")
    data = open_test_data(experiment)
    batches = Batches(data.dataset, experiment.training.batch_size)
    model, _ = load_model(experiment, experiment.checkpoint.path, data.facts)
    check = _check_of(model, batches)
    case = compare_in_turns(lambda: predict(model, batches), {"check": check}, turns)["check"]
    _print(f"digits, one of {len(batches)} batches / one pass", case, 1.0)
    return case


def study(turns: int) -> Compared:
    """The check of a study, beside the study."""
    frozen, data = network()
    faulty = fxfault.thaw(frozen)
    check = _check_of(faults_of(faulty).original, data)
    faults = faults_of(frozen)
    faults.set_fault_model("random")
    faults.set_probability(1.0)

    def run() -> None:
        runner = IncrementalRunner(frozen, data)
        runner.golden()
        for chosen in faults:
            for site in faults:
                site.selected = site is chosen
            for trial in range(TRIALS):
                faults.reset(trial=trial)
                runner.run()

    case = compare_in_turns(run, {"check": check}, turns)["check"]
    _print(f"CNV, one of {IMAGES // BATCH} batches / study of {9 * TRIALS} trials", case, 0.03)
    return case


def _check_of(model: nn.Module, batches: Iterable[Any]) -> Callable[[], None]:
    """What a command runs once, after it has transformed the model."""
    faulty = fxfault.transform(model, {"enabled": True, "apply_during": "eval", "seed": 0})

    def check() -> None:
        check_model(faulty, model, batches, CPU, most=1)

    return check


def _print(name: str, case: Compared, bound: float) -> None:
    ratio = case.ratio
    quartiles = f"{ratio.low:.3f} - {ratio.high:.3f}"
    met = verdict(ratio.median < bound)
    print(
        f"{name:<44}{case.seconds.median:>9.3f}{ratio.median:>8.3f}{quartiles:>16}   "
        f"{bound:g}: {met}"
    )


if __name__ == "__main__":
    main()
