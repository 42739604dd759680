"""Columns of a heat map that show the faults of other columns again.

A flip of the most significant bit is a flip of that bit: a study that has both draws the same
faults twice, and its map would show the same numbers twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fxfault.campaign.estimates.ranking import HeatMap

_BY_BIT = "bit_flip"


@dataclass(frozen=True)
class Distinct:
    """A heat map whose columns are different faults.

    Attributes:
        map: the map without repeated columns.
        left_out: what each column that was left out is, by its name.
        top: the column of the most significant bit in each row, as pairs of row and column; only if
            `msb_flip` was left out.
    """

    map: HeatMap
    left_out: Mapping[str, str]
    top: tuple[tuple[int, int], ...] = ()

    @property
    def note(self) -> str:
        """A sentence on what was left out; empty if nothing was."""
        named = [f"{fault} is {what}" for fault, what in self.left_out.items()]
        return f"Not shown twice: {'; '.join(named)}." if named else ""


def without_repeats(found: HeatMap, widths: Mapping[str, int | None]) -> Distinct:
    """Leave out `msb_flip` and `lsb_flip` where the map has the bits that they flip.

    A column is left out only if it equals, at every site, the column of that bit.

    >>> values = np.array([[9.0, 1.0, 9.0], [4.0, 2.0, 4.0]])
    >>> found = HeatMap(("a", "b"), ("msb_flip", "bit_flip 0", "bit_flip 1"), values, ("1%",))
    >>> distinct = without_repeats(found, {"a": 2, "b": 2})
    >>> distinct.map.faults, distinct.top
    (('bit_flip 0', 'bit_flip 1'), ((0, 1), (1, 1)))
    >>> without_repeats(found, {}).map.faults
    ('msb_flip', 'bit_flip 0', 'bit_flip 1')

    Args:
        found: the map.
        widths: bit width of each site by name; a site without one keeps its columns.
    """
    tops = [width - 1 if (width := widths.get(site)) else None for site in found.sites]
    candidates: dict[str, tuple[list[int | None], str]] = {
        "msb_flip": (tops, "the flip of the most significant bit"),
        "lsb_flip": ([0] * len(found.sites), "bit_flip 0"),
    }
    left_out = {
        fault: what
        for fault, (bits, what) in candidates.items()
        if fault in found.faults and _equals(found, fault, bits)
    }
    if not left_out:
        return Distinct(found, {})
    kept = [index for index, fault in enumerate(found.faults) if fault not in left_out]
    faults = tuple(found.faults[index] for index in kept)
    top = tuple(
        (row, faults.index(f"{_BY_BIT} {bit}"))
        for row, bit in enumerate(tops)
        if "msb_flip" in left_out and f"{_BY_BIT} {bit}" in faults
    )
    return Distinct(replace(found, faults=faults, values=found.values[:, kept]), left_out, top)


def _equals(found: HeatMap, fault: str, bits: list[int | None]) -> bool:
    """Whether a column has the values of a bit at each site, NaN where that has NaN."""
    values = found.values[:, found.faults.index(fault)]
    for row, bit in enumerate(bits):
        name = f"{_BY_BIT} {bit}"
        other = found.values[row, found.faults.index(name)] if name in found.faults else np.nan
        if not (values[row] == other or (np.isnan(values[row]) and np.isnan(other))):
            return False
    return True
