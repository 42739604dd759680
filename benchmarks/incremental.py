"""The gain of incremental re-execution: time of full runs over that of incremental ones.

    python -m benchmarks.incremental [--turns N] [--threads N] [--json FILE]

The network is quant_cnv with 2-bit weights and activations, frozen, on 256 random images of
32 x 32 in batches of 64. Both studies strike each of its nine sites alone, one trial each:

- per-layer sensitivity: `random` faults in 1 % of a site's elements, which hit every image;
- single bit upsets: the highest bit flips in one of a million elements, which hits few images.

A full run is that of `FullRunner`: the whole network on every image. An incremental runner also
makes one fault-free run, which is printed but not included in its time. Before the timing, the
predictions of both are compared at every site.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import compare_in_turns, run_benchmark, verdict
from benchmarks.networks import BATCH, quant_cnv, transformed
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.trials import Trials
from fxfault.sites.fault_sites import faults_of

IMAGES = 256


@dataclass(frozen=True)
class Study:
    """Each site struck alone.

    Attributes:
        name: name in the table.
        fault_model: name of the fault model.
        percent: probability of a hit, in percent.
        bound: lower bound of full over incremental time.
    """

    name: str
    fault_model: str
    percent: float
    bound: float

    def run(self, trials: Trials) -> list[Tensor]:
        """Run a trial with each site struck alone; return the predicted classes for each site."""
        config = FaultInjectionConfig(injection_type=self.fault_model, probability=self.percent)
        predicted = []
        for name in trials.faults.names:
            trials.set(config, [name])
            trials.run("", 0)
            predicted.append(trials.last.top)  # type: ignore[union-attr]
        return predicted


STUDIES = (
    Study("per-layer sensitivity, 1 %", "random", 1.0, bound=2),
    Study("single bit upsets, 1e-6", "msb_flip", 1e-4, bound=15),
)


def measure(turns: int) -> dict[str, Any]:
    """Print and return the ratios of both studies."""
    model, data = network()
    title = f"quant_cnv, 2 bits, {IMAGES} images"
    return compare_studies(title, model, data, STUDIES, turns, whole=False)


def compare_studies(
    title: str,
    model: nn.Module,
    data: list[tuple[Tensor, Tensor]],
    compared: Sequence[Study],
    turns: int,
    whole: bool = True,
) -> dict[str, Any]:
    """Compare full and incremental runs of some studies in turns; print and return the ratios.

    Args:
        title: the network and the data, for the table.
        model: the transformed network.
        data: batches of inputs and labels.
        compared: the studies.
        turns: number of runs of each pair.
        whole: whether incremental runs may run whole batches.
    """
    faults = faults_of(model)
    runner = IncrementalRunner(model, data)
    started = time.perf_counter()
    runner.golden()
    golden = time.perf_counter() - started
    why = runner.why_full
    if why is not None and not (whole and why.startswith("batches are run whole")):
        raise SystemExit(f"nothing to compare, {why}")
    full, incremental = Trials(FullRunner(model, data)), Trials(runner)
    print(f"\n{title}; fault-free run {golden:.2f} s, once")
    print(f"{'full / incremental':<30}{'median':>8}{'quartiles':>16}   bound")
    studies: dict[str, Any] = {}
    for study in compared:
        pairs = zip(study.run(full), study.run(incremental), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            raise SystemExit(f"{study.name}: predictions differ, so the times mean nothing")
        case = compare_in_turns(
            functools.partial(study.run, incremental),
            {"full": functools.partial(study.run, full)},
            turns,
        )["full"]
        ratio = case.ratio
        print(
            f"{study.name:<30}{ratio.median:>8.2f}{ratio.quartiles(2):>16}   "
            f"{study.bound:g}: {verdict(ratio.median >= study.bound)}"
        )
        studies[study.name] = {**asdict(case), "bound": study.bound}
    print(f"full study of {len(faults)} sites {case.seconds.median:.2f} s")
    return {"golden_seconds": golden, "samples": sum(len(x) for x, _ in data), "studies": studies}


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Build the frozen network with its sites, and batches of random images and labels."""
    model, images = quant_cnv(IMAGES)
    labels = torch.randint(10, (IMAGES,))
    faulty = fxfault.freeze(transformed(model, 1.0))
    return faulty, list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-incremental/1", 7, measure)
