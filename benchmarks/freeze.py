"""What freezing saves: time of a frozen forward against the clean one of unfrozen Brevitas.

    python -m benchmarks.freeze [--turns N] [--threads N] [--json FILE]

Two networks in evaluation, without gradients: quant_cnv with 2-bit weights and activations on
batches of 64 images of 32 x 32, and the small quant_digits with 4 bits on batches of 64 images of
8 x 8, where the overhead of Python shows. Faults strike all sites at 1 %. Before anything is timed
the frozen outputs are compared with the unfrozen ones, bit for bit; what torch.compile makes of
them is compared by `fxfault.compile`, which needs a C++ compiler. Without one these rows are
skipped; without the package onnx, the one that compares with Brevitas's cached inference mode is.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import (
    Compared,
    Run,
    compare_in_turns,
    load_average,
    machine,
    parse_options,
    verdict,
)
from fxfault.models import build_model
from fxfault.passes import Compilation, frozen_parts

BATCH = 64
PERCENT = 1.0
FAULTY = f"frozen, faulty {PERCENT:g} %"
COMPILED = f"compiled, faulty {PERCENT:g} %"
CACHED_BOUND = 1.0


@dataclass(frozen=True)
class Network:
    """A network that is measured.

    Attributes:
        name: of the built-in network.
        bits: of weights and activations.
        shape: of one image.
        turns: how many turns it gets for each of `--turns`: the smaller, the more.
        bound: frozen and faulty over clean and unfrozen time, at most.
        compiled_bound: the same, compiled.
    """

    name: str
    bits: int
    shape: tuple[int, int, int]
    turns: int
    bound: float
    compiled_bound: float

    @property
    def bounds(self) -> dict[str, float]:
        """The bound of each case that has one."""
        return {FAULTY: self.bound, COMPILED: self.compiled_bound}

    def build(self) -> tuple[nn.Module, Tensor]:
        """The clean network, in eval mode, with scales and normalisation from one batch."""
        torch.manual_seed(0)
        channels, height, width = self.shape
        model = build_model(
            self.name,
            num_classes=10,
            in_channels=channels,
            image_size=(height, width),
            weight_bit_width=self.bits,
            act_bit_width=self.bits,
        )
        images = torch.randn(BATCH, *self.shape)
        with torch.no_grad():
            model(images)
        return model.eval(), images


NETWORKS = (
    Network("quant_cnv", bits=2, shape=(3, 32, 32), turns=1, bound=0.75, compiled_bound=0.40),
    Network("quant_digits", bits=4, shape=(1, 8, 8), turns=10, bound=0.40, compiled_bound=0.25),
)


def main() -> None:
    """Measure, print, and save where asked."""
    options = parse_options(__doc__, turns=25)
    torch.set_num_threads(options.threads)
    before = load_average()
    result: dict[str, Any] = {"schema": "fxfault-freeze/1", "machine": machine()}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"load average {before} before, {options.turns} turns")
    result["networks"] = {
        network.name: measure(network, options.turns * network.turns) for network in NETWORKS
    }
    result["load_average"] = {"before": before, "after": load_average()}
    print(f"\nload average {result['load_average']['after']} after")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"saved {options.json}")


def measure(network: Network, turns: int) -> dict[str, Any]:
    """Print and return the ratios to the clean time of the unfrozen network.

    The first row compares the clean network with itself: what it shows is noise.
    """
    model, images = network.build()
    cases = _cases(model)
    with torch.no_grad():
        _require_same_bits(cases, model, images)
        cached = against_cached_mode(model, cases["frozen, clean"], images, turns)
        runs = {name: _forward_of(case, images) for name, case in cases.items()}
        made: Compilation = fxfault.compile(copy.deepcopy(cases[FAULTY]), images)
        if made.compiled:
            runs["compiled, sites disabled"] = _switched(made.model, images, enabled=False)
            runs[COMPILED] = _switched(made.model, images, enabled=True)
        compared = compare_in_turns(_forward_of(model, images), runs, turns)
    counts = _counts(cases["frozen, clean"])
    print(f"\n{network.name}, {network.bits} bits, {turns} turns; frozen: {counts}")
    print(f"{'over clean, unfrozen time':<26}{'median':>8}{'quartiles':>16}   bound")
    for name, case in compared.items():
        print(_row(name, case, network.bounds.get(name)))
    print(f"{COMPILED}: {made}")
    if cached is None:
        print("over Brevitas's cached inference: skipped, as the package onnx is not installed")
    else:
        print(_row("frozen, clean / cached", cached, CACHED_BOUND))
        compared["frozen, clean over Brevitas's cached inference"] = cached
    clean = compared["clean again"].reference
    print(f"clean, unfrozen forward {1e3 * clean.median:.2f} ms ({BATCH} images)")
    return {name: asdict(case) for name, case in compared.items()}


def _cases(model: nn.Module) -> dict[str, nn.Module]:
    config = {"enabled": True, "probability": PERCENT, "apply_during": "eval", "seed": 0}
    faulty, disabled = (fxfault.transform(model, config) for _ in range(2))
    disabled.faults.enabled = False  # type: ignore[union-attr]
    return {
        "clean again": model,
        f"faulty {PERCENT:g} %": faulty,
        "frozen, clean": fxfault.freeze(model),
        "frozen, sites disabled": fxfault.freeze(disabled),
        FAULTY: fxfault.freeze(faulty),
    }


def _switched(model: Any, images: Tensor, *, enabled: bool) -> Run:
    """A forward with the sites switched on or off, by the same compiled code."""

    def run() -> None:
        model.faults.enabled = enabled
        model(images)

    return run


def against_cached_mode(
    model: nn.Module, frozen: nn.Module, images: Tensor, turns: int
) -> Compared | None:
    """Compare a frozen forward with Brevitas's own mode for inference; None without onnx.

    Before compiling: the mode makes torch forget all compiled code.
    """
    if importlib.util.find_spec("onnx") is None:
        return None
    from brevitas.export.inference import quant_inference_mode

    theirs = copy.deepcopy(model)
    with quant_inference_mode(theirs, cache_quant_weight=True):
        theirs(images)  # Fills the cache.
        runs = {"frozen": _forward_of(frozen, images)}
        return compare_in_turns(_forward_of(theirs, images), runs, turns)["frozen"]


def _require_same_bits(cases: dict[str, nn.Module], model: nn.Module, images: Tensor) -> None:
    pairs = [(model, cases["frozen, clean"]), (cases[f"faulty {PERCENT:g} %"], cases[FAULTY])]
    for unfrozen, frozen in pairs:
        if not torch.equal(unfrozen(images), frozen(images)):
            raise SystemExit("frozen and unfrozen outputs differ: the times would mean nothing")


def _counts(frozen: nn.Module) -> str:
    what = [part.what for part in frozen_parts(frozen)]
    return f"{what.count('weights')} weights, {what.count('activation')} activations of {len(what)}"


def _forward_of(module: nn.Module, images: Tensor) -> Run:
    return lambda: module(images)


def _row(name: str, case: Compared, bound: float | None) -> str:
    ratio = case.ratio
    row = f"{name:<26}{ratio.median:>8.3f}{f'{ratio.low:.3f} - {ratio.high:.3f}':>16}"
    if bound is None:
        return row
    return f"{row}   {bound:g}: {verdict(ratio.median <= bound)}"


if __name__ == "__main__":
    main()
