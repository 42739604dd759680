"""Check whether the tensors of a checkpoint can be weights, before anything reads their values.

`torch.load(weights_only=True)` runs no code, but returns tensors of every layout and dtype, and
some that claim more elements than the file has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SHOWN = 3


def own_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, including those that `state_dict` leaves out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def why_unusable(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> str | None:
    """Say why tensors cannot be the weights of a network, whatever their values.

    >>> own = {"weight": torch.zeros(2)}
    >>> why_unusable({"weight": torch.zeros(2, dtype=torch.int64)}, own)
    'weight is int64 where the network has float32: save the weights as they are trained, not \
converted'
    >>> why_unusable({"weight": torch.ones(2)}, own)

    Args:
        state: content of the checkpoint.
        own: tensors of the network, from `own_tensors`.

    Returns:
        Names of up to three unusable tensors, each with its reason; None if all are usable.
    """
    reasons = [
        f"{key} {why}"
        for key, value in state.items()
        if isinstance(value, Tensor) and (why := _why(value, own.get(key))) is not None
    ]
    more = f" (and {len(reasons) - _SHOWN} more)" if len(reasons) > _SHOWN else ""
    return "; ".join(reasons[:_SHOWN]) + more if reasons else None


def _why(value: Tensor, own: Tensor | None) -> str | None:
    if value.is_nested:
        return "is a nested tensor: save a dense one"
    if value.is_quantized:
        return f"is quantised ({_short(value.dtype)}): save the weights before they are converted"
    if value.layout != torch.strided:
        return f"is sparse ({value.layout}): save it dense (tensor.to_dense())"
    if value.device.type == "meta":
        return "is on the meta device, without values: save a network that was materialised"
    return _why_claims(value, own) or _why_dtype(value, own)


def _why_claims(value: Tensor, own: Tensor | None) -> str | None:
    """Refuse a view that repeats its storage, unless it has the shape of the network's tensor."""
    held, claimed = value.untyped_storage().nbytes(), value.numel() * value.dtype.itemsize
    if claimed <= max(held, 1) or (own is not None and own.shape == value.shape):
        return None
    return (
        f"claims shape {tuple(value.shape)}, {claimed:,} bytes, of which the file has {held:,}: "
        "save it whole (tensor.clone())"
    )


def _why_dtype(value: Tensor, own: Tensor | None) -> str | None:
    kind = _kind(value)
    if own is not None and kind != _kind(own):
        return (
            f"is {_short(value.dtype)} where the network has {_short(own.dtype)}: save the weights "
            "as they are trained, not converted"
        )
    try:
        value.reshape(-1)[:1].float()
    except (RuntimeError, NotImplementedError, TypeError):  # raw bits, packed 4-bit floats
        return f"is {_short(value.dtype)}, which torch cannot compute with"
    return "is complex" if kind == "complex" and own is None else None


def _kind(value: Tensor) -> str:
    if value.is_complex():
        return "complex"
    return "floating" if value.is_floating_point() else "whole"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_finite(value: Any, own: Tensor | None) -> bool:
    """Whether all values are finite, also after conversion to the dtype of the network's tensor."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    if own is not None and own.is_floating_point() and own.dtype != value.dtype:
        value = value.to(own.dtype)
    if value.is_floating_point() and value.dtype.itemsize == 1:
        value = value.float()  # torch has no isfinite for all of the 8-bit floats
    return bool(torch.isfinite(value).all())
