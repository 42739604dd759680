"""Paths as users write them; files that are written whole or not at all, and read to a limit."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from fxfault.errors import ConfigError

# Half-written files of this process, for who ends it at once.
unfinished: set[Path] = set()


def expanded(path: str | Path) -> Path:
    r"""A path of the user's, with the home folder for `~` where there is one of that name.

    >>> expanded("~nosuchuser/file").name
    'file'
    >>> expanded("a\0b")
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: 'a\x00b' is no path: it has a null character

    Raises:
        ConfigError: no path can be so.
    """
    text = os.path.expanduser(path)  # Unlike Path.expanduser, it leaves an unknown user's alone.
    if "\0" in text:
        raise ConfigError(f"{text!r} is no path: it has a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:  # Half of a pair of surrogates, from YAML for instance.
        raise ConfigError(f"{text!r} is no path: it has characters that no name can") from error
    return Path(text)


class UnfitFileError(Exception):
    """A file is not read: the message says why, and continues its name."""


def read_limited(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file that is not too large; a pipe or a device is not waited for.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: it is not there, a folder, or cannot be read.
        UnfitFileError: it is no regular file, or larger.
        ValueError: there is a null character in the path.
    """
    _check_kind(os.stat(path), most)
    # Something else may be there by now.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        _check_kind(os.fstat(descriptor), most)
        content = file.read(most + 1)  # It may grow, or not tell its size.
    if len(content) > most:
        raise UnfitFileError(f"has more than {size_text(most)}, which is the most")
    return content


def _check_kind(status: os.stat_result, most: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise UnfitFileError(f"is {what}, expected a regular file")
    if status.st_size > most:
        raise UnfitFileError(f"has {size_text(status.st_size)}, allowed: up to {size_text(most)}")


def size_text(size: int) -> str:
    """A number of bytes for people.

    >>> size_text(3_000_000_000), size_text(2**20)
    ('2.8 GiB', '1.0 MiB')
    """
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{size} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a new file beside the target, then put it in the target's place.

    A reader never sees half a file, and a crash or a full disk leaves the old one.

    Args:
        path: the target; an existing file is replaced.
        content: text is written as UTF-8; what is none (in a file name) is escaped.

    Raises:
        OSError: the folder is not there or not writable, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    unfinished.add(temporary)
    try:
        with open(temporary, "xb") as file:  # As the umask has it, unlike tempfile's.
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        unfinished.discard(temporary)
