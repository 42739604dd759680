"""Run trials on a Ray cluster: one actor for each worker.

Only this module imports Ray (`pip install 'fxfault[ray]'`). fxfault, the data and the checkpoints
must be there on every machine, under the paths that the study names.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray  # type: ignore[import-not-found]
from ray.exceptions import (  # type: ignore[import-not-found]
    OutOfMemoryError,
    RayActorError,
)

from fxfault.campaign.agenda import Batch
from fxfault.campaign.errors import EngineError
from fxfault.campaign.muster import Muster
from fxfault.campaign.rows import TrialRow
from fxfault.campaign.worker import retold, told

if TYPE_CHECKING:
    from fxfault.campaign.bench import Bench, Facts, Plan

# A batch that runs and one that waits, so that no worker waits for the driver.
BATCHES_EACH = 2


class _Trials:
    """The actor. It takes and gives text (JSON), so that no error of ours needs to be pickled."""

    def __init__(self, plan: str, folder: str) -> None:
        self._plan, self._folder = plan, folder
        self._bench: Bench | None = None

    def facts(self) -> str:
        """Set up, and say what was found."""
        import torch

        from fxfault.campaign.bench import Bench, Plan

        try:
            if os.path.isdir(self._folder):
                os.chdir(self._folder)  # Where the study's relative paths start.
            plan = Plan.from_json(self._plan)
            torch.set_num_threads(plan.threads or 1)
            self._bench = Bench(plan)  # Ray shows each worker only the GPUs that are its own.
            return json.dumps(["facts", asdict(self._bench.facts())])
        except Exception as error:  # whatever it is, the driver is to know
            return json.dumps(["error", told(error)])

    def run(self, cell: str, trials: list[int]) -> str:
        """Run some trials of a cell."""
        from fxfault.campaign.study import Cell

        assert self._bench is not None
        try:
            made = Cell.from_key(cell)
            return json.dumps(["rows", [self._bench.run(made, k).to_list() for k in trials]])
        except Exception as error:  # whatever it is, the driver is to know
            return json.dumps(["error", told(error)])


@dataclass(eq=False)
class _Worker:
    """An actor, and how many batches it was given."""

    number: int
    actor: Any
    ready: bool = False
    batches: int = 0


class RayEngine:
    """Runs trials on a Ray cluster.

    An actor that dies, or whose machine does, costs the batch that it was at: about a quarter of
    a second of trials, or one that takes longer.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        gpus_per_trial: float | None = None,
    ) -> None:
        """Connect to nothing yet; the arguments are those of `make_engine`."""
        self.workers = workers or 0
        self.slots = 0
        self._address, self._gpus = address, gpus_per_trial
        self._is_ours = False
        self._plan, self._cores = "", 1
        self._muster = Muster()
        self._workers: list[_Worker] = []
        self._calls: dict[Any, tuple[_Worker, Batch | None]] = {}
        self._waiting: deque[Batch] = deque()

    def start(self, plan: Plan) -> Facts:
        """See `Engine.start`; returns as soon as one worker is ready."""
        from fxfault.campaign.bench import Facts

        self._plan, self._cores = plan.to_json(), plan.threads or 1
        self._connect()
        self._count_workers()
        self.slots = self.workers * BATCHES_EACH
        self._workers = [self._started(number) for number in range(self.workers)]
        while self._muster.facts is None:
            self._listen()
        return Facts(**self._muster.facts)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        self._waiting.append(batch)
        self._hand_out()

    def receive(self) -> list[TrialRow]:
        """See `Engine.receive`."""
        while True:
            rows = self._listen()
            self._hand_out()
            if rows:
                return rows

    def close(self) -> None:
        """See `Engine.close`; a cluster that was there before stays."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers, self._calls = [], {}
        if self._is_ours:
            ray.shutdown()
            self._is_ours = False

    # -- the cluster --------------------------------------------------------------------

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        try:
            ray.init(
                address=self._address,
                include_dashboard=None if self._address else False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise EngineError(
                f"engine 'ray': no cluster at address {self._address!r}: {first}"
            ) from error
        self._is_ours = True

    def _count_workers(self) -> None:
        """Settle how many workers there are, and which share of a machine each has."""
        there = ray.cluster_resources()
        if self._gpus is None:
            self._gpus = 1.0 if there.get("GPU", 0) >= 1 else 0.0
        room = int(there.get("CPU", 0) // self._cores)
        if self._gpus:
            room = min(room, int(there.get("GPU", 0) / self._gpus))
        self.workers = self.workers or room
        if not room:
            raise EngineError(
                f"engine 'ray': the cluster has {there.get('CPU', 0):g} CPUs and "
                f"{there.get('GPU', 0):g} GPUs, and a worker needs {self._cores} and "
                f"{self._gpus:g}; add machines, or lower the threads or gpus_per_trial"
            )

    def _started(self, number: int) -> _Worker:
        options = {"num_cpus": self._cores, "num_gpus": self._gpus}
        actor = ray.remote(_Trials).options(**options).remote(self._plan, os.getcwd())
        worker = _Worker(number, actor)
        self._calls[actor.facts.remote()] = (worker, None)
        return worker

    # -- trials -------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for depth in range(BATCHES_EACH):
            for worker in self._workers:
                if self._waiting and worker.ready and worker.batches <= depth:
                    batch = self._waiting.popleft()
                    call = worker.actor.run.remote(batch.cell, list(batch.trials))
                    self._calls[call] = (worker, batch)
                    worker.batches += 1

    def _listen(self) -> list[TrialRow]:
        """Wait for one call to end."""
        (call,), _ = ray.wait(list(self._calls), num_returns=1)
        worker, batch = self._calls.pop(call)
        try:
            kind, content = json.loads(ray.get(call))
        except (RayActorError, OutOfMemoryError) as error:
            self._replace(worker, batch, type(error).__name__)
            return []
        if kind == "error":
            raise retold(content, f"worker {worker.number}")
        if kind == "facts":
            self._muster.enlist(worker.number, content)
            worker.ready = True
            return []
        worker.batches -= 1
        return [TrialRow.from_list(values) for values in content]

    def _replace(self, worker: _Worker, batch: Batch | None, how: str) -> None:
        """Start another worker in the place of a dead one, and hand its trials out again."""
        if worker not in self._workers:  # Another call of it has told already.
            assert batch is not None
            self._waiting.append(batch)
            return
        self._muster.lose(None if batch is None else (batch.cell, batch.trials[0]), how)
        if batch is not None:
            self._waiting.appendleft(batch)
        ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._started(worker.number)
