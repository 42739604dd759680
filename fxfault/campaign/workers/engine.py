"""The interface of an engine, and the batches that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fxfault.evaluation.full.predictions import OnNote
from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from fxfault.campaign.workers.facts import Facts
    from fxfault.campaign.workers.plan import Plan


class Engine(Protocol):
    """Runs trials.

    Attributes:
        slots: the number of batches that keeps its workers busy
    """

    slots: int

    def start(self, plan: Plan, on_note: OnNote) -> Facts:
        """Set up at least one worker.

        Args:
            plan: the study, and how to run it
            on_note: a function that shows the user a note, now or later

        Raises:
            FxFaultError: something that the plan names cannot be used
        """

    def submit(self, batch: Batch) -> None:
        """Queue a batch for the next free worker."""

    def receive(self, within: float | None = None) -> list[TrialRow]:
        """Wait until at least one submitted trial is done, and return the new rows.

        Args:
            within: longest time to wait, in seconds, after which there may be no row; None for no
                limit. An engine that runs trials itself waits for the trial in any case.

        Raises:
            FxFaultError: a trial cannot be run
        """

    def close(self) -> None:
        """End all workers at once, without waiting for their trials."""


@dataclass(frozen=True)
class Batch:
    """Trials of one cell that a worker runs one after the other.

    Attributes:
        cell: the cell's key
        trials: the trials' numbers
    """

    cell: str
    trials: tuple[int, ...]
