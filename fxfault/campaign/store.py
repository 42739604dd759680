"""The store of a campaign: one SQLite file, one row for each finished trial.

What may happen to it, and what then: a process killed at any time, also in mid-write, loses
nothing that was added, and what was in mid-write is not there at all (SQLite's write-ahead log).
A power cut may cost the last seconds, never the file. A second writer is refused, by whatever
name it comes. Readers are never in the way. A file that is moved, deleted or replaced while it is
written is noticed at the next write, and what it had is kept.

The log needs memory that the processes share, so that a store on a network file system must be
used from one machine at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fxfault.campaign.errors import StoreError
from fxfault.campaign.rows import COUNTS, FIELDS, TrialRow
from fxfault.campaign.store_files import APPLICATION, lacks_its_log, store_of
from fxfault.campaign.store_schema import (
    check_columns,
    checked_about,
    checked_cell,
    checked_row,
    refuse,
)
from fxfault.file_locks import FileLock
from fxfault.files import expanded

if TYPE_CHECKING:
    import numpy as np

    from fxfault.campaign.study import Cell

SCHEMA = 1

# How long a commit waits for a reader that is in the way, which only happens at the log's end.
_PATIENCE = 30.0  # seconds
_CHUNK = 1 << 16  # rows

_NAMES = ("about", "cells", "trials")
_COLUMNS = FIELDS[1:]  # The cell stands before them, as a number.
_TABLES = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE trials (
    cell INTEGER NOT NULL REFERENCES cells (id),
    {", ".join(f"{name} INTEGER{' NOT NULL' if name != 'top5' else ''}" for name in COUNTS)},
    seconds REAL NOT NULL,
    PRIMARY KEY (cell, trial)
) WITHOUT ROWID;
"""
_INSERT = (
    f"INSERT INTO trials (cell, {', '.join(_COLUMNS)}) "
    f"VALUES ({', '.join('?' * (1 + len(_COLUMNS)))}) ON CONFLICT DO NOTHING"
)


class Store:
    """Finished trials, with the study that they belong to and what it was run on.

    >>> import tempfile
    >>> row = TrialRow("{}", 0, 10, 8, 9, 2, 1, None, 3, 40, 3, 1, 0.01)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Store.create(f"{folder}/study.sqlite", {"name": "a study"}, {}) as store:
    ...         store.add([row])
    ...     with Store.open(f"{folder}/study.sqlite") as store:
    ...         store.rows() == [row], store.counts(), store.study
    (True, {'{}': 1}, {'name': 'a study'})

    Attributes:
        path: of the file.
        study: the resolved study.
        fingerprint: of what it was run on; see `fxfault.campaign.fingerprint`.
        background: what a report tells beside the rows; see `fxfault.campaign.background`. Empty
            in a store of an earlier version.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: _Lock | None) -> None:
        """Take over open connections; use `create` or `open` instead."""
        self.path = path
        self._connection = connection
        self._lock = lock
        self._log: tuple[int, int] | None = None
        self._cells: dict[str, int] = {}
        with self._told("read"):
            about = dict(connection.execute("SELECT name, value FROM about"))
        self.study, self.fingerprint, self.background = checked_about(path, about)

    # -- opening ------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, study: Mapping[str, Any], fingerprint: Mapping[str, Any]
    ) -> Store:
        """Make a new store and open it for writing.

        Args:
            path: where no file is yet, or an empty one.
            study: the resolved study, as JSON can hold it.
            fingerprint: of what it is run on, as JSON can hold it.

        Raises:
            StoreError: the file exists, is in use or cannot be written.
        """
        target = _checked_path(path)
        lock = _Lock(target)
        try:
            lock.hold(create=True)
            with _told(target, "made"):
                connection = _connect(target, "rwc")
            try:
                _make(connection, target, study, fingerprint)
                return cls(target, connection, lock)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: str | Path, *, write: bool = False) -> Store:
        """Open a store.

        Args:
            path: of the file.
            write: whether rows are to be added. Only one process at a time may; a store can
                always be read, while another process writes and in a folder that is read-only.

        Raises:
            StoreError: there is no such file, it is no store, a newer fxfault wrote it, or it is
                to be written while another process does.
        """
        target = _checked_path(path)
        if not target.exists():
            raise StoreError(f"{target}: there is no such store; check the path")
        lock = _Lock(target) if write else None
        try:
            if lock is not None:
                lock.hold()
            connection = _open_checked(target, write)
            try:
                return cls(target, connection, lock)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def close(self) -> None:
        """Close the file; where nobody else has it open, all of it is in the one file then."""
        if self._lock is not None and self._lost() is None:
            # One file that can be copied, and read in a folder that is read-only. Fails while
            # somebody reads; then the log stays beside the file, which is as good here.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        elif self._lock is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._lock.keep_log()
        self._connection.close()
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------

    def register(self, cells: Iterable[str]) -> None:
        """Note which cells there are, in the order in which `counts` and `table` shall have them.

        Cells that are there already keep their place.

        Raises:
            StoreError: the store cannot be written.
        """
        with self._writing() as connection:
            # No INSERT OR IGNORE: it would use up a number for each cell that is there.
            known = {key for (key,) in connection.execute("SELECT key FROM cells")}
            new = [(key,) for key in dict.fromkeys(cells) if key not in known]
            connection.executemany("INSERT INTO cells (key) VALUES (?)", new)

    def extend(self, study: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Let the store hold another study, whose rows fit beside those that are there.

        Raises:
            StoreError: the store cannot be written.
        """
        about = [(json.dumps(study), "study"), (json.dumps(fingerprint), "fingerprint")]
        with self._writing() as connection:
            connection.executemany("UPDATE about SET value = ? WHERE name = ?", about)
        self.study, self.fingerprint = (json.loads(value) for value, _ in about)

    def note(self, background: Mapping[str, Any]) -> None:
        """Note what a report tells beside the rows; what was noted before stays.

        Raises:
            StoreError: the store cannot be written.
        """
        if not self.background:
            self.background = dict(background)
            with self._writing() as connection:
                entry = ("background", json.dumps(self.background))
                connection.execute("INSERT INTO about VALUES (?, ?)", entry)

    def add(self, rows: Sequence[TrialRow]) -> None:
        """Add finished trials, all of them or none; one that is there already is not added again.

        Raises:
            StoreError: the store cannot be written, or holds a trial of the same cell and number
                with other counts.
        """
        if any(row.cell not in self._cells for row in rows):
            self.register(row.cell for row in rows)
            with self._told("read"):
                self._cells = dict(self._connection.execute("SELECT key, id FROM cells"))
        with self._writing() as connection:
            before = connection.total_changes
            values = [[self._cells[row.cell], *row.to_list()[1:]] for row in rows]
            connection.executemany(_INSERT, values)
            if connection.total_changes - before < len(rows):
                self._refuse_contradictions(rows)

    def check(self) -> None:
        """See that what is written is still what is found under the store's name.

        Raises:
            StoreError: it was moved, deleted or replaced; its trials were saved, if that is
                possible, and the message says where.
        """
        what = self._lost()
        if what is not None:
            raise StoreError(f"{self.path}: {what} while it was being written; {self._saved()}")

    def _lost(self) -> str | None:
        """What has become of the files, in words; None where all is well."""
        if self._lock is None:
            return None
        there = _identity(self.path)
        if there != self._lock.identity:
            return f"the store was {'moved or deleted' if there is None else 'replaced'}"
        log = _identity(_log_path(self.path))
        if self._log is None:
            self._log = log
        elif log != self._log:
            return f"its log, {self.path.name}-wal, was {'deleted' if log is None else 'replaced'}"
        return None

    def _saved(self) -> str:
        """Save the trials of a store that has lost its name or its log; says where they are."""
        with contextlib.suppress(sqlite3.Error):
            # All into the one file, under whichever name it has now.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert self._lock is not None
        try:
            (trials,) = self._connection.execute("SELECT COUNT(*) FROM trials").fetchone()
            kept = self.path
            if _identity(kept) != self._lock.identity:
                kept = _copied(self._connection, self.path)
        except (sqlite3.Error, OSError) as error:
            return f"its trials could not be saved ({error}): start anew"
        advice = "run it again" if kept == self.path else "move it to its place and run it again"
        return f"its {trials} finished trials are kept in {kept}: {advice}"

    def _refuse_contradictions(self, rows: Iterable[TrialRow]) -> None:
        for row in rows:
            (stored,) = self._rows("WHERE key = ? AND trial = ?", (row.cell, row.trial))
            if not stored.same_counts(row):
                raise StoreError(
                    f"{self.path}: trial {row.trial} of cell {row.cell} came again with other "
                    f"counts ({row} instead of {stored}); the network does not compute the same "
                    "each time"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        if self._lock is None:
            raise StoreError(f"{self.path}: the store was opened for reading only")
        with self._told("written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self.check()

    # -- reading ------------------------------------------------------------------------

    def rows(self, cell: str | None = None) -> list[TrialRow]:
        """All rows, or those of one cell; in the order of cells and trials.

        Raises:
            StoreError: the file is damaged.
        """
        return self._rows("", ()) if cell is None else self._rows("WHERE key = ?", (cell,))

    def _rows(self, where: str, values: tuple[Any, ...]) -> list[TrialRow]:
        query = (
            f"SELECT key, {', '.join(_COLUMNS)} FROM trials JOIN cells ON cells.id = trials.cell "
            f"{where} ORDER BY trials.cell, trial"
        )
        with self._told("read"):
            return [checked_row(self.path, row) for row in self._connection.execute(query, values)]

    def counts(self) -> dict[str, int]:
        """How many trials of each cell are finished."""
        query = (
            "SELECT key, COUNT(trial) FROM cells LEFT JOIN trials ON cells.id = trials.cell "
            "GROUP BY cells.id ORDER BY cells.id"
        )
        with self._told("read"):
            return dict(self._connection.execute(query))

    def cells(self) -> list[str]:
        """The keys of all cells, in the order in which they were registered."""
        with self._told("read"):
            return [key for (key,) in self._connection.execute("SELECT key FROM cells ORDER BY id")]

    def settings(self) -> list[Cell]:
        """The same as cells, each with its settings.

        Raises:
            StoreError: a key is that of no cell.
        """
        return [checked_cell(self.path, key) for key in self.cells()]

    def table(self) -> dict[str, np.ndarray[Any, Any]]:
        """All rows as columns, in the order of cells and trials.

        A million rows take about two seconds and 150 MB.

        Returns:
            `cell`: int64 indices into `cells()`; the fields of `TrialRow` by name: int64, and
            float64 for `seconds` and for `top5`, which is NaN where it is None.

        Raises:
            StoreError: the file is damaged.
        """
        import numpy as np

        names = ("cell", *_COLUMNS)
        # No join: it would take ten times as long.
        query = f"SELECT {', '.join(names)} FROM trials ORDER BY cell, trial"
        columns: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
        with self._snapshot():
            numbers = [n for (n,) in self._connection.execute("SELECT id FROM cells ORDER BY id")]
            cursor = self._connection.execute(query)
            while True:
                chunk = cursor.fetchmany(_CHUNK)
                # float64 holds counts up to 2**53 exactly, and a None becomes a NaN.
                try:
                    block = np.array(chunk, dtype=np.float64).reshape(len(chunk), len(names))
                except (TypeError, ValueError, OverflowError):
                    refuse(self.path, "a trial has a text where a count must be")
                by_name = dict(zip(names, block.T, strict=True))
                check_columns(self.path, by_name, numbers)
                for name, column in zip(names, block.T, strict=True):
                    kind = np.float64 if name in ("seconds", "top5") else np.int64
                    columns[name].append(column.astype(kind))
                if len(chunk) < _CHUNK:
                    break
        table = {name: np.concatenate(parts) for name, parts in columns.items()}
        table["cell"] = np.searchsorted(numbers, table["cell"])
        return table

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let several queries see one state, whatever another process adds meanwhile."""
        with self._told("read"):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Say where and why where SQLite fails."""
        with _told(self.path, doing):
            yield


def is_new(path: str | Path) -> bool:
    """Whether a store can be made there; a file of no bytes is one whose making was interrupted.

    Raises:
        StoreError: nothing can be written there, or somebody else is writing.
    """
    target = _checked_path(path)
    lock = _Lock(target)
    try:
        if target.exists():
            lock.hold()
        if target.exists() and target.stat().st_size:
            # Undoes what a killed process had begun, and may leave nothing.
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(_connect(target, "rw")) as connection,
            ):
                connection.execute("PRAGMA user_version").fetchone()
        return not (target.exists() and target.stat().st_size)
    finally:
        lock.release()


def _checked_path(path: str | Path) -> Path:
    """The absolute path, which stays the same wherever the process goes."""
    target = expanded(path)
    if target.is_dir():
        raise StoreError(f"{target} is a folder: name the file of the store")
    if not target.parent.is_dir():
        raise StoreError(f"{target}: there is no folder {str(target.parent)!r}; make it first")
    if target.exists() and not target.is_file():
        raise StoreError(f"{target} is no regular file: name the file of the store")
    try:
        found = store_of(target)
    except OSError:  # SQLite will say so.
        found = None
    if found is not None and Path(os.path.realpath(target)) != found[0]:
        raise StoreError(
            f"{target} is {found[1].replace('the store', str(found[0]), 1)}: name another file"
        )
    return target.absolute()


def _real(path: Path) -> Path:
    """Where the files are: SQLite, too, has its log beside what a link leads to."""
    return Path(os.path.realpath(path))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is there; None where nothing is."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _copied(connection: sqlite3.Connection, path: Path) -> Path:
    """Copy an open store to a new file beside the place that it had."""
    for number in itertools.count(1):
        copy = path.with_name(f"{path.stem}.kept-{number}{path.suffix}")
        try:
            with open(copy, "xb"):
                break
        except FileExistsError:
            continue
    with contextlib.closing(_connect(copy, "rw")) as target:
        connection.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    return copy


def _connect(path: Path, mode: str, immutable: bool = False) -> sqlite3.Connection:
    """Open a database (`mode`: ro, rw or rwc); the caller begins and ends transactions."""
    address = f"file:{urllib.parse.quote(os.fsencode(_real(path)))}?mode={mode}"
    address += "&immutable=1" if immutable else ""
    return sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)


class _Lock:
    """That of the one writer: first of the name, where no file may be yet, then of the file.

    The name's is SQLite's own, on an empty file beside the store. Both are held by this process
    alone (not by what it forks) and gone with it, however it ends.
    """

    def __init__(self, path: Path) -> None:
        """Lock the name.

        Raises:
            StoreError: another process has it, or nothing can be written there.
        """
        self.path = path
        self._file: FileLock | None = None
        with _told(path, "written"):
            real = _real(path)
            self._name = _connect(real.with_name(f"{real.name}-lock"), "rwc")
            try:
                self._name.execute("PRAGMA busy_timeout = 0")
                self._name.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                self._name.close()
                if "locked" not in str(error):
                    raise
                raise self._refusal() from error

    def hold(self, *, create: bool = False) -> None:
        """Lock the file, too.

        Raises:
            StoreError: another process has it, under whatever name, or it cannot be written.
        """
        try:
            self._file = FileLock.take(_real(self.path), create=create)
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
        """Device and inode of the file that is held."""
        return None if self._file is None else self._file.identity

    def keep_log(self) -> None:
        """See `FileLock.keep_log`."""
        if self._file is not None:
            self._file.keep_log()

    def release(self) -> None:
        """Let others write. The lock's file stays: somebody may just be opening it."""
        if self._file is not None:
            self._file.release()
        self._name.close()


def _open_checked(path: Path, write: bool) -> sqlite3.Connection:
    if lacks_its_log(_real(path)):
        raise StoreError(
            f"{path} has another name (a hard link), by which it was written and not finished; its "
            "last trials are in the log beside that name: open it by that one, or remove it"
        )
    try:
        connection = _connect_to_store(path, "rw" if write else "ro")
    except StoreError as error:
        if write or not isinstance(error.__cause__, sqlite3.OperationalError):
            raise
        if _log_of(path):
            raise StoreError(
                f"{error}; {path.name}-wal beside it has rows too: copy both to a folder that can "
                "be written, and open them there"
            ) from error
        # Where nothing may be made beside it, a file without a log can be read as it is.
        connection = _connect_to_store(path, "ro", immutable=True)
    if write:
        _prepare_writing(connection, path)
    return connection


def _connect_to_store(path: Path, mode: str, immutable: bool = False) -> sqlite3.Connection:
    with _told(path, "opened"):
        connection = _connect(path, mode, immutable)
    try:
        _check_is_store(connection, path)
        return connection
    except BaseException:
        connection.close()
        raise


def _log_of(path: Path) -> int:
    """Bytes in the write-ahead log."""
    log = _log_path(path)
    return log.stat().st_size if log.exists() else 0


def _log_path(path: Path) -> Path:
    real = _real(path)
    return real.with_name(f"{real.name}-wal")


def _check_is_store(connection: sqlite3.Connection, path: Path) -> None:
    with _told(path, "read"):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        what = "is empty" if path.stat().st_size == 0 else "is an SQLite file of something else"
        raise StoreError(f"{path} is no store of a campaign: it {what}")
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
    with _told(path, "read"):
        made = list(connection.execute("SELECT type, name, rootpage FROM sqlite_master"))
        computed = [f"{kind} {name!r}" for kind, name, page in made if not page]
        for name in _NAMES:
            columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,))
            computed += [f"column {name}.{column}" for column, hidden in columns if hidden]
    if computed:
        refuse(path, f"it computes what it must hold: {', '.join(computed)[:200]}")


def _make(
    connection: sqlite3.Connection,
    path: Path,
    study: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
) -> None:
    about = [("study", json.dumps(study)), ("fingerprint", json.dumps(fingerprint))]
    with _told(path, "made"):
        # All in one transaction: whoever is killed here leaves an empty file, which is taken.
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


def _prepare_writing(connection: sqlite3.Connection, path: Path) -> None:
    with _told(path, "written"):
        connection.execute("PRAGMA journal_mode = WAL")
        # The log is written at each commit and forced to the disk now and then: killed processes
        # lose nothing, and a commit takes 30 µs instead of milliseconds.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")


_ADVICE = {
    "full": "free some space and run it again: what was finished is kept",
    "not a database": "name a store that fxfault-campaign wrote, or a new file",
    "malformed": "the file is damaged: go on from a copy, or start a new one",
    "readonly": "check the permissions of the file and its folder",
    "unable to open": "check the permissions of the file and its folder",
    "disk I/O": "the disk fails, is full, or a limit on file sizes is reached",
}


@contextlib.contextmanager
def _told(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        advice = [text for part, text in _ADVICE.items() if part in str(error)]
        end = f"; {advice[0]}" if advice else ""
        raise StoreError(f"{path} cannot be {doing}: {error}{end}") from error
