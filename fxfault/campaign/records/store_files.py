"""The files of a store, and whether a path leads to one of them.

While a study runs, and after it was killed, SQLite's log has rows that are not in the file itself
yet: overwriting the log destroys them.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

APPLICATION = 0x66784643  # "fxFC": marks the SQLite file as a store.

_PARTS = {
    "": "the store",
    "-wal": "the store's log",
    "-shm": "the index of the store's log",
    "-journal": "the store's journal",
    "-lock": "the store's lock",
}
_MAGIC = b"SQLite format 3\0"
_APPLICATION_AT = 68
_WRITE_FORMAT_AT = 18
_LOG_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


def file_of(store: str | Path, ending: str = "") -> Path:
    """The path of a store's file, links resolved: SQLite's log is beside the target of a link.

    >>> file_of("study.sqlite", "-wal").name
    'study.sqlite-wal'
    """
    real = Path(os.path.realpath(store))
    return real.with_name(f"{real.name}{ending}")


def part_of(path: str | Path, store: str | Path) -> str | None:
    """Which file of a store a path leads to, in words; None if it leads to none.

    The path may be relative, a link of either kind, or in other case if the file system ignores it.

    >>> part_of("./study.sqlite-WAL", "study.sqlite"), part_of("study.csv", "study.sqlite")
    ("the store's log", None)
    """
    target = file_of(path)
    found = (what for ending, what in _PARTS.items() if _is_same(target, file_of(store, ending)))
    return next(found, None)


def store_of(path: str | Path) -> tuple[Path, str] | None:
    """The store that a file belongs to, and which of its files it is; None if no store's.

    Raises:
        OSError: the file cannot be read.
    """
    target = file_of(path)
    if is_store(target):
        return target, _PARTS[""]
    for ending, what in _PARTS.items():
        if ending and target.name.casefold().endswith(ending):
            store = target.with_name(target.name[: -len(ending)])
            if is_store(store):
                return store, what
    if _beginning(target)[:4] in _LOG_MAGIC:
        return target, "the log of a store"
    return None


def is_store(path: Path) -> bool:
    """Whether a file has the mark of a store."""
    head = _beginning(path)
    there = head[_APPLICATION_AT : _APPLICATION_AT + 4]
    return head.startswith(_MAGIC) and int.from_bytes(there, "big") == APPLICATION


def lacks_its_log(path: Path) -> bool:
    """Whether the log of an unfinished store is beside another hard link to the file.

    SQLite's log is beside the name that the writer used. A store that was closed needs none.
    """
    if path.stat().st_nlink < 2 or path.with_name(f"{path.name}-wal").exists():
        return False
    return _beginning(path)[_WRITE_FORMAT_AT : _WRITE_FORMAT_AT + 1] == b"\x02"


def _beginning(path: Path) -> bytes:
    # Reading a pipe or a device could block.
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        return file.read(100)


def _is_same(one: Path, other: Path) -> bool:
    if one == other or _is_same_file(one, other):
        return True
    return _folded(one.name) == _folded(other.name) and _is_same_file(one.parent, other.parent)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
