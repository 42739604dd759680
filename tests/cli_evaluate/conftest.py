"""Runs `fxfault eval` in an empty folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from commands import Run

from fxfault.cli import evaluate
from fxfault.evaluation import FullRunner
from fxfault.evaluation.trials import Trials


@pytest.fixture
def command(run_command: Callable[..., Run]) -> Callable[..., Run]:
    """Give a function that runs the command in an empty folder."""
    return functools.partial(run_command, evaluate.main)


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give a function that sets after how many evaluations Ctrl-C is pressed."""

    def set_up(evaluations: int) -> None:
        left = [evaluations]
        golden, run = FullRunner.golden, Trials.run

        def counted(real: Callable[..., Any], *arguments: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*arguments)

        def first(self: FullRunner, on_batch: Any = None) -> Any:
            return golden(self, on_batch) if self._golden else counted(golden, self, on_batch)

        monkeypatch.setattr(FullRunner, "golden", first)
        monkeypatch.setattr(Trials, "run", lambda *arguments: counted(run, *arguments))

    return set_up
