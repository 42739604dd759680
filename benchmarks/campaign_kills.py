"""Kill a study again and again: it must end with the rows of an undisturbed one.

    python -m benchmarks.campaign_kills [--driver N] [--workers N] [--seed N] [--json FILE]

SIGKILL, at random moments: first the driver of a study in one process, which is started anew each
time (20 times), then workers of a study in two processes (10 times). Every second moment is drawn
from the whole run, setting up included; the others come when rows were just written.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import parse_counts, save_json, verdict
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.process_engine import ProcessEngine
from fxfault.campaign.store import Store
from fxfault.campaign.study import Study

RUN = """
import sys
import torch
from benchmarks.campaign_kills import the_study
from fxfault.campaign.driver import run_study
torch.set_num_threads(1)
run_study(the_study(), sys.argv[1], on_progress=lambda progress: print(progress.trials, flush=True))
"""


def the_study() -> Study:
    """The bundled study with fewer trials, which takes about a minute."""
    content = Study.from_yaml("digits_study").to_dict()
    stop = {"margin": 1.5, "min_trials": 6, "max_trials": 30}
    return Study.from_dict({**content, "stop": stop})


def main() -> None:
    """Run undisturbed, then under kills; compare; end with status 1 where anything differs."""
    counts = {
        "driver": (20, "kills of the driver"),
        "workers": (10, "kills of workers"),
        "seed": (0, "of the moments"),
    }
    options = parse_counts(__doc__, counts, least=0)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        subprocess.run(_command(folder / "whole"), check=True, stdout=subprocess.DEVNULL)
        length = time.perf_counter() - started
        whole = _rows(folder / "whole")
        print(f"undisturbed: {len(whole)} trials in {length:.1f} s")
        _kill_driver(folder / "driver", options.driver, moments, length)
        _kill_workers(folder / "workers", options.workers, moments)
        same = [_rows(folder / kind) == whole for kind in ("driver", "workers")]
    print(f"driver killed {options.driver} times: the same rows: {verdict(same[0])}")
    print(f"workers killed {options.workers} times: the same rows: {verdict(same[1])}")
    save_json(options.json, {"driver": same[0], "workers": same[1], "trials": len(whole)})
    sys.exit(not all(same))


def _command(path: Path) -> list[Any]:
    return [sys.executable, "-c", RUN, path]


def _rows(path: Path) -> list[list[Any]]:
    """All rows without their times."""
    if not path.exists() or not path.stat().st_size:
        return []
    with Store.open(path) as store:
        return [row.to_list()[:-1] for row in store.rows()]


def _kill_driver(path: Path, kills: int, moments: random.Random, length: float) -> None:
    for number in range(kills):
        run = subprocess.Popen(_command(path), stdout=subprocess.PIPE)
        assert run.stdout is not None
        if number % 2:
            time.sleep(moments.uniform(0, length / 10))
        else:
            run.stdout.readline()  # It starts, ...
            run.stdout.readline()  # ... and has written for the first time.
            time.sleep(moments.uniform(0, 0.5))
        run.send_signal(signal.SIGKILL)
        status = run.wait()
        run.stdout.close()
        print(f"  kill {number + 1}: status {status}, {len(_rows(path))} trials kept")
    subprocess.run(_command(path), check=True, stdout=subprocess.DEVNULL)


def _kill_workers(path: Path, kills: int, moments: random.Random) -> None:
    engine = ProcessEngine(2)
    left = [kills]
    due = [time.monotonic()]

    def kill(progress: Progress) -> None:
        if not left[0] or time.monotonic() < due[0] or not progress.rows:
            return
        # Any of them, also one that is just setting itself up.
        victim = moments.choice(engine._workers)
        assert victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        left[0] -= 1
        due[0] = time.monotonic() + moments.uniform(0, 3)
        print(f"  worker {victim.number} killed at {progress.trials} trials")

    run_study(the_study(), path, engine=engine, on_progress=kill)
    if left[0]:
        sys.exit(f"the study ended {left[0]} kills too early: make it longer")


if __name__ == "__main__":
    main()
