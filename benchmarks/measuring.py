"""Timing in turns, live memory, and what machine it was.

A shared machine speeds up and slows down within seconds. So nothing is timed alone: each
run of a case follows a run of the reference it is compared with, in one process, and
what counts is the ratio of the two, over many turns.
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


@dataclass(frozen=True)
class Compared:
    """A case beside its reference.

    Attributes:
        seconds: of the case.
        reference: of the reference runs next to it.
        ratio: case over reference, pair by pair.
        added: case minus reference in seconds, pair by pair.
    """

    seconds: Spread
    reference: Spread
    ratio: Spread
    added: Spread


def parse_options(description: str | None, turns: int) -> argparse.Namespace:
    """The command line of a benchmark that runs in turns: `--turns`, `--threads`, `--json`.

    Args:
        description: the module's docstring.
        turns: default of `--turns`.
    """
    counts = {"turns": (turns, "runs of each pair"), "threads": (2, "torch threads")}
    return parse_counts(description, counts)


def parse_counts(
    description: str | None, counts: Mapping[str, tuple[int, str]], least: int = 1
) -> argparse.Namespace:
    """The command line of a benchmark: some integers, and `--json`.

    Args:
        description: the module's docstring.
        counts: by name, the default and what it counts.
        least: smallest value of each.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    for name, (default, what) in counts.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{what} (default {default})"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    for name in counts:
        if getattr(options, name) < least:
            parser.error(f"--{name}: got {getattr(options, name)}, allowed: {least} and up")
    return options


def save_json(path: Path | None, found: Mapping[str, Any]) -> None:
    """Save figures, if a file was named."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def verdict(met: bool) -> str:
    """How a table says whether a bound is met."""
    return "met" if met else "MISSED"


def seconds_of(run: Run) -> float:
    """Time one run; the garbage collector waits until it is over."""
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

    The case of a pair runs first in every second turn, so that being second costs neither.

    Args:
        reference: what the cases are compared with.
        cases: by name.
        turns: how often each pair runs; one more, before, is not counted.
    """
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
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
    """Most bytes that torch's CPU allocator held for a run at any one time.

    Counts what is allocated from the start of the run, by operators and inside their
    kernels, less what is freed; memory that was there before does not count.
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
    """Hide what torch 2.13's profiler writes on stderr each time, whatever KINETO_LOG_LEVEL."""
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
    """What the measurement ran on, in plain values."""
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
    """Processes waiting to run, over 1, 5 and 15 minutes; empty where the system has none."""
    try:
        return tuple(round(load, 2) for load in os.getloadavg())
    except OSError:
        return ()
