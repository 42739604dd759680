"""Keeps what the driver knows of its workers: whether they agree, and where they died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fxfault.campaign.records.fingerprint import differences, refusal
from fxfault.errors import EngineError

if TYPE_CHECKING:
    from fxfault.evaluation.full.predictions import OnNote

# So many deaths at one trial, or in a row before a worker is ready, end the study.
MOST_DEATHS = 5
MOST_TIMEOUTS = 2

Trial = tuple[str, int]
"""The key of a cell, and the number of a trial in it."""


class WorkerHistory:
    """Compares the workers of an engine, and counts their deaths.

    Attributes:
        facts: the facts of the first worker that was ready, as plain values; None before that
        on_note: a function that shows the user a note; each text is shown once
    """

    def __init__(self) -> None:
        self.facts: Mapping[str, Any] | None = None
        self.on_note: OnNote = lambda text: None
        self._notes: set[str] = set()
        self._deaths: Counter[Trial | None] = Counter()

    def enlist(self, worker: int, facts: Mapping[str, Any]) -> None:
        """Note that a worker is ready.

        Raises:
            EngineError: its network, data or code differ from those of the first worker
        """
        self._deaths[None] = 0
        if self.facts is None:
            self.facts = facts
        lines = differences(self.facts["fingerprint"], facts["fingerprint"], ("there", "here"))
        if lines:
            raise EngineError(
                f"worker {worker} does not compute what the first worker does, {refusal(lines)}"
            )

    def note(self, text: str) -> None:
        """Show a worker's note to the user, unless the same was shown before."""
        if text not in self._notes:
            self._notes.add(text)
            self.on_note(text)

    def deaths(self, trial: Trial | None) -> int:
        """Count the deaths at a trial, or, for None, those during set-up since the last success."""
        return self._deaths[trial]

    def lose(self, trial: Trial | None, how: str, most: int | None = None) -> None:
        """Note that a worker died, or was ended because it stood still.

        Args:
            trial: the trial that it was running; None if it was not ready yet
            how: the cause of death, in a few words
            most: the number of deaths that ends the study; default: `MOST_DEATHS`

        Raises:
            EngineError: this was one death too many
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
