"""How much there is to hit at each site, which `num_faults` is spread over.

Elements of an activation are known once the model has run, so it is run once without faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from fxfault.errors import SiteError

if TYPE_CHECKING:
    from fxfault.site import FaultSite
    from fxfault.sites import FaultSites

_Shapes = list[tuple[torch.dtype, tuple[int, ...]]]
_Versions = list[tuple[int, int]]

# What a measuring run changes at a site.
_KEPT = ("probability", "selected", "several", "statistics", "elements", "word_bits")


class Extent(NamedTuple):
    """How much there is to hit at a site.

    Attributes:
        elements: of one sample.
        bits: of the word.
        calls: of the site in one forward.
    """

    elements: int
    bits: int
    calls: int


class Extents:
    """Measures the sites of a model when that is needed."""

    def __init__(self) -> None:
        self._running = False
        self._shapes: _Shapes | None = None
        self._versions: _Versions = []

    def prepare(self, sites: FaultSites, inputs: Sequence[Any]) -> None:
        """Measure, if faults are spread over sites whose extent for such inputs is not known.

        Args:
            sites: of the model.
            inputs: what it is called with.

        Raises:
            SiteError: it cannot be called with these inputs.
        """
        needed = {_needed_at(site) for site in sites} - {None}
        if not needed or self._running:
            return
        # Learned widths change when parameters do.
        if self._shapes == _shapes_of(inputs) and (
            "word" not in needed or self._versions == _versions_of(sites)
        ):
            return
        try:
            self.measure(sites, inputs)
        except TypeError as error:  # Compiled code hands over what are tensors only.
            raise SiteError(
                "num_faults: the model cannot be measured with the tensors among its inputs "
                f"({error}); call model.faults.measure(...) with all of them first"
            ) from error

    def measure(self, sites: FaultSites, inputs: Sequence[Any]) -> None:
        """Run the model once without faults; see `FaultSites.measure`."""
        model = sites.clock.model
        modes = {module: module.training for module in model.modules()}
        # Torch runs operators, from which compiled code calls us, without looking at QuantTensors.
        with self.armed_at_zero(sites), torch.no_grad(), torch._C._EnableTorchFunction():
            try:
                model.eval()(*inputs)
            finally:
                for module, training in modes.items():
                    module.training = training
            for site in sites:
                site.extent = _extent_of(site)
        self._shapes, self._versions = _shapes_of(inputs), _versions_of(sites)

    @contextmanager
    def armed_at_zero(self, sites: FaultSites) -> Iterator[None]:
        """Arm all sites at 0 % for a while; settings and the clock are as before afterwards."""
        clock = sites.clock
        before = {**vars(clock), "_next_sample": dict(clock._next_sample)}
        settings = [(site, {name: getattr(site, name) for name in _KEPT}) for site in sites]
        self._running = True
        try:
            clock.enabled, clock.apply_during = True, "both"
            for site in sites:
                site.probability, site.selected, site.several = 0.0, True, None
                site.statistics, site.elements, site.word_bits = None, None, None
            yield
        finally:
            self._running = False
            vars(clock).update(before, forward=clock.forward)  # No two forwards share a number.
            for site, values in settings:
                vars(site).update(values)


def _needed_at(site: FaultSite) -> str | None:
    """What faults need to know of a site: how much of `all` there is, its `word`, or None."""
    if site.several is None and site.num_faults is None and site.rate_unit == "element":
        return None
    learned = site.bit_width is None
    if learned and any(fault.rate_unit == "bit" for fault in site.faults):
        return "word"
    return "all" if any(fault.num_faults is not None for fault in site.faults) else None


def _shapes_of(inputs: Sequence[Any]) -> _Shapes:
    """What the inputs of a model look like, but for the number of samples."""
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    return [(x.dtype, tuple(x.shape[1:])) for x in leaves]


def _versions_of(sites: FaultSites) -> _Versions:
    """What changes when a parameter does."""
    return [(p.data_ptr(), p._version) for p in sites.clock.model.parameters()]


def _extent_of(site: FaultSite) -> Extent:
    """What a measuring run, which has just ended, showed of a site."""
    if site.elements is None or site.word_bits is None:  # It was not reached.
        return Extent(0, 0, 0)
    now, calls = site._calls
    counted = site.counts_calls and now[0] == site.clock.forward
    return Extent(site.elements, int(site.word_bits), calls if counted else 1)
