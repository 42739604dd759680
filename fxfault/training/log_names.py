"""Names of values that every logger takes."""

from __future__ import annotations

import re
from collections.abc import Sequence


def loggable(names: Sequence[str]) -> list[str]:
    """Make names that every logger takes; MLflow refuses other characters with an error.

    >>> loggable(["relu", "relu@2", "relu-2", "blöcke.1"])
    ['relu', 'relu-2', 'relu-2-2', 'bl-cke.1']
    """
    made: list[str] = []
    for index, name in enumerate(names):
        plain = re.sub(r"[^-\w./]", "-", name, flags=re.ASCII)
        made.append(f"{plain}-{index}" if plain in made else plain)
    return made
