"""Run a study: hand out trials, store their rows, and continue an interrupted run.

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

from fxfault.campaign.records import fingerprint
from fxfault.campaign.records.connection import is_new
from fxfault.campaign.records.store import Store
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.labels import LABELS
from fxfault.campaign.studies.study import Study
from fxfault.campaign.trial_queue import TrialQueue
from fxfault.campaign.workers.engine import Engine
from fxfault.campaign.workers.engines import make_engine
from fxfault.campaign.workers.plan import Plan
from fxfault.errors import StoreError
from fxfault.evaluation.full.predictions import OnNote
from fxfault.evaluation.rows import TrialRow
from fxfault.files.access import expanded
from fxfault.files.sources import Sources
from fxfault.metrics.facts import ACCURACY, MetricFacts

_LOGGER = logging.getLogger(__name__)

# Rows wait this long to be written together; a killed driver may lose them.
_WRITE_EVERY = 0.1  # seconds

# A batch of trials takes about this long; a killed worker may lose one.
_BATCH = 0.25  # seconds
_LARGEST_BATCH = 64  # trials


@dataclass(frozen=True)
class Progress:
    """The progress of a study.

    Attributes:
        cells: all cells of the study.
        finished_cells: number of cells that have all their trials.
        trials: number of finished trials, including those of earlier runs.
        wanted: least number of trials of the whole study; the stop rule may ask for more.
        earlier: number of trials that were in the store before this run.
        seconds: time since the first trial was handed out.
        rows: rows stored since the last call.
        metric: what the metric is.
    """

    cells: tuple[Cell, ...]
    finished_cells: int
    trials: int
    wanted: int
    earlier: int
    seconds: float
    rows: tuple[TrialRow, ...] = ()
    metric: MetricFacts = ACCURACY

    @property
    def is_finished(self) -> bool:
        """Whether all cells have all their trials."""
        return self.finished_cells == len(self.cells)

    @property
    def rate(self) -> float:
        """Trials per second in this run; 0 before the first."""
        return (self.trials - self.earlier) / self.seconds if self.seconds else 0.0


OnProgress = Callable[[Progress], None]
"""Called when the study starts, and each time after rows were stored."""


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
    """Run a study, or the trials of it that the store lacks.

    Apart from their times, the final rows do not depend on the engine, the number of workers or
    the number of interruptions. An interrupt (Ctrl-C) ends the run in good order: finished trials
    are stored, and the next call continues.

    Args:
        study: what to measure. If it differs from the study of the store only in numbers of
            trials, in more values on its axes or in its labels, it replaces that study and keeps
            all trials.
        store_path: the store's file; created if it does not exist.
        engine: `local`, `processes` or `ray`, or an engine of `make_engine`, which is closed.
        workers: see `make_engine`; only if `engine` is a name.
        trial_timeout: see `make_engine`; only if `engine` is a name.
        threads: number of torch threads in each worker, by default 1; `local` leaves torch as it
            is.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        incremental: recompute only what faults change; see
            `fxfault.evaluation.incremental.runner`.
        freeze: quantise weights once.
        compile: run compiled code if faults strike most of the network; see
            `fxfault.evaluation.compiled_runner`.
        cache_memory: bytes for the cache of incremental runs, shared by all workers on a machine
            (or a GPU); default: a quarter of the free memory.
        verify: share of the batches to repeat in full and without compiled code, in percent; if
            predictions differ, the study ends. By default one batch of each cell, as long as that
            takes at most 2 % of the time; 0 verifies none.
        on_progress: called when the study starts, and each time after rows were stored.
        on_note: called with notes for the user, such as why nothing is compiled.

    Returns:
        The progress at the end of the run.

    Raises:
        StoreError: the store cannot be used, or does not fit the study, network, data or code.
        ConfigError: options contradict each other.
        FxFaultError: something that the study names cannot be used, or a trial fails.
    """
    # First of all, as the user's code may change the working directory.
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
            # Refuse early what can be refused without a network.
            check_fits(store, {"study": fingerprint.of_study(study)})
        facts = made.start(plan, on_note)
        cells = facts.cells(study)
        for note in study.number_notes(facts.sites, facts.memories):
            on_note(note)
        if store is None:
            store = Store.create(path, study.to_dict(), facts.fingerprint)
            store.note({**facts.background, "begun": _now()})
        else:
            check_fits(store, facts.fingerprint)
            _extend(store, study, facts.fingerprint, on_note)
            store.note(facts.background)
        sources = Sources.of(Path(folder), facts.fingerprint["networks"])
        return _Run(study, cells, store, sources, made, on_progress).run()
    finally:
        try:
            made.close()
        finally:
            if store is not None:
                store.close()


def _now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def check_fits(store: Store, now: Mapping[str, Any]) -> None:
    """Check that the trials of a store are of the present study, network, data and code.

    Args:
        store: the store.
        now: the present fingerprint, or the parts of it that are known so far.

    Raises:
        StoreError: they are not.
    """
    lines = fingerprint.conflicts(store.fingerprint, now)
    if lines:
        raise StoreError(
            f"{store.path} holds trials of something else, {fingerprint.refusal(lines)}; name "
            "another store, or go back to what this one was made with (an axis may only gain "
            "values; numbers of trials may change)"
        )


def _extend(store: Store, study: Study, now: Mapping[str, Any], on_note: OnNote) -> None:
    """Replace the study of a store by one with more cells or other numbers of trials."""
    lines = fingerprint.differences(store.fingerprint.get("study", {}), now["study"])
    if lines:
        store.extend(study.to_dict(), now)
        text = fingerprint.refusal(lines)
        on_note(f"{store.path} goes on with another study, {text}; all of its trials are kept")
    elif any(store.study.get(key) != getattr(study.labels, key) for key in LABELS):
        store.extend(study.to_dict(), store.fingerprint)


class _Run:
    """One run of a study."""

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
        facts = store.fingerprint.get("metric")
        self.metric = ACCURACY if facts is None else MetricFacts.from_dict(facts)
        self.engine, self.on_progress = engine, on_progress
        store.register(cell.key for cell in self.cells)
        there = store.counts()
        self.queue = TrialQueue(
            study, self.cells, lambda key: store.each(key) if there[key] else ()
        )
        self.earlier = self.queue.trials
        self.began = self.written = time.perf_counter()
        self.pace = _BATCH  # Seconds per trial; the first batches have one trial each.
        self.unwritten: list[TrialRow] = []

    def run(self) -> Progress:
        """Run all missing trials."""
        self._tell(())
        try:
            while not self.queue.done:
                self._hand_out()
                self._take(self.engine.receive(self._time_to_write()))
        finally:
            # Also if the run is interrupted.
            self._write()
        # Changes since the last row was written.
        self.store.check()
        self.sources.check()
        return self._progress(())

    def _hand_out(self) -> None:
        size = max(1, min(_LARGEST_BATCH, int(_BATCH / self.pace)))
        while self.queue.running < self.engine.slots * size:
            batch = self.queue.next(size)
            if batch is None:
                return
            self.engine.submit(batch)

    def _take(self, rows: Sequence[TrialRow]) -> None:
        for row in rows:
            if self.queue.take(row):
                self.unwritten.append(row)
                self.pace += (max(row.seconds, 1e-6) - self.pace) / 8
        if time.perf_counter() - self.written >= _WRITE_EVERY or self.queue.done:
            self._write()

    def _time_to_write(self) -> float | None:
        """Seconds until finished rows are to be written; None if there are none."""
        if not self.unwritten:
            return None
        return max(0.0, self.written + _WRITE_EVERY - time.perf_counter())

    def _write(self) -> None:
        if self.unwritten:
            rows, self.unwritten = tuple(self.unwritten), []
            self.store.add(rows)
            self._tell(rows)
            self.sources.check()  # Only now: these rows come from the weights that were loaded.
        self.written = time.perf_counter()

    def _tell(self, rows: tuple[TrialRow, ...]) -> None:
        if self.on_progress is not None:
            self.on_progress(self._progress(rows))

    def _progress(self, rows: tuple[TrialRow, ...]) -> Progress:
        return Progress(
            cells=self.cells,
            finished_cells=self.queue.finished_cells,
            trials=self.queue.trials,
            wanted=self.queue.wanted,
            earlier=self.earlier,
            seconds=time.perf_counter() - self.began,
            rows=rows,
            metric=self.metric,
        )
