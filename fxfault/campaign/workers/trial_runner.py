"""Runs a study's trials with its data and network, in any process.

Only plain values go in (`Plan`) and come out (`Facts`, rows). Brevitas's modules cannot be pickled,
so every worker builds its own network from configuration and checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fxfault.campaign.records import fingerprint
from fxfault.campaign.studies.cell import Cell, words_of
from fxfault.campaign.studies.study import Study
from fxfault.campaign.workers.facts import Facts, strikes_nothing
from fxfault.campaign.workers.given import Given, refuse_objects
from fxfault.campaign.workers.outline import background_of
from fxfault.campaign.workers.plan import Plan
from fxfault.errors import DataError
from fxfault.evaluation.chance import doubt_of
from fxfault.evaluation.checks import insert_faults
from fxfault.evaluation.rows import TrialRow
from fxfault.evaluation.runners import make_runner, run_golden
from fxfault.evaluation.trials import Trials
from fxfault.experiment.parts import (
    Batches,
    EvaluationData,
    batches_of,
    load_metric,
    load_model,
    open_test_data,
    pick_device,
)
from fxfault.files.sources import refuse_other
from fxfault.passes.freeze import freeze
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    from torch import nn

    from fxfault.evaluation.full.predictions import OnBatch, OnNote
    from fxfault.metrics.metric import Metric
    from fxfault.sites.fault_list import FaultList


class TrialRunner:
    """Runs the trials of a study in this process.

    It holds one network at a time, with the checkpoint of the last cell.
    """

    def __init__(
        self,
        plan: Plan,
        worker: int = 0,
        on_note: OnNote = lambda text: None,
        given: Given | None = None,
    ) -> None:
        """Open the data. The network is built when it is needed.

        Args:
            plan: the study, and how to run it
            worker: the worker's number on its machine, 0 and up
            on_note: a function that shows the user a note
            given: network and data, if the study does not name them

        Raises:
            FxFaultError: the data cannot be read, or there is no such device
        """
        self.plan, self.on_note = plan, on_note
        self.folder = os.getcwd()  # User code may change it later.
        self._files: dict[str | None, str | None] = {}
        self._said: set[str] = set()
        self.study = Study.from_dict(plan.study)
        self.device = _device(plan.device, worker)
        self._given, self._data = given, EvaluationData(None, None)
        if given is not None:
            self._batches, self._metric = given.batches, given.metric
        else:
            experiment = self.study.experiment
            refuse_objects(experiment)
            self._data = open_test_data(experiment)
            self._batches = batches_of(experiment, self._data.dataset)
            self._metric = load_metric(experiment)
        self._network: _Network | None = None

    @property
    def samples(self) -> int:
        """Number of samples of the data."""
        return self._batches.samples

    def say_once(self, text: str) -> None:
        """Show a note once, however often the network is built."""
        if text not in self._said:
            self._said.add(text)
            self.on_note(text)

    def note_file(self, checkpoint: str | None, content: str | None) -> None:
        """Compare a checkpoint's hash with that of its first loading.

        Raises:
            DataError: the file was replaced in between
        """
        refuse_other(str(checkpoint), self._files.setdefault(checkpoint, content), content)

    def facts(self) -> Facts:
        """Build the network with each of the study's checkpoints, and describe them.

        Raises:
            FxFaultError: a checkpoint or the network cannot be used
        """
        networks: dict[str, Any] = {}
        never_called: dict[str, Sequence[str]] = {}
        for checkpoint in reversed(
            self.study.axes.checkpoint
        ):  # The first cell's comes last, and stays.
            network = self._network_of(checkpoint)
            network.check(self.study)
            # A network that loads its own weights has no checkpoint, and the name "None" in JSON.
            networks[str(checkpoint)] = network.facts()
            never_called[str(checkpoint)] = network.trials.never_called
        faults, golden = network.faults, network.trials.golden
        facts = {} if self._metric is None else {"metric": self._metric.facts.to_dict()}
        return Facts(
            sites=list(faults.names),
            bit_widths={s.name: s.bit_width for s in faults if s.bit_width is not None},
            memories={s.name: s.memory for s in faults if s.stored is not None},
            fingerprint={
                "study": fingerprint.of_study(self.study),
                "code": fingerprint.of_code(),
                "data": fingerprint.of_data(self._data.items, self._batches, golden),
                "networks": networks,
                **facts,
            },
            background=network.background,
            never_called=never_called,
        )

    def run(self, cell: Cell, trial: int) -> TrialRow:
        """Run one trial.

        Raises:
            FxFaultError: the cell's settings do not fit the network, or the network fails
        """
        network = self._network_of(cell.checkpoint)
        try:
            return network.run(self.study, cell, trial)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"out of memory on {self.device}: lower training.batch_size or the number of "
                "workers"
            ) from error

    def list_faults(
        self, cell: Cell, trial: int, on_batch: OnBatch | None = None
    ) -> tuple[FaultList, TrialRow]:
        """Run one trial and list all of its faults; the plan must not be incremental.

        Args:
            cell: the cell.
            trial: number of the trial.
            on_batch: called with the number of samples done since the last call.

        Raises:
            FxFaultError: as `run`; or there are too many hits for a list
        """
        network = self._network_of(cell.checkpoint)
        network.trials.on_batch = on_batch
        try:
            with network.faults.recording() as recorder:
                row = self.run(cell, trial)
        finally:
            network.trials.on_batch = None
        return recorder.listing(), row

    def _network_of(self, checkpoint: str | None) -> _Network:
        if self._network is None or self._network.checkpoint != checkpoint:
            self._network = None  # The next one needs its memory.
            self._network = _Network(self, checkpoint, self._batches, self._metric)
        return self._network

    def build(self, checkpoint: str | None) -> tuple[nn.Module, str | None]:
        """Build the network.

        Returns:
            The network, and the hash of the checkpoint; None without one.

        Raises:
            FxFaultError: the network cannot be built, or the checkpoint was replaced meanwhile
        """
        if self._given is not None:
            return self._given.model, None
        model, info = load_model(self.study.experiment, checkpoint, self._data.facts, self.folder)
        file = None if info is None else info.sha256
        self.note_file(checkpoint, file)
        return model, file


class _Network:
    """The network with one of the checkpoints."""

    def __init__(
        self,
        owner: TrialRunner,
        checkpoint: str | None,
        batches: Batches,
        metric: Metric | None,
    ) -> None:
        plan, study, device = owner.plan, owner.study, owner.device
        self.checkpoint = checkpoint
        model, self.file = owner.build(checkpoint)
        self.state = fingerprint.of_state(model)
        batches.forward = model.forward
        everything = model.to(device), study.open_config(), batches, device, metric
        model = insert_faults(*everything, on_note=owner.on_note)
        self.model = (freeze(model) if plan.freeze else model).eval()
        self.faults = faults_of(self.model)
        self.structure = fingerprint.of_structure(model, self.faults)
        runner = make_runner(
            self.model,
            batches,
            device,
            owner.on_note,
            metric=metric,
            **plan.runner_options(device),
        )
        run_golden(runner, owner.on_note)
        self.trials = Trials(runner, named=words_of)
        self._cell: Cell | None = None
        seen = background_of(model, self.faults, self.trials.exposure.elements, device)
        golden, never_called = self.trials.golden, self.trials.never_called
        self.background = dataclasses.replace(
            seen, classes=getattr(golden, "classes", None), never_called=never_called
        ).to_dict()
        if never_called:
            owner.say_once(f"never called in this evaluation: {', '.join(never_called)}")
        doubt = doubt_of(golden)
        if doubt is not None:
            several = len(study.axes.checkpoint) > 1
            owner.say_once(f"{checkpoint}: {doubt}" if several else doubt)

    def facts(self) -> dict[str, Any]:
        """The network's part of the fingerprint."""
        return {
            "checkpoint": self.file,
            "state": self.state,
            "structure": self.structure,
            "golden": fingerprint.of_golden(self.trials.golden),
        }

    def check(self, study: Study) -> None:
        """Check that every cell can run, before hours of work.

        Raises:
            FxFaultError: a cell's settings do not fit the network
        """
        widths = {site.name: site.bit_width for site in self.faults if site.bit_width is not None}
        memories = {site.name: site.memory for site in self.faults}
        quiet = {str(self.checkpoint): self.trials.never_called}
        own = [
            cell
            for cell in study.cells(self.faults.names, widths, memories)
            if cell.checkpoint == self.checkpoint
            and not strikes_nothing(cell, quiet, self.faults.names)
        ]
        # Of cells that differ only in their rate, the one with the highest rate is enough.
        highest = {(c.place, c.fault): c for c in sorted(own, key=lambda c: c.rate or 0.0)}
        for cell in highest.values():
            self._set(study, cell)

    def run(self, study: Study, cell: Cell, trial: int) -> TrialRow:
        """Run one trial."""
        if cell != self._cell:
            self._set(study, cell)
        return self.trials.run(cell.key, trial)

    def _set(self, study: Study, cell: Cell) -> None:
        self._cell = None  # In case the settings are refused.
        self.trials.set(study.fault_config(cell))
        self._cell = cell


def _device(name: str, worker: int) -> torch.device:
    device = pick_device(name)
    if device.type == "cuda" and name in ("auto", "cuda"):
        return torch.device("cuda", worker % torch.cuda.device_count())
    return device
