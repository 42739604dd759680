"""Sites that are quantisers inside layers: one edge of the network, one fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from inner_quantisers.tools import (
    SIGNED,
    UNSIGNED,
    WARNINGS,
    Aliased,
    Two,
    Words,
    calibrated,
    codes_of,
    images,
    same,
    struck,
)
from torch import Tensor, nn

import fxfault
from fxfault.errors import SiteError
from fxfault.faults.torch_versions import why_not_compiled

pytestmark = WARNINGS


def pool(x: Any) -> Any:
    return F.max_pool2d(x, 2)


def turn(x: Any) -> Any:
    return x.transpose(2, 3)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(
    ("returns_words", "between"), [(True, same), (False, same), (True, pool), (False, turn)]
)
@pytest.mark.parametrize("layers", [["act"], ["conv.*"], ["act", "conv.*"]])
def test_a_word_that_passes_an_equal_quantiser_is_struck_once(
    layers: list[str], returns_words: bool, between: Any, freeze: bool, words: Words
) -> None:
    """A second flip would undo the first. Whichever site is selected, the word is struck."""
    x = images().abs()
    net = calibrated(Aliased(returns_words, between), x)
    with torch.no_grad():
        clean = net.act.act_quant(x)
        clean = net.act.act_quant(between(clean if returns_words else clean.value))
    faulty = struck(net, layers=layers)
    model = fxfault.freeze(faulty) if freeze else faulty
    words.run(model, x)

    flipped = [code ^ 1 for code in codes_of(clean)]
    found = codes_of(words.used["conv.input_quant"][0])
    if between is pool and "act" in layers:  # The largest of the flipped words.
        value = between(net.act.act_quant(x).value.div(clean.scale).round().long().float())
        assert found != [int(code) for code in value.flatten().tolist()]
        struck_first = (net.act.act_quant(x).value / clean.scale).round().long() ^ 1
        flipped = [int(code) for code in pool(struck_first.float()).flatten().tolist()]
    assert found == flipped
    armed = [site.name for site in model.faults if site.armed]
    assert armed == (["act"] if "act" in layers else ["conv.input_quant"])


class Chain(nn.Module):
    """A word that passes four equal quantisers."""

    def __init__(self, returns_words: bool) -> None:
        super().__init__()
        self.first = qnn.QuantLinear(8, 8, bias=False, output_quant=SIGNED)
        shared = self.first.output_quant
        self.first.return_quant_tensor = returns_words
        self.cat = qnn.QuantCat(input_quant=shared, output_quant=shared)
        self.cat.return_quant_tensor = returns_words
        self.last = qnn.QuantLinear(8, 2, bias=False, input_quant=shared)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.cat([self.first(x)]))


@pytest.mark.parametrize("returns_words", [False, True])
def test_of_equal_quantisers_the_first_that_is_selected_strikes(
    returns_words: bool, words: Words
) -> None:
    x = torch.randn(4, 8)
    net = calibrated(Chain(returns_words), x)
    names = ("first.output_quant", "cat.input_quant", "cat.output_quant", "last.input_quant")
    with torch.no_grad():
        net.first.return_quant_tensor = True
        clean = codes_of(net.first(x))
        net.first.return_quant_tensor = returns_words
    faulty = struck(net)
    assert faulty.faults.names == names
    for count in range(1, 5):
        for chosen in itertools.combinations(names, count):
            faulty.faults.select(chosen)
            words.run(faulty, x)
            assert codes_of(words.used[names[-1]][0]) == [code ^ 1 for code in clean]
            assert [site.name for site in faulty.faults if site.armed] == [chosen[0]]


def test_inspect_says_where_the_words_are_struck() -> None:
    x = images().abs()
    net = calibrated(Aliased(False, same), x)
    faulty = fxfault.transform(
        net, {"enabled": True, "apply_during": "eval", "seed": 0}, example_inputs=x
    )
    faulty(x)
    first, second = fxfault.inspect(faulty).sites

    assert (first.why_unarmed, second.why_unarmed) == (None, "its words are struck at act")
    assert (first.elements, second.elements) == (108, 108)
    assert (first.share, second.share) == (100.0, 0.0)
    assert second.scale == first.scale
    assert (second.bit_width, second.signed, second.samples) == (4, False, "consecutive")
    faulty.faults.select("conv.*")
    assert fxfault.inspect(faulty).sites[1].why_unarmed is None


OTHERS: dict[str, Callable[[], Any]] = {
    "other scale": lambda: UNSIGNED,
    "other sign": lambda: SIGNED,
}


@pytest.mark.parametrize("other", OTHERS)
def test_quantisers_that_differ_strike_both(other: str, words: Words) -> None:
    x = images().abs()
    net = nn.Sequential(
        qnn.QuantReLU(bit_width=8), qnn.QuantConv2d(3, 2, 3, input_quant=OTHERS[other]())
    )
    calibrated(net, x)
    with torch.no_grad():
        net[1].input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.buffer.mul_(0.7)
    faulty = struck(net)
    faulty(x)

    assert [site.armed for site in faulty.faults] == [True, True]


def constant(bits: int, **options: Any) -> Any:
    """A quantiser whose scale is 1/8."""
    made = qnn.QuantIdentity(
        bit_width=bits,
        scaling_impl_type="const",
        min_val=-(2.0 ** (bits - 4)),
        max_val=2.0 ** (bits - 4),
        return_quant_tensor=True,
        **options,
    )
    return made.eval()


@pytest.mark.parametrize(
    ("options", "is_struck_twice"),
    [
        ({}, False),
        ({"narrow_range": True}, True),
        ({"float_to_int_impl_type": "floor"}, True),
        ({"bits": 6}, True),
    ],
)
def test_only_a_quantiser_that_keeps_all_words_passes_them_on(
    options: dict[str, Any], is_struck_twice: bool
) -> None:
    bits = options.pop("bits", 5)
    first = constant(5)
    inner = constant(bits, **options)
    net = nn.Sequential(first, qnn.QuantConv2d(3, 2, 1, input_quant=inner.act_quant)).eval()
    faulty = struck(net)
    faulty(images())
    options["bits"] = bits

    second = faulty.faults["1.input_quant"]
    if "narrow_range" not in options:
        assert first(images()).scale == inner(images()).scale
    assert second.armed == is_struck_twice


def test_a_fault_outside_a_narrow_range_stays_behind_an_equal_quantiser(words: Words) -> None:
    first, inner = constant(5, narrow_range=True), constant(5, narrow_range=True)
    net = nn.Sequential(first, qnn.QuantConv2d(3, 2, 1, input_quant=inner.act_quant)).eval()
    x = torch.full((2, 3, 2, 2), -9.0)
    faulty = struck(net)
    words.run(faulty, x)

    assert set(codes_of(first(x))) == {-15}
    assert set(codes_of(words.used["1.input_quant"][0])) == {-16}
    made = fxfault.compile(faulty, x, backend="aot_eager")
    why_not = "1.input_quant gets words that are struck before, of a narrow range"
    assert (why_not_compiled() or why_not) in made.why_not
    assert torch.equal(made.model(x), faulty(x))


def test_a_value_that_was_written_to_is_a_new_word() -> None:
    class Written(Aliased):
        def forward(self, x: Tensor) -> Any:
            y = self.act(x)
            y.mul_(0.5)
            return self.conv(y)

    x = images().abs()
    faulty = struck(calibrated(Written(False, same), x))
    faulty(x)

    assert [site.armed for site in faulty.faults] == [True, True]


def test_a_tied_quantiser_of_input_and_output_strikes_a_word_once(words: Words) -> None:
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    layer = qnn.QuantCat(output_quant=None, tie_input_output_quant=False)
    layer.output_quant = layer.input_quant
    net = calibrated(Two(layer), x, y)
    faulty = struck(net)
    output = words.run(faulty, x, y)

    assert faulty.faults.names == ("layer.input_quant", "layer.output_quant")
    assert [site.armed for site in faulty.faults] == [True, False]
    both = [net.layer.input_quant(one) for one in (x, y)]
    flipped = [[code ^ 1 for code in codes_of(word)] for word in both]
    rows = [torch.tensor(codes).view(4, 8) for codes in flipped]
    assert torch.equal(output, torch.cat(rows, 1) * both[0].scale)


def test_words_that_look_alike_and_are_not_all_struck_are_refused() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = constant(5), constant(5), constant(5)
            self.conv = qnn.QuantConv2d(6, 2, 1, input_quant=self.c.act_quant)

        def forward(self, x: Tensor) -> Any:
            return self.conv(torch.cat([self.a(x), self.b(x)], 1))

    faulty = struck(Joined().eval(), layers=["a", "conv.*"])
    with pytest.raises(SiteError, match=r"conv\.input_quant: its words come from a or b.*only one"):
        faulty(images())
    for layers in (None, ["a", "b"], ["a"], ["conv.*"]):
        faulty.faults.select(layers)
        faulty(images())


@pytest.mark.parametrize("targets", [["QuantLinear"], ["QuantIdentity", "QuantLinear"]])
def test_layers_that_read_the_same_words_strike_their_own_copies(
    targets: list[str], words: Words
) -> None:
    """The copy that one quantiser makes is not what the next one gets."""

    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = qnn.QuantIdentity(return_quant_tensor=True)
            shared = {"bias": False, "input_quant": self.act.act_quant}
            self.q, self.k = qnn.QuantLinear(8, 8, **shared), qnn.QuantLinear(8, 8, **shared)

        def forward(self, x: Tensor) -> Any:
            x = self.act(x)
            x = torch.cat([x, x], 0)
            return self.q(x) + self.k(x)

    x = torch.randn(4, 8)
    net = calibrated(Projections(), x)
    faulty = struck(net, targets=targets)
    with torch.no_grad():
        expected = [code ^ 1 for code in codes_of(net.act(x)) * 2]
    for chosen in (["q.*", "k.*"], None):
        faulty.faults.select(chosen)
        words.run(faulty, x)
        assert codes_of(words.used["q.input_quant"][0]) == expected
        assert codes_of(words.used["k.input_quant"][0]) == expected


def test_an_entry_of_its_own_strikes_at_the_second_quantiser() -> None:
    x = images().abs()
    net = calibrated(Aliased(False, same), x)
    first = {"injection_type": "lsb_flip", "probability": 100.0, "layers": "act"}
    second = {"injection_type": "bit_flip", "bit": 1, "probability": 100.0, "layers": "conv.*"}
    settings = {"enabled": True, "apply_during": "eval", "seed": 0}
    faulty = fxfault.transform(net, {**settings, "faults": [first, second]})
    faulty(x)
    assert [site.armed for site in faulty.faults] == [True, True]

    faulty = fxfault.transform(net, {**settings, "faults": [{**first, "layers": "*"}, second]})
    with pytest.raises(SiteError, match=r"name act in the `layers` of all entries"):
        faulty(x)
