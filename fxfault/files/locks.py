"""Locks that belong to a file or a folder itself, whatever its name, and end with the process.

A lock on a name is lost when the name is: a symbolic link, a hard link, or a lock file that
somebody deletes lets a second one in. These are of the file that is open.

Files are locked on Linux alone: the layout of such a lock differs between systems, and could be
tried on no other. Elsewhere only the name keeps a second writer away (the `-lock` file of a store).
Folders are locked wherever there is `fcntl`, so not on Windows.
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
except ImportError:  # Windows: a file that is open cannot be replaced there anyway.
    fcntl = None  # type: ignore[assignment]

# A byte that nobody else locks: SQLite's are at 1 GiB.
_BYTE = 1 << 62

# SQLite reads a database while it has a lock on these, and clears up while nobody else has.
_SQLITE_SHARED = (0x40000002, 510)

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """Holds a file or folder open, as the only one that holds it by this class.

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
        """Take over an open file that is locked; use `take`."""
        self._descriptor: int | None = descriptor
        status = os.fstat(descriptor)
        self.identity = status.st_dev, status.st_ino
        _held.add(self)

    @classmethod
    def take(cls, path: str | Path, *, create: bool = False) -> FileLock | None:
        """Lock a file, which is opened for writing, or a folder; None where somebody has it.

        Where the system (any but Linux) or the file system has no such locks, the file is held
        open alone, and a second call gets it, too.

        Args:
            path: of the file or folder.
            create: make an empty file where there is none.

        Raises:
            OSError: it cannot be opened.
        """
        if os.path.isdir(path) and fcntl is None:
            return cls(os.open(os.devnull, os.O_RDONLY))
        is_folder = os.path.isdir(path)
        flags = os.O_RDONLY if is_folder else os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o644)
        try:
            if not _lock(descriptor):
                os.close(descriptor)
                return None
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def keep_log(self) -> None:
        """Have SQLite leave the write-ahead log alone when its last connection is closed.

        It removes the log by its name, which may be another file's by now.
        """
        if self._descriptor is not None and _has_file_locks():
            _ofd_lock(self._descriptor, fcntl.F_RDLCK, *_SQLITE_SHARED)

    def release(self) -> None:
        """Let others have it, at once: a process that was forked may hold the file open still."""
        if self._descriptor is not None:
            _unlock(self._descriptor)
        self.close()

    def close(self) -> None:
        """Close the file; the lock ends when nobody has it open."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def _lock(descriptor: int) -> bool:
    """Whether the lock was to be had, or there are none."""
    if fcntl is None:
        return True
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif _has_file_locks():
            _ofd_lock(descriptor, fcntl.F_WRLCK, _BYTE, 1)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def _unlock(descriptor: int) -> None:
    if fcntl is None:
        return
    with suppress(OSError):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        elif _has_file_locks():
            _ofd_lock(descriptor, fcntl.F_UNLCK, _BYTE, 1)


def _has_file_locks() -> bool:
    # Not `flock`, which would be in the way of SQLite's locks on some systems; not `lockf`, which
    # ends as soon as anything in this process closes the file.
    return sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")


def _ofd_lock(descriptor: int, kind: int, start: int, length: int) -> None:
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


def _let_go_in_child() -> None:
    """A process that is forked shares the open file: it must not hold it after our end."""
    for lock in list(_held):
        lock.close()  # Not `release`: the lock is our parent's.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
