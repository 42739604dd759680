"""What a fault model of the user's must keep to, looked at when it first strikes a site."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults.codes import Word
from fxfault.faults.fault_models import FaultModel, label_of
from fxfault.sites.site import FaultSite

_CHECKED = "contracts"


def is_checked(site: FaultSite, model: FaultModel) -> bool:
    """Whether a fault model kept to the rules at a site already, or is one of ours."""
    return is_ours(model) or site.caches.get(_CHECKED, {}).get(id(model)) is model


def is_ours(model: FaultModel) -> bool:
    """Whether a fault model is one of fxfault's own, which keep to the rules and never change."""
    return type(model).__module__ == FaultModel.__module__


def checked(
    site: FaultSite, model: FaultModel, codes: Tensor, word: Word, corrupt: Callable[[], Tensor]
) -> Tensor:
    """Let a fault model corrupt codes, and see that it keeps to the rules of `corrupt`.

    Args:
        site: that it strikes.
        model: the fault model.
        codes: that it gets.
        word: that they are stored in.
        corrupt: calls it.

    Returns:
        What it returned.

    Raises:
        SiteError: it breaks a rule; the message says which.
    """
    before = codes.clone()
    found = corrupt()
    why = _why_wrong(found, before, codes, word)
    if why is not None:
        raise SiteError(
            f"site {site.name}: fault model {label_of(model)!r} ({type(model).__qualname__}) {why}"
        )
    # The object is kept, too, so that no other one gets its identity.
    site.caches.setdefault(_CHECKED, {})[id(model)] = model
    return found


def _why_wrong(found: object, before: Tensor, codes: Tensor, word: Word) -> str | None:
    if not isinstance(found, Tensor):
        return f"returned a {type(found).__name__}; `corrupt` must return a tensor of codes"
    if found.shape != before.shape:
        return (
            f"returned shape {tuple(found.shape)} for codes of shape {tuple(before.shape)}; "
            "`corrupt` must return the same shape, one code for each"
        )
    if found.dtype != torch.int64:
        kind = str(found.dtype).removeprefix("torch.")
        return f"returned {kind} codes; `corrupt` must return int64, as it gets"
    if found.device != before.device:
        return f"returned codes on {found.device} for ones on {before.device}"
    if not torch.equal(codes, before):
        return "changed the codes that it was given; `corrupt` must return new ones"
    outside = (found < word.lowest) | (found > word.highest)
    if word.binary:
        outside |= found == 0
    if bool(outside.any()):
        first = int(found[outside][0])
        allowed = "-1 or 1" if word.binary else f"{int(word.lowest)} to {int(word.highest)}"
        return (
            f"returned the code {first}, which a word of {int(word.bit_width)} bits cannot hold; "
            f"allowed: {allowed} (see `word.from_pattern`)"
        )
    return None
