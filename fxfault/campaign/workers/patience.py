"""Decides how long a worker may stand still before another one gets its trials.

The limit follows from the longest trial and the longest set-up so far, and is at least 90 s. It
doubles each time that the same trial is tried again, because a worker that sends signs of life may
be running a trial that is longer than all before.

>>> patience = Patience()
>>> patience.limit(at_trial=True, silent=True), patience.limit(at_trial=True, silent=False)
(90.0, None)
>>> patience.set_up(3.0)
>>> patience.trial(30.0)
>>> [patience.limit(at_trial=True, silent=False, again=again) for again in range(3)]
[600.0, 1200.0, 2400.0]
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAY_AFTER = 45.0  # seconds until the user is told
_LEAST = 90.0  # seconds
_FIRST_SET_UP = 300.0  # seconds: while a slow disk is read, no sign of life gets through
_FAR = 5  # times the longest so far, in this process
_TRIALS, _SET_UPS = 20, 5  # times the longest so far; set-up includes a whole evaluation
TICK = 1.0  # seconds between two looks at the clock


class Clock:
    """Counts the seconds in which the driver listened; not those when it was stopped or busy."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looked = time.monotonic()

    def look(self) -> float:
        """Advance by the time since the last look, at most two ticks, and return the time."""
        before, self._looked = self._looked, time.monotonic()
        self.now += min(self._looked - before, 2 * TICK)
        return self.now


class Watch:
    """Tells the user, from a thread, if this process does something for far longer than usual.

    It only tells. It cannot while C code holds the GIL.
    """

    def __init__(self, on_note: Callable[[str], object]) -> None:
        """Start the thread, which calls `on_note`."""
        self._on_note, self._clock = on_note, Clock()
        self._at: tuple[str, float] | None = None
        self._longest = 0.0
        self._over = threading.Event()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Time the body; `what` follows "not done for 60 s" in the note."""
        began = time.monotonic()
        self._at = what, self._clock.now
        try:
            yield
        finally:
            self._at = None
            self._longest = max(self._longest, time.monotonic() - began)

    def close(self) -> None:
        """End the thread."""
        self._over.set()

    def _look(self) -> None:
        told: tuple[str, float] | None = None
        while not self._over.wait(TICK):
            now, at = self._clock.look(), self._at
            if at is None or at is told:
                continue
            still = now - at[1]
            if still >= max(SAY_AFTER, _FAR * self._longest):
                told = at
                self._on_note(f"this process: not done for {still:.0f} s {at[0]}")


class Patience:
    """Learns how long trials and set-up usually take.

    Attributes:
        timeout: the user's limit for a trial, in seconds; None: the usual times decide
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._longest_trial: float | None = None
        self._longest_set_up: float | None = None

    def trial(self, seconds: float) -> None:
        """Note the time of a trial, in seconds, with any wait before it."""
        self._longest_trial = max(seconds, self._longest_trial or 0.0)

    def set_up(self, seconds: float) -> None:
        """Note the time that setting up a worker took, in seconds."""
        self._longest_set_up = max(seconds, self._longest_set_up or 0.0)

    def limit(self, *, at_trial: bool, silent: bool, again: int = 0) -> float | None:
        """Return the seconds that a worker may stand still, or None for no limit.

        Args:
            at_trial: whether it runs a trial; if not, it is being set up
            silent: whether it gives no sign of life
            again: the number of workers lost at the same trial before
        """
        if at_trial and self.timeout is not None:
            return self.timeout
        known = self._longest_trial if at_trial else self._longest_set_up
        if known is None and not silent:
            return None
        least = _LEAST if at_trial or self._longest_set_up is not None else _FIRST_SET_UP
        usual = (_TRIALS * (self._longest_trial or 0.0), _SET_UPS * (self._longest_set_up or 0.0))
        return float(max(least, *usual) * 2**again)
