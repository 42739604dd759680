"""Read the bytecode of one function for what tracing would silently get wrong.

A symbolic value can refuse `bool(x)` or `isinstance(x, T)`, but `x is None`, `type(x)`, an `except`
around a refusal and a context manager never ask it. A write to a global happens once, while
tracing, instead of in each forward. This module only reads code;
`fxfault.passes.tracing.call_tree` applies it to every function that a forward calls, and judges by
the values of the moment.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType
from typing import NamedTuple

_MATCHES = {"MATCH_CLASS", "MATCH_MAPPING", "MATCH_SEQUENCE", "MATCH_KEYS"}
_HANDLERS = {"PUSH_EXC_INFO", "SETUP_FINALLY", "BEFORE_WITH", "SETUP_WITH", "CHECK_EXC_MATCH"}
_NONE_JUMPS = {
    f"POP_JUMP_{direction}IF_{kind}"
    for direction in ("", "FORWARD_", "BACKWARD_")
    for kind in ("NONE", "NOT_NONE")
}
_SILENT = ("CACHE", "EXTENDED_ARG", "NOP", "RESUME", "PRECALL", "PUSH_NULL", "COPY_FREE_VARS")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_KINDS = {
    **dict.fromkeys(("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"), "local"),
    **dict.fromkeys(("LOAD_GLOBAL", "LOAD_NAME"), "global"),
    **dict.fromkeys(("LOAD_DEREF", "LOAD_CLASSDEREF"), "free"),
    "LOAD_CONST": "constant",
}
# Built-in functions that ask for something that a graph lacks, or that act outside of it.
_TYPE_QUESTIONS = frozenset({"type", "issubclass", "callable"})
_ACTS = frozenset(
    "print input open id vars globals locals setattr delattr exec eval compile __import__ "
    "breakpoint memoryview".split()
)
IS_QUESTION = "its forward compares a value by identity (is None)"


class Load(NamedTuple):
    """A name, and the attributes that are read of it one after the other.

    Attributes:
        kind: `local`, `global`, `free` or `constant`.
        name: the name of the variable, or the constant itself.
        chain: names of the attributes.
    """

    kind: str
    name: object
    chain: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join([str(self.name), *self.chain])


@dataclass(frozen=True)
class Code:
    """What the bytecode of one function shows.

    Attributes:
        refusal: why it must not be traced, whatever the values are; None if there is no reason.
        outside: the globals and the variables of enclosing functions that it reads.
        questions: the operands of `is`, by the offset of the instruction, and by that of its
            prefix if it has one.
    """

    refusal: str | None
    outside: tuple[Load, ...]
    questions: dict[int, tuple[Load, ...]]


@functools.lru_cache(maxsize=4096)
def read_code(code: CodeType) -> Code:
    """Read the code of one function, but not of functions that are defined in it.

    >>> def forward(self, x, residual=None):
    ...     return x if residual is None else x + residual
    >>> list(read_code(forward.__code__).questions.values())
    [(Load(kind='local', name='residual', chain=()),)]
    >>> def forward(self, x):
    ...     try:
    ...         return x.value
    ...     except AttributeError:
    ...         return x
    >>> read_code(forward.__code__).refusal
    'its forward has a `try` or a `with`'
    """
    starts, start = {}, None
    for step in dis.get_instructions(code):
        start = step.offset if start is None else start
        starts[step.offset] = start
        start = start if step.opname == "EXTENDED_ARG" else None
    steps = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
    outside: list[Load] = []
    questions: dict[int, tuple[Load, ...]] = {}
    refusal = None
    for place, step in enumerate(steps):
        name = step.opname
        why = _why_refused(steps, place, code)
        refusal = refusal or why
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            outside.append(Load("global", step.argval, _chain_after(steps, place)))
        elif name in ("LOAD_DEREF", "LOAD_CLASSDEREF") and step.argval in code.co_freevars:
            outside.append(Load("free", step.argval, _chain_after(steps, place)))
        elif name in _NONE_JUMPS or name == "IS_OP":
            operands = _operands(steps, place, 2 if name == "IS_OP" else 1)
            if operands is None:
                refusal = refusal or IS_QUESTION
            else:
                # For a long jump Python reports the prefix and not the jump itself.
                questions[step.offset] = questions[starts[step.offset]] = operands
    return Code(refusal, tuple(outside), questions)


def _why_refused(steps: Sequence[dis.Instruction], place: int, code: CodeType) -> str | None:
    step = steps[place]
    name = step.opname
    if name in _HANDLERS:
        return "its forward has a `try` or a `with`"
    is_global = name in ("LOAD_GLOBAL", "LOAD_NAME")
    if name in _MATCHES or (is_global and step.argval in _TYPE_QUESTIONS):
        return "its forward asks for the type of a value"
    if is_global and step.argval in _ACTS:
        return f"its forward calls {step.argval}"
    if name == "LOAD_ATTR" and step.argval == "__class__":
        return "its forward asks for the type of a value"
    if name == "IMPORT_NAME":
        return f"its forward imports {step.argval}"
    if name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
        return f"its forward changes the global {step.argval}"
    if name in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars:
        return f"its forward changes {step.argval}, a variable of the function around it"
    if name in ("STORE_ATTR", "DELETE_ATTR"):
        owner = _load_before(steps, place)
        if owner is not None and owner[0].kind in ("global", "free"):
            return f"its forward changes {owner[0]}.{step.argval}"
    return None


def _chain_after(steps: Sequence[dis.Instruction], place: int) -> tuple[str, ...]:
    chain = []
    for step in steps[place + 1 :]:
        # An assignment such as `Net.calls += 1` copies the owner first.
        if step.opname in ("COPY", "DUP_TOP"):
            continue
        if step.opname not in _ATTRIBUTES:
            break
        chain.append(step.argval)
    return tuple(chain)


def _load_before(steps: Sequence[dis.Instruction], place: int) -> tuple[Load, int] | None:
    """The simple expression that ends just before a place, and where it begins."""
    chain: list[str] = []
    place -= 1
    while place >= 0 and steps[place].opname == "LOAD_ATTR":
        chain.append(steps[place].argval)
        place -= 1
    if place < 0:
        return None
    step = steps[place]
    kind = _KINDS.get(step.opname)
    if kind is None:
        return None
    return Load(kind, step.argval, tuple(reversed(chain))), place


def _operands(steps: Sequence[dis.Instruction], place: int, count: int) -> tuple[Load, ...] | None:
    """The operands of a comparison; None if they are not simple expressions."""
    found: list[Load] = []
    asks = place
    for _ in range(count):
        load = _load_before(steps, place)
        if load is None:
            return None
        found.append(load[0])
        place = load[1]
    if any(step.is_jump_target for step in steps[place + 1 : asks + 1]):
        return None  # The value comes from one of several places.
    return tuple(reversed(found))
