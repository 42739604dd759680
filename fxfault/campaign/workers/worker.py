"""A worker process of a campaign: it runs trials, and talks to the driver through a pipe.

The messages are JSON, not pickles. The driver sends batches. The worker sends its facts, notes for
the user, each row as soon as it is done, signs of life, or an error, after which it ends.
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

import fxfault.errors as errors
from fxfault.errors import EngineError, FxFaultError, InvalidConfigError
from fxfault.foreign import told

if TYPE_CHECKING:
    from fxfault.campaign.workers.trial_runner import TrialRunner
    from fxfault.evaluation.full.predictions import OnNote

_SIGN_EVERY = 5.0  # seconds
_SENDING = threading.Lock()

# The errors that can be made from a message alone.
_KINDS: dict[str, type[FxFaultError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FxFaultError) and kind is not InvalidConfigError
}


def work(connection: Connection, plan: str, number: int) -> None:
    """Run the batches that come through a pipe, until it is closed.

    Args:
        connection: the worker's end of the pipe
        plan: the text that `fxfault.campaign.workers.plan.Plan.to_json` returned
        number: the worker's number, 0 and up
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The driver handles Ctrl-C, and ends us.
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    threading.Thread(target=_give_signs_of_life, args=(connection,), daemon=True).start()
    try:
        _work(connection, plan, number)
    except _DriverGoneError:
        pass
    except BaseException as error:  # The user's code may raise anything.
        with suppress(_DriverGoneError):
            send(connection, "error", plain_error(error))


def _work(connection: Connection, plan: str, number: int) -> None:
    # This imports torch; the threads above already run.
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
        plan: the text that `fxfault.campaign.workers.plan.Plan.to_json` returned
        number: the worker's number on its machine, 0 and up
        on_note: a function that shows the user a note
    """
    import torch

    from fxfault.campaign.workers.plan import Plan
    from fxfault.campaign.workers.trial_runner import TrialRunner

    made = Plan.from_json(plan)
    if made.folder is not None and os.path.isdir(made.folder):  # A cluster's machines may lack it.
        os.chdir(made.folder)
    torch.set_num_threads(made.threads or 1)
    return TrialRunner(made, number, on_note)


def _follow_the_driver() -> None:
    """End this process when the driver ends, even in the middle of a trial."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _give_signs_of_life(connection: Connection) -> None:
    """Tell the driver every few seconds that this process runs."""
    with suppress(_DriverGoneError, OSError, ValueError):
        while True:
            time.sleep(_SIGN_EVERY)
            send(connection, "alive", None)


def send(connection: Connection, kind: str, content: Any) -> None:
    """Send a message: a kind (`facts`, `note`, `row`, `alive` or `error`) and plain values."""
    message = json.dumps([kind, content]).encode()
    with _to_driver(), _SENDING:
        connection.send_bytes(message)


class _DriverGoneError(BaseException):
    """The driver closed its end of the pipe. No `Exception`: user code must not catch it."""


@contextmanager
def _to_driver() -> Iterator[None]:
    """Raise `_DriverGoneError` if our pipe is closed; other code raises the same errors."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise _DriverGoneError from error


def plain_error(error: BaseException) -> dict[str, str]:
    """Describe an error in plain values."""
    shown = "".join(traceback.format_exception(error))
    error = told(error)
    kinds = [kind for kind in type(error).__mro__ if kind in _KINDS.values()]
    return {
        "kind": kinds[0].__name__ if kinds else "",
        "message": str(error) if kinds else f"{type(error).__name__}: {error}",
        "traceback": shown,
    }


def retold(content: dict[str, str], who: str) -> FxFaultError:
    """Make an error from the description that a worker sent.

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
    """Shows the worker's traceback above the driver's, as `concurrent.futures` does."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
