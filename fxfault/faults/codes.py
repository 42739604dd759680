"""Integer codes and the words that store them.

Bit 0 is the least significant. All arithmetic uses plain operators, so a code may be a Python
integer or an int64 tensor, and a bit width a Python integer or a tensor that stays on its device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from fxfault.faults import kernels

if TYPE_CHECKING:
    import numpy.typing as npt

Code = TypeVar("Code", int, Tensor)

MAX_BIT_WIDTH = 32

# The largest distance of a value from its code, in codes, if rounding does not add to it.
_TOLERANCE = 0.25

# A float64 of this size has no binary places, so adding and subtracting it rounds like `round`: to
# the nearest whole number, and halves to even.
_ROUNDING = 1.5 * 2.0**52


@dataclass(frozen=True)
class Word:
    """The word that holds one code: `bit_width` bits, two's complement if signed.

    A bit operation acts on the bit pattern, and the result is read back as the same word. If the
    most significant bit of a signed 4-bit 7 flips, the code is -1, never 15:

    >>> word = Word(bit_width=4, signed=True)
    >>> word.from_pattern(word.to_pattern(7) ^ 0b1000)
    -1

    A binary word holds -1 or +1, and its one bit is the sign:

    >>> sign = Word(bit_width=1, signed=True, binary=True)
    >>> sign.from_pattern(sign.to_pattern(-1) ^ 1)
    1

    Attributes:
        bit_width: number of bits, 1 to 32; an int, or an int64 tensor without dimensions.
        signed: whether the word is two's complement.
        narrow_range: whether the quantiser leaves out one extreme code, as Brevitas defines it:
            the lowest of a signed word, the highest of an unsigned one.
        binary: whether the codes are -1 and +1.
    """

    bit_width: int | Tensor
    signed: bool
    narrow_range: bool = False
    binary: bool = False

    @functools.cached_property
    def min(self) -> int | Tensor:
        """The lowest code that the quantiser produces.

        >>> Word(4, signed=True, narrow_range=True).min, Word(4, signed=False).min
        (-7, 0)
        """
        if self.binary:
            return -1
        if not self.signed:
            return 0
        return -(1 << (self.bit_width - 1)) + int(self.narrow_range)

    @functools.cached_property
    def max(self) -> int | Tensor:
        """The highest code that the quantiser produces.

        >>> Word(4, signed=True).max, Word(4, signed=False).max
        (7, 15)
        """
        if self.binary:
            return 1
        if self.signed:
            return (1 << (self.bit_width - 1)) - 1
        return (1 << self.bit_width) - 1 - int(self.narrow_range)

    @functools.cached_property
    def lowest(self) -> int | Tensor:
        """The lowest code that the word can hold, which may be outside the quantiser's range.

        >>> Word(4, signed=True, narrow_range=True).lowest
        -8
        """
        return Word(self.bit_width, self.signed, binary=self.binary).min

    @functools.cached_property
    def highest(self) -> int | Tensor:
        """The highest code that the word can hold.

        >>> Word(4, signed=False, narrow_range=True).highest
        15
        """
        return Word(self.bit_width, self.signed, binary=self.binary).max

    @functools.cached_property
    def all_ones(self) -> int | Tensor:
        """The bit pattern with every bit set.

        >>> bin(Word(4, signed=True).all_ones)
        '0b1111'
        """
        return (1 << self.bit_width) - 1

    @functools.cached_property
    def msb(self) -> int | Tensor:
        """The bit pattern with only the most significant bit set.

        >>> bin(Word(4, signed=True).msb)
        '0b1000'
        """
        return 1 << (self.bit_width - 1)

    @functools.cached_property
    def for_loops(self) -> npt.NDArray[np.int64]:
        """The fields of `fxfault.faults.kernels.Word`; the bit width must be an int."""
        numbers = (self.lowest, self.highest, self.min, self.max, self.max - self.min + 1)
        patterns = (self.all_ones, self.msb)
        kinds = {"signed": self.signed, "narrow": self.narrow_range, "binary": self.binary}
        fields: list[Any] = [int(number) for number in (*numbers, *patterns)]
        return np.array(kernels.Word(*fields, **kinds), np.int64)

    def to_pattern(self, code: Code) -> Code:
        """Return the bits of a code as a number from 0 to 2**bit_width - 1.

        >>> bin(Word(4, signed=True).to_pattern(-2))
        '0b1110'
        """
        if self.binary:
            return (code + 1) // 2
        return code & self.all_ones  # type: ignore[return-value]

    def from_pattern(self, pattern: Code) -> Code:
        """Return the code of a bit pattern: the inverse of `to_pattern`.

        >>> Word(4, signed=True).from_pattern(0b1110)
        -2
        """
        if self.binary:
            return 2 * pattern - 1
        if not self.signed:
            return pattern
        # Sign extension: flip the sign bit, then subtract its weight.
        return (pattern ^ self.msb) - self.msb  # type: ignore[return-value]


Parameter: TypeAlias = "Tensor | float"
"""A scale or zero point: one number, or a tensor that broadcasts to the values."""


def to_codes(
    values: Tensor, scale: Parameter, zero_point: Parameter, word: Word
) -> tuple[Tensor, Tensor]:
    """Compute the integer codes of dequantised values.

    `code = round(value / scale + zero_point)`, in float64 and clamped to the word. In a 16-bit
    float two neighbouring codes may share one value; the nearer one is taken.

    >>> values = torch.tensor([-0.5, 0.25, 0.375])
    >>> codes, distance = to_codes(values, 0.25, 0.0, Word(4, signed=True))
    >>> codes, distance
    (tensor([-2,  1,  2]), tensor([0.0000, 0.0000, 0.5000], dtype=torch.float64))

    Args:
        values: dequantised values, any shape, floating point.
        scale: positive, broadcastable to `values`.
        zero_point: broadcastable to `values`.
        word: the word that stores the codes.

    Returns:
        The codes (int64, shape of `values`), and the distance of each value from its code, in
        codes (float64, same shape). A value is not a code of the word if the distance is above
        `tolerance` or NaN. The code of a NaN is arbitrary. If the dtype cannot hold every code of
        the word, the distance is infinite for values whose rounding might hide their code.
    """
    exact = values.double() / _double(scale)
    if not _is_zero(zero_point):
        exact += _double(zero_point)
    if word.binary:
        codes = torch.where(exact > 0, 1.0, -1.0).double()
    else:
        # `round` starts all threads even for a few thousand values, which costs more than it saves.
        codes = exact.add(_ROUNDING).sub_(_ROUNDING)
        codes.clamp_(word.lowest, word.highest)  # type: ignore[arg-type]
    hidden = None
    if is_wide(word, values.dtype):
        hidden = exact.abs() > 2 * _TOLERANCE / torch.finfo(values.dtype).eps
    distance = exact.sub_(codes).abs_()
    if hidden is not None:
        distance[hidden] = torch.inf
    return codes.long(), distance


def tolerance(dtype: torch.dtype, zero_point: Parameter, word: Word) -> Parameter:
    """The largest distance of a dequantised value from its code, in codes.

    The value was rounded once, by at most eps/2 of its size.

    >>> tolerance(torch.float32, 0.0, Word(4, signed=True))
    0.25
    """
    if is_wide(word, dtype):
        return _TOLERANCE  # `to_codes` looks at the size of each code.
    eps = torch.finfo(dtype).eps
    if isinstance(zero_point, Tensor):
        return (eps * (word.all_ones + zero_point.double().abs())).clamp(min=_TOLERANCE)
    rounding = eps * (word.all_ones + abs(zero_point))
    if isinstance(rounding, Tensor):
        return rounding.clamp(min=_TOLERANCE)
    return max(_TOLERANCE, rounding)


def to_values(
    codes: Tensor, scale: Parameter, zero_point: Parameter, dtype: torch.dtype, wide: bool = False
) -> Tensor:
    """Dequantise codes exactly as Brevitas does: `(code - zero_point) * scale` in `dtype`.

    >>> to_values(torch.tensor([-2, 1]), 0.25, 0.0, torch.float32)
    tensor([-0.5000,  0.2500])

    Args:
        codes: int64, any shape.
        scale: positive, broadcastable to `codes`.
        zero_point: broadcastable to `codes`.
        dtype: dtype of the values.
        wide: whether `dtype` may not hold the codes (`is_wide`). They are then dequantised in
            float64 and rounded to the nearest value of `dtype`:

            >>> to_values(torch.tensor([2**24 + 1]), 1.0, 0.0, torch.float32, wide=True).item()
            16777216.0

    Reference: `brevitas.core.quant.IntQuant.forward`.
    """
    if wide:
        return ((codes.double() - _double(zero_point)) * _double(scale)).to(dtype)
    values = codes.to(dtype)
    if not _is_zero(zero_point):
        values = values - zero_point
    return (values * scale).to(dtype)


def _double(parameter: Parameter) -> Parameter:
    return parameter.double() if isinstance(parameter, Tensor) else parameter


def _is_zero(parameter: Parameter) -> bool:
    """Whether a parameter is the number 0; tensors are not read, as they may be on a device."""
    return not isinstance(parameter, Tensor) and parameter == 0


@functools.cache
def fits(bit_width: int, dtype: torch.dtype) -> bool:
    """Whether `dtype` holds every code of a word of `bit_width` bits exactly.

    A binary float with p significant bits holds all integers up to 2**p.

    >>> fits(8, torch.bfloat16), fits(9, torch.bfloat16), fits(16, torch.float32)
    (True, False, True)
    """
    return 1 <= bit_width <= min(MAX_BIT_WIDTH, 1 - round(math.log2(torch.finfo(dtype).eps)))


def is_wide(word: Word, dtype: torch.dtype) -> bool:
    """Whether a word may hold codes that a dtype cannot hold exactly.

    A width that only a device knows counts as fitting, as the words of activations do.

    >>> is_wide(Word(32, signed=True), torch.float32), is_wide(Word(24, True), torch.float32)
    (True, False)
    """
    return isinstance(word.bit_width, int) and not fits(word.bit_width, dtype)
