"""The fault sites of a model that may have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fxfault.sites.fault_sites import sites_or_none as sites_or_none


@contextmanager
def without_faults(model: nn.Module) -> Iterator[None]:
    """Let no site strike meanwhile; restore the clock afterwards."""
    sites = sites_or_none(model)
    if sites is None:
        yield
        return
    clock, enabled = sites.clock.state(), sites.enabled
    sites.enabled = False
    try:
        yield
    finally:
        sites.clock.restore(clock)
        sites.enabled = enabled
