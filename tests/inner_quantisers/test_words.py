"""Sites that are quantisers inside layers: their names, and their words against plain integers."""

from __future__ import annotations

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from inner_quantisers.tools import (
    WARNINGS,
    Words,
    calibrated,
    codes_of,
    every_layer,
    example,
    struck,
)
from torch import nn

pytestmark = WARNINGS


def of_pattern(pattern: int, bits: int, signed: bool) -> int:
    return pattern - (1 << bits) if signed and pattern >> (bits - 1) else pattern


@every_layer
def test_the_sites_of_a_layer_have_the_names_of_its_quantisers(name: str) -> None:
    net, _, names = example(name)
    faulty = struck(net)

    assert sorted(faulty.faults.names) == sorted(names)
    inner = [site for site in faulty.faults if site.is_inner]
    assert all(site.name.endswith(f".{site.part}") for site in inner)


@every_layer
@pytest.mark.parametrize("fault", ["lsb_flip", "msb_flip", "full_flip", "stuck_at_1"])
def test_every_word_against_plain_integers(name: str, fault: str, words: Words) -> None:
    net, inputs, _ = example(name)
    settings = {"bit": 1} if fault == "stuck_at_1" else {}
    faulty = struck(net, injection_type=fault, **settings)
    for chosen in (site.name for site in faulty.faults if site.is_inner):
        faulty.faults.select(chosen)
        words.run(faulty, *inputs)
        assert words.used[chosen]
        for clean, used in zip(words.clean[chosen], words.used[chosen], strict=True):
            bits, signed = int(clean.bit_width), bool(clean.signed)
            mask = (1 << bits) - 1
            flips = {"lsb_flip": 1, "msb_flip": 1 << (bits - 1), "full_flip": mask}
            expected = []
            for code in codes_of(clean):
                pattern = code & mask
                pattern = pattern ^ flips[fault] if fault in flips else pattern | 2
                expected.append(of_pattern(pattern, bits, signed))
            assert codes_of(used) == expected
            assert torch.equal(used.scale, clean.scale)
        for other in set(words.used) - {chosen}:
            for clean, used in zip(words.clean[other], words.used[other], strict=True):
                assert torch.equal(clean.value, used.value)


def test_a_convolution_computes_with_the_struck_words(words: Words) -> None:
    net, (x,), _ = example("conv")
    faulty = struck(net, layers="0.input_quant")
    output = words.run(faulty, x)

    layer = net[0]
    (used,) = words.used["0.input_quant"]
    made = F.conv2d(used.value, layer.quant_weight().value, layer.bias)
    assert torch.equal(output, layer.output_quant(made).value)
    assert not torch.equal(output, net(x))


def test_the_output_of_a_layer_is_the_struck_word(words: Words) -> None:
    net, (x,), _ = example("conv")
    output = words.run(struck(net, layers="0.output_quant"), x)

    assert torch.equal(output, words.used["0.output_quant"][0].value)


def test_an_addition_takes_two_struck_words_of_one_site(words: Words) -> None:
    net, inputs, _ = example("add")
    faulty = struck(net, layers="*.input_quant", injection_type="random", probability=50.0)
    output = words.run(faulty, *inputs)

    first, second = words.used["QuantEltwiseAdd.input_quant"]
    assert torch.equal(output, net.output_quant(first.value + second.value).value)
    changes = [
        used.value != clean.value
        for used, clean in zip(
            (first, second), words.clean["QuantEltwiseAdd.input_quant"], strict=True
        )
    ]
    assert not torch.equal(*changes)  # Each call has its own draw.


def test_each_time_step_has_its_own_draw(words: Words) -> None:
    net = calibrated(nn.Sequential(qnn.QuantRNN(8, 64)), torch.randn(5, 2, 8))
    faulty = struck(net, layers="*.gate_acc_quant", injection_type="lsb_flip", probability=50.0)
    words.run(faulty, torch.zeros(5, 2, 8))

    (name,) = (site.name for site in faulty.faults if site.selected)
    changed = [
        tuple((used.value != clean.value).flatten().tolist())
        for used, clean in zip(words.used[name], words.clean[name], strict=True)
    ]
    assert len(changed) == 5
    assert len(set(changed)) == 5


def test_sigmoid_and_tanh_are_sites_by_default() -> None:
    faulty = struck(nn.Sequential(qnn.QuantSigmoid(), qnn.QuantTanh(), qnn.QuantReLU()))

    assert faulty.faults.names == ("0", "1", "2")
