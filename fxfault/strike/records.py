"""Records every hit of a strike: its sample, its element, its bits, and what it changed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxfault.faults.codes import Parameter, Word
from fxfault.faults.fault_models import BitMaskModel, BitModel, FaultModel, label_of
from fxfault.faults.random_numbers import rehash
from fxfault.faults.sampling import Hits, Numbers, on_host
from fxfault.sites.fault_list import Place
from fxfault.sites.fault_recorder import UNKNOWN, FaultRecorder
from fxfault.sites.site import FaultSite
from fxfault.strike.draws import Spread
from fxfault.strike.places import at
from fxfault.strike.plan import Part, Plan


class Change(NamedTuple):
    """The change of some elements that were hit.

    Attributes:
        hits: the elements, without `bits` if a loop has used them.
        codes: the codes before the fault, int64, one for each hit.
        corrupted: the codes after the fault.
    """

    hits: Hits
    codes: Tensor
    corrupted: Tensor


class Records:
    """Records the hits of one strike of a site, part by part."""

    def __init__(
        self,
        site: FaultSite,
        plan: Plan,
        quantiser: tuple[Parameter, ...],
        call: int,
        numbers: Numbers,
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> None:
        """Take what is the same for all hits; see `fxfault.strike.sums.Notes.begin`."""
        self._site, self._plan, self._quantiser = site, plan, quantiser
        self._call, self._numbers, self._shape, self._dtype = call, numbers, shape, dtype

    def add(self, part: Part, change: Change) -> None:
        """Record the hits of one fault of the plan."""
        hits, codes, corrupted = change
        plan, word = self._plan, self._plan.word
        scale, zero_point = (at(p, self._shape, hits.index) for p in self._quantiser[:2])
        columns = {
            "mask": word.to_pattern(codes) ^ word.to_pattern(corrupted),
            "code_before": codes,
            "code_after": corrupted,
            "value_before": plan.to_values(codes, scale, zero_point, self._dtype).double(),
            "value_after": plan.to_values(corrupted, scale, zero_point, self._dtype).double(),
        }
        recorder = self._site.recorder
        assert recorder is not None
        add_hits(recorder, part.spread, word, self._call, self._numbers, hits, columns)


def add_hits(
    recorder: FaultRecorder,
    spread: Spread,
    word: Word,
    call: int,
    numbers: Numbers,
    hits: Hits,
    columns: dict[str, Tensor] | None = None,
) -> None:
    """Record hits of one fault.

    Args:
        recorder: takes the hits.
        spread: the fault, and how it is spread over the elements of its site.
        word: the word that stores the codes.
        call: which call of the site in its forward this is.
        numbers: the numbers of the samples.
        hits: the hits.
        columns: what the forward showed of each hit; None without a forward.
    """
    site, fault, layout = spread.site, spread.fault, spread.layout
    bits = bits_of(fault.model, word, hits)
    if columns is None:
        columns = {"mask": bits if flips(fault.model, word) else torch.full_like(bits, UNKNOWN)}
    place, element = layout.locate(hits.index)
    found = {"place": place, "element": element, "bits": bits, **columns}
    if hits.real is not None:
        found = {name: column[hits.real] for name, column in found.items()}
    arrays = {name: column.cpu().numpy() for name, column in found.items()}
    arrays["sample"] = on_host(numbers).view(np.int64)[arrays.pop("place")]
    where = Place(site.name, site.memory, layout.sample_shape, int(word.bit_width))
    label = label_of(fault.model) if fault.given is None else str(fault)
    recorder.add(site.index, where, call, fault.number, label, arrays)


def bits_of(model: FaultModel, word: Word, hits: Hits) -> Tensor:
    """The bits of the words that a fault model strikes, int64; -1 if it does not strike bits.

    Args:
        model: the fault model.
        word: the word.
        hits: hits with their random bits, or with the bits that are struck.
    """
    if hits.struck is not None:
        return hits.struck
    masks = _masks_of(model, word)
    if masks is not None:
        keep, flip = masks
        return torch.full_like(hits.index, int((word.all_ones ^ keep) | flip))
    if isinstance(model, BitModel) and type(model).corrupt is BitModel.corrupt:
        if not model.is_drawn:
            return torch.full_like(hits.index, model.span)
        assert hits.bits is not None
        return model.span << (rehash(hits.bits, 0) % model.places(word))
    return torch.full_like(hits.index, UNKNOWN)


def flips(model: FaultModel, word: Word) -> bool:
    """Whether all bits that a fault model strikes flip, whatever the code is."""
    masks = _masks_of(model, word)
    if masks is not None:
        return int(masks[0]) == int(word.all_ones)
    if not isinstance(model, BitModel) or model.effect != "flip":
        return False
    kind = type(model)
    return kind.corrupt is BitModel.corrupt and kind.corrupt_bits is BitModel.corrupt_bits


def _masks_of(model: FaultModel, word: Word) -> tuple[int, int] | None:
    """The bits that are kept and flipped; None if the model is not of that kind."""
    if isinstance(model, BitMaskModel) and type(model).corrupt is BitMaskModel.corrupt:
        keep, flip = model.masks(word)
        return int(keep), int(flip)
    return None
