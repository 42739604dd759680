"""The folder that a training run writes its files into."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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

# Locks of this process, by device and inode: it may open a folder several times.
_locks: weakref.WeakValueDictionary[tuple[int, int], FileLock] = weakref.WeakValueDictionary()


@dataclass
class RunFolder:
    """The existing folder of one run.

    Attributes:
        path: path as shown to the user; the folder stays the same if the process changes its
            current folder.
    """

    path: Path

    def __post_init__(self) -> None:
        self._absolute = Path(os.path.abspath(self.path))
        self._lock: FileLock | None = None

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a folder with a name that the user chose, or take an existing empty one.

        The folder of a run that was killed before its first checkpoint counts as empty.

        Raises:
            ConfigError: the folder cannot be made, or is not empty.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder._claim()
            held = {file.name for file in path.iterdir() if not _is_leftover(file)}
            is_used = bool(held) and held != {CONFIG, RECORD}
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be the folder of a run: {reason_of(error)}"
            ) from error
        if is_used and (path / CONFIG).is_file():
            raise ConfigError(f"{path} holds a run: continue it with --resume, or name another")
        if is_used:
            raise ConfigError(f"{path} is not empty and holds no run: name another folder")
        folder._check_writable()
        return folder

    @classmethod
    def create_next(cls, parent: Path, name: str) -> RunFolder:
        """Make the folder `name-NNN` in `parent`, with the first free number from 001.

        Raises:
            ConfigError: the folder cannot be made.
        """
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = max(_numbers(parent, name), default=0) + 1
            while True:
                path = parent / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                except FileExistsError:  # Another run has just made it.
                    number += 1
                else:
                    folder = cls(path)
                    folder._claim()
                    return folder
        except OSError as error:
            raise ConfigError(
                f"checkpoint.dir: no folder for the run can be made in {parent}: {reason_of(error)}"
            ) from error

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run to resume.

        Raises:
            ConfigError: the folder does not belong to a run, or has no checkpoint yet.
        """
        if not (path / CONFIG).is_file():
            raise ConfigError(f"--resume: {path} holds no run (it has no {CONFIG})")
        if not (path / LAST).is_file():
            raise ConfigError(
                f"--resume: {path} has no {LAST} to continue from: start again in another folder"
            )
        folder = cls(path)
        folder._check_writable()
        folder._claim()
        for file in folder._absolute.glob(".*"):
            if _is_leftover(file):
                file.unlink(missing_ok=True)
        return folder

    @classmethod
    def newest(cls, parent: Path, name: str) -> RunFolder | None:
        """Open the run `name-NNN` with the highest number among those with a checkpoint."""
        for number in sorted(_numbers(parent, name), reverse=True):
            path = parent / f"{name}-{number:03d}"
            if (path / CONFIG).is_file() and (path / LAST).is_file():
                return cls.open(path)
        return None

    def _claim(self) -> None:
        """Lock the folder itself, whatever path leads to it, against other processes."""
        status = os.stat(self._absolute)
        self._lock = _locks.get((status.st_dev, status.st_ino)) or FileLock.take(self._absolute)
        if self._lock is None:
            raise ConfigError(
                f"{self.path} is being written by another training: wait for it, or name another "
                "folder by --out"
            )
        _locks[self._lock.identity] = self._lock

    @classmethod
    @contextmanager
    def reserved(cls, path: Path) -> Iterator[RunFolder]:
        """Make a folder as `create` does, and remove it if the block fails.

        Of two trainings that still read their data, the first one gets the folder.
        """
        absolute = Path(os.path.abspath(path))
        made = [place for place in (absolute, *absolute.parents) if not place.exists()]
        folder = cls.create(path)
        try:
            yield folder
        except BaseException:
            folder.release()
            with suppress(OSError):  # The folder is not empty.
                for place in made:
                    place.rmdir()
            raise

    def release(self) -> None:
        """Let other processes write into the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def check_is_same(self) -> None:
        """Check that no other folder has taken this one's place.

        Raises:
            TrainingError: the folder was replaced.
        """
        if self._lock is None or not self._absolute.is_dir():  # Writing reports a missing folder.
            return
        status = os.stat(self._absolute)
        if (status.st_dev, status.st_ino) != self._lock.identity:
            raise TrainingError(
                f"the folder of the run, {self.path}, was replaced by another one: the training "
                "was stopped; its files are where the folder was moved to"
            )

    def _check_writable(self) -> None:
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"{self.path} cannot be the folder of a run: it is write-protected")

    def file(self, name: str) -> Path:
        """Path of a file of the run, below `path` as long as that leads to the folder."""
        leads_there = os.path.abspath(self.path) == str(self._absolute)
        return (self.path if leads_there else self._absolute) / name

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file atomically.

        Raises:
            TrainingError: the file cannot be written, or the folder is gone or was replaced.
        """
        self.check_is_same()
        with self.explaining_os_errors():
            write_atomically(self.file(name), content)

    def read(self, name: str, most: int) -> bytes:
        """Read a file of the run.

        Raises:
            OSError: the file does not exist or cannot be read.
            ConfigError: the file is not a regular file, or has more than `most` bytes.
        """
        path = self.file(name)
        try:
            return read_limited(path, most)
        except UnfitFileError as error:
            raise ConfigError(f"{path} {error}; remove it and start again") from error

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it exists.

        Raises:
            TrainingError: the file cannot be removed.
        """
        with self.explaining_os_errors():
            self.file(name).unlink(missing_ok=True)

    def write_config(self, config: ExperimentConfig) -> None:
        """Write the configuration with all values and the drawn seeds."""
        content = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
        self.write(CONFIG, content)

    def read_config(self) -> ExperimentConfig:
        """Read the configuration of the run."""
        return load_experiment(self.file(CONFIG))

    @contextmanager
    def explaining_os_errors(self) -> Iterator[None]:
        """Turn an `OSError` of the block into a `TrainingError` that says which files are left."""
        try:
            yield
        except OSError as error:
            if not self._absolute.is_dir():
                raise TrainingError(
                    f"the folder of the run, {self.path}, is gone: the training was stopped, as "
                    f"none of its files could be kept"
                ) from error
            what = "fix that and start again"
            if self.file(LAST).is_file():
                last = self.path / LAST
                what = f"{last}, written before, is whole; fix that and continue with --resume"
            raise TrainingError(
                f"{self.path} cannot be written: {reason_of(error)}; {what}"
            ) from error


def _is_leftover(path: Path) -> bool:
    """Whether a killed process left this half-written file."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name)) and path.is_file()


def _numbers(parent: Path, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"-(\d{3,})")
    found = [pattern.fullmatch(path.name) for path in parent.glob("*") if path.is_dir()]
    return [int(match.group(1)) for match in found if match]
