"""Files that a command writes: checked before the work, and whole or not at all after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fxfault.errors import ConfigError
from fxfault.files import write_atomically


@dataclass(frozen=True)
class OutputFile:
    """A file that can be written, as far as can be known beforehand.

    Attributes:
        flag: that names it on the command line.
        path: as it is shown to the user.
    """

    flag: str
    path: Path

    def __post_init__(self) -> None:
        try:
            self._check()
        except OSError as error:
            raise self._error(f"cannot be written: {_reason(error)}; name another file") from error

    def _check(self) -> None:
        target = self._target
        if self.path.is_dir():
            raise self._error(f"is a folder: name a file in it, such as {self.path / 'result'}")
        if target.exists() and not target.is_file():
            raise self._error("is no regular file: name another one")
        if not target.parent.is_dir():
            what = "is no folder" if target.parent.exists() else "does not exist"
            raise self._error(f"cannot be written: the folder {target.parent} {what}")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(0, "the file is write-protected")

    @property
    def _target(self) -> Path:
        # A link stays a link: the file that it leads to is replaced.
        return Path(os.path.realpath(self.path))

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.flag}: {self.path} {problem}")

    def is_same_file(self, other: str | Path) -> bool:
        """Whether this and another path lead to the same file."""
        return self._target == Path(os.path.realpath(other))

    def write(self, content: str | bytes) -> None:
        """Write the file; an existing one is replaced at once or not at all.

        Raises:
            ConfigError: the folder is gone, the disk is full, or the like.
        """
        try:
            write_atomically(self._target, content)
        except OSError as error:
            raise self._error(f"cannot be written: {_reason(error)}") from error


def refuse_overwriting(outputs: Iterable[OutputFile], inputs: dict[str, str | Path]) -> None:
    """Check that no output is an input or another output.

    Args:
        outputs: the files to be written.
        inputs: files that are read, by what they are.

    Raises:
        ConfigError: one is.
    """
    seen: list[OutputFile] = []
    for output in outputs:
        for what, path in inputs.items():
            if output.is_same_file(path):
                raise ConfigError(f"{output.flag}: {output.path} is the {what}; name another file")
        for other in seen:
            if output.is_same_file(other.path):
                raise ConfigError(
                    f"{output.flag}: {output.path} is the file of {other.flag} too; name another"
                )
        seen.append(output)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
