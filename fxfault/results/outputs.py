"""Files that a command writes: checked before the work, and written whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxfault.campaign.records.store_files import part_of, store_of
from fxfault.errors import ConfigError
from fxfault.files.access import write_atomically
from fxfault.messages import reason_of


@dataclass(frozen=True)
class OutputFile:
    """A file, named by an option (`flag`), that can be written as far as one can know beforehand.

    A relative path stays relative to the folder that the process is in when this object is made.
    """

    flag: str
    path: Path
    _absolute: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_absolute", Path(os.path.abspath(self.path)))
        try:
            self._check()
        except OSError as error:
            problem = f"cannot be written: {reason_of(error)}; name another file"
            raise self._error(problem) from error

    def _check(self) -> None:
        target = self._target
        if self.path.is_dir():
            raise self._error(f"is a folder: name a file in it, such as {self.path / 'result'}")
        if target.exists() and not target.is_file():
            raise self._error("is no regular file: name another one")
        if not target.parent.is_dir():
            what = "is no folder" if target.parent.exists() else "does not exist"
            raise self._error(f"cannot be written: the folder {target.parent} {what}")
        self._refuse_stream()
        self._refuse_store()
        with tempfile.TemporaryFile(dir=target.parent):
            pass
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(0, "the file is write-protected")

    def _refuse_stream(self) -> None:
        """A file that stdout goes to would be replaced, and what is printed later is lost."""
        for number, name in ((1, "stdout"), (2, "stderr")):
            with contextlib.suppress(OSError):  # One of them is not there.
                if os.path.samestat(os.stat(self._absolute), os.fstat(number)):
                    raise self._error(f"is the file that {name} goes to; name another file")

    def _refuse_store(self) -> None:
        """Refuse to replace any file of a store: its trials exist nowhere else."""
        found = store_of(self._target)
        if found is not None:
            raise self._error(f"is {found[1]}; name another file")

    @property
    def _target(self) -> Path:
        # A link stays a link; the file that it leads to is replaced.
        return Path(os.path.realpath(self._absolute))

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.flag}: {self.path} {problem}")

    def is_same_file(self, other: str | Path) -> bool:
        """Whether this and another path lead to the same file."""
        try:
            is_hard_link = os.path.samefile(self._target, other)
        except OSError:
            is_hard_link = False
        return is_hard_link or self._target == Path(os.path.realpath(other))

    def write(self, content: str | bytes) -> Path:
        """Write the file, or replace it whole or not at all; returns its path for messages."""
        try:
            self._refuse_store()  # There may be one by now.
            write_atomically(self._target, content)
        except OSError as error:
            raise self._error(f"cannot be written: {reason_of(error)}") from error
        return self.path


@dataclass(frozen=True)
class NumberedFile(OutputFile):
    """A JSON file with a default name, which replaces no file that holds something else.

    If its name is taken, it becomes NAME_2, NAME_3 and so on. The names of `others` are taken.

    Attributes:
        may_replace: a function that tells of an old and a new JSON document whether the new one
            may replace the old one.
    """

    may_replace: Callable[[Any, Any], bool]
    others: tuple[OutputFile, ...] = ()

    def _check(self) -> None:
        with tempfile.TemporaryFile(dir=self._absolute.parent):
            pass

    def write(self, content: str | bytes) -> Path:
        """Write JSON under the first name that is free or that has a file that may be replaced.

        The name is chosen only now, since other programs may have written files meanwhile.
        """
        file, is_new = next(self._choices(content))
        try:
            OutputFile(self.flag, file).write(content)
            return self.path.with_name(file.name)
        except BaseException:
            if is_new:
                file.unlink(missing_ok=True)
            raise

    def _choices(self, content: str | bytes) -> Iterator[tuple[Path, bool]]:
        """Files that can be written, best first, and whether each was made just now."""
        for number in itertools.count(1):
            first = self._absolute
            name = f"{first.stem}_{number}{first.suffix}" if number > 1 else first.name
            file = first.with_name(name)
            if any(other.is_same_file(file) for other in self.others):
                continue
            if self._reserve(file):
                yield file, True
            elif self._is_replaceable(file, content):
                yield file, False

    def _reserve(self, file: Path) -> bool:
        """Make an empty file unless the name is taken: only one of two programs gets it."""
        try:
            with open(file, "xb"):
                return True
        except FileExistsError:
            return False
        except OSError as error:
            raise self._error(f"cannot be written: {reason_of(error)}") from error

    def _is_replaceable(self, file: Path, content: str | bytes) -> bool:
        try:
            # Reading a pipe would wait.
            old = json.loads(file.read_bytes()) if file.is_file() else None
        except (OSError, ValueError, RecursionError):  # Not a file of ours.
            return False
        return self.may_replace(old, json.loads(content))


def refuse_overwriting(outputs: Iterable[OutputFile], inputs: dict[str, str | Path]) -> None:
    """Check that no output is an input (by its name in messages) or another output.

    The input `store` means all files of that store.
    """
    seen: list[OutputFile] = []
    for output in outputs:
        for what, path in inputs.items():
            part = part_of(output.path, path) if what == "store" else None
            if part is not None:
                raise ConfigError(f"{output.flag}: {output.path} is {part}; name another file")
            if output.is_same_file(path):
                raise ConfigError(f"{output.flag}: {output.path} is the {what}; name another file")
        for other in seen:
            if output.is_same_file(other.path):
                raise ConfigError(
                    f"{output.flag}: {output.path} is the file of {other.flag} too; name another"
                )
        seen.append(output)
