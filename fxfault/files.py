"""Write files so that they are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a new file beside the target, then put it in the target's place.

    A reader never sees half a file, and a crash or a full disk leaves the old one.

    Args:
        path: the target; an existing file is replaced.
        content: text is written as UTF-8.

    Raises:
        OSError: the folder is not there or not writable, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "xb") as file:  # As the umask has it, unlike tempfile's.
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
