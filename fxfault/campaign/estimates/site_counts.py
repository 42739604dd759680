"""Counts of the trials that struck one site alone, over all settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxfault.campaign.estimates.summary import Table
from fxfault.campaign.studies.cell import Cell

_COUNTED = ("samples", "sdc", "faults", "elements", "struck", "masked", "due")


@dataclass(frozen=True)
class SiteCounts:
    """Sums over all trials in which a site was struck alone.

    Attributes:
        trials: number of trials.
        samples: samples evaluated.
        sdc: samples whose prediction or value faults changed; None if the metric cannot tell.
        faults: elements hit.
        elements: elements exposed.
        struck: samples in which any element was hit.
        masked: struck samples that kept their prediction or value; None if the metric cannot tell.
        due: samples without a prediction or value, as their scores are not finite.
    """

    trials: int
    samples: int
    sdc: int | None
    faults: int
    elements: int
    struck: int
    masked: int | None
    due: int


def count_by_site(table: Table, cells: Sequence[Cell]) -> dict[str, SiteCounts]:
    """Add up the rows of the cells that strike a single site.

    >>> row = {"cell": [0, 0, 1], "samples": [9, 9, 9], "sdc": [1, 2, 4], "faults": [5, 6, 7],
    ...        "elements": [90, 90, 90], "struck": [3, 4, 5], "masked": [2, 2, 1],
    ...        "due": [0, 1, 3]}
    >>> cells = [Cell.of(injection_type="random", probability=1.0, layers=layers)
    ...          for layers in (["stem"], None)]
    >>> count_by_site({name: np.array(values) for name, values in row.items()}, cells)
    {'stem': SiteCounts(trials=2, samples=18, sdc=3, faults=11, elements=180, struck=7, masked=4, \
due=1)}

    Args:
        table: the rows.
        cells: the cells that the column `cell` indexes.

    Returns:
        Counts by name of the site, for sites that have trials, in the order of the cells.
    """
    alone = [cell.single_site for cell in cells]
    names = list(dict.fromkeys(name for name in alone if name is not None))
    # Cells of several sites get the last index, which is left out.
    site_of_cell = np.array([len(names) if n is None else names.index(n) for n in alone], np.intp)
    sites = site_of_cell[table["cell"]]
    trials = np.bincount(sites, minlength=len(names))
    # float64 holds sums up to 2**53 exactly.
    sums = [np.bincount(sites, weights=table[n], minlength=len(names)) for n in _COUNTED]
    return {
        name: SiteCounts(int(trials[i]), *(_whole(column[i]) for column in sums))
        for i, name in enumerate(names)
        if trials[i]
    }


def _whole(value: float) -> Any:
    return None if np.isnan(value) else int(value)
