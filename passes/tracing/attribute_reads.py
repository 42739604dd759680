"""Note what a forward reads of modules and of their tensors while it is traced.

Python answers `self.width`, `hasattr(self, "gain")`, `len(self.blocks)` or
`next(self.parameters()).dtype` without asking the tracer, and the answer becomes a constant of the
graph. The functions here note each such read, of any module and in any form.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from fxfault.passes.tracing.guards import TABLES
from fxfault.passes.tracing.symbolic_values import first_argument, is_library

# Attributes that all modules have; reads of these are not noted.
_OWN = frozenset(vars(nn.Module())) - set(TABLES) | {"training", "T_destination"}
_NUMBERS = frozenset(
    "item tolist numpy __bool__ __int__ __float__ __index__ __complex__ __array__ __contains__ "
    "equal allclose is_nonzero".split()
)


@contextlib.contextmanager
def attributes_noted(note: Callable[[nn.Module, str, bool], None]) -> Iterator[None]:
    """Report the attributes of modules that a forward reads in this thread.

    Args:
        note: called with a module, the name of the attribute (that of a table if the forward
            iterates over layers or parameters), and whether a method of the module reads it.
    """
    thread = threading.get_ident()

    def read(module: nn.Module, name: str) -> Any:
        is_asked = name == "__dict__" if name[:2] == "__" else name not in _OWN
        if is_asked and threading.get_ident() == thread:
            caller = _asks(sys._getframe(1), name)
            if caller is not None:
                note(module, name, first_argument(caller) is module)
        return object.__getattribute__(module, name)

    nn.Module.__getattribute__ = read  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


def _asks(frame: FrameType | None, name: str) -> FrameType | None:
    """The frame of the user's code that reads an attribute; None if a library reads it."""
    homes: tuple[str, ...] = ("torch.nn.modules.container",)
    if name in TABLES:  # An iteration over modules or parameters reads them for its caller.
        homes += ("torch.nn.modules.module",)
    while frame is not None and frame.f_globals.get("__name__") in homes:
        frame = frame.f_back
    return None if frame is None or is_library(frame) else frame


class ConstantsNoted(TorchFunctionMode):
    """Reports what a forward asks of tensors that are not symbolic values."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        """Prepare to call `note` with each tensor that is asked for its dtype, shape and so on."""
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch.

        Raises:
            TraceError: it takes a number out of a tensor, which would become a constant of the
                graph.
        """
        result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        is_value = isinstance(first, Tensor) and type(first) in (Tensor, nn.Parameter)
        if is_value and not is_library(sys._getframe(1)):
            name = getattr(func, "__name__", "")
            if name in _NUMBERS:
                raise TraceError("its forward reads a number from a tensor that is not an input")
            if not isinstance(result, Tensor):
                self.note(first)  # type: ignore[arg-type]
        return result
