"""Shell completion: a script that a shell reads once.

shtab makes it from the parsers, so that a TAB starts no Python: argcomplete would start one each
time, and would have to be a dependency of every installation.
"""

from __future__ import annotations

import argparse
from typing import Any

from fxfault.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")
_FILES, _FOLDERS = ("FILE", "A", "B"), ("DIR",)


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Make the script of a shell.

    Args:
        parser: the parser of the whole command line.
        shell: one of `SHELLS`.

    Raises:
        ConfigError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ConfigError('--print-completion needs shtab: pip install "fxfault[cli]"') from error
    _complete_paths(parser, shtab)
    return shtab.complete(parser, shell=shell)


def _complete_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Say which options take files and folders, by what the help calls their values."""
    for action in parser._actions:
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_paths(inner, shtab)
