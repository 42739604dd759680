"""Select sites by their names and indices."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from fxfault.errors import SiteError
from fxfault.messages import nearest


def indices_of(
    layers: str | int | Iterable[str | int] | None,
    names: Sequence[str],
    where: str = "layers",
    words: Sequence[str] = (),
) -> list[int]:
    """Return the indices of the sites that patterns and indices select; None selects all.

    >>> indices_of(["layer1.*", 0], ["stem", "layer1.0", "layer1.1", "head"])
    [0, 1, 2]

    Args:
        layers: shell-style patterns and indices.
        names: names of all sites, in the order of execution.
        where: what the message calls `layers`.
        words: other texts that are allowed there, which the message suggests.

    Raises:
        SiteError: a pattern or index matches no site.
    """
    places = range(len(names))
    if layers is None:
        return list(places)
    chosen: set[int] = set()
    for item in [layers] if isinstance(layers, (str, int)) else layers:
        if isinstance(item, int):
            found = [item] if item in places else []
        else:
            found = [i for i in places if fnmatch.fnmatchcase(names[i], item)]
        if not found:
            hint = same_name(item, names) or nearest(str(item), [*words, *names])
            raise SiteError(f"{where}: {item!r} matches no site{hint}; {listed(names)}")
        chosen.update(found)
    return sorted(chosen)


def same_name(key: str | int, names: Sequence[str]) -> str:
    """Say that a number is no name, if a site has it as its name; else empty.

    >>> same_name(3, ["0", "3"]), same_name(3, ["stem", "head"])
    (" (a number counts sites from 0; '3' in quotes is the name of number 1)", '')
    """
    if not isinstance(key, int) or str(key) not in names:
        return ""
    place = list(names).index(str(key))
    return f" (a number counts sites from 0; '{key}' in quotes is the name of number {place})"


def number_notes(layers: Any, names: Sequence[str]) -> list[str]:
    """Say which site a number selects, if another site has the number as its name.

    >>> print(*number_notes([0, [1]], ["1", "3"]))
    layers: 1 is the site '3', as a number counts sites from 0; in quotes, '1' is the site of \
that name

    Args:
        layers: patterns and indices, in lists of any depth, or None.
        names: names of all sites, in the order of execution.
    """
    if isinstance(layers, (list, tuple)):
        return [note for item in layers for note in number_notes(item, names)]
    if not isinstance(layers, int) or layers not in range(len(names)):
        return []
    key, found = str(layers), names[layers]
    if key not in names or found == key:
        return []
    return [
        f"layers: {key} is the site {found!r}, as a number counts sites from 0; in quotes, "
        f"{key!r} is the site of that name"
    ]


def listed(names: Sequence[str]) -> str:
    """List the first sites, as the end of a message.

    >>> listed(["stem", "head"])
    'the 2 sites are: 0 stem, 1 head'
    """
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:12]))
    return f"the {len(names)} sites are: {shown}{more}"
