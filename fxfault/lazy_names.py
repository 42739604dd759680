"""Import the names of a package on first use, so that importing the package stays cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fxfault.errors import FxFaultError


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], parts: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package.

    `dir` of the package has its public names, and no other.

    >>> getattr_, dir_ = lazy_names("fxfault.faults", {"fxfault.faults.codes": ["Word"]})
    >>> getattr_("Word").__name__, dir_()
    ('Word', ['Word'])

    Args:
        package: the package's `__name__`.
        homes: the names it exports, by the module that defines them.
        parts: names of its public modules.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in parts:
            return _part(package, name)
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*home_of, *parts})

    return get, names


def _part(package: str, name: str) -> Any:
    try:
        return importlib.import_module(f"{package}.{name}")
    except (ImportError, FxFaultError) as error:
        # What looks at all names (help, an editor) expects no other error.
        raise AttributeError(f"{package}.{name} cannot be imported: {error}") from error
