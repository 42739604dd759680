"""Select sites by their names and indices."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

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
    (" (a number counts sites from 0; the site named '3' is number 1)", '')
    """
    if not isinstance(key, int) or str(key) not in names:
        return ""
    place = list(names).index(str(key))
    return f" (a number counts sites from 0; the site named '{key}' is number {place})"


def listed(names: Sequence[str]) -> str:
    """List the first sites, as the end of a message.

    >>> listed(["stem", "head"])
    'the 2 sites are: 0 stem, 1 head'
    """
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:12]))
    return f"the {len(names)} sites are: {shown}{more}"
