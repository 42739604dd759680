"""Build error messages: name the nearest match, quote values and errors on one line."""

from __future__ import annotations

import difflib
import html
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

OWN_TASK = "see 'your own task', docs/your-own-task.md"
"""Where a message about batches, outputs or metrics sends the reader."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Suggest the most similar allowed name; empty if none is similar.

    >>> nearest("quant_cnn", ["quant_cnv", "quant_lenet"])
    " (did you mean 'quant_cnv'?)"
    >>> nearest("vgg", ["quant_cnv", "quant_lenet"])
    ''
    """
    close = _nearest(name, list(allowed))
    return f" (did you mean {close!r}?)" if close else ""


def _nearest(text: str, names: Sequence[str]) -> str:
    """The most similar name, or the only one that begins with the text; empty without one.

    >>> names = ["msb_flip", "lsb_flip", "stuck_at_0", "stuck_at_1"]
    >>> _nearest("mbs_flip", names), _nearest("msb", names), _nearest("st", names)
    ('msb_flip', 'msb_flip', '')
    """
    close = difflib.get_close_matches(text, names, n=1)
    longer = [name for name in names if len(text) > 1 and name.startswith(text)]
    return close[0] if close else longer[0] if len(longer) == 1 else ""


def did_you_mean(keys: Iterable[object], names: list[str]) -> str:
    """Suggest the name nearest to the first key that has one; empty if no key has."""
    folded = {name.lower(): name for name in names}  # `t_max` matches `T_max`
    for key in keys:
        text = str(key).lower().replace("-", "_").replace(" ", "_")
        near = _nearest(text, list(folded))
        if near:
            return f"; did you mean {folded[near]!r}?"
    return ""


def quote_error(error: BaseException) -> str:
    r"""Write an exception's type and message on one line.

    >>> quote_error(ValueError("two\nlines"))
    'ValueError: two lines'
    >>> quote_error(EOFError())
    'EOFError'
    """
    try:
        text = one_line(str(error))
    except Exception:  # The user's exception may define a `__str__` that fails.
        text = "(its message cannot be read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(text: str, longest: int = 300) -> str:
    r"""Write text on one line, at most `longest` characters, without control characters.

    >>> one_line("a\n  b \x1b[31m")
    'a b \\x1b[31m'
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def reason_of(error: OSError) -> str:
    """Say why a file operation failed, without the file's name."""
    return error.strerror or str(error)


def flat(content: Mapping[Any, Any], separator: str = ".") -> dict[str, Any]:
    """Flatten nested mappings to values by key path; empty mappings disappear.

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
    """Write a key of any type that YAML can produce."""
    return key if isinstance(key, str) and key.isprintable() and key else repr(key)


def got(value: Any) -> str:
    """Write a value with its type, shortened and on one line.

    >>> got("5"), got(None)
    ("'5' (str)", 'null (NoneType)')
    """
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    shortener.maxlong = 30
    text = "null" if value is None else " ".join(shortener.repr(value).split())
    return f"{text} ({type(value).__name__})"


def described(value: Any, most: int = 6) -> str:
    """Say what a value is made of, by types and shapes; no value of a tensor is written.

    >>> import torch
    >>> described({"image": torch.zeros(4, 1, 8, 8), "boxes": [torch.zeros(2, 4), 3]})
    'dict of image: float32 (4, 1, 8, 8), boxes: list of (float32 (2, 4), int)'
    >>> described(["a.png"] * 64), described(None)
    ('list of 64 str', 'None')

    Args:
        value: anything that a data set or a network returns.
        most: the largest number of items to name; half of it, but at least 2, further in.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    kind, within = type(value).__name__, max(2, most // 2)
    if value is None:
        return "None"
    if is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    if isinstance(value, Mapping):
        items = [f"{key_text(key)}: {described(item, within)}" for key, item in value.items()]
        return f"{kind} of {and_more(items, most)}" if items else f"empty {kind}"
    if not isinstance(value, (list, tuple)):
        return kind
    items = [described(item, within) for item in value[:most]]
    if len(items) > 1 and len(set(items)) == 1:
        return f"{kind} of {len(value)} {items[0]}"
    more = f" and {len(value) - most} more" if len(value) > most else ""
    return f"{kind} of ({', '.join(items)}{more})" if items else f"empty {kind}"


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


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Write a table in HTML for a notebook; all texts are escaped.

    >>> html_table(["Site"], [["a<b"]], "1 site")
    '<table><caption>1 site</caption><thead><tr><th>Site</th></tr></thead><tbody><tr><td>a&lt;b\
</td></tr></tbody></table>'
    """
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(_html_row(row, "td") for row in rows)
    return f"<table>{title}<thead>{_html_row(head, 'th')}</thead><tbody>{body}</tbody></table>"


def html_list(title: str, sentences: Iterable[str]) -> str:
    """Write sentences as a list in HTML for a notebook; all texts are escaped. Nothing for none.

    >>> html_list("Notes", ["a<b."]), html_list("Notes", [])
    ('<p><b>Notes</b></p><ul><li>a&lt;b.</li></ul>', '')
    """
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<p><b>{html.escape(title)}</b></p><ul>{items}</ul>" if items else ""


def _html_row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
