"""Run a command: one line for a problem, exit statuses, quiet libraries, sound streams."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO, TypeGuard

from fxfault.cli.terminal.colours import coloured
from fxfault.cli.terminal.interrupts import END, INTERRUPTED
from fxfault.errors import FxFaultError, InvalidConfigError
from fxfault.foreign import origin, told
from fxfault.messages import one_line, reason_of

BAD_INPUT = 2

# Shows the traceback of an error, as the option `--traceback` does.
TRACEBACK_VARIABLE = "FXFAULT_TRACEBACK"

# Longer than any list of problems that anybody reads, but a message may quote a huge number.
_LONGEST_LINE = 4000
_PLAIN = {"±": "+-", "…": "...", "–": "-", "²": "^2", "Σ": "sum ", "µ": "u", "·": "*"}
_HANDLER = "fxfault.plain"


def run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command, and report any error on stderr, a line for each problem, and an exit status.

    An error that the user can fix, or one in the user's network or data set, ends with status 2. A
    bug in fxfault also does, with a line that says so. `--traceback` shows where an error comes
    from.
    """
    _open_streams()
    try:
        with warnings.catch_warnings(), _hearing_exits():
            if not sys.warnoptions:  # The user cannot mend deprecations inside torch and brevitas.
                warnings.simplefilter("ignore")
            status = command(arguments)
        sys.stdout.flush()  # A full disk raises here, and not at exit.
        return status
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BaseException as error:  # The user's code may raise anything, even SystemExit.
        return _ended_by(error, _shows_traceback(arguments))


@contextlib.contextmanager
def _hearing_exits() -> Iterator[None]:
    """Let `os._exit` raise, as `sys.exit` does: it would end us without a word."""
    os._exit = sys.exit  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = END


def _end_in_child() -> None:
    os._exit = END


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_in_child)


def error_line(text: str) -> str:
    r"""Write an error for stderr.

    >>> error_line("a\nb")
    'error: a b'
    """
    return f"error: {one_line(text, _LONGEST_LINE)}"


def _ended_by(error: BaseException, with_traceback: bool) -> int:
    if _is_of_output(error):
        _give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):  # The reader (`| head`) has seen enough.
            return 0
        error = FxFaultError(f"stdout cannot be written: {reason_of(error)}")
    if with_traceback:
        say("".join(traceback.format_exception(error)).rstrip("\n"))
    for line in _lines_of(told(error)):
        say(error_line(line))
    return BAD_INPUT


def _lines_of(error: FxFaultError) -> list[str]:
    """Each problem of a configuration on a line of its own, which names the file."""
    if not isinstance(error, InvalidConfigError):
        return [str(error)]
    return [
        # A flag is not in the file.
        str(InvalidConfigError([problem], None if problem.startswith("--") else error.source))
        for problem in error.problems
    ]


def _shows_traceback(arguments: argparse.Namespace) -> bool:
    asked = os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")
    return asked or bool(getattr(arguments, "traceback", False))


def _is_of_output(error: BaseException) -> TypeGuard[OSError]:
    """Whether stdout raised it: our commands print, and the error names no file."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    place = origin(error)
    return place is not None and place.module.startswith("fxfault.cli.")


def say(text: str) -> None:
    """Print on stderr, if it can be written; else the exit status alone tells."""
    if sys.stderr is None:
        return
    try:
        print(coloured(text, sys.stderr), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _give_up(sys.stderr)


# -- streams --------------------------------------------------------------------------------


def _open_streams() -> None:
    """Open the streams that are missing, and make stdout able to write all that we print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Otherwise the next file that is opened would take the place of stderr, say, and get
            # what libraries print.
            _open_nothing(number)
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
    codecs.register_error(_HANDLER, _in_plain)
    with contextlib.suppress(AttributeError, ValueError):  # Another program's stream.
        sys.stdout.reconfigure(errors=_HANDLER)  # type: ignore[union-attr]


def _open_nothing(number: int) -> None:
    """Open `/dev/null` in the place of a closed descriptor."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _give_up(stream: TextIO) -> None:
    """Discard the buffer; otherwise Python fails to write it at its end, with status 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks, but leave the bytes of file names as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all(0xDC80 <= ord(c) <= 0xDCFF for c in text):
        return bytes(ord(c) - 0xDC00 for c in text), error.end
    plain = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text)
    return plain, error.end
