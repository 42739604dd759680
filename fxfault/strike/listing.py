"""Lists the faults of samples without a forward."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults.codes import Word
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_list import FaultList
from fxfault.sites.fault_recorder import FaultRecorder
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite
from fxfault.strike.draws import CPU, sources
from fxfault.strike.records import add_hits


def list_ahead(sites: FaultSites, numbers: Tensor) -> FaultList:
    """List the hits that a draw alone decides, for the present trial; see `FaultSites.listing`.

    Args:
        sites: the sites of a model that is in evaluation mode.
        numbers: the numbers of the samples, int64, one dimension.

    Raises:
        SiteError: what there is to hit at a site is not known.
    """
    recorder = FaultRecorder()
    for site in sites:
        if site.armed and site.strikes and not _is_never_called(site):
            _list_site(recorder, site, numbers)
    return recorder.listing()


def _list_site(recorder: FaultRecorder, site: FaultSite, numbers: Tensor) -> None:
    layout, word = _layout(site), _word(site)
    if site.stored is not None:
        numbers = torch.zeros(1, dtype=torch.int64)  # The whole tensor is one sample.
    for spread, key, own in sources(site, site.first_stream(), numbers, layout):
        for hits in spread.hits(key, own, CPU):
            add_hits(recorder, spread, word, 1, numbers, hits)


def _is_never_called(site: FaultSite) -> bool:
    return site.seen.extent is not None and site.seen.extent.calls == 0


def _layout(site: FaultSite) -> Layout:
    """The layout of one sample."""
    if site.stored is not None:
        return site.stored.layout
    seen, why, more = site.seen, None, ""
    if site.counts_calls:
        why = "a container calls it, so its faults are not known ahead"
    elif seen.layout is None:
        why = "no forward has shown its elements yet"
        more = ", or call model.faults.measure(inputs) first"
    elif seen.layout.samples != seen.batch:
        why = "its activation belongs to the batch, so its faults depend on the batch"
    if why is not None:
        raise SiteError(
            f"listing: site {site.name}: {why}; give the inputs of a batch, whose forward shows "
            f"its faults{more}"
        )
    assert seen.layout is not None
    return dataclasses.replace(seen.layout, samples=1, outer=1)


def _word(site: FaultSite) -> Word:
    """The word, whose sign does not matter to what is drawn."""
    width = site.bit_width
    if width is None:
        learned = site.seen.word_bits
        assert learned is not None
        width = int(learned) if isinstance(learned, torch.Tensor) else learned
    return Word(width, bool(site.signed), site.quantiser.narrow_range, site.quantiser.binary)
