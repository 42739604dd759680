"""The free memory of a device."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 2**30


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can be taken without swapping; a guess of 1 GiB if the system does not tell.

    On the CPU this is the memory that Linux calls available, within the limit of a container.

    >>> free_memory() > 0
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available(), _left_in_group()]
    return min((amount for amount in free if amount is not None), default=_UNKNOWN)


def _available() -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(Path("/proc/meminfo")), re.MULTILINE)
    if found is not None:
        return 1024 * int(found[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _left_in_group() -> int | None:
    limit, used = (_text(_GROUP / name).strip() for name in ("memory.max", "memory.current"))
    if not limit.isdecimal() or not used.isdecimal():  # "max" stands for no limit.
        return None
    return max(0, int(limit) - int(used))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
