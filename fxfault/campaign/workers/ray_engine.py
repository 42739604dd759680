"""Runs trials on a Ray cluster: one actor for each worker.

Only this module imports Ray (`pip install 'fxfault[ray]'`). Every machine needs fxfault, and the
data and checkpoints under the paths that the study names.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import ray  # type: ignore[import-not-found]
from ray.exceptions import (  # type: ignore[import-not-found]
    OutOfMemoryError,
    RayActorError,
)

from fxfault.campaign.workers.worker import plain_error, set_up
from fxfault.campaign.workers.worker_engine import Worker, WorkerEngine
from fxfault.errors import EngineError
from fxfault.evaluation.rows import TrialRow

if TYPE_CHECKING:
    from fxfault.campaign.workers.plan import Plan
    from fxfault.campaign.workers.trial_runner import TrialRunner


class _Trials:
    """The actor. It returns messages as JSON, so that none of our errors is pickled."""

    def __init__(self, plan: str) -> None:
        self._plan = plan
        self._trial_runner: TrialRunner | None = None
        self._messages: list[tuple[str, Any]] = []

    def placed(self) -> str:
        """Tell that a machine has room for the worker."""
        return json.dumps([("placed", None)])

    def facts(self) -> str:
        """Set up the worker, and return its messages."""
        try:
            # As worker 0: Ray shows each actor only its own GPUs.
            self._trial_runner = set_up(self._plan, 0, self._note)
            self._messages.append(("facts", asdict(self._trial_runner.facts())))
        except (Exception, SystemExit) as error:  # The driver reports it.
            self._messages.append(("error", plain_error(error)))
        return self._told()

    def run(self, cell: str, trials: list[int]) -> str:
        """Run some trials of a cell, and return the messages."""
        from fxfault.campaign.studies.cell import Cell

        assert self._trial_runner is not None
        try:
            made = Cell.from_key(cell)
            for trial in trials:
                self._messages.append(("row", self._trial_runner.run(made, trial).to_list()))
        except (Exception, SystemExit) as error:  # The driver reports it.
            self._messages.append(("error", plain_error(error)))
        return self._told()

    def _note(self, text: str) -> None:
        self._messages.append(("note", text))

    def _told(self) -> str:
        messages, self._messages = self._messages, []
        return json.dumps(messages)


@dataclass(eq=False, kw_only=True)
class _Actor(Worker):
    """An actor somewhere in the cluster."""

    actor: Any


class RayEngine(WorkerEngine[_Actor]):
    """Runs trials on a Ray cluster.

    If an actor or its machine dies, its batch is lost and runs again: trials of about a quarter of
    a second, or a single longer one. The actor that takes its place waits, for as long as it
    takes, until a machine has room for it.
    """

    tells_all = False

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        gpus_per_trial: float | None = None,
        trial_timeout: float | None = None,
    ) -> None:
        """Take the arguments of `make_engine`; `start` connects to the cluster."""
        super().__init__(trial_timeout)
        self.workers = workers or 0
        self.slots = 0
        self._address, self._gpus = address, gpus_per_trial
        self._is_ours = False
        self._cores = 1
        self._calls: dict[Any, _Actor] = {}

    def close(self) -> None:
        """See `Engine.close`; only a cluster that we started ends too."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers, self._calls = [], {}
        if self._is_ours:
            ray.shutdown()
            self._is_ours = False

    # -- the cluster --------------------------------------------------------------------

    def _prepared(self, plan: Plan) -> Plan:
        self._cores = plan.threads or 1
        self._connect()
        self._count_workers()
        return replace(plan, sharing=self._most_together())

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
        """Settle the number of workers and the GPUs of each."""
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

    def _most_together(self) -> int:
        """Count the workers that may share a machine's memory, or a GPU's."""
        if self._gpus:
            return max(1, int(1 / self._gpus))
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max((int(there.get("CPU", 0) // self._cores) for there in machines), default=1)
        return max(1, min(self.workers, most))

    # -- workers ------------------------------------------------------------------------

    def _started(self, number: int) -> _Actor:
        assert self._plan is not None
        options = {"num_cpus": self._cores, "num_gpus": self._gpus}
        actor = ray.remote(_Trials).options(**options).remote(self._plan.to_json())
        worker = _Actor(number, placed=False, actor=actor)
        self._calls[actor.placed.remote()] = worker
        self._calls[actor.facts.remote()] = worker
        return worker

    def _give(self, worker: _Actor, cell: str, trials: list[int]) -> None:
        self._calls[worker.actor.run.remote(cell, trials)] = worker

    def _listen(self, longest: float) -> list[TrialRow]:
        """Wait for a call to return, and handle the messages of all that have."""
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=longest)
        if done:  # To wait for each of a thousand calls would be slow: take all that are there.
            done, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        self._clock.look()
        return [row for call in done for row in self._answer(call)]

    def _answer(self, call: Any) -> list[TrialRow]:
        """Handle the messages of a call that has returned, or failed."""
        worker = self._calls.pop(call, None)
        if worker is None:  # Another of its calls failed just now.
            return []
        try:
            messages = json.loads(ray.get(call))
        except (RayActorError, OutOfMemoryError) as error:
            self._end(worker)
            self._replace(worker, type(error).__name__)
            return []
        return [row for message in messages for row in self._handle(worker, *message)]

    def _end(self, worker: _Actor) -> None:
        # Its other calls fail too; `_replace` queues all its batches again.
        self._calls = {call: w for call, w in self._calls.items() if w is not worker}
        ray.kill(worker.actor)
