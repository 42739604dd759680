"""Whose code raised an error: somebody else's, which is quoted, or ours, which is a bug.

A network, a data set or a fault model of the user's may raise anything, or call `sys.exit`. What
it raised reaches a user as one sentence, whatever the command or the engine.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

from fxfault.errors import BugError, DataError, ForeignCodeError, FxFaultError
from fxfault.messages import quote_error

SHOW = "--traceback, or FXFAULT_TRACEBACK=1, shows where"
REPORT = (
    "please report it (CONTRIBUTING.md says how) with the traceback, which --traceback or "
    "FXFAULT_TRACEBACK=1 shows"
)

# What is called by user's code and by ours: an error there is that of its caller.
_LIBRARIES = {
    *("brevitas", "dependencies", "jinja2", "lightning", "lightning_fabric", "matplotlib"),
    *("numba", "llvmlite", "numpy", "pandas", "PIL", "pluggy", "pyarrow", "pydantic", "ray"),
    *("scipy", "sklearn", "tensorboard", "torch", "torchmetrics", "torchvision", "tqdm", "yaml"),
    *("_pytest", "pytest", "pytorch_lightning", "pydantic_core"),
    *sys.stdlib_module_names,
}
# Code that torch.fx generates from a network's forward.
_GRAPHS = ("<eval_with_key>", "<train graph>")


class Place(NamedTuple):
    """Where an error comes from.

    Attributes:
        module: whose code called what failed; empty for the graph of a network.
        file: of that code.
        line: in it.
    """

    module: str
    file: str
    line: int

    @property
    def is_ours(self) -> bool:
        """Whether it is code of fxfault."""
        return self.module.partition(".")[0] == "fxfault"


def origin(error: BaseException) -> Place | None:
    """The innermost code that is no library's, in which it was raised; None: there is none."""
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
    if name == "__main__":  # Of `python -m` it has another name; a script has none.
        return str(getattr(spec, "name", "a script"))
    return name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory gave out, the host's or a device's."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def told(error: BaseException, where: str = "") -> FxFaultError:
    """Make the error that tells a user of one that nobody expected.

    >>> told(ValueError("no batch"), "trial 3")
    ForeignCodeError('trial 3: ValueError: no batch (--traceback, or FXFAULT_TRACEBACK=1, shows \
where)')

    Args:
        error: anything; one of ours stays what it is.
        where: it came, such as the trial.
    """
    if isinstance(error, FxFaultError) and not (where and isinstance(error, DataError)):
        return error
    prefix = f"{where}: " if where else ""
    if isinstance(error, DataError):  # It quotes the code of somebody else's already.
        return DataError(f"{prefix}{error}")
    place, quoted = origin(error), quote_error(error)
    if is_out_of_memory(error):
        return DataError(f"{prefix}out of memory ({quoted}): lower the batch size")
    if place is not None and place.is_ours:
        if isinstance(error, OSError):  # The machine's doing: a full disk, too many open files.
            return FxFaultError(f"{prefix}{quoted} ({SHOW})")
        return BugError(f"{prefix}{quoted}: this is a bug in fxfault; {REPORT}")
    if place is None or not place.file or place.file.startswith("<"):
        return ForeignCodeError(f"{prefix}{quoted} ({SHOW})")
    return ForeignCodeError(f"{prefix}{quoted} (from {place.file}, line {place.line}; {SHOW})")
