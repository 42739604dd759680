"""The float words of Brevitas: those of a `FloatQuantTensor`.

Groupwise tensors are in `fxfault.quantisers.grouped_tensors`.

Reference: `brevitas.quant_tensor`.
"""

from __future__ import annotations

from typing import Any

from brevitas.quant_tensor import FloatQuantTensor
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults.minifloats import MiniFloat


def float_words(tensor: Any) -> tuple[MiniFloat, Tensor] | None:
    """Return the words of a float QuantTensor of Brevitas and its scale; None for any other value.

    Brevitas names the mantissas of infinities and NaN at the highest exponent. Its "FNUZ"
    quantisers name none, but a bias of `2**(exponent_bits - 1)`, which no other quantiser has.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity
    >>> from brevitas.quant.float_quant_ocp import Fp8e4m3OCPAct
    >>> layer = QuantIdentity(act_quant=Fp8e4m3OCPAct, return_quant_tensor=True)
    >>> word, scale = float_words(layer(torch.ones(2)))
    >>> word == MiniFloat(4, 3, exponent_bias=7, nans=(0b111,)), scale
    (True, tensor([1.]))

    Args:
        tensor: anything. Its numbers are read from its device.

    Returns:
        The word, and the scale, which broadcasts to `tensor.value`.

    Raises:
        SiteError: the format is none that a word can have.
    """
    if not isinstance(tensor, FloatQuantTensor):
        return None
    return minifloat_of(tensor), tensor.scale


def minifloat_of(tensor: Any) -> MiniFloat:
    """The word of an element of a float QuantTensor, grouped or not.

    Raises:
        SiteError: the format is none that a word can have.
    """
    fields = {
        "exponent_bits": whole(tensor.exponent_bit_width, "exponent_bit_width"),
        "mantissa_bits": whole(tensor.mantissa_bit_width, "mantissa_bit_width"),
        "exponent_bias": whole(tensor.exponent_bias, "exponent_bias"),
    }
    # The properties `signed` and the like read from the device as well.
    signed, named = bool(tensor.signed), (tensor.inf_values, tensor.nan_values)
    infinities, nans = (tuple(sorted(int(m, 2) for m in ms or ())) for ms in named)
    like_fnuz = fields["exponent_bias"] == 1 << (fields["exponent_bits"] - 1)
    return MiniFloat(
        **fields,
        signed=signed,
        infinities=infinities,
        nans=nans,
        negative_zero_is_nan=like_fnuz and signed and not infinities + nans,
    )


def whole(number: Any, field: str) -> int:
    """A number of a QuantTensor as an integer.

    Raises:
        SiteError: it is not a whole one.
    """
    given = float(number)
    if not given.is_integer():
        raise SiteError(f"FloatQuantTensor: {field}: got {given!r}, allowed: a whole number")
    return int(given)
