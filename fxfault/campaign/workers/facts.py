"""What a driver is told of a network that only workers build.

It stands apart from the trial runner: a driver that does not import Brevitas starts seconds
earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.study import Study
from fxfault.errors import SiteError


@dataclass(frozen=True)
class Facts:
    """What only a network that was built can tell: plain values.

    Attributes:
        sites: names, in the order of execution.
        bit_widths: of each site whose width is constant.
        fingerprint: of study, code, data and networks; see `fxfault.campaign.records.fingerprint`.
        background: what a report tells beside the rows; see `fxfault.campaign.records.background`.
        never_called: names of sites that no forward reaches, by checkpoint.
    """

    sites: Sequence[str]
    bit_widths: Mapping[str, int]
    fingerprint: Mapping[str, Any]
    background: Mapping[str, Any]
    never_called: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def cells(self, study: Study) -> tuple[Cell, ...]:
        """The cells of a study but for those that strike only sites that are never called.

        Raises:
            SiteError: a pattern or index of `layers` matches no site, or no cell is left.
        """
        cells = study.cells(self.sites, self.bit_widths)
        kept = tuple(
            cell for cell in cells if not strikes_nothing(cell, self.never_called, self.sites)
        )
        if not kept:
            names = dict.fromkeys(name for quiet in self.never_called.values() for name in quiet)
            raise SiteError(
                f"never called in this evaluation: {', '.join(names)}; no fault can strike there, "
                "so the study has no cell: give other axes.layers"
            )
        return kept


def strikes_nothing(
    cell: Cell, never_called: Mapping[str, Sequence[str]], sites: Sequence[str]
) -> bool:
    """Whether none of a cell's sites is ever called with its checkpoint."""
    quiet = never_called.get(str(cell.checkpoint), ())
    return set(sites if cell.layers is None else cell.layers) <= set(quiet)
