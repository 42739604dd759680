"""Tell errors of the user's code, which are quoted, from errors of fxfault, which are bugs.

The user's network, data set or fault model may raise anything or call `sys.exit`. Every command
and engine reports such an error in one sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from fxfault.errors import FOREIGN, BugError, DataError, ForeignCodeError, FxFaultError
from fxfault.messages import quote_error

SHOW = "--traceback, or FXFAULT_TRACEBACK=1, shows where"
REPORT = (
    "please report it (CONTRIBUTING.md says how) with the traceback, which --traceback or "
    "FXFAULT_TRACEBACK=1 shows"
)

# Packages that both the user's code and ours call: an error in them belongs to the caller.
_LIBRARIES = {
    *("brevitas", "dependencies", "jinja2", "lightning", "lightning_fabric", "matplotlib"),
    *("numba", "llvmlite", "numpy", "pandas", "PIL", "pluggy", "pyarrow", "pydantic", "ray"),
    *("scipy", "sklearn", "tensorboard", "torch", "torchmetrics", "torchvision", "tqdm", "yaml"),
    *("_pytest", "pytest", "pytorch_lightning", "pydantic_core"),
    *sys.stdlib_module_names,
}
# File names of code that torch.fx generates from a network's forward.
_GRAPHS = ("<eval_with_key>", "<train graph>")


class Place(NamedTuple):
    """Where an error comes from.

    Attributes:
        module: module that made the failing call; empty for the graph of a network.
        file: file of that module.
        line: line in the file.
    """

    module: str
    file: str
    line: int

    @property
    def is_ours(self) -> bool:
        """Whether it is code of fxfault."""
        return self.module.partition(".")[0] == "fxfault"


def origin(error: BaseException) -> Place | None:
    """The innermost place in the traceback that is not in a library; None if there is none."""
    found, step = None, error.__traceback__
    while step is not None:
        module, file = _module_of(step.tb_frame), step.tb_frame.f_code.co_filename
        if file.startswith(_GRAPHS):
            found = Place("", "the graph of the network", step.tb_lineno)
        elif module.partition(".")[0] not in _LIBRARIES and not file.startswith("<frozen"):
            found = Place(module, file, step.tb_lineno)
        step = step.tb_next
    return found


def _module_of(frame: FrameType) -> str:
    spec: Any = frame.f_globals.get("__spec__")
    name = str(frame.f_globals.get("__name__") or "")
    if name == "__main__":  # `python -m` sets `__spec__`; a script has none.
        return str(getattr(spec, "name", "a script"))
    return name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the host or a device ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def told(error: BaseException, where: str = "") -> FxFaultError:
    """Turn an unexpected error into one that can be shown to the user.

    >>> told(ValueError("no batch"), "trial 3")
    ForeignCodeError('trial 3: ValueError: no batch (--traceback, or FXFAULT_TRACEBACK=1, shows \
where)')

    Args:
        error: any error; an `FxFaultError` is kept, a `DataError` gets the prefix `where`.
        where: what fxfault was doing, such as the trial.
    """
    if isinstance(error, FxFaultError) and not (where and isinstance(error, DataError)):
        return error
    prefix = f"{where}: " if where else ""
    if isinstance(error, DataError):  # It already quotes the user's code.
        return DataError(f"{prefix}{error}")
    place, quoted = origin(error), quote_error(error)
    if is_out_of_memory(error):
        return DataError(f"{prefix}out of memory ({quoted}): lower the batch size")
    if place is not None and place.is_ours:
        if isinstance(error, OSError):  # No bug, but a full disk or too many open files.
            return FxFaultError(f"{prefix}{quoted} ({SHOW})")
        return BugError(f"{prefix}{quoted}: this is a bug in fxfault; {REPORT}")
    if place is None or not place.file or place.file.startswith("<"):
        return ForeignCodeError(f"{prefix}{quoted} ({SHOW})")
    return ForeignCodeError(f"{prefix}{quoted} (from {place.file}, line {place.line}; {SHOW})")


@contextmanager
def quoting(what: str) -> Iterator[None]:
    """Raise a `DataError` that quotes what the user's code raises in the block.

    >>> with quoting("the data set cannot be read"):
    ...     [][0]
    Traceback (most recent call last):
    ...
    fxfault.errors.DataError: the data set cannot be read: IndexError: list index out of range
    """
    try:
        yield
    except FxFaultError:
        raise
    except FOREIGN as error:
        raise DataError(f"{what}: {quote_error(error)}") from error
