"""Standard streams that cannot be written: what each command says, and where it ends.

A command runs in a child that is forked, with what this process has imported, and with streams
that are opened as Python opens them when it starts.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attacks.law import MAINS, ended
from attacks.table import (
    EVAL,
    INSPECT,
    PLAN,
    READERS,
    RUN,
    TRAIN,
    Attack,
    store_of_few,
    written,
)

FULL, CLOSED, GONE, FILE = "full", "closed", "gone", "file"
_FLUSH_FAILED = 120  # What Python ends with then, after a traceback.


@dataclass(frozen=True)
class Streams:
    """How a command's streams are: `full`, `closed`, `gone` (its reader), or `file`.

    Attributes:
        out: stdout.
        err: stderr; where it is a file, it is the test's own.
        encoding: of both.
        status: that a command ends with whose input is sound.
        says: on stderr.
    """

    out: str = FILE
    err: str = FILE
    encoding: str = "utf-8"
    status: int = 0
    says: str = ""


NO_SPACE = "stdout cannot be written: No space left on device"
SOUND = {
    "stdout full": Streams(out=FULL, status=2, says=NO_SPACE),
    "stdout closed": Streams(out=CLOSED),
    "reader gone": Streams(out=GONE),
    "ascii": Streams(encoding="ascii"),
    "latin-1": Streams(encoding="latin-1"),
    "cp1252": Streams(encoding="cp1252"),
    "all closed": Streams(out=CLOSED, err=CLOSED),
    "stderr full": Streams(err=FULL),
}
# Whatever stderr is, the status tells.
WRONG = {
    "stderr closed": Streams(err=CLOSED),
    "stderr full": Streams(err=FULL),
    "stderr gone": Streams(err=GONE),
    "stdout full": Streams(out=FULL),
    "ascii": Streams(encoding="ascii"),
}


def stream_attacks() -> Iterator[tuple[Attack, Streams]]:
    """All rows: command and streams."""
    several = ("--num-runs", "3")  # They have a ± between them.
    sound = written(trials=2)
    commands = {
        "eval": Attack("eval", (*EVAL, *several), sound),
        "inspect": Attack("inspect", INSPECT, sound),
        "train": Attack("train", TRAIN, written(checkpoint={})),
        "run": Attack("run", RUN, sound),
        "plan": Attack("plan", PLAN, sound),
        **{name: Attack(name, argv, store_of_few) for name, argv in READERS.items()},
        "help": Attack("help", ("fxfault-eval", "--help")),
        "help of run": Attack("help of run", ("fxfault-campaign", "run", "--help")),
        "list of commands": Attack("list of commands", ("fxfault-campaign",)),
    }
    for command, attack in commands.items():
        for kind, streams in SOUND.items():
            if kind in ("latin-1", "cp1252") and command not in ("eval", "report", "compare"):
                continue  # They lack fewer letters than ASCII.
            name = f"streams {kind}, {command}"
            yield Attack(name, attack.argv, attack.prepare, streams.status, streams.says), streams
    wrong = {
        "eval": ("fxfault-eval", "--config", "absent\u202e.yaml"),
        "inspect": ("fxfault-inspect", "--config", "absent.yaml"),
        "train": ("fxfault-train", "--config", "absent.yaml"),
        "run": ("fxfault-campaign", "run", "--store", "s.sqlite", "absent±.yaml"),
        "flag": ("fxfault-campaign", "report", "--nosuch"),
    }
    for command, argv in wrong.items():
        for kind, streams in WRONG.items():
            yield Attack(f"streams {kind} and bad input, {command}", argv), streams


def status_with(streams: Streams, argv: Sequence[str]) -> int:
    """Run a command with such streams; returns its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        status = _run(streams, argv)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run(streams: Streams, argv: Sequence[str]) -> int:
    for number, how in ((1, streams.out), (2, streams.err)):
        _OPEN[how](number)
    sys.stdout, sys.stderr = _opened(1, streams.encoding), _opened(2, streams.encoding)
    status = ended(MAINS[argv[0]], argv[1:])
    for stream in (sys.stdout, sys.stderr):  # As Python does at its end.
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.write(2, b"Exception ignored in: the stream of the standard output\n")
            return _FLUSH_FAILED
    return status


def _full(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def _gone(number: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)


def _file(number: int) -> None:
    if number == 1:
        os.dup2(os.open("stdout.txt", os.O_WRONLY | os.O_CREAT), number)


_OPEN: Mapping[str, Callable[[int], None]] = {
    FULL: _full,
    CLOSED: os.close,
    GONE: _gone,
    FILE: _file,
}


def _opened(number: int, encoding: str) -> io.TextIOWrapper | None:
    """What Python opens at its start; None where the descriptor is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    errors = "strict" if number == 1 else "backslashreplace"
    raw = open(number, "wb", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2)
