"""What reports say of fault sites, without the network that the sites belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fxfault.faults.fault_models import label_of
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite


@dataclass(frozen=True, kw_only=True)
class SeenSite:
    """A fault site at one moment; see `fxfault.sites.site.FaultSite`.

    Attributes:
        fault: name of the first fault model; empty if nothing strikes here.
    """

    index: int
    name: str
    memory: str
    module_path: str
    module_type: str
    bit_width: int | None
    signed: bool | None
    narrow_range: bool
    elements: int | None
    selected: bool
    fault: str

    @classmethod
    def of(cls, site: FaultSite) -> SeenSite:
        """Look at a site."""
        return cls(
            index=site.index,
            name=site.name,
            memory=site.memory,
            module_path=site.module_path,
            module_type=site.module_type,
            bit_width=site.bit_width,
            signed=site.signed,
            narrow_range=site.quantiser.narrow_range,
            elements=site.elements,
            selected=site.selected,
            fault=label_of(site.fault_model) if site.faults else "",
        )


@dataclass(frozen=True, kw_only=True)
class SeenSites:
    """All sites of a network at one moment, in the order of execution.

    A result keeps this and not the sites themselves, which would keep the network in memory.

    Attributes:
        seed: seed of the faults.
        skipped: paths of targets that faults cannot strike, and why.
    """

    sites: tuple[SeenSite, ...]
    seed: int
    skipped: Mapping[str, str]

    @classmethod
    def of(cls, faults: FaultSites) -> SeenSites:
        """Look at all sites of a transformed network."""
        sites = tuple(map(SeenSite.of, faults))
        return cls(sites=sites, seed=faults.seed, skipped=dict(faults.skipped))

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[SeenSite]:
        return iter(self.sites)

    def __getitem__(self, index: int) -> SeenSite:
        return self.sites[index]
