"""`python -m tests.fuzz`: try strange configurations, studies, stores and checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KINDS = ("configuration", "study", "store", "checkpoint")


class Failed(Exception):
    """A case that breaks the law, or the process that ran it."""


def main() -> int:
    """Run the cases that were asked for; returns 0 if all end as they must, else 1."""
    options = _parser().parse_args()
    if options.folder is not None:
        return _run_here(json.loads(options.cases_of), options.seed, options.folder)
    kinds = [options.kind] if options.kind else list(KINDS)
    cases = {
        kind: options.cases // len(kinds) + (number < options.cases % len(kinds))
        for number, kind in enumerate(kinds)
    }
    try:
        tallies = run_in_children(cases, options.seed, _show_progress(cases))
    except Failed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(table(tallies))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="of all kinds (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--kind", choices=KINDS, help="only of this one (default: of each as many)")
    parser.add_argument("--cases-of", help=argparse.SUPPRESS)  # Of the process that forks.
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def run_in_children(
    cases: Mapping[str, int], seed: int, on_progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run the cases of each kind in a process of its own, which may crash.

    One process imports what they need, and is forked for each kind.

    Args:
        cases: how many, by the kind.
        seed: of them.
        on_progress: called with what became of the cases of a kind so far.

    Returns:
        What became of them, a kind after the other; see `fuzz.running.Tally`.

    Raises:
        Failed: a case breaks the law; its files are kept, and the message says where.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    words = ["--cases-of", json.dumps(cases), "--seed", str(seed), "--folder", str(folder)]
    # One thread: more would only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FXFAULT_TRACEBACK": "0"}
    command = [sys.executable, "-W", "ignore", str(HERE / "__main__.py"), *words]
    tallies: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            tally = json.loads(line)
            tallies[tally["kind"]] = tally
            on_progress(tally)
    if child.returncode:
        last = [*tallies.values()][-1] if tallies else {"kind": "no case", "cases": 0}
        raise Failed(
            f"{last['kind']}: status {child.returncode} after {last['cases']} cases; the last one "
            f"is in {folder}, its command in command.txt there"
        )
    _remove(folder)
    return list(tallies.values())


def _remove(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()


def _run_here(cases: Mapping[str, int], seed: int, folder: Path) -> int:
    sys.path[0] = str(HERE.parent)  # In place of this folder.
    from fuzz.running import Tally, limit_memory, run_cases

    def tell(tally: Any) -> None:
        print(json.dumps(tally.to_dict()), flush=True)

    for kind, count in cases.items():
        tell(Tally(kind))
        child = os.fork()
        if child == 0:
            with _ended_by_exit():
                limit_memory()
                run_cases(kind, count, seed, folder, tell)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            return status if status > 0 else 128 - status  # Of a signal, as shells say it.
    return 0


@contextlib.contextmanager
def _ended_by_exit() -> Iterator[None]:
    """End this fork with 0, or with 1 after an error."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _show_progress(cases: Mapping[str, int]) -> Callable[[dict[str, Any]], None]:
    def show(tally: dict[str, Any]) -> None:
        count = cases[tally["kind"]]
        end = "\n" if tally["cases"] >= count else ""
        print(
            f"\r{tally['kind']}: {tally['cases']} of {count}", end=end, file=sys.stderr, flush=True
        )

    return show


def table(tallies: list[dict[str, Any]]) -> str:
    """What became of the cases, a line for each kind."""
    lines = [f"{'kind':14}{'cases':>9}{'accepted':>10}{'refused':>9}{'slowest':>10}{'memory':>9}"]
    for tally in tallies:
        lines.append(
            f"{tally['kind']:14}{tally['cases']:9}{tally['accepted']:10}{tally['refused']:9}"
            f"{tally['slowest']:8.2f} s{tally['memory'] / 2**20:6.0f} MB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
