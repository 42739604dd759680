"""Run a study: hand trials out, keep their rows, go on where an earlier run ended.

>>> import tempfile
>>> small = {**Study.from_yaml("digits_study").to_dict(), "stop": None, "trials": 2}
>>> small["axes"] = {"layers": ["all"], "probability": [1.0], "injection_type": ["random"]}
>>> with tempfile.TemporaryDirectory() as folder:
...     progress = run_study(Study.from_dict(small), f"{folder}/study.sqlite")
>>> progress.finished_cells, progress.trials
(1, 2)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fxfault.campaign import fingerprint
from fxfault.campaign.agenda import Agenda
from fxfault.campaign.engines import Engine, OnNote, make_engine
from fxfault.campaign.errors import StoreError
from fxfault.campaign.plan import Plan
from fxfault.campaign.rows import TrialRow
from fxfault.campaign.store import Store, is_new
from fxfault.campaign.study import Cell, Study
from fxfault.files import expanded
from fxfault.sources import Sources

_LOGGER = logging.getLogger(__name__)

# Rows wait so long for others to be written with them: what a killed driver may cost.
_WRITE_EVERY = 0.1  # seconds

# Trials are handed out in batches of about this length, which is what a killed worker may cost.
_BATCH = 0.25  # seconds
_LARGEST_BATCH = 64  # trials


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        cells: all cells of the study.
        finished_cells: how many have all their trials.
        trials: finished and stored trials, those of earlier runs among them.
        wanted: trials that the study will have at least; the stop rule may ask for more.
        earlier: trials that were in the store before this run.
        seconds: since trials began to be handed out.
        rows: what was stored since the last call.
    """

    cells: tuple[Cell, ...]
    finished_cells: int
    trials: int
    wanted: int
    earlier: int
    seconds: float
    rows: tuple[TrialRow, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether all cells have all their trials."""
        return self.finished_cells == len(self.cells)

    @property
    def rate(self) -> float:
        """Trials a second in this run; 0 before the first."""
        return (self.trials - self.earlier) / self.seconds if self.seconds else 0.0


OnProgress = Callable[[Progress], None]
"""Called when the study starts, and each time that rows were stored."""


def run_study(
    study: Study,
    store_path: str | Path,
    *,
    engine: str | Engine = "local",
    workers: int | None = None,
    trial_timeout: float | None = None,
    threads: int | None = None,
    device: str = "auto",
    incremental: bool = True,
    freeze: bool = True,
    compile: bool = False,
    cache_memory: int | None = None,
    verify: float | None = None,
    on_progress: OnProgress | None = None,
    on_note: OnNote = _LOGGER.info,
) -> Progress:
    """Run a study, or what is missing of one that is in the store already.

    The rows that the store ends with do not depend on the engine, on the number of workers, or on
    how often the study was interrupted, but for their times. An interrupt (Ctrl-C) ends it in good
    order: what is finished is stored, and the next call goes on.

    Args:
        study: what to measure. One that differs from that of the store only in its numbers of
            trials, or in more values on its axes, takes that one's place; all trials are kept.
        store_path: file of the store; it is made where there is none.
        engine: `local`, `processes` or `ray`, or an engine of `make_engine`, which is closed.
        workers: see `make_engine`; only where `engine` is a name.
        trial_timeout: as `workers`.
        threads: of torch in each worker, by default 1; `local` leaves torch as it is.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        incremental: do again only what faults change; see `fxfault.incremental`.
        freeze: quantise weights once.
        compile: run compiled code where that is faster; see `fxfault.compiled_runner`.
        cache_memory: bytes for what incremental runs start from, of all workers on a machine (or
            a GPU) together; default: a quarter of what is free.
        verify: share of the batches that are run in full and without compiled code, too, in
            percent; where predictions differ, the study ends. By default one batch of each cell,
            as far as that takes at most 2 % of the time; 0 verifies none.
        on_progress: called when the study starts, and each time that rows were stored.
        on_note: called with what a user should know, such as why nothing is compiled.

    Returns:
        How far the study is when it ends.

    Raises:
        StoreError: the store cannot be used, or does not fit the study, network, data or code.
        ConfigError: options do not go together.
        FxFaultError: something that the study names cannot be used, or a trial cannot be run.
    """
    # Before code of the user's runs, which may go to another folder.
    folder = os.getcwd()
    path = Path(folder, expanded(store_path))
    plan = Plan(
        study=study.to_dict(),
        device=device,
        threads=threads,
        incremental=incremental,
        freeze=freeze,
        compile=compile,
        cache_memory=cache_memory,
        verify=verify,
        folder=folder,
    )
    made = engine
    if isinstance(made, str):
        made = make_engine(made, workers=workers, trial_timeout=trial_timeout)
    store = None
    try:
        if not is_new(store_path):
            store = Store.open(store_path, write=True)
            # At once, as far as it can be told without a network.
            _check_fits(store, {"study": fingerprint.of_study(study)})
        facts = made.start(plan, on_note)
        cells = facts.cells(study)
        if store is None:
            store = Store.create(path, study.to_dict(), facts.fingerprint)
            store.note({**facts.background, "begun": _now()})
        else:
            _check_fits(store, facts.fingerprint)
            _extend(store, study, facts.fingerprint, on_note)
            store.note(facts.background)
        sources = Sources.of(Path(folder), facts.fingerprint["networks"])
        return _Run(study, cells, store, sources, made, on_progress).to_the_end()
    finally:
        try:
            made.close()
        finally:
            if store is not None:
                store.close()


def _now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _check_fits(store: Store, now: Mapping[str, Any]) -> None:
    lines = fingerprint.conflicts(store.fingerprint, now)
    if lines:
        raise StoreError(
            f"{store.path} holds trials of something else, {fingerprint.refusal(lines)}; name "
            "another store, or go back to what this one was made with (an axis may only gain "
            "values; numbers of trials may change)"
        )


def _extend(store: Store, study: Study, now: Mapping[str, Any], on_note: OnNote) -> None:
    """Let a store hold a study that asks for other cells or other numbers of trials."""
    lines = fingerprint.differences(store.fingerprint.get("study", {}), now["study"])
    if lines:
        store.extend(study.to_dict(), now)
        text = fingerprint.refusal(lines)
        on_note(f"{store.path} goes on with another study, {text}; all of its trials are kept")


class _Run:
    """One run of a study, from its store to its store."""

    def __init__(
        self,
        study: Study,
        cells: tuple[Cell, ...],
        store: Store,
        sources: Sources,
        engine: Engine,
        on_progress: OnProgress | None,
    ) -> None:
        self.cells, self.store, self.sources = cells, store, sources
        self.engine, self.on_progress = engine, on_progress
        store.register(cell.key for cell in self.cells)
        self.agenda = Agenda(study, self.cells, store.rows)
        self.earlier = self.agenda.trials
        self.began = self.written = time.perf_counter()
        self.pace = _BATCH  # Seconds a trial: the first batches have one each.
        self.unwritten: list[TrialRow] = []

    def to_the_end(self) -> Progress:
        """Run all trials that are missing."""
        self._tell(())
        try:
            while not self.agenda.done:
                self._hand_out()
                self._take(self.engine.receive())
        finally:
            # Of an interrupted run too. A store that failed just now may fail again.
            self._write()
        # Whatever happened since the last row was written.
        self.store.check()
        self.sources.check()
        return self._progress(())

    def _hand_out(self) -> None:
        size = max(1, min(_LARGEST_BATCH, int(_BATCH / self.pace)))
        while self.agenda.running < self.engine.slots * size:
            batch = self.agenda.next(size)
            if batch is None:
                return
            self.engine.submit(batch)

    def _take(self, rows: Sequence[TrialRow]) -> None:
        for row in rows:
            if self.agenda.take(row):
                self.unwritten.append(row)
                self.pace += (max(row.seconds, 1e-6) - self.pace) / 8
        if time.perf_counter() - self.written >= _WRITE_EVERY or self.agenda.done:
            self._write()

    def _write(self) -> None:
        if self.unwritten:
            rows, self.unwritten = tuple(self.unwritten), []
            self.store.add(rows)
            self._tell(rows)
            self.sources.check()  # Afterwards: these rows are of what was loaded.
        self.written = time.perf_counter()

    def _tell(self, rows: tuple[TrialRow, ...]) -> None:
        if self.on_progress is not None:
            self.on_progress(self._progress(rows))

    def _progress(self, rows: tuple[TrialRow, ...]) -> Progress:
        return Progress(
            cells=self.cells,
            finished_cells=self.agenda.finished_cells,
            trials=self.agenda.trials,
            wanted=self.agenda.wanted,
            earlier=self.earlier,
            seconds=time.perf_counter() - self.began,
            rows=rows,
        )
