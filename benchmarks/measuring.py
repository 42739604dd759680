"""Timing in turns, live memory, the machine, and the frame of a benchmark's command.

A shared machine speeds up and slows down within seconds, so nothing is timed alone. Each run of
a case follows a run of its reference, in one process. The ratio of the two, over many turns, is
the result.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements.

    >>> Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)

    Attributes:
        median: half of the measurements lie on either side.
        low: the lower quartile.
        high: the upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def quartiles(self, digits: int = 3) -> str:
        """Return the quartiles as text, for a table."""
        return f"{self.low:.{digits}f} - {self.high:.{digits}f}"


@dataclass(frozen=True)
class Compared:
    """A case beside its reference.

    Attributes:
        seconds: time of the case.
        reference: time of the reference runs next to it.
        ratio: case over reference, pair by pair.
        added: case minus reference in seconds, pair by pair.
    """

    seconds: Spread
    reference: Spread
    ratio: Spread
    added: Spread


def run_benchmark(
    description: str | None, schema: str, turns: int, measure: Callable[[int], Mapping[str, Any]]
) -> None:
    """Run a benchmark that measures in turns: options, machine, load, measurement, JSON file.

    Args:
        description: the module's docstring.
        schema: name and version of the JSON document.
        turns: default of `--turns`.
        measure: takes the number of turns, prints a table, and returns the figures by name.
    """
    counts = {"turns": (turns, "runs of each pair"), "threads": (2, "torch threads")}
    options = parse_counts(description, counts)
    torch.set_num_threads(options.threads)
    before, runs_on = load_average(), machine()
    print("; ".join(f"{key} {value}" for key, value in runs_on.items()))
    print(f"load average {before} before, {options.turns} turns")
    found = measure(options.turns)
    after = load_average()
    print(f"\nload average {after} after")
    load = {"before": before, "after": after}
    save_json(options.json, {"schema": schema, "machine": runs_on, **found, "load_average": load})


def parse_counts(
    description: str | None, counts: Mapping[str, tuple[int | None, str]], least: int = 1
) -> argparse.Namespace:
    """Parse the command line of a benchmark: some integers, and `--json`.

    Args:
        description: the module's docstring.
        counts: default and meaning of each option, by its name; None if it need not be given.
        least: the smallest value of each option.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    for name, (default, what) in counts.items():
        shown = what if default is None else f"{what} (default {default})"
        parser.add_argument(f"--{name}", type=int, default=default, help=shown)
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    for name in counts:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < least:
            parser.error(f"--{name}: got {value}, allowed: {least} and up")
    return options


def save_json(path: Path | None, found: Mapping[str, Any]) -> None:
    """Save figures, if the user named a file."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"saved {path}")


def verdict(met: bool) -> str:
    """Return the word for a table that says whether a bound is met."""
    return "met" if met else "MISSED"


def ratio_row(name: str, case: Compared, bound: float | None = None, more: str = "") -> str:
    """Format a row of a table: name, median and quartiles of the ratio, more cells, upper bound."""
    row = f"{name:<26}{case.ratio.median:>8.3f}{case.ratio.quartiles():>16}{more}"
    return row if bound is None else f"{row}   {bound:g}: {verdict(case.ratio.median <= bound)}"


def seconds_of(run: Run) -> float:
    """Time one run, with the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    finally:
        gc.enable()


def compare_in_turns(reference: Run, cases: Mapping[str, Run], turns: int) -> dict[str, Compared]:
    """Time every case against the reference: reference, case, reference, case, and so on.

    The case of a pair runs first in every second turn, so the order favours neither.

    Args:
        reference: the run that the cases are compared with.
        cases: runs by name.
        turns: number of runs of each pair, after one that is not counted.
    """
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    gc.collect()
    gc.freeze()  # Or each run would wait a third of a second until all objects are looked through.
    for turn in range(-1, turns):
        for name, case in cases.items():
            if turn % 2:
                clean = seconds_of(reference)
                pair = clean, seconds_of(case)
            else:
                struck = seconds_of(case)
                pair = seconds_of(reference), struck
            if turn >= 0:
                pairs[name].append(pair)
    return {name: _compared(measured) for name, measured in pairs.items()}


def _compared(pairs: list[tuple[float, float]]) -> Compared:
    return Compared(
        seconds=Spread.of([case for _, case in pairs]),
        reference=Spread.of([reference for reference, _ in pairs]),
        ratio=Spread.of([case / reference for reference, case in pairs]),
        added=Spread.of([case - reference for reference, case in pairs]),
    )


def peak_bytes(run: Run) -> int:
    """Return the most bytes that torch's CPU allocator held for a run at any one time.

    This counts allocations from the start of the run, by operators and inside their kernels, less
    what is freed. Memory allocated before does not count.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _quiet_profiler(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profile,
    ):
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event["args"]["Ev Idx"]):
        live += change["args"]["Bytes"]
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Hide the lines that torch 2.13's profiler writes to stderr, whatever KINETO_LOG_LEVEL is."""
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions in plain values."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in ("torch", "brevitas", "fxfault")},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load_average() -> tuple[float, ...]:
    """Return the load average over 1, 5 and 15 minutes; empty if the system has none."""
    try:
        return tuple(round(load, 2) for load in os.getloadavg())
    except OSError:
        return ()
