"""Kill and disturb a study repeatedly: it must end with the rows of an undisturbed one.

    python -m benchmarks.campaign_kills [--driver N] [--workers N] [--others N] [--seed N]
        [--json FILE]

First come SIGKILLs at random moments. They strike the driver of a study in one process, which is
restarted each time (20 times), then workers of a study in two processes (10 times). Half of the
moments are drawn from the whole run, including the setup; the others come right after rows were
written.

Then each of these happens (2 times): SIGTERM; SIGSTOP of the driver for a while; SIGSTOP of a
worker; the store is moved; the store is deleted; the disk is full (a limit on file sizes); the
checkpoint is replaced; the clock is set back. The study continues, or ends with one line and status
2. Each finished trial is in the store exactly once. After the damage is repaired, the study ends
with the same rows.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.measuring import parse_counts, save_json, verdict
from fxfault.campaign import Study
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.records.store import Store
from fxfault.campaign.workers.process_engine import ProcessEngine

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "weights.pt"
Run = subprocess.Popen[str]

RUN = """
import sys, time
import torch
from benchmarks.campaign_kills import the_study
from fxfault.campaign.driver import run_study
from fxfault.campaign.workers.process_engine import ProcessEngine
from fxfault.errors import FxFaultError
torch.set_num_threads(1)
kind = sys.argv[2]
engine = ProcessEngine(2, trial_timeout=5.0) if kind == "stop a worker" else "local"
if kind == "clock":
    plain, hours = time.time, [0]
    def earlier():
        hours[0] += 1
        return plain() - 3600 * hours[0]
    time.time = earlier
def follow(progress):
    pids = [w.process.pid for w in engine._workers] if engine != "local" else []
    print(progress.trials, *pids, flush=True)
try:
    run_study(the_study(), sys.argv[1], engine=engine, on_progress=follow)
except FxFaultError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def the_study() -> Study:
    """Return the bundled study with fewer trials, which takes about a minute."""
    content = Study.from_yaml("digits_study").to_dict()
    stop = {"margin": 1.5, "min_trials": 6, "max_trials": 30}
    axes = {**content["axes"], "checkpoint": [WEIGHTS]}
    return Study.from_dict({**content, "stop": stop, "axes": axes})


def main() -> None:
    """Run undisturbed, then under kills; compare; end with status 1 if anything differs."""
    counts = {
        "driver": (20, "kills of the driver"),
        "workers": (10, "kills of workers"),
        "others": (2, "repetitions of each other disturbance"),
        "seed": (0, "seed of the moments"),
    }
    options = parse_counts(__doc__, counts, least=0)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # The study looks for the weights here.
        _put_weights("digits")
        started = time.perf_counter()
        _finish(folder / "whole")
        length = time.perf_counter() - started
        whole = _rows(folder / "whole")
        print(f"undisturbed: {len(whole)} trials in {length:.1f} s")
        _kill_driver(folder / "driver", options.driver, moments, length)
        _kill_workers(folder / "workers", options.workers, moments)
        same = [_rows(folder / kind) == whole for kind in ("driver", "workers")]
        others = {
            kind: all([_disturbed(folder, kind, moments, whole) for _ in range(options.others)])
            for kind in DISTURBANCES
        }
        os.chdir(ROOT)
    print(f"driver killed {options.driver} times: the same rows: {verdict(same[0])}")
    print(f"workers killed {options.workers} times: the same rows: {verdict(same[1])}")
    for kind, met in others.items():
        print(f"{kind}, {options.others} times: nothing lost, nothing twice: {verdict(met)}")
    found = {"driver": same[0], "workers": same[1], "trials": len(whole), **others}
    save_json(options.json, found)
    sys.exit(not all([*same, *others.values()]))


def _start(path: Path, kind: str = "") -> Run:
    """Start a study in a process of its own; `kind` is a key of `DISTURBANCES`."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, path, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if kind else None,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )


def _wait_for_rows(run: Run) -> str:
    """Wait until a study has written rows; return the line that says so."""
    assert run.stdout is not None
    run.stdout.readline()  # The start.
    return run.stdout.readline()


def _finish(path: Path) -> None:
    run = _start(path)
    run.communicate()
    if run.returncode:
        sys.exit(f"a study ended with status {run.returncode}")


def _put_weights(name: str) -> None:
    shutil.copy(str(resources.files("fxfault.bundled") / "weights" / f"{name}.pt"), "new.pt")
    os.replace("new.pt", WEIGHTS)


def _rows(path: Path) -> list[list[Any]]:
    """Read all rows without their times."""
    if not path.exists() or not path.stat().st_size:
        return []
    with Store.open(path) as store:
        return [[v for name, v in vars(row).items() if name != "seconds"] for row in store.rows()]


def _kill_driver(path: Path, kills: int, moments: random.Random, length: float) -> None:
    for number in range(kills):
        run = _start(path)
        if number % 2:
            time.sleep(moments.uniform(0, length / 10))
        else:
            _wait_for_rows(run)
            time.sleep(moments.uniform(0, 0.5))
        run.send_signal(signal.SIGKILL)
        run.communicate()
        print(f"  kill {number + 1}: status {run.returncode}, {len(_rows(path))} trials kept")
    _finish(path)


def _kill_workers(path: Path, kills: int, moments: random.Random) -> None:
    engine = ProcessEngine(2)
    left = [kills]
    due = [time.monotonic()]

    def kill(progress: Progress) -> None:
        if not left[0] or time.monotonic() < due[0] or not progress.rows:
            return
        # The victim may be any worker, even one that is still setting up.
        victim = moments.choice(engine._workers)
        assert victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        left[0] -= 1
        due[0] = time.monotonic() + moments.uniform(0, 3)
        print(f"  worker {victim.number} killed at {progress.trials} trials")

    run_study(the_study(), path, engine=engine, on_progress=kill)
    if left[0]:
        sys.exit(f"the study ended {left[0]} kills too early: make it longer")


def _terminate(run: Run, path: Path, line: str) -> None:
    run.send_signal(signal.SIGTERM)


def _stop_a_while(run: Run, path: Path, line: str) -> None:
    run.send_signal(signal.SIGSTOP)
    time.sleep(3)
    run.send_signal(signal.SIGCONT)


def _stop_a_worker(run: Run, path: Path, line: str) -> None:
    os.kill(int(line.split()[1]), signal.SIGSTOP)


def _move(run: Run, path: Path, line: str) -> None:
    path.rename(path.with_name("moved"))


def _delete(run: Run, path: Path, line: str) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{ending}").unlink()


def _fill(run: Run, path: Path, line: str) -> None:
    size = path.stat().st_size
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _replace_weights(run: Run, path: Path, line: str) -> None:
    _put_weights("digits_fat")


def _nothing(run: Run, path: Path, line: str) -> None:
    """The clock is set back from the start."""


# Each disturbance, and the statuses that the study may end with.
DISTURBANCES: dict[str, tuple[Callable[[Run, Path, str], None], tuple[int, ...]]] = {
    "SIGTERM": (_terminate, (-signal.SIGTERM,)),
    "SIGSTOP": (_stop_a_while, (0,)),
    "stop a worker": (_stop_a_worker, (0,)),
    "store moved": (_move, (2,)),
    "store deleted": (_delete, (2,)),
    "disk full": (_fill, (2,)),
    "checkpoint replaced": (_replace_weights, (2,)),
    "clock": (_nothing, (0,)),
}


def _disturbed(folder: Path, kind: str, moments: random.Random, whole: list[list[Any]]) -> bool:
    """Disturb a study, repair the damage, and let it end; return whether nothing was lost."""
    path = folder / "disturbed"
    disturb, statuses = DISTURBANCES[kind]
    run = _start(path, kind)
    line = _wait_for_rows(run)
    time.sleep(moments.uniform(0, 1))
    disturb(run, path, line)
    _, said = run.communicate(timeout=600)
    _put_weights("digits")
    kept = [file for name in ("moved", "disturbed.kept-1") if (file := folder / name).exists()]
    if kept:
        os.replace(kept[0], path)
    rows = _rows(path)
    once = all(row in whole for row in rows) and len({tuple(row[:2]) for row in rows}) == len(rows)
    there = len(rows) >= int(line.split()[0])
    _finish(path)
    well = run.returncode in statuses and len(said.splitlines()) == (run.returncode == 2)
    met = once and there and well and _rows(path) == whole
    print(f"  {kind}: status {run.returncode}, {len(rows)} trials kept {said.strip()[:200]}")
    for file in [*folder.glob("disturbed*"), *folder.glob("moved*")]:
        file.unlink()
    return met


if __name__ == "__main__":
    main()
