"""Checks that a user's fault model keeps the rules of `corrupt` when it first strikes a site."""

from __future__ import annotations

from collections.abc import Callable

import torch
from brevitas.quant_tensor import FloatQuantTensor
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults.codes import Word
from fxfault.faults.fault_models import FaultModel, RandomStrategy, label_of
from fxfault.faults.float_words import IEEE_DTYPES
from fxfault.quantisers.quant_tensors import SHARED_EXPONENT
from fxfault.sites.site import FaultSite

_CHECKED = "contracts"


def is_checked(site: FaultSite, model: FaultModel) -> bool:
    """Say whether a fault model has passed the check at a site, or is one of fxfault's own."""
    return is_ours(model) or site.caches.get(_CHECKED, {}).get(id(model)) is model


def is_ours(model: FaultModel) -> bool:
    """Say whether a fault model is one of fxfault's own; those keep the rules and never change."""
    return type(model).__module__ == RandomStrategy.__module__


def checked(
    site: FaultSite, model: FaultModel, codes: Tensor, word: Word, corrupt: Callable[[], Tensor]
) -> Tensor:
    """Have a fault model corrupt codes, and check that it keeps the rules of `corrupt`.

    Args:
        site: the site that is struck.
        model: the fault model.
        codes: the codes that the model gets, int64.
        word: the word that stores the codes.
        corrupt: a function that calls the model.

    Returns:
        The codes that the model returned.

    Raises:
        SiteError: the model breaks a rule; the message says which.
    """
    before = codes.clone()
    found = corrupt()
    why = _why_wrong(found, before, codes, word)
    if why is not None:
        raise SiteError(
            f"site {site.name}: fault model {label_of(model)!r} ({type(model).__qualname__}) {why}"
        )
    # Keep the object, too, so that no other object gets its id.
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


def require_floats(x: object, site: FaultSite) -> None:
    """Require a value that has the float words of a site.

    Args:
        x: a value that is no `IntQuantTensor`.
        site: the site.

    Raises:
        SiteError: it has none, or the site has integer words.
    """
    word = site.quantiser.word
    if word in ("ieee", SHARED_EXPONENT) and isinstance(x, Tensor) and x.dtype in IEEE_DTYPES:
        return
    if word == "minifloat" and isinstance(x, FloatQuantTensor):
        return
    if site.quantiser.word == "ieee":
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise SiteError(
            f"site {site.name}: {site.module_type} gave a {kind}, allowed: a tensor of float32, "
            "float16 or bfloat16, whose bits are struck; leave the site out by `layers`"
        )
    expected = "an IntQuantTensor" if site.quantiser.word == "integer" else "a FloatQuantTensor"
    raise SiteError(
        f"site {site.name}: expected {expected} from {site.module_type}, got {type(x).__name__}; "
        "enable its quantiser, transform the model again if its forward was replaced, or set "
        "`unsupported: skip`"
    )
