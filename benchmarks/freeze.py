"""The gain of freezing: time of a frozen forward over that of clean, unfrozen Brevitas.

    python -m benchmarks.freeze [--turns N] [--threads N] [--json FILE]

Two networks run in evaluation, without gradients: quant_cnv with 2-bit weights and activations on
batches of 64 images of 32 x 32, and the small quant_digits with 4 bits on batches of 64 images of
8 x 8, where the overhead of Python shows. Faults strike all sites at 1 %. Before the timing, the
frozen outputs are compared with the unfrozen ones, bit for bit. `fxfault.compile` compares the
outputs of compiled code; it needs a C++ compiler, and without one its rows are skipped. Without
the package onnx, the row for Brevitas's cached inference mode is skipped.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import Compared, Run, compare_in_turns, ratio_row, run_benchmark
from benchmarks.networks import BATCH, quant_cnv, quant_digits, transformed
from fxfault.passes import frozen_parts

PERCENT = 1.0
FAULTY = f"frozen, faulty {PERCENT:g} %"
COMPILED = f"compiled, faulty {PERCENT:g} %"
CACHED_BOUND = 1.0


# Upper bounds of the times over the clean, unfrozen time.
CNV_BOUNDS = {FAULTY: 0.75, COMPILED: 0.40}
DIGITS_BOUNDS = {FAULTY: 0.40, COMPILED: 0.25}


def measure(turns: int) -> dict[str, Any]:
    """Print and return the ratios of both networks; the small one gets more turns."""
    cnv = measure_network("quant_cnv, 2 bits", *quant_cnv(), turns, CNV_BOUNDS)
    digits = measure_network("quant_digits, 4 bits", *quant_digits(), 10 * turns, DIGITS_BOUNDS)
    return {"networks": {"quant_cnv": cnv, "quant_digits": digits}}


def measure_network(
    name: str, model: nn.Module, images: Tensor, turns: int, bounds: dict[str, float]
) -> dict[str, Any]:
    """Print and return the ratios to the clean time of the unfrozen network.

    The first row compares the clean network with itself and shows the noise.
    """
    cases = _cases(model)
    with torch.no_grad():
        _require_same_bits(cases, model, images)
        cached = against_cached_mode(model, cases["frozen, clean"], images, turns)
        runs: dict[str, Run] = {case: functools.partial(net, images) for case, net in cases.items()}
        made = fxfault.compile(copy.deepcopy(cases[FAULTY]), images)
        if made.compiled:
            runs["compiled, sites disabled"] = _switched(made.model, images, enabled=False)
            runs[COMPILED] = _switched(made.model, images, enabled=True)
        compared = compare_in_turns(functools.partial(model, images), runs, turns)
    counts = _counts(cases["frozen, clean"])
    print(f"\n{name}, {turns} turns; frozen: {counts}")
    print(f"{'over clean, unfrozen time':<26}{'median':>8}{'quartiles':>16}   bound")
    for row, case in compared.items():
        print(ratio_row(row, case, bounds.get(row)))
    print(f"{COMPILED}: {made}")
    if cached is None:
        print("over Brevitas's cached inference: skipped, as the package onnx is not installed")
    else:
        print(ratio_row("frozen, clean / cached", cached, CACHED_BOUND))
        compared["frozen, clean over Brevitas's cached inference"] = cached
    clean = compared["clean again"].reference
    print(f"clean, unfrozen forward {1e3 * clean.median:.2f} ms ({BATCH} images)")
    return {row: asdict(case) for row, case in compared.items()}


def _cases(model: nn.Module) -> dict[str, nn.Module]:
    faulty, disabled = (transformed(model, PERCENT) for _ in range(2))
    disabled.faults.enabled = False
    return {
        "clean again": model,
        f"faulty {PERCENT:g} %": faulty,
        "frozen, clean": fxfault.freeze(model),
        "frozen, sites disabled": fxfault.freeze(disabled),
        FAULTY: fxfault.freeze(faulty),
    }


def _switched(model: Any, images: Tensor, *, enabled: bool) -> Run:
    """Return a forward of the same compiled code with the sites switched on or off."""

    def run() -> None:
        model.faults.enabled = enabled
        model(images)

    return run


def against_cached_mode(
    model: nn.Module, frozen: nn.Module, images: Tensor, turns: int
) -> Compared | None:
    """Compare a frozen forward with Brevitas's own inference mode; None without onnx.

    Call this before compiling: the mode makes torch forget all compiled code.
    """
    if importlib.util.find_spec("onnx") is None:
        return None
    from brevitas.export.inference import quant_inference_mode

    theirs = copy.deepcopy(model)
    with quant_inference_mode(theirs, cache_quant_weight=True):
        theirs(images)  # Fills the cache.
        runs = {"frozen": functools.partial(frozen, images)}
        return compare_in_turns(functools.partial(theirs, images), runs, turns)["frozen"]


def _require_same_bits(cases: dict[str, nn.Module], model: nn.Module, images: Tensor) -> None:
    pairs = [(model, cases["frozen, clean"]), (cases[f"faulty {PERCENT:g} %"], cases[FAULTY])]
    for unfrozen, frozen in pairs:
        if not torch.equal(unfrozen(images), frozen(images)):
            raise SystemExit("frozen and unfrozen outputs differ: the times would mean nothing")


def _counts(frozen: nn.Module) -> str:
    what = [part.what for part in frozen_parts(frozen)]
    return f"{what.count('weights')} weights, {what.count('activation')} activations of {len(what)}"


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-freeze/1", 25, measure)
