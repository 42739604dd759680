"""What a study calls itself: a name, a title and notes. No row depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from fxfault.config.schema import parse_section
from fxfault.messages import got

_LONGEST = {"name": 80, "title": 200}  # Characters.


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Texts that reports show; see `labels_of`."""

    name: Annotated[
        str | None, Field(description="Short name, for tables and comparisons; one line.")
    ] = None
    title: Annotated[
        str | None, Field(description="Title of the report and its page; one line.")
    ] = None
    notes: Annotated[
        str | None, Field(description="What a reader should know; any number of lines.")
    ] = None


LABELS = ("name", "title", "notes")


def labels_of(own: Mapping[str, Any], problems: list[str]) -> Labels:
    """Read the labels of a study file.

    >>> problems = []
    >>> labels_of({"title": "Where is it weak?", "name": " "}, problems).title, problems
    ('Where is it weak?', ["name: got ' ' (str), allowed: one line of 1 to 80 printable \
characters"])
    """
    given = {key: own[key] for key in LABELS if key in own}
    labels, found = parse_section(Labels, given, "")
    problems += found
    if labels is None:
        return Labels()
    for key, longest in _LONGEST.items():
        text = getattr(labels, key)
        if text is not None and not (text.strip() and text.isprintable() and len(text) <= longest):
            allowed = f"one line of 1 to {longest} printable characters"
            problems.append(f"{key}: got {got(text)}, allowed: {allowed}")
    return labels
