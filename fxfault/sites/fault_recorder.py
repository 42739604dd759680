"""Collects every hit of some forwards, for the list of faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fxfault.errors import SiteError
from fxfault.sites.fault_list import ACTIVATIONS, CODES, HIT, FaultList, Place

if TYPE_CHECKING:
    import numpy.typing as npt

    Columns = dict[str, npt.NDArray[Any]]

UNKNOWN = -1
"""In place of bits that are not known, or that a fault model does not have."""

MOST_HITS = 50_000_000
"""Hits of one list; each takes about 100 bytes of memory."""


class _Part(NamedTuple):
    """Hits of one fault in one call of a site, and what they share."""

    site: int
    place: Place
    call: int
    fault: int
    label: str
    columns: Columns


class FaultRecorder:
    """Collects hits, one strike after the other; see `FaultSites.recording`."""

    def __init__(self, most: int = MOST_HITS) -> None:
        """Start an empty collection of at most `most` hits."""
        self.most = most
        self._hits = 0
        self._parts: list[_Part] = []

    def add(
        self, site: int, place: Place, call: int, fault: int, label: str, columns: Columns
    ) -> None:
        """Add hits of one fault in one call of a site.

        Args:
            site: index of the site.
            place: what the list says of the site.
            call: which call of the site in its forward this is.
            fault: number of the fault, which orders the hits of one element.
            label: the fault model.
            columns: arrays of one length: `sample`, `element`, `bits`, `mask`, and after a forward
                the codes and values.

        Raises:
            SiteError: there are too many hits.
        """
        self._hits += len(columns["element"])
        if self._hits > self.most:
            raise SiteError(
                f"list of faults: more than {self.most:,} hits, which is the most of one list; "
                "list fewer samples, or a lower rate"
            )
        self._parts.append(_Part(site, place, call, fault, label, columns))

    def listing(self) -> FaultList:
        """Return all hits so far, in the order of sites, calls, samples and elements."""
        places = list(dict.fromkeys(part.place for part in self._parts))
        labels = list(dict.fromkeys(part.label for part in self._parts))
        tables = [
            {
                **part.columns,
                "place": _same(places.index(part.place), part),
                "call": _same(part.call, part),
                "fault": _same(labels.index(part.label), part),
                "site": _same(part.site, part),
                "order": _same(part.fault, part),
            }
            for part in self._parts
        ]
        names = [*tables[0]] if tables else [*HIT, "site", "order", *CODES]
        joined: Columns = {
            name: np.concatenate([table[name] for table in tables] or [np.empty(0, np.int64)])
            for name in names
        }
        keys = ("order", "element", "sample", "call", "site")  # The last one counts most.
        order = np.lexsort([joined[key] for key in keys])
        # Each forward meets the same fault of a parameter again.
        again = np.ones(len(order), bool)
        again[:1] = False
        for key in keys:
            again[1:] &= joined[key][order[1:]] == joined[key][order[:-1]]
        parameters = np.array([place.memory != ACTIVATIONS for place in places], bool)
        order = order[~(again & parameters[joined["place"][order]])]
        kept = [name for name in (*HIT, *CODES) if name in joined]
        return FaultList(tuple(places), tuple(labels), {name: joined[name][order] for name in kept})


def _same(value: int, part: _Part) -> npt.NDArray[np.int64]:
    return np.full(len(part.columns["element"]), value, np.int64)
