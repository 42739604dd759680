"""The sites of a model as a list: find them by index, name or pattern, add them and clear them."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fxfault.config.curriculum import config_at
from fxfault.errors import SiteError
from fxfault.messages import counted, html_table, nearest
from fxfault.sites.clock import FaultClock
from fxfault.sites.settings import setting_of
from fxfault.sites.site import OUTPUT, FaultSite, Stored
from fxfault.sites.site_names import indices_of, listed, number_notes, same_name

if TYPE_CHECKING:
    from fxfault.config.entries import FaultEntry
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.quantisers.quant_tensors import Quantiser


class SiteList(Sequence[FaultSite]):
    """Sites in the order of execution; see `FaultSites` for the attributes."""

    def __init__(self, config: FaultInjectionConfig) -> None:
        self.config = config
        self.clock = FaultClock(config)
        self._sites: list[FaultSite] = []

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[FaultSite]:
        return iter(self._sites)

    def __getitem__(self, key: int | str) -> FaultSite:  # type: ignore[override]
        """Find a site by its index (a negative one counts from the end) or its name."""
        if isinstance(key, str):
            for site in self._sites:
                if site.name == key:
                    return site
            hint = nearest(key, self.names)
            raise SiteError(f"no site {key!r}{hint}; {listed(self.names)}")
        try:
            return self._sites[key]
        except IndexError:
            hint = same_name(key, self.names)
            raise SiteError(f"no site {key}{hint}; {listed(self.names)}") from None

    def __repr__(self) -> str:
        armed = sum(site.armed for site in self)
        return f"FaultSites({counted(len(self), 'site')}, {armed} armed, seed {self.clock.seed})"

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        head = ["#", "Site", "Memory", "Module", "Bits", "Faults", "State"]
        rows = [
            [
                *(str(site.index), site.name, site.memory, site.module_type),
                "learned" if site.bit_width is None else str(site.bit_width),
                *("; ".join(map(str, site.faults)) or "-", site.why_unarmed or "armed"),
            ]
            for site in self
        ]
        return html_table(head, rows, repr(self))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sites."""
        return tuple(site.name for site in self._sites)

    def matching(
        self, layers: str | int | Iterable[str | int] | None, where: str = "layers"
    ) -> list[int]:
        """Return the indices of the sites that patterns and indices select; None selects all.

        Raises:
            SiteError: one of them matches no site; the message calls them `where`.
        """
        if layers is not None:
            wanted = [layers] if isinstance(layers, (str, int)) else layers
            layers = [self[item].index if isinstance(item, int) else item for item in wanted]
        return indices_of(layers, self.names, where)

    def number_notes(self) -> list[str]:
        """Say which sites numbers in the configuration select, where names could mislead."""
        chosen = [self.config.layers, *(entry.layers for entry in self.config.entries())]
        return list(dict.fromkeys(number_notes(chosen, self.names)))

    def struck_by(self, entry: FaultEntry, where: str | None) -> list[int]:
        """The indices of the sites that an entry strikes; `where` names one that has layers."""
        missing = [kind for kind in entry.memories if all(s.memory != kind for s in self)]
        if missing:
            raise SiteError(
                f"{f'{where}.' if where else ''}memory: got {missing[0]!r}, allowed: a memory that "
                f"the model was transformed with, {' or '.join(self.config.memories)}"
            )
        found = self.matching(None if where is None else entry.layers, f"{where}.layers")
        struck = [index for index in found if self[index].memory in entry.memories]
        if not struck:
            raise SiteError(
                f"{where}.layers: {entry.layers!r} selects no site in {' or '.join(entry.memories)}"
            )
        return struck

    def add(
        self,
        name: str,
        module_path: str,
        module_type: str,
        quantiser: Quantiser,
        stored: Stored | None = None,
        part: str = OUTPUT,
    ) -> tuple[FaultSite, str]:
        """Add a site; return it and the attribute through which generated code finds it."""
        site = FaultSite(
            name=name,
            index=len(self._sites),
            module_path=module_path,
            module_type=module_type,
            quantiser=quantiser,
            clock=self.clock,
            gradient_mode=self.config.gradient_mode,
            peers=self._sites,
            # Every entry of `faults` strikes here until `set_faults` looks at their layers.
            setting=setting_of(config_at(self.config, self.clock.epoch)),
            stored=stored,
            part=part,
        )
        self._sites.append(site)
        # In ASCII, because Python normalises other letters in source code.
        attribute = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        attribute = f"_{attribute}" if attribute[:1].isdigit() else attribute
        attribute += "_" if keyword.iskeyword(attribute) else ""
        while hasattr(self, attribute):
            attribute += "_"
        setattr(self, attribute, site)
        return site, attribute

    def clear(self) -> list[FaultSite]:
        """Remove and return all sites; the clock and its settings stay."""
        for name, value in list(vars(self).items()):
            if isinstance(value, FaultSite):
                delattr(self, name)
        before, self._sites = self._sites, []
        return before
