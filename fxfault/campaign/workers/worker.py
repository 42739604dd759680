"""A worker process of a campaign: a trial runner, and a pipe to the driver.

What goes through the pipe is JSON, not pickles. The driver sends batches; the worker answers with
its facts, with notes for the user, with each row as it finishes, with signs of life, or with an
error, after which it ends.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from fxfault.errors import (
    BugError,
    ConfigError,
    DataError,
    EngineError,
    ForeignCodeError,
    FreezeError,
    FxFaultError,
    SiteError,
    StoreError,
    TransformError,
)
from fxfault.foreign import told

if TYPE_CHECKING:
    from fxfault.campaign.workers.trial_runner import TrialRunner
    from fxfault.evaluation.full.predictions import OnNote

_SIGN_EVERY = 5.0  # seconds
_SENDING = threading.Lock()

# Those that are made from their message alone.
_KINDS: dict[str, type[FxFaultError]] = {
    kind.__name__: kind
    for kind in (
        BugError,
        ConfigError,
        DataError,
        EngineError,
        ForeignCodeError,
        FreezeError,
        FxFaultError,
        SiteError,
        StoreError,
        TransformError,
    )
}


def work(connection: Connection, plan: str, number: int) -> None:
    """Run what comes through the pipe, until it is closed.

    Args:
        connection: to the driver.
        plan: of `fxfault.campaign.workers.plan.Plan.to_json`.
        number: of the worker, 0 and up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; it ends us.
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    threading.Thread(target=_give_signs_of_life, args=(connection,), daemon=True).start()
    try:
        _work(connection, plan, number)
    except _DriverGoneError:
        pass  # It has had enough, or was killed.
    except BaseException as error:  # A network's own code may raise anything.
        with suppress(_DriverGoneError):
            send(connection, "error", plain_error(error))


def _work(connection: Connection, plan: str, number: int) -> None:
    # Imported late: the sooner the driver's end is watched, the better.
    trial_runner = set_up(plan, number, lambda text: send(connection, "note", text))
    from fxfault.campaign.studies.cell import Cell

    send(connection, "facts", asdict(trial_runner.facts()))
    while True:
        with _to_driver():
            received = connection.recv_bytes()
        batch = json.loads(received)
        cell = Cell.from_key(batch["cell"])
        for trial in batch["trials"]:
            send(connection, "row", trial_runner.run(cell, trial).to_list())


def set_up(plan: str, number: int, on_note: OnNote) -> TrialRunner:
    """Make a worker's trial runner.

    Args:
        plan: of `fxfault.campaign.workers.plan.Plan.to_json`.
        number: of the worker on its machine, 0 and up.
        on_note: called with what a user should know.
    """
    import torch

    from fxfault.campaign.workers.plan import Plan
    from fxfault.campaign.workers.trial_runner import TrialRunner

    made = Plan.from_json(plan)
    if made.folder is not None and os.path.isdir(made.folder):  # Not on each machine of a cluster.
        os.chdir(made.folder)
    torch.set_num_threads(made.threads or 1)
    return TrialRunner(made, number, on_note)


def _follow_the_driver() -> None:
    """End when the driver does, also in the middle of a trial that takes hours."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _give_signs_of_life(connection: Connection) -> None:
    """Tell the driver again and again that this process runs, whatever its trial does."""
    with suppress(_DriverGoneError, OSError, ValueError):  # The driver is gone.
        while True:
            time.sleep(_SIGN_EVERY)
            send(connection, "alive", None)


def send(connection: Connection, kind: str, content: Any) -> None:
    """Send a message: a kind (`facts`, `note`, `row`, `alive` or `error`) and plain values."""
    message = json.dumps([kind, content]).encode()
    with _to_driver(), _SENDING:
        connection.send_bytes(message)


class _DriverGoneError(BaseException):
    """The driver's end of the pipe is closed; no code on the way is to take it for an error."""


@contextmanager
def _to_driver() -> Iterator[None]:
    """Tell an end of our pipe from the same error in somebody else's code."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise _DriverGoneError from error


def plain_error(error: BaseException) -> dict[str, str]:
    """An error as plain values."""
    shown = "".join(traceback.format_exception(error))
    error = told(error)
    kinds = [kind for kind in type(error).__mro__ if kind in _KINDS.values()]
    return {
        "kind": kinds[0].__name__ if kinds else "",
        "message": str(error) if kinds else f"{type(error).__name__}: {error}",
        "traceback": shown,
    }


def retold(content: dict[str, str], who: str) -> FxFaultError:
    """Make the error that a worker told of.

    >>> retold({"kind": "DataError", "message": "no such file", "traceback": ""}, "worker 0")
    DataError('no such file')
    >>> retold({"kind": "", "message": "KeyError: 3", "traceback": "..."}, "worker 0")
    EngineError('worker 0 failed: KeyError: 3')
    """
    kind = _KINDS.get(content["kind"])
    if kind is None:
        error: FxFaultError = EngineError(f"{who} failed: {content['message']}")
    else:
        error = kind(content["message"])
    error.__cause__ = _InWorkerError(content["traceback"])
    return error


class _InWorkerError(Exception):
    """Shows a worker's traceback above our own, as `concurrent.futures` does."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
