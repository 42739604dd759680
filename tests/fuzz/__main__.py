"""`python -m tests.fuzz`: try strange configurations, studies, stores and checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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
        return _run_here(options)
    kinds = [options.kind] if options.kind else list(KINDS)
    tallies = []
    for number, kind in enumerate(kinds):
        cases = options.cases // len(kinds) + (number < options.cases % len(kinds))
        try:
            tallies.append(run_in_child(kind, cases, options.seed, _show_progress(cases)))
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
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # Of a child.
    return parser


def run_in_child(
    kind: str, cases: int, seed: int, on_progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run cases in a process of their own, whose memory is measured and which may crash.

    Args:
        kind: of the cases.
        cases: how many.
        seed: of them.
        on_progress: called with what became of the cases so far.

    Returns:
        What became of them; see `fuzz.running.Tally`.

    Raises:
        Failed: a case breaks the law; its files are kept, and the message says where.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    words = ["--kind", kind, "--cases", str(cases), "--seed", str(seed), "--folder", str(folder)]
    # One thread: more would only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FXFAULT_TRACEBACK": "0"}
    command = [sys.executable, "-W", "ignore", str(HERE / "__main__.py"), *words]
    tally: dict[str, Any] = {"kind": kind, "cases": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for tally in _tallies(child.stdout):
            on_progress(tally)
    if child.returncode:
        raise Failed(
            f"{kind}: status {child.returncode} after {tally['cases']} cases; the last one is in "
            f"{folder}, its command in command.txt there"
        )
    _remove(folder)
    return tally


def _tallies(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)


def _remove(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()


def _run_here(options: argparse.Namespace) -> int:
    sys.path[0] = str(HERE.parent)  # In place of this folder.
    from fuzz.running import limit_memory, run_cases

    def tell(tally: Any) -> None:
        print(json.dumps(tally.to_dict()), flush=True)

    limit_memory()
    run_cases(options.kind, options.cases, options.seed, options.folder, tell)
    return 0


def _show_progress(cases: int) -> Callable[[dict[str, Any]], None]:
    def show(tally: dict[str, Any]) -> None:
        end = "\n" if tally["cases"] >= cases else ""
        print(
            f"\r{tally['kind']}: {tally['cases']} of {cases}", end=end, file=sys.stderr, flush=True
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
