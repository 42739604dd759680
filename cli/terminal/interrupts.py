"""Ctrl-C at any moment: one line and status 130, even while libraries are being imported.

A KeyboardInterrupt inside an import, a destructor or a callback may be swallowed or shown as a
traceback. So Ctrl-C ends the process at once, except while a command has results to keep and says
so (`raising`). Nothing is lost by that: a store survives a killed process, files are written under
another name first, and workers end with the driver.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

INTERRUPTED = 130
END = os._exit  # While a command runs, `os._exit` is another; see `console.run`.

_raises = False  # Whether Ctrl-C raises a KeyboardInterrupt, and does not end the process.


def _handle(number: int, frame: Any) -> None:
    global _raises
    if _raises:
        _raises = False  # A second Ctrl-C does not wait for what the first one began.
        raise KeyboardInterrupt
    end_at_once()


def end_at_once() -> NoReturn:
    """End this process with one line, and leave no half-written file."""
    files = sys.modules.get("fxfault.files.access")
    for path in list(getattr(files, "unfinished", ())):
        with suppress(OSError):
            os.unlink(path)
    try:
        os.write(2, b"interrupted\n")
    finally:
        END(INTERRUPTED)


def install() -> None:
    """Handle Ctrl-C if this process is one of our commands and nobody else handles it."""
    if (
        _is_ours()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _handle)


def _is_ours() -> bool:
    """Whether one of our commands was started, by its name or by `python -m`; not a worker."""
    words = getattr(sys, "orig_argv", sys.argv)
    name = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe")
    by_name = name == "fxfault" or name.startswith("fxfault-")
    as_module = ("-m" in words and words[words.index("-m") + 1 :][:1]) or [""]
    by_module = as_module[0] == "fxfault" or as_module[0].startswith(("fxfault.cli", "fxfault.__"))
    return "-c" not in words[:3] and (by_name or by_module)


@contextmanager
def raising() -> Iterator[None]:
    """Let the first Ctrl-C raise a KeyboardInterrupt, because there are results to keep."""
    global _raises
    _raises = True
    try:
        yield
    finally:
        _raises = False


@contextmanager
def requesting(on_request: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop; a second Ctrl-C raises KeyboardInterrupt.

    Yields:
        A function that tells whether a stop was requested.
    """
    requests: list[int] = []

    def request(number: int, frame: Any) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)
        on_request()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, request)
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
