"""The real driver, stop rule and store against workers that only sleep and return rows.

    python -m benchmarks.campaign --simulated-workers N [--seconds S] [--json FILE]

An engine in this process stands for N workers. Each finishes one trial a second, and answers with
the message that a real worker sends. All else is what `fxfault campaign run` does: hand out, judge
by the stop rule, commit to SQLite on disk, show the progress. The run ends by an interrupt after S
seconds. The time of the workers' side (the heap of due trials, the making of messages) is measured
and taken off. Judge by the CPU time: the rates fall on a machine that does something else, too.
"""

from __future__ import annotations

import heapq
import json
import resource
import tempfile
import time
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import load_average, machine, verdict
from fxfault.campaign import Study
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.records import fingerprint
from fxfault.campaign.records.store import Store
from fxfault.campaign.workers.plan import Plan
from fxfault.campaign.workers.worker_engine import Worker, WorkerEngine
from fxfault.cli.campaign_progress import CampaignProgress
from fxfault.evaluation.rows import TrialRow

TRIAL = 1.0  # seconds
LEAST_SHARE = 0.97  # of the offered rate
_SAMPLES, _GOLDEN, _ELEMENTS = 500, 470, 500 * 1152
_CELLS_OF_A_SITE = 18  # of digits_study, with words of 4 bits


class SimulatedEngine(WorkerEngine[Worker]):
    """Workers that take a second for each trial and use no core.

    Attributes:
        due: the time at which each trial was done, by cell and trial, until it is stored
        cost: CPU seconds of the workers' side
    """

    def __init__(self, workers: int, study: Study, sites: int) -> None:
        super().__init__()
        self.workers = workers
        self.due: dict[tuple[str, int], float] = {}
        self.cost = 0.0
        self._study, self._sites = fingerprint.of_study(study), sites
        self._free = [0.0] * workers
        self._sent: list[tuple[float, int, str, int]] = []  # A heap.
        self._until = float("inf")

    def interrupt_at(self, when: float) -> None:
        """Interrupt the run at a time of `time.perf_counter`."""
        self._until = when

    def close(self) -> None:
        """See `Engine.close`."""
        self._workers = []

    def _prepared(self, plan: Plan) -> Plan:
        return plan

    def _started(self, number: int) -> Worker:
        # Their phases are spread over a second, as those of real workers soon are.
        self._free[number] = time.perf_counter() + TRIAL * number / self.workers
        heapq.heappush(self._sent, (self._free[number], number, "", -1))
        return Worker(number)

    def _give(self, worker: Worker, cell: str, trials: list[int]) -> None:
        began = time.thread_time()
        free = max(self._free[worker.number], time.perf_counter())
        for trial in trials:
            free += TRIAL
            heapq.heappush(self._sent, (free, worker.number, cell, trial))
        self._free[worker.number] = free
        self.cost += time.thread_time() - began

    def _listen(self, longest: float) -> list[TrialRow]:
        if self._sent:
            wait = self._sent[0][0] - time.perf_counter()
            time.sleep(min(max(wait, 0.0), longest))
        now, rows = time.perf_counter(), list[TrialRow]()
        if now > self._until:
            raise KeyboardInterrupt
        self._clock.look()
        while self._sent and self._sent[0][0] <= now:
            began = time.thread_time()
            due, number, cell, trial = heapq.heappop(self._sent)
            if trial >= 0:
                self.due[cell, trial] = due
            content = self._facts() if trial < 0 else row_of(cell, trial).to_list()
            message = json.dumps(["facts" if trial < 0 else "row", content]).encode()
            self.cost += time.thread_time() - began
            rows += self._handle(self._workers[number], *json.loads(message))
        return rows

    def _end(self, worker: Worker) -> None:
        raise AssertionError("a simulated worker stands still")

    def _facts(self) -> dict[str, Any]:
        names = [f"layer{number}.act" for number in range(self._sites)]
        parts = {"study": self._study, "networks": {}}
        facts = {"sites": names, "bit_widths": dict.fromkeys(names, 4), "background": {}}
        return {**facts, "fingerprint": parts}


def row_of(cell: str, trial: int) -> TrialRow:
    """Return the row of a trial, whose counts follow from the cell and the trial alone."""
    of_cell, of_trial = zlib.crc32(cell.encode()), zlib.crc32(f"{cell} {trial}".encode())
    level = 1 + of_cell % 60  # percent of the samples that are SDCs
    deviation = (level / 100 * (1 - level / 100) / _SAMPLES) ** 0.5  # that of counting
    share = level / 100 + deviation * 3**0.5 * (of_trial / 2**31 - 1)  # evenly spread
    sdc = min(_SAMPLES, max(0, round(_SAMPLES * share)))
    correct, struck = min(_GOLDEN, _SAMPLES - sdc), min(_SAMPLES, 2 * sdc + 50)
    counts = {"samples": _SAMPLES, "correct": correct, "golden_correct": _GOLDEN, "sdc": sdc}
    counts |= {"critical_sdc": _GOLDEN - correct, "top5": _GOLDEN, "faults": 57 * level}
    counts |= {"elements": _ELEMENTS, "struck": struck, "masked": struck - sdc}
    return TrialRow(cell=cell, trial=trial, seconds=TRIAL, **counts)


class _Meter:
    """Notes what the driver used from the moment that all workers have sent a row."""

    def __init__(self, engine: SimulatedEngine, seconds: float) -> None:
        self.engine, self.seconds = engine, seconds
        self.shown = CampaignProgress(wanted=True)
        self.latencies = array("d")
        self.begun: tuple[float, float, int] | None = None
        self.ended = (0.0, 0.0, 0)
        self.memory = _memory()

    def __call__(self, progress: Progress) -> None:
        now = time.perf_counter()
        self.shown.follow(progress)
        began = time.thread_time()
        for row in progress.rows:
            waited = now - self.engine.due.pop((row.cell, row.trial))
            if self.begun is not None:
                self.latencies.append(waited)
        self.engine.cost += time.thread_time() - began
        self.ended = now, time.process_time() - self.engine.cost, progress.trials
        if self.begun is None and progress.trials >= self.engine.workers:
            self.begun = self.ended
            self.memory = _memory()
            self.engine.interrupt_at(now + self.seconds)


def measure(workers: int, seconds: int) -> dict[str, Any]:
    """Run a study with simulated workers for some seconds, and print what the driver used."""
    base = Study.from_yaml("digits_study")
    assert base.stop is not None
    needed = workers * (seconds + 5) / base.stop.min_trials  # cells, so that none has to wait
    sites = int(needed / _CELLS_OF_A_SITE) + 2
    engine = SimulatedEngine(workers, base, sites)
    meter = _Meter(engine, seconds)
    before = load_average()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.sqlite"
        try:
            run_study(base, path, engine=engine, on_progress=meter)
        except KeyboardInterrupt:
            meter.shown.close()
        with Store.open(path) as store:
            counts = store.counts()
        rows, size = sum(counts.values()), path.stat().st_size
    return _told(meter, {"cells": len(counts), "rows": rows, "bytes_per_row": size / rows}, before)


def _told(meter: _Meter, stored: dict[str, Any], before: Any) -> dict[str, Any]:
    assert meter.begun is not None
    wall, cpu, trials = (b - a for a, b in zip(meter.begun, meter.ended, strict=True))
    offered = meter.engine.workers / TRIAL
    middle, late, last = np.quantile(meter.latencies, [0.5, 0.99, 1.0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "machine": machine(),
        "load_before": before,
        "load_after": load_average(),
        "offered": offered,
        "achieved": trials / wall,
        "cpu_seconds_per_trial": cpu / trials,
        "share_of_a_core": cpu / wall,
        "latency_seconds": {"median": middle, "p99": late, "most": last},
        "peak_bytes": peak,
        "grown_bytes": peak - meter.memory,
        "workers_side_cpu_seconds": meter.engine.cost,
        **stored,
    }
    met = trials / wall >= LEAST_SHARE * offered
    print(
        f"{meter.engine.workers} simulated workers, {stored['cells']} cells, {trials:.0f} trials "
        f"in {wall:.1f} s, load average {before} before, {found['load_after']} after\n"
        f"  rate       {offered:.0f} trials a second offered, {trials / wall:.0f} achieved\n"
        f"  driver     {1e6 * cpu / trials:.0f} µs of CPU a trial, {100 * cpu / wall:.0f} % of one "
        f"core (without the workers' side)\n"
        f"  latency    {1e3 * middle:.0f} ms from finished to stored, 99 %: {1e3 * late:.0f} ms, "
        f"most: {1e3 * last:.0f} ms\n"
        f"  memory     {peak / 1e6:.0f} MB at most, {(peak - meter.memory) / 1e6:.1f} MB of them "
        f"since all workers were at work\n"
        f"  store      {stored['rows']} rows, {stored['bytes_per_row']:.0f} bytes each\n"
        f"{offered:.0f} trials a second on one core: {verdict(met)}",
        flush=True,
    )
    return found


def _memory() -> int:
    """Return the bytes of this process that are in memory now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()
