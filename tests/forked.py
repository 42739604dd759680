"""Starts a command as a process that is forked from this one, which has imported all it needs.

A process of its own can be interrupted, killed, and read from while it runs, as a user's can; it
only skips the seconds in which Python starts and torch, Brevitas and Lightning are imported. Tests
of those seconds start a real Python.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any

from attacks.law import MAINS

from fxfault.cli.terminal import interrupts

FORK = multiprocessing.get_context("fork")


class Forked:
    """A process that runs a function; the parts of `subprocess.Popen` that tests use.

    Attributes:
        pid: the process.
        stdout: what it prints, as it is printed.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        argv: Sequence[str] = (),
    ) -> None:
        """Start the process.

        Args:
            function: what it runs; the process ends with the status that this returns, or 0.
            arguments: those of the function.
            folder: its working directory; default: this one.
            environment: variables beside those of this process.
            argv: its `sys.argv`; default: this one.
        """
        reader, writer = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        streams = (writer, self._errors.fileno())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._process = FORK.Process(
            target=_run, args=(function, arguments, folder, environment, argv, streams)
        )
        self._process.start()
        os.close(writer)
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout: IO[str] = open(reader, encoding="utf-8")  # noqa: SIM115

    @property
    def stderr(self) -> str:
        """What it has written there so far."""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode()

    @property
    def returncode(self) -> int | None:
        """How it ended: a status, or the number of a signal below 0; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end, and kill it if that does not come."""
        if not wait([self._process.sentinel], timeout):
            self._process.kill()
            self._process.join()
            raise AssertionError(f"it did not end within {timeout} s; stderr: {self.stderr}")
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()
        self.stdout.close()
        self._errors.close()


def command(name: str, argv: Sequence[str], **options: Any) -> Forked:
    """Start one of our commands, as a shell does.

    Args:
        name: `fxfault-train`, say.
        argv: its arguments.
        options: those of `Forked`.
    """
    return Forked(MAINS[name], list(argv), argv=[name, *argv], **options)


def _run(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: Path | None,
    environment: Mapping[str, str] | None,
    argv: Sequence[str],
    streams: tuple[int, int],
) -> None:
    """Make this fork of pytest look as a command's process does at its start, and run in it."""
    os.setsid()
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), "utf-8")  # noqa: SIM115
    errors = open(2, "wb", closefd=False)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(errors, "utf-8", line_buffering=True)
    warnings.resetwarnings()  # pytest makes errors of them.
    os.environ.update(environment or {})
    if folder is not None:
        os.chdir(folder)
    if argv:
        sys.argv[:] = sys.orig_argv[:] = list(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()
    sys.exit(function(*arguments))
