"""Read the options of a built-in data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfault.errors import DataError
from fxfault.messages import nearest


def read_options(
    name: str, kwargs: Mapping[str, Any], defaults: Mapping[str, bool | int | None]
) -> dict[str, Any]:
    """Check options and fill in the defaults.

    An option takes a bool if its default is one, and an integer of at least 1 if its default is an
    integer. `image_size` takes a side or a height and a width, in pixels, and becomes a pair.

    Args:
        name: name of the data set, for the messages.
        kwargs: options from the user.
        defaults: all options with their defaults.

    Raises:
        DataError: a key is unknown, or a value is not allowed.

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
    is_allowed = isinstance(value, bool) if isinstance(default, bool) else is_positive(value)
    if not is_allowed:
        kind = "true or false" if isinstance(default, bool) else "an integer of at least 1"
        raise DataError(f"data set {name!r}: {key} is {value!r}; it must be {kind}")
    return value


def _image_size(name: str, value: Any) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    if is_size(sides):
        return sides[0], sides[1]
    raise DataError(
        f"data set {name!r}: image_size is {value!r}; it must be a side in pixels, such as 32, "
        f"or a height and a width, such as [32, 48]"
    )


def is_positive(value: object) -> bool:
    """Whether a value is an integer of at least 1, and not `True`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_size(value: object) -> bool:
    """Whether a value is a height and a width in pixels."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_positive, value))
