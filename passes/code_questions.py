"""Read a forward's bytecode for what tracing would silently answer wrongly.

A symbolic value can refuse `bool(x)` or `isinstance(x, T)`, but `x is None`, `type(x)`, an
`except` around a refusal, and a context manager never ask it. A forward that does such a
thing keeps its Python code.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

_HANDLERS = {"PUSH_EXC_INFO", "SETUP_FINALLY", "BEFORE_WITH", "SETUP_WITH", "CHECK_EXC_MATCH"}
_NONE_JUMPS = {
    f"POP_JUMP_{direction}IF_{kind}"
    for direction in ("", "FORWARD_", "BACKWARD_")
    for kind in ("NONE", "NOT_NONE")
}
# What may stand before a comparison with None: an attribute, such as `self.downsample`.
_SETTLED = {"LOAD_ATTR", "LOAD_GLOBAL", "LOAD_DEREF"}


def why_unreadable(forward: Callable[..., Any]) -> str | None:
    """Say why a forward must not be traced, judging by its code; None: it may be.

    >>> def forward(self, x, residual=None):
    ...     return x if residual is None else x + residual
    >>> why_unreadable(forward)
    'its forward asks whether a value is something (is None)'
    >>> def forward(self, x):
    ...     return x if self.downsample is None else self.downsample(x)
    >>> why_unreadable(forward) is None
    True
    """
    if hasattr(forward, "__wrapped__"):
        return "its forward is decorated"
    code = getattr(forward, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    for part in _parts(code):
        reason = _reason(part)
        if reason is not None:
            return reason
    return None


def _parts(code: CodeType) -> Iterator[CodeType]:
    """The code and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _parts(constant)


def _reason(code: CodeType) -> str | None:
    if {"type", "issubclass"} & set(code.co_names):
        return "its forward asks for the type of a value"
    previous = [""] * 2
    for step in dis.get_instructions(code):
        if step.opname in _HANDLERS:
            return "its forward has a `try` or a `with`"
        if step.opname in _NONE_JUMPS and previous[-1] not in _SETTLED:
            return "its forward asks whether a value is something (is None)"
        if step.opname == "IS_OP" and not (previous[-1] == "None" and previous[-2] in _SETTLED):
            return "its forward asks whether a value is something (is None)"
        if step.opname not in ("CACHE", "EXTENDED_ARG", "NOP", "RESUME"):
            constant_none = step.opname == "LOAD_CONST" and step.argval is None
            previous = [previous[-1], "None" if constant_none else step.opname]
    return None
