"""What an engine is, what it is handed, and what its workers tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from fxfault.campaign.workers.facts import Facts
    from fxfault.campaign.workers.plan import Plan
from dataclasses import dataclass

from fxfault.evaluation.full.predictions import OnNote


class Engine(Protocol):
    """Runs trials.

    Attributes:
        slots: batches that it wants to have at a time.
    """

    slots: int

    def start(self, plan: Plan, on_note: OnNote) -> Facts:
        """Set up at least one worker.

        Args:
            plan: what to set up.
            on_note: called with what workers want a user to know, now or later.

        Raises:
            FxFaultError: something that the plan names cannot be used.
        """

    def submit(self, batch: Batch) -> None:
        """Take some trials, to be run when a worker is free."""

    def receive(self) -> list[TrialRow]:
        """Wait for the rows of finished trials; at least one of what was submitted.

        Raises:
            FxFaultError: a trial cannot be run.
        """

    def close(self) -> None:
        """End all workers at once; what they are at is lost."""


@dataclass(frozen=True)
class Batch:
    """Trials of one cell that a worker runs one after the other.

    Attributes:
        cell: key of the cell.
        trials: their numbers.
    """

    cell: str
    trials: tuple[int, ...]
