"""The store of a campaign: what is added stays, whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxfault.campaign.records.connection import SCHEMA
from fxfault.campaign.records.store import Store
from fxfault.errors import StoreError
from fxfault.evaluation.rows import COUNTS, FIELDS, REALS, TrialRow

STUDY = {"seed": {"value": 42}, "axes": {"probability": [1.0, 5.0]}}
FINGERPRINT = {"versions": {"torch": "2.13.0"}}


def row(cell: str = "a", trial: int = 0, **changes: object) -> TrialRow:
    counts = {**dict.fromkeys(COUNTS[1:], 7), "due": 0}
    made = TrialRow(cell=cell, trial=trial, **counts, seconds=0.25)
    return replace(made, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.create(path, STUDY, FINGERPRINT) as made:
        yield made


# -- what it holds --------------------------------------------------------------------------


def test_rows_come_back_as_they_were_added(path: Path, store: Store) -> None:
    rows = [row("a", 0), row("a", 1, seconds=1 / 3), row("b", 0, top5=None, elements=2**53)]
    store.add(rows)
    store.close()
    with Store.open(path) as again:
        assert again.rows() == rows
        assert again.rows("b") == rows[2:]
        assert again.rows("absent") == []
        assert (again.study, again.fingerprint) == (STUDY, FINGERPRINT)


def test_cells_have_the_order_in_which_they_were_registered(store: Store) -> None:
    store.register(["z", "a", "m"])
    store.add([row("m", 0), row("a", 1), row("new", 0), row("a", 0)])
    store.register(["later", "a", "z"])
    assert store.cells() == ["z", "a", "m", "new", "later"]
    assert store.counts() == {"z": 0, "a": 2, "m": 1, "new": 1, "later": 0}
    assert [(r.cell, r.trial) for r in store.rows()] == [("a", 0), ("a", 1), ("m", 0), ("new", 0)]


def test_a_trial_is_kept_once(store: Store) -> None:
    store.add([row(trial=0), row(trial=1)])
    store.add([row(trial=1, seconds=9.0), row(trial=2), row(trial=2)])
    assert store.rows() == [row(trial=number) for number in range(3)]


def test_a_trial_that_comes_again_with_other_counts_is_refused(store: Store) -> None:
    store.add([row(trial=3)])
    with pytest.raises(StoreError, match=r"trial 3 of cell a came again with other counts"):
        store.add([row(trial=4), row(trial=3, sdc=6)])
    assert store.rows() == [row(trial=3)]


def test_a_table_has_a_column_for_each_field(store: Store) -> None:
    store.register(["b", "a"])
    store.add([row("a", 1, sdc=3, top5=None), row("a", 0), row("b", 5, seconds=0.5)])
    table = store.table()
    assert list(table) == list(FIELDS)
    assert [store.cells()[index] for index in table["cell"]] == ["b", "a", "a"]
    assert table["trial"].tolist() == [5, 0, 1]
    assert table["sdc"].tolist() == [7, 7, 3]
    assert table["seconds"].tolist() == [0.5, 0.25, 0.25]
    np.testing.assert_array_equal(table["top5"], [7, 7, np.nan])
    assert {name for name, column in table.items() if column.dtype == np.float64} == {
        "seconds",
        "top5",
        *REALS,
    }


def test_the_table_of_an_empty_store_has_no_rows(store: Store) -> None:
    table = store.table()
    assert {len(column) for column in table.values()} == {0}
    assert table["cell"].dtype == np.int64


def test_a_table_of_several_chunks_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxfault.campaign.records.store._CHUNK", 4)
    store.add([row("a", number) for number in range(8)])
    assert store.table()["trial"].tolist() == list(range(8))


# -- one writer -----------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_a_reader_is_not(path: Path, store: Store) -> None:
    store.add([row()])
    with pytest.raises(StoreError, match="is being written by another process"):
        Store.open(path, write=True)
    with pytest.raises(StoreError, match="is being written by another process"):
        Store.create(path, STUDY, FINGERPRINT)
    with Store.open(path) as reader:
        assert reader.rows() == [row()]
        store.add([row(trial=1)])
        assert reader.counts() == {"a": 2}
        with pytest.raises(StoreError, match="opened for reading only"):
            reader.add([row(trial=2)])
    store.close()
    with Store.open(path, write=True) as writer:
        assert writer.counts() == {"a": 2}


HOLD = """
import sys, time
from fxfault.campaign.records.store import Store
store = Store.open(sys.argv[1], write=True)
print("open", flush=True)
time.sleep(60)
"""


def test_a_killed_writer_lets_go_of_the_store(path: Path, store: Store) -> None:
    store.close()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"open\n"
    with pytest.raises(StoreError, match="is being written by another process"):
        Store.open(path, write=True)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    Store.open(path, write=True).close()


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_process_that_was_forked_off_does_not_keep_the_store(path: Path, store: Store) -> None:
    child = os.fork()  # As a DataLoader with workers does.
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        store.close()
        Store.open(path, write=True).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_store_that_was_closed_is_one_file(path: Path, store: Store) -> None:
    store.add([row()])
    store.close()
    assert {name for name in os.listdir(path.parent) if not name.endswith("-lock")} == {path.name}


# -- killed ---------------------------------------------------------------------------------

ADD = """
import sys
from fxfault.evaluation.rows import TrialRow
from fxfault.campaign.records.store import Store
store = Store.open(sys.argv[1], write=True)
first = store.counts().get("a", 0)
for number in range(first, 10**6):
    store.add([TrialRow("a", number, *[number] * 10, 0.5)])
    print(number, flush=True)
"""


def test_rows_outlive_a_writer_that_is_killed_in_mid_write(path: Path, store: Store) -> None:
    store.close()
    moments = random.Random(0)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", ADD, path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(moments.uniform(0, 0.05))
        writer.kill()
        said += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        told = int([line for line in said if line.endswith(b"\n")][-1])
        with Store.open(path) as reader:
            rows = reader.rows()
        assert [r.trial for r in rows] == list(range(len(rows)))
        assert all(r.samples == r.masked == r.trial for r in rows)
        # What was told is there; one more may have been written and not yet told.
        assert len(rows) - (told + 1) in (0, 1)


CREATE = """
import os, sys
from fxfault.campaign.records import connection, store
class Deadly:
    def __format__(self, how):
        os.kill(os.getpid(), 9)
if sys.argv[2] == "early":
    connection.APPLICATION = Deadly()  # Used within the transaction.
else:
    connection._prepare_writing = lambda *arguments: format(Deadly())
store.Store.create(sys.argv[1], {}, {})
"""


@pytest.mark.parametrize("moment", ["early", "late"])
def test_a_store_whose_making_was_killed_is_taken(path: Path, moment: str) -> None:
    subprocess.run([sys.executable, "-c", CREATE, path, moment], check=False)
    if moment == "late":
        Store.open(path, write=True).close()
    else:
        assert path.stat().st_size == 0
        Store.create(path, STUDY, FINGERPRINT).close()


# -- a disk that does not play along --------------------------------------------------------


def test_a_full_disk_loses_nothing_that_was_added(path: Path, store: Store) -> None:
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    added: list[int] = []

    def fill() -> None:
        while True:
            store.add([row(trial=number) for number in range(sum(added), sum(added) + 50)])
            added.append(50)

    with pytest.raises(StoreError, match=r"study\.sqlite cannot be written: .*full.*free some"):
        fill()
    assert added
    total = sum(added)
    assert store.counts() == {"a": total}
    store._connection.execute("PRAGMA max_page_count = 1000000")
    store.add([row(trial=total)])
    store.close()
    with Store.open(path) as again:
        assert [r.trial for r in again.rows()] == list(range(total + 1))


FILL = """
import resource, sys
from fxfault.evaluation.rows import TrialRow
from fxfault.campaign.records.store import Store
from fxfault.errors import FxFaultError
store = Store.open(sys.argv[1], write=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for number in range(10**5):
        store.add([TrialRow("a", number, *[7] * 10, 0.5)])
except FxFaultError as error:
    print(number, error)
"""


def test_a_limit_on_file_sizes_loses_nothing_that_was_added(path: Path, store: Store) -> None:
    store.close()
    run = subprocess.run([sys.executable, "-c", FILL, path], capture_output=True, text=True)
    number, _, message = run.stdout.partition(" ")
    assert "cannot be written: disk I/O error; the disk fails, is full" in message
    with Store.open(path, write=True) as again:
        assert [r.trial for r in again.rows()] == list(range(int(number)))
        again.add([row(trial=int(number))])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StoreError, match=r"/proc/study\.sqlite cannot be .*permissions"):
        Store.create("/proc/study.sqlite", STUDY, FINGERPRINT)


READ_ONLY = """
import contextlib, os, shutil, sys, tempfile
from fxfault.campaign.records.store import Store
from fxfault.errors import FxFaultError
# All that reading imports, of which the other user may not be allowed to read the files.
with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FxFaultError):
    with Store.open(shutil.copy(sys.argv[1], folder + "/copy.sqlite")) as store:
        store.counts()
os.setuid(65534)
for write in (False, True):
    try:
        with Store.open(sys.argv[1], write=write) as store:
            print(store.counts())
    except FxFaultError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("log", [False, True], ids=["whole", "with a log"])
def test_a_store_in_a_folder_that_is_read_only_can_be_read(log: bool) -> None:
    folder = Path(tempfile.mkdtemp())  # Another user may not look into `tmp_path`.
    folder.chmod(0o755)
    path = folder / "study.sqlite"
    try:
        store = Store.create(path, STUDY, FINGERPRINT)
        store.add([row()])
        if log:
            # As a killed process leaves it.
            (folder / "kept").write_bytes(path.with_name("study.sqlite-wal").read_bytes())
            (folder / "first").write_bytes(path.read_bytes())
            store.close()
            os.replace(folder / "kept", folder / "study.sqlite-wal")
            os.replace(folder / "first", path)
        else:
            store.close()
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.close()
        folder.chmod(0o555)
        for file in folder.iterdir():
            file.chmod(0o444)
        run = subprocess.run(
            [sys.executable, "-c", READ_ONLY, path], capture_output=True, text=True, cwd="/"
        )
        read, refused = run.stdout.splitlines()
        expected = "copy both to a folder that can be written" if log else "{'a': 1}"
        assert expected in read
        assert "cannot be" in refused
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


# -- what is no store -----------------------------------------------------------------------


def test_what_is_no_store_is_refused_and_left_alone(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such store"):
        Store.open(path)
    assert not path.exists()
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(path.parent)
    with pytest.raises(StoreError, match="there is no folder"):
        Store.create(path.parent / "absent" / "study.sqlite", STUDY, FINGERPRINT)
    for content in (b"", b"accuracy: 3\n" * 500):
        path.write_bytes(content)
        for write in (False, True):
            with pytest.raises(StoreError, match=r"it is empty|file is not a database; name a"):
                Store.open(path, write=write)
        assert path.read_bytes() == content


def test_an_sqlite_file_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE trials (number)")
    other.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match="it is an SQLite file of something else"):
        Store.open(path, write=True)
    with pytest.raises(StoreError, match="exists already"):
        Store.create(path, STUDY, FINGERPRINT)
    assert path.read_bytes() == content


def test_a_store_is_not_made_over_another(path: Path, store: Store) -> None:
    store.add([row()])
    store.close()
    with pytest.raises(StoreError, match="exists already: open it, or name another file"):
        Store.create(path, STUDY, FINGERPRINT)
    with Store.open(path) as again:
        assert again.rows() == [row()]


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        ("DROP TABLE cells; CREATE VIEW cells AS SELECT 1 AS id, '' AS key", "view 'cells'"),
        ("CREATE TRIGGER t AFTER INSERT ON cells BEGIN SELECT 1; END", "trigger 't'"),
        ("CREATE VIRTUAL TABLE t USING fts5(a)", "table 't'"),
        (
            "DROP TABLE about; CREATE TABLE about (name, value AS (zeroblob(9)))",
            "column about.value",
        ),
    ],
)
def test_a_store_that_computes_is_refused_before_it_does(
    path: Path, store: Store, statements: str, what: str
) -> None:
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    for write in (False, True):
        with pytest.raises(StoreError, match=f"computes what it must hold: {what}"):
            Store.open(path, write=write)


def test_a_store_of_a_newer_fxfault_is_refused(path: Path, store: Store) -> None:
    store._connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    store.close()
    with pytest.raises(StoreError, match=rf"schema {SCHEMA + 1}, this one .* upgrade fxfault"):
        Store.open(path)


def test_a_store_that_was_tampered_with_is_refused(path: Path, store: Store) -> None:
    store._connection.execute("UPDATE about SET value = 'no JSON' WHERE name = 'study'")
    store.close()
    with pytest.raises(StoreError, match="does not say which study it holds"):
        Store.open(path)


def test_a_damaged_file_is_an_error_that_says_so(path: Path, store: Store) -> None:
    store.add([row(trial=number) for number in range(2000)])
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot be read: .*(malformed|the file is damaged)"):
        Store.open(path).rows()


def test_a_million_rows_need_little_memory(path: Path, store: Store) -> None:
    """A tenth of it here; `python -m benchmarks.campaign` has the whole."""
    cells = [f"cell {number}" for number in range(100)]
    for cell in cells:
        store.add([row(cell, number) for number in range(1000)])
    code = (
        "import resource, sys, numpy\n"
        "from fxfault.campaign.records.store import Store\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "table = Store.open(sys.argv[1]).table()\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "import json; print(json.dumps([len(table['cell']), (after - before) / 1024]))"
    )
    store.close()
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    rows, mebibytes = json.loads(run.stdout)
    assert rows == 100_000
    assert mebibytes < 100


def changed(path: Path, statement: str, *values: Any) -> None:
    """Edit a store as somebody would by the command line of SQLite."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


ABOUT = "UPDATE about SET value = ? WHERE name = ?"
CELL = '{"bit":null,"checkpoint":null,"injection_type":"random","layers":["a"],"probability":1.0}'


def read_all(path: Path) -> None:
    with Store.open(path) as opened:
        opened.settings()
        opened.table()
        opened.rows()


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (ABOUT, ("[]", "study")),
        (ABOUT, ("9" * 5000, "study")),
        (ABOUT, ("[" * 100_000, "fingerprint")),
        (ABOUT, ('{"study": 3}', "fingerprint")),
        (ABOUT, ('{"study": {"axes": {"bit": 3}}}', "fingerprint")),
        (ABOUT, ('{"networks": {"a": 1}}', "fingerprint")),
        (ABOUT, (b"\xff\xfe", "study")),
        ("DELETE FROM about WHERE name = ?", ("study",)),
        ("INSERT INTO about VALUES ('background', ?)", ('{"edges": [[0, 1]]}',)),
        ("INSERT INTO about VALUES ('background', ?)", ('{"nodes": [{"name": 3}]}',)),
        ("INSERT INTO about VALUES ('background', ?)", ('{"classes": "ten"}',)),
        ("UPDATE cells SET key = ?", ("no JSON",)),
        ("UPDATE cells SET key = ?", ("[" * 100_000,)),
        ("UPDATE cells SET key = ?", ('{"layers": 3}',)),
        ("UPDATE cells SET key = ?", ('{"layers": [3]}',)),
        ("UPDATE cells SET key = ?", (CELL.replace("1.0", '"much"'),)),
        ("UPDATE cells SET key = ?", (CELL.replace("1.0", "NaN"),)),
        ("UPDATE cells SET key = ?", ('{"faults": {"a": {"b": 1}}}',)),
        ("UPDATE trials SET correct = ?", ("many",)),
        ("UPDATE trials SET correct = ?", (-1,)),
        ("UPDATE trials SET correct = ?", (10**6,)),
        ("UPDATE trials SET sdc = ?", (0.5,)),
        ("UPDATE trials SET masked = struck + ?", (1,)),
        ("UPDATE trials SET faults = elements + ?", (1,)),
        ("UPDATE trials SET due = ?", (9,)),
        ("ALTER TABLE trials DROP COLUMN due", ()),
        ("UPDATE trials SET seconds = ?", (-1.0,)),
        ("UPDATE trials SET seconds = ?", (float("inf"),)),
        ("UPDATE trials SET samples = ?", (b"\x00",)),
        ("UPDATE trials SET cell = ?", (99,)),
        ("DROP TABLE trials", ()),
    ],
    ids=lambda value: str(value)[:48],
)
def test_a_store_that_was_edited_is_refused(
    path: Path, statement: str, values: tuple[Any, ...]
) -> None:
    with Store.create(path, {"name": "s"}, {}) as made:
        made.add([TrialRow(CELL, 0, 10, 8, 9, 2, 1, None, 3, 40, 3, 1, 0.01)])
    read_all(path)
    changed(path, statement, *values)
    with pytest.raises(StoreError, match=str(path)) as caught:
        read_all(path)
    assert "is a bug" not in str(caught.value)


@pytest.mark.parametrize("change", ["masked = struck + 1", "faults = elements + 1", "correct = -1"])
def test_a_row_that_was_edited_is_damage_and_no_bug(path: Path, store: Store, change: str) -> None:
    store.add([row()])
    store.close()
    changed(path, f"UPDATE trials SET {change}")
    with Store.open(path) as opened, pytest.raises(StoreError, match="the store is damaged"):
        opened.rows()


# -- its name, and what else is its own -----------------------------------------------------


@pytest.mark.parametrize("name", ["link", "hard", "./study.sqlite", "study.sqlite"])
@pytest.mark.parametrize("lock", ["there", "deleted"])
def test_a_second_writer_is_refused_by_whatever_name(
    path: Path, store: Store, name: str, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([row()])
    (path.parent / "link").symlink_to(path.name)
    os.link(path, path.parent / "hard")
    if lock == "deleted":
        path.with_name("study.sqlite-lock").unlink()
    monkeypatch.chdir(path.parent)
    code = (
        "import sys\nfrom fxfault.campaign.records.store import Store\n"
        "try:\n    Store.open(sys.argv[1], write=True)\n"
        "except Exception as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert "is being written by another process" in run.stdout
    store.add([row(trial=1)])
    assert store.counts() == {"a": 2}


def test_a_link_leads_to_the_log_of_a_killed_writer(path: Path, store: Store) -> None:
    store.close()
    writer = subprocess.Popen([sys.executable, "-c", ADD, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.kill()
    writer.communicate()
    folder = path.parent / "elsewhere"
    folder.mkdir()
    (folder / "link").symlink_to(path)
    os.link(path, folder / "hard")
    with Store.open(folder / "link") as reader:
        kept = reader.counts()["a"]
    assert kept
    for write in (False, True):  # Without its log it would have lost trials, and say nothing.
        with pytest.raises(StoreError, match=r"hard has another name .* open it by that one"):
            Store.open(folder / "hard", write=write)
    with Store.open(folder / "link", write=True) as writing:
        assert writing.counts() == {"a": kept}
    with Store.open(folder / "hard") as whole:  # It was closed in order.
        assert whole.counts() == {"a": kept}


def _delete(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{ending}").unlink()


def _replace(path: Path) -> None:
    with Store.create(path.with_name("other"), {"name": "other"}, {}):
        pass
    os.replace(path.with_name("other"), path)


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.sqlite"))


@pytest.mark.parametrize("loss", [_delete, _replace, _move])
@pytest.mark.parametrize("moment", ["before a write", "at the end"])
def test_a_store_that_loses_its_name_is_noticed_and_saved(
    path: Path, store: Store, loss: Any, moment: str
) -> None:
    store.add([row(trial=number) for number in range(5)])
    loss(path)
    what = "replaced" if loss is _replace else "moved or deleted"
    with pytest.raises(
        StoreError, match=rf"the store was {what} .* finished trials are kept in .*kept-1\.sqlite"
    ):
        store.add([row(trial=5)]) if moment == "before a write" else store.check()
    store.close()
    trials = list(range(6 if moment == "before a write" else 5))
    kept = ["study.kept-1.sqlite"] + ["moved.sqlite"] * (loss is _move)
    for name in kept:
        with Store.open(path.with_name(name), write=True) as again:
            assert [r.trial for r in again.rows()] == trials
            assert again.study == STUDY


def test_closing_a_store_that_was_replaced_leaves_the_new_ones_log(
    path: Path, store: Store
) -> None:
    store.add([row()])
    _delete(path)
    path.with_name("study.sqlite-lock").unlink()
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom fxfault.campaign.records.store import Store\n"
            "Store.create(sys.argv[1], {}, {}).close()\n" + ADD,
            path,
        ],
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    first = writer.stdout.readline()
    store.close()
    writer.kill()
    lines = [first, *writer.communicate()[0].splitlines()]
    told = int(lines[max(-2, -len(lines))])  # The last one may be cut off, the first one is whole.
    with Store.open(path) as reader:
        assert len(reader.rows()) > told


def test_a_log_that_is_deleted_is_noticed_and_costs_nothing(path: Path, store: Store) -> None:
    store.add([row(trial=number) for number in range(5)])
    path.with_name("study.sqlite-wal").unlink()
    with pytest.raises(
        StoreError, match=r"its log, study\.sqlite-wal, was deleted .* run it again"
    ):
        store.add([row(trial=5)])
    store.close()
    with Store.open(path) as again:
        assert len(again.rows()) == 6


def test_a_store_stays_where_it_was_opened(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    monkeypatch.chdir(path.parent)
    with Store.open(path.name, write=True) as again:
        monkeypatch.chdir("/")
        again.add([row()])
    with Store.open(path) as whole:
        assert whole.rows() == [row()]


def test_files_of_a_store_and_pipes_are_no_stores(path: Path, store: Store) -> None:
    for ending in ("-wal", "-lock"):
        with pytest.raises(StoreError, match=rf"study\.sqlite{ending} is .*: name another file"):
            Store.create(f"{path}{ending}", STUDY, FINGERPRINT)
    os.mkfifo(path.with_name("pipe"))
    with pytest.raises(StoreError, match="is not a regular file"):
        Store.open(path.with_name("pipe"))


def test_a_lock_ends_with_the_process_that_took_it_not_with_its_children(path: Path) -> None:
    with Store.create(path, STUDY, FINGERPRINT):
        pass
    code = (
        "import os, sys, time\nfrom fxfault.campaign.records.store import Store\n"
        "store = Store.open(sys.argv[1], write=True)\n"
        # The child speaks: it has let go of the lock by then.
        "if not os.fork(): print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    writer.kill()
    writer.wait()
    writer.stdout.close()
    try:
        Store.open(path, write=True).close()
    finally:
        os.kill(child, signal.SIGKILL)
