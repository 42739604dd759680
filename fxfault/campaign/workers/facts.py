"""What workers tell the driver of the network, which only they build.

This module does not import the trial runner: without Brevitas, the driver starts seconds earlier.
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
    """What is only known once a network is built, in plain values.

    Attributes:
        sites: the sites' names, in the order of execution
        bit_widths: the bit width of each site whose width is constant, by name
        memories: the memory of each site that is not an activation, by name
        fingerprint: the fingerprint of study, code, data and networks; see
            `fxfault.campaign.records.fingerprint`
        background: what a report says beside the rows; see `fxfault.campaign.records.background`
        never_called: the names of the sites that no forward reaches, by checkpoint
    """

    sites: Sequence[str]
    bit_widths: Mapping[str, int]
    fingerprint: Mapping[str, Any]
    background: Mapping[str, Any]
    never_called: Mapping[str, Sequence[str]] = field(default_factory=dict)
    memories: Mapping[str, str] = field(default_factory=dict)

    def cells(self, study: Study) -> tuple[Cell, ...]:
        """List the cells of a study, without those that strike only sites never called.

        Raises:
            SiteError: a pattern or index of `layers` matches no site, or no cell is left
        """
        cells = study.cells(self.sites, self.bit_widths, self.memories)
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
    """Whether all sites of a cell are never called with its checkpoint."""
    quiet = never_called.get(str(cell.checkpoint), ())
    return set(sites if cell.layers is None else cell.layers) <= set(quiet)
