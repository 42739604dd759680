"""What a result says of the machine and of the packages that gave it.

Importing this module imports neither torch nor brevitas.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of those packages that are installed; of torch with its build."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "torch" in found:
        import torch

        found["torch"] = str(torch.__version__)  # PyPI's leave `+cu128` out of their metadata.
    return found


def machine(device: torch.device, **more: Any) -> dict[str, Any]:
    """What a result says of the machine: torch's and the vendor's name of the device, threads."""
    import torch

    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else None
    return {"device": str(device), "device_name": name, **more, "threads": torch.get_num_threads()}
