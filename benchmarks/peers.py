"""The time that faults add in fxfault and in other tools, and how fxfault's time grows.

    python -m benchmarks.peers [--turns N] [--threads N] [--json FILE]

A network with faults in 1 % of its activations is compared with itself without faults, in
evaluation, without gradients, on batches of 64 images of 32 x 32. The difference, over the elements
that faults can strike, is what a tool adds. fxfault and a wrapper written to the specification
(`benchmarks.dense_wrapper`) strike quant_cnv with 2-bit weights and activations. For fxfault both
networks are frozen, as in `fxfault eval`. MRFI and PyTorchFI do not support Brevitas, so they
strike a float twin (`benchmarks.peers_tools`). If they are not installed, they are skipped
(`pip install mrfi pytorchfi`).

A second part measures the time of fxfault against elements, rate and sites
(`benchmarks.peers_growth`). A third part compares whole studies, in which one layer is struck alone
(`benchmarks.peers_study`).
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from benchmarks.measuring import (
    Compared,
    Spread,
    compare_in_turns,
    run_benchmark,
    seconds_of,
    verdict,
)
from benchmarks.networks import BATCH, quant_cnv
from benchmarks.peers_growth import measure_growth
from benchmarks.peers_study import measure_study
from benchmarks.peers_tools import (
    TOOLS,
    Struck,
    float_twin,
    strike_by_fxfault,
    strike_by_wrapper,
    why_missing,
)

PERCENT = 1.0
OURS, DENSE = "fxfault", "dense wrapper"
# Lower bounds of the time that a tool adds over the time that fxfault adds.
BOUNDS = {DENSE: 10.0, "MRFI": 1.0, "PyTorchFI": 1.0}
MILLION = 1e6
WIDTHS = (9, 10, 20, 10, 11, 10)


@dataclass(frozen=True)
class Measured:
    """The times of a tool and of the clean network that it strikes.

    Attributes:
        struck: the network with faults.
        times: times of the network with faults and of the clean one.
        calls: seconds that the same forwards spent in the code that the tool inserted.
        before: seconds of the preparation of a forward, which is not in its time.
    """

    struck: Struck
    times: Compared
    calls: Spread
    before: float | None = None

    @property
    def added(self) -> float:
        """Seconds that the tool adds: the larger of two medians.

        A small difference of two forwards drowns in noise. The time of the inserted calls leaves
        out the cost that they cause in the layers around them.
        """
        return max(self.times.added.median, self.calls.median)

    @property
    def per_million(self) -> float:
        """Seconds that the tool adds for a million elements."""
        return self.added * MILLION / self.struck.elements


@torch.no_grad()
def measure(turns: int) -> dict[str, Any]:
    """Print and return all figures."""
    print()
    found = {"tools": measure_tools(turns), "growth": measure_growth(turns)}
    return {**found, "study": measure_study(max(3, turns // 4))}


def measure_tools(turns: int) -> dict[str, Any]:
    """Print and return the time that each tool adds."""
    print(f"faults at {PERCENT:g} %, batches of {BATCH} images; ms for a forward")
    _print_cells("", "clean", "added", "quartiles", "calls", "a million", "ns a hit")
    model, images = quant_cnv()
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

    times = compare_in_turns(functools.partial(clean, images), {name: run}, turns)[name]
    before = None if struck.before is None else seconds_of(struck.before)
    measured = Measured(struck, times, Spread.of(spent[-turns:]), before)
    _print_row(name, measured)
    return measured


def _print_cells(name: str, *cells: str) -> None:
    print(
        f"{name:<20}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    )


def _print_row(name: str, measured: Measured) -> None:
    added = measured.times.added
    _print_cells(
        name,
        f"{1e3 * measured.times.reference.median:.1f}",
        f"{1e3 * added.median:.2f}",
        f"{1e3 * added.low:.2f} - {1e3 * added.high:.2f}",
        f"{1e3 * measured.calls.median:.2f}",
        f"{1e3 * measured.per_million:.2f}",
        f"{1e9 * measured.added / measured.struck.hits:.0f}",
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
    run_benchmark(__doc__, "fxfault-peers/1", 20, measure)
