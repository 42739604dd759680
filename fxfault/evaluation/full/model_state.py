"""The state of a model between evaluations: its modes, its parameters, and its sites."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.measuring import versions_of
from fxfault.sites.statistics import FaultStatistics


def state_of(model: nn.Module) -> list[Any]:
    """A value that changes if a parameter or buffer is replaced, moved or written to.

    It also changes if a traced part stops running its graph, or a struck layer gets other hooks.
    """
    modules = modules_of(model)
    tables = [t for m in modules for t in (m._parameters, m._buffers) if t]
    versions = versions_of(t for table in tables for t in table.values() if t is not None)
    hooked = [len(output.layer[0]._forward_hooks) for output in faults_of(model).outputs]
    return [*versions, own_forwards(modules), hooked]


def own_forwards(modules: Iterable[nn.Module]) -> list[str]:
    """Reasons for which traced modules would now run their own forward in place of the graph."""
    modules = list(modules)
    # Asked once for each type: to ask 700 modules takes half as long as to collect them.
    traced = {kind for kind in set(map(type, modules)) if hasattr(kind, "why_own_forward")}
    ours: list[Any] = [module for module in modules if type(module) in traced]
    reasons = (module.why_own_forward() for module in ours)
    return [why for why in reasons if why is not None]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once.

    `nn.Module.modules` also builds their names. That takes five times as long, which would be a
    large part of a trial with few faults.
    """
    found, seen, level = [model], {id(model)}, [model]
    while level:  # Few modules have children, so the loop below is the shorter one.
        tables = [table.values() for module in level if (table := module._modules)]
        level = []
        for child in itertools.chain.from_iterable(tables):
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                level.append(child)
        found += level
    return found


@contextmanager
def recording(faults: FaultSites, statistics: FaultStatistics | None) -> Iterator[None]:
    """Record forwards in these statistics, or in none, within the block."""
    before = faults.statistics
    faults.set_statistics(statistics)
    try:
        yield
    finally:
        faults.set_statistics(before)


@contextmanager
def disabled(faults: FaultSites) -> Iterator[None]:
    """Disable all sites within the block."""
    enabled, faults.enabled = faults.enabled, False
    try:
        yield
    finally:
        faults.enabled = enabled


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within the block; then give each module its former mode back."""
    # One by one: a part may have been put into eval mode on purpose (frozen batch norm).
    training = [module for module in modules_of(model) if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
