"""The cost of a campaign beyond its trials: bookkeeping, workers, and a store of a million rows.

    python -m benchmarks.campaign [--trials N] [--turns N] [--rows N] [--json FILE]
    python -m benchmarks.campaign --simulated-workers N [--seconds S] [--json FILE]

Bookkeeping is the time of a run beyond the times of its trials: handing out, counting, stop rule,
transactions, progress. The second part compares one process with one thread against two, in turns,
by trials a second once all workers are at work. The third part is a store of a million rows:
writing it, and reading it as columns with all estimates, in a separate process. The network is the
bundled one for digits.

With `--simulated-workers` it measures something else: how many workers one driver can keep busy
(`benchmarks.simulated_workers`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import simulated_workers
from benchmarks.measuring import (
    Spread,
    load_average,
    machine,
    parse_counts,
    save_json,
    verdict,
)
from fxfault.campaign import Study
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.records.store import Store
from fxfault.campaign.workers.process_engine import ProcessEngine
from fxfault.evaluation.rows import COUNTS, TrialRow

MOST_BOOKKEEPING = 2.0  # percent of a study's time
LEAST_SPEEDUP = 1.6
MOST_SECONDS = 10.0
MOST_BYTES = 10**9


def main() -> None:
    """Measure, print a table, and save it on request."""
    counts = {
        "trials": (30, "trials of each cell"),
        "turns": (3, "runs with one worker and with two"),
        "rows": (10**6, "rows of the large store"),
        "simulated-workers": (None, "measure the driver alone, with so many workers that sleep"),
        "seconds": (20, "with simulated workers: time to measure, in seconds"),
    }
    options = parse_counts(__doc__, counts)
    torch.set_num_threads(1)
    if options.simulated_workers is not None:
        save_json(
            options.json, simulated_workers.measure(options.simulated_workers, options.seconds)
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "machine": machine(),
            "load_before": load_average(),
            "bookkeeping": _bookkeeping(Path(folder), options.trials),
            "workers": _workers(Path(folder), options.trials, options.turns),
            "store": _store(Path(folder), options.rows),
            "load_after": load_average(),
        }
    save_json(options.json, found)


def _study(trials: int) -> Study:
    return replace(Study.from_yaml("digits_study"), stop=None, trials=trials)


def _bookkeeping(folder: Path, trials: int) -> dict[str, float]:
    study = Study.from_yaml("digits_study")
    assert study.stop is not None
    study = replace(study, stop=replace(study.stop, max_trials=max(trials, 10)))
    path = folder / "bookkeeping.sqlite"
    progress = run_study(study, path, on_progress=lambda progress: None)
    with Store.open(path) as store:
        seconds = float(store.table()["seconds"].sum())
    share = 100.0 * (progress.seconds - seconds) / progress.seconds
    each = 1e6 * (progress.seconds - seconds) / progress.trials
    print(
        f"bookkeeping   {share:.2f} % of {progress.seconds:.1f} s, {progress.trials} trials, "
        f"{each:.0f} µs each   {MOST_BOOKKEEPING:g} %: {verdict(share <= MOST_BOOKKEEPING)}"
    )
    return {"percent": share, "trials": progress.trials, "microseconds": each}


class _Pace:
    """Counts trials a second from the moment that all workers have sent rows."""

    def __init__(self, engine: ProcessEngine) -> None:
        self.engine = engine
        self.first: Progress | None = None
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        if self.first is None and all(worker.ready for worker in self.engine._workers):
            self.first = progress
        self.last = progress

    @property
    def rate(self) -> float:
        assert self.first is not None
        assert self.last is not None
        trials = self.last.trials - self.first.trials
        return trials / (self.last.seconds - self.first.seconds)


def _workers(folder: Path, trials: int, turns: int) -> dict[str, Any]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(turns):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            engine = ProcessEngine(workers)
            pace = _Pace(engine)
            path = folder / f"{workers}_{turn}.sqlite"
            run_study(_study(trials), path, engine=engine, on_progress=pace)
            rates[workers].append(pace.rate)
    ratio = Spread.of([two / one for one, two in zip(rates[1], rates[2], strict=True)])
    one, two = Spread.of(rates[1]), Spread.of(rates[2])
    print(
        f"workers       {one.median:.1f} trials a second with one, {two.median:.1f} with two: "
        f"{ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f})   "
        f"{LEAST_SPEEDUP:g}: {verdict(ratio.median >= LEAST_SPEEDUP)}"
    )
    return {"one": asdict(one), "two": asdict(two), "ratio": asdict(ratio)}


READ = """
import json, resource, sys, time
from fxfault.campaign.estimates.summary import summarise
from fxfault.campaign.records.store import Store
from fxfault.campaign import Cell
started = time.perf_counter()
with Store.open(sys.argv[1]) as store:
    table, cells = store.table(), [Cell.from_key(key) for key in store.cells()]
read = time.perf_counter() - started
summarise(table, cells)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([len(table["cell"]), read, time.perf_counter() - started, peak]))
"""


def _store(folder: Path, rows: int) -> dict[str, float]:
    path = folder / "large.sqlite"
    started = time.perf_counter()
    with Store.create(path, _study(1).to_dict(), {}) as store:
        for batch in _made_up(rows):
            store.add(batch)
    written = time.perf_counter() - started
    run = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, check=True)
    number, read, total, peak = json.loads(run.stdout)
    met = total <= MOST_SECONDS and peak <= MOST_BYTES
    print(
        f"store         {number} rows, {path.stat().st_size / 1e6:.0f} MB: written in "
        f"{written:.1f} s, read in {read:.1f} s, estimated in {total - read:.1f} s, "
        f"{peak / 1e6:.0f} MB of memory   {MOST_SECONDS:g} s, 1 GB: {verdict(met)}"
    )
    return {"rows": number, "written": written, "read": read, "total": total, "peak_bytes": peak}


def _made_up(rows: int) -> Iterator[list[TrialRow]]:
    study = Study.from_yaml("digits_study")
    names = [f"layer{number}.act" for number in range(100)]
    cells = study.cells(names, dict.fromkeys(names, 4))
    each = -(-rows // len(cells))
    counts = dict.fromkeys(COUNTS[1:], 400)
    for number, cell in enumerate(cells):
        trials = range(min(each, max(0, rows - number * each)))
        yield [
            TrialRow(cell=cell.key, trial=k, **{**counts, "sdc": k % 400, "due": 0}, seconds=0.01)
            for k in trials
        ]


if __name__ == "__main__":
    main()
