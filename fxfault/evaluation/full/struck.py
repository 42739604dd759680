"""Say which samples an evaluation struck, from what the sites showed, without an activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fxfault.evaluation.full.model_state import in_eval_mode
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.site import FaultSite
from fxfault.strike.draws import samples_hit


def samples_hit_by_site(
    model: nn.Module, numbers: Tensor, sizes: Sequence[int]
) -> Iterator[tuple[FaultSite, Tensor]]:
    """Which samples each site hits in an evaluation, as the sites are set now.

    The model must have run, so that the sites know their numbers of elements. If the faults of a
    site belong to the batch, a hit anywhere in a batch hits all of its samples.

    Args:
        model: the evaluated model.
        numbers: numbers of the samples, int64, shape (samples,).
        sizes: number of samples in each batch.

    Yields:
        Each site that strikes, and its hits: bool, shape (samples,).
    """
    with in_eval_mode(model):
        for site in faults_of(model):
            if not (site.armed and site.strikes and site.elements):
                continue
            if site.stored is not None:
                yield site, samples_hit(site, numbers, site.stored.layout)
            elif _belongs_to_batch(site):
                yield site, _hit_by_batch(site, site.elements, numbers, sizes)
            else:
                yield site, _hit(site, site.elements, numbers)


def _belongs_to_batch(site: FaultSite) -> bool:
    """Whether a site has one draw of faults for a batch."""
    lies, layout, batch = site.seen.arrangement, site.seen.layout, site.seen.batch
    if lies is not None and lies.why_batch is not None:
        return True
    return layout is not None and layout.samples == 1 and (batch or 1) > 1


def _hit_by_batch(site: FaultSite, last: int, numbers: Tensor, sizes: Sequence[int]) -> Tensor:
    """`_hit` for faults that belong to batches, each drawn with the number of its first sample.

    `last` is the number of elements in the last batch; others have as many for each sample.
    """
    hits = []
    for part in numbers.split(list(sizes)):
        elements = last
        if len(part) != sizes[-1] and last % sizes[-1] == 0:
            elements = last // sizes[-1] * len(part)
        hits.append(_hit(site, elements, part[:1]).expand(len(part)))
    return torch.cat(hits)


def _hit(site: FaultSite, elements: int, numbers: Tensor) -> Tensor:
    layout = Layout(1, 1, (elements,))
    if not site.counts_calls:
        return samples_hit(site, numbers, layout)
    if site.setting.hw_units is not None:
        return torch.ones(len(numbers), dtype=torch.bool)
    hit = torch.zeros(len(numbers), dtype=torch.bool)
    for call in range(1, site._calls[1] + 1):  # Each call of the last forward, as in `stream`.
        key = site.clock.stream(site.name if call == 1 else f"{site.name}#{call}")
        hit |= samples_hit(site, numbers, layout, key, call)
    return hit
