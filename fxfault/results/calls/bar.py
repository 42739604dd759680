"""A progress bar, on a terminal or in a notebook."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, where stderr is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def can_show_bar() -> bool:
    """Whether somebody looks at a bar: stderr is a terminal, or this is a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def bar_type() -> Any:
    """The class of tqdm for this place; None if tqdm is not installed.

    In a notebook it is the widget. Without ipywidgets, tqdm would warn and show text, so it is
    asked for text at once.
    """
    if importlib.util.find_spec("tqdm") is None:
        return None
    if in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm
    else:
        from tqdm.std import tqdm
    return tqdm


def new_bar(total: int, unit: str = " samples") -> Any:
    """Show a bar of so many units, the name of which has a space in front; None if nobody looks."""
    kind = bar_type() if can_show_bar() else None
    if kind is None:
        return None
    scaled = unit == " samples"
    return kind(total=total, unit=unit, unit_scale=scaled, leave=False, dynamic_ncols=True)
