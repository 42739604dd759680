"""Check that the checkpoints of a study, a training or an evaluation stay the same while it runs.

A study that runs for hours loads a checkpoint many times, in several processes. If a training
replaced the checkpoint meanwhile, the study's rows would mix results of different weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fxfault.bundled.files import BUNDLED
from fxfault.errors import DataError, FxFaultError, TrainingError
from fxfault.files.access import expanded


class Activity(NamedTuple):
    """Work that depends on unchanged files, for the messages.

    Attributes:
        name: noun for the work, such as "study".
        mend: what the user should do, and what is kept.
        error: class of the error to raise.
    """

    name: str
    mend: str
    error: type[FxFaultError] = DataError


STUDY = Activity(
    "study", "restore the old file and continue, or name another store; finished trials are kept"
)
TRAINING = Activity(
    "training",
    "restore the old file and continue with --resume, or start again; saved files are kept",
    TrainingError,
)
EVALUATION = Activity(
    "evaluation", "the written results are those of the old file; evaluate again to use the new one"
)


class Sources:
    """The checkpoints that something depends on, with their content when they were first loaded.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.pt").write_bytes(b"weights")
    >>> known = {"a.pt": hashlib.sha256(b"weights").hexdigest()}
    >>> sources = Sources(folder, known)
    >>> sources.check()
    >>> _ = (folder / "a.pt").write_bytes(b"other weights")
    >>> sources.check()
    Traceback (most recent call last):
    ...
    fxfault.errors.DataError: checkpoint 'a.pt' was replaced while the study ran (sha256 \
9a129038d9a0... when it was loaded, 53959fa102f3... now): restore the old file and continue, or \
name another store; finished trials are kept
    """

    def __init__(
        self, folder: Path, contents: Mapping[str, str | None], activity: Activity = STUDY
    ) -> None:
        """Note the checkpoints and check them once.

        Args:
            folder: folder that relative paths start from.
            contents: SHA-256 of each checkpoint when it was loaded, in hexadecimal, by its name.
            activity: the work that depends on them.

        Raises:
            FxFaultError: a checkpoint has changed since it was loaded.
        """
        self.folder, self._activity = folder, activity
        self._contents: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._stamps: dict[str, tuple[int, ...] | None] = {}
        for name, content in contents.items():
            self.note(name, content)
        self.check()

    @classmethod
    def of(cls, folder: Path, networks: Mapping[str, Mapping[str, Any]]) -> Sources:
        """Make the sources of a study from the `networks` part of its fingerprint."""
        return cls(folder, {name: facts["checkpoint"] for name, facts in networks.items()})

    def note(self, name: str, content: str | None) -> None:
        """Note the content of a checkpoint, or compare it with that of the first load.

        Args:
            name: name of the checkpoint.
            content: its SHA-256, in hexadecimal; None if there is no file.

        Raises:
            FxFaultError: the checkpoint was replaced in between.
        """
        if content is None:
            return
        refuse_other(name, self._contents.setdefault(name, content), content, self._activity)
        if not name.startswith(BUNDLED):
            path = self.folder / expanded(name)
            if path.is_file():  # In a cluster, the file may exist on other machines only.
                self._paths.setdefault(name, path)

    def check(self) -> None:
        """Check that no file has changed, reading only those that were touched.

        Raises:
            FxFaultError: a file was replaced or removed.
        """
        for name, path in self._paths.items():
            stamp = _stamp(path)
            if stamp is None or stamp != self._stamps.get(name):
                refuse_other(name, self._contents[name], _sha256(path), self._activity)
                self._stamps[name] = stamp


def refuse_other(name: str, noted: str | None, now: str | None, activity: Activity = STUDY) -> None:
    """Raise an `FxFaultError` if a checkpoint's content is not the one that was noted."""
    if now == noted:
        return
    if now is not None and noted is not None:
        what = f"replaced while the {activity.name} ran "
        what += f"(sha256 {noted[:12]}... when it was loaded, {now[:12]}... now)"
    else:
        what = f"removed while the {activity.name} ran"
    raise activity.error(f"checkpoint {name!r} was {what}: {activity.mend}")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Values that change with a file, even if the clock was set back."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(path: Path) -> str | None:
    content = hashlib.sha256()  # hashlib.file_digest needs Python 3.11.
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except OSError:
        return None
    return content.hexdigest()
