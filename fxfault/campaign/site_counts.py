"""What the trials that struck one site alone counted at it, all settings together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxfault.campaign.analysis import Table
from fxfault.campaign.study import Cell

_COUNTED = ("samples", "sdc", "faults", "elements", "struck", "masked")


@dataclass(frozen=True)
class SiteCounts:
    """Sums over all trials in which a site was struck alone.

    Attributes:
        trials: how many.
        samples: that they evaluated.
        sdc: samples with another prediction than without faults.
        faults: elements that were hit.
        elements: elements that were exposed.
        struck: samples in which anything was hit.
        masked: struck samples that have the prediction that they have without faults.
    """

    trials: int
    samples: int
    sdc: int
    faults: int
    elements: int
    struck: int
    masked: int


def count_by_site(table: Table, cells: Sequence[Cell]) -> dict[str, SiteCounts]:
    """Add up the rows of the cells of single sites.

    >>> row = {"cell": [0, 0, 1], "samples": [9, 9, 9], "sdc": [1, 2, 4], "faults": [5, 6, 7],
    ...        "elements": [90, 90, 90], "struck": [3, 4, 5], "masked": [2, 2, 1]}
    >>> cells = [Cell.of(injection_type="random", probability=1.0, layers=layers)
    ...          for layers in (["stem"], None)]
    >>> count_by_site({name: np.array(values) for name, values in row.items()}, cells)
    {'stem': SiteCounts(trials=2, samples=18, sdc=3, faults=11, elements=180, struck=7, masked=4)}

    Args:
        table: the rows.
        cells: what the column `cell` counts.

    Returns:
        By name, of sites that have trials, in the order of the cells.
    """
    alone = [cell.layers[0] if cell.layers and len(cell.layers) == 1 else None for cell in cells]
    names = list(dict.fromkeys(name for name in alone if name is not None))
    # Those of no single site come last, and are left out.
    site_of_cell = np.array([len(names) if n is None else names.index(n) for n in alone], np.intp)
    sites = site_of_cell[table["cell"]]
    trials = np.bincount(sites, minlength=len(names))
    # float64 holds sums up to 2**53 exactly.
    sums = [np.bincount(sites, weights=table[n], minlength=len(names)) for n in _COUNTED]
    return {
        name: SiteCounts(int(trials[i]), *(int(column[i]) for column in sums))
        for i, name in enumerate(names)
        if trials[i]
    }
