"""What faults cost while training: a training step with faults against a clean one.

    python -m benchmarks.training [--turns N] [--threads N] [--json FILE]

The network is that of `benchmarks.overhead` (quant_cnv, 2-bit weights and activations) in
training mode, on batches of 64 images of 32 x 32. A step is forward, loss, backward and
optimiser; 5 % of the elements of every activation are hit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import (
    Run,
    compare_in_turns,
    peak_bytes,
    ratio_row,
    run_benchmark,
    verdict,
)
from benchmarks.networks import quant_cnv, transformed
from benchmarks.overhead import largest_activation

PERCENT = 5.0
BOUND = 1.10
ACTIVATIONS = 1.0
CASES: dict[str, dict[str, Any]] = {
    "ste": {},
    "zero_faulty": {"gradient_mode": "zero_faulty"},
    "ste, counted": {"track_statistics": True},
    "ste, half of the steps": {"step_interval": 0.5},
}
BOUNDED = ("ste", "zero_faulty")


def measure(turns: int) -> dict[str, Any]:
    """Print and return time and memory."""
    print()
    model, images = quant_cnv()
    activation = largest_activation(model, images)
    model.train()
    steps = {
        name: step_of(transformed(model, PERCENT, apply_during="train", **settings), images)
        for name, settings in CASES.items()
    }
    clean = step_of(model, images)
    return {
        "time": _measure_time(clean, steps, turns),
        "memory": _measure_memory(clean, steps, activation),
    }


def step_of(model: nn.Module, images: Tensor) -> Run:
    """Return one training step of a model on a batch of images."""
    labels = torch.arange(len(images)) % 10
    # This tiny rate leaves the weights unchanged, so every step does the same work.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def _measure_time(clean: Run, steps: dict[str, Run], turns: int) -> dict[str, Any]:
    compared = compare_in_turns(clean, {"clean again": clean, **steps}, turns)
    print(
        f"{f'step, {PERCENT:g} % / clean':<26}{'median':>8}{'quartiles':>16}{'added':>11}   bound"
    )
    rows = {}
    for name, case in compared.items():
        ratio = case.ratio
        added = f"{f'{1e3 * case.added.median:.1f} ms':>11}"
        print(ratio_row(name, case, BOUND if name in BOUNDED else None, added))
        rows[name] = {"median": ratio.median, "quartiles": [ratio.low, ratio.high]}
    print(f"clean step {1e3 * compared['clean again'].reference.median:.0f} ms (64 images)")
    return rows


def _measure_memory(clean: Run, steps: dict[str, Run], activation: int) -> dict[str, Any]:
    reference = peak_bytes(clean)
    print(f"\npeak memory of a clean step {reference / 2**20:.1f} MiB")
    print(f"{'more, in largest activations':<32}bound   ({activation / 2**20:.1f} MiB)")
    rows = {}
    for name in BOUNDED:
        share = (peak_bytes(steps[name]) - reference) / activation
        rows[name] = share
        print(f"{name:<26}{share:>6.2f}{ACTIVATIONS:>5g}: {verdict(share <= ACTIVATIONS)}")
    return {"clean_bytes": reference, "largest_activation": activation, "more": rows}


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-training-overhead/1", 9, measure)
