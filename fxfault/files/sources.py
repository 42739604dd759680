"""The files that the weights of a run come from: they must stay what they were while it runs.

A study that goes on for hours loads a checkpoint again and again, in several processes. One that
is replaced meanwhile, by a training that saves its best epoch for instance, would give rows of
other weights beside those of the first. So it is with a training, and with an evaluation.
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
    """What goes on while files must stay what they are.

    Attributes:
        name: of it.
        mend: what to do, and what is kept.
        error: what it is told by.
    """

    name: str
    mend: str
    error: type[FxFaultError] = DataError


STUDY = Activity(
    "study", "put the old file back and go on, or name another store; finished trials are kept"
)
TRAINING = Activity(
    "training",
    "put the old file back and go on with --resume, or start anew; what was saved is kept",
    TrainingError,
)
EVALUATION = Activity(
    "evaluation", "what was written is of the old one; evaluate anew for what is there now"
)


class Sources:
    """Checkpoints with the content that they had when they were first loaded.

    Attributes:
        folder: where relative paths start.

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
9a129038d9a0... when it was loaded, 53959fa102f3... now): put the old file back and go on, or \
name another store; finished trials are kept
    """

    def __init__(
        self, folder: Path, contents: Mapping[str, str | None], activity: Activity = STUDY
    ) -> None:
        """Note which files there are.

        Args:
            folder: where relative paths start.
            contents: SHA-256 of what was loaded, in hexadecimal, by the name of the checkpoint.
            activity: what depends on them.

        Raises:
            FxFaultError: one has other content already.
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
        """The sources of the part `networks` of a study's fingerprint."""
        return cls(folder, {name: facts["checkpoint"] for name, facts in networks.items()})

    def note(self, name: str, content: str | None) -> None:
        """Note what was loaded, or compare it with what was when it was loaded first.

        Args:
            name: of the checkpoint.
            content: its SHA-256, in hexadecimal; None where there is no file.

        Raises:
            FxFaultError: it was replaced in between.
        """
        if content is None:
            return
        refuse_other(name, self._contents.setdefault(name, content), content, self._activity)
        if not name.startswith(BUNDLED):
            path = located(name, self.folder)
            if path.is_file():  # Of a cluster, other machines may have it alone.
                self._paths.setdefault(name, path)

    def check(self) -> None:
        """Check that no file has changed; only files that were touched are read.

        Raises:
            FxFaultError: one was replaced or removed.
        """
        for name, path in self._paths.items():
            stamp = _stamp(path)
            if stamp is None or stamp != self._stamps.get(name):
                refuse_other(name, self._contents[name], _sha256(path), self._activity)
                self._stamps[name] = stamp


def located(name: str, folder: Path) -> Path:
    """The path of a checkpoint, relative to a folder."""
    return folder / expanded(name)


def refuse_other(name: str, noted: str | None, now: str | None, activity: Activity = STUDY) -> None:
    """Compare the content of a checkpoint with what was noted.

    Raises:
        FxFaultError: it is another one.
    """
    if now == noted:
        return
    if now is not None and noted is not None:
        what = f"replaced while the {activity.name} ran "
        what += f"(sha256 {noted[:12]}... when it was loaded, {now[:12]}... now)"
    else:
        what = f"removed while the {activity.name} ran"
    raise activity.error(f"checkpoint {name!r} was {what}: {activity.mend}")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with a file, even if the clock was set back."""
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
