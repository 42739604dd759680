"""The two memories of a groupwise tensor: its elements, and the scales that its groups share.

A groupwise tensor, such as an MX one, is two memories. One holds a word for each element. The
other holds a word for each group, its scale; a fault there hits the whole group. Brevitas splits
the dimension `group_dim` of the tensor into groups of `group_size` neighbours, fills the last one
with zeros, and keeps

- `value_`: the dequantised elements, with shape (..., groups, group size, ...);
- `scale_`: the scales, with shape (..., groups, 1, ...), or without dimensions if all are equal;
- `zero_point_`: the same for the zero points of an integer tensor; 0 for a float tensor.

The MX quantisers restrict a scale to a power of two, which is one byte: `SharedExponent`. But they
clamp it afterwards: where the largest element of a group is below 2**-33, the scale is 1e-10
divided by a power of two, which is none. See `Groups.scale_codes`.

Reference: `brevitas.quant_tensor`, `brevitas.core.scaling.runtime.RuntimeDynamicGroupStatsScaling`
and `brevitas.utils.quant_utils.groupwise_dequant_expand`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from brevitas.core.restrict_val import PowerOfTwoRestrictValue
from brevitas.quant_tensor import (
    FloatQuantTensor,
    GroupwiseFloatQuantTensor,
    GroupwiseIntQuantTensor,
    IntQuantTensor,
)
from torch import Tensor, nn

from fxfault.errors import SiteError
from fxfault.faults import codes as integers
from fxfault.faults.codes import Word
from fxfault.faults.float_words import FloatWord, IeeeWord, SharedExponent
from fxfault.faults.minifloats import MiniFloat
from fxfault.quantisers.float_tensors import minifloat_of, whole
from fxfault.quantisers.quant_tensors import SHARED_EXPONENT, Quantiser, read_proxy


@dataclass(frozen=True)
class Groups:
    """The two memories of a groupwise tensor.

    `values` and `scales` have the same number of dimensions, and `scales` broadcasts to `values`.

    Attributes:
        word: the word of an element: a minifloat, or an integer.
        scale_word: the word of a scale.
        values: the dequantised elements, shape (..., groups, group size, ...).
        scales: the scales, shape (..., groups, 1, ...).
        zero_points: zero points, which broadcast to `values`; 0.0 if the elements have none.
        dim: the dimension of `values` that counts the groups; the next one counts their elements.
        shape: shape of the tensor, whose dimension `dim` may end within the last group.
    """

    word: MiniFloat | Word
    scale_word: FloatWord
    values: Tensor
    scales: Tensor
    zero_points: Tensor | float
    dim: int
    shape: tuple[int, ...]

    def codes(self) -> tuple[Tensor, Tensor]:
        """The codes of the elements and their distances, as `to_codes` gives them."""
        if isinstance(self.word, Word):
            return integers.to_codes(self.values, self.scales, self.zero_points, self.word)
        return self.word.to_codes(self.values, self.scales)

    def scale_codes(self) -> tuple[Tensor, Tensor]:
        """The codes of the scales and their distances, as `to_codes` gives them.

        A group of zeros gets the code of the nearest scale, and the distance 0: its values do not
        depend on the scale, and Brevitas gives it one that is no power of two.
        """
        codes, distance = self.scale_word.to_codes(self.scales)
        only_zeros = (self.values == 0).all(self.dim + 1, keepdim=True)
        return codes, torch.where(only_zeros & distance.isfinite(), 0.0, distance)

    def values_of(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Dequantise codes exactly as Brevitas does; shape and dtype of `values`."""
        if isinstance(self.word, Word):
            return integers.to_values(codes, scales, self.zero_points, self.values.dtype)
        return self.word.to_values(codes, scales, self.values.dtype)

    def limit(self) -> float | Tensor:
        """The largest distance of an element from its code; see `codes`."""
        if not isinstance(self.word, Word):
            return self.word.tolerance(self.values.dtype)
        limit = integers.tolerance(self.values.dtype, self.zero_points, self.word)
        return limit.max() if isinstance(limit, Tensor) else limit

    def joined(self, values: Tensor) -> Tensor:
        """Put elements in groups back into the shape of the tensor."""
        flat = values.flatten(self.dim, self.dim + 1)
        return flat.narrow(self.dim, 0, self.shape[self.dim])


def groups(tensor: Any, power_of_two: bool = True, narrow_range: bool = False) -> Groups | None:
    """Return the two memories of a groupwise QuantTensor; None for any other value.

    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.quant.mx_quant_ocp import MXFloat8e4m3Weight
    >>> _ = torch.manual_seed(0)
    >>> layer = QuantLinear(40, 3, bias=False, weight_quant=MXFloat8e4m3Weight)
    >>> memory = groups(layer.quant_weight())
    >>> tuple(memory.values.shape), tuple(memory.scales.shape), memory.shape
    ((3, 2, 32), (3, 2, 1), (3, 40))

    If bit 1 of a scale rises from 0 to 1, all 32 elements of the group are 4 times as large:

    >>> codes, _ = memory.codes()
    >>> scale_codes, _ = memory.scale_codes()
    >>> scale_codes[0, 0, 0] ^= 0b10
    >>> faulty = memory.values_of(codes, memory.scale_word.to_values(scale_codes))
    >>> (memory.joined(faulty / memory.values)[0, [0, 31, 32]]).tolist()
    [4.0, 4.0, 1.0]

    Args:
        tensor: anything. Its numbers are read from its device.
        power_of_two: whether scales are powers of two, see `has_powers_of_two`; if not, a scale is
            an IEEE word of its dtype.
        narrow_range: whether the quantiser of an integer tensor leaves out one extreme code.

    Raises:
        SiteError: the format is none that a word can have, or all groups share one scale.
    """
    if not isinstance(tensor, (GroupwiseFloatQuantTensor, GroupwiseIntQuantTensor)):
        return None
    values, scales, shape = tensor.value_, tensor.scale_, tuple(tensor.dequant_shape)
    dim = int(tensor.group_dim) % len(shape)
    expected = [*values.shape[: dim + 1], 1, *values.shape[dim + 2 :]]
    if list(scales.shape) != expected:
        raise SiteError(
            f"{type(tensor).__name__}: got scales of shape {tuple(scales.shape)}, "
            f"expected {tuple(expected)}: one for each group"
        )
    word: MiniFloat | Word
    if isinstance(tensor, GroupwiseIntQuantTensor):
        bits = whole(tensor.bit_width, "bit_width")
        word, zero_points = Word(bits, bool(tensor.signed), narrow_range), tensor.zero_point_
    else:
        word, zero_points = minifloat_of(tensor), 0.0
    scale_word = SharedExponent() if power_of_two else IeeeWord(scales.dtype)
    return Groups(word, scale_word, values, scales, zero_points, dim, shape)


def has_powers_of_two(proxy: nn.Module) -> bool:
    """Whether a quantiser restricts its scales to powers of two, as the MX ones do.

    A scale is a statistic divided by a threshold; both must be restricted.

    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.quant.mx_quant_ocp import MXInt8Weight
    >>> layer = QuantLinear(32, 1, bias=False, weight_quant=MXInt8Weight)
    >>> has_powers_of_two(layer.weight_quant)
    True

    Args:
        proxy: the `weight_quant` or `act_quant` of a layer.
    """
    parts = [
        part.restrict_value_impl
        for name, part in proxy.named_modules()
        if name.endswith((".restrict_clamp_scaling", ".restrict_clamp_threshold"))
    ]
    return bool(parts) and all(isinstance(part, PowerOfTwoRestrictValue) for part in parts)


def read_scales(proxy: Any, dtype: torch.dtype) -> Quantiser:
    """What stands for the quantiser of the scales that a grouped quantiser gives.

    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.quant.mx_quant_ocp import MXInt8Weight
    >>> layer = QuantLinear(32, 1, bias=False, weight_quant=MXInt8Weight)
    >>> scales = read_scales(layer.weight_quant, torch.float32)
    >>> scales.word, scales.bit_width, scales.group
    ('shared exponent', 8, 'scales')

    Args:
        proxy: a quantiser for which `is_grouped` holds.
        dtype: the dtype of a scale that is no power of two.
    """
    elements, power = read_proxy(proxy), has_powers_of_two(proxy)
    bits = len(SharedExponent().roles) if power else torch.finfo(dtype).bits
    word = SHARED_EXPONENT if power else "ieee"
    return Quantiser(elements.narrow_range, False, bits, word, group="scales")


def scales_shape(proxy: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the scales that a grouped quantiser gives to a tensor.

    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.quant.mx_quant_ocp import MXInt8Weight
    >>> layer = QuantLinear(40, 3, bias=False, weight_quant=MXInt8Weight)
    >>> scales_shape(layer.weight_quant, (3, 40))
    (3, 2, 1)
    """
    dim, size = int(proxy.group_dim) % len(shape), int(proxy.group_size)
    return (*shape[:dim], -(-shape[dim] // size), 1, *shape[dim + 1 :])


def elements_of(tensor: Any) -> Any:
    """The elements of a groupwise QuantTensor as a QuantTensor with a scale for each element.

    Args:
        tensor: a groupwise QuantTensor.

    Returns:
        An `IntQuantTensor` or a `FloatQuantTensor`, shape `tensor.value.shape`.
    """
    kind = IntQuantTensor if isinstance(tensor, GroupwiseIntQuantTensor) else FloatQuantTensor
    value, scale, zero_point = tensor.expand()
    expanded = {"value": value, "scale": scale, "zero_point": zero_point}
    return kind._make(
        expanded[name] if name in expanded else getattr(tensor, name) for name in kind._fields
    )


def with_values(tensor: Any, values: Tensor, scales: Tensor | None = None) -> Any:
    """Return a groupwise QuantTensor with other dequantised elements, and perhaps other scales.

    Args:
        tensor: a groupwise QuantTensor.
        values: shape of `tensor.value`; or that of `tensor.value_`, in groups.
        scales: shape of `tensor.scale_`; None: those of `tensor`.
    """
    if values.shape != tensor.value_.shape:
        dim = int(tensor.group_dim) % values.dim()
        filled = tensor.value_.flatten(dim, dim + 1)
        missing = filled.narrow(dim, values.shape[dim], filled.shape[dim] - values.shape[dim])
        values = torch.cat([values, missing], dim).unflatten(
            dim, tensor.value_.shape[dim : dim + 2]
        )
    return tensor._replace(value_=values, scale_=tensor.scale_ if scales is None else scales)
