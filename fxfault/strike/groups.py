"""Strikes the two memories of a groupwise tensor: its elements, then the scales of its groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults.bits import bits_of
from fxfault.quantisers.grouped_tensors import Groups, elements_of, groups, with_values
from fxfault.quantisers.quant_tensors import SHARED_EXPONENT, plain
from fxfault.sites.site import NOT_CODES, FaultSite
from fxfault.strike.calls import strike_call
from fxfault.strike.gradients import FaultInject, Struck
from fxfault.strike.moments import recomputing
from fxfault.strike.strikes import overwrite


@torch.compiler.disable  # type: ignore[untyped-decorator]
def strike_groups(words: Any, elements: FaultSite, scales: FaultSite) -> Any:
    """Strike the elements of a groupwise tensor, then the scales that its groups share.

    A fault in a scale hits all elements of its group: their codes stay, and the struck scale gives
    them other values. With `zero_faulty`, no gradient passes any of them.

    Args:
        words: a groupwise QuantTensor.
        elements: the site of its elements; a sample has the shape of `words.value`.
        scales: the site of its scales, with the shape of `words.scale_`.

    Returns:
        The faulty tensor, of the type of `words`; `words` itself if nothing was written.

    Raises:
        SiteError: a value or scale that is hit is not a code.
    """
    scales.seen.shape, again = tuple(words.scale_.shape), recomputing()
    if again or elements.armed:
        clean = elements_of(words)
        elements.seen.shape = tuple(clean.value.shape)
        struck = strike_call(clean, elements)
        if struck is not clean:
            words = with_values(words, plain(struck))
    return _strike_scales(words, scales) if again or scales.armed else words


def _strike_scales(words: Any, site: FaultSite) -> Any:
    with torch.no_grad():
        is_shared_exponent = site.quantiser.word == SHARED_EXPONENT
        memory = groups(words, is_shared_exponent, site.quantiser.narrow_range)
        assert memory is not None
        clean = _in_memory(memory)
        faulty = clean.clone()
        hits = torch.zeros_like(clean, dtype=torch.bool)
        overwrite(faulty, site, hits if site.gradient_mode == "zero_faulty" else None)
        changed = bits_of(faulty) != bits_of(clean)
        if not (changed | hits).any():
            return words
        values = _rescaled(memory, faulty, changed, site)
    if words.value_.requires_grad:
        stopped = _positions(hits.expand_as(values)) if hits.any() else None
        values = FaultInject.apply(words.value_, Struck(values, stopped))
    return with_values(words, values, faulty)


def _in_memory(memory: Groups) -> Tensor:
    """The scales, with a code also where a group of zeros has none in Brevitas."""
    codes, distance = memory.scale_codes()
    words = memory.scale_word.to_values(codes, dtype=memory.scales.dtype)
    return torch.where(distance == 0, words, memory.scales)


def _rescaled(memory: Groups, scales: Tensor, changed: Tensor, site: FaultSite) -> Tensor:
    """The elements under faulty scales; those whose scale stays keep their bits."""
    codes, distance = memory.codes()
    lost = ~memory.values.isfinite() if site.follows_floats else torch.zeros_like(changed)
    if bool((changed & ~lost & ~(distance <= memory.limit())).any()):
        raise SiteError(f"site {site.name}: elements of a struck group {NOT_CODES}")
    return torch.where(changed & ~lost, memory.values_of(codes, scales), memory.values)


def _positions(hits: Tensor) -> tuple[Tensor, Tensor]:
    index = hits.flatten().nonzero().flatten()
    return index, torch.zeros((), device=index.device)
