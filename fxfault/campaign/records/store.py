"""The store of a campaign: one SQLite file, one row for each finished trial.

The store survives a process that is killed at any time: rows that were added stay, and an
unfinished write leaves nothing (SQLite's write-ahead log). A power cut may cost the last seconds,
never the file. A second writer is refused, under whatever name it opens the file. Readers never
block a writer. If the file is moved, deleted or replaced while it is written, the next write
notices and saves the rows.

The processes share memory for the log, so that a store on a network file system must be used from
one machine at a time.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.campaign.records.connection import (
    WriterLock,
    add_columns,
    checked_path,
    connect,
    copied,
    identity_of,
    make_tables,
    open_checked,
    selected,
    sqlite_errors,
)
from fxfault.campaign.records.store_files import file_of
from fxfault.campaign.records.store_schema import (
    check_columns,
    checked_about,
    checked_cell,
    checked_row,
    refuse,
)
from fxfault.errors import StoreError
from fxfault.evaluation.rows import FIELDS, OPTIONAL, REALS, TrialRow

if TYPE_CHECKING:
    import numpy as np

    from fxfault.campaign.studies.cell import Cell

_CHUNK = 1 << 16  # rows

_COLUMNS = FIELDS[1:]  # All but the cell, which a table holds as a number.
_INSERT = (
    f"INSERT INTO trials (cell, {', '.join(_COLUMNS)}) "
    f"VALUES ({', '.join('?' * (1 + len(_COLUMNS)))}) ON CONFLICT DO NOTHING"
)


class Store:
    """Finished trials, with their study and its fingerprint.

    >>> import tempfile
    >>> row = TrialRow("{}", 0, 10, 8, 9, 2, 1, None, 3, 40, 3, 1, 0.01)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Store.create(f"{folder}/study.sqlite", {"name": "a study"}, {}) as store:
    ...         store.add([row])
    ...     with Store.open(f"{folder}/study.sqlite") as store:
    ...         store.rows() == [row], store.counts(), store.study
    (True, {'{}': 1}, {'name': 'a study'})

    Attributes:
        path: the store's file.
        study: the resolved study.
        fingerprint: what the rows depend on; see `fxfault.campaign.records.fingerprint`.
        background: notes for the report; see `fxfault.campaign.records.background`. Empty in a
            store of an earlier version.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: WriterLock | None) -> None:
        """Take over an open connection; use `create` or `open` instead."""
        self.path = path
        self._connection = connection
        self._lock = lock
        self._log: tuple[int, int] | None = None
        self._cells: dict[str, int] = {}
        with sqlite_errors(self.path, "read"):
            about = dict(connection.execute("SELECT name, value FROM about"))
        self.study, self.fingerprint, self.background = checked_about(path, about)

    # -- opening ------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, study: Mapping[str, Any], fingerprint: Mapping[str, Any]
    ) -> Store:
        """Create a store and open it for writing.

        Args:
            path: the path of the new file; an empty file may exist there.
            study: the resolved study, as plain values that JSON can hold.
            fingerprint: the fingerprint, as plain values that JSON can hold.

        Raises:
            StoreError: the file exists, is in use or cannot be written.
        """
        target = checked_path(path)
        with contextlib.ExitStack() as on_error:
            lock = WriterLock(target)
            on_error.callback(lock.release)
            lock.hold(create=True)
            with sqlite_errors(target, "made"):
                connection = connect(target, "rwc")
            on_error.callback(connection.close)
            make_tables(connection, target, study, fingerprint)
            store = cls(target, connection, lock)
            on_error.pop_all()
            return store

    @classmethod
    def open(cls, path: str | Path, *, write: bool = False) -> Store:
        """Open a store.

        Args:
            path: the store's file.
            write: open for adding rows, which only one process at a time may. Reading is always
                possible, even while another process writes or in a read-only folder.

        Raises:
            StoreError: there is no such file, it is not a store, a newer fxfault wrote it, or
                another process is writing it.
        """
        target = checked_path(path)
        if not target.exists():
            raise StoreError(f"{target}: there is no such store; check the path")
        with contextlib.ExitStack() as on_error:
            lock = None
            if write:
                lock = WriterLock(target)
                on_error.callback(lock.release)
                lock.hold()
            connection = open_checked(target, write)
            on_error.callback(connection.close)
            store = cls(target, connection, lock)
            on_error.pop_all()
            return store

    def close(self) -> None:
        """Close the file; unless another process has it open, its log goes into it."""
        if self._lock is not None and self._lost() is None:
            # Leave a single file, which can be copied, and read in a read-only folder. This fails
            # while another process reads; then the log stays beside the file, which is fine.
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

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------

    def register(self, cells: Iterable[str]) -> None:
        """Note the cells, in the order for `counts` and `table`.

        Cells that are registered already keep their place.

        Raises:
            StoreError: the store cannot be written.
        """
        with self._writing() as connection:
            # INSERT OR IGNORE would use up a number for each registered cell.
            known = {key for (key,) in connection.execute("SELECT key FROM cells")}
            new = [(key,) for key in dict.fromkeys(cells) if key not in known]
            connection.executemany("INSERT INTO cells (key) VALUES (?)", new)

    def extend(self, study: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Replace the study by one whose rows fit beside the stored ones.

        Raises:
            StoreError: the store cannot be written.
        """
        about = [(json.dumps(study), "study"), (json.dumps(fingerprint), "fingerprint")]
        with self._writing() as connection:
            connection.executemany("UPDATE about SET value = ? WHERE name = ?", about)
        self.study, self.fingerprint = (json.loads(value) for value, _ in about)

    def note(self, background: Mapping[str, Any]) -> None:
        """Store the background of the report, unless the store has one.

        Raises:
            StoreError: the store cannot be written.
        """
        if not self.background:
            self.background = dict(background)
            with self._writing() as connection:
                entry = ("background", json.dumps(self.background))
                connection.execute("INSERT INTO about VALUES (?, ?)", entry)

    def add(self, rows: Sequence[TrialRow]) -> None:
        """Add finished trials, all of them or none; stored trials are not added again.

        Raises:
            StoreError: the store cannot be written, or holds the same trial with other counts.
        """
        if any(row.cell not in self._cells for row in rows):
            self.register(row.cell for row in rows)
            with sqlite_errors(self.path, "read"):
                self._cells = dict(self._connection.execute("SELECT key, id FROM cells"))
        with self._writing() as connection:
            add_columns(connection)
            before = connection.total_changes
            values = [[self._cells[row.cell], *row.to_list()[1:]] for row in rows]
            connection.executemany(_INSERT, values)
            if connection.total_changes - before < len(rows):
                self._refuse_contradictions(rows)

    def check(self) -> None:
        """Check that the open file is still the one under the store's name.

        Raises:
            StoreError: the file was moved, deleted or replaced; the message says where its trials
                were saved, if that was possible.
        """
        what = self._lost()
        if what is not None:
            raise StoreError(f"{self.path}: {what} while it was being written; {self._saved()}")

    def _lost(self) -> str | None:
        """What happened to the files, in words; None if they are in place."""
        if self._lock is None:
            return None
        there = identity_of(self.path)
        if there != self._lock.identity:
            return f"the store was {'moved or deleted' if there is None else 'replaced'}"
        log = identity_of(file_of(self.path, "-wal"))
        if self._log is None:
            self._log = log
        elif log != self._log:
            return f"its log, {self.path.name}-wal, was {'deleted' if log is None else 'replaced'}"
        return None

    def _saved(self) -> str:
        """Save the trials of a store that lost its name or its log, and say where."""
        with contextlib.suppress(sqlite3.Error):
            # Move the log into the file, under whichever name it has now.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert self._lock is not None
        try:
            (trials,) = self._connection.execute("SELECT COUNT(*) FROM trials").fetchone()
            kept = self.path
            if identity_of(kept) != self._lock.identity:
                kept = copied(self._connection, self.path)
        except (sqlite3.Error, OSError) as error:
            return f"its trials could not be saved ({error}): start a new store"
        advice = "run it again" if kept == self.path else "move it to its place and run it again"
        return f"its {trials} finished trials are kept in {kept}: {advice}"

    def _refuse_contradictions(self, rows: Iterable[TrialRow]) -> None:
        for row in rows:
            (stored,) = self._each("WHERE key = ? AND trial = ?", row.cell, row.trial)
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
        with sqlite_errors(self.path, "written"):
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
        """Return all rows, or those of one cell, in the order of cells and trials.

        Raises:
            StoreError: the file is damaged.
        """
        return list(self._each("") if cell is None else self.each(cell))

    def each(self, cell: str) -> Iterator[TrialRow]:
        """Yield the rows of one cell in the order of trials, which may be millions; see `rows`."""
        return self._each("WHERE key = ?", cell)

    def _each(self, where: str, *values: Any) -> Iterator[TrialRow]:
        joined = f"trials JOIN cells ON cells.id = trials.cell {where} ORDER BY trials.cell, trial"
        with self._reading():
            query = f"SELECT key, {selected(self._connection, _COLUMNS)} FROM {joined}"
            for row in self._connection.execute(query, values):
                yield checked_row(self.path, row)

    def counts(self) -> dict[str, int]:
        """Return the number of finished trials of each cell."""
        query = "SELECT key, COUNT(trial) FROM cells LEFT JOIN trials ON id = cell GROUP BY id"
        with sqlite_errors(self.path, "read"):
            return dict(self._connection.execute(f"{query} ORDER BY id"))

    def cells(self) -> list[str]:
        """Return the keys of all cells, in the order of registration."""
        with sqlite_errors(self.path, "read"):
            return [key for (key,) in self._connection.execute("SELECT key FROM cells ORDER BY id")]

    def settings(self) -> list[Cell]:
        """Return all cells with their settings, in the order of registration.

        Raises:
            StoreError: a key is not that of a cell.
        """
        return [checked_cell(self.path, key) for key in self.cells()]

    def table(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return all rows as columns, in the order of cells and trials.

        A million rows take about two seconds and 150 MB, and no more while they are read.

        Returns:
            `cell`: int64 indices into `cells()`; the other fields of `TrialRow` by name, int64 or
            float64, with NaN for None.

        Raises:
            StoreError: the file is damaged.
        """
        import numpy as np

        names = ("cell", *_COLUMNS)
        # A join would take ten times as long.
        with self._reading():
            (rows,) = self._connection.execute("SELECT COUNT(*) FROM trials").fetchone()
            table = {name: np.empty(rows) for name in names}
            numbers = [n for (n,) in self._connection.execute("SELECT id FROM cells ORDER BY id")]
            query = f"SELECT {selected(self._connection, names)} FROM trials ORDER BY cell, trial"
            cursor = self._connection.execute(query)
            for start in range(0, rows, _CHUNK):
                chunk = cursor.fetchmany(_CHUNK)
                if len(chunk) < min(_CHUNK, rows - start):
                    refuse(self.path, "it has fewer trials than it counts")
                # float64 holds counts up to 2**53 exactly, and None becomes NaN.
                try:
                    block = np.array(chunk, dtype=np.float64).reshape(len(chunk), len(names))
                except (TypeError, ValueError, OverflowError):
                    refuse(self.path, "a trial has text where a count should be")
                check_columns(self.path, dict(zip(names, block.T, strict=True)), numbers)
                for name, column in zip(names, block.T, strict=True):
                    table[name][start : start + len(chunk)] = column
        hollow = [n for n in OPTIONAL if np.isnan(table[n]).any()]
        for name in set(table) - {"seconds", "top5", *REALS, *hollow}:
            table[name] = table[name].astype(np.int64)
        table["cell"] = np.searchsorted(numbers, table["cell"])
        return table

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """One transaction, perhaps the writer's: all queries see the same state."""
        with sqlite_errors(self.path, "read"), contextlib.ExitStack() as at_end:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN")
                at_end.callback(self._connection.execute, "ROLLBACK")
            yield
