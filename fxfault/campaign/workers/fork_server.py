"""Forks workers from a process that has already imported torch and Brevitas.

Python's own fork server does the work. An engine has one to itself: a program may use Python's
shared one with other preloads, and that one keeps the environment variables of its first use.
"""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, popen_forkserver, reduction, spawn, util
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess, set_spawning_popen
from multiprocessing.process import BaseProcess
from typing import Any

PRELOAD = "fxfault.campaign.workers.preload"
_LOST = 255  # the exit status of a worker whose server ended first


class ForkServer(forkserver.ForkServer):
    """A process that imports what workers need and then forks one whenever it is asked to.

    It starts with the environment variables, stdout and stderr of the moment. It ends when it is
    stopped, or when this process and all workers are gone.
    """

    _lock: threading.Lock
    _forkserver_pid: int | None
    _forkserver_alive_fd: int

    def __init__(self) -> None:
        super().__init__()
        self.set_forkserver_preload([PRELOAD])

    @property
    def pid(self) -> int | None:
        """The server's process, or None if it does not run."""
        return self._forkserver_pid

    def connect_to_new_process(self, fds: Any) -> Any:
        """Ask the server to fork; a server that dies at this moment is replaced."""
        try:
            return super().connect_to_new_process(fds)
        except (ConnectionError, FileNotFoundError):
            self.stop()
            return super().connect_to_new_process(fds)

    def stop(self) -> None:
        """Kill the server; its workers go on."""
        with self._lock:
            pid, self._forkserver_pid = self._forkserver_pid, None
            if pid is not None:
                os.close(self._forkserver_alive_fd)
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


class ForkedProcess(ForkServerProcess):
    """A process that a server of ours forks. `start` does not wait for it."""

    def __init__(
        self,
        server: ForkServer,
        target: Callable[..., object],
        args: Sequence[Any],
        name: str,
    ) -> None:
        super().__init__(target=target, args=args, name=name, daemon=True)
        self.server = server

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the server, which the process itself does not need."""
        return {key: value for key, value in self.__dict__.items() if key != "server"}

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:
        assert isinstance(process, ForkedProcess)
        return _Forked(process)


class _Forked(popen_forkserver.Popen):
    """Python's handle of a forked process, but starting it does not wait for the server."""

    _fds: list[int]

    def __init__(self, process: ForkedProcess) -> None:
        self._server, self._pid = process.server, None
        super().__init__(process)

    def _launch(self, process: ForkedProcess) -> None:
        """As in the base class, without the wait for the server's answer, which is the PID."""
        message = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), message)
            reduction.dump(process, message)
        finally:
            set_spawning_popen(None)
        self.sentinel, pipe = self._server.connect_to_new_process(self._fds)
        # The worker watches this end: it closes when this process ends.
        ours = os.dup(pipe)
        self.finalizer = util.Finalize(self, _close, (ours, self.sentinel))
        with open(pipe, "wb") as file:
            file.write(message.getbuffer())

    @property
    def pid(self) -> int | None:  # type: ignore[override]
        """The process, or None until the server has forked it."""
        if self._pid is None and self.returncode is None and wait([self.sentinel], 0):
            try:
                self._pid = forkserver.read_signed(self.sentinel)
            except (OSError, EOFError):
                self.returncode = _LOST
        return self._pid

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit status, or None while the process runs or is yet to be forked."""
        while self.pid is None:
            if self.returncode is not None or flag == os.WNOHANG:
                return self.returncode
            wait([self.sentinel])
        return super().poll(flag)

    def _send_signal(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self.pid is None:
            self._server.stop()  # So that it forks none later.
        else:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _close(*files: int) -> None:
    for file in files:
        os.close(file)
