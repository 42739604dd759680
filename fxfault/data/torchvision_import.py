"""Import torchvision, also where its compiled operators do not match the installed torch."""

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
    """Import torchvision; models, data sets and transforms work afterwards.

    A torchvision wheel that was built for another torch (a CUDA build beside a CPU build,
    say) fails to load its operators, and then fails to import, because it describes the
    operators that it could not load (pytorch/pytorch#122494, still so with 0.28). Nothing
    here needs them, so their two schemas are declared and the import is tried again. Detection
    operators and `torchvision.io.read_image` stay unusable. Where the plain import works,
    nothing else is done.

    Raises:
        DataError: torchvision is not installed, or fails to import for another reason.

    Example:
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
            # Its image decoders are compiled too; pictures are read with Pillow here.
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
