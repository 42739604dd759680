"""A study's data and network, set up to run its trials, in whatever process.

Nothing but plain values goes in (`Plan`) and out (`Facts`, rows): Brevitas's modules cannot be
pickled, so every worker builds its own network from configuration and checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import fxfault
from fxfault.campaign import fingerprint
from fxfault.campaign.exposure import Exposure
from fxfault.campaign.rows import TrialRow, measure
from fxfault.campaign.study import Cell, Study
from fxfault.errors import DataError
from fxfault.experiment_parts import (
    Batches,
    EvaluationData,
    load_model,
    open_test_data,
    pick_device,
    try_model,
)
from fxfault.predictions import FullRunner, Runner
from fxfault.sites import FaultSites, faults_of

if TYPE_CHECKING:
    from torch import nn

    from fxfault.config import FaultInjectionConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker needs to know to set itself up: plain values.

    Attributes:
        study: as `Study.to_dict` gives it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; of several GPUs, `auto` and `cuda` give worker
            n the one that its turn comes to.
        threads: of torch; None leaves them as they are.
        incremental: keep work from one trial to the next; rows do not depend on it.
        freeze: quantise weights once; rows do not depend on it.
    """

    study: Mapping[str, Any]
    device: str = "auto"
    threads: int | None = None
    incremental: bool = True
    freeze: bool = True

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Facts:
    """What only a network that was built can tell: plain values.

    Attributes:
        sites: names, in the order of execution.
        bit_widths: of each site whose width is constant.
        fingerprint: of study, code, data and networks; see `fxfault.campaign.fingerprint`.
    """

    sites: Sequence[str]
    bit_widths: Mapping[str, int]
    fingerprint: Mapping[str, Any]


class Bench:
    """Runs the trials of a study in this process.

    One network is held at a time, that of the last cell's checkpoint.
    """

    def __init__(self, plan: Plan, worker: int = 0) -> None:
        """Open the data; the network is built when it is needed.

        Args:
            plan: what to set up.
            worker: number of the worker, 0 and up.

        Raises:
            FxFaultError: the data cannot be read, or there is no such device.
        """
        self.plan = plan
        self.study = Study.from_dict(plan.study)
        self.device = _device(plan.device, worker)
        self._data = open_test_data(self.study.experiment)
        self._batches = Batches(self._data.dataset, self.study.experiment.training.batch_size)
        self._network: _Network | None = None
        self._expected: dict[str, Any] = {}

    def facts(self) -> Facts:
        """Build the network with each of the study's checkpoints, and see what they are.

        Raises:
            FxFaultError: a checkpoint or the network cannot be used, or they have other sites.
        """
        networks: dict[str, Any] = {}
        for checkpoint in reversed(self.study.axes.checkpoint):  # Ends with that of the first cell.
            network = self._network_of(checkpoint)
            networks[checkpoint] = network.facts()
        faults, labels = network.faults, network.golden.labels
        return Facts(
            sites=list(faults.names),
            bit_widths={s.name: s.bit_width for s in faults if s.bit_width is not None},
            fingerprint={
                "study": fingerprint.of_study(self.study),
                "code": fingerprint.of_code(),
                "data": fingerprint.of_data(self._data.dataset, self._batches, labels),
                "networks": networks,
            },
        )

    def run(self, cell: Cell, trial: int) -> TrialRow:
        """Run one trial.

        Raises:
            FxFaultError: the cell's settings do not fit the network, or the network fails.
        """
        network = self._network_of(cell.checkpoint)
        try:
            return network.run(self.study, cell, trial)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"out of memory on {self.device}: lower training.batch_size or the number of "
                "workers"
            ) from error

    def _network_of(self, checkpoint: str | None) -> _Network:
        if self._network is None or self._network.checkpoint != checkpoint:
            self._network = None  # Its memory is needed for the next.
            self._network = _Network(
                self.study, self.plan, checkpoint, self._data, self._batches, self.device
            )
        return self._network


class _Network:
    """The network with one of the checkpoints."""

    def __init__(
        self,
        study: Study,
        plan: Plan,
        checkpoint: str | None,
        data: EvaluationData,
        batches: Batches,
        device: torch.device,
    ) -> None:
        self.checkpoint = checkpoint
        model, info = load_model(study.experiment, checkpoint, data.facts)
        self.file = None if info is None else info.sha256
        self.state = fingerprint.of_state(model)
        try_model(model.to(device), batches, device)
        model = fxfault.transform(model, _open_config(study))
        self.model = (fxfault.freeze(model) if plan.freeze else model).eval()
        self.faults = faults_of(self.model)
        self.structure = fingerprint.of_structure(model, self.faults)
        self.runner = _runner(self.model, batches, device, plan.incremental)
        self.golden = self.runner.golden()  # Kept: asking the runner looks at all parameters.
        inputs = next(iter(batches))[0].to(device)
        self._cell: Cell | None = None
        self.exposure = Exposure(self.model, self.faults, inputs, batches.samples)

    def facts(self) -> dict[str, Any]:
        """The part of the fingerprint that is of this network."""
        return {
            "checkpoint": self.file,
            "state": self.state,
            "structure": self.structure,
            "golden": fingerprint.of_golden(self.golden),
        }

    def run(self, study: Study, cell: Cell, trial: int) -> TrialRow:
        """Run one trial."""
        started = time.perf_counter()
        if cell != self._cell:
            set_faults(self.faults, study, cell)
            self._cell = cell
        self.faults.reset(trial=trial)
        faulty, hits, elements = self.exposure.measured(self.runner.run)
        return measure(
            self.golden,
            faulty,
            cell=cell.key,
            trial=trial,
            faults=hits,
            elements=elements,
            seconds=time.perf_counter() - started,
        )


def set_faults(faults: FaultSites, study: Study, cell: Cell) -> None:
    """Set the sites of a network to what a cell asks for.

    Raises:
        FxFaultError: a site or a fault model is not there.
    """
    config = study.fault_config(cell)
    faults.select(config.layers)
    faults.set_faults(config)
    faults.check_words()


def _open_config(study: Study) -> FaultInjectionConfig:
    """The base of all cells, with all sites: which ones are struck is for a cell to say."""
    return dataclasses.replace(study.experiment.fault_injection, layers=None)


def _runner(model: nn.Module, batches: Batches, device: torch.device, incremental: bool) -> Runner:
    if incremental:
        from fxfault.incremental import IncrementalRunner

        return IncrementalRunner(model, batches, device)
    return FullRunner(model, batches, device)


def _device(name: str, worker: int) -> torch.device:
    device = pick_device(name)
    if device.type == "cuda" and name in ("auto", "cuda"):
        return torch.device("cuda", worker % torch.cuda.device_count())
    return device
