"""The folder that a training run writes: names of its files, and how they are written."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fxfault.errors import ConfigError, TrainingError
from fxfault.experiment.sections import ExperimentConfig, load_experiment
from fxfault.files.access import UnfitFileError, read_limited, write_atomically
from fxfault.files.locks import FileLock
from fxfault.messages import reason_of

CONFIG = "config.yaml"
METRICS = "metrics.csv"
RECORD = "run.json"
CURVE = "curve.png"
LAST = "last.ckpt"
BEST = "best.ckpt"
CALIBRATED = "calibrated.ckpt"
EVENTS = "tensorboard"


# Of this process, which may open a folder again and again.
_locks: weakref.WeakValueDictionary[tuple[int, int], FileLock] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class RunFolder:
    """A folder of one run, which exists.

    Attributes:
        path: as it is shown to the user. Where it leads to is settled at once, wherever the
            process goes later.
    """

    path: Path
    _absolute: Path = field(init=False, repr=False, compare=False)
    _lock: list[FileLock] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_absolute", Path(os.path.abspath(self.path)))

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a folder with a name that the user chose; an empty one that is there serves.

        So does one of a run that was killed before its first checkpoint.

        Raises:
            ConfigError: it cannot be made, or has something in it.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder.claim()
            held = {file.name for file in path.iterdir() if not _is_leftover(file)}
            is_used = bool(held) and held != {CONFIG, RECORD}
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be the folder of a run: {reason_of(error)}"
            ) from error
        if is_used and (path / CONFIG).is_file():
            raise ConfigError(f"{path} holds a run: go on with it by --resume, or name another")
        if is_used:
            raise ConfigError(f"{path} is not empty and holds no run: name another folder")
        folder.check()
        return folder

    @classmethod
    def create_next(cls, parent: Path, name: str) -> RunFolder:
        """Make the folder `name-001` in `parent`, or with the first number that is free.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = max(_numbers(parent, name), default=0) + 1
            while True:
                path = parent / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                except FileExistsError:  # Another run that starts at this moment has it.
                    number += 1
                else:
                    folder = cls(path)
                    folder.claim()
                    return folder
        except OSError as error:
            raise ConfigError(
                f"checkpoint.dir: no folder for the run can be made in {parent}: {reason_of(error)}"
            ) from error

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run that is to be resumed.

        Raises:
            ConfigError: it is no folder of a run, or was left before its first checkpoint.
        """
        if not (path / CONFIG).is_file():
            raise ConfigError(f"--resume: {path} holds no run (it has no {CONFIG})")
        if not (path / LAST).is_file():
            raise ConfigError(
                f"--resume: {path} has no {LAST} to go on from: start anew, in another folder"
            )
        folder = cls(path)
        folder.check()
        folder.claim()
        folder._remove_leftovers()
        return folder

    @classmethod
    def newest(cls, parent: Path, name: str) -> RunFolder | None:
        """Open the run `name-NNN` with the highest number that has a checkpoint, if any has."""
        for number in sorted(_numbers(parent, name), reverse=True):
            path = parent / f"{name}-{number:03d}"
            if (path / CONFIG).is_file() and (path / LAST).is_file():
                return cls.open(path)
        return None

    def claim(self) -> None:
        """Become the one process that writes into the folder, until `release` or its end.

        The lock is the folder's own, whatever path leads to it; it is left to no child.

        Raises:
            ConfigError: another process writes into it.
        """
        status = os.stat(self._absolute)
        lock = _locks.get((status.st_dev, status.st_ino))
        if lock is None:
            lock = FileLock.take(self._absolute)
        if lock is None:
            raise ConfigError(
                f"{self.path} is being written by another training: wait for it, or name another "
                "folder by --out"
            )
        _locks[lock.identity] = lock
        self._lock[:] = [lock]

    @classmethod
    @contextmanager
    def reserved(cls, path: Path) -> Iterator[RunFolder]:
        """Make a folder as `create` does, and take it away again where the block fails.

        So that of two trainings the first has it, while both still read their data.

        Raises:
            ConfigError: as `create`.
        """
        absolute = Path(os.path.abspath(path))
        made = [place for place in (absolute, *absolute.parents) if not place.exists()]
        folder = cls.create(path)
        try:
            yield folder
        except BaseException:
            folder.release()
            with suppress(OSError):  # Something is in it.
                for place in made:
                    place.rmdir()
            raise

    def release(self) -> None:
        """Let others write into the folder."""
        while self._lock:
            self._lock.pop().release()

    def check_is_same(self) -> None:
        """See that the folder was not put in another's place.

        Raises:
            TrainingError: it was.
        """
        if not self._lock or not self._absolute.is_dir():  # What is gone cannot be written, either.
            return
        status = os.stat(self._absolute)
        if (status.st_dev, status.st_ino) != self._lock[0].identity:
            raise TrainingError(
                f"the folder of the run, {self.path}, was replaced by another one: the training "
                "was stopped; what it had written is where the folder was moved to"
            )

    def check(self) -> None:
        """Check that files can be written.

        Raises:
            ConfigError: they cannot.
        """
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"{self.path} cannot be the folder of a run: it is write-protected")

    def file(self, name: str) -> Path:
        """The path of a file of the run: as the user knows it, while it leads there."""
        leads_there = os.path.abspath(self.path) == str(self._absolute)
        return (self.path if leads_there else self._absolute) / name

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            TrainingError: the folder is gone, the disk is full, or the like.
        """
        self.check_is_same()
        with self.explaining_os_errors():
            write_atomically(self.file(name), content)

    def read(self, name: str, most: int) -> bytes:
        """Read a file of the run.

        Raises:
            OSError: it is not there, or cannot be read.
            ConfigError: it is no regular file, or has more bytes than `most`.
        """
        path = self.file(name)
        try:
            return read_limited(path, most)
        except UnfitFileError as error:
            raise ConfigError(f"{path} {error}; take it away and start again") from error

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it is there.

        Raises:
            TrainingError: it cannot be removed.
        """
        with self.explaining_os_errors():
            self.file(name).unlink(missing_ok=True)

    def write_config(self, config: ExperimentConfig) -> None:
        """Write the configuration, with all values and the seeds that were drawn."""
        content = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
        self.write(CONFIG, content)

    def read_config(self) -> ExperimentConfig:
        """Read the configuration that the run was started with."""
        return load_experiment(self.file(CONFIG))

    @contextmanager
    def explaining_os_errors(self) -> Iterator[None]:
        """Turn an `OSError` into one line that says what is left."""
        try:
            yield
        except OSError as error:
            if not self._absolute.is_dir():
                raise TrainingError(
                    f"the folder of the run, {self.path}, is gone: the training was stopped, as "
                    f"nothing of it could be kept"
                ) from error
            what = "; mend that and start anew"
            if self.file(LAST).is_file():
                what = (
                    f"; {self.path / LAST}, written before, is whole; mend that and go on with "
                    f"--resume"
                )
            raise TrainingError(
                f"{self.path} cannot be written: {reason_of(error)}{what}"
            ) from error

    def _remove_leftovers(self) -> None:
        """Remove the half-written files of a process that was killed."""
        for path in self._absolute.glob(".*"):
            if _is_leftover(path):
                path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name)) and path.is_file()


def _numbers(parent: Path, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"-(\d{3,})")
    found = [pattern.fullmatch(path.name) for path in parent.glob("*") if path.is_dir()]
    return [int(match.group(1)) for match in found if match]
