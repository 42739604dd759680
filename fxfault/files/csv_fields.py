"""Texts in the fields of a CSV file, safe from spreadsheets that would read them as formulas."""

from __future__ import annotations

from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def inert(value: Any) -> Any:
    """Make a value safe for a CSV file, so that no spreadsheet reads a text as a formula.

    Names of sites, faults and files come from others. A text that begins like a formula gets an
    apostrophe in front, which spreadsheets read as the mark of a text.

    >>> inert("=1+1"), inert("features.2"), inert(-1)
    ("'=1+1", 'features.2', -1)
    """
    is_formula = isinstance(value, str) and value.startswith(_FORMULAS)
    return f"'{value}" if is_formula else value


def given_to_inert(text: str) -> str:
    """Return the text that `inert` was given.

    >>> given_to_inert("'=1+1"), given_to_inert("'quoted'")
    ('=1+1', "'quoted'")
    """
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULAS) else text
