"""Where one fault strikes one site: which elements, of which samples.

Everything follows from the seed, the trial, the site, the fault and the numbers of the samples.
A fault that sits in the hardware (`SiteFault.is_fixed`) is drawn for all samples as for one that
has the number 0. `num_faults` is one draw for all selected sites, whose elements stand in it one
after the other by the names of the sites, so that each site finds its own part by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from fxfault import kernels
from fxfault.errors import SiteError
from fxfault.extents import Extent
from fxfault.random_numbers import Key, known_key, stream_key
from fxfault.sampling import (
    Hits,
    Layout,
    Numbers,
    Share,
    exact_hits,
    faulty_units,
    hits_at,
    random_hits,
    random_upsets,
    room_for,
    samples_hit,
    samples_hit_exactly,
    stream_of,
    unit_positions,
)
from fxfault.site import FaultSite, SiteFault

CPU = torch.device("cpu")


class Draw(NamedTuple):
    """The hits of one fault at one site in one batch.

    Attributes:
        site: the place.
        fault: one of those that strike there.
        key: of its random numbers.
        numbers: of the samples, as they are drawn.
        layout: samples and elements of the activation.
        width: bits of the word, where they are what a rate counts; else 1.
    """

    site: FaultSite
    fault: SiteFault
    key: Key
    numbers: Numbers
    layout: Layout
    width: int

    @property
    def probability(self) -> float:
        """Of a hit, 0 to 1."""
        return self.fault.probability / 100

    @property
    def by_element(self) -> bool:
        """Whether each element is hit by itself, with some probability."""
        return self.fault.num_faults is None and self.site.hw_units is None and self.width == 1

    @property
    def expected(self) -> float:
        """Hits to be expected, where `by_element`."""
        return self.layout.samples * self.layout.elements * self.probability

    def stream(self) -> kernels.Stream:
        """Where the hits come from, as the loops take it, where `by_element`."""
        return stream_of(self.key, self.numbers, self.layout, self.probability)

    def room(self) -> int:
        """How many hits to work on together, where `by_element`."""
        return room_for(self.layout, self.probability)

    def hits(self, device: torch.device) -> Iterator[Hits]:
        """The hits, in parts; never an empty one.

        Raises:
            SiteError: it is not known how much there is to hit, or there is too little.
        """
        if self.site.hw_units is not None:
            places = self._broken_places(device)
            return hits_at(places, self.key, self.numbers, self.layout)
        if self.fault.num_faults is not None:
            share, count = self._share(), self.fault.num_faults
            among = (self.key, self.numbers, share, count, device, self.layout)
            return exact_hits(self._joint_key, *among)
        where = (self.key, self.numbers, self.layout)
        if self.fault.rate_unit == "bit":
            return random_upsets(*where, self.width, self.probability, device)
        return random_hits(*where, self.probability, device)

    def samples_hit(self) -> Tensor:
        """Which samples have a hit at all; bool on the CPU, one for each number.

        Raises:
            SiteError: as `hits`.
        """
        if self.site.hw_units is not None:
            return torch.full((len(self.numbers),), self._broken_places(CPU).numel() > 0)
        if self.fault.num_faults is not None:
            share, count = self._share(), self.fault.num_faults
            return samples_hit_exactly(self._joint_key, self.numbers, share, count)
        targets = self.layout.elements * self.width
        return samples_hit(self.key, self.numbers, targets, self.probability)

    @property
    def _joint_key(self) -> int:
        """The key of what is drawn for several sites together."""
        clock = self.site.clock
        stream = clock.hardware_stream if self.fault.is_fixed else clock.stream
        return _numbered(stream("num_faults\x1f"), self.fault)

    def _broken_places(self, device: torch.device) -> Tensor:
        """The elements of a sample that broken units compute, found once for a layout."""
        site, layout = self.site, self.layout
        assert site.hw_units is not None
        run = (site.clock.seed, site.clock.trial)
        wanted = (run, layout.rows, layout.row_shape, self.probability, device)
        if site._cache.get("units") != wanted:
            units = faulty_units(stream_key("units", *run), site.hw_units, self.probability, device)
            places = unit_positions(units, site.hw_units, layout)
            site._cache.update({"units": wanted, "places": places})
        found: Tensor = site._cache["places"]
        return found

    def _share(self) -> Share:
        """The part of this site in what is drawn for several together."""
        parts = sorted((s.name, _extent(s)) for s in self.site.peers if _has(s, self.fault))
        sizes = {name: self._size(extent) for name, extent in parts}
        self._check_extent()
        low = sum(size for name, size in sizes.items() if name < self.site.name)
        total = sum(sizes.values())
        assert self.fault.num_faults is not None
        if self.fault.num_faults > total:
            kind = "bits" if self.fault.rate_unit == "bit" else "elements"
            plural = "one site" if len(parts) == 1 else f"{len(parts)} sites"
            raise SiteError(
                f"num_faults: got {self.fault.num_faults}, allowed: up to the {total} {kind} that "
                f"one sample has at the {plural} that it is spread over"
            )
        return Share(low, low + sizes[self.site.name], total, self.width)

    def _size(self, extent: Extent) -> int:
        return extent.elements * (extent.bits if self.fault.rate_unit == "bit" else 1)

    def _check_extent(self) -> None:
        """See whether there is as much to hit as was measured."""
        elements, bits, calls = _extent(self.site)
        if calls > 1:
            self._refuse(f"a container calls it {calls} times in a forward")
        if elements != self.layout.elements:
            lies = self.site.arrangement
            if lies is not None and lies.why_batch is not None:
                self._refuse(
                    f"its activation belongs to the batch, not to samples ({lies.why_batch})"
                )
            self._refuse(
                f"it has {self.layout.elements} elements for each sample, where "
                f"{elements} were measured"
            )
        if self.fault.rate_unit == "bit" and self.width != bits:
            self._refuse(f"its word has {self.width} bits, where {bits} were measured")

    def _refuse(self, why: str) -> NoReturn:
        raise SiteError(
            f"site {self.site.name}: {why}, so that `num_faults` cannot be spread; leave the site "
            "out by `layers`, measure anew by `model.faults.measure(inputs)`, or give a "
            "probability"
        )


def draw_of(
    site: FaultSite, fault: SiteFault, key: Key, numbers: Numbers, layout: Layout, bits: int | None
) -> Draw:
    """The draw of one fault at a site.

    Args:
        site: the place.
        fault: one of those that strike there.
        key: of the site's random numbers in this forward.
        numbers: of the samples.
        layout: of the activation.
        bits: of the word; None where only a device knows: then those that were measured count.

    Raises:
        SiteError: bits are hit, and it is not known how many there are.
    """
    if fault.is_fixed:
        key = site.clock.hardware_stream(site.name)
        device = numbers.device if isinstance(numbers, Tensor) else CPU
        numbers = torch.zeros(len(numbers), dtype=torch.int64, device=device)
    width = 1
    if fault.rate_unit == "bit":
        width = _extent(site).bits if bits is None else bits
    return Draw(site, fault, _key_of(key, fault), numbers, layout, width)


def draws_at(site: FaultSite, key: Key, numbers: Numbers, layout: Layout) -> Iterator[Draw]:
    """The draws of all faults of a site, without an activation.

    Args:
        site: the place; whether it is armed is not looked at.
        key: of its random numbers: `FaultSite.stream`.
        numbers: of the samples.
        layout: of the site's activation; its number of samples is not looked at.

    Raises:
        SiteError: bits are hit, and it is not known how many there are.
    """
    if site.probability == 0:
        return
    layout = dataclasses.replace(layout, samples=len(numbers))
    for fault in site.faults:
        yield draw_of(site, fault, key, numbers, layout, site.bit_width)


def samples_struck(site: FaultSite, key: Key, numbers: Numbers, layout: Layout) -> Tensor:
    """Which samples any fault of a site hits; bool on the CPU, one for each number.

    Args:
        site: as for `draws_at`.
        key: as for `draws_at`.
        numbers: as for `draws_at`.
        layout: as for `draws_at`.

    Raises:
        SiteError: it is not known how much there is to hit.
    """
    struck = torch.zeros(len(numbers), dtype=torch.bool)
    for draw in draws_at(site, key, numbers, layout):
        struck |= draw.samples_hit()
    return struck


def elements_hit(site: FaultSite, key: Key, numbers: Numbers, layout: Layout) -> int:
    """Count the elements that the faults of a site hit.

    Args:
        site: as for `draws_at`.
        key: as for `draws_at`.
        numbers: as for `draws_at`.
        layout: as for `draws_at`.

    Raises:
        SiteError: it is not known how much there is to hit.
    """
    draws = draws_at(site, key, numbers, layout)
    parts = [hits.index for draw in draws for hits in draw.hits(CPU)]
    if site.several is None:  # No element is hit twice.
        return sum(map(len, parts))
    return torch.cat(parts).unique().numel() if parts else 0


def _key_of(key: Key, fault: SiteFault) -> Key:
    """The key of one of the faults of a site."""
    return key[fault.number] if isinstance(key, Tensor) else _numbered(key, fault)


def _numbered(key: int, fault: SiteFault) -> int:
    """Give each fault of a run random numbers of its own, the first those of the site itself."""
    return key if fault.number == 0 else known_key(key, fault.number)


def _has(site: FaultSite, fault: SiteFault) -> bool:
    """Whether a site is one of those that a fault is spread over."""
    if not site.selected or site.probability == 0:
        return False
    if site.several is None:
        return fault.number == 0
    return any(own.number == fault.number for own in site.several)


def _extent(site: FaultSite) -> Extent:
    if site.extent is None:
        raise SiteError(
            f"site {site.name}: it is not known yet how many elements and bits there are to hit; "
            "call `model.faults.measure(inputs)`, or run the model, first"
        )
    return site.extent
