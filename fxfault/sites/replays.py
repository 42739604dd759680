"""Gives the sites the faults of a list, in place of faults that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fxfault.errors import SiteError
from fxfault.faults.fault_models import ReplayStrategy
from fxfault.faults.given_hits import GivenHits
from fxfault.messages import got, nearest
from fxfault.sites.replay_lists import Hit, ReplayList, replay_of
from fxfault.sites.settings import SiteFault
from fxfault.sites.site import FaultSite
from fxfault.sites.site_names import listed

if TYPE_CHECKING:
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.sites.site_list import SiteList


def given_faults(
    sites: SiteList, config: FaultInjectionConfig
) -> dict[tuple[int, int], SiteFault | None]:
    """Return the faults of the lists that a configuration names.

    Args:
        sites: the sites of a model.
        config: a configuration, of which some entries of `faults` may have `replay`.

    Returns:
        For each such entry and each site, by the number of the entry and the index of the site,
        its fault; None if the list has none at the site.

    Raises:
        ConfigError: a list cannot be read.
        SiteError: a list names a site, or a bit of a word, that does not exist.
    """
    found: dict[tuple[int, int], SiteFault | None] = {}
    for number, entry in enumerate(config.entries()):
        if entry.replay is None:
            continue
        replay = replay_of(entry.replay)
        rows = _rows_by_site(sites, replay)
        for site in sites:
            given = _given(site, replay, rows.get(site.index, []))
            model = ReplayStrategy(given.most_bits, f"replay of {replay.origin.source}")
            fault = SiteFault(model, probability=0.0, number=number, given=given)
            found[number, site.index] = fault if len(given) else None
    return found


def _given(site: FaultSite, replay: ReplayList, rows: list[int]) -> GivenHits:
    """The rows of a list that are about a site."""
    ranks = {injection: rank for rank, injection in enumerate(replay.injections)}
    hits = [replay.hits[row] for row in rows]
    for hit in hits:
        _check(site, replay, hit)
    run = replay.column("injection", rows)
    for row, hit in enumerate(hits):
        run[row] = ranks.get(hit.injection, hit.injection)
    return GivenHits(
        site.name,
        replay.origin,
        line=replay.column("line", rows),
        run=run,
        call=replay.column("call", rows),
        sample=replay.column("sample", rows),
        element=replay.column("element", rows),
        mask=replay.column("mask", rows),
        coordinates=[hit.coordinates for hit in hits],
    )


def _check(site: FaultSite, replay: ReplayList, hit: Hit) -> None:
    """Refuse a bit that the word of a site lacks, and another memory.

    The forward that strikes checks words of learned widths.
    """
    width = site.bit_width
    if width is not None and hit.mask >> width:
        by_bit = replay.origin.mask == "Bit"
        value, most = (hit.mask.bit_length() - 1, width - 1) if by_bit else (hit.mask, 2**width - 1)
        raise SiteError(
            f"{replay.origin.at(hit.line, replay.origin.mask)}: got {value}, allowed: 0 to {most}, "
            f"as the words of site {site.name} have {width} bits; was the list made for "
            "another network?"
        )
    memory = site.memory
    if hit.memory not in (None, memory):
        raise SiteError(
            f"{replay.origin.at(hit.line, 'memory')}: got {hit.memory!r}, allowed: {memory!r}, "
            f"which is what site {site.name} stands for"
        )


def _rows_by_site(sites: SiteList, replay: ReplayList) -> Mapping[int, list[int]]:
    """The rows about each site, by its index."""
    by_name = {site.name: site.index for site in sites}
    if replay.by_index:
        for site in sites:  # A name that looks like an index is a name.
            by_name.setdefault(str(site.index), site.index)
    rows: dict[int, list[int]] = {}
    for row, hit in enumerate(replay.hits):
        if hit.site not in by_name:
            known = sites.names
            raise SiteError(
                f"{replay.origin.at(hit.line, replay.site_column)}: no site "
                f"{got(hit.site).removesuffix(' (str)')}{nearest(hit.site, known)}; "
                f"{listed(known)}; was the list made for another network?"
            )
        rows.setdefault(by_name[hit.site], []).append(row)
    return rows
