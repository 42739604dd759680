"""Float words against a second implementation, `ml_dtypes`, and against exact fractions."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from fxfault.errors import ConfigError
from fxfault.faults import BitModel, fault_model_names, get_fault_model
from fxfault.faults.bits import bits_of
from fxfault.faults.fault_models import BurstStrategy
from fxfault.faults.float_words import (
    FloatWord,
    IeeeWord,
    SharedExponent,
)
from fxfault.faults.minifloats import MiniFloat


def ieee(exponent: int, mantissa: int) -> MiniFloat:
    """A format as IEEE 754 has it: the highest exponent is for infinities and NaN."""
    bias = 2 ** (exponent - 1) - 1
    return MiniFloat(exponent, mantissa, bias, infinities=(0,), nans=tuple(range(1, 2**mantissa)))


def fnuz(exponent: int, mantissa: int, bias: int) -> MiniFloat:
    return MiniFloat(exponent, mantissa, bias, negative_zero_is_nan=True)


SMALL = {
    "e4m3fn": (MiniFloat(4, 3, 7, nans=(7,)), ml_dtypes.float8_e4m3fn),
    "e5m2": (ieee(5, 2), ml_dtypes.float8_e5m2),
    "e4m3fnuz": (fnuz(4, 3, 8), ml_dtypes.float8_e4m3fnuz),
    "e5m2fnuz": (fnuz(5, 2, 16), ml_dtypes.float8_e5m2fnuz),
    "e4m3b11fnuz": (fnuz(4, 3, 11), ml_dtypes.float8_e4m3b11fnuz),
    "e4m3": (ieee(4, 3), ml_dtypes.float8_e4m3),
    "e3m4": (ieee(3, 4), ml_dtypes.float8_e3m4),
    "e2m3fn": (MiniFloat(2, 3, 1), ml_dtypes.float6_e2m3fn),
    "e3m2fn": (MiniFloat(3, 2, 3), ml_dtypes.float6_e3m2fn),
    "e2m1fn": (MiniFloat(2, 1, 1), ml_dtypes.float4_e2m1fn),
}
WIDE = {
    "float16": (ieee(5, 10), np.float16),
    "bfloat16": (ieee(8, 7), ml_dtypes.bfloat16),
}
FORMATS = {**SMALL, **WIDE}
NAMES = sorted(FORMATS)


def every_code(word: FloatWord) -> Tensor:
    return torch.arange(2 ** int(word.word.bit_width))


def by_ml_dtypes(kind: Any, codes: Tensor) -> np.ndarray[Any, Any]:
    """The numbers of some codes, float64."""
    unsigned = {1: np.uint8, 2: np.uint16}[np.dtype(kind).itemsize]
    with np.errstate(invalid="ignore"):
        return codes.numpy().astype(unsigned).view(kind).astype(np.float64)


def assert_same(found: Tensor, expected: np.ndarray[Any, Any]) -> None:
    """Assert equality, with the sign of zero; a NaN equals any other."""
    np.testing.assert_array_equal(found.numpy(), expected)
    zeros = expected == 0
    assert np.array_equal(np.signbit(found.numpy()[zeros]), np.signbit(expected[zeros]))


# -- minifloats against ml_dtypes --------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_number_of_every_pattern(name: str) -> None:
    word, kind = FORMATS[name]
    codes = every_code(word)
    assert len(codes) == 2 ** (
        8 * np.dtype(kind).itemsize if name not in SMALL else len(word.roles)
    )
    assert_same(word.numbers(codes), by_ml_dtypes(kind, codes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.1, 3.7e-3])
def test_every_pattern_survives_its_value(name: str, scale: float) -> None:
    word, _ = FORMATS[name]
    if name == "bfloat16" and scale != 1.0:
        scale = 2.0**-3  # Its smallest numbers would leave the range of float32.
        codes = every_code(word)[(every_code(word) & 0x7FFF) >= 0x0400]
    else:
        codes = every_code(word)
    for given in (scale, torch.tensor(scale)):
        values = word.to_values(codes, given)
        again, distance = word.to_codes(values, given)
        assert values.dtype == torch.float32
        assert bool((distance <= word.tolerance(torch.float32)).all())
        assert again.dtype == torch.int64
        nan = values.isnan()
        assert torch.equal(again[~nan], codes[~nan])
        # All NaN of one sign share a code, which is a NaN too.
        assert bool(word.numbers(again[nan]).isnan().all())
        if not word.negative_zero_is_nan:
            assert torch.equal(again[nan] & int(word.word.msb), codes[nan] & int(word.word.msb))


@pytest.mark.parametrize("name", NAMES)
def test_codes_of_a_dense_grid(name: str) -> None:
    """The nearest numbers, halves to even, as `ml_dtypes` rounds; and how far away they are."""
    word, kind = FORMATS[name]
    numbers = np.unique(by_ml_dtypes(kind, every_code(word)))
    numbers = numbers[np.isfinite(numbers)]
    assert word.max == numbers.max()
    assert word.step == numbers[numbers > 0].min()
    parts = [numbers[:-1] + (numbers[1:] - numbers[:-1]) * k / 8 for k in range(8)]
    grid = np.concatenate([*parts, numbers, -numbers]).clip(-word.max, word.max)
    codes, distance = word.to_codes(torch.from_numpy(grid))
    expected = grid.astype(kind).astype(np.float64)
    assert_same(word.numbers(codes), expected)
    gaps = np.abs(grid - expected)
    assert np.array_equal(distance.numpy() == 0, gaps == 0)
    # The distance counts steps: halfway between two numbers it is 0.5, or 0.25 at the lower end of
    # the step that is twice as wide.
    assert distance.max() == 0.5
    assert np.isclose(distance.numpy()[len(numbers) - 1 : 2 * len(numbers) - 2], 1 / 8).all()


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str) -> None:
    word, kind = FORMATS[name]
    special = torch.tensor([math.inf, -math.inf, math.nan, -math.nan])
    codes, distance = word.to_codes(special)
    numbers = by_ml_dtypes(kind, every_code(word))
    has_inf, has_nan = np.isinf(numbers).any(), np.isnan(numbers).any()
    allowed = distance <= word.tolerance(torch.float32)
    assert allowed.tolist() == [has_inf, has_inf, has_nan, has_nan]
    assert_same(word.numbers(codes)[allowed], special[allowed].double().numpy())
    if has_nan:  # The quiet NaN that `ml_dtypes` chooses, of either sign.
        chosen = special[2:].numpy().astype(kind).view(np.uint8 if name in SMALL else np.uint16)
        signs = special[2:].signbit().long() * int(word.word.msb)
        magnitudes = chosen.astype(np.int64) & ~int(word.word.msb)
        if word.negative_zero_is_nan:
            assert codes[2:].tolist() == [0x80, 0x80] == chosen.tolist()
        else:
            assert codes[2:].tolist() == (torch.from_numpy(magnitudes) | signs).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_of_the_format_is_told(name: str) -> None:
    word, _ = FORMATS[name]
    beyond = np.nextafter(word.max, np.inf) * (1 + 2.0 ** -(word.mantissa_bits + 1))
    between = word.step * np.array([0.5, 1.5, 0.3, 0.7])
    wrong = torch.from_numpy(np.array([beyond, -beyond, 1e300, *between, *-between]))
    _, distance = word.to_codes(wrong)
    assert not bool((distance <= word.tolerance(torch.float64)).any())
    _, distance = word.to_codes(torch.tensor([0.0, 1.0]), torch.tensor(math.nan))
    _, of_zero = word.to_codes(torch.tensor([0.0]), torch.tensor(0.0))
    is_nan = word.nans or word.negative_zero_is_nan
    for apart in (distance, of_zero):
        assert bool((apart <= word.tolerance(torch.float32)).all()) == bool(is_nan)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_dtype_that_fits_holds_every_number(name: str, dtype: torch.dtype) -> None:
    word, _ = FORMATS[name]
    assert_fits(word, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "word",
    [
        *(MiniFloat(5, 2, bias) for bias in (-64, 13, 14, 15, 22, 23, 24, 25, 132, 133, 148, 149)),
        *(MiniFloat(8, 1, bias) for bias in (126, 127, 128)),
        *(SharedExponent(bits, bias) for bits in (5, 8) for bias in (-64, 0, 15, 127, 134, 150)),
        *(SharedExponent(5, bias) for bias in (14, 16, 24, 25)),
    ],
)
def test_a_dtype_that_is_too_small(word: FloatWord, dtype: torch.dtype) -> None:
    assert_fits(word, dtype)


def assert_fits(word: FloatWord, dtype: torch.dtype) -> None:
    numbers = word.numbers(every_code(word))
    numbers = numbers[numbers.isfinite()]
    assert word.fits(dtype) == torch.equal(numbers.to(dtype).double(), numbers)


def test_as_many_mantissa_bits_as_the_dtype_has() -> None:
    """A scale then rounds values by up to a step, so neighbours may share a value."""
    word = MiniFloat(5, 7, 15)
    codes = every_code(word)
    for scale in torch.tensor([0.7, 0.9, 1.3]).bfloat16():
        values = word.to_values(codes, scale, torch.bfloat16)
        again, distance = word.to_codes(values, scale)
        assert 0.25 < float(distance.max()) <= word.tolerance(torch.bfloat16) == 1.0
        assert int((again - codes).abs().max()) == 1


def test_no_infinity_below_an_unsigned_format() -> None:
    word = MiniFloat(3, 2, 3, signed=False, infinities=(0,))
    codes, distance = word.to_codes(torch.tensor([math.inf, -math.inf, -1.0, -0.0]))
    assert distance[:2].tolist() == [0.0, math.inf]
    assert (distance <= word.tolerance(torch.float32)).tolist() == [True, False, False, True]
    assert codes[[0, 3]].tolist() == [0b111_00, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_pattern_survives_a_rounded_value(name: str, dtype: torch.dtype) -> None:
    """A value of a 16-bit dtype was rounded; its code is still the nearest."""
    word, _ = SMALL[name]
    assert word.fits(dtype)
    codes, limits = every_code(word), torch.finfo(dtype)
    scales = torch.rand(50, generator=torch.Generator().manual_seed(0)).add(0.5)
    sizes = (1.0, 64 * limits.tiny, limits.tiny, 64 * limits.tiny * limits.eps)
    for scale in torch.cat([scales.double() * size for size in sizes]).to(dtype):
        values = word.to_values(codes, scale, dtype)
        again, distance = word.to_codes(values, scale)
        number = word.numbers(codes).isfinite() & values.isfinite()
        assert bool((distance[number] <= word.tolerance(dtype)).all())
        # Where values underflow, another code with the same value may stand for it.
        expected = values + 0.0 if word.negative_zero_is_nan else values
        back = word.to_values(again, scale, dtype)
        assert torch.equal(bits_of(back)[number], bits_of(expected)[number])
        normal = number & ((values.abs() >= limits.tiny) | (word.numbers(codes) == 0))
        assert torch.equal(again[normal], codes[normal])


def test_an_underflow_hides_no_wrong_value() -> None:
    word, _ = SMALL["e4m3fn"]
    spacing = 2.0**-24  # Of float16 near zero.
    scale = torch.tensor(spacing * 64).half()
    values = torch.tensor([spacing * 65, spacing * 64 * 17, spacing * 64 * 18.01]).half()
    _, distance = word.to_codes(values, scale)
    assert (distance <= word.tolerance(torch.float16)).tolist() == [True, False, True]
    _, distance = word.to_codes(torch.tensor([spacing * 6, spacing * 7]).half(), 2.0**-20)
    assert distance.tolist() == [0.0, 0.0]
    _, distance = word.to_codes(torch.tensor([spacing * 17, spacing * 18]).half(), 2.0**-24)
    assert distance.tolist() == [0.25, 0.0]


# -- any format, against fractions -------------------------------------------------------


def number_of(word: MiniFloat, code: int) -> Fraction | float:
    """The number of a code in exact fractions; -0.0 is a float."""
    digits = format(code, f"0{word.exponent_bits + word.mantissa_bits + word.signed}b")
    sign = -1 if word.signed and digits[0] == "1" else 1
    digits = digits[word.signed :]
    exponent = int(digits[: word.exponent_bits], 2)
    mantissa = int("0" + digits[word.exponent_bits :], 2)
    if word.negative_zero_is_nan and sign == -1 and exponent == mantissa == 0:
        return math.nan
    if "0" not in digits[: word.exponent_bits]:
        if mantissa in word.infinities:
            return sign * math.inf
        if mantissa in word.nans:
            return math.nan
    fraction = Fraction(mantissa, 2**word.mantissa_bits)
    if exponent == 0:
        number = fraction * Fraction(2) ** (1 - word.exponent_bias)
    else:
        number = (1 + fraction) * Fraction(2) ** (exponent - word.exponent_bias)
    return sign * number if number else sign * 0.0


def any_format(numbers: random.Random) -> MiniFloat:
    exponent, mantissa = numbers.randint(1, 5), numbers.randint(0, 4)
    marks = [numbers.choice("fffin") for _ in range(2**mantissa)]
    signed = numbers.random() < 0.7
    if signed and numbers.random() < 0.2:
        return MiniFloat(exponent, mantissa, numbers.randint(-9, 40), negative_zero_is_nan=True)
    return MiniFloat(
        exponent,
        mantissa,
        numbers.randint(-9, 40),
        signed,
        tuple(place for place, mark in enumerate(marks) if mark == "i"),
        tuple(place for place, mark in enumerate(marks) if mark == "n"),
    )


@pytest.mark.parametrize("seed", range(60))
def test_any_format_against_fractions(seed: int) -> None:
    numbers = random.Random(seed)
    word = any_format(numbers)
    codes = every_code(word)
    expected = [number_of(word, code) for code in codes.tolist()]
    assert_same(word.numbers(codes), np.array([float(number) for number in expected]))
    again, distance = word.to_codes(word.numbers(codes))
    finite = word.numbers(codes).isfinite()
    assert torch.equal(again[finite], codes[finite])
    assert bool((distance == 0).all())
    # Any value, against a search through all numbers.
    sizes = [number for number in expected if math.isfinite(number)]
    values = [numbers.uniform(-1, 1) * numbers.choice([word.max, word.step * 9]) for _ in range(50)]
    found, distance = word.to_codes(torch.tensor(values, dtype=torch.float64))
    for value, code, apart in zip(values, found.tolist(), distance.tolist(), strict=True):
        nearest = min(abs(Fraction(value) - Fraction(number)) for number in sizes)
        if apart <= word.tolerance(torch.float64):
            assert abs(Fraction(value) - Fraction(number_of(word, code))) == nearest
        else:
            assert nearest > 0


def test_a_format_without_mantissa() -> None:
    word = MiniFloat(3, 0, 3)
    assert word.numbers(every_code(word)).tolist() == [
        *(0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        *(-0.0, -0.25, -0.5, -1.0, -2.0, -4.0, -8.0, -16.0),
    ]
    assert word.roles == ("exponent 0", "exponent 1", "exponent 2", "sign")


def test_a_float32_as_a_minifloat() -> None:
    patterns = _patterns_of_float32()
    codes = torch.tensor(patterns)
    expected = np.array(patterns, np.uint32).view(np.float32)
    word = MiniFloat(8, 23, 127, infinities=(0,), nans=(2**22,))
    quiet = ~np.isnan(expected)
    assert_same(word.numbers(codes[quiet]), expected[quiet].astype(np.float64))
    again, distance = word.to_codes(torch.from_numpy(expected[quiet]))
    assert torch.equal(again, codes[quiet])
    assert bool((distance == 0).all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exponent_bits": 0}, "exponent_bits: got 0, allowed: 1 to 8"),
        ({"exponent_bits": 9}, "exponent_bits: got 9, allowed: 1 to 8"),
        ({"exponent_bits": 4.0}, "exponent_bits: got 4.0, allowed: 1 to 8"),
        ({"mantissa_bits": 24}, "mantissa_bits: got 24, allowed: 0 to 23"),
        ({"exponent_bias": -65}, "exponent_bias: got -65, allowed: -64 to 256"),
        ({"nans": (8,)}, "infinities and nans: got 8, allowed: 0 to 7"),
        ({"nans": (7,), "infinities": (7,)}, "a mantissa is both an infinity and NaN"),
        ({"negative_zero_is_nan": True, "signed": False}, "needs a sign"),
        ({"negative_zero_is_nan": True, "nans": (7,)}, "no other infinity or NaN"),
    ],
)
def test_impossible_formats(fields: dict[str, Any], message: str) -> None:
    given = {"exponent_bits": 4, "mantissa_bits": 3, "exponent_bias": 7, **fields}
    with pytest.raises(ConfigError, match=message):
        MiniFloat(**given)


# -- IEEE words --------------------------------------------------------------------------

_SPECIAL = [
    *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x3F800000),
    *(0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF),
    *(0xFFFFFFFF, 0xFF800001, 0x7FA00000, 0xBF800000, 0x40490FDB),
]


def _patterns_of_float32() -> list[int]:
    numbers = random.Random(0)
    return _SPECIAL + [numbers.randrange(2**32) for _ in range(20000)]


def test_patterns_of_float32_against_numpy() -> None:
    patterns = _patterns_of_float32()
    expected = np.array(patterns, np.uint32).view(np.float32)
    word = IeeeWord(torch.float32)
    found = word.numbers(torch.tensor(patterns))
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy().view(np.uint32), np.array(patterns, np.uint32))
    assert np.array_equal(found.numpy(), expected, equal_nan=True)
    codes, distance = word.to_codes(torch.from_numpy(expected))
    assert codes.tolist() == patterns
    assert distance.tolist() == [0.0] * len(patterns)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float16, np.float16), (torch.bfloat16, ml_dtypes.bfloat16)]
)
def test_every_pattern_of_a_16_bit_float(dtype: torch.dtype, kind: Any) -> None:
    word, codes = IeeeWord(dtype), torch.arange(2**16)
    numbers = word.numbers(codes)
    assert numbers.dtype == dtype
    assert torch.equal(bits_of(numbers).long() & 0xFFFF, codes)
    assert_same(numbers.double(), by_ml_dtypes(kind, codes))
    assert torch.equal(word.to_codes(numbers)[0], codes)
    assert torch.equal(bits_of(word.to_values(codes, dtype=dtype)), bits_of(numbers))


def test_ieee_words_of_any_layout() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).t()[::2]
    codes, distance = IeeeWord(torch.float32).to_codes(values)
    assert codes.shape == distance.shape == values.shape
    assert torch.equal(IeeeWord(torch.float32).numbers(codes), values)
    one, _ = IeeeWord(torch.float32).to_codes(torch.tensor(1.0))
    assert int(one) == 0x3F800000


def test_impossible_ieee_words() -> None:
    with pytest.raises(
        ConfigError, match=r"got torch\.float64, allowed: torch\.float32, torch\.fl"
    ):
        IeeeWord(torch.float64)
    word = IeeeWord(torch.float16)
    with pytest.raises(ConfigError, match=r"got values of torch\.float32, expected torch"):
        word.to_codes(torch.ones(1))
    with pytest.raises(ConfigError, match=r"got torch\.float32, expected torch\.float16"):
        word.to_values(torch.ones(1).long(), dtype=torch.float32)
    for scale in (2.0, torch.tensor(1.0)):
        with pytest.raises(ConfigError, match="no scale"):
            word.to_codes(torch.ones(1).half(), scale)
        with pytest.raises(ConfigError, match="no scale"):
            word.to_values(torch.ones(1).long(), scale)


# -- shared exponents --------------------------------------------------------------------


def test_every_shared_exponent() -> None:
    word, codes = SharedExponent(), torch.arange(256)
    assert_same(word.numbers(codes), by_ml_dtypes(ml_dtypes.float8_e8m0fnu, codes))
    for dtype in (torch.float32, torch.bfloat16):
        values = word.to_values(codes, dtype=dtype)
        assert torch.equal(values[:255].double(), word.numbers(codes[:255]))
        again, distance = word.to_codes(values)
        assert torch.equal(again, codes)
        assert distance.tolist() == [0.0] * 256


def test_what_is_no_shared_exponent_is_told() -> None:
    word = SharedExponent()
    # A group of zeros has the first scale in Brevitas; see `fxfault.quantisers.float_tensors`.
    wrong = [1e-10 / 256, 1.5, np.nextafter(1, 2), np.nextafter(1, 0), 0.0, -1.0, math.inf, 2e-39]
    wrong += [2.0**-128, 2.0**128]
    codes, distance = word.to_codes(torch.tensor(wrong, dtype=torch.float64))
    assert not bool((distance <= word.tolerance(torch.float64)).any())
    assert codes[:4].tolist() == [127 - 41, 128, 127, 127]
    assert codes[-2:].tolist() == [0, 254]


@pytest.mark.parametrize("bits", range(1, 9))
def test_shared_exponents_of_any_width(bits: int) -> None:
    word = SharedExponent(bits, exponent_bias=3)
    codes = torch.arange(2**bits)
    expected = [2.0 ** (code - 3) for code in range(2**bits - 1)]
    assert word.numbers(codes)[:-1].tolist() == expected
    assert word.numbers(codes)[-1].isnan()
    assert torch.equal(word.to_codes(word.numbers(codes))[0], codes)


@pytest.mark.parametrize("fields", [(0, 127), (9, 127), (8, 300), (8, 1.5)])
def test_impossible_shared_exponents(fields: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="float word: exponent_bi"):
        SharedExponent(*fields)


# -- roles and counts --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_roles_say_what_a_flip_does(name: str) -> None:
    word, _ = FORMATS[name]
    assert len(word.roles) == len(set(word.roles)) == word.word.bit_width
    one = int(word.to_codes(torch.tensor([1.0]))[0])
    fields: dict[str, list[float]] = {"sign": [], "exponent": [], "mantissa": []}
    for bit, role in enumerate(word.roles):
        number = float(word.numbers(torch.tensor(one ^ 1 << bit)))
        fields[role.split()[0]].append(number)
    assert fields["sign"] == [-1.0]
    steps = [1 + 2.0**-place for place in range(word.mantissa_bits, 0, -1)]
    assert fields["mantissa"] == steps
    bias = word.exponent_bias
    for bit, number in enumerate(fields["exponent"]):
        exponent = bias ^ (1 << bit)
        if math.isfinite(number) and exponent:
            assert number == 2.0 ** (exponent - bias)
        else:
            assert exponent in (0, 2**word.exponent_bits - 1)


def test_roles_of_other_words() -> None:
    assert IeeeWord(torch.float32).roles == MiniFloat(8, 23, 127).roles
    assert IeeeWord(torch.bfloat16).roles == MiniFloat(8, 7, 127).roles
    assert IeeeWord(torch.float16).roles == MiniFloat(5, 10, 15).roles
    assert SharedExponent().roles == tuple(f"exponent {bit}" for bit in range(8))
    assert MiniFloat(2, 1, 1, signed=False).roles[-1] == "exponent 1"


# -- every fault model on every pattern --------------------------------------------------


def oracle(model: Any, pattern: int, width: int, number: int) -> int:
    """What a fault model makes of a pattern, in Python integers; `number` is what it draws."""
    every = 2**width - 1
    if model.name == "random":
        return (pattern + number) % 2**width
    if model.name == "lsb_flip":
        return pattern ^ 1
    if model.name == "msb_flip":
        return pattern ^ 2 ** (width - 1)
    if model.name == "full_flip":
        return every - pattern
    if model.name == "burst":
        first = number % (width - model.length + 1)
        return pattern ^ sum(2**bit for bit in range(first, first + model.length))
    bit = number % width if model.bit is None else model.bit
    is_set = pattern // 2**bit % 2 == 1
    if model.name == "bit_flip":
        return pattern - 2**bit if is_set else pattern + 2**bit
    if model.name == "stuck_at_0":
        return pattern - 2**bit if is_set else pattern
    assert model.name == "stuck_at_1"
    return pattern if is_set else pattern + 2**bit


def models_of(width: int) -> list[Any]:
    models: list[Any] = [get_fault_model(name) for name in fault_model_names()]
    for name in ("bit_flip", "stuck_at_0", "stuck_at_1"):
        models += [get_fault_model(name, bit) for bit in range(width)]
    return models + [BurstStrategy(length) for length in range(1, width + 1)]


@pytest.mark.parametrize("name", [*sorted(SMALL), "e8m0fnu"])
def test_every_fault_model_on_every_pattern(name: str) -> None:
    """From value to value: encode, strike, decode."""
    known: dict[str, Any] = {**SMALL, "e8m0fnu": (SharedExponent(), ml_dtypes.float8_e8m0fnu)}
    word, kind = known[name]
    width = int(word.word.bit_width)
    table = by_ml_dtypes(kind, torch.arange(2**width))
    numbers = [*range(width), 2**62 + 3, 2**63 - 1]
    pairs = [(code, number) for code in range(2**width) for number in numbers]
    codes, draws = (torch.tensor(column) for column in zip(*pairs, strict=True))
    values = torch.from_numpy(table)[codes]
    read, _ = word.to_codes(values)
    for model in models_of(width):
        struck = model.corrupt(read, word.word, lambda stream: draws)
        patterns = [
            oracle(model, code, width, number)
            for code, (_, number) in zip(read.tolist(), pairs, strict=True)
        ]
        assert struck.tolist() == patterns
        result = word.to_values(struck, 2.0, torch.float64)
        assert_same(result, table[patterns] * 2.0)
        # NaN that are not the canonical one are struck by their pattern.
        raw = model.corrupt(codes, word.word, lambda stream: draws)
        assert raw.tolist() == [oracle(model, code, width, number) for code, number in pairs]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_set_of_bits_of_every_pattern(name: str) -> None:
    word, kind = SMALL[name]
    width = int(word.word.bit_width)
    codes = torch.arange(2**width).repeat_interleave(2**width)
    struck = torch.arange(2**width).repeat(2**width)
    table = by_ml_dtypes(kind, torch.arange(2**width))
    for model, effect in (
        ("bit_flip", np.bitwise_xor),
        ("stuck_at_1", np.bitwise_or),
        ("stuck_at_0", lambda a, b: np.bitwise_and(a, np.bitwise_not(b))),
    ):
        one = get_fault_model(model)
        assert isinstance(one, BitModel)
        result = word.numbers(one.corrupt_bits(codes, word.word, struck))
        assert_same(result, table[effect(codes.numpy(), struck.numpy())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_fault_model_on_ieee_words(dtype: torch.dtype) -> None:
    word = IeeeWord(dtype)
    width, numbers = int(word.word.bit_width), random.Random(0)
    codes = [code % 2**width for code in _patterns_of_float32()[:2000]]
    draws = [numbers.randrange(2**63) for _ in codes]
    read, _ = word.to_codes(word.numbers(torch.tensor(codes)))
    for model in models_of(width):
        struck = model.corrupt(read, word.word, lambda stream: torch.tensor(draws))
        pairs = zip(codes, draws, strict=True)
        expected = [oracle(model, code, width, number) for code, number in pairs]
        assert word.to_codes(word.numbers(struck))[0].tolist() == expected
