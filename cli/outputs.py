"""Files that a command writes: checked before the work, and whole or not at all after it."""

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

from fxfault.campaign.store_files import part_of, store_of
from fxfault.errors import ConfigError
from fxfault.files import write_atomically


@dataclass(frozen=True)
class OutputFile:
    """A file that can be written, as far as can be known beforehand.

    Attributes:
        flag: that names it on the command line.
        path: as it is shown to the user. Where it leads to is settled at once, wherever the
            process goes later.
    """

    flag: str
    path: Path
    _absolute: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_absolute", Path(os.path.abspath(self.path)))
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
        """Trials are never written over, those in a log least of all: nobody else has them."""
        found = store_of(self._target)
        if found is not None:
            raise self._error(f"is {found[1]}; name another file")

    @property
    def _target(self) -> Path:
        # A link stays a link: the file that it leads to is replaced.
        return Path(os.path.realpath(self._absolute))

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.flag}: {self.path} {problem}")

    def is_same_file(self, other: str | Path) -> bool:
        """Whether this and another path lead to the same file."""
        return self._target == Path(os.path.realpath(other)) or _is_one(self._target, other)

    def write(self, content: str | bytes) -> Path:
        """Write the file; an existing one is replaced at once or not at all.

        Returns:
            The path of what was written, as it is shown to the user.

        Raises:
            ConfigError: the folder is gone, the disk is full, or the like.
        """
        try:
            self._refuse_store()  # Perhaps there is one by now.
            write_atomically(self._target, content)
        except OSError as error:
            raise self._error(f"cannot be written: {_reason(error)}") from error
        return self.path


@dataclass(frozen=True)
class NumberedFile(OutputFile):
    """A file whose name nobody asked for, so that it takes the place of no other.

    Where something has that name already, it becomes NAME_2, NAME_3 and so on.

    Attributes:
        path: the first name to try.
        may_replace: whether the content of a file that is there, read as JSON, may give way to
            the new content.
        others: whose names are not to be taken.
    """

    may_replace: Callable[[Any, Any], bool]
    others: tuple[OutputFile, ...] = ()

    def _check(self) -> None:
        with tempfile.TemporaryFile(dir=self._absolute.parent):
            pass

    def write(self, content: str | bytes) -> Path:
        """Write JSON under the first name that is free, or whose file may be replaced.

        The name is chosen only now: other programs may have written since the work began.
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
        """Files that can be written, the first the best, and whether each was made just now."""
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
        """Make an empty file, unless there is something: of two programs one gets the name."""
        try:
            with open(file, "xb"):
                return True
        except FileExistsError:
            return False
        except OSError as error:
            raise self._error(f"cannot be written: {_reason(error)}") from error

    def _is_replaceable(self, file: Path, content: str | bytes) -> bool:
        try:
            # A pipe would be waited for.
            old = json.loads(file.read_bytes()) if file.is_file() else None
        except (OSError, ValueError, RecursionError):  # It is none of ours.
            return False
        return self.may_replace(old, json.loads(content))


def refuse_overwriting(outputs: Iterable[OutputFile], inputs: dict[str, str | Path]) -> None:
    """Check that no output is an input or another output.

    Args:
        outputs: the files to be written.
        inputs: files that are read, by what they are; `store` stands for all files of a store.

    Raises:
        ConfigError: one is.
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


def inert(value: Any) -> Any:
    """What a cell of a CSV file is to hold, so that no spreadsheet takes a text for a formula.

    Names of sites, faults and files come from others; one that begins as a formula does gets an
    apostrophe before it, which a spreadsheet takes for the sign of a text.

    >>> inert("=1+1"), inert("features.2"), inert(-1.5)
    ("'=1+1", 'features.2', -1.5)
    """
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _is_one(path: Path, other: str | Path) -> bool:
    """Whether there is one file under both names, as hard links have it."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
