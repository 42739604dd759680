"""What incremental re-execution saves: time of full runs over that of incremental ones.

    python -m benchmarks.incremental [--turns N] [--threads N] [--json FILE]

The network is quant_cnv with 2-bit weights and activations, frozen, on 256 random images of
32 x 32 in batches of 64. Both studies strike each of its nine sites alone, one evaluation each:

- per-layer sensitivity: `random` faults in 1 % of a site's elements, which hit every image;
- single bit upsets: the highest bit flips in one of a million elements, which hits few.

A full run is what `FullRunner` does, the whole network on every image. The fault-free run that an
incremental runner makes once is not in its time, but is printed. Before anything is timed
the predictions of both are compared, at every site.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import (
    Compared,
    compare_in_turns,
    load_average,
    machine,
    parse_options,
    verdict,
)
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.full.runner import Runner
from fxfault.models import build_model
from fxfault.sites.fault_sites import FaultSites, faults_of

IMAGES, BATCH = 256, 64


@dataclass(frozen=True)
class Study:
    """Each site struck alone.

    Attributes:
        name: for the table.
        fault_model: what a hit does.
        percent: probability of a hit.
        bound: full over incremental time, at least.
    """

    name: str
    fault_model: str
    percent: float
    bound: float

    def run(self, runner: Runner, faults: FaultSites) -> list[Tensor]:
        """Evaluate with each site struck alone; returns the classes predicted at each."""
        faults.set_fault_model(self.fault_model)
        faults.set_probability(self.percent)
        predicted = []
        for chosen in faults:
            for site in faults:
                site.selected = site is chosen
            predicted.append(runner.run().top)
        return predicted


STUDIES = (
    Study("per-layer sensitivity, 1 %", "random", 1.0, bound=2),
    Study("single bit upsets, 1e-6", "msb_flip", 1e-4, bound=15),
)


def main() -> None:
    """Measure, print, and save where asked."""
    options = parse_options(__doc__, turns=7)
    torch.set_num_threads(options.threads)
    before = load_average()
    result: dict[str, Any] = {"schema": "fxfault-incremental/1", "machine": machine()}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"load average {before} before, {options.turns} turns")
    result.update(measure(options.turns))
    result["load_average"] = {"before": before, "after": load_average()}
    print(f"\nload average {result['load_average']['after']} after")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"saved {options.json}")


def measure(turns: int) -> dict[str, Any]:
    """Print and return the ratios of both studies."""
    model, data = network()
    faults = faults_of(model)
    full, incremental = FullRunner(model, data), IncrementalRunner(model, data)
    started = time.perf_counter()
    incremental.golden()
    golden = time.perf_counter() - started
    if incremental.why_full is not None:
        raise SystemExit(f"nothing to compare, {incremental.why_full}")
    print(f"\nquant_cnv, 2 bits, {IMAGES} images; fault-free run {golden:.2f} s, once")
    print(f"{'full / incremental':<30}{'median':>8}{'quartiles':>16}   bound")
    studies: dict[str, Any] = {}
    for study in STUDIES:
        pairs = zip(study.run(full, faults), study.run(incremental, faults), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            raise SystemExit(f"{study.name}: predictions differ, so the times mean nothing")
        case = _compare(study, full, incremental, faults, turns)
        print(_row(study, case))
        studies[study.name] = {**asdict(case), "bound": study.bound}
    print(f"full study of nine sites {case.seconds.median:.2f} s")
    return {"golden_seconds": golden, "images": IMAGES, "studies": studies}


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The frozen network with its sites, and batches of random images with random labels."""
    torch.manual_seed(0)
    model = build_model(
        "quant_cnv",
        num_classes=10,
        in_channels=3,
        image_size=(32, 32),
        weight_bit_width=2,
        act_bit_width=2,
    )
    images, labels = torch.randn(IMAGES, 3, 32, 32), torch.randint(10, (IMAGES,))
    with torch.no_grad():
        model(images[:BATCH])
    config = {"enabled": True, "apply_during": "eval", "seed": 0}
    faulty = fxfault.freeze(fxfault.transform(model.eval(), config))
    return faulty, list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def _compare(
    study: Study, full: Runner, incremental: Runner, faults: FaultSites, turns: int
) -> Compared:
    cases = {"full": lambda: study.run(full, faults)}
    return compare_in_turns(lambda: study.run(incremental, faults), cases, turns)["full"]


def _row(study: Study, case: Compared) -> str:
    ratio = case.ratio
    quartiles = f"{ratio.low:.2f} - {ratio.high:.2f}"
    met = verdict(ratio.median >= study.bound)
    return f"{study.name:<30}{ratio.median:>8.2f}{quartiles:>16}   {study.bound:g}: {met}"


if __name__ == "__main__":
    main()
