"""The float words of Brevitas's own quantisers, and the two memories of its groupwise tensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from brevitas.core.restrict_val import FloatRestrictValue, PowerOfTwoRestrictValue
from brevitas.nn import QuantConv2d, QuantConvTranspose2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8ActPerTensorFloat
from brevitas_names import (
    float_base,
    float_quant,
    float_quant_fnuz,
    float_quant_ocp,
    mx_quant_ocp,
    needs_unsigned_floats,
)
from torch import Tensor

from fxfault.errors import SiteError
from fxfault.faults import Word
from fxfault.faults.bits import same_bits
from fxfault.faults.float_words import IeeeWord, SharedExponent
from fxfault.faults.minifloats import MiniFloat
from fxfault.quantisers.float_tensors import float_words
from fxfault.quantisers.grouped_tensors import Groups, elements_of, groups, has_powers_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Fp4e2m1Act(float_base.Fp4e2m1Mixin, float_quant_ocp.FpOCPAct):
    """A quantiser that Brevitas has the parts of."""


class Fp6e2m3Act(float_base.Fp6e2m3Mixin, float_quant_ocp.FpOCPAct):
    pass


class Fp6e3m2Act(float_base.Fp6e3m2Mixin, float_quant_ocp.FpOCPAct):
    pass


class Fp6e3m2FNUZAct(float_base.Fp6e3m2Mixin, float_quant_fnuz.FpFNUZAct):
    pass


# Each quantiser, the same format in `ml_dtypes` if there is one, and its largest number.
ACTIVATIONS: dict[str, tuple[Any, Any, float]] = {
    "ocp e4m3": (float_quant_ocp.Fp8e4m3OCPAct, ml_dtypes.float8_e4m3fn, 448),
    "ocp e5m2": (float_quant_ocp.Fp8e5m2OCPAct, ml_dtypes.float8_e5m2, 57344),
    "fnuz e4m3": (float_quant_fnuz.Fp8e4m3FNUZAct, ml_dtypes.float8_e4m3fnuz, 240),
    "fnuz e5m2": (float_quant_fnuz.Fp8e5m2FNUZAct, ml_dtypes.float8_e5m2fnuz, 57344),
    "fnuz e3m2": (Fp6e3m2FNUZAct, None, 14),
    "ocp e2m1": (Fp4e2m1Act, ml_dtypes.float4_e2m1fn, 6),
    "ocp e2m3": (Fp6e2m3Act, ml_dtypes.float6_e2m3fn, 7.5),
    "ocp e3m2": (Fp6e3m2Act, ml_dtypes.float6_e3m2fn, 28),
    "plain e4m3": (float_quant.Fp8e4m3Act, None, 480),
    "plain e5m2": (float_quant.Fp8e5m2Act, None, 114688),
    "ocp e4m3 scaled": (float_quant_ocp.Fp8e4m3OCPActPerTensorFloat, ml_dtypes.float8_e4m3fn, 448),
    "ocp e5m2 scaled": (float_quant_ocp.Fp8e5m2OCPActPerTensorFloat, ml_dtypes.float8_e5m2, 57344),
    "fnuz e4m3 scaled": (
        float_quant_fnuz.Fp8e4m3FNUZActPerTensorFloat,
        ml_dtypes.float8_e4m3fnuz,
        240,
    ),
}


def grid(word_max: float, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Values over the whole range and beyond it, dense near zero, of both signs."""
    top = min(word_max * scale * 1.1, torch.finfo(dtype).max / 2)
    exponents = torch.linspace(-26, 0, 4001, dtype=torch.float64)
    sizes = torch.cat([top * 2**exponents, torch.linspace(0, top, 4001, dtype=torch.float64)])
    return torch.cat([sizes, -sizes]).to(dtype)


def read(quantised: Any) -> tuple[MiniFloat, Tensor]:
    found = float_words(quantised)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_value_of_a_quantiser_is_a_code(name: str, dtype: torch.dtype) -> None:
    quantiser, kind, largest = ACTIVATIONS[name]
    layer = QuantIdentity(act_quant=quantiser, return_quant_tensor=True, dtype=dtype)
    if "scaled" in name:  # Learn a scale that is no power of two.
        layer.train()(torch.full((64,), 0.3717, dtype=dtype))
    with torch.no_grad():
        layer.eval()
        scale = float(layer(torch.zeros(1, dtype=dtype)).scale)
        quantised = layer(grid(largest, dtype, scale))
    word, scale_of = read(quantised)
    assert word.max == largest
    assert word.negative_zero_is_nan == ("fnuz" in name)
    if "scaled" in name:
        assert scale_of.log2().frac() != 0
    values = quantised.value
    assert values.dtype == dtype
    codes, distance = word.to_codes(values, scale_of)
    if not word.fits(dtype):  # Only a value beyond float16 leaves the format.
        assert (name, dtype) == ("plain e5m2", torch.float16)
    assert bool((distance <= word.tolerance(dtype)).all())
    # Every finite number but the tiniest was met, of each sign.
    met = len(np.unique(codes.numpy()))
    if dtype == torch.float32 and len(word.roles) < 8:
        assert met == 2 ** len(word.roles) - word.negative_zero_is_nan
    assert met > 100 or len(word.roles) < 8
    back = word.to_values(codes, scale_of, dtype)
    # "FNUZ" has no -0.0, which Brevitas's values have all the same.
    assert same_bits(back, values + 0.0 if word.negative_zero_is_nan else values)
    if kind is not None:
        unsigned = codes.numpy().astype(np.uint8).view(kind).astype(np.float64)
        product = torch.from_numpy(unsigned).to(dtype) * scale_of
        assert torch.equal(product.to(dtype), values)


@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("name", ["ocp e4m3", "ocp e5m2"])
def test_what_does_not_saturate_is_a_code_as_well(name: str, saturating: bool) -> None:
    quantiser, _, largest = ACTIVATIONS[name]
    layer = QuantIdentity(act_quant=quantiser, return_quant_tensor=True, saturating=saturating)
    given = [2.0 * largest, -2.0 * largest, torch.nan, 1.0]
    quantised = layer.eval()(torch.tensor(given))
    word, scale = read(quantised)
    codes, distance = word.to_codes(quantised.value, scale)
    assert distance.tolist() == [0.0] * 4
    assert torch.equal(word.numbers(codes).nan_to_num(7), quantised.value.double().nan_to_num(7))
    assert quantised.value[:2].isfinite().all() == saturating
    assert quantised.value[2].isnan()


@needs_unsigned_floats
def test_an_unsigned_quantiser() -> None:
    layer = QuantReLU(
        act_quant=float_quant_ocp.Fp8e4m3OCPAct, return_quant_tensor=True, signed=False
    )
    quantised = layer.eval()(grid(448, torch.float32))
    word, scale = read(quantised)
    assert not word.signed
    assert len(word.roles) == 7
    codes, distance = word.to_codes(quantised.value, scale)
    assert not bool(distance.any())
    assert len(np.unique(codes.numpy())) > 100
    assert same_bits(word.to_values(codes, scale), quantised.value + 0.0)


def test_formats_are_equal_however_brevitas_lists_their_nans() -> None:
    layer = QuantIdentity(act_quant=float_quant_ocp.Fp8e5m2OCPAct, return_quant_tensor=True)
    quantised = layer.eval()(torch.ones(1))
    assert quantised.nan_values == ("01", "11", "10")
    assert read(quantised)[0] == MiniFloat(5, 2, 15, infinities=(0,), nans=(1, 2, 3))


@needs_unsigned_floats
def test_an_unsigned_fnuz_quantiser_has_no_nan() -> None:
    fnuz = float_quant_fnuz.Fp8e4m3FNUZAct
    layer = QuantReLU(act_quant=fnuz, return_quant_tensor=True, signed=False)
    word, _ = read(layer.eval()(torch.ones(1)))
    assert word == MiniFloat(4, 3, 8, signed=False)


WEIGHTS = {
    "ocp e4m3": float_quant_ocp.Fp8e4m3OCPWeightPerTensorFloat,
    "ocp e5m2 per channel": float_quant_ocp.Fp8e5m2OCPWeightPerChannelFloat,
    "fnuz e4m3 per channel": float_quant_fnuz.Fp8e4m3FNUZWeightPerChannelFloat,
    "fnuz e5m2": float_quant_fnuz.Fp8e5m2FNUZWeightPerTensorFloat,
    "plain e4m3 per channel": float_quant.Fp8e4m3WeightPerChannelFloat,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(6, 5, 3, bias=False, weight_quant=WEIGHTS[name], dtype=dtype)
    with torch.no_grad():
        weight = layer.quant_weight()
    word, scale = read(weight)
    assert scale.shape == ((5, 1, 1, 1) if "channel" in name else ())
    codes, distance = word.to_codes(weight.value, scale)
    assert bool((distance <= word.tolerance(dtype)).all())
    assert word.negative_zero_is_nan == ("fnuz" in name)
    back = word.to_values(codes, scale, dtype)
    assert same_bits(back, weight.value + 0.0 if word.negative_zero_is_nan else weight.value)


def test_other_values_have_no_float_word() -> None:
    integer = QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
    for other in (torch.ones(1), None, integer.eval()(torch.ones(1))):
        assert float_words(other) is None
        assert groups(other) is None


def test_a_format_between_two_is_refused() -> None:
    layer = QuantIdentity(act_quant=float_quant_ocp.Fp8e4m3OCPAct, return_quant_tensor=True)
    quantised = layer.eval()(torch.ones(1)).set(mantissa_bit_width=torch.tensor(2.5))
    with pytest.raises(SiteError, match=r"mantissa_bit_width: got 2\.5, allowed: a whole number"):
        float_words(quantised)


# -- groups ------------------------------------------------------------------------------


def memory_of(quantised: Any, **given: bool) -> Groups:
    found = groups(quantised, **given)
    assert found is not None
    return found


def linear(quantiser: Any, **given: Any) -> Any:
    return QuantLinear(40, 3, bias=False, weight_quant=quantiser, **given).quant_weight()


def tensors() -> dict[str, Any]:
    """A groupwise tensor for each kind of layer, of two groups of which the second is shorter."""
    torch.manual_seed(0)
    e4m3, int8 = mx_quant_ocp.MXFloat8e4m3Weight, mx_quant_ocp.MXInt8Weight
    acts = (mx_quant_ocp.MXFloat8e4m3Act, mx_quant_ocp.MXInt8Act)
    x = torch.randn(2, 40, 3, 3)
    float_act, int_act = (
        QuantIdentity(act_quant=act, return_quant_tensor=True, group_dim=1).eval() for act in acts
    )
    last = QuantIdentity(act_quant=acts[0], return_quant_tensor=True, group_dim=-1).eval()
    return {
        "linear float": linear(e4m3),
        "linear bfloat16": linear(e4m3, dtype=torch.bfloat16),
        "linear int": linear(int8),
        "linear uint with zero points": linear(mx_quant_ocp.ShiftedMXUInt8Weight),
        "conv float": QuantConv2d(40, 3, 3, bias=False, weight_quant=e4m3).quant_weight(),
        "transposed float": QuantConvTranspose2d(
            40, 3, 3, bias=False, weight_quant=e4m3
        ).quant_weight(),
        "float activation": float_act(x),
        "int activation": int_act(x),
        "last dimension": last(torch.randn(2, 3, 40)),
    }


TENSORS = tensors()


@pytest.mark.parametrize("name", TENSORS)
def test_two_memories_give_the_tensor_back(name: str) -> None:
    quantised = TENSORS[name]
    memory = memory_of(quantised)
    assert memory.shape == tuple(quantised.value.shape)
    assert memory.values.shape[memory.dim : memory.dim + 2] == (2, 32)
    assert memory.scales.shape[memory.dim : memory.dim + 2] == (2, 1)
    codes, distance = memory.codes()
    scale_codes, apart = memory.scale_codes()
    assert bool((distance <= 0.25).all())
    assert bool((apart == 0).all())
    scales = memory.scale_word.to_values(scale_codes, dtype=memory.scales.dtype)
    assert same_bits(scales, memory.scales.detach())
    values = memory.values_of(codes, scales)
    if isinstance(memory.word, Word):  # Integers have no -0.0.
        assert torch.equal(values, memory.values)
    else:
        assert same_bits(values, memory.values.detach())
    assert torch.equal(memory.joined(values), quantised.value)
    if isinstance(memory.word, MiniFloat):
        assert read(elements_of(quantised))[0] == memory.word
        assert torch.equal(
            memory.joined(codes), memory.word.to_codes(quantised.value, quantised.scale)[0]
        )


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("name", ["linear float", "linear int", "float activation"])
def test_a_flip_of_a_scale_hits_its_whole_group(name: str, bit: int) -> None:
    memory = memory_of(TENSORS[name])
    codes, _ = memory.codes()
    scale_codes, _ = memory.scale_codes()
    before = int(scale_codes.flatten()[0])
    scale_codes.view(-1)[0] ^= 1 << bit
    after = before ^ 1 << bit
    scales = memory.scale_word.to_values(scale_codes, dtype=memory.scales.dtype)
    values = memory.values_of(codes, scales)
    index = (0,) * memory.dim
    elsewhere = torch.ones_like(values, dtype=torch.bool)
    column = (slice(None),) + (0,) * (values.dim() - memory.dim - 2)
    elsewhere[(*index, 0)][column] = False
    assert int((~elsewhere).sum()) == 32
    assert torch.equal(values[elsewhere], memory.values[elsewhere])
    group, clean = values[~elsewhere].double(), memory.values[~elsewhere].double()
    if after == 255:
        assert bool(group.isnan().all())
    else:
        factor = torch.tensor(2.0, dtype=torch.float64) ** (after - before)
        expected = (clean * factor).float().double()
        assert torch.equal(group, expected)
        assert bool((group != clean).any())


def test_a_scale_of_zeros_is_no_power_of_two_but_has_a_code() -> None:
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    x[:, :32] = 0
    x[:, 0] = -0.0
    layer = QuantIdentity(
        act_quant=mx_quant_ocp.MXFloat8e4m3Act, return_quant_tensor=True, group_dim=1
    )
    memory = memory_of(layer.eval()(x))
    assert float(memory.scales[0, 0]) == pytest.approx(1e-10 / 256)
    codes, distance = memory.scale_codes()
    assert distance.flatten().tolist() == [0.0, 0.0]
    assert codes.flatten().tolist() == [127 - 41, 127 + int(memory.scales[0, 1].log2())]
    x[:, 3] = 1e-11  # Now the value depends on the scale, which no byte holds.
    memory = memory_of(layer(x))
    assert memory.scale_codes()[1].flatten().tolist() == [pytest.approx(0.219, abs=1e-3), 0.0]


def test_a_scale_of_zeros_that_is_no_number_is_told() -> None:
    quantised = TENSORS["linear float"]
    value = torch.zeros_like(quantised.value_)
    for scale in (0.0, -1.0, torch.nan):
        memory = memory_of(quantised.set(value_=value, scale_=torch.full((3, 2, 1), scale)))
        codes, distance = memory.scale_codes()
        if scale != scale:  # This byte has a NaN.
            assert codes.unique().tolist() == [255]
        else:
            assert not bool((distance == 0).any())


def test_scales_that_are_any_number() -> None:
    memory = memory_of(TENSORS["linear float"], power_of_two=False)
    assert memory.scale_word == IeeeWord(torch.float32)
    codes, distance = memory.scale_codes()
    assert same_bits(memory.scale_word.to_values(codes), memory.scales.detach())
    assert not bool(distance.any())
    assert memory_of(TENSORS["linear float"]).scale_word == SharedExponent()


def check_scales(proxy: Any, quantised: Any, powers_of_two: bool) -> None:
    assert has_powers_of_two(proxy) == powers_of_two
    memory = memory_of(quantised)
    found = not bool(memory.scale_codes()[1].any())
    # The threshold of an integer is 128 here: a power of two without any restriction.
    assert found == powers_of_two or (found and isinstance(memory.word, Word))


@pytest.mark.parametrize("scaling", ["fp", "power_of_two"])
@pytest.mark.parametrize("threshold", ["fp", "power_of_two"])
def test_scales_that_are_powers_of_two_are_known(scaling: str, threshold: str) -> None:
    torch.manual_seed(0)
    kinds = {"fp": FloatRestrictValue, "power_of_two": PowerOfTwoRestrictValue}
    changes = {"restrict_scaling_type": scaling, "restrict_threshold_impl": kinds[threshold]}
    expected = scaling == threshold == "power_of_two"
    for base in (mx_quant_ocp.MXFloat8e4m3Weight, mx_quant_ocp.MXInt8Weight):
        layer = QuantLinear(40, 3, bias=False, weight_quant=base.let(**changes))
        check_scales(layer.weight_quant, layer.quant_weight(), expected)
    for base in (mx_quant_ocp.MXFloat8e4m3Act, mx_quant_ocp.MXInt8Act):
        act = QuantIdentity(act_quant=base.let(**changes), return_quant_tensor=True, group_dim=1)
        check_scales(act.act_quant, act.eval()(torch.randn(2, 40)), expected)
    assert not has_powers_of_two(QuantIdentity(act_quant=Int8ActPerTensorFloat).act_quant)


def test_words_of_integer_groups() -> None:
    assert memory_of(TENSORS["linear int"]).word == Word(8, signed=True)
    assert memory_of(TENSORS["linear int"], narrow_range=True).word == Word(8, True, True)
    shifted = memory_of(TENSORS["linear uint with zero points"])
    assert shifted.word == Word(8, signed=False)
    assert isinstance(shifted.zero_points, Tensor)
    assert shifted.zero_points.shape == (3, 2, 1)
    assert bool((shifted.zero_points != 0).any())


def test_groups_that_share_one_scale_are_refused() -> None:
    quantised = TENSORS["linear float"].set(scale_=torch.tensor(1.0))
    with pytest.raises(SiteError, match=r"got scales of shape \(\), expected \(3, 2, 1\)"):
        groups(quantised)
