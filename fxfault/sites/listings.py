"""Lists every fault of an evaluation, by a forward or without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.sites.sample_layouts import batch_size_of

if TYPE_CHECKING:
    from fxfault.sites.fault_list import FaultList
    from fxfault.sites.fault_sites import FaultSites

ListAhead: TypeAlias = "Callable[[Any, Tensor], FaultList]"
"""Lists the faults of samples with given numbers, without a forward."""

Samples: TypeAlias = "int | Sequence[int] | Tensor | None"


def listing(
    sites: Any,
    list_ahead: ListAhead | None,
    inputs: Sequence[Any],
    trial: int | None,
    samples: Samples,
) -> FaultList:
    """List every fault of an evaluation; see `FaultSites.listing`."""
    known: int = sites.clock._next_sample[False]
    with as_in_evaluation(sites, trial):
        if inputs:
            return _recorded(sites, inputs, samples)
        if samples is None and known == 0:
            raise SiteError(
                "listing: no sample was evaluated since the last reset; give `samples`, or the "
                "inputs of a batch"
            )
        assert list_ahead is not None
        return list_ahead(sites, _numbers(known if samples is None else samples))


def _recorded(sites: FaultSites, inputs: Sequence[Any], samples: Samples) -> FaultList:
    numbers = _numbers(batch_size_of(inputs) if samples is None else samples)
    with torch.no_grad(), sites.samples(numbers), sites.recording() as recorder:
        sites.clock.model(*inputs)
    sites.check()
    return recorder.listing()


def _numbers(samples: int | Sequence[int] | Tensor) -> Tensor:
    if isinstance(samples, Tensor):
        return samples
    wanted = range(samples) if isinstance(samples, int) else samples
    return torch.tensor(list(wanted), dtype=torch.int64)


@contextmanager
def as_in_evaluation(sites: FaultSites, trial: int | None) -> Iterator[None]:
    """Set the sites and the modes of their model as in an evaluation, from its first sample on.

    Afterwards modes, settings, clock and statistics are as before.

    Args:
        sites: the sites of a model.
        trial: number of the trial; None keeps it.

    Raises:
        SiteError: no fault strikes in an evaluation.
    """
    clock = sites.clock
    before = {**vars(clock), "_next_sample": dict(clock._next_sample)}
    kept = [(site, site.setting, site.selected) for site in sites]
    statistics = sites.statistics
    modes = {module: module.training for module in clock.model.modules()}
    try:
        clock.model.eval()
        sites.set_statistics(None)
        sites.reset(trial=trial)
        if clock.why_quiet is not None:
            raise SiteError(f"listing: no fault strikes in an evaluation: {clock.why_quiet}")
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        vars(clock).update(before, forward=clock.forward)  # No two forwards share a number.
        sites.set_statistics(statistics)
        for site, setting, selected in kept:
            site.setting, site.selected = setting, selected
