"""Save and restore the global random generators of Python, NumPy and torch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """Copy the states of all generators, as values that `torch.load(weights_only=True)` accepts.

    >>> state = generator_states()
    >>> first = random.random(), np.random.rand(), torch.rand(()).item()
    >>> restore_generators(state)
    >>> (random.random(), np.random.rand(), torch.rand(()).item()) == first
    True
    """
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = state
    return {
        "python": random.getstate(),
        "numpy": (str(name), keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Restore the output of `generator_states`; skip GPUs if their number has changed."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore all generators after the block."""
    before = generator_states()
    try:
        yield
    finally:
        restore_generators(before)
