"""Words of error messages: the nearest name, values and errors on one line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LONGEST_QUOTE = 300


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint that names the most similar allowed name, or nothing.

    Example:
        >>> nearest("quant_cnn", ["quant_cnv", "quant_lenet"])
        " (did you mean 'quant_cnv'?)"
        >>> nearest("vgg", ["quant_cnv", "quant_lenet"])
        ''
    """
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quote_error(error: BaseException) -> str:
    r"""An exception's type and message on one line.

    Example:
        >>> quote_error(ValueError("two\nlines"))
        'ValueError: two lines'
        >>> quote_error(EOFError())
        'EOFError'
    """
    try:
        text = one_line(str(error))
    except Exception:  # An exception of the user's own has code of its own for that.
        text = "(its text cannot be had)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(text: str, longest: int = _LONGEST_QUOTE) -> str:
    r"""Text on one line, cut off if it is very long, with what may control a terminal escaped.

    Example:
        >>> one_line("a\n  b \x1b[31m")
        'a b \\x1b[31m'
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def reason_of(error: OSError) -> str:
    """Why an operation on a file failed, without the file's name."""
    return error.strerror or str(error)


def did_you_mean(keys: Iterable[object], names: list[str]) -> str:
    """The end of a message that names the first near match, or nothing."""
    for key in keys:
        text = str(key).lower().replace("-", "_").replace(" ", "_")
        # matched without regard to case, as `t_max` stands for `T_max`
        folded = {name.lower(): name for name in names}
        near = difflib.get_close_matches(text, folded, n=1)
        if near:
            return f"; did you mean {folded[near[0]]!r}?"
    return ""


def flat(content: Mapping[Any, Any], separator: str = ".") -> dict[str, Any]:
    """The values of nested mappings by the paths of their keys; an empty mapping has none.

    >>> flat({"training": {"epochs": 3}, "model": {}})
    {'training.epochs': 3}
    """
    values = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator).items()
            values.update({f"{key}{separator}{path}": item for path, item in inner})
        else:
            values[str(key)] = value
    return values


def key_text(key: object) -> str:
    """Write a key, whatever YAML made of it."""
    return key if isinstance(key, str) and key.isprintable() and key else repr(key)


def got(value: Any) -> str:
    """Write a value with its type, shortened and in one line.

    >>> got("5"), got(None)
    ("'5' (str)", 'null (NoneType)')
    """
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    shortener.maxlong = 30
    text = "null" if value is None else " ".join(shortener.repr(value).split())
    return f"{text} ({type(value).__name__})"


def counted(number: int, what: str) -> str:
    """Write a number of things.

    >>> counted(1, "cell"), counted(1200, "trial")
    ('1 cell', '1,200 trials')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def and_more(names: Iterable[str], most: int = 10) -> str:
    """Name some things, and count the rest.

    >>> and_more(["a", "b", "c", "d"], most=2), and_more(["a", "b"])
    ('a, b and 2 more', 'a, b')
    """
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Write the rows of a table in columns of equal width.

    >>> aligned([["stem", "1.00"], ["a", "12.00"]], right=[1])
    ['stem   1.00', 'a     12.00']

    Args:
        rows: the texts of each row, one for each column.
        right: the numbers of the columns that are flush right.
        gap: the text between columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
