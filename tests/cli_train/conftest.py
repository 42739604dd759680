"""Runs `fxfault-train` in an empty folder, and a whole run that tests only look at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_train.tools import Run, Trained, in_folder, listing, train_once

from fxfault.cli import train


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folder(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of `FAST` in the folder `run`."""
    return train_once(tmp_path_factory)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Give a function that runs the command."""

    def run(*argv: str) -> Run:
        try:
            status = train.main(argv)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        return Run(status, *capsys.readouterr())

    return run


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
