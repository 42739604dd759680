"""Groupwise (MX) tensors are two memories: the words of the elements, and the shared scales."""

from __future__ import annotations

import copy
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantConvTranspose2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas_names import mx_quant_ocp as mx
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxfault
from fxfault.errors import SiteError, TransformError
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.runners import make_runner
from fxfault.faults.bits import same_bits
from fxfault.faults.torch_versions import is_older
from fxfault.passes import trace
from fxfault.quantisers.grouped_tensors import elements_of, groups

FLIPS = {"enabled": True, "apply_during": "eval", "injection_type": "bit_flip", "seed": 5}


def transformed(net: nn.Module, memory: Any, **settings: Any) -> Any:
    return fxfault.transform(
        net.eval(), {**FLIPS, "memory": memory, "bit": "random", "probability": 3.0, **settings}
    )


# -- each strike against an oracle in plain Python integers ---------------------------------


def number_of(pattern: int, is_float: bool) -> float:
    """The number that an 8-bit pattern of an element stands for."""
    if is_float:
        return float(np.array([pattern], np.uint8).view(ml_dtypes.float8_e4m3fn)[0])
    return float(pattern - 256 if pattern > 127 else pattern)


def pattern_of(number: float, is_float: bool) -> int:
    if is_float:
        return int(np.array([number], ml_dtypes.float8_e4m3fn).view(np.uint8)[0])
    return int(number) & 255


def scale_of(exponent: int) -> float:
    return math.nan if exponent == 255 else 2.0 ** (exponent - 127)


def struck_by_hand(clean: Any, hits: list[tuple[bool, int, int]], is_float: bool) -> Tensor:
    """Flip the bits of elements and scales in the patterns that their memories hold.

    Args:
        clean: the groupwise QuantTensor without faults.
        hits: whether a scale is hit, the flat index of the word, and the mask of its bits.
        is_float: whether elements are minifloats (e4m3), not integers.
    """
    one = elements_of(clean)
    numbers = (one.value.double() / one.scale.double()).flatten().tolist()
    patterns = [pattern_of(number, is_float) for number in numbers]
    exponents = [round(math.log2(scale)) + 127 for scale in clean.scale_.flatten().tolist()]
    owners = torch.arange(clean.scale_.numel()).view(clean.scale_.shape).expand_as(clean.value_)
    owner = clean._replace(value_=owners).value.flatten().tolist()
    for is_scale, index, mask in hits:
        (exponents if is_scale else patterns)[index] ^= mask
    values = [
        number_of(pattern, is_float) * scale_of(exponents[group])
        for pattern, group in zip(patterns, owner, strict=True)
    ]
    made = torch.tensor(values, dtype=torch.float64).float()  # Too large ones become infinite.
    return made.view(clean.value.shape)


LAYERS: dict[str, Any] = {
    "linear int": lambda: QuantLinear(40, 3, bias=False, weight_quant=mx.MXInt8Weight),
    "linear float": lambda: QuantLinear(40, 3, bias=False, weight_quant=mx.MXFloat8e4m3Weight),
    "conv float": lambda: QuantConv2d(40, 3, 2, bias=False, weight_quant=mx.MXFloat8e4m3Weight),
    "transposed int": lambda: QuantConvTranspose2d(
        40, 3, 2, bias=False, weight_quant=mx.MXInt8Weight
    ),
    "activation int": lambda: QuantIdentity(act_quant=mx.MXInt8Act, group_dim=1),
    "activation float": lambda: QuantIdentity(act_quant=mx.MXFloat8e4m3Act, group_dim=1),
}


def inputs_of(name: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 40) if name.startswith("linear") else torch.randn(2, 40, 3, 3)


def hits_of(faults: Any, clean: Any) -> list[tuple[bool, int, int]]:
    """The hits of a list in the form of `struck_by_hand`."""
    hits = []
    for row in faults.rows():
        is_scale = row["site"].endswith(".scales")
        per_sample = (clean.scale_ if is_scale else clean.value)[0].numel()
        first = row["sample"] * per_sample if row["memory"] == "activations" else 0
        hits.append((is_scale, first + row["element"], row["mask"]))
    return hits


@pytest.mark.parametrize("name", LAYERS)
def test_strikes_against_plain_integers(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name]().eval(), inputs_of(name)
    is_weight, is_float = hasattr(layer, "weight"), "float" in name
    clean = layer.quant_weight() if is_weight else layer.act_quant(x)
    faulty = transformed(nn.Sequential(layer), "weights" if is_weight else "activations")
    assert len(faulty.faults) == 2
    kinds: set[bool] = set()
    for trial in range(40):
        faulty.faults.reset(trial=trial)
        hits = hits_of(faulty.faults.listing(x, trial=trial), clean)
        with torch.no_grad():
            faulty.faults.reset(trial=trial)
            inner = faulty.get_submodule("0")
            found = inner.quant_weight().value if is_weight else faulty(x)
        expected = struck_by_hand(clean, hits, is_float)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
        kinds |= {is_scale for is_scale, _, _ in hits}
    assert kinds == {False, True}


def test_a_list_that_is_replayed_strikes_both_memories() -> None:
    net, x = network(), torch.randn(4, 40)
    first = transformed(net, MEMORIES)
    found = first.faults.listing(x, trial=7)
    replay = {"replay": found, "memory": MEMORIES}
    settings = {"enabled": True, "apply_during": "eval", "faults": replay}
    again = fxfault.transform(net, settings)
    first.faults.reset(trial=7)
    with torch.no_grad():
        assert same_bits(again(x), first(x))
        assert not same_bits(again(x), net(x))


# -- the laws of the pass ----------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    both: dict[str, Any] = {"weight_quant": mx.MXFloat8e4m3Weight}
    return nn.Sequential(
        QuantLinear(40, 33, bias=True, input_quant=mx.MXFloat8e4m3Act, **both),
        QuantReLU(bit_width=4),
        QuantLinear(33, 5, bias=True, input_quant=mx.MXInt8Act, weight_quant=mx.MXInt8Weight),
    ).eval()


MEMORIES = ["weights", "activations"]


def test_names_and_words_of_the_sites() -> None:
    faulty = transformed(network(), MEMORIES)
    assert faulty.faults.names == (
        *("0.input_quant", "0.input_quant.scales", "0.weight", "0.weight.scales", "1"),
        *("2.input_quant", "2.input_quant.scales", "2.weight", "2.weight.scales"),
    )
    words = [(site.quantiser.word, site.bit_width) for site in faulty.faults]
    scale, minifloat, integer = ("shared exponent", 8), ("minifloat", 8), ("integer", 8)
    assert words == [minifloat, scale] * 2 + [("integer", 4)] + [integer, scale] * 2
    assert faulty.faults["0.weight.scales"].stored.shape == (33, 2, 1)


def test_check_and_strip_and_state() -> None:
    net, x = network(), torch.randn(6, 40)
    state = {name: t.clone() for name, t in net.state_dict().items()}
    faulty = transformed(net, MEMORIES)
    found = fxfault.check(faulty, net, x)
    assert found.modes == ("eval", "train")
    assert not found.not_called
    faulty.eval()(x)
    assert all(same_bits(t, state[name]) for name, t in net.state_dict().items())
    stripped = fxfault.strip(faulty)
    assert torch.equal(stripped(x), net(x))
    assert stripped.code == trace(net).code


@pytest.mark.parametrize("size", [1, 2, 5])
def test_faults_do_not_depend_on_the_batch_size(size: int) -> None:
    net, x = network(), torch.randn(6, 40)
    faulty = transformed(net, MEMORIES)
    faulty.faults.measure(x)
    outputs = []
    for each in (6, size):
        faulty.faults.reset(trial=2)
        with torch.no_grad():
            outputs.append(torch.cat([faulty(part) for part in x.split(each)]))
    assert not torch.equal(outputs[0], net(x))
    torch.testing.assert_close(outputs[0], outputs[1], equal_nan=True)


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
@pytest.mark.parametrize("name", ["linear int", "linear float"])
def test_gradients_stop_at_the_groups_of_struck_scales(name: str, mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(LAYERS[name]())
    settings = {"apply_during": "train", "gradient_mode": mode, "layers": "*.scales"}
    faulty = transformed(net, "weights", **settings, bit=0, probability=50.0).train()
    clean = net.train()[0].quant_weight()
    layer = faulty.get_submodule("0")
    words = layer.quant_weight()
    words.value.sum().backward()
    hit = (words.scale != clean.scale).expand_as(clean.value)
    assert bool(hit.any())
    assert not bool(hit.all())
    grad = layer.weight.grad
    expected = ~hit if mode == "zero_faulty" else torch.ones_like(hit)
    assert torch.equal(grad != 0, expected)


def test_a_scale_of_zeros_and_one_that_is_no_code() -> None:
    layer = LAYERS["linear float"]().eval()
    layer.weight.data[0, :32] = 0.0
    faulty = transformed(nn.Sequential(layer), "weights", layers="*.scales", probability=100.0)
    with torch.no_grad():
        struck = faulty.get_submodule("0").quant_weight().value
        assert bool((struck[0, :32] == 0).logical_or(struck[0, :32].isnan()).all())
        layer.weight.data[0, :32] = 1e-11
        with pytest.raises(SiteError, match=r"0\.weight\.scales"):
            faulty.get_submodule("0").quant_weight()


def test_a_quantiser_that_is_exchanged_for_one_of_another_kind_is_refused() -> None:
    net = network()
    faulty = transformed(net, "weights")
    plain = QuantLinear(40, 33, bias=True)
    faulty.get_submodule("0").weight_quant = plain.weight_quant
    with pytest.raises(SiteError, match="it is not groupwise"):
        faulty(torch.randn(2, 40))


def test_groups_that_share_one_scale_are_refused_where_they_are_struck() -> None:
    assert groups(torch.zeros(3)) is None
    with pytest.raises(TransformError, match="no fault can strike its biases"):
        transformed(network(), "biases")


def test_a_copy_strikes_the_same() -> None:
    net, x = network(), torch.randn(3, 40)
    faulty = transformed(net, MEMORIES)
    twin = copy.deepcopy(faulty)
    with torch.no_grad():
        for model in (faulty, twin):
            model.faults.reset(trial=1)
        assert same_bits(faulty(x), twin(x))


def test_incremental_runs_give_what_full_runs_give() -> None:
    net, x = network(), torch.randn(40, 40)
    faulty = transformed(net, MEMORIES, probability=0.5)
    loader = DataLoader(TensorDataset(x, net(x).argmax(1)), batch_size=8)
    full = FullRunner(faulty, loader)
    incremental = make_runner(faulty, loader, torch.device("cpu"), print)
    assert torch.equal(full.golden().top, incremental.golden().top)
    changed = 0
    for name in faulty.faults.names:
        faulty.faults.select([name])
        for trial in range(3):
            made = []
            for runner in (full, incremental):
                faulty.faults.reset(trial=trial)
                made.append(runner.run())
            assert torch.equal(made[0].top, made[1].top)
            assert torch.equal(made[0].struck, made[1].struck)
            changed += not torch.equal(made[0].top, full.golden().top)
    assert changed > 3


@pytest.mark.skipif(
    is_older("2.13"),
    reason=f"torch {torch.__version__} fails on groupwise layers of Brevitas, with or without us",
)
# Dynamo makes an object of the class of Brevitas's autograd functions, with or without fxfault.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_gives_the_same_faults() -> None:
    torch.manual_seed(0)
    x = inputs_of("linear int")
    faulty = transformed(nn.Sequential(LAYERS["linear int"]()), "weights")
    compiled = torch.compile(faulty, backend="eager")
    with torch.no_grad():
        faulty.faults.reset(trial=4)
        expected = faulty(x)
        faulty.faults.reset(trial=4)
        assert same_bits(compiled(x), expected)


def test_frozen_networks_keep_the_faults() -> None:
    net, x = network(), torch.randn(3, 40)
    faulty = transformed(net, MEMORIES)
    frozen = fxfault.freeze(faulty)
    with torch.no_grad():
        for model in (faulty, frozen):
            model.faults.reset(trial=4)
        assert same_bits(frozen(x), faulty(x))
