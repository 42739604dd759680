"""Read the options of a built-in data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfault.errors import DataError
from fxfault.messages import nearest


def read_options(
    name: str, kwargs: Mapping[str, Any], defaults: Mapping[str, bool | int | None]
) -> dict[str, Any]:
    """Fill in defaults and refuse what the data set does not know.

    A default that is a bool takes a bool and an int takes an integer of at least 1. The key
    `image_size` takes a side in pixels or a height and a width, and becomes a pair.

    Args:
        name: of the data set, for the messages.
        kwargs: what the user gave.
        defaults: every option and its default.

    Raises:
        DataError: an unknown key, or a value that is not of the kind.

    Example:
        >>> read_options("fake", {"image_size": 8}, {"size": 100, "image_size": 32})
        {'size': 100, 'image_size': (8, 8)}
        >>> read_options("fake", {"siez": 8}, {"size": 100, "image_size": 32})
        Traceback (most recent call last):
        fxfault.errors.DataError: data set 'fake': kwargs has an unknown key 'siez' (did you \
mean 'size'?); allowed: size, image_size
    """
    for key in kwargs:
        if key not in defaults:
            allowed = ", ".join(defaults) or "none, this data set has no options"
            raise DataError(
                f"data set {name!r}: kwargs has an unknown key {key!r}"
                f"{nearest(str(key), defaults)}; allowed: {allowed}"
            )
    options = {**defaults, **kwargs}
    return {key: _read(name, key, value, defaults[key]) for key, value in options.items()}


def _read(name: str, key: str, value: Any, default: bool | int | None) -> Any:
    if key == "image_size":
        return None if value is None and default is None else _image_size(name, value)
    is_kept = isinstance(value, bool) if isinstance(default, bool) else _is_positive(value)
    if not is_kept:
        kind = "true or false" if isinstance(default, bool) else "an integer of at least 1"
        raise DataError(f"data set {name!r}: {key} is {value!r}; it must be {kind}")
    return value


def _image_size(name: str, value: Any) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    if (
        isinstance(sides, (list, tuple))
        and len(sides) == 2
        and all(_is_positive(side) for side in sides)
    ):
        return sides[0], sides[1]
    raise DataError(
        f"data set {name!r}: image_size is {value!r}; it must be a side in pixels, such as 32, "
        f"or a height and a width, such as [32, 48]"
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
