"""The options of how results look: the size and style of pictures, and what counts as tolerable."""

from __future__ import annotations

import argparse
from contextlib import suppress

from fxfault.cli.terminal import arguments


def figure_size(text: str) -> tuple[float, float]:
    """Read the width and height of pictures, in inches.

    >>> figure_size("3.5x2.4")
    (3.5, 2.4)
    >>> figure_size("900x600")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: '900x600' is not a width and a height in inches, each from 1.5 to \
40, such as 3.5x2.4
    """
    parts = text.lower().split("x")
    with suppress(ValueError):
        size = tuple(map(float, parts))
        if len(size) == 2 and all(1.5 <= side <= 40 for side in size):
            return size
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a width and a height in inches, each from 1.5 to 40, such as 3.5x2.4"
    )


def add_tolerance(group: argparse._ActionsContainer) -> None:
    """Add `--tolerance`."""
    text = (
        "the largest cost that the verdict calls tolerable, in percentage points of accuracy or in "
        "the unit of the metric (default: 1 point, or 1 %% of the golden value)"
    )
    group.add_argument("--tolerance", type=arguments.tolerance, metavar="AMOUNT", help=text)


def add_look(group: argparse._ActionsContainer) -> None:
    """Add the options of how pictures look."""
    from fxfault.results.pictures.drawing import STYLES

    text = (
        "screen, or paper: one column (3.5 inches), 8-point serif type, vectors only "
        "(default: screen)"
    )
    group.add_argument("--style", choices=STYLES, default="screen", help=text)
    text = (
        "width and height of each picture in inches, such as 7x3 (default: what suits its "
        "content); a drawing of the network takes only the width"
    )
    group.add_argument("--figure-size", type=figure_size, metavar="WxH", help=text)
