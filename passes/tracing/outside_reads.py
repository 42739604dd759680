"""Judge what a forward reads outside of its locals: guard it, trust it or refuse it.

Functions of torch and of some modules of Python keep no state. They are trusted, except those that
return a setting of the moment.
"""

from __future__ import annotations

import operator
import random
import re
import types
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.proxy import TraceError

from fxfault.passes.tracing.guards import FUNCTIONS, Guard, Missing, Scope, now_at, owner_of

# Modules whose functions and constants have no state, or a state that is watched elsewhere.
_TRUSTED = frozenset(
    "torch brevitas numpy math operator builtins itertools functools typing types enum "
    "collections abc dataclasses cmath _operator _functools numbers copy fxfault".split()
)
# Names of torch functions that return a setting of the moment or of the machine.
_ASKS_FOR_SETTING = re.compile(
    r"(is|are)_\w*(enabled|initialized)\w*|is_fx_\w+|get_(default|num|rng|autocast|deterministic|"
    r"float32)\w*|\w*seed|current_\w+|memory_\w+"
)
_SETTINGS = re.compile(r"(torch\.backends|numpy\.random)\b")


def guards_for(holder: Any, name: str, chain: tuple[str, ...]) -> list[Guard]:
    """Make the guards for a name that a forward reads outside of its locals.

    Args:
        holder: a `Scope` or a class.
        name: a name in it.
        chain: the attributes that the forward reads of the name, one after the other.

    Raises:
        TraceError: a value that is read may change, or has effects outside.
    """
    value = now_at(holder, name)
    label = f"{holder.__name__}.{name}" if isinstance(holder, type) else name
    guards = _guard(holder, name, value, label)
    for number, attribute in enumerate(chain):
        if isinstance(value, (nn.Module, torch.Tensor)) or value is Missing:
            return guards
        if is_trusted(value):
            _check_trusted(value, chain[number:], label)
            return guards
        label = f"{label}.{attribute}"
        if isinstance(value, types.ModuleType):
            holder = Scope(vars(value), value.__name__)
        elif isinstance(value, type):
            holder = value
        else:
            return guards  # Its attributes are guarded with it.
        value = now_at(holder, attribute)
        guards += _guard(holder, attribute, value, label)
    _check_trusted(value, (), label)
    return guards


def _guard(holder: Any, name: str, value: Any, label: str) -> list[Guard]:
    """The guard for one value, or none if it cannot change."""
    if _is_wrapped_by_fx(value):
        value = value.__wrapped__
    if value is Missing or is_trusted(value):
        return []
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        if isinstance(getattr(value, "__self__", None), (random.Random, np.random.RandomState)):
            raise TraceError("its forward draws random numbers outside the graph")
        raise TraceError(f"its forward calls {label}, whose code cannot be read")
    if isinstance(value, (nn.Module, torch.Tensor)):
        return []  # The graph or the tracer handles these.
    return [Guard.of(holder, name, label, value)]


def _check_trusted(value: Any, chain: tuple[str, ...], label: str) -> None:
    """Refuse library functions that return a setting of the moment, or compare identities.

    Raises:
        TraceError: for `torch.is_grad_enabled`, `torch.backends`, `operator.is_` and the like.
    """
    for attribute in (None, *chain):
        if attribute is not None:
            label, value = f"{label}.{attribute}", getattr(value, attribute, Missing)
        if value is operator.is_ or value is operator.is_not:
            raise TraceError(f"its forward compares a value by identity ({label})")
        is_module = isinstance(value, types.ModuleType)
        home = value.__name__ if is_module else getattr(value, "__module__", None) or "torch"
        name = "" if is_module else str(getattr(value, "__name__", ""))
        if _SETTINGS.match(str(home)) and (is_module or callable(value)):
            raise TraceError(f"its forward asks for {label}, which may change")
        if str(home).startswith("torch") and _ASKS_FOR_SETTING.fullmatch(name):
            raise TraceError(f"its forward asks for {label}, which may change")


def _is_wrapped_by_fx(value: Any) -> bool:
    """Whether torch.fx has replaced a function by one of its own while it traces."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename == torch.fx._symbolic_trace.__file__


def is_trusted(value: Any) -> bool:
    """Whether a value belongs to a library whose functions keep no state."""
    if isinstance(value, (nn.Module, torch.Tensor, torch.Generator, np.random.Generator)):
        return False
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _TRUSTED
    own_self = getattr(value, "__self__", None)
    if isinstance(value, types.BuiltinFunctionType) and own_self is not None:
        if not isinstance(own_self, (type, types.ModuleType)):
            return False
        own = own_self.__name__ if isinstance(own_self, types.ModuleType) else own_self.__module__
        return str(own).partition(".")[0] in _TRUSTED
    described = value if isinstance(value, (type, *FUNCTIONS)) else type(value)
    if described in (list, dict, set, bytearray, object) or type(described) in (property,):
        return False
    home = str(getattr(described, "__module__", None) or "").partition(".")[0]
    if isinstance(value, (type, *FUNCTIONS)):
        return home in _TRUSTED
    # Objects of torch and objects that describe types are trusted; containers are not.
    return home in ("torch", "brevitas", "typing", "types") and not isinstance(
        value, (types.SimpleNamespace, types.MappingProxyType)
    )


def is_library_class(kind: type) -> bool:
    """Whether a class belongs to a library, so that its attributes are not state."""
    return kind.__module__.partition(".")[0] in ("torch", "brevitas", "builtins", "fxfault")


def is_of_library(kind: type, name: str) -> bool:
    """Whether a class has an attribute from a library class."""
    owner = owner_of(kind, name)
    return owner is not None and is_library_class(owner)
