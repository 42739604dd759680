"""How the time of fxfault grows: with the elements of a site, with the rate, with the sites.

Each forward has new faults at new places, so memory costs as much as in an evaluation. Lines are
fitted by relative error, so that a small case counts as much as a large one.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from brevitas.nn import QuantIdentity
from torch import nn

from benchmarks.measuring import Run, compare_in_turns, seconds_of, verdict
from benchmarks.networks import transformed
from fxfault.evaluation.incremental.free_memory import free_memory
from fxfault.functional import begin_forward, fault_inject

SAMPLES = 64
ELEMENTS = (10**4, 10**5, 10**6, 10**7, 10**8)
HITS = 1000
RATE_ELEMENTS = 10**7
PERCENTS = (1e-7, 1e-5, 1e-3, 0.1, 1.0, 10.0, 50.0)
SITES = (1, 10, 50, 100, 200)
SITE_ELEMENTS = 16 * SAMPLES

# Bound of the time for the largest tensor over the smallest, with as many hits. In the largest
# tensor each hit waits for memory.
MOST_BY_ELEMENTS = 4.0
# Bound of a call that copies, over one that does not plus one clone.
MOST_BY_COPY = 1.5
# Largest relative distance of a time from its line.
TOLERANCE = 0.5
# Shortest timed stretch: the garbage collection before it empties the caches.
LEAST_SECONDS = 10e-3


@dataclass(frozen=True)
class Line:
    """Seconds that grow with a count.

    >>> Line.through([1, 2, 10], [3e-6, 5e-6, 21e-6]).worst < 1e-9
    True

    Attributes:
        constant: seconds at 0.
        slope: seconds for one more.
        worst: largest relative distance of a time from the line.
    """

    constant: float
    slope: float
    worst: float

    @classmethod
    def through(cls, counts: Sequence[float], seconds: Sequence[float]) -> Line:
        """Fit the times by least squares of their relative errors."""
        x, y = np.asarray(counts, float), np.asarray(seconds, float)
        (constant, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones_like(y))
        off = np.abs((constant + slope * x) / y - 1)
        return cls(float(constant), float(slope), float(off.max()))


def measure_growth(turns: int) -> dict[str, Any]:
    """Print and return the time against elements, rate and sites."""
    return {
        "elements": measure_elements(max(3, turns // 3)),
        "rate": measure_rates(max(3, turns // 3)),
        "sites": measure_sites(turns),
    }


def seconds_in_turns(runs: Mapping[Any, Run], turns: int) -> dict[Any, Any]:
    """Time each run in every turn; return the seconds of each as an array over the turns."""
    repeats = {key: _enough(run) for key, run in runs.items()}
    seconds: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(turns):
        for key, run in runs.items():
            seconds[key].append(seconds_of(functools.partial(_repeat, run, repeats[key])))
    return {key: np.array(times) / repeats[key] for key, times in seconds.items()}


def _enough(run: Run) -> int:
    """Return how often to run for `LEAST_SECONDS`, judged without the first, slower runs."""
    times, seconds = 1, 0.0
    while seconds < LEAST_SECONDS:
        started = time.perf_counter()
        _repeat(run, times)
        seconds = time.perf_counter() - started
        times *= 2
    return max(1, round(times / 2 * LEAST_SECONDS / seconds))


def _median(values: Any) -> float:
    return float(np.median(values))


def _repeat(run: Run, times: int) -> None:
    for _ in range(times):
        run()


class OneSite:
    """A network with one 4-bit site, and an activation for it."""

    def __init__(self, elements: int, percent: float) -> None:
        layer = quantiser()
        net = transformed(nn.Sequential(layer).eval(), percent)
        self.sites, self.site = net.faults, net.faults[0]
        scaled = layer(torch.zeros(1))
        shape = (SAMPLES, elements // SAMPLES)
        values = torch.randint(-8, 8, shape, dtype=torch.float32).mul_(scaled.scale)
        self.activation = scaled._replace(value=values)

    @property
    def elements(self) -> int:
        """Number of elements of the activation, a multiple of the samples."""
        return int(self.activation.value.numel())

    def strike(self, copying: bool = False) -> Run:
        """Return a forward: the clock moves, and the site strikes in a copy or in place."""
        site = copy.copy(self.site)
        if copying:
            site.layer = None  # As if other code also saw the activation.

        def run() -> None:
            begin_forward(self.sites, self.activation.value)
            fault_inject(self.activation, site)

        return run


def quantiser() -> nn.Module:
    """Build a 4-bit activation layer with a fixed scale."""
    settings = {"scaling_impl_type": "const", "scaling_init": 2.0}
    layer: nn.Module = QuantIdentity(bit_width=4, return_quant_tensor=True, **settings)
    return layer.eval()


# -- elements ----------------------------------------------------------------------------


def measure_elements(turns: int) -> dict[str, Any]:
    """Print and return the time of one site against its elements, with the same number of hits."""
    places = [OneSite(size, 100 * HITS / size) for size in _sizes_that_fit()]
    runs: dict[Any, Run] = {}
    for place in places:
        runs[place.elements, "in place"] = place.strike()
        runs[place.elements, "copying"] = place.strike(copying=True)
        runs[place.elements, "clone"] = place.activation.value.clone
    seconds = seconds_in_turns(runs, turns)
    print(f"\none site, {HITS} hits, against elements")
    print(f"{'elements':>12}{'in place':>14}{'copying':>14}{'one clone':>14}{'copy/rest':>12}")
    rows = []
    for place in places:
        kinds = ("in place", "copying", "clone")
        in_place, copying, clone = (seconds[place.elements, kind] for kind in kinds)
        times = {kind: _median(seconds[place.elements, kind]) for kind in kinds}
        share = _median(copying / (in_place + clone))
        rows.append({"elements": place.elements, **times, "copy_over_rest": share})
        cells = "".join(f"{1e6 * median:>11.1f} us" for median in times.values())
        print(f"{place.elements:>12}{cells}{share:>12.2f}")
    fewest, most = (seconds[place.elements, "in place"] for place in (places[0], places[-1]))
    growth, worst = _median(most / fewest), max(row["copy_over_rest"] for row in rows)
    print(
        f"in place, most over fewest elements: {growth:.2f}   "
        f"{MOST_BY_ELEMENTS:g}: {verdict(growth <= MOST_BY_ELEMENTS)}\n"
        f"copying, over the time in place and one clone: {worst:.2f}   "
        f"{MOST_BY_COPY:g}: {verdict(worst <= MOST_BY_COPY)}"
    )
    return {"rows": rows, "growth_in_place": growth}


def _sizes_that_fit() -> list[int]:
    """Return the sizes that fit in memory, each with its activation and room for one copy."""
    left = free_memory() // 2
    sizes = []
    for size in ELEMENTS:
        left -= 4 * size
        if left < 4 * size:
            print(f"{size} elements: skipped, memory is short")
            break
        sizes.append(size)
    return sizes


# -- rate --------------------------------------------------------------------------------


def measure_rates(turns: int) -> dict[str, Any]:
    """Print and return the time of one site against its rate, in place."""
    place = OneSite(RATE_ELEMENTS, 1.0)
    runs = {percent: _at_rate(place, percent) for percent in PERCENTS}
    seconds = seconds_in_turns(runs, turns)
    print(f"\none site, {place.elements} elements, in place, against the rate")
    print(f"{'percent':>12}{'hits':>14}{'time':>14}{'a hit':>14}")
    rows = []
    for percent in PERCENTS:
        hits, median = place.elements * percent / 100, _median(seconds[percent])
        rows.append({"percent": percent, "hits": hits, "seconds": median})
        each = f"{1e9 * median / hits:.1f} ns" if hits >= HITS else ""
        print(f"{percent:>12g}{hits:>14.2f}{1e6 * median:>11.1f} us{each:>14}")
    line = Line.through([row["hits"] for row in rows], [row["seconds"] for row in rows])
    _print_line(f"{1e9 * line.slope:.1f} ns for a hit", line)
    return {"rows": rows, "line": asdict(line)}


def _at_rate(place: OneSite, percent: float) -> Run:
    at_rate = copy.copy(place)
    at_rate.site = copy.copy(place.site)
    at_rate.site.set_probability(percent)
    return at_rate.strike()


def _print_line(slope: str, line: Line) -> None:
    print(
        f"line: {1e6 * line.constant:.1f} us and {slope}, off by at most {line.worst:.0%}   "
        f"{TOLERANCE:.0%}: {verdict(line.worst <= TOLERANCE)}"
    )


# -- sites -------------------------------------------------------------------------------


def measure_sites(turns: int) -> dict[str, Any]:
    """Print and return the time that sites add, in networks of few and of many."""
    images = torch.randn(SAMPLES, SITE_ELEMENTS // SAMPLES)
    rows = []
    print(f"\nsites of {SITE_ELEMENTS} elements, 1 %, against their number")
    print(f"{'sites':>12}{'added':>14}{'a site':>14}{'clean':>14}")
    for count in SITES:
        clean = nn.Sequential(*(quantiser() for _ in range(count))).eval()
        net = transformed(clean, 1.0)
        repeats = max(1, SITES[-1] // count)
        runs = [
            functools.partial(_repeat, functools.partial(model, images), repeats)
            for model in (clean, net)
        ]
        times = compare_in_turns(runs[0], {"sites": runs[1]}, turns)["sites"]
        added, before = times.added.median / repeats, times.reference.median / repeats
        rows.append({"sites": count, "seconds_added": added, "seconds_clean": before})
        each = f"{1e6 * added / count:.1f} us"
        print(f"{count:>12}{1e6 * added:>11.1f} us{each:>14}{1e6 * before:>11.1f} us")
    line = Line.through([row["sites"] for row in rows], [row["seconds_added"] for row in rows])
    _print_line(f"{1e6 * line.slope:.1f} us for a site", line)
    return {"rows": rows, "line": asdict(line)}
