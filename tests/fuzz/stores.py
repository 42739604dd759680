"""A strategy of stores: a sound one, edited by SQL or damaged in its bytes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.case import Case
from fuzz.damage import damaged
from fuzz.documents import edited, pairs, rendered
from fuzz.tiny import store_files, weights
from hypothesis import strategies as st

from fxfault.evaluation.rows import FIELDS

COLUMNS = ("cell", *FIELDS[1:])
TABLES = ("about", "cells", "trials")
VALUES = st.one_of(
    st.sampled_from([None, 0, 1, -1, 7, 9, 2**53, 2**63 - 1, -(2**63), 1e308, 0.5, -0.0]),
    st.sampled_from([float("inf"), "", "many", "3", "0x10", "\0", "x" * 9000, b"", b"\xff"]),
    st.sampled_from(["9" * 5000, "{}", "[]", "null", "NaN", "[" * 3000, '{"a": NaN}', "1e999"]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
)
JSON_TEXTS = [
    *("null", "true", "0", "-1", "1.5", "NaN", "Infinity", "1e999", "9" * 5000, str(2**70), '""'),
    *("[]", "{}", "[[]]", "[null]", '{"a": 1}', '{"": {}}', "[" * 3000, '"x"', '"\\u0000"', "01"),
    *('"\\ud800"', '"\u202e"', "[" + "1," * 2000 + "1]", '"' + "x" * 9000 + '"', "[0, 1, 2]"),
]
SCHEMES = (
    "DROP TABLE trials; CREATE VIEW trials AS SELECT * FROM kept",
    "DROP TABLE cells; CREATE VIEW cells AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT "
    "id + 1 FROM n) SELECT id, 'k' || id AS key FROM n",
    "DROP TABLE trials; CREATE VIEW trials AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT "
    "id + 1 FROM n) SELECT 1 AS cell, kept.* FROM n, kept",
    "DROP TABLE about; CREATE VIEW about AS SELECT 'study' AS name, zeroblob(900000000) AS value",
    "CREATE TRIGGER more AFTER INSERT ON trials BEGIN DELETE FROM trials; END",
    "ALTER TABLE trials RENAME COLUMN sdc TO sdd",
    "ALTER TABLE trials ADD COLUMN extra",
    "ALTER TABLE trials DROP COLUMN due; PRAGMA user_version = 1",
    "ALTER TABLE trials DROP COLUMN due",
    "ALTER TABLE cells RENAME TO cell",
    "DROP TABLE trials; CREATE TABLE trials (cell)",
    "DROP TABLE about; CREATE TABLE about (name, value)",
    "DROP TABLE cells; CREATE TABLE cells (id, key)",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE TABLE x (y'",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 1",
    "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 99999",
    *("PRAGMA user_version = 99", "PRAGMA user_version = -5", "PRAGMA application_id = 1"),
    *("PRAGMA encoding = 'UTF-16'; VACUUM", "PRAGMA page_size = 512; VACUUM", "VACUUM"),
    *(f"DROP TABLE {table}" for table in TABLES),
    *(f"DELETE FROM {table}" for table in TABLES),
)
_QUICK: tuple[tuple[str, ...], ...] = (
    ("status", "--store", "s.sqlite"),
    ("report", "--store", "s.sqlite"),
    ("export", "--store", "s.sqlite", "--csv", "out.csv"),
    ("export", "--store", "s.sqlite", "--what", "cells", "--json", "out.json"),
    ("compare", "s.sqlite", "sound.sqlite"),
)
# A page has pictures: as long as a hundred of the others.
_PAGE = ("report", "--store", "s.sqlite", "--confidence", "60", "--html", "out.html")
READERS = (*_QUICK, *_QUICK, _PAGE)
RESUME = ("resume", "--store", "s.sqlite", "--no-progress")
OUTPUTS = ("out.html", "out.csv", "out.json")


@st.composite
def stores(draw: st.DrawFn) -> Case:
    """A store, and a command that reads it or goes on with it."""
    state = draw(st.sampled_from(("closed", "closed", "written")))
    files = dict(store_files()[state])
    reads = draw(st.integers(0, 99)) < 95
    if draw(st.booleans()):
        files = {"s.sqlite": draw(_edited_store(reads))}
    else:
        name = draw(st.sampled_from(sorted(files)))
        files[name] = draw(damaged(files[name]))
    argv = draw(st.sampled_from(READERS)) if reads else RESUME
    files |= {"sound.sqlite": store_files()["closed"]["s.sqlite"], "w.pt": weights()}
    return Case(("fxfault-campaign", *argv), files, OUTPUTS)


@cache
def _loose() -> bytes:
    """The store without the constraints of its columns, which keep much that is strange out."""
    content = store_files()["closed"]["s.sqlite"]
    statements = [
        statement
        for name in TABLES
        for statement in (
            f"CREATE TABLE loose AS SELECT * FROM {name}",
            f"DROP TABLE {name}",
            f"ALTER TABLE loose RENAME TO {name}",
        )
    ]
    return _changed(content, [(statement, ()) for statement in statements])


def _changed(content: bytes, statements: list[tuple[str, tuple[Any, ...]]]) -> bytes:
    """Run statements; one that SQLite refuses changes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.sqlite")
        path.write_bytes(content)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            for statement, values in statements:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute(statement, values)
        return path.read_bytes()


@cache
def _about() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.sqlite")
        path.write_bytes(store_files()["closed"]["s.sqlite"])
        with contextlib.closing(sqlite3.connect(path)) as connection:
            about = dict(connection.execute("SELECT name, value FROM about"))
            about["cell"] = connection.execute("SELECT key FROM cells").fetchone()[0]
    return {name: pairs(json.loads(text)) for name, text in about.items()}


@st.composite
def _edited_store(draw: st.DrawFn, reads: bool) -> bytes:
    content = draw(st.sampled_from((store_files()["closed"]["s.sqlite"], _loose())))
    statements: list[tuple[str, tuple[Any, ...]]] = []
    # A study that is resumed stays as long as it is, for no case may take hours.
    kinds = ("value", "value", "cell", "scheme", "copy") + ("about", "about") * reads
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        if kind == "value":
            column = draw(st.sampled_from(COLUMNS))
            where = draw(st.sampled_from(("", " WHERE trial = 0", " WHERE cell = 2")))
            statements.append((f"UPDATE OR IGNORE trials SET {column} = ?{where}", (draw(VALUES),)))
        elif kind == "cell":
            key = draw(st.one_of(VALUES, _json("cell")))
            statements.append(("UPDATE OR IGNORE cells SET key = ? WHERE id = 1", (key,)))
        elif kind == "about":
            name = draw(st.sampled_from(("study", "fingerprint", "background")))
            value = draw(st.one_of(VALUES, _json(name), _json(name), _json(name)))
            statements.append(
                ("UPDATE OR IGNORE about SET value = ? WHERE name = ?", (value, name))
            )
        elif kind == "scheme":
            statements.append(("CREATE TABLE kept AS SELECT * FROM trials", ()))
            scheme = draw(st.sampled_from(SCHEMES))
            statements += [(text, ()) for text in scheme.split("; ")]
        else:
            shift = draw(st.sampled_from((1, 100, 2**52, -9)))
            where = f"SELECT cell, trial + {shift}, {', '.join(COLUMNS[2:])} FROM trials"
            statements.append((f"INSERT OR IGNORE INTO trials {where}", ()))
    return _changed(content, statements)


def _json(name: str) -> st.SearchStrategy[str]:
    """One of the store's own JSON texts, changed."""
    return edited(_about()[name], values=st.sampled_from(JSON_TEXTS)).map(
        lambda tree: rendered(tree, lines=False).decode("utf-8", "replace")
    )
