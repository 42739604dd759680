"""Codes and what faults make of them, against an oracle of bit strings and Python integers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import brevitas.function.ops as brevitas_ops
import numpy as np
import pytest
import torch
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.binary import SignedBinaryActPerTensorConst
from brevitas.quant.ternary import SignedTernaryActPerTensorConst
from brevitas_names import READABLE
from torch import Tensor, nn

from fxfault.faults import BitModel, Word, get_fault_model, kernels
from fxfault.faults.codes import fits, to_codes, to_values, tolerance
from fxfault.faults.fault_models import BurstStrategy
from fxfault.quantisers.quant_tensors import read_quantiser
from fxfault.strike.plan import _fault_of_bits

FLIPS = ("lsb_flip", "msb_flip", "full_flip")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# -- the oracle: bit strings, most significant bit first ---------------------------------


def bits_of(code: int, width: int, binary: bool = False) -> str:
    """The word that a code is stored in."""
    if binary:
        return {-1: "0", 1: "1"}[code]
    if code < 0:
        code += 2**width
    return format(code, "b").rjust(width, "0")


def code_of(bits: str, signed: bool, binary: bool = False) -> int:
    """The code that a word is read as."""
    if binary:
        return {"0": -1, "1": 1}[bits]
    weights = [2**place for place in reversed(range(len(bits)))]
    if signed:
        weights[0] = -weights[0]
    return sum(weight for weight, bit in zip(weights, bits, strict=True) if bit == "1")


def flipped(bits: str, model: str) -> str:
    other = {"0": "1", "1": "0"}
    if model == "lsb_flip":
        return bits[:-1] + other[bits[-1]]
    if model == "msb_flip":
        return other[bits[0]] + bits[1:]
    return "".join(other[bit] for bit in bits)


EFFECTS = {"bit_flip": {"0": "1", "1": "0"}, "stuck_at_0": {"1": "0"}, "stuck_at_1": {"0": "1"}}


def bits_oracle(
    code: int, model: str, struck: list[int], width: int, signed: bool, binary: bool = False
) -> int:
    """What is read back after some bits of a word, by their numbers, were struck."""
    bits = list(reversed(bits_of(code, width, binary)))
    for bit in struck:
        bits[bit] = EFFECTS[model].get(bits[bit], bits[bit])
    return code_of("".join(reversed(bits)), signed, binary)


def flip_oracle(code: int, model: str, width: int, signed: bool, binary: bool = False) -> int:
    return code_of(flipped(bits_of(code, width, binary), model), signed, binary)


def valid_codes(width: int, signed: bool, narrow: bool, binary: bool = False) -> list[int]:
    """The codes that a quantiser gives."""
    if binary:
        return [-1, 1]
    if signed:
        return list(range(-(2 ** (width - 1)) + (1 if narrow else 0), 2 ** (width - 1)))
    return list(range(0, 2**width - (1 if narrow else 0)))


def all_words(width: int, signed: bool) -> list[int]:
    """Every code that fits the word, given by the quantiser or not."""
    return valid_codes(width, signed, narrow=False)


WORDS = [
    pytest.param(width, signed, narrow, False, id=f"{'s' if signed else 'u'}{width}{'n' * narrow}")
    for width in range(1, 9)
    for signed in (True, False)
    for narrow in (False, True)
] + [pytest.param(1, True, True, True, id="binary")]


def fixed_draw(numbers: Tensor) -> Callable[[int], Tensor]:
    return lambda stream: numbers


# -- words -------------------------------------------------------------------------------


def test_the_oracle_knows_the_example_of_the_design() -> None:
    assert flip_oracle(7, "msb_flip", 4, signed=True) == -1
    assert flip_oracle(-1, "lsb_flip", 1, signed=True, binary=True) == 1


@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_range_is_that_of_the_quantiser(
    width: int, signed: bool, narrow: bool, binary: bool
) -> None:
    word = Word(width, signed, narrow, binary)
    valid = valid_codes(width, signed, narrow, binary)
    assert (word.min, word.max) == (valid[0], valid[-1])
    if not binary:
        bits = torch.tensor(float(width))
        assert word.min == int(brevitas_ops.min_int(signed, narrow, bits))
        assert word.max == int(brevitas_ops.max_int(signed, narrow, bits))


@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_patterns_of_every_code(width: int, signed: bool, narrow: bool, binary: bool) -> None:
    word = Word(width, signed, narrow, binary)
    codes = [-1, 1] if binary else all_words(width, signed)
    patterns = [int(bits_of(code, width, binary), 2) for code in codes]
    assert [word.to_pattern(code) for code in codes] == patterns
    assert [word.from_pattern(pattern) for pattern in patterns] == codes
    assert word.to_pattern(torch.tensor(codes)).tolist() == patterns
    assert word.from_pattern(torch.tensor(patterns)).tolist() == codes


# -- every code, every fault model -------------------------------------------------------


@pytest.mark.parametrize("width_as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize("model", FLIPS)
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_flip_of_every_code(
    width: int, signed: bool, narrow: bool, binary: bool, model: str, width_as_tensor: bool
) -> None:
    codes = [-1, 1] if binary else all_words(width, signed)
    word = Word(torch.tensor(width) if width_as_tensor else width, signed, narrow, binary)
    result = get_fault_model(model).corrupt(torch.tensor(codes), word, fixed_draw(torch.empty(0)))
    assert result.dtype == torch.int64
    assert result.tolist() == [flip_oracle(c, model, width, signed, binary) for c in codes]


def by_loop(codes: Tensor, word: Word, fault: kernels.Fault, bits: Tensor) -> list[int]:
    """What the compiled loop makes of codes of scale 1; binary ones are -1 and 1."""
    values, record = codes.double().numpy(), np.empty((2, len(codes)), np.int64)
    index, limits = np.arange(len(codes)), (1.0, 0.0, 0.25)
    memory = (values.ctypes.data, kernels.LIKE["float64"])
    what = (tuple(kernels.ROW_MAJOR), index, bits.numpy(), limits, word.for_loops, fault, record)
    wrong = kernels.strike_at(*memory, *what)
    assert wrong == 0
    assert record[0].tolist() == codes.tolist()
    assert values.tolist() == record[1].tolist()
    return list(record[1].tolist())


@pytest.mark.parametrize("width_as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize("model", EFFECTS)
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_every_bit_of_every_code(
    width: int, signed: bool, narrow: bool, binary: bool, model: str, width_as_tensor: bool
) -> None:
    codes = torch.tensor([-1, 1] if binary else all_words(width, signed))
    word = Word(width, signed, narrow, binary)
    wide = Word(torch.tensor(width), signed, narrow, binary) if width_as_tensor else word
    for bit in range(width):
        one: Any = get_fault_model(model, bit)
        expected = [bits_oracle(c, model, [bit], width, signed, binary) for c in codes.tolist()]
        assert one.corrupt(codes, wide, fixed_draw(torch.empty(0))).tolist() == expected
        assert by_loop(codes, word, _fault_of_bits(one, word), torch.zeros_like(codes)) == expected


@pytest.mark.parametrize("model", EFFECTS)
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_every_set_of_bits_of_every_code(
    width: int, signed: bool, narrow: bool, binary: bool, model: str
) -> None:
    words = [-1, 1] if binary else all_words(width, signed)
    sets = range(2**width) if width < 6 else random.Random(width).sample(range(2**width), 40)
    pairs = [(code, struck) for code in words for struck in sets]
    codes, struck = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = [
        bits_oracle(
            code, model, [bit for bit in range(width) if chosen >> bit & 1], width, signed, binary
        )
        for code, chosen in pairs
    ]
    word, one = Word(width, signed, narrow, binary), get_fault_model(model)
    assert isinstance(one, BitModel)
    assert one.corrupt_bits(codes, word, struck).tolist() == expected
    given = (_fault_of_bits(one, word)[0], 0, 0)
    assert by_loop(codes, word, given, struck) == expected


@pytest.mark.parametrize("model", EFFECTS)
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_a_random_bit_of_every_code(
    width: int, signed: bool, narrow: bool, binary: bool, model: str
) -> None:
    words = [-1, 1] if binary else all_words(width, signed)
    numbers = [*range(width), 2**62 + 3, 2**63 - 1]
    pairs = [(code, number) for code in words for number in numbers]
    codes, draws = (torch.tensor(column) for column in zip(*pairs, strict=True))
    word = Word(width, signed, narrow, binary)
    result = get_fault_model(model).corrupt(codes, word, fixed_draw(draws)).tolist()
    assert result == [
        bits_oracle(code, model, [number % width], width, signed, binary) for code, number in pairs
    ]


@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_bursts_of_every_length_at_every_place(
    width: int, signed: bool, narrow: bool, binary: bool
) -> None:
    words = [-1, 1] if binary else all_words(width, signed)
    word = Word(width, signed, narrow, binary)
    for length in range(1, width + 1):
        places = width - length + 1
        pairs = [(code, number) for code in words for number in range(2 * places)]
        codes, draws = (torch.tensor(column) for column in zip(*pairs, strict=True))
        result = BurstStrategy(length).corrupt(codes, word, fixed_draw(draws)).tolist()
        assert result == [
            bits_oracle(
                code,
                "bit_flip",
                list(range(number % places, number % places + length)),
                width,
                signed,
                binary,
            )
            for code, number in pairs
        ]


@pytest.mark.parametrize("model", FLIPS)
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_flipping_twice_gives_every_code_back(
    width: int, signed: bool, narrow: bool, binary: bool, model: str
) -> None:
    codes = torch.tensor([-1, 1] if binary else all_words(width, signed))
    word, draw = Word(width, signed, narrow, binary), fixed_draw(torch.empty(0))
    corrupt = get_fault_model(model).corrupt
    once = corrupt(codes, word, draw)
    assert bool((once != codes).all())
    assert torch.equal(corrupt(once, word, draw), codes)


@pytest.mark.parametrize("width_as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_random_follows_the_formula_for_every_code(
    width: int, signed: bool, narrow: bool, binary: bool, width_as_tensor: bool
) -> None:
    valid = valid_codes(width, signed, narrow, binary)
    draws = [*range(min(len(valid), 16)), 2**62, 2**63 - 1]
    draws += [
        2**63 // len(valid) * i + j for i in range(1, min(len(valid), 9)) for j in (-999, 999)
    ]
    draws += random.Random(0).sample(range(2**62), 4)
    pairs = [(code, r) for code in valid for r in draws]
    codes, numbers = (torch.tensor(column) for column in zip(*pairs, strict=True))
    word = Word(torch.tensor(width) if width_as_tensor else width, signed, narrow, binary)
    result = get_fault_model("random").corrupt(codes, word, fixed_draw(numbers)).tolist()
    assert set(result) <= set(valid)
    if not binary:
        size, low = len(valid), valid[0]
        if narrow:  # Where the range is no power of two, r is the draw scaled down to it.
            pairs = [(code, int((r >> 10) * 2.0**-53 * size)) for code, r in pairs]
        assert result == [((code + r - low) % size) + low for code, r in pairs]


@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_random_reaches_every_valid_code_from_every_code_equally_often(
    width: int, signed: bool, narrow: bool, binary: bool
) -> None:
    valid = valid_codes(width, signed, narrow, binary)
    word = Word(width, signed, narrow, binary)
    numbers = torch.arange(3 * len(valid)) + 12345
    if narrow and not binary:  # r is the draw scaled down: even are those over its whole range.
        numbers = torch.tensor(
            [(2 * i + 1) * 2**62 // (3 * len(valid)) for i in range(len(numbers))]
        )
    for code in valid:
        codes = torch.full_like(numbers, code)
        result = get_fault_model("random").corrupt(codes, word, fixed_draw(numbers)).tolist()
        assert sorted(result) == sorted(3 * valid)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("width", range(9, 33))
def test_wide_words_sampled(width: int, signed: bool) -> None:
    numbers = random.Random(width)
    low = -(2 ** (width - 1)) if signed else 0
    high = low + 2**width - 1
    middle = (low + high) // 2
    codes = [low, low + 1, middle, middle + 1, high - 1, high]
    codes += [numbers.randint(low, high) for _ in range(200)]
    word = Word(width, signed)
    assert (word.min, word.max) == (low, high)
    tensor = torch.tensor(codes)
    for model in FLIPS:
        result = get_fault_model(model).corrupt(tensor, word, fixed_draw(torch.empty(0)))
        assert result.tolist() == [flip_oracle(c, model, width, signed) for c in codes]
    draws = [numbers.randrange(2**63) for _ in codes]
    result = get_fault_model("random").corrupt(tensor, word, fixed_draw(torch.tensor(draws)))
    size = 2**width
    expected = [((c + r - low) % size) + low for c, r in zip(codes, draws, strict=True)]
    assert result.tolist() == expected


# -- values ------------------------------------------------------------------------------


def read(values: Tensor, scale: Tensor, zero_point: Tensor, word: Word) -> tuple[Tensor, Tensor]:
    """Codes, and whether each value was one; the same for numbers as for tensors."""
    codes, distance = to_codes(values, scale, zero_point, word)
    are_codes = distance <= tolerance(values.dtype, zero_point, word)
    if scale.numel() == zero_point.numel() == 1:
        numbers = scale.item(), zero_point.item()
        again, apart = to_codes(values, *numbers, word)
        assert torch.equal(again[are_codes], codes[are_codes])
        assert torch.equal(apart, distance) or bool(distance.isnan().any())
        assert torch.equal(apart <= tolerance(values.dtype, numbers[1], word), are_codes)
        back = to_values(codes, *numbers, values.dtype)
        assert torch.equal(back, to_values(codes, scale, zero_point, values.dtype)) or bool(
            back.isnan().any()
        )
    return codes, are_codes


@pytest.mark.parametrize("zero_point", [0, 3, 128, -5])
@pytest.mark.parametrize("scale", [1.0, 0.0078125, 0.1, 3.7e-3, 1234.567])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("width", "signed", "narrow", "binary"), WORDS)
def test_every_code_survives_its_value(
    width: int, signed: bool, narrow: bool, binary: bool, kind: Any, scale: float, zero_point: int
) -> None:
    zero_point = 0 if binary else zero_point  # A binary quantiser has none.
    valid = valid_codes(width, signed, narrow, binary)
    values = np.array([kind(code - zero_point) * kind(scale) for code in valid], dtype=kind)
    parameters = torch.tensor(kind(scale)), torch.tensor(kind(zero_point))
    word = Word(width, signed, narrow, binary)
    codes, are_codes = read(torch.from_numpy(values), *parameters, word)
    assert codes.tolist() == valid
    assert bool(are_codes.all())
    back = to_values(codes, *parameters, torch.from_numpy(values).dtype)
    assert np.array_equal(back.numpy(), values)
    assert back.dtype == parameters[0].dtype


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(9, torch.float32), (16, torch.float32), (23, torch.float64), (32, torch.float64)],
)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_wide_codes_survive_their_values(width: int, dtype: torch.dtype, signed: bool) -> None:
    numbers = random.Random(width)
    low = -(2 ** (width - 1)) if signed else 0
    high = low + 2**width - 1
    expected = [low, high, 0, *(numbers.randint(low, high) for _ in range(300))]
    scale, zero_point = torch.tensor(0.0123, dtype=dtype), torch.tensor(0.0, dtype=dtype)
    values = torch.tensor(expected, dtype=dtype) * scale
    codes, are_codes = read(values, scale, zero_point, Word(width, signed))
    assert codes.tolist() == expected
    assert bool(are_codes.all())
    assert torch.equal(to_values(codes, scale, zero_point, dtype), values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.125, 2.0, -2.25])
def test_what_is_no_code_is_told(value: float) -> None:
    word = Word(4, signed=True)
    _, are_codes = read(torch.tensor([0.25, value]), torch.tensor(0.25), torch.tensor(0.0), word)
    assert are_codes.tolist() == [True, False]


def test_zero_is_no_binary_code() -> None:
    word = Word(1, signed=True, narrow_range=True, binary=True)
    _, are_codes = read(torch.tensor([-0.5, 0.0, 0.5]), torch.tensor(0.5), torch.tensor(0.0), word)
    assert are_codes.tolist() == [True, False, True]


def test_nan_scale_gives_no_codes() -> None:
    _, are_codes = read(
        torch.tensor([0.5]), torch.tensor(float("nan")), torch.tensor(0.0), Word(4, signed=True)
    )
    assert are_codes.tolist() == [False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_that_fits_holds_every_unsigned_code(dtype: torch.dtype) -> None:
    widest = max(width for width in range(1, 33) if fits(width, dtype))
    top = 2**widest - 1
    codes = torch.arange(max(0, top - 5000), top + 1)
    assert torch.equal(codes.to(dtype).long(), codes)
    if widest < 32:
        above = torch.arange(2**widest, 2**widest + 3)
        assert not torch.equal(above.to(dtype).long(), above)


# -- Brevitas's own quantisers -----------------------------------------------------------

_PER_CHANNEL = {
    "scaling_per_output_channel": True,
    "per_channel_broadcastable_shape": (1, 3, 1, 1),
    "scaling_stats_permute_dims": (1, 0, 2, 3),
}
QUANTISERS: dict[str, Callable[[], nn.Module]] = {
    "int8": lambda: QuantIdentity(act_quant=Int8ActPerTensorFloat),
    "int4 narrow": lambda: QuantIdentity(
        act_quant=Int8ActPerTensorFloat, bit_width=4, narrow_range=True
    ),
    "uint8": lambda: QuantReLU(act_quant=Uint8ActPerTensorFloat),
    "uint2": lambda: QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=2),
    "shifted uint8": lambda: QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat),
    "binary": lambda: QuantIdentity(act_quant=SignedBinaryActPerTensorConst),
    "ternary": lambda: QuantIdentity(act_quant=SignedTernaryActPerTensorConst),
    "hard tanh 3": lambda: QuantHardTanh(bit_width=3, min_val=-1.0, max_val=1.0),
    "learned 5": lambda: QuantReLU(bit_width=5, bit_width_impl_type="parameter"),
    "learned 8": lambda: QuantIdentity(bit_width=8, bit_width_impl_type="parameter"),
    "int4 per channel": lambda: QuantIdentity(bit_width=4, **_PER_CHANNEL),
    "uint4 per channel": lambda: QuantReLU(bit_width=4, **_PER_CHANNEL),
    "shifted uint8 per channel": lambda: QuantIdentity(
        act_quant=ShiftedUint8ActPerTensorFloat, **_PER_CHANNEL
    ),
}


def quantised(
    name: str, dtype: torch.dtype, calibrated: Callable[..., nn.Module]
) -> tuple[nn.Module, Tensor]:
    """A calibrated activation and an input that reaches all of its codes."""
    torch.manual_seed(3)
    activation: Any = QUANTISERS[name]()
    activation.return_quant_tensor = True
    activation.to(dtype)
    spread = torch.tensor([1.0, 0.3, 5.0])[None, :, None, None]
    calibrated(activation, (torch.randn(16, 3, 8, 8) * spread).to(dtype))
    sweep = torch.linspace(-7, 7, 60 * 64).reshape(1, 1, 60, 64).expand(1, 3, 60, 64)
    return activation, (sweep * spread * 0.6).to(dtype)


def code_tables(output: Any, width: int, signed: bool, binary: bool) -> list[dict[int, Tensor]]:
    """For each channel, what every word is worth: Brevitas's `(code - zero_point) * scale`."""
    codes = [-1, 1] if binary else all_words(width, signed)
    scales = output.scale.detach().expand(1, 3, 1, 1).reshape(3)
    points = output.zero_point.detach().expand(1, 3, 1, 1).reshape(3)
    dtype = output.value.dtype
    return [
        {code: (torch.tensor(code, dtype=dtype) - point) * scale for code in codes}
        for scale, point in zip(scales, points, strict=True)
    ]


def per_channel(tensor: Tensor) -> Tensor:
    return tensor.detach().transpose(0, 1).reshape(3, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", QUANTISERS)
def test_round_trip_of_a_quantisers_own_output(
    name: str, dtype: torch.dtype, calibrated: Callable[..., nn.Module]
) -> None:
    activation, x = quantised(name, dtype, calibrated)
    output: Any = activation(x)
    facts = read_quantiser(activation)
    width = round(output.bit_width.item())
    word = Word(width, output.signed, facts.narrow_range, facts.binary)
    assert facts.bit_width in (None, width)
    value, scale, zero_point = (
        part.detach() for part in (output.value, output.scale, output.zero_point)
    )
    codes, are_codes = read(value, scale, zero_point, word)
    assert bool(are_codes.all())
    assert torch.equal(to_values(codes, scale, zero_point, dtype), value)
    if dtype in READABLE:
        assert torch.equal(codes, output.int(float_datatype=False).long())
    if dtype in (torch.float32, torch.float64):
        valid = valid_codes(width, output.signed, facts.narrow_range, facts.binary)
        assert set(codes.unique().tolist()) == set(valid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [*FLIPS, "random"])
@pytest.mark.parametrize("name", QUANTISERS)
def test_faulty_value_is_the_quantisers_value_of_the_faulty_code(
    name: str,
    model: str,
    dtype: torch.dtype,
    calibrated: Callable[..., nn.Module],
    faulty: Callable[..., Any],
) -> None:
    activation, x = quantised(name, dtype, calibrated)
    clean: Any = activation(x)
    struck = faulty(nn.Sequential(activation), injection_type=model)(x)
    assert struck.value.dtype == dtype
    for part in ("scale", "zero_point", "bit_width", "signed_t"):
        assert torch.equal(getattr(struck, part), getattr(clean, part))
    facts = read_quantiser(activation)
    width = round(clean.bit_width.item())
    tables = code_tables(clean, width, clean.signed, facts.binary)
    valid = valid_codes(width, clean.signed, facts.narrow_range, facts.binary)
    pairs = zip(tables, per_channel(clean.value), per_channel(struck.value), strict=True)
    for table, before, after in pairs:
        # In a 16-bit float two codes may share a value: any of them may have been the word.
        words: dict[float, list[int]] = {}
        for code in valid:
            words.setdefault(float(table[code]), []).append(code)
        seen = set(zip(before.tolist(), after.tolist(), strict=True))
        assert {value for value, _ in seen} <= set(words)
        for value, result in seen:
            if model == "random":
                assert result in words
            else:
                allowed = [
                    table[flip_oracle(code, model, width, clean.signed, facts.binary)]
                    for code in words[value]
                ]
                assert result in [float(one) for one in allowed]
