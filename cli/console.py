"""What all commands share: one line for an error, exit codes, and quiet libraries."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TextIO

from fxfault.cli.interrupts import INTERRUPTED
from fxfault.errors import FxFaultError
from fxfault.foreign import origin, told

BAD_INPUT = 2

# Shows the traceback of an error, as the option `--traceback` does.
TRACEBACK_VARIABLE = "FXFAULT_TRACEBACK"

# Longer than any list of problems that somebody reads; a number of a thousand digits is quoted.
_LONGEST_LINE = 4000
_PLAIN = {"±": "+-", "…": "...", "–": "-", "²": "^2", "Σ": "sum ", "µ": "u", "·": "*"}
_HANDLER = "fxfault.plain"


def run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; whatever goes wrong is one line on stderr and an exit status.

    Errors that the user can mend, and those of a network or data set of the user's, end with
    status 2, a bug of ours with a line that says so; `--traceback` shows where they come from.

    Args:
        command: takes the parsed arguments and returns the exit status.
        arguments: what argparse parsed.
    """
    _open_streams()
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # Deprecations inside torch and brevitas are not the user's.
                warnings.simplefilter("ignore")
            status = command(arguments)
        sys.stdout.flush()  # Here, so that a full disk is an error.
        return status
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BaseException as error:  # Somebody else's code may raise anything: SystemExit, too.
        return _ended_by(error, _shows_traceback(arguments))


def _ended_by(error: BaseException, with_traceback: bool) -> int:
    """Say what went wrong; returns the exit status."""
    if _is_of_output(error):
        _give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):  # The reader (`| head`) has seen enough.
            return 0
        reason = getattr(error, "strerror", None) or str(error)
        error = FxFaultError(f"stdout cannot be written: {reason}")
    if with_traceback:
        say("".join(traceback.format_exception(error)).rstrip("\n"))
    say(f"error: {one_line(str(told(error)))}")
    return BAD_INPUT


def _shows_traceback(arguments: argparse.Namespace) -> bool:
    asked = os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")
    return asked or bool(getattr(arguments, "traceback", False))


def _is_of_output(error: BaseException) -> bool:
    """Whether it is one of stdout: raised where a command prints, and about no file by name."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    place = origin(error)
    return place is not None and place.module.startswith("fxfault.cli.")


def one_line(text: str) -> str:
    r"""Text that is one line on any terminal, and that tells a terminal nothing.

    >>> one_line("a\nb \x1b[31m")
    'a b \\x1b[31m'
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 3]}..."


def say(text: str) -> None:
    """Print on stderr; where it cannot be written, the exit status says it alone."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _give_up(sys.stderr)


# -- streams --------------------------------------------------------------------------------


def _open_streams() -> None:
    """See that all streams are there, and that stdout can write all that we print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Before any file is opened: one in the place of stderr would get what libraries print.
            _open_nothing(number)
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
    codecs.register_error(_HANDLER, _in_plain)
    with contextlib.suppress(AttributeError, ValueError):  # Some other program's stream.
        sys.stdout.reconfigure(errors=_HANDLER)  # type: ignore[union-attr]


def _open_nothing(number: int) -> None:
    """Open `/dev/null` in the place of a descriptor that is closed."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _give_up(stream: TextIO) -> None:
    """Let what is in the buffer go nowhere, or Python fails to write it at its end: status 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write what an encoding lacks in its letters, and bytes of file names as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all(0xDC80 <= ord(c) <= 0xDCFF for c in text):
        return bytes(ord(c) - 0xDC00 for c in text), error.end
    plain = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text)
    return plain, error.end
