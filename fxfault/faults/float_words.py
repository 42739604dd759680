"""Words that hold floating-point numbers: IEEE 754, minifloats, and shared exponents.

The code of a float word is its bit pattern, an unsigned integer. So every fault model strikes it
through `FloatWord.word`, and only the way between values and codes differs from integer words:

>>> from fxfault.faults import get_fault_model
>>> half = IeeeWord(torch.float16)
>>> codes, _ = half.to_codes(torch.tensor([1.0, -0.125], dtype=torch.float16))
>>> half.numbers(get_fault_model("bit_flip", bit=14).corrupt(codes, half.word, draw=None))
tensor([   inf, -8192.], dtype=torch.float16)

A pattern that stands for an infinity or a NaN is read as one, and goes on as hardware would.

Minifloats are in `fxfault.faults.minifloats`.

Reference: IEEE 754-2019, section 3.4; OCP Microscaling Formats (MX) Specification, version 1.0.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fxfault.errors import ConfigError
from fxfault.faults.codes import Parameter, Word

# The fields of a float64: 52 bits of mantissa, then 11 of exponent with this bias, then the sign.
MANTISSA, BIAS = 52, 1023
SIGN = -(1 << 63)
NAN, INFINITY = 0x7FF8 << 48, 0x7FF0 << 48

# The integer that PyTorch reinterprets as each float, and the mantissa bits of that float.
_IEEE = {
    torch.float32: (torch.int32, 23),
    torch.float16: (torch.int16, 10),
    torch.bfloat16: (torch.int16, 7),
}


IEEE_DTYPES = tuple(_IEEE)
"""The dtypes whose bits an `IeeeWord` holds."""


class FloatWord(ABC):
    """A word that holds a floating-point number; its code is its bit pattern.

    A value is a number times a scale. Bit 0 is the least significant.
    """

    @functools.cached_property
    def word(self) -> Word:
        """The same bits as an unsigned integer: what a fault model needs."""
        return Word(len(self.roles), signed=False)

    @property
    @abstractmethod
    def roles(self) -> tuple[str, ...]:
        """What each bit means, from bit 0 on: `mantissa k`, `exponent k` or `sign`.

        Bit k of a field is its k-th from below.

        >>> IeeeWord(torch.float16).roles[-3:], SharedExponent(2).roles
        (('exponent 3', 'exponent 4', 'sign'), ('exponent 0', 'exponent 1'))
        """

    @abstractmethod
    def numbers(self, codes: Tensor) -> Tensor:
        """The numbers of some codes, exactly.

        Args:
            codes: bit patterns, int64, any shape.

        Returns:
            The dtype of the word if it is an IEEE word, else float64; same shape.
        """

    @abstractmethod
    def to_codes(self, values: Tensor, scale: Parameter = 1.0) -> tuple[Tensor, Tensor]:
        """Compute the codes of values: those of the nearest numbers.

        Args:
            values: any shape, floating point.
            scale: not zero, broadcastable to `values`.

        Returns:
            The codes (int64, shape of `values`), and the distance of each value from its code
            (float64, same shape). A value is not a code of the word if the distance is above
            `tolerance` or NaN; its code is then arbitrary.
        """

    @abstractmethod
    def tolerance(self, dtype: torch.dtype) -> float:
        """The largest distance of a value of `dtype` from its code, in the unit of `to_codes`."""

    @abstractmethod
    def fits(self, dtype: torch.dtype) -> bool:
        """Whether `dtype` holds every number of the word exactly."""

    def to_values(
        self, codes: Tensor, scale: Parameter = 1.0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Dequantise codes exactly as Brevitas does: `number * scale` in `dtype`.

        Args:
            codes: bit patterns, int64, any shape.
            scale: broadcastable to `codes`.
            dtype: dtype of the result; the numbers must fit it.

        Reference: `brevitas.core.quant.float.FloatQuant.dequantize`.
        """
        return (self.numbers(codes).to(dtype) * scale).to(dtype)


@dataclass(frozen=True)
class IeeeWord(FloatWord):
    """A float32, float16 or bfloat16 as it is in memory.

    Every bit stays: those of a NaN, and the sign of zero.

    >>> word = IeeeWord(torch.float16)
    >>> codes, _ = word.to_codes(torch.tensor([1.0, -0.0], dtype=torch.float16))
    >>> [hex(code) for code in codes], word.numbers(codes)
    (['0x3c00', '0x8000'], tensor([1., -0.], dtype=torch.float16))

    Attributes:
        dtype: dtype of the values.

    Raises:
        ConfigError: another dtype. The 64 bits of a float64 are too many for a code.
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in _IEEE:
            allowed = ", ".join(str(dtype) for dtype in _IEEE)
            raise ConfigError(f"float word: got {self.dtype}, allowed: {allowed}")

    @property
    def roles(self) -> tuple[str, ...]:
        mantissa = _IEEE[self.dtype][1]
        return field_roles(mantissa, torch.finfo(self.dtype).bits - mantissa - 1, signed=True)

    def numbers(self, codes: Tensor) -> Tensor:
        as_signed = Word(self.word.bit_width, signed=True).from_pattern(codes)
        return as_signed.to(_IEEE[self.dtype][0]).view(self.dtype)

    def to_codes(self, values: Tensor, scale: Parameter = 1.0) -> tuple[Tensor, Tensor]:
        """Return the bits of values of this dtype; every distance is 0.

        Raises:
            ConfigError: the values have another dtype, or the scale is not the number 1.
        """
        _check_no_scale(scale)
        if values.dtype != self.dtype:
            raise ConfigError(f"float word: got values of {values.dtype}, expected {self.dtype}")
        bits = values.view(_IEEE[self.dtype][0])
        distance = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
        return self.word.to_pattern(bits.to(torch.int64)), distance

    def to_values(
        self, codes: Tensor, scale: Parameter = 1.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return the numbers, bit for bit; see `FloatWord.to_values`.

        Raises:
            ConfigError: the dtype is another one, or the scale is not the number 1.
        """
        _check_no_scale(scale)
        if dtype not in (None, self.dtype):
            raise ConfigError(f"float word: got {dtype}, expected {self.dtype}")
        return self.numbers(codes)

    def tolerance(self, dtype: torch.dtype) -> float:
        return 0.0

    def fits(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype


@dataclass(frozen=True)
class SharedExponent(FloatWord):
    """An exponent without sign and mantissa: E8M0, the scale of a group in the MX formats.

    Code E is `2**(E - bias)`, and the code with all bits set is NaN. There is no zero.

    >>> word = SharedExponent()
    >>> codes, distance = word.to_codes(torch.tensor([0.25, 3.0]))
    >>> codes, distance.round(decimals=3)
    (tensor([125, 129]), tensor([0.0000, 0.4150], dtype=torch.float64))
    >>> word.numbers(torch.tensor([127, 128, 255]))
    tensor([1., 2., nan], dtype=torch.float64)

    The distance of `to_codes` is in steps of the exponent. It is 0, and so is `tolerance`: a power
    of two is never rounded.

    Attributes:
        exponent_bits: number of bits, 1 to 8.
        exponent_bias: what is subtracted from the code, -64 to 256.

    Raises:
        ConfigError: a number is out of its range.
    """

    exponent_bits: int = 8
    exponent_bias: int = 127

    def __post_init__(self) -> None:
        check_range("exponent_bits", self.exponent_bits, 1, 8)
        check_range("exponent_bias", self.exponent_bias, -64, 256)

    @property
    def roles(self) -> tuple[str, ...]:
        return field_roles(0, self.exponent_bits, signed=False)

    def numbers(self, codes: Tensor) -> Tensor:
        bits = codes - self.exponent_bias + BIAS << MANTISSA
        return torch.where(codes == self.word.all_ones, NAN, bits).view(torch.float64)

    def to_codes(self, values: Tensor, scale: Parameter = 1.0) -> tuple[Tensor, Tensor]:
        exact = values.double() / (scale.double() if isinstance(scale, Tensor) else scale)
        nearest = exact.log2().round().nan_to_num() + self.exponent_bias
        codes = nearest.clamp(0, int(self.word.all_ones) - 1).long()
        # The division is exact. The logarithm of `exact` would hide a difference of one rounding.
        distance = (exact / self.numbers(codes)).log2().abs()
        is_nan = exact.isnan()
        codes = torch.where(is_nan, int(self.word.all_ones), codes)
        return codes, torch.where(is_nan, 0.0, distance)

    def tolerance(self, dtype: torch.dtype) -> float:
        return 0.0

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether `dtype` holds every number of the word exactly.

        >>> [SharedExponent().fits(dtype) for dtype in (torch.bfloat16, torch.float16)]
        [True, False]
        """
        limits, highest = torch.finfo(dtype), int(self.word.all_ones) - 1 - self.exponent_bias
        lowest = 2.0**-self.exponent_bias
        return 2.0**highest <= limits.max and lowest >= limits.tiny * limits.eps


def field_roles(mantissa: int, exponent: int, signed: bool) -> tuple[str, ...]:
    """The roles of a word with fields of so many bits, from bit 0 on."""
    return (
        *(f"mantissa {bit}" for bit in range(mantissa)),
        *(f"exponent {bit}" for bit in range(exponent)),
        *(["sign"] if signed else []),
    )


def _check_no_scale(scale: Parameter) -> None:
    if isinstance(scale, Tensor) or scale != 1:
        raise ConfigError("float word: an IEEE word has no scale, so it must be the number 1")


def check_range(field: str, number: int, low: int, high: int) -> None:
    """Raise ConfigError unless a number is an integer from `low` to `high`."""
    if type(number) is not int or not low <= number <= high:
        raise ConfigError(f"float word: {field}: got {number!r}, allowed: {low} to {high}")
