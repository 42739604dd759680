"""Note what a forward reads of modules and of their tensors while it is traced.

Python answers `self.width`, `hasattr(self, "gain")`, `len(self.blocks)` or
`next(self.parameters()).dtype` without asking the tracer, and the answer is a constant of the
graph from then on. While a reader watches, each such question is noted, whoever's attribute it
is about and however it is put.
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

from fxfault.passes.guards import TABLES
from fxfault.passes.symbolic_values import is_library

# Attributes that all modules have and that forwards find by other ways.
_OWN = frozenset(vars(nn.Module())) - set(TABLES) | {"training", "T_destination"}
_NUMBERS = frozenset(
    "item tolist numpy __bool__ __int__ __float__ __index__ __complex__ __array__ __contains__ "
    "equal allclose is_nonzero".split()
)


@contextlib.contextmanager
def attributes_noted(note: Callable[[nn.Module, str, bool], None]) -> Iterator[None]:
    """Tell which attributes of modules a forward reads, of this thread's calls.

    Args:
        note: called with a module, the name of the attribute (of a table, where the forward
            goes through layers or parameters), and whether a method of the module reads it.
    """
    thread = threading.get_ident()

    def read(module: nn.Module, name: str) -> Any:
        is_asked = name == "__dict__" if name[:2] == "__" else name not in _OWN
        if is_asked and threading.get_ident() == thread:
            caller = _asks(sys._getframe(1), name)
            if caller is not None:
                first = caller.f_code.co_varnames[:1]
                note(module, name, bool(first) and caller.f_locals.get(first[0]) is module)
        return object.__getattribute__(module, name)

    nn.Module.__getattribute__ = read  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


def _asks(frame: FrameType | None, name: str) -> FrameType | None:
    """The user's code that reads an attribute; None: a library does, for itself."""
    homes: tuple[str, ...] = ("torch.nn.modules.container",)
    if name in TABLES:  # An iteration over modules or parameters reads them for someone.
        homes += ("torch.nn.modules.module",)
    while frame is not None and frame.f_globals.get("__name__") in homes:
        frame = frame.f_back
    return None if frame is None or is_library(frame) else frame


class ConstantsNoted(TorchFunctionMode):
    """Tells what a forward asks of tensors that are no symbolic values."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        """Prepare to watch.

        Args:
            note: called with a tensor of which type, shape or the like is asked.
        """
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch; see `ConstantsNoted`.

        Raises:
            TraceError: it makes a number of a tensor, which would be a constant of the graph.
        """
        result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        is_value = isinstance(first, Tensor) and type(first) in (Tensor, nn.Parameter)
        if is_value and not is_library(sys._getframe(1)):
            name = getattr(func, "__name__", "")
            if name in _NUMBERS:
                raise TraceError("its forward takes a number out of a tensor that is no input")
            if not isinstance(result, Tensor):
                self.note(first)  # type: ignore[arg-type]
        return result
