"""Draws where one fault strikes one site: which elements of which samples.

A draw depends on the seed, the trial, the site, the fault and the sample numbers only. A fault of
the hardware (`SiteFault.is_fixed`) is drawn as for sample 0 and strikes all samples alike.
`num_faults` is one draw over all selected sites. Their elements are numbered site after site,
sorted by site name, so that each site finds its own part without the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults.layouts import CONSTANT, Layout
from fxfault.faults.random_numbers import known_key, stream_key
from fxfault.faults.sampling import (
    Hits,
    Numbers,
    Share,
    exact_hits,
    hits_at,
    random_hits,
    random_upsets,
    samples_hit_at_random,
    samples_hit_exactly,
)
from fxfault.faults.units import channels_of_units, faulty_units, unit_positions
from fxfault.sites.settings import SiteFault
from fxfault.sites.site import Extent, FaultSite

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Spread:
    """How the hits of one fault are spread over the elements of a site.

    Attributes:
        site: the site.
        fault: one of the site's faults.
        layout: samples and elements of the activation.
        width: bits of the word if the rate counts bits, else 1.
        by_element: whether each element is hit independently, with some probability.
        fixed: whether the same elements are hit in every sample.
    """

    site: FaultSite
    fault: SiteFault
    layout: Layout
    width: int
    by_element: bool
    fixed: bool

    @property
    def probability(self) -> float:
        """Probability of a hit, 0 to 1."""
        return self.fault.probability / 100

    def source(self, key: int, numbers: Numbers, call: int = 1) -> tuple[int, Numbers]:
        """The key and the sample numbers that determine the hits.

        Args:
            key: key of the site's random numbers in this forward.
            numbers: the sample numbers.
            call: which call of the site in its forward this is.

        Returns:
            The key of the fault's own random numbers, and the sample numbers to draw for. A fault
            that a list gives draws nothing: its key is `call`.
        """
        if self.fault.given is not None:
            return call, numbers
        if self.fixed:
            key = self.site.clock.hardware_stream(self.site.name)
            device = numbers.device if isinstance(numbers, Tensor) else CPU
            numbers = torch.zeros(len(numbers), dtype=torch.int64, device=device)
        number = self.fault.number  # The first fault uses the site's own random numbers.
        return key if number == 0 else known_key(key, number), numbers

    def hits(self, key: int, numbers: Numbers, device: torch.device) -> Iterator[Hits]:
        """Draw the hits, in parts; no part is empty.

        Args:
            key: the key that `source` returns.
            numbers: the sample numbers that `source` returns.
            device: the device for the hits.

        Raises:
            SiteError: the number of elements is not known yet, or there are too few.
        """
        if self.fault.given is not None:
            trial, layout = self.site.clock.trial, self._shaped
            return self.fault.given.hits(trial, key, numbers, layout, device)
        if self.site.setting.hw_units is not None:
            places = self._broken_places(device)
            return hits_at(places, key, numbers, self.layout)
        if self.fault.num_faults is not None:
            share, count = self._share(), self.fault.num_faults
            among = (key, numbers, share, count, device, self.layout)
            return exact_hits(self._joint_key, *among)
        where = (key, numbers, self.layout)
        if self.fault.rate_unit == "bit":
            return random_upsets(*where, self.width, self.probability, device)
        return random_hits(*where, self.probability, device)

    def samples_hit(self, key: int, numbers: Numbers) -> Tensor:
        """Say which samples have a hit; bool on the CPU, one for each number.

        Args:
            key: the key that `source` returns.
            numbers: the sample numbers that `source` returns.

        Raises:
            SiteError: as for `hits`.
        """
        if self.fault.given is not None:
            shape = self._shaped.sample_shape
            return self.fault.given.samples_hit(self.site.clock.trial, key, numbers, shape)
        if self.site.setting.hw_units is not None:
            return torch.full((len(numbers),), self._broken_places(CPU).numel() > 0)
        if self.fault.num_faults is not None:
            share, count = self._share(), self.fault.num_faults
            return samples_hit_exactly(self._joint_key, numbers, share, count)
        targets = self.layout.elements * self.width
        return samples_hit_at_random(key, numbers, targets, self.probability)

    @property
    def _shaped(self) -> Layout:
        """The layout; if it tells elements only, with the shape that the last forward showed."""
        seen, layout = self.site.seen.layout, self.layout
        flat = len(layout.sample_shape) == 1
        if not flat or seen is None or seen.elements != layout.elements:
            return layout
        return dataclasses.replace(seen, samples=layout.samples, outer=layout.outer)

    @property
    def _joint_key(self) -> int:
        """The key of a draw over several sites."""
        clock, number = self.site.clock, self.fault.number
        stream = clock.stream if self.site.stored is None else clock.stored_stream
        key = (clock.hardware_stream if self.fixed else stream)("num_faults\x1f")
        return key if number == 0 else known_key(key, number)

    def _broken_places(self, device: torch.device) -> Tensor:
        """The elements of a sample that broken units compute; cached for a layout."""
        layout, clock, parallel = self.layout, self.site.clock, self.site.setting.hw_units
        stored = self.site.stored
        assert parallel is not None
        run = (clock.seed, clock.trial)
        wanted = (run, parallel, layout.rows, layout.row_shape, self.probability, device)
        known, places = self.site.caches.get("broken units", (None, None))
        if known != wanted:
            units = faulty_units(stream_key("units", *run), parallel, self.probability, device)
            if stored is None:
                places = unit_positions(units, parallel, layout)
            else:
                places = channels_of_units(units, parallel, stored.shape, stored.channel_dim)
            self.site.caches["broken units"] = (wanted, places)
        return places

    def _share(self) -> Share:
        """The part of this site in a draw over several sites."""
        parts = sorted((s.name, _extent(s)) for s in self.site.peers if _has(s, self.fault))
        sizes = {name: self._size(extent) for name, extent in parts}
        self._check_extent()
        low = sum(size for name, size in sizes.items() if name < self.site.name)
        total = sum(sizes.values())
        assert self.fault.num_faults is not None
        if self.fault.num_faults > total:
            kind = "bits" if self.fault.rate_unit == "bit" else "elements"
            plural = "one site" if len(parts) == 1 else f"{len(parts)} sites"
            have = "one sample has" if self.site.stored is None else "there are"
            raise SiteError(
                f"num_faults: got {self.fault.num_faults}, allowed: up to the {total} {kind} that "
                f"{have} at the {plural} that it is spread over"
            )
        return Share(low, low + sizes[self.site.name], total, self.width)

    def _size(self, extent: Extent) -> int:
        return extent.elements * (extent.bits if self.fault.rate_unit == "bit" else 1)

    def _check_extent(self) -> None:
        """Check the elements and bits against those that were measured."""
        elements, bits, calls = _extent(self.site)
        if calls > 1:
            self._refuse(f"a container calls it {calls} times in a forward")
        lies = self.site.seen.arrangement
        if lies is not None and lies.why_batch not in (None, CONSTANT):
            # Even if the elements happen to be as many: the number is one of each sample.
            self._refuse(f"its activation belongs to the batch, not to samples ({lies.why_batch})")
        if elements != self.layout.elements:
            self._refuse(
                f"it has {self.layout.elements} elements for each sample, but "
                f"{elements} were measured"
            )
        if self.fault.rate_unit == "bit" and self.width != bits:
            self._refuse(f"its word has {self.width} bits, but {bits} were measured")

    def _refuse(self, why: str) -> NoReturn:
        raise SiteError(
            f"site {self.site.name}: {why}, so `num_faults` cannot be spread over it; leave the "
            "site out by `layers`, measure again by `model.faults.measure(inputs)`, or give a "
            "probability"
        )


def spread_of(site: FaultSite, fault: SiteFault, layout: Layout, bits: int | None) -> Spread:
    """How one fault of a site is spread.

    Args:
        site: the site.
        fault: one of the site's faults.
        layout: samples and elements of the activation.
        bits: bits of the word; None if only a device knows them, then the measured ones count.

    Raises:
        SiteError: the rate counts bits, and their number is not known yet.
    """
    width = 1
    if fault.rate_unit == "bit":
        width = _extent(site).bits if bits is None else bits
    counted = fault.num_faults is not None or fault.given is not None
    by_element = not counted and site.setting.hw_units is None and width == 1
    return Spread(site, fault, layout, width, by_element, fault.is_fixed)


def sources(
    site: FaultSite, key: int, numbers: Numbers, layout: Layout, call: int = 1
) -> Iterator[tuple[Spread, int, Numbers]]:
    """The faults of a site, with the key and the sample numbers of each, without an activation."""
    layout = dataclasses.replace(layout, samples=len(numbers))
    for fault in site.faults if site.strikes else ():
        spread = spread_of(site, fault, layout, site.bit_width)
        yield (spread, *spread.source(key, numbers, call))


def samples_hit(
    site: FaultSite, numbers: Numbers, layout: Layout, key: int | None = None, call: int = 1
) -> Tensor:
    """Say which samples the faults of a site hit, without an activation.

    Args:
        site: the site.
        numbers: sample numbers, int64, one dimension.
        layout: layout of the site's activation; its number of samples is ignored.
        key: key of the site's random numbers, even if the site is not armed; None: the key of the
            next evaluation.
        call: which call of the site in its forward has that key.

    Returns:
        bool, on the CPU, one for each number; all false if the site is not armed.

    Raises:
        SiteError: a container may call the site more than once in a forward, and each call has
            its own draw; or the number of elements is not known yet (see `FaultSites.measure`).
    """
    hit = torch.zeros(len(numbers), dtype=torch.bool)
    if site.stored is not None:
        numbers, layout = range(1), site.stored.layout  # Its faults are those of all samples.
    if key is None:
        if site.counts_calls:
            raise SiteError(
                f"site {site.name}: a container calls it, so its faults are not known ahead"
            )
        if not site.armed:
            return hit
        key = site.first_stream()
    for spread, own_key, own_numbers in sources(site, key, numbers, layout, call):
        hit |= spread.samples_hit(own_key, own_numbers)
    return hit


def elements_hit(
    site: FaultSite, numbers: Numbers, layout: Layout, key: int | None = None, call: int = 1
) -> int:
    """Count the elements that the faults of a site hit in the next evaluation.

    Args:
        site: the site, armed or not.
        numbers: the sample numbers.
        layout: layout of the site's activation; its number of samples is ignored.
        key: key of the site's random numbers; None: that of its first call in a forward.
        call: which call of the site in its forward has that key.

    Raises:
        SiteError: the number of elements is not known yet.
    """
    if site.stored is not None:
        numbers, layout = range(1), site.stored.layout
    key = site.first_stream() if key is None else key
    parts = [
        hits.index
        for spread, own_key, own_numbers in sources(site, key, numbers, layout, call)
        for hits in spread.hits(own_key, own_numbers, CPU)
    ]
    if len(site.faults) == 1:  # One fault hits no element twice.
        return sum(map(len, parts))
    return torch.cat(parts).unique().numel() if parts else 0


def _has(site: FaultSite, fault: SiteFault) -> bool:
    """Say whether a fault is spread over a site."""
    strikes = site.selected and site.strikes and not site.passes_on
    return strikes and any(own.number == fault.number for own in site.faults)


def _extent(site: FaultSite) -> Extent:
    extent = site.seen.extent
    if site.stored is not None and site.bit_width is not None:
        return Extent(site.stored.layout.elements, site.bit_width, 1)
    if extent is None:
        raise SiteError(
            f"site {site.name}: it is not known yet how many elements and bits there are to hit; "
            "call `model.faults.measure(inputs)`, or run the model, first"
        )
    return extent
