"""What faults cost in fxfault and in other tools, and how fxfault's cost grows.

    python -m benchmarks.peers [--turns N] [--threads N] [--json FILE]

A network with faults in 1 % of its activations against itself without, in evaluation, without
gradients, on batches of 64 images of 32 x 32; the difference, over the elements that faults can
strike, is what a tool adds. fxfault and a wrapper written to the specification
(`benchmarks.dense_wrapper`) strike quant_cnv with 2-bit weights and activations, fxfault the frozen
one, as `fxfault-eval` does, against the frozen one without faults. MRFI and PyTorchFI know no
Brevitas: they strike its float twin (`benchmarks.peers_tools`), and are left out where they are not
installed (`pip install mrfi pytorchfi`).

Then come the time of fxfault against elements, rate and sites (`benchmarks.peers_growth`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import (
    Compared,
    Spread,
    compare_in_turns,
    load_average,
    machine,
    parse_options,
    seconds_of,
    verdict,
)
from benchmarks.overhead import BATCH, network
from benchmarks.peers_growth import measure_growth
from benchmarks.peers_tools import (
    TOOLS,
    Struck,
    float_twin,
    strike_by_fxfault,
    strike_by_wrapper,
    why_missing,
)

PERCENT = 1.0
# What others add over what fxfault adds, at least.
OURS, DENSE = "fxfault", "dense wrapper"
BOUNDS = {DENSE: 10.0, "MRFI": 1.0, "PyTorchFI": 1.0}
MILLION = 1e6
WIDTHS = (9, 10, 20, 10, 11, 10)


@dataclass(frozen=True)
class Measured:
    """A tool beside the clean network that it strikes.

    Attributes:
        struck: the network with faults.
        times: of it, and of the clean one.
        calls: of the same forwards, the seconds spent in what the tool inserted.
        before: seconds of what is done before a forward and is not in its time.
    """

    struck: Struck
    times: Compared
    calls: Spread
    before: float | None = None

    @property
    def added(self) -> float:
        """Seconds that the tool adds.

        Of two medians the larger: the difference of two forwards drowns in noise where it is
        small, and the inserted calls are without what they cost the layers around them.
        """
        return max(self.times.added.median, self.calls.median)

    @property
    def per_million(self) -> float:
        """Of these, the share of a million elements."""
        return self.added * MILLION / self.struck.elements


def main() -> None:
    """Measure, print, and save where asked."""
    options = parse_options(__doc__, turns=20)
    torch.set_num_threads(options.threads)
    before = load_average()
    result: dict[str, Any] = {"schema": "fxfault-peers/1", "machine": machine()}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"load average {before} before, {options.turns} turns\n")
    with torch.no_grad():
        result["tools"] = measure_tools(options.turns)
        result["growth"] = measure_growth(options.turns)
    result["load_average"] = {"before": before, "after": load_average()}
    print(f"\nload average {result['load_average']['after']} after")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"saved {options.json}")


def measure_tools(turns: int) -> dict[str, Any]:
    """Print and return what each tool adds."""
    print(f"faults at {PERCENT:g} %, batches of {BATCH} images; ms for a forward")
    heads = ("clean", "added", "quartiles", "calls", "a million", "ns a hit")
    print(
        f"{'':<20}" + "".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True))
    )
    model, images = network()
    measured = _measure_ours(model, images, turns)
    twin = float_twin(images)
    result: dict[str, Any] = {}
    for tool in TOOLS:
        missing = why_missing(tool)
        if missing is not None:
            print(f"{tool.name:<20}   skipped: {missing}")
            result[tool.name] = {"skipped": missing}
            continue
        struck = tool.strike(twin, images, PERCENT)
        count = max(3, turns // tool.turns_fewer)
        measured[tool.name] = _measure(tool.name, struck, twin, images, count)
    print("calls: the time in what a tool inserted; of it and the added time the larger counts")
    _print_bounds(measured)
    return result | {name: _plain(case) for name, case in measured.items()}


def _measure_ours(model: nn.Module, images: Tensor, turns: int) -> dict[str, Measured]:
    """Measure fxfault and the dense wrapper, which strike the same activations."""
    ours = strike_by_fxfault(model, images, PERCENT)
    dense = strike_by_wrapper(model, images, PERCENT, ours.elements)
    return {
        OURS: _measure(OURS, ours, fxfault.freeze(model), images, 4 * turns),
        DENSE: _measure(DENSE, dense, model, images, max(3, turns // 3)),
    }


def _measure(name: str, struck: Struck, clean: nn.Module, images: Tensor, turns: int) -> Measured:
    spent: list[float] = []

    def run() -> None:
        struck.run()
        spent.append(struck.watch.read())

    times = compare_in_turns(lambda: clean(images), {name: run}, turns)[name]
    before = None if struck.before is None else seconds_of(struck.before)
    measured = Measured(struck, times, Spread.of(spent[-turns:]), before)
    _print_row(name, measured)
    return measured


def _print_row(name: str, measured: Measured) -> None:
    added = measured.times.added
    cells = (
        f"{1e3 * measured.times.reference.median:.1f}",
        f"{1e3 * added.median:.2f}",
        f"{1e3 * added.low:.2f} - {1e3 * added.high:.2f}",
        f"{1e3 * measured.calls.median:.2f}",
        f"{1e3 * measured.per_million:.2f}",
        f"{1e9 * measured.added / measured.struck.hits:.0f}",
    )
    print(
        f"{name:<20}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    )
    if measured.before is not None:
        hits = round(measured.struck.hits)
        print(f"{'':<20}   and {1e3 * measured.before:.0f} ms before, to declare {hits} faults")


def _print_bounds(measured: dict[str, Measured]) -> None:
    print("\nadded for a million elements, over what fxfault adds")
    for name, bound in BOUNDS.items():
        if name in measured:
            ratio = measured[name].per_million / measured[OURS].per_million
            print(f"{name:<20}{ratio:>7.1f}   at least {bound:g}: {verdict(ratio >= bound)}")


def _plain(case: Measured) -> dict[str, Any]:
    return {
        **asdict(case.times),
        "calls": asdict(case.calls),
        "elements": case.struck.elements,
        "hits": case.struck.hits,
        "seconds_before": case.before,
        "seconds_added_per_million_elements": case.per_million,
        "version": case.struck.version,
    }


if __name__ == "__main__":
    main()
