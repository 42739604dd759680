"""Lists every fault of one trial of a study, by running the trial again.

>>> import tempfile
>>> from fxfault.campaign.driver import run_study
>>> from fxfault.campaign.studies.study import Study
>>> small = {**Study.from_yaml("digits_study").to_dict(), "stop": None, "trials": 1}
>>> small["axes"] = {"layers": ["classifier.2"], "num_faults": [1], "injection_type": ["bit_flip"]}
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = run_study(Study.from_dict(small), f"{folder}/study.sqlite")
...     found = list_trial(f"{folder}/study.sqlite", trial=0)
>>> found.listing, found.is_stored
(FaultList(500 hits at 1 site, with codes), True)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fxfault.campaign.driver import check_fits
from fxfault.campaign.records import fingerprint
from fxfault.campaign.records.store import Store
from fxfault.campaign.studies.cell import Cell, words_of
from fxfault.campaign.studies.study import Study
from fxfault.campaign.workers.plan import Plan
from fxfault.errors import StoreError
from fxfault.messages import and_more, got

if TYPE_CHECKING:
    from fxfault.evaluation.full.predictions import OnBatch, OnNote
    from fxfault.sites.fault_list import FaultList

_LOGGER = logging.getLogger(__name__)
_MOST_NAMED = 12


@dataclass(frozen=True)
class TrialFaults:
    """The faults of a trial.

    Attributes:
        cell: the cell of the trial.
        trial: its number.
        listing: every hit, with codes and values.
        is_stored: whether the store holds the trial; then its counts were compared.
    """

    cell: Cell
    trial: int
    listing: FaultList
    is_stored: bool


def list_trial(
    store_path: str | Path,
    cell: str | int | None = None,
    trial: int = 0,
    *,
    device: str = "auto",
    threads: int | None = None,
    on_start: Callable[[int], object] = lambda samples: None,
    on_batch: OnBatch | None = None,
    on_note: OnNote = _LOGGER.info,
) -> TrialFaults:
    """Run one trial of a study again, and list all of its faults.

    Args:
        store_path: the store's file, which is only read.
        cell: the cell: its number from 1, in the order of reports; its place, fault and rate as
            reports write them (`classifier.2 random 5%`); or its key. None takes the only one.
        trial: number of the trial. It need not be in the store yet.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: number of torch threads; None leaves torch as it is.
        on_start: called with the number of samples before the trial runs.
        on_batch: called with the number of samples done since the last call.
        on_note: called with notes for the user.

    Raises:
        StoreError: the store cannot be read; network, data or code are not those of its study; it
            has no such cell; or the trial has other counts than in the store.
        FxFaultError: something that the study names cannot be used.
    """
    with Store.open(store_path) as store:
        study = Study.from_dict(store.study, str(store_path))
        chosen = chosen_cell(store.path, store.settings(), cell)
        check_fits(store, {"study": fingerprint.of_study(study)})
        from fxfault.campaign.workers.trial_runner import TrialRunner

        plan = Plan(study=study.to_dict(), device=device, threads=threads, incremental=False)
        runner = TrialRunner(plan, on_note=on_note)
        check_fits(store, runner.facts().fingerprint)
        on_start(runner.samples)
        listing, row = runner.list_faults(chosen, trial, on_batch)
        stored = [known for known in store.rows(chosen.key) if known.trial == trial]
    for known in stored:
        if not known.same_counts(row):
            raise StoreError(
                f"{store_path}: trial {trial} of {words_of(chosen.key)} has other counts now "
                f"({row} instead of {known}), so its faults cannot be listed; the network does not "
                "compute the same each time, or on this device"
            )
    return TrialFaults(chosen, trial, listing, bool(stored))


def chosen_cell(store: Path, cells: Sequence[Cell], wanted: str | int | None) -> Cell:
    """Find a cell by its number from 1, its words or its key; None means the only cell.

    Args:
        store: the file of the store, for messages.
        cells: the cells of the store, in the order of reports.
        wanted: the number, the words or the key.

    Raises:
        StoreError: there is no such cell, or there are several.
    """
    named = [f"{number} {words_of(cell.key)}" for number, cell in enumerate(cells, start=1)]
    listed = f"its {len(cells)} cells are: {and_more(named, _MOST_NAMED)}"
    if wanted is None:
        if len(cells) == 1:
            return cells[0]
        raise StoreError(f"{store}: name one cell, by its number; {listed}")
    text = str(wanted)
    number = int(text) if text.isdecimal() and len(text) < 10 else 0
    if 1 <= number <= len(cells):
        return cells[number - 1]
    found = [cell for cell in cells if text in (cell.key, words_of(cell.key))]
    if len(found) == 1:
        return found[0]
    several = "several cells" if found else "no cell"
    raise StoreError(f"{store}: {several} {got(wanted).rpartition(' ')[0]}; {listed}")
