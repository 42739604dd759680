"""The progress of a long command: lines on stdout, and a bar on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fxfault.cli.terminal.colours import coloured
from fxfault.results.calls.bar import can_show_bar, new_bar


class Progress:
    """Prints lines, and a bar below them on a terminal or in a notebook.

    Attributes:
        visible: whether a bar is wanted and can be shown.
        is_silent: whether lines are not printed either; one of several processes speaks for all.
    """

    def __init__(self, wanted: bool, is_silent: bool = False) -> None:
        self.visible = wanted and not is_silent and can_show_bar()
        self.is_silent = is_silent
        self._bar: Any = None

    def start(self, total: int, unit: str = " samples") -> None:
        """Show the bar of so many units; the name of the unit has a space in front."""
        if self.visible:
            self._bar = new_bar(total, unit)

    def advance(self, units: int) -> None:
        """Move the bar, for instance by the samples of a batch."""
        if self._bar is not None:
            self._bar.update(units)

    def describe(self, before: str, after: str) -> None:
        """Write texts at both ends of the bar; they appear when it next moves."""
        if self._bar is not None:
            self._bar.set_description_str(before, refresh=False)
            self._bar.set_postfix_str(after, refresh=False)

    def say(self, text: str = "", *, error: bool = False) -> None:
        """Print a line on stdout or stderr, above the bar."""
        if self.is_silent:
            return
        file = sys.stderr if error else sys.stdout
        text = coloured(text, file)
        if self._bar is None:
            print(text, file=file, flush=True)  # So that a reader of a pipe sees it now.
        else:
            self._bar.write(text, file=file)
            file.flush()

    def note(self, text: str) -> None:
        """Print what a user should know."""
        self.say(f"Note: {text}")

    def close(self) -> None:
        """Remove the bar; lines can still be printed."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @contextmanager
    def showing_logs(self, verbose: bool) -> Iterator[None]:
        """Print the library's log on stderr: warnings and downloads, or all if `verbose`."""
        library, data = logging.getLogger("fxfault"), logging.getLogger("fxfault.data")
        before = [(logger, logger.level) for logger in (library, data)]
        handler = _SayHandler(self)
        library.addHandler(handler)
        library.setLevel(logging.INFO if verbose else logging.WARNING)
        data.setLevel(logging.INFO)
        try:
            yield
        finally:
            library.removeHandler(handler)
            for logger, level in before:
                logger.setLevel(level)


class _SayHandler(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(self.format(record), error=True)
