"""Connections to the SQLite file of a store: opening, creating and locking it.

Only one process at a time writes a store, under whatever name it opens the file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxfault.campaign.records.store_files import APPLICATION, file_of, lacks_its_log, store_of
from fxfault.campaign.records.store_schema import refuse
from fxfault.errors import StoreError
from fxfault.evaluation.rows import COUNTS, OPTIONAL, REALS
from fxfault.files.access import expanded
from fxfault.files.locks import FileLock

SCHEMA = 3

# A commit waits this long for a reader in its way, which only happens at the end of the log.
_PATIENCE = 30.0  # seconds

_NAMES = ("about", "cells", "trials")
# What stores of earlier schemas lack (1: all, 2: the fields of a metric), with what it is in SQL.
_YOUNG = {"due": "INTEGER NOT NULL DEFAULT 0", **dict.fromkeys(REALS, "REAL")}
_TABLES = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE trials (
    cell INTEGER NOT NULL REFERENCES cells (id),
    {", ".join(f"{name} INTEGER{'' if name in OPTIONAL else ' NOT NULL'}" for name in COUNTS)},
    seconds REAL NOT NULL,
    {", ".join(f"{name} REAL" for name in REALS)},
    PRIMARY KEY (cell, trial)
) WITHOUT ROWID;
"""


def checked_path(path: str | Path) -> Path:
    """The absolute path of a store; refuse one that cannot lead to a store."""
    target = expanded(path)
    if target.is_dir():
        raise StoreError(f"{target} is a folder: name the file of the store")
    if not target.parent.is_dir():
        raise StoreError(f"{target}: there is no folder {str(target.parent)!r}; make it first")
    if target.exists() and not target.is_file():
        raise StoreError(f"{target} is not a regular file: name the file of the store")
    try:
        found = store_of(target)
    except OSError:  # SQLite reports it later.
        found = None
    if found is not None and file_of(target) != found[0]:
        raise StoreError(
            f"{target} is {found[1].replace('the store', str(found[0]), 1)}: name another file"
        )
    return target.absolute()


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def copied(connection: sqlite3.Connection, path: Path) -> Path:
    """Copy an open store to a new file beside its former path."""
    for number in itertools.count(1):
        copy = path.with_name(f"{path.stem}.kept-{number}{path.suffix}")
        try:
            with open(copy, "xb"):
                break
        except FileExistsError:
            continue
    with contextlib.closing(connect(copy, "rw")) as target:
        connection.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    return copy


def connect(path: Path, mode: str, immutable: bool = False) -> sqlite3.Connection:
    """Open a database in a mode (ro, rw or rwc); the caller begins and ends transactions."""
    address = f"file:{urllib.parse.quote(os.fsencode(file_of(path)))}?mode={mode}"
    address += "&immutable=1" if immutable else ""
    return sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)


class WriterLock:
    """The lock of the only writer: first on the name, which may have no file yet, then on the file.

    SQLite locks the name, by an empty file beside the store. This process alone holds both locks
    (its forks do not), and they end with it, however it ends.
    """

    def __init__(self, path: Path) -> None:
        """Lock the name.

        Raises:
            StoreError: another process has the lock, or its file cannot be written.
        """
        self.path = path
        self._file: FileLock | None = None
        with sqlite_errors(path, "written"):
            self._name = connect(file_of(path, "-lock"), "rwc")
            try:
                self._name.execute("PRAGMA busy_timeout = 0")
                self._name.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                self._name.close()
                if "locked" not in str(error):
                    raise
                raise self._refusal() from error

    def hold(self, *, create: bool = False) -> None:
        """Lock the file.

        Raises:
            StoreError: another process has the lock, under whatever name, or the file cannot be
                written.
        """
        try:
            self._file = FileLock.take(file_of(self.path), create=create)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror or error}; check the permissions "
                "of the file and its folder"
            ) from error
        if self._file is None:
            raise self._refusal()

    def _refusal(self) -> StoreError:
        return StoreError(
            f"{self.path} is being written by another process: wait for it, or give this run a "
            "store of its own"
        )

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the locked file."""
        return None if self._file is None else self._file.identity

    def keep_log(self) -> None:
        """See `FileLock.keep_log`."""
        if self._file is not None:
            self._file.keep_log()

    def release(self) -> None:
        """Let others write. The lock's file stays, as another process may be opening it."""
        if self._file is not None:
            self._file.release()
        self._name.close()


def is_new(path: str | Path) -> bool:
    """Whether a path has no store yet; an empty file is one whose creation was interrupted.

    Raises:
        StoreError: the path cannot be written, or another process is writing.
    """
    target = checked_path(path)
    lock = WriterLock(target)
    try:
        if target.exists():
            lock.hold()
        if target.exists() and target.stat().st_size:
            # Rolls back what a killed process had begun, which may leave an empty file.
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(connect(target, "rw")) as connection,
            ):
                connection.execute("PRAGMA user_version").fetchone()
        return not (target.exists() and target.stat().st_size)
    finally:
        lock.release()


def open_checked(path: Path, write: bool) -> sqlite3.Connection:
    """Open a store, or say why it cannot be opened."""
    if lacks_its_log(file_of(path)):
        raise StoreError(
            f"{path} has another name (a hard link), under which an unfinished run wrote it; its "
            "last trials are in the log beside that name: open it by that one, or remove it"
        )
    try:
        connection = _connect_to_store(path, "rw" if write else "ro")
    except StoreError as error:
        if write or not isinstance(error.__cause__, sqlite3.OperationalError):
            raise
        log = file_of(path, "-wal")
        if log.exists() and log.stat().st_size:
            raise StoreError(
                f"{error}; {path.name}-wal beside it has rows, too: copy both to a folder that can "
                "be written, and open them there"
            ) from error
        # In a read-only folder, a file without a log can be read as it is.
        connection = _connect_to_store(path, "ro", immutable=True)
    if write:
        _prepare_writing(connection, path)
    return connection


def _connect_to_store(path: Path, mode: str, immutable: bool = False) -> sqlite3.Connection:
    with sqlite_errors(path, "opened"):
        connection = connect(path, mode, immutable)
    try:
        _check_is_store(connection, path)
        return connection
    except BaseException:
        connection.close()
        raise


def _check_is_store(connection: sqlite3.Connection, path: Path) -> None:
    with sqlite_errors(path, "read"):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        what = "is empty" if path.stat().st_size == 0 else "is an SQLite file of something else"
        raise StoreError(f"{path} is not the store of a campaign: it {what}")
    if schema > SCHEMA:
        raise StoreError(
            f"{path} was written by a newer fxfault (schema {schema}, this one knows up to "
            f"{SCHEMA}): upgrade fxfault"
        )
    _check_tables(connection, path)


def _check_tables(connection: sqlite3.Connection, path: Path) -> None:
    """See that there are plain tables only.

    What computes instead, a view for instance, could answer without end, or with gigabytes.
    """
    with sqlite_errors(path, "read"):
        made = list(connection.execute("SELECT type, name, rootpage FROM sqlite_master"))
        computed = [f"{kind} {name!r}" for kind, name, page in made if not page]
        for name in _NAMES:
            columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,))
            computed += [f"column {name}.{column}" for column, hidden in columns if hidden]
    if computed:
        refuse(path, f"it computes what it must hold: {', '.join(computed)[:200]}")


def make_tables(
    connection: sqlite3.Connection,
    path: Path,
    study: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
) -> None:
    """Create the tables of a new store."""
    about = [("study", json.dumps(study)), ("fingerprint", json.dumps(fingerprint))]
    with sqlite_errors(path, "made"):
        # One transaction: a process killed here leaves an empty file, which may be used again.
        connection.execute("BEGIN EXCLUSIVE")
        (things,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if things:
            raise StoreError(f"{path} exists already: open it, or name another file")
        for statement in filter(str.strip, _TABLES.split(";")):
            connection.execute(statement)
        connection.executemany("INSERT INTO about VALUES (?, ?)", about)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    _prepare_writing(connection, path)


def selected(connection: sqlite3.Connection, names: Sequence[str]) -> str:
    """Columns of trials for a SELECT; what the store lacks is 0, or NULL for a metric, in all rows.

    A writer may add them at any time: ask again in each transaction.
    """
    lacking = _lacking(connection)
    absent = {name: "NULL" if name in REALS else "0" for name in lacking}
    return ", ".join(f"{absent[name]} AS {name}" if name in lacking else name for name in names)


def _lacking(connection: sqlite3.Connection) -> list[str]:
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema >= SCHEMA:
        return []
    there = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('trials')")}
    return [name for name in _YOUNG if name not in there]


def add_columns(connection: sqlite3.Connection) -> None:
    """Add the columns that the trials lack, within the caller's transaction.

    An earlier fxfault, which would not fill them, then refuses the store.
    """
    lacking = _lacking(connection)
    for name in lacking:
        connection.execute(f"ALTER TABLE trials ADD COLUMN {name} {_YOUNG[name]}")
    if lacking:
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _prepare_writing(connection: sqlite3.Connection, path: Path) -> None:
    with sqlite_errors(path, "written"):
        connection.execute("PRAGMA journal_mode = WAL")
        # The log is written at each commit but synced to the disk only now and then: killed
        # processes lose nothing, and a commit takes 30 µs instead of milliseconds.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")


_ADVICE = {
    "full": "free some space and run it again: what was finished is kept",
    "not a database": "name a store that fxfault campaign wrote, or a new file",
    "malformed": "the file is damaged: go on from a copy, or start a new one",
    "readonly": "check the permissions of the file and its folder",
    "unable to open": "check the permissions of the file and its folder",
    "disk I/O": "the disk fails, is full, or a limit on file sizes is reached",
}


@contextlib.contextmanager
def sqlite_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an error of SQLite into a `StoreError`: the path cannot be `doing`."""
    try:
        yield
    except sqlite3.Error as error:
        advice = [text for part, text in _ADVICE.items() if part in str(error)]
        end = f"; {advice[0]}" if advice else ""
        raise StoreError(f"{path} cannot be {doing}: {error}{end}") from error
