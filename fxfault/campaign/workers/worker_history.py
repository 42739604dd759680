"""What the driver knows of its workers: whether they agree, and how often they die over what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fxfault.campaign.records.fingerprint import differences, refusal
from fxfault.errors import EngineError

if TYPE_CHECKING:
    from fxfault.evaluation.full.predictions import OnNote

# A worker that dies so often over one trial, or so often before it is ready, dies of that.
MOST_DEATHS = 5
MOST_TIMEOUTS = 2

Trial = tuple[str, int]
"""Key of the cell and number."""


class WorkerHistory:
    """Keeps count of the workers of an engine.

    Attributes:
        facts: what the first worker that was ready found, as plain values; None before.
        on_note: called with what workers want a user to know, once for all that say the same.
    """

    def __init__(self) -> None:
        self.facts: Mapping[str, Any] | None = None
        self.on_note: OnNote = lambda text: None
        self._notes: set[str] = set()
        self._deaths: Counter[Trial | None] = Counter()

    def enlist(self, worker: int, facts: Mapping[str, Any]) -> None:
        """Note that a worker is ready.

        Raises:
            EngineError: its network, data or code are not those of the first one.
        """
        self._deaths[None] = 0
        if self.facts is None:
            self.facts = facts
        lines = differences(self.facts["fingerprint"], facts["fingerprint"], ("there", "here"))
        if lines:
            raise EngineError(
                f"worker {worker} does not compute what the first one does, {refusal(lines)}"
            )

    def note(self, text: str) -> None:
        """Pass a worker's note on, if no worker has said so before."""
        if text not in self._notes:
            self._notes.add(text)
            self.on_note(text)

    def deaths(self, trial: Trial | None) -> int:
        """How many workers died at a trial, or while they were set up."""
        return self._deaths[trial]

    def lose(self, trial: Trial | None, how: str, most: int | None = None) -> None:
        """Note that a worker died, or was ended as it stood still.

        Args:
            trial: that it was at; None where it was not ready yet.
            how: it died, in a few words.
            most: how often it may happen; default: `MOST_DEATHS`.

        Raises:
            EngineError: it has happened too often.
        """
        self._deaths[trial] += 1
        if most is not None and self._deaths[trial] >= most and trial is not None:
            raise EngineError(
                f"trial {trial[1]} of {trial[0]} was not done in time {most} times ({how}); raise "
                "--trial-timeout, or leave it out"
            )
        if self._deaths[trial] >= MOST_DEATHS:
            at = "while it was set up" if trial is None else f"at trial {trial[1]} of {trial[0]}"
            raise EngineError(
                f"a worker died {MOST_DEATHS} times {at} ({how}); if memory ran out, use fewer "
                "workers or a smaller training.batch_size"
            )
