"""What a command did that ran in this process; the fixture `run_command` makes it."""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """The exit status of a command, and what it wrote."""

    status: int
    out: str
    err: str
