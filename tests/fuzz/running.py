"""Run cases, and see that each ends as it must, soon, and without much memory."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from attacks.law import breaches, ended
from fuzz import checkpoints, documents, stores
from fuzz.case import CHECKPOINT, COMMANDS, CONFIGURATION, STORE, STUDY, Case
from fuzz.tiny import inside
from hypothesis import strategies as st

SECONDS = 10  # of the processor, as the machine may have other work
PATIENCE = 60  # seconds by the clock, for what waits or is in C
MEMORY = 2**30  # bytes; what is imported takes more than half of it
_STDERR = os.dup(2)  # While a case runs, 2 is another file.
CHUNK = 500  # Hypothesis remembers what it has tried: this bounds how much

STRATEGIES: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    CONFIGURATION: documents.configurations,
    STUDY: documents.studies,
    STORE: stores.stores,
    CHECKPOINT: checkpoints.checkpoints,
}


class BrokenLaw(AssertionError):
    """A command that did not end as it must."""


class Hang(BaseException):
    """A command takes too long; one that ends in a line for any error catches this one, too."""


@dataclass
class Tally:
    """What became of the cases of a kind.

    Attributes:
        kind: of the cases.
        cases: that were run.
        accepted: that ended with status 0.
        refused: that ended with status 2.
        slowest: seconds of the processor that a case took, at most.
        memory: bytes of the process, at most, with all that is imported.
    """

    kind: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_cases(
    kind: str, cases: int, seed: int, folder: Path, on_chunk: Callable[[Tally], None]
) -> Tally:
    """Run cases of a kind in this process.

    Args:
        kind: one of `fuzz.case.KINDS`.
        cases: how many.
        seed: of them; chunk k has the seed `seed + k`.
        folder: that is made empty for each case; after a failure it holds the shrunk one.
        on_chunk: called after each chunk.

    Raises:
        BrokenLaw: the shrunk case that breaks the law.
    """
    tally = Tally(kind)
    for chunk, done in enumerate(range(0, cases, CHUNK)):
        count = min(CHUNK, cases - done)

        @hypothesis.seed(seed + chunk)
        @hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        )
        @hypothesis.given(STRATEGIES[kind]())
        def try_case(case: Case) -> None:
            _try(case, folder, tally)

        try:
            try_case()
        except Exception:
            again = f"--kind {kind} --seed {seed + chunk} --cases {count}"
            print(f"the same again: python -m tests.fuzz {again}", file=sys.stderr)
            raise
        on_chunk(tally)
    return tally


def limit_memory() -> None:
    """Let a request for much more than there may be fail, before the machine is out of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak_memory() -> int:
    """Bytes that this process had at most since the case began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024


def _try(case: Case, folder: Path, tally: Tally) -> None:
    _fill(folder, case)
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    start, status = time.process_time(), -1
    with inside(folder), _captured() as written, _alarm() as alarm:
        status = ended(COMMANDS[case.argv[0]], case.argv[1:])
    seconds = time.process_time() - start
    err = written()
    memory = _peak_memory()
    problems = breaches(status, err)
    if alarm.at is not None:
        problems.append(f"takes more than {SECONDS} s:\n{alarm.at}")
    if status not in (0, 2):
        problems.append(f"ends with status {status}")
    if status and any((folder / name).exists() for name in case.outputs):
        problems.append("writes a file, and then refuses")
    if memory > MEMORY:
        problems.append(f"needs {memory / 2**20:.0f} MB")
    if problems:
        raise BrokenLaw(f"{' '.join(case.argv)}: {'; '.join(problems)}\nstderr: {err}")
    tally.cases += 1
    tally.accepted += status == 0
    tally.refused += status == 2
    tally.slowest = max(tally.slowest, seconds)
    tally.memory = max(tally.memory, memory)


def _fill(folder: Path, case: Case) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    # Not read: what to run by hand, if the case breaks the law or the process.
    (folder / "command.txt").write_text(f"{' '.join(case.argv)}\n")


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """Catch what is written on both streams, also by libraries; gives a reader of stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = [os.dup(1), os.dup(2)]
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            texts: list[str] = []
            yield lambda: texts[0]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            err.seek(0)
            texts.append(err.read().decode("utf-8", "replace"))


@dataclass
class _Alarm:
    at: str | None = None


@contextlib.contextmanager
def _alarm() -> Iterator[_Alarm]:
    """Interrupt what takes too long, and end the process if that does not help."""
    alarm = _Alarm()

    def ring(number: int, frame: FrameType | None) -> None:
        alarm.at = "".join(traceback.format_stack(frame, limit=-8))
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=_STDERR)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield alarm
    except Hang:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)
