"""Runs `fxfault train` in an empty folder, and a whole run that tests only look at."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_train.tools import Trained, in_folder, listing, train_once
from commands import Run

from fxfault.cli import train


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folder(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of `FAST` in the folder `run`."""
    return train_once(tmp_path_factory)


@pytest.fixture
def command(run_command: Callable[..., Run]) -> Callable[..., Run]:
    """Give a function that runs the command."""
    return functools.partial(run_command, train.main)


@pytest.fixture
def fails(command: Callable[..., Run]) -> Callable[..., str]:
    """Give a function that runs the command, checks how it fails, and returns its one line."""

    def run(*argv: str) -> str:
        before = listing()
        result = command(*argv)
        assert result.status == 2
        assert re.fullmatch(r"error: .+\n", result.err)
        assert listing() == before
        return result.err

    return run
