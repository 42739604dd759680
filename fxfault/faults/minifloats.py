"""Minifloats: floating-point numbers of a few bits, with or without infinities and NaN.

>>> from fxfault.faults import get_fault_model
>>> e4m3 = MiniFloat(4, 3, exponent_bias=7, nans=(0b111,))
>>> codes, distance = e4m3.to_codes(torch.tensor([1.875, -448.0]))
>>> struck = get_fault_model("bit_flip", bit=6).corrupt(codes, e4m3.word, draw=None)
>>> e4m3.to_values(struck)
tensor([    nan, -1.7500])

Reference: OCP 8-bit Floating Point Specification (OFP8), revision 1.0; OCP Microscaling Formats
(MX) Specification, version 1.0; `brevitas.core.quant.float.FloatQuant`,
`brevitas.core.function_wrapper.clamp.FloatClamp` and `brevitas.utils.float_quant_utils`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fxfault.errors import ConfigError
from fxfault.faults.codes import Parameter
from fxfault.faults.float_words import (
    BIAS,
    INFINITY,
    MANTISSA,
    NAN,
    SIGN,
    FloatWord,
    check_range,
    field_roles,
)


@dataclass(frozen=True)
class MiniFloat(FloatWord):
    """A minifloat: sign, exponent and mantissa, as the quantisers of Brevitas define it.

    With exponent field E and mantissa field M the number is `(1 + M / 2**m) * 2**(E - bias)`, or
    `M / 2**m * 2**(1 - bias)` if E is 0. At the highest E some mantissas are infinities or NaN:

    >>> e5m2 = MiniFloat(5, 2, exponent_bias=15, infinities=(0,), nans=(1, 2, 3))
    >>> e5m2.numbers(torch.tensor([0b0_00000_01, 0b0_11110_11, 0b1_11111_00, 0b0_11111_01]))
    tensor([1.5259e-05, 5.7344e+04,       -inf,        nan], dtype=torch.float64)

    The distance of `to_codes` is in steps of the mantissa, beyond what rounding explains where
    values underflow in their dtype. Several codes may then share one value; the nearest is taken.

    A NaN gets one code for each sign: the lowest with the highest bit of the mantissa set (a quiet
    NaN), else the lowest of all.

    Attributes:
        exponent_bits: number of bits of the exponent, 1 to 8.
        mantissa_bits: number of bits of the mantissa, 0 to 23.
        exponent_bias: what is subtracted from the exponent field, -64 to 256.
        signed: whether there is a sign bit.
        infinities: mantissas that are infinities at the highest exponent.
        nans: mantissas that are NaN at the highest exponent.
        negative_zero_is_nan: whether the sign bit alone is the only NaN, and -0.0 is 0.0: the
            "FNUZ" formats.

    Raises:
        ConfigError: a number is out of its range.
    """

    exponent_bits: int
    mantissa_bits: int
    exponent_bias: int
    signed: bool = True
    infinities: tuple[int, ...] = ()
    nans: tuple[int, ...] = ()
    negative_zero_is_nan: bool = False

    def __post_init__(self) -> None:
        check_range("exponent_bits", self.exponent_bits, 1, 8)
        check_range("mantissa_bits", self.mantissa_bits, 0, 23)
        check_range("exponent_bias", self.exponent_bias, -64, 256)
        for mantissa in (*self.infinities, *self.nans):
            check_range("infinities and nans", mantissa, 0, (1 << self.mantissa_bits) - 1)
        if set(self.infinities) & set(self.nans):
            raise ConfigError("float word: a mantissa is both an infinity and NaN")
        if self.negative_zero_is_nan and not (self.signed and not self.infinities + self.nans):
            raise ConfigError(
                "float word: negative_zero_is_nan needs a sign, and no other infinity or NaN"
            )

    @property
    def roles(self) -> tuple[str, ...]:
        return field_roles(self.mantissa_bits, self.exponent_bits, self.signed)

    @functools.cached_property
    def _sign(self) -> int:
        """The sign bit; 0 if there is none."""
        return int(self.signed) << (self.exponent_bits + self.mantissa_bits)

    @functools.cached_property
    def _special(self) -> int:
        """The lowest code with the highest exponent."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @functools.cached_property
    def _largest(self) -> int:
        """The code of the largest number."""
        codes = range(self._special + (1 << self.mantissa_bits) - 1, -1, -1)
        taken = {self._special + mantissa for mantissa in (*self.infinities, *self.nans)}
        return next(code for code in codes if code not in taken)

    @functools.cached_property
    def _nan(self) -> int | None:
        """The code of a NaN without its sign; None if there is none."""
        if self.negative_zero_is_nan:
            return self._sign
        quiet = [mantissa for mantissa in self.nans if 2 * mantissa >= 1 << self.mantissa_bits]
        return self._special + min(quiet or self.nans) if self.nans else None

    @property
    def max(self) -> float:
        """The largest number.

        >>> MiniFloat(4, 3, exponent_bias=8, negative_zero_is_nan=True).max
        240.0
        """
        return float(self.numbers(torch.tensor(self._largest)))

    @property
    def step(self) -> float:
        """The smallest positive number, and the step of the numbers next to zero.

        >>> MiniFloat(4, 3, exponent_bias=7).step == 2**-9
        True
        """
        return 2.0 ** (1 - self.exponent_bias - self.mantissa_bits)

    def numbers(self, codes: Tensor) -> Tensor:
        ones = (1 << self.mantissa_bits) - 1
        magnitude, mantissa = codes & (self._special | ones), codes & ones
        exponent = magnitude >> self.mantissa_bits
        # Put the two fields into a float64, which holds every normal number.
        bits = (exponent - self.exponent_bias + BIAS << MANTISSA) | (
            mantissa << (MANTISSA - self.mantissa_bits)
        )
        subnormal = (mantissa.double() * self.step).view(torch.int64)
        bits = torch.where(exponent == 0, subnormal, bits)
        for special, stands_for in ((self.infinities, INFINITY), (self.nans, NAN)):
            for code in special:
                bits = torch.where(magnitude == self._special + code, stands_for, bits)
        if self.signed:
            bits = torch.where((codes & self._sign) != 0, bits | SIGN, bits)
        if self.negative_zero_is_nan:
            bits = torch.where(codes == self._sign, NAN, bits)
        return bits.view(torch.float64)

    def to_codes(self, values: Tensor, scale: Parameter = 1.0) -> tuple[Tensor, Tensor]:
        factor = scale.double() if isinstance(scale, Tensor) else scale
        exact = values.double() / factor
        size = exact.abs().nan_to_num()
        # The exponent of the numbers around each value, and the step between them.
        exponent = (size.view(torch.int64) >> MANTISSA) - BIAS
        exponent = exponent.clamp(min=1 - self.exponent_bias)
        bits = exponent - self.mantissa_bits + BIAS << MANTISSA
        step = bits.view(torch.float64)
        # One step above the largest mantissa is the next exponent, so a carry needs no care.
        codes = (exponent + (self.exponent_bias - 1) << self.mantissa_bits) + (size / step).round()
        codes = codes.clamp(max=self._largest).long()
        negative = torch.signbit(exact)
        if self.negative_zero_is_nan:
            negative = negative & (codes != 0)
        codes = torch.where(negative, codes | self._sign, codes)
        # Near zero the values of a dtype have a fixed spacing; rounding moved them by half of it.
        limits = torch.finfo(values.dtype)
        moved = (values.abs() < limits.tiny).double() * (limits.tiny * limits.eps / 2)
        distance = (exact - self.numbers(codes)).abs() - (moved / factor).abs()
        distance = distance.clamp(min=0) / step
        return self._with_specials(exact, codes, distance)

    def _with_specials(
        self, exact: Tensor, codes: Tensor, distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Set the codes of infinities and NaN, where the format has any, and their distance."""
        sign = torch.where(torch.signbit(exact), self._sign, 0)
        found = []
        if self.infinities:
            is_code = exact.isinf() if self.signed else exact == torch.inf
            found.append((is_code, self._special + min(self.infinities)))
        if self._nan is not None:
            found.append((exact.isnan(), self._nan))
        for is_code, code in found:
            codes = torch.where(is_code, code | sign, codes)
            distance = torch.where(is_code, 0.0, distance)
        return codes, distance

    def tolerance(self, dtype: torch.dtype) -> float:
        """The largest distance of a value of `dtype` from its code, in steps of the mantissa.

        The value was rounded once, by at most eps/2 of its size, which is below
        `2**(mantissa_bits + 1)` steps.

        >>> MiniFloat(4, 3, exponent_bias=7).tolerance(torch.bfloat16)
        0.25
        """
        return max(0.25, torch.finfo(dtype).eps * 2.0**self.mantissa_bits)

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether `dtype` holds every number of the word exactly.

        >>> e5m2 = MiniFloat(5, 2, exponent_bias=15)
        >>> e5m2.max, [e5m2.fits(dtype) for dtype in (torch.bfloat16, torch.float16)]
        (114688.0, [True, False])
        """
        limits = torch.finfo(dtype)
        holds_mantissa = limits.eps <= 2.0**-self.mantissa_bits
        return holds_mantissa and self.max <= limits.max and self.step >= limits.tiny * limits.eps
