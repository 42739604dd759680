"""The files that a store consists of, and whether a path leads to one of them.

While a study runs, and after one was killed, SQLite's log has rows that the file itself does not
have yet: whoever writes over the log destroys them.

>>> [path.name for path in family("study.sqlite")]
['study.sqlite', 'study.sqlite-wal', 'study.sqlite-shm', 'study.sqlite-journal', \
'study.sqlite-lock']
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

APPLICATION = 0x66784643  # "fxFC", so that `file` and we can tell a store from other SQLite files.

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


def family(store: str | Path) -> list[Path]:
    """The files of a store, whether they are there or not; the first is that of the store."""
    real = Path(os.path.realpath(store))
    return [real.with_name(f"{real.name}{ending}") for ending in _PARTS]


def part_of(path: str | Path, store: str | Path) -> str | None:
    """What of a store a path leads to, in words; None where it is none of its files.

    By any path: relative, by links of either kind, or in capitals where those do not count.

    >>> part_of("./study.sqlite-WAL", "study.sqlite"), part_of("study.csv", "study.sqlite")
    ("the store's log", None)
    """
    target = Path(os.path.realpath(path))
    for member, what in zip(family(store), _PARTS.values(), strict=True):
        if _is_same(target, member):
            return what
    return None


def store_of(path: str | Path) -> tuple[Path, str] | None:
    """The store that a path is a file of, and which one; None where it belongs to no store.

    Raises:
        OSError: what is there cannot be read.
    """
    target = Path(os.path.realpath(path))
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
    """Whether a file says that it is a store."""
    head = _beginning(path)
    there = head[_APPLICATION_AT : _APPLICATION_AT + 4]
    return head.startswith(_MAGIC) and int.from_bytes(there, "big") == APPLICATION


def lacks_its_log(path: Path) -> bool:
    """Whether a file with several names was written by another one of them, and not finished.

    SQLite's log is beside the name that the writer used. A store that was closed needs none.
    """
    if path.stat().st_nlink < 2 or path.with_name(f"{path.name}-wal").exists():
        return False
    return _beginning(path)[_WRITE_FORMAT_AT : _WRITE_FORMAT_AT + 1] == b"\x02"


def _beginning(path: Path) -> bytes:
    # Never a pipe or a device, which would be waited for.
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
