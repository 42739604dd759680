"""Ctrl-C at any moment: one line and status 130, while libraries are imported too.

A KeyboardInterrupt that is raised inside an import, a destructor or a callback may be swallowed or
shown as a traceback. So a program of ours ends at once instead, but for the time in which a
command has results to keep and says so (`raising`). Nothing is lost by that: a store outlives a
killed process, files are written beside their place, and workers end with the driver.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

INTERRUPTED = 130


class _Interrupts:
    """The handler of SIGINT."""

    def __init__(self) -> None:
        self.raises = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.raises:
            self.raises = False  # A second one does not wait for what the first one began.
            raise KeyboardInterrupt
        end_at_once()


_handler = _Interrupts()


def end_at_once() -> NoReturn:
    """End this process with one line, and leave no half-written file."""
    files = sys.modules.get("fxfault.files")
    for path in list(getattr(files, "unfinished", ())):
        with suppress(OSError):
            os.unlink(path)
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def install() -> None:
    """Take Ctrl-C, where this process is one of our commands and nobody else has it."""
    if (
        _is_ours()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _handler)


def _is_ours() -> bool:
    """Whether a command of ours was started, by its name or by `python -m`; a worker is none."""
    words = getattr(sys, "orig_argv", sys.argv)
    by_name = os.path.basename(sys.argv[0] if sys.argv else "").startswith("fxfault-")
    as_module = ("-m" in words and words[words.index("-m") + 1 :][:1]) or [""]
    return "-c" not in words[:3] and (by_name or as_module[0].startswith("fxfault.cli"))


@contextmanager
def raising() -> Iterator[None]:
    """Let the first Ctrl-C raise a KeyboardInterrupt, as there is something to be kept."""
    _handler.raises = True
    try:
        yield
    finally:
        _handler.raises = False
