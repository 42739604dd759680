"""See whether a forward changes something while it is traced.

Such an effect would happen once, while tracing, instead of in each forward.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.proxy import TraceError


class Snapshot:
    """The attributes of a module and the random states, to see whether a forward moves them.

    Such an effect would happen once, while tracing, instead of in each forward.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = self._attributes()
        self.random = random_states()

    def _attributes(self) -> dict[str, Any]:
        plain = {k: v for k, v in self.module.__dict__.items() if k not in _IGNORED}
        copies = {k: v.copy() for k, v in plain.items() if type(v) in (list, dict, set)}
        return {**plain, **copies}

    def check(self) -> None:
        now = self._attributes()
        for name in {**self.attributes, **now}:
            then, after = self.attributes.get(name, _IGNORED), now.get(name, _IGNORED)
            if not _same(then, after):
                raise TraceError(f"its forward changes self.{_changed_name(name, then, after)}")
        if not same_random(self.random, random_states()):
            raise TraceError("its forward draws random numbers outside the graph")

    def restore(self) -> None:
        for name in [n for n in self.module.__dict__ if n not in _IGNORED]:
            if name not in self.attributes:
                del self.module.__dict__[name]
        for name, value in self.attributes.items():
            current = self.module.__dict__.get(name)
            if type(value) is dict and type(current) is dict:
                current.clear()
                current.update(value)
            elif type(value) is list and type(current) is list:
                current[:] = value
            else:
                self.module.__dict__[name] = value


_IGNORED = frozenset({"training"})


def _same(before: Any, now: Any) -> bool:
    if type(before) is not type(now):
        return False
    if type(before) is list:
        return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
    if type(before) is dict:
        return list(before) == list(now) and all(before[k] is now[k] for k in before)
    if type(before) is set:
        return before == now
    return before is now


def _changed_name(name: str, before: Any, now: Any) -> str:
    """The attribute as the forward names it: a buffer lives in a table of its module."""
    if name not in ("_parameters", "_buffers", "_modules"):
        return name
    changed = [key for key in {**before, **now} if before.get(key) is not now.get(key)]
    return str(changed[0]) if changed else name


def random_states() -> tuple[Any, Any, torch.Tensor]:
    """The states of Python's, NumPy's and torch's global generators."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def same_random(before: tuple[Any, Any, torch.Tensor], now: tuple[Any, Any, torch.Tensor]) -> bool:
    """Whether no generator moved from one state to the other."""
    numpy_same = before[1][2:] == now[1][2:] and np.array_equal(before[1][1], now[1][1])
    return before[0] == now[0] and numpy_same and torch.equal(before[2], now[2])


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave the global generators as they were."""
    python, numpy, torch_state = random_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
