"""Numbers, intervals and tables as text."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxfault.files.csv_fields import inert
from fxfault.messages import aligned

if TYPE_CHECKING:
    from fxfault.campaign.cell_result import CellResult

NOTHING = "-"


def figure(value: float, decimals: int = 2) -> str:
    """Write a number, or a dash for a NaN.

    >>> figure(83.214), figure(float("nan")), figure(-0.001)
    ('83.21', '-', '0.00')
    """
    if math.isnan(value):
        return NOTHING
    # Plus 0.0, so that there is no minus sign before a zero.
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """Write an estimate with its interval, if it has one.

    >>> with_interval(83.214, 82.0, 84.4), with_interval(8.0, float("nan"), float("nan"))
    ('83.21 [82.00, 84.40]', '8.00')
    """
    if math.isnan(low) or math.isnan(high):
        return figure(value)
    return f"{figure(value)} [{figure(low)}, {figure(high)}]"


def duration(seconds: float) -> str:
    """Write a time in its two largest units.

    >>> duration(0.0123), duration(75), duration(7260), duration(200_000)
    ('0.012 s', '1 min 15 s', '2 h 1 min', '2 days 7 h')
    """
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, hours = round(seconds) // 60, round(seconds / 60) // 60
    if seconds < 3600:
        return f"{minutes} min {round(seconds) % 60} s"
    if hours < 48:
        return f"{hours} h {round(seconds / 60) % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def ten_digits(value: float) -> str:
    """Write a number for a file, without rounding errors of its last digits.

    >>> ten_digits(88.32000000000001)
    '88.32'
    """
    return format(value, ".10g")


def lined_up(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0, gap: str = " | "
) -> list[str]:
    r"""Write a table with a head; so many columns, from the first, are flush left.

    >>> print("\n".join(lined_up(["Site", "SDC"], [["stem", "1.00"], ["a", "12.00"]], left=1)))
    Site |   SDC
    ------------
    stem |  1.00
    a    | 12.00
    """
    top, *lines = aligned([head, *rows], range(left, len(head)), gap)
    return [top, "-" * max(map(len, [top, *lines])), *lines]


def percent(value: float, decimals: int = 1) -> str:
    """Write a percentage with at least some decimals, and with more if those would be wrong.

    >>> percent(10.0), percent(0.0001), percent(10.0, decimals=0), percent(2.5, decimals=0)
    ('10.0%', '0.0001%', '10%', '2.5%')
    """
    short = f"{value:.{decimals}f}"
    return f"{short if float(short) == value else ten_digits(value)}%"


def per_each(memories: Collection[str]) -> str:
    """Say what has a number of faults: each sample, or for stored words each trial.

    >>> per_each(["activations"]), per_each(["weights", "biases"])
    ('per sample', 'per trial')
    """
    return "per sample" if "activations" in memories else "per trial"


def rate_words(result: CellResult, decimals: int = 1) -> str:
    """Write how often faults struck, for a table."""
    if result.cell.probability is None:
        return result.cell.rate_text
    return percent(result.cell.probability, decimals)


def mean_and_std(result: CellResult) -> str:
    """Write the metric, with its standard deviation if there were several trials."""
    metric = result.metric
    spread = f" ± {metric.shown(result.std)}" if len(result.runs) > 1 else ""
    return f"{metric.shown(result.mean)}{spread}"


def listed(sentences: Iterable[str], width: int = 100) -> list[str]:
    """Write sentences as the items of a list, with lines of at most so many characters.

    >>> listed(["One.", "A sentence of two lines."], width=20)
    ['- One.', '- A sentence of two', '  lines.']
    """
    look: dict[str, Any] = {"initial_indent": "- ", "subsequent_indent": "  "}
    look |= {"break_long_words": False, "break_on_hyphens": False}
    return [line for text in sentences for line in textwrap.wrap(text, width, **look)]


def bits_together(faults: Iterable[str]) -> list[str]:
    """Name fault models briefly: neighbouring bits of one model as a range.

    >>> bits_together(["random", "bit_flip 0", "bit_flip 1", "bit_flip 2", "bit_flip 7"])
    ['random', 'bit_flip 0 to 2', 'bit_flip 7']
    """
    runs: list[tuple[str, list[int]]] = []
    for fault in faults:
        model, _, bit = fault.rpartition(" ")
        if not (model and bit.isdecimal()):
            runs.append((fault, []))
        elif runs and runs[-1][0] == model and runs[-1][1][-1:] == [int(bit) - 1]:
            runs[-1][1].append(int(bit))
        else:
            runs.append((model, [int(bit)]))
    return [
        f"{name} {bits[0]} to {bits[-1]}" if len(bits) > 1 else " ".join([name, *map(str, bits)])
        for name, bits in runs
    ]


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows with the same keys as CSV; a list of names becomes one field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(map(_field, row.values()))
    return text.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, float):
        return ten_digits(value)
    return inert(";".join(value) if isinstance(value, list) else value)
