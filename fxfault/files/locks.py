"""Lock a file or a folder itself, whatever its name, until the process ends.

A lock on a name lets a second process in through a symbolic link, through a hard link, or after
someone deletes the lock file. These locks are on the open file.

Files are locked on Linux only: the layout of such a lock differs between systems, and the code was
tested on no other. Elsewhere only a name keeps a second writer away (the `-lock` file of a store).
Folders are locked wherever `fcntl` exists, so not on Windows.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # On Windows, which cannot replace an open file anyway.
    fcntl = None  # type: ignore[assignment]

# A byte that nothing else locks: SQLite locks bytes near 1 GiB.
_BYTE = 1 << 62

# Start and length of the bytes that SQLite locks while it reads; it cleans up when it is alone.
_SQLITE_SHARED = (0x40000002, 510)

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """Holds a file or folder open; no other `FileLock` can hold it meanwhile.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> first = FileLock.take(folder)
    >>> FileLock.take(folder) is None
    True
    >>> first.release()
    >>> FileLock.take(folder) is None
    False

    Attributes:
        identity: device and inode number.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over an open file, which `take` locks."""
        self._descriptor: int | None = descriptor
        status = os.fstat(descriptor)
        self.identity = status.st_dev, status.st_ino
        _held.add(self)

    @classmethod
    def take(cls, path: str | Path, *, create: bool = False) -> FileLock | None:
        """Lock a file, opening it for writing, or a folder; return None if another lock holds it.

        If the system or the file system has no such locks, the file is only held open, and a
        second call gets it too.

        Args:
            path: the file or folder.
            create: create an empty file if there is none.

        Raises:
            OSError: the file or folder cannot be opened.
        """
        is_folder = os.path.isdir(path)
        if is_folder and fcntl is None:
            return cls(os.open(os.devnull, os.O_RDONLY))
        flags = os.O_RDONLY if is_folder else os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o644)
        lock = cls(descriptor)
        try:
            _set_lock(descriptor, True)
        except OSError as error:
            if error.errno in _BUSY:
                lock.close()
                return None
        return lock

    def keep_log(self) -> None:
        """Keep SQLite from removing the write-ahead log when its last connection closes.

        SQLite removes it by name, and the name may belong to another file by now.
        """
        if self._descriptor is not None and _has_file_locks():
            _ofd_lock(self._descriptor, fcntl.F_RDLCK, *_SQLITE_SHARED)

    def release(self) -> None:
        """Unlock the file at once, even if a forked process still holds it open."""
        if self._descriptor is not None:
            with suppress(OSError):
                _set_lock(self._descriptor, False)
        self.close()

    def close(self) -> None:
        """Close the file; the lock ends once no process has it open."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def _set_lock(descriptor: int, held: bool) -> None:
    """Lock or unlock an open file or folder, if the system can."""
    if fcntl is None:
        return
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if held else fcntl.LOCK_UN)
    elif _has_file_locks():
        _ofd_lock(descriptor, fcntl.F_WRLCK if held else fcntl.F_UNLCK, _BYTE, 1)


def _has_file_locks() -> bool:
    # `flock` would interfere with SQLite's locks on some systems, and a `lockf` lock ends as soon
    # as anything in this process closes the file.
    return sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")


def _ofd_lock(descriptor: int, kind: int, start: int, length: int) -> None:
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


def _let_go_in_child() -> None:
    """Close the files in a forked process, which must not hold the locks after its parent ends."""
    for lock in list(_held):
        lock.close()  # `release` would unlock the parent's file.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
