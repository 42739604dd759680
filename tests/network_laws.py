"""The laws that hold on every network, for networks that are too large for the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from fxfault.passes import trace

SETTINGS = {"enabled": True, "apply_during": "both", "seed": 3, "injection_type": "msb_flip"}


def check_laws(
    model: nn.Module,
    inputs: Tensor,
    *,
    memories: Sequence[str] = ("activations",),
    modes: Sequence[str] = ("eval", "train"),
    num_faults: int = 2,
) -> None:
    """Check bit equality without faults, one strike a call, strip, and faults for any batch size.

    `num_faults` strike each sample, or each trial if they strike what is stored.
    """
    model.eval()
    for memory in memories:
        settings = {**SETTINGS, "memory": memory, "num_faults": num_faults}
        faulty = fxfault.transform(model, settings)
        checked = fxfault.check(faulty, model, inputs, modes=modes)
        assert (checked.modes, checked.kept, checked.not_compared) == (tuple(modes), (), {})
        _check_strike_and_strip(faulty, model, inputs)
        if memory == "activations":
            whole, parts = places(faulty, inputs), places(faulty, inputs[:1], inputs[1:])
            assert whole == parts
            assert len(whole) == num_faults * len(inputs)


def places(faulty: Any, *batches: Tensor) -> set[tuple[Any, ...]]:
    """Site, call, sample, element and bits of every fault of trial 0."""
    faulty.faults.reset(trial=0)
    with torch.no_grad(), faulty.faults.recording() as recorder:
        for batch in batches:
            faulty(batch)
    keys = ("site", "call", "sample", "element", "bits")
    rows = [tuple(row[key] for key in keys) for row in recorder.listing().rows()]
    assert len(set(rows)) == len(rows)
    return set(rows)


def _check_strike_and_strip(faulty: Any, model: nn.Module, inputs: Tensor) -> None:
    clean = fxfault.strip(faulty)
    # A network that keeps its own forward has graphs in some of its parts, or in none.
    for part, other in zip(clean.modules(), trace(model).modules(), strict=True):
        graphs = (str(getattr(one, "graph", None)) for one in (part, other))
        assert next(graphs) == next(graphs)
    with torch.no_grad():
        golden = model(inputs)
        faulty.faults.reset(trial=0)
        assert not torch.equal(faulty(inputs), golden)
        faulty.faults.enabled = False
        assert torch.equal(faulty(inputs), golden)
        assert torch.equal(clean(inputs), golden)
        faulty.faults.enabled = True
