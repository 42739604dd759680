"""Detect the side effects of a forward while it is traced.

A side effect would happen once, while tracing, instead of in each forward.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.proxy import TraceError

from fxfault.passes.tracing.guards import put_back, same_contents


class Snapshot:
    """The attributes of a module and of all modules below it, and the random states.

    Values are compared by identity; `copied_values` sees whether they change inside.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self.attributes = [_attributes(m) for m in self.modules]
        self.random = _random_states()

    def check(self) -> None:
        """Raise TraceError if something has changed."""
        changed = self.changed_attribute()
        if changed is not None:
            raise TraceError(f"its forward changes self.{changed}")
        if not _same_random(self.random, _random_states()):
            raise TraceError("its forward draws random numbers outside the graph")

    def changed_attribute(self) -> str | None:
        """The name of an attribute that has changed; None if all are as they were."""
        for module, before in zip(self.modules, self.attributes, strict=True):
            now = _attributes(module)
            for name in {**before, **now}:
                then, after = before.get(name, _IGNORED), now.get(name, _IGNORED)
                if not _same(then, after):
                    return _changed_name(name, then, after)
        return None

    def restore(self) -> None:
        """Put the attributes back."""
        for module, attributes in zip(self.modules, self.attributes, strict=True):
            for name in [n for n in module.__dict__ if n not in _IGNORED]:
                if name not in attributes:
                    del module.__dict__[name]
            for name, value in attributes.items():
                current: Any = module.__dict__.get(name)
                if type(value) in _CONTAINERS and type(current) is type(value):
                    put_back(current, value)
                else:
                    module.__dict__[name] = value


# The last two are what a traced module notes of its last forward.
_IGNORED = frozenset({"training", "_ran_own_forward", "_without_hooks"})
_CONTAINERS = (list, dict, set)


def _attributes(module: nn.Module) -> dict[str, Any]:
    plain = {k: v for k, v in module.__dict__.items() if k not in _IGNORED}
    copies = {k: v.copy() for k, v in plain.items() if type(v) in _CONTAINERS}
    return {**plain, **copies}


@contextlib.contextmanager
def copied_values(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let forwards work on copies of the values that they may change, and compare afterwards.

    Args:
        modules: our copies of modules; their tensors, lists, counters, generators and the like
            are copied, but not their parameters, buffers and children.

    Raises:
        TraceError: at the end, if a value has changed.
    """
    shared = {id(m): m for root in modules for m in root.modules()}
    originals: list[tuple[nn.Module, str, Any, Any, int]] = []
    for module in modules:
        for name, value in list(module.__dict__.items()):
            if name.startswith("_") or isinstance(value, _UNCHANGING):
                continue
            with contextlib.suppress(Exception):  # Some values cannot be copied.
                copied = copy.deepcopy(value, dict(shared))
                originals.append((module, name, value, copied, _version(copied)))
                module.__dict__[name] = copied
    try:
        yield
        for _, name, value, copied, version in originals:
            if _version(copied) != version or not _alike(value, copied):
                raise TraceError(f"its forward changes self.{name}")
    finally:
        for module, name, value, *_ in originals:
            module.__dict__[name] = value


_UNCHANGING = (bool, int, float, str, bytes, type(None), type, FunctionType, MethodType, nn.Module)


def _version(value: Any) -> int:
    """How often a tensor was written to."""
    is_counted = isinstance(value, torch.Tensor) and not value.is_inference()
    return value._version if is_counted else 0


def _alike(value: Any, copied: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return copied.is_inference() is False or torch.equal(value, copied)
    if isinstance(value, random.Random):
        return bool(value.getstate() == copied.getstate())
    try:
        return pickle.dumps(value) == pickle.dumps(copied)
    except Exception:  # Some values cannot be pickled; `Snapshot` sees if they are replaced.
        return True


def _same(before: Any, now: Any) -> bool:
    if type(before) in _CONTAINERS and type(now) is type(before):
        return same_contents(now, before)
    return before is now


def _changed_name(name: str, before: Any, now: Any) -> str:
    """The name that the forward uses: parameters, buffers and children are entries of tables."""
    if name not in ("_parameters", "_buffers", "_modules"):
        return name
    changed = [key for key in {**before, **now} if before.get(key) is not now.get(key)]
    return str(changed[0]) if changed else name


def _random_states() -> tuple[Any, Any, torch.Tensor]:
    """The states of Python's, NumPy's and torch's global generators."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _same_random(before: tuple[Any, Any, torch.Tensor], now: tuple[Any, Any, torch.Tensor]) -> bool:
    numpy_same = before[1][2:] == now[1][2:] and np.array_equal(before[1][1], now[1][1])
    return before[0] == now[0] and numpy_same and torch.equal(before[2], now[2])


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the states of the global generators afterwards."""
    python, numpy, torch_state = _random_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
