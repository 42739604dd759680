"""Paths as users write them, and files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fxfault.errors import ConfigError


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
    try:
        with open(temporary, "xb") as file:  # As the umask has it, unlike tempfile's.
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
