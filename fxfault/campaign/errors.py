"""The errors of campaigns."""

from __future__ import annotations

from fxfault.errors import FxFaultError


class StoreError(FxFaultError):
    """A store of trials that cannot be opened, written or gone on with."""


class EngineError(FxFaultError):
    """An engine that cannot run trials: no such engine, or workers that die or disagree."""
