"""What all commands share: one line for an error, exit codes, and quiet libraries."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable

from fxfault.errors import FxFaultError

INTERRUPTED = 130
BAD_INPUT = 2


def run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; an error that the user can mend is one line on stderr and exit status 2.

    Args:
        command: takes the parsed arguments and returns the exit status.
        arguments: what argparse parsed.
    """
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # Deprecations inside torch and brevitas are not the user's.
                warnings.simplefilter("ignore")
            return command(arguments)
    except FxFaultError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # The reader (`| head`) has seen enough.
        # What is left in the buffer goes nowhere, or flushing it at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
