"""How long a worker may stand still before others get its trials.

It follows from what trials and setting up have taken so far, and never is less than a minute and a
half. A worker that sends signs of life may be at a trial that is longer than all before: it gets
twice as long whenever the same trial is tried again.

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

SAY_AFTER = 45.0  # seconds, until a user is told
_LEAST = 90.0  # seconds
_FIRST_SET_UP = 300.0  # seconds: imports from a slow disk let no sign of life through
_FAR = 5  # times the longest so far, in this process
_TRIALS, _SET_UPS = 20, 5  # times the longest so far; setting up has a whole evaluation in it

# The longest time between two looks: a driver that was stopped itself has heard nobody.
TICK = 1.0  # seconds


class Clock:
    """Seconds in which the driver listened: it stands while the driver is stopped or busy."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looked = time.monotonic()

    def look(self) -> float:
        """Go on, by two ticks at most."""
        before, self._looked = self._looked, time.monotonic()
        self.now += min(self._looked - before, 2 * TICK)
        return self.now


class Watch:
    """Says, in a thread of its own, that this process is at something for far longer than usual.

    It cannot while code in C keeps Python's lock. What it says, nothing follows from.
    """

    def __init__(self, on_note: Callable[[str], object]) -> None:
        """Begin to look; `on_note` is called in that thread."""
        self._on_note, self._clock = on_note, Clock()
        self._at: tuple[str, float] | None = None
        self._longest = 0.0
        self._over = threading.Event()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Be at something, which `what` names after "not done for 60 s"."""
        began = time.monotonic()
        self._at = what, self._clock.now
        try:
            yield
        finally:
            self._at = None
            self._longest = max(self._longest, time.monotonic() - began)

    def close(self) -> None:
        """Look no more."""
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
    """Learns from workers what is usual.

    Attributes:
        timeout: seconds that a user allows a trial; None: what is usual decides.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._longest_trial: float | None = None
        self._longest_set_up: float | None = None

    def trial(self, seconds: float) -> None:
        """Note what a trial took, and whatever came before it."""
        self._longest_trial = max(seconds, self._longest_trial or 0.0)

    def set_up(self, seconds: float) -> None:
        """Note what it took to set a worker up."""
        self._longest_set_up = max(seconds, self._longest_set_up or 0.0)

    def limit(self, *, at_trial: bool, silent: bool, again: int = 0) -> float | None:
        """Seconds that a worker may stand still; None: as long as it likes.

        Args:
            at_trial: whether it is at a trial; else it is being set up.
            silent: whether it gives no sign of life.
            again: how often it was too long before, for the same trial.
        """
        if at_trial and self.timeout is not None:
            return self.timeout
        known = self._longest_trial if at_trial else self._longest_set_up
        if known is None and not silent:
            return None
        least = _LEAST if at_trial or self._longest_set_up is not None else _FIRST_SET_UP
        usual = (_TRIALS * (self._longest_trial or 0.0), _SET_UPS * (self._longest_set_up or 0.0))
        return float(max(least, *usual) * 2**again)
