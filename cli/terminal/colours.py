"""Colour on a terminal: errors, notes, headings and rules; never in a pipe or a file.

NO_COLOR (https://no-color.org) and `TERM=dumb` turn it off.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

# The start or the whole of a line, and what a terminal calls its look (ECMA-48, SGR).
_LOOKS = (
    (re.compile(r"^error:"), "1;31"),  # bold red
    (re.compile(r"^Note:"), "1;33"),  # bold yellow
    (re.compile(r"^(?:usage|Verdict):"), "1"),  # bold
    (re.compile(r"^[A-Za-z][^:=]{0,60}:$"), "1"),
    (re.compile(r"^[=-]{10,}$"), "2"),  # faint
)


def wants_colour(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that shows colour, and nobody asked for none."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.name == "nt":
        return False
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # It is closed.
        return False


def coloured(text: str, stream: TextIO | None = None) -> str:
    """Colour text for a stream, by default stdout; for no terminal it stays as it is.

    >>> coloured("error: no such file")
    'error: no such file'
    """
    if not wants_colour(sys.stdout if stream is None else stream):
        return text
    return "\n".join(map(_line, text.split("\n")))


def _line(line: str) -> str:
    for pattern, look in _LOOKS:
        found = pattern.match(line)
        if found:
            return f"\x1b[{look}m{found[0]}\x1b[0m{line[found.end() :]}"
    return line
