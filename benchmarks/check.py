"""The cost of comparing a transformed network with the original one before the first fault.

    python -m benchmarks.check [--turns N] [--threads N] [--json FILE]

- `fxfault eval digits`: the comparison of its first batch, against one pass of the
  original network over the test data. It must take less time than the pass.
- A per-layer study: quant_cnv with 2-bit weights and activations on 256 random images of 32 x 32
  in batches of 64. Each of its nine sites is struck alone at 1 % in ten trials. The comparison of
  the first batch must take less than 3 % of the study.

Both comparisons are those that the commands run: the original network and the transformed one, in
eval mode, with strikes counted. Check and reference are timed in turns, in one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import fxfault
from benchmarks.incremental import IMAGES, network
from benchmarks.measuring import Compared, Run, compare_in_turns, run_benchmark, verdict
from benchmarks.networks import BATCH
from fxfault.evaluation import IncrementalRunner
from fxfault.evaluation.checks import check_model
from fxfault.evaluation.full.predictions import predict
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import Batches, load_model, open_test_data
from fxfault.sites.fault_sites import faults_of

CPU = torch.device("cpu")
TRIALS = 10


def measure(turns: int) -> dict[str, Any]:
    """Print and return the times of both comparisons."""
    print(f"\n{'check / reference':<44}{'seconds':>9}{'median':>8}{'quartiles':>16}   bound")
    cases = {
        "digits, one batch / one pass of the data": asdict(digits(turns)),
        "CNV, one batch / per-layer study": asdict(study(turns)),
    }
    return {"cases": cases}


def digits(turns: int) -> Compared:
    """Compare the check of an evaluation with a pass over its data."""
    experiment = load_experiment("digits")
    data = open_test_data(experiment)
    batches = Batches(data.dataset, experiment.training.batch_size)
    model, _ = load_model(experiment, experiment.checkpoint.path, data.facts)
    check = _check_of(model, batches)
    case = compare_in_turns(lambda: predict(model, batches), {"check": check}, turns)["check"]
    _print(f"digits, one of {len(batches)} batches / one pass", case, 1.0)
    return case


def study(turns: int) -> Compared:
    """Compare the check of a study with the study."""
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


def _check_of(model: nn.Module, batches: Iterable[Any]) -> Run:
    """Return the check that a command runs once, after it transformed the model."""
    faulty = fxfault.transform(model, {"enabled": True, "apply_during": "eval", "seed": 0})

    def check() -> None:
        check_model(faulty, model, batches, CPU, most=1)

    return check


def _print(name: str, case: Compared, bound: float) -> None:
    ratio = case.ratio
    print(
        f"{name:<44}{case.seconds.median:>9.3f}{ratio.median:>8.3f}{ratio.quartiles():>16}   "
        f"{bound:g}: {verdict(ratio.median < bound)}"
    )


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-check/1", 5, measure)
