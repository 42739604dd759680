"""Expand paths that users write, read files up to a limit, and write files atomically."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from fxfault.errors import ConfigError

# Half-written files of this process, so that an immediate exit can remove them.
unfinished: set[Path] = set()


def expanded(path: str | Path) -> Path:
    r"""Make a path from what the user wrote, replacing `~` by the home folder if it exists.

    >>> expanded("~nosuchuser/file").name
    'file'
    >>> expanded("a\0b")
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: 'a\x00b' is no path: it contains a null character

    Raises:
        ConfigError: the text cannot be a path.
    """
    text = os.path.expanduser(path)  # Path.expanduser fails for an unknown user.
    if "\0" in text:
        raise ConfigError(f"{text!r} is no path: it contains a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:  # an unpaired surrogate, from YAML for instance
        raise ConfigError(f"{text!r} is no path: no file name can have its characters") from error
    return Path(text)


def no_such_file(path: str | os.PathLike[str]) -> str:
    """Say that a file is not there, and where it was looked for.

    >>> no_such_file("/absent/file")
    'there is no such file'
    """
    if expanded(os.fspath(path)).is_absolute():
        return "there is no such file"
    return f"there is no such file in the current folder, {Path.cwd()}, from which the path starts"


class UnfitFileError(Exception):
    """A file that is not read; the message continues a sentence that starts with its name."""


def read_limited(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file up to a size limit, without blocking on a pipe or a device.

    Args:
        path: the file.
        most: largest allowed size, in bytes.

    Raises:
        OSError: the file does not exist, is a folder, or cannot be read.
        UnfitFileError: the file is not a regular file, or is larger than `most`.
        ValueError: the path contains a null character.
    """
    _check_kind(os.stat(path), most)
    # Check again after opening: another file may have taken its place.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        _check_kind(os.fstat(descriptor), most)
        content = file.read(most + 1)  # The file may grow, or report a wrong size.
    if len(content) > most:
        raise UnfitFileError(f"has more than {size_text(most)}, which is the limit")
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
    """Write a number of bytes for people to read.

    >>> size_text(3_000_000_000), size_text(2**20)
    ('2.8 GiB', '1.0 MiB')
    """
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{size} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a new file beside the target, then rename it to the target.

    A reader never sees half a file, and a crash or a full disk leaves the old file.

    Args:
        path: the target; an existing file is replaced.
        content: bytes, or text to write as UTF-8, with unpaired surrogates escaped.

    Raises:
        OSError: the folder does not exist or is read-only, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    unfinished.add(temporary)
    try:
        with open(temporary, "xb") as file:  # Unlike tempfile, this honours the umask.
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        unfinished.discard(temporary)
