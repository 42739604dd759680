"""Sites that are quantisers inside layers: their words, and one fault for each edge."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from brevitas.quant import (
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant_tensor import IntQuantTensor, QuantTensor
from brevitas_names import float_quant
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import Attention, Recurrent

import fxfault
from fxfault.errors import SiteError, TransformError
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.incremental.runner import IncrementalRunner
from fxfault.passes import diff, trace
from fxfault.passes.layer_quantisers import StruckQuantiser, struck_of
from fxfault.passes.segments import split_at_sites

# Brevitas warns of shared quantisers and of zero points.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Keyword arguments are being passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Computing zero point:UserWarning"),
    pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning"),
]

SIGNED, UNSIGNED = Int8ActPerTensorFloat, Uint8ActPerTensorFloat
GATES = (
    *("cell_state", "input_acc", "forget_acc", "cell_acc", "output_acc", "input_sigmoid"),
    *("forget_sigmoid", "cell_tanh", "output_sigmoid", "hidden_state_tanh", "output"),
)


def calibrated(net: nn.Module, *inputs: Any) -> Any:
    torch.manual_seed(0)
    net.train()
    for _ in range(3):
        net(*inputs)
    return net.eval()


def struck(net: nn.Module, **settings: Any) -> Any:
    defaults = {"enabled": True, "apply_during": "eval", "seed": 3}
    if "num_faults" not in settings:
        defaults["probability"] = 100.0
    return fxfault.transform(net, {**defaults, "injection_type": "lsb_flip", **settings})


def images(samples: int = 6, channels: int = 3) -> Tensor:
    return torch.randn(samples, channels, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def quant_cat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `QuantCat` run: Brevitas 0.13 calls a function that it has moved."""
    monkeypatch.setattr(QuantTensor, "cat", staticmethod(IntQuantTensor.cat), raising=False)


class Two(nn.Module):
    """A layer with two inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor) -> Any:
        if isinstance(self.layer, qnn.QuantCat):
            return self.layer([x, y])
        return self.layer(x, y)


# -- the words, against plain integers --------------------------------------------------------


class Words:
    """The words that the struck quantisers of a model make: clean ones and those that are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clean: dict[str, list[Any]] = {}
        self.used: dict[str, list[Any]] = {}
        call = StruckQuantiser.__call__

        def spy(stand_in: StruckQuantiser, *args: Any, **kwargs: Any) -> Any:
            with_faults = call(stand_in, *args, **kwargs)
            self.clean.setdefault(stand_in.site.name, []).append(stand_in.quantiser(*args))
            self.used.setdefault(stand_in.site.name, []).append(with_faults)
            return with_faults

        monkeypatch.setattr(StruckQuantiser, "__call__", spy)

    def run(self, model: nn.Module, *inputs: Any) -> Any:
        self.clean.clear()
        self.used.clear()
        with torch.no_grad():
            return model(*inputs)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    return Words(monkeypatch)


def codes_of(word: Any) -> list[int]:
    codes = (word.value.double() / word.scale.double() + word.zero_point.double()).round()
    found: list[int] = codes.long().flatten().tolist()
    return found


def of_pattern(pattern: int, bits: int, signed: bool) -> int:
    return pattern - (1 << bits) if signed and pattern >> (bits - 1) else pattern


def narrow(**options: Any) -> dict[str, Any]:
    return {"bit_width": 4, **options}


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "conv": (
        lambda: nn.Sequential(
            qnn.QuantConv2d(3, 4, 3, input_quant=SIGNED, output_quant=SIGNED, output_bit_width=5)
        ),
        (4, 3, 6, 6),
        ["0.input_quant", "0.output_quant"],
    ),
    "conv1d": (
        lambda: nn.Sequential(qnn.QuantConv1d(3, 4, 3, output_quant=UNSIGNED)),
        (4, 3, 6),
        ["0.output_quant"],
    ),
    "conv_transpose": (
        lambda: nn.Sequential(qnn.QuantConvTranspose2d(3, 2, 3, input_quant=SIGNED)),
        (4, 3, 6, 6),
        ["0.input_quant"],
    ),
    "linear": (
        lambda: nn.Sequential(
            qnn.QuantLinear(
                8, 5, bias=True, input_quant=ShiftedUint8ActPerTensorFloat, input_bit_width=3
            )
        ),
        (4, 8),
        ["0.input_quant"],
    ),
    "activation": (
        lambda: nn.Sequential(qnn.QuantReLU(bit_width=4, input_quant=SIGNED, input_bit_width=6)),
        (4, 8),
        ["0.input_quant", "0"],
    ),
    "add": (
        lambda: qnn.QuantEltwiseAdd(),
        (4, 8),
        ["QuantEltwiseAdd.input_quant", "QuantEltwiseAdd.output_quant"],
    ),
    "cat": (
        lambda: Two(qnn.QuantCat()),
        (4, 8),
        ["layer.input_quant", "layer.output_quant"],
    ),
    "lstm": (
        lambda: nn.Sequential(qnn.QuantLSTM(8, 4)),
        (3, 4, 8),
        ["0.layers.0.0.io_quant", *(f"0.layers.0.0.cell.{name}_quant" for name in GATES)],
    ),
    "coupled_lstm": (
        lambda: nn.Sequential(qnn.QuantLSTM(8, 4, coupled_input_forget_gates=True)),
        (3, 4, 8),
        [
            "0.layers.0.0.io_quant",
            *(f"0.layers.0.0.cell.{name}_quant" for name in GATES if "forget" not in name),
        ],
    ),
    "rnn": (
        lambda: nn.Sequential(qnn.QuantRNN(8, 4, bidirectional=True)),
        (3, 4, 8),
        [
            f"0.layers.0.{direction}.{name}_quant"
            for direction in range(2)
            for name in ("io", "cell.gate_acc", "cell.output")
        ],
    ),
    "attention": (
        lambda: Attention(),
        (5, 3, 8),
        [
            "act",
            "attention.in_proj.input_quant",
            *(f"attention.{name}_quant" for name in ("attn_output_weights", "q_scaled")),
            *(f"attention.{name}_quant" for name in ("k_transposed", "v")),
            "attention.out_proj.input_quant",
            "out",
        ],
    ),
}


def example(name: str) -> tuple[Any, tuple[Tensor, ...], list[str]]:
    build, shape, names = LAYERS[name]
    torch.manual_seed(0)
    count = 2 if name in ("add", "cat") else 1
    inputs = tuple(torch.randn(shape) for _ in range(count))
    return calibrated(build(), *inputs), inputs, names


every_layer = pytest.mark.parametrize("name", LAYERS)


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


# -- one edge, one fault ----------------------------------------------------------------------


class Aliased(nn.Module):
    """A convolution that takes its words from an activation layer with the same quantiser."""

    def __init__(self, returns_words: bool, between: Callable[[Any], Any]) -> None:
        super().__init__()
        self.act = qnn.QuantReLU(bit_width=4, return_quant_tensor=returns_words)
        self.conv = qnn.QuantConv2d(3, 2, 1, input_quant=self.act.act_quant)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.conv(self.between(self.act(x)))


def pool(x: Any) -> Any:
    return F.max_pool2d(x, 2)


def turn(x: Any) -> Any:
    return x.transpose(2, 3)


def same(x: Any) -> Any:
    return x


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
    assert "1.input_quant gets words that are struck before, of a narrow range" in made.why_not
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


# -- what must not change ---------------------------------------------------------------------


class Residual(nn.Module):
    """Inner quantisers of many kinds, and two equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = qnn.QuantConv2d(3, 4, 3, padding=1, input_quant=SIGNED, output_quant=SIGNED)
        self.relu = qnn.QuantReLU(bit_width=6)
        self.b = qnn.QuantConv2d(4, 4, 3, padding=1, input_quant=self.relu.act_quant)
        self.add = qnn.QuantEltwiseAdd()
        self.fc = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.a(x))
        return self.fc(self.add(x, self.b(x)).flatten(1))


def residual() -> Any:
    torch.manual_seed(0)
    return calibrated(Residual(), images())


NAMES = (
    *("a.input_quant", "a.output_quant", "relu", "b.input_quant"),
    *("add.input_quant", "add.output_quant", "fc.input_quant"),
)


def result(output: Any) -> Tensor:
    made: Tensor = output[0] if isinstance(output, tuple) else output
    return made


@every_layer
def test_without_faults_the_model_is_the_given_one(name: str) -> None:
    net, inputs, _ = example(name)
    before = copy.deepcopy(net.state_dict())
    faulty = struck(net, probability=0.0)

    # `check` also counts the calls of each quantiser against the strikes.
    found = fxfault.check(faulty, net, *inputs)
    assert found.modes == ("eval", "train")
    assert found.not_called == ()
    assert torch.equal(result(faulty(*inputs)), result(net(*inputs)))
    assert list(faulty.state_dict()) == list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@every_layer
def test_strip_gives_the_traced_model_back(name: str) -> None:
    net, inputs, _ = example(name)
    faulty = struck(net)
    with_faults = result(faulty(*inputs))
    stripped = fxfault.strip(faulty)

    if hasattr(stripped, "code"):
        assert stripped.code == trace(net).code
    assert torch.equal(result(stripped(*inputs)), result(net(*inputs)))
    assert all(struck_of(module) is None for module in (*stripped.modules(), *net.modules()))
    assert all(m.fast_mode for m in (*net.modules(), *stripped.modules()) if hasattr(m, "cell"))
    faulty.faults.reset()
    assert torch.equal(result(faulty(*inputs)), with_faults)


@pytest.mark.parametrize("name", [*LAYERS, "residual"])
def test_a_frozen_model_strikes_the_same_words(name: str) -> None:
    net, inputs = (residual(), (images(),)) if name == "residual" else example(name)[:2]
    faulty = struck(net, probability=10.0, injection_type="random")
    frozen = fxfault.freeze(faulty)
    with torch.no_grad():
        for trial in range(3):
            faulty.faults.reset(trial)
            frozen.faults.reset(trial)
            found = result(frozen(*inputs))
            assert torch.equal(found, result(faulty(*inputs)))
            assert not torch.equal(found, result(net(*inputs)))


def test_a_copy_strikes_the_same_words() -> None:
    faulty = struck(residual(), probability=10.0)
    twin = copy.deepcopy(faulty)

    assert torch.equal(twin(images()), faulty(images()))
    twin.faults.enabled = False
    assert not torch.equal(twin(images()), faulty(images()))


def test_the_diff_names_what_is_struck_inside() -> None:
    notes = [line for line in diff(struck(residual())).splitlines() if line.startswith("# ")]

    assert notes == [f"# {name}: struck inside the layer" for name in NAMES if name != "relu"]


def test_the_drawing_shows_the_faults_inside() -> None:
    text = fxfault.passes.to_dot(struck(residual()))

    assert all(f"FAULT {number}: {name}" in text for number, name in enumerate(NAMES))


@pytest.mark.parametrize("layers", [None, ["b.*"], ["relu", "b.*"], ["fc.*"], ["add.*"]])
def test_incremental_runs_predict_what_full_runs_do(layers: Any) -> None:
    inputs = images(36)
    data = DataLoader(TensorDataset(inputs, torch.zeros(36).long()), batch_size=8)
    faulty = struck(residual(), probability=0.3, injection_type="random", layers=layers)
    for model in (faulty, fxfault.freeze(faulty)):
        starts = [segment.site.name for segment in split_at_sites(model)[1:] if segment.site]
        assert starts == ["a.input_quant", *NAMES[2:5], "fc.input_quant"]
        runner, full = IncrementalRunner(model, data), FullRunner(model, data)
        for trial in range(3):
            model.faults.reset(trial)
            found = runner.run()
            model.faults.reset(trial)
            assert torch.equal(found.top, full.run().top)
        assert runner.why_full is None


def test_the_faults_of_a_sample_do_not_depend_on_its_batch() -> None:
    faulty = struck(residual(), probability=5.0)
    faulty.faults.measure(images(12))
    whole = faulty(images(12))
    faulty.faults.reset()
    parts = torch.cat([faulty(part) for part in images(12).split([5, 4, 3])])

    assert torch.allclose(whole, parts, atol=1e-5)


def test_compiled_code_strikes_the_same_words() -> None:
    faulty = struck(residual(), probability=10.0)
    faulty.faults.measure(images())
    made = fxfault.compile(faulty, images(), backend="aot_eager")
    if not made.compiled:
        assert made.why_not.startswith("torch.compile failed: ")
    with torch.no_grad():
        for trial in range(3):
            made.model.faults.reset(trial)
            faulty.faults.reset(trial)
            assert torch.equal(made.model(images()), faulty(images()))


@pytest.mark.parametrize("unit", ["element", "bit"])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_number_of_faults_counts_each_word_once(count: int, unit: str, words: Words) -> None:
    x = images().abs()
    net = calibrated(Aliased(False, same), x)
    settings = {"injection_type": "bit_flip", "rate_unit": unit}
    faulty = struck(net, num_faults=count, **settings, bit=0 if unit == "element" else None)
    words.run(faulty, x)

    clean, used = codes_of(net.act.act_quant(x)), codes_of(words.used["conv.input_quant"][-1])
    flips = [bin(a ^ b).count("1") for a, b in zip(clean, used, strict=True)]
    assert [sum(flips[n : n + 108]) for n in range(0, 648, 108)] == [count] * 6


def test_broken_units_strike_inside_a_layer(words: Words) -> None:
    net, (x,), _ = example("linear")
    words.run(struck(net, hw_mask=True, frequency_value=4, probability=25.0), x)
    changed = words.used["0.input_quant"][0].value != words.clean["0.input_quant"][0].value

    assert torch.equal(changed[:, :4], changed[:, 4:])
    assert (changed == changed[:1]).all()


def test_statistics_count_each_word_once() -> None:
    x = images().abs()
    faulty = struck(calibrated(Aliased(False, same), x), track_statistics=True)
    faulty(x)
    stats = faulty.faults.statistics.layer_stats.values()

    assert [one.total_activations for one in stats] == [6 * 108, 0]
    assert [one.injected_count for one in stats] == [6 * 108, 0]


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_gradients_pass_struck_words(mode: str) -> None:
    net = calibrated(
        nn.Sequential(qnn.QuantLinear(8, 3, bias=False, input_quant=SIGNED)),
        images(4, 1).flatten(1)[:, :8],
    )
    x = torch.randn(4, 8).clamp(-0.5, 0.5).requires_grad_()
    faulty = struck(net, probability=50.0, gradient_mode=mode, injection_type="lsb_flip")
    faulty(x).sum().backward()
    found, x.grad = x.grad, None
    net(x).sum().backward()

    assert x.grad is not None
    assert found is not None
    if mode == "ste":
        assert torch.equal(found, x.grad)
    else:
        assert 0 < int((found == 0).sum()) < found.numel()
        assert torch.equal(found[found != 0], x.grad[found != 0])


def test_a_checkpoint_repeats_the_faults_and_what_passes_on() -> None:
    class Repeated(nn.Module):
        """One quantiser gets a word that is struck already, and then one that is not."""

        def __init__(self, checkpoint: bool) -> None:
            super().__init__()
            self.act = qnn.QuantReLU(bit_width=4)
            self.add = qnn.QuantEltwiseAdd(input_quant=self.act.act_quant, output_quant=None)
            self.checkpoint = checkpoint

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(x)
            if not self.checkpoint:
                return self.add(y, x) * x
            run = torch.utils.checkpoint.checkpoint
            made: Any = run(lambda y, x: self.add(y, x) * x, y, x, use_reentrant=False)
            return made  # type: ignore[no-any-return]

    gradients = []
    for checkpoint in (False, True):
        net = calibrated(Repeated(checkpoint), images().abs())
        faulty = struck(net, apply_during="both", probability=30.0, gradient_mode="zero_faulty")
        x = images().abs().requires_grad_()
        faulty(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


# -- which quantisers -------------------------------------------------------------------------


def test_targets_choose_the_layers() -> None:
    net = residual()
    of_layers = {
        "QuantReLU": ("relu",),
        "QuantConv2d": ("a.input_quant", "a.output_quant", "b.input_quant"),
        "QuantEltwiseAdd": ("add.input_quant", "add.output_quant"),
        "QuantLinear": ("fc.input_quant",),
        "QuantInputOutputLayer": tuple(name for name in NAMES if name != "relu"),
    }
    for target, names in of_layers.items():
        assert struck(net, targets=[target]).faults.names == names
    assert struck(net, targets=list(of_layers)).faults.names == NAMES == struck(net).faults.names
    lstm = struck(calibrated(Recurrent(), torch.randn(5, 3, 8)), targets=["QuantLSTM"])
    assert len(lstm.faults) == 12
    with pytest.raises(TransformError, match="it is not a Brevitas activation layer"):
        struck(nn.Sequential(qnn.QuantReLU(), nn.Linear(2, 2)), targets=["Linear"])


def test_weights_and_activations_stand_in_execution_order() -> None:
    net = residual()
    faulty = struck(net, memory=["weights", "activations"], probability=5.0)

    assert faulty.faults.names[:4] == ("a.input_quant", "a.weight", "a.output_quant", "relu")
    fxfault.check(faulty, net, images())
    assert not torch.equal(faulty(images()), net(images()))
    only = struck(net, memory="weights")
    assert not any(site.is_inner for site in only.faults)


def test_a_network_without_inner_quantisers_has_the_same_sites_and_layers() -> None:
    net = nn.Sequential(qnn.QuantIdentity(), qnn.QuantConv2d(3, 4, 3), qnn.QuantReLU()).eval()
    faulty = struck(net)

    assert faulty.faults.names == ("0", "2")
    assert faulty.get_submodule("1") is net[1]
    assert faulty.faults.edges is None


@pytest.mark.parametrize("unsupported", ["error", "skip"])
def test_a_quantiser_that_is_not_an_integer_one_is_refused_or_listed(unsupported: str) -> None:
    net = nn.Sequential(
        qnn.QuantReLU(),
        qnn.QuantLinear(8, 4, bias=False, input_quant=float_quant.Fp8e4m3ActPerTensorFloat),
    )
    if unsupported == "error":
        with pytest.raises(TransformError, match=r"1\.input_quant \(its quantiser is not an int"):
            struck(net)
        return
    faulty = struck(net, unsupported="skip")
    assert faulty.faults.names == ("0",)
    assert "1.input_quant" in faulty.faults.skipped
    assert fxfault.inspect(faulty).skipped[0].type == "QuantLinear"


def test_coupled_gates_without_a_quantised_sigmoid_are_refused() -> None:
    net = qnn.QuantLSTM(8, 4, coupled_input_forget_gates=True, sigmoid_quant=None)
    with pytest.raises(TransformError, match=r"layers\.0\.0 \(its input and forget gates are cou"):
        struck(nn.Sequential(net))


def test_a_layer_that_python_code_calls_twice_draws_twice(words: Words) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = qnn.QuantLinear(8, 8, bias=False, input_quant=SIGNED)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                x = self.fc(x) * 0 + x
            return self.fc(x)  # type: ignore[no-any-return]

    net = calibrated(Branching(), torch.randn(16, 8))
    faulty = struck(net, probability=50.0)
    words.run(faulty, torch.randn(16, 8))
    first, second = (
        used.value != clean.value
        for used, clean in zip(
            words.used["fc.input_quant"], words.clean["fc.input_quant"], strict=True
        )
    )

    assert not torch.equal(first, second)


# -- surgery ----------------------------------------------------------------------------------


def test_a_new_layer_is_struck_in_place_of_the_old_one() -> None:
    faulty = struck(residual(), layers="fc.*")
    new = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED, input_bit_width=4)
    calibrated(nn.Sequential(new), torch.randn(8, 144))
    faulty.fc = new
    found = faulty(images())
    assert faulty.faults["fc.input_quant"].bit_width == 4
    faulty.faults.enabled = False
    assert not torch.equal(found, faulty(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"fc\.input_quant: its layer was replaced.*its quantiser is disabled"),
        (
            {"input_quant": SIGNED, "output_quant": SIGNED},
            r"output_quant: a QuantLinear was put into the model after transform",
        ),
    ],
)
def test_a_new_layer_with_other_quantisers_is_refused(
    options: dict[str, Any], message: str
) -> None:
    faulty = struck(residual())
    faulty.fc = qnn.QuantLinear(144, 5, bias=True, **options).eval()
    with pytest.raises(SiteError, match=message):
        faulty(images())


@pytest.mark.parametrize("memory", ["activations", ["activations", "weights"]])
def test_a_new_quantiser_in_a_layer_is_struck_in_place_of_the_old_one(memory: Any) -> None:
    faulty = struck(residual(), memory=memory, layers="fc.*")
    faulty(images())
    other = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED, input_bit_width=4)
    calibrated(nn.Sequential(other), torch.randn(8, 144))
    faulty.fc.input_quant = other.input_quant
    site = faulty.faults["fc.input_quant"]
    faulty.faults.select("fc.input_quant")

    found = faulty(images())

    assert isinstance(faulty.fc.input_quant, StruckQuantiser)
    assert site.bit_width == 4
    faulty.faults.enabled = False
    assert not torch.equal(found, faulty(images()))


def test_a_quantiser_without_a_site_that_is_put_into_a_layer_is_refused() -> None:
    faulty = struck(residual())
    other = qnn.QuantLinear(144, 5, bias=True, output_quant=SIGNED)
    faulty.fc.output_quant = other.output_quant
    with pytest.raises(SiteError, match=r"output_quant: a QuantLinear was put into the model"):
        faulty(images())
    faulty.faults.enabled = False
    faulty(images())


def test_a_layer_with_a_new_quantiser_may_replace_another_if_only_weights_are_struck() -> None:
    faulty = struck(residual(), memory="weights")
    new = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED, output_quant=SIGNED)
    faulty.fc = calibrated(nn.Sequential(new), torch.randn(8, 144))[0]
    found = faulty(images())
    faulty.faults.enabled = False
    assert not torch.equal(found, faulty(images()))


# -- models of Brevitas's own flow ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_layerwise_quantize_has_a_site_for_each_layer_that_computes() -> None:
    from brevitas.graph.quantize import layerwise_quantize

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )
    quantised = calibrated(layerwise_quantize(net), images())
    faulty = struck(quantised, probability=10.0)

    assert faulty.faults.names == ("0.input_quant", "2.input_quant", "4.input_quant")
    assert fxfault.check(faulty, quantised, images()).not_called == ()
    assert not torch.equal(faulty(images()), quantised(images()))
