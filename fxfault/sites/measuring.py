"""Measure how much there is to hit at each site, over which `num_faults` is spread.

The model runs once without faults, because only a forward shows the elements of an activation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from fxfault.errors import SiteError
from fxfault.sites.settings import AT_ZERO
from fxfault.sites.site import Extent
from fxfault.sites.statistics import FaultStatistics

if TYPE_CHECKING:
    from fxfault.sites.fault_sites import FaultSites
    from fxfault.sites.site import FaultSite

_Shapes = list[tuple[torch.dtype, tuple[int, ...]]]
Versions = list[tuple[int, int, int]]


@contextmanager
def armed_at_zero(sites: FaultSites) -> Iterator[FaultStatistics]:
    """Arm all sites at 0 %; restore their settings and the clock at the end.

    Yields:
        The statistics of the time between: which sites ran, and their elements.
    """
    clock = sites.clock
    before = {**vars(clock), "_next_sample": dict(clock._next_sample)}
    kept = [(site, site.setting, site.selected, site.statistics) for site in sites]
    statistics = FaultStatistics(len(sites), sites.names, cosine=False)
    try:
        clock.enabled, clock.apply_during, clock.given = True, "both", None
        clock.measuring = True
        for site in sites:
            site.setting, site.selected, site.statistics = AT_ZERO, True, statistics
        yield statistics
    finally:
        vars(clock).update(before, forward=clock.forward)  # No two forwards share a number.
        for site, setting, selected, recorded in kept:
            site.setting, site.selected, site.statistics = setting, selected, recorded


def run_without_faults(
    sites: FaultSites, inputs: Sequence[Any], named_inputs: Mapping[str, Any] | None = None
) -> FaultStatistics:
    """Run a model once so that each site that it reaches shows what there is to hit.

    The model runs in evaluation mode and without gradients. Afterwards modes, settings, clock and
    statistics are as before, but `seen` of each site is that of this run.

    Args:
        sites: the sites of the model.
        inputs: the inputs of the model.
        named_inputs: inputs that are given by name.

    Returns:
        The statistics of the run: how often each site ran, and its elements.
    """
    model = sites.clock.model
    modes = {module: module.training for module in model.modules()}
    # Compiled code calls us from an operator, in which torch ignores QuantTensors by default.
    with armed_at_zero(sites) as statistics, torch.no_grad(), torch._C._EnableTorchFunction():
        try:
            model.eval()(*inputs, **(named_inputs or {}))
        finally:
            for module, training in modes.items():
                module.training = training
    return statistics


class Extents:
    """Measures the sites of a model when needed."""

    def __init__(self) -> None:
        self._shapes: _Shapes | None = None
        self._versions: Versions = []

    def prepare(self, sites: FaultSites, inputs: Sequence[Any]) -> None:
        """Measure if faults are spread over sites whose extent for such inputs is unknown.

        Args:
            sites: the sites of the model.
            inputs: the inputs of the model.

        Raises:
            SiteError: the model cannot be called with these inputs.
        """
        needed = {_needed_at(site) for site in sites} - {None}
        # Learned widths change when parameters do.
        if not needed or (
            self._shapes == _shapes_of(inputs)
            and (
                "word" not in needed
                or self._versions == versions_of(sites.clock.model.parameters())
            )
        ):
            return
        try:
            self.measure(sites, inputs)
        except TypeError as error:  # Compiled code only passes tensors.
            raise SiteError(
                "num_faults: the model cannot be measured with the tensors among its inputs "
                f"({error}); call model.faults.measure(...) with all of them first"
            ) from error

    def measure(
        self,
        sites: FaultSites,
        inputs: Sequence[Any],
        named_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Run the model once without faults; see `FaultSites.measure`."""
        before = [(site.seen.elements, site.seen.word_bits) for site in sites]
        for site in sites:
            site.seen.elements, site.seen.word_bits = None, None
        try:
            statistics = run_without_faults(sites, inputs, named_inputs)
            for site in sites:
                calls = statistics.layer_stats[site.index].sample_count
                site.seen.extent = _extent_of(site, calls)
        finally:
            for site, (elements, word_bits) in zip(sites, before, strict=True):
                site.seen.elements, site.seen.word_bits = elements, word_bits
        self._shapes, self._versions = (
            _shapes_of(inputs),
            versions_of(sites.clock.model.parameters()),
        )


def _needed_at(site: FaultSite) -> str | None:
    """What faults need to know about a site: its `word`, the extent of `all` sites, or None."""
    if site.bit_width is None and any(fault.rate_unit == "bit" for fault in site.faults):
        return "word"
    return "all" if any(fault.num_faults is not None for fault in site.faults) else None


def _shapes_of(inputs: Sequence[Any]) -> _Shapes:
    """The types and shapes of a model's inputs, without the number of samples."""
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    return [(x.dtype, tuple(x.shape[1:])) for x in leaves]


def versions_of(tensors: Iterable[torch.Tensor]) -> Versions:
    """Identities, addresses and versions of tensors.

    They change if a tensor is replaced, moved, or written to. Torch does not count writes to
    inference tensors.
    """
    return [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _extent_of(site: FaultSite, calls: int) -> Extent:
    """The extent that a run without faults, which has just ended, showed."""
    elements, bits = site.seen.elements, site.seen.word_bits
    if elements is None or bits is None:  # It was not reached.
        return Extent(0, 0, 0)
    return Extent(elements, int(bits), calls if site.stored is None else 1)
