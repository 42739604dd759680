"""Import torchvision even if its compiled operators do not match the installed torch."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch

from fxfault.errors import DataError
from fxfault.messages import quote_error

_MISMATCH = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The schemas vanish with the object that registered them.
_kept_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision so that its models, data sets and transforms work.

    A torchvision wheel that was built for another torch, such as a CUDA build beside a CPU build,
    cannot load its operators. Its import then fails because it describes those operators
    (pytorch/pytorch#122494, still so in 0.28). fxfault needs none of them, so this function
    declares their two schemas and imports again. Detection operators and
    `torchvision.io.read_image` stay unusable.

    Raises:
        DataError: torchvision is not installed, or its import fails for another reason.

    >>> import_torchvision().__name__
    'torchvision'
    """
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        if _MISMATCH not in str(error):
            raise _failed(error) from error
    _declare_schemas()
    try:
        with warnings.catch_warnings():
            # The image decoders are compiled too; fxfault reads pictures with Pillow.
            warnings.filterwarnings("ignore", message="Failed to load image Python extension")
            return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        raise _failed(error) from error


def _declare_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _kept_libraries.append(library)


def _failed(error: Exception) -> DataError:
    return DataError(
        f"torchvision cannot be imported ({quote_error(error)}): install the one that matches "
        f'your torch, pip install "fxfault[cli]"'
    )
