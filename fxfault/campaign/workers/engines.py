"""Makes engines by name, and runs trials in this process.

Every engine returns the same rows, in any order, as trials finish. Only the driver writes to the
store (`fxfault.campaign.driver`).
"""

from __future__ import annotations

import importlib.util
from collections import deque
from typing import TYPE_CHECKING

from fxfault.campaign.workers.engine import Batch, Engine
from fxfault.campaign.workers.patience import Watch
from fxfault.errors import EngineError
from fxfault.evaluation.full.predictions import OnNote
from fxfault.evaluation.rows import TrialRow
from fxfault.messages import nearest

if TYPE_CHECKING:
    from fxfault.campaign.studies.cell import Cell
    from fxfault.campaign.workers.facts import Facts
    from fxfault.campaign.workers.given import Given
    from fxfault.campaign.workers.plan import Plan
    from fxfault.campaign.workers.trial_runner import TrialRunner

ENGINES = ("local", "processes", "ray")


class LocalEngine:
    """Runs trials in this process, one after the other.

    It alone can run a network that is an object of this process (`given`).
    """

    slots = 1

    def __init__(self, given: Given | None = None) -> None:
        self._given = given
        self._trial_runner: TrialRunner | None = None
        self._watch: Watch | None = None
        self._waiting: deque[tuple[Cell, int]] = deque()

    def start(self, plan: Plan, on_note: OnNote) -> Facts:
        """See `Engine.start`."""
        from fxfault.campaign.workers.trial_runner import TrialRunner

        self._watch = Watch(on_note)
        with self._watch.at("while it was set up"):
            self._trial_runner = TrialRunner(plan, on_note=on_note, given=self._given)
            return self._trial_runner.facts()

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        from fxfault.campaign.studies.cell import Cell

        cell = Cell.from_key(batch.cell)
        self._waiting.extend((cell, trial) for trial in batch.trials)

    def receive(self, within: float | None = None) -> list[TrialRow]:
        """See `Engine.receive`."""
        assert self._trial_runner is not None
        assert self._watch is not None
        cell, trial = self._waiting.popleft()
        with self._watch.at(f"at trial {trial} of {cell.key}"):
            return [self._trial_runner.run(cell, trial)]

    def close(self) -> None:
        """See `Engine.close`."""
        if self._watch is not None:
            self._watch.close()
        self._trial_runner = self._watch = None
        self._waiting.clear()


def make_engine(
    name: str,
    *,
    workers: int | None = None,
    address: str | None = None,
    gpus_per_trial: float | None = None,
    trial_timeout: float | None = None,
) -> Engine:
    """Make an engine.

    >>> make_engine("process")
    Traceback (most recent call last):
    ...
    fxfault.errors.EngineError: engine 'process': there is no such engine (did you \
mean 'processes'?); there are: local, processes, ray

    Args:
        name: `local`, `processes` or `ray`
        workers: the number of workers, for `processes` (default: one for each core) and `ray`
            (default: as many as the cluster has room for at the start)
        address: the address of a Ray cluster; None starts one on this machine, `auto` finds a
            running one
        gpus_per_trial: the number of GPUs that each worker of `ray` reserves; default: 1 if the
            cluster has any, else 0
        trial_timeout: the time in seconds after which `processes` and `ray` give a trial to another
            worker; if that one takes as long, the study ends. Default: a limit that follows from
            the trials so far (`fxfault.campaign.workers.patience`)

    Raises:
        EngineError: there is no such engine, it does not take one of the arguments, or Ray is not
            installed
    """
    if name not in ENGINES:
        raise EngineError(
            f"engine {name!r}: there is no such engine{nearest(name, ENGINES)}; there are: "
            f"{', '.join(ENGINES)}"
        )
    given = {
        "workers": workers,
        "trial_timeout": trial_timeout,
        "address": address,
        "gpus_per_trial": gpus_per_trial,
    }
    several = ("workers", "trial_timeout")
    takes = {"local": (), "processes": several, "ray": tuple(given)}[name]
    wrong = [key for key, value in given.items() if value is not None and key not in takes]
    if wrong:
        fitting = "processes or ray" if set(wrong) & set(several) else "ray"
        raise EngineError(f"engine {name!r} takes no {', no '.join(wrong)}; that is for {fitting}")
    if workers is not None and workers < 1:
        raise EngineError(f"workers: got {workers}, allowed: 1 and up")
    if gpus_per_trial is not None and gpus_per_trial < 0:
        raise EngineError(f"gpus_per_trial: got {gpus_per_trial}, allowed: 0 and up")
    if trial_timeout is not None and not 0 < trial_timeout < float("inf"):
        raise EngineError(f"trial_timeout: got {trial_timeout}, allowed: a number above 0")
    if name == "local":
        return LocalEngine()
    if name == "processes":
        from fxfault.campaign.workers.process_engine import ProcessEngine

        return ProcessEngine(workers, trial_timeout)
    if importlib.util.find_spec("ray") is None:
        raise EngineError("engine 'ray': Ray is not installed; pip install 'fxfault[ray]'")
    from fxfault.campaign.workers.ray_engine import RayEngine

    return RayEngine(
        workers, address=address, gpus_per_trial=gpus_per_trial, trial_timeout=trial_timeout
    )
