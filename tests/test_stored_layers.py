"""Weights and biases of every layer of Brevitas, struck, against plain integers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas.inject.enum import BitWidthImplType, ScalingImplType
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
    Int8Bias,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightNormL2PerChannelFixedPoint,
    Int8WeightPerChannelFloatDecoupled,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloatMSE,
    Int16Bias,
    Int32Bias,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
)
from brevitas.quant.fixed_point import Int8BiasPerTensorFixedPointInternalScaling
from brevitas.quant.scaled_int import Int8WeightPerChannelFloatHQO
from brevitas.quant.shifted_scaled_int import (
    ShiftedUint8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
    ShiftedUint8WeightPerTensorFloatHQO,
)
from brevitas.quant_tensor import IntQuantTensor
from brevitas_names import needs_1d_batch_norm
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils import _pytree as pytree

import fxfault
from fxfault.errors import SiteError, TransformError
from fxfault.passes import trace
from fxfault.passes.drawing import to_dot
from fxfault.strike.draws import elements_hit, sources

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:brevitas")

STORED = ("weights", "biases")
KINDS = {"weights": ("weight", "weight_quant"), "biases": ("bias", "bias_quant")}
IN = {"return_quant_tensor": True}


def struck(net: nn.Module, **settings: Any) -> Any:
    defaults = {"enabled": True, "apply_during": "eval", "seed": 3, "memory": "weights"}
    defaults |= {"injection_type": "msb_flip", "unsupported": "skip"}
    if "num_faults" not in settings:
        defaults["probability"] = 100.0
    return fxfault.transform(net, {**defaults, **settings})


# -- a layer computed by hand -----------------------------------------------------------------


class ByHand:
    """Stands in for a quantiser of a copy of the network: flips bits by plain integers."""

    def __init__(self, quantiser: Any, hit: Tensor | None, site: Any) -> None:
        self.quantiser, self.hit, self.site = quantiser, hit, site
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "quantiser" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.quantiser, name)

    def __call__(self, *args: Any) -> Any:
        self.asked += 1
        words = self.quantiser(*args)
        return words._replace(value=flipped(words, self.hit, self.site.quantiser.binary))


def flipped(words: Any, hit: Tensor | None, binary: bool) -> Tensor:
    """The values with the most significant bit of some words flipped."""
    bits, signed = round(float(words.bit_width)), bool(words.signed)
    shape = words.value.shape
    scale, zero_point = (p.detach().expand(shape) for p in (words.scale, words.zero_point))
    value = words.value.detach()
    exact = value.double() / scale.double() + zero_point.double()
    codes = [] if binary else [round(x) for x in exact.flatten().tolist()]
    if binary:
        codes = [1 if x > 0 else -1 for x in exact.flatten().tolist()]
    mask = [True] * len(codes) if hit is None else hit.flatten().tolist()
    found = [
        msb_flipped(c, bits, signed, binary) if h else c for c, h in zip(codes, mask, strict=True)
    ]
    made = torch.tensor(found, dtype=torch.float64).reshape(shape)
    if bits > 24:
        return ((made - zero_point.double()) * scale.double()).to(value.dtype)
    faulty = ((made.to(value.dtype) - zero_point) * scale).to(value.dtype)
    return torch.where(torch.tensor(mask).reshape(shape), faulty, value)


def msb_flipped(code: int, bits: int, signed: bool, binary: bool) -> int:
    if binary:
        return -code
    pattern = (code & ((1 << bits) - 1)) ^ (1 << (bits - 1))
    return pattern - (1 << bits) if signed and pattern >> (bits - 1) else pattern


def by_hand(net: nn.Module, faulty: Any) -> tuple[nn.Module, list[ByHand]]:
    """A copy of the network, whose quantisers give the words that the seed hits, flipped."""
    new = copy.deepcopy(net)
    return new, stand_in(new, faulty)


def stand_in(new: nn.Module, faulty: Any) -> list[ByHand]:
    """Put quantisers that flip words by hand into a network, in place of such as it has."""
    modules, stand_ins = dict(new.named_modules()), []
    for site in faulty.faults:
        path, _, parameter = site.name.rpartition(".")
        (quantiser,) = (q for p, q in KINDS.values() if p == parameter)
        tensor = modules[path]._parameters[parameter]
        hit = torch.zeros(math.prod(site.stored.shape), dtype=torch.bool)
        layout = site.stored.layout
        for spread, key, numbers in sources(site, site.stream(), range(1), layout):
            for hits in spread.hits(key, numbers, torch.device("cpu")):
                hit[hits.index] = True
        assert int(hit.sum()) == elements_hit(site, range(5), layout)
        for layer in modules.values():
            if layer._parameters.get(parameter) is tensor and quantiser in layer._modules:
                stand_ins.append(ByHand(layer._modules[quantiser], hit, site))
                layer.__dict__[quantiser] = stand_ins[-1]
    return stand_ins


def run(model: Any, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = model(*inputs)
    leaves = pytree.tree_leaves(found, is_leaf=lambda leaf: isinstance(leaf, IntQuantTensor))
    return tuple(getattr(leaf, "value", leaf) for leaf in leaves if leaf is not None)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {k: v.detach().clone().numpy().tobytes() for k, v in model.state_dict().items()}


def verify(net: nn.Module, inputs: tuple[Any, ...], memory: str, sites: int | None = None) -> Any:
    """Assert every law of stored sites for one network; returns the transformed model."""
    net.eval()
    run(net, inputs)  # Some quantisers take their scale from the first forward.
    before, clean, hand = state_bytes(net), run(net, inputs), copy.deepcopy(net)
    faulty = struck(net, memory=memory)
    assert sites is None or len(faulty.faults) == sites
    assert {site.name for site in faulty.faults} <= set(net.state_dict())
    frozen = fxfault.freeze(faulty)
    for probability in (0.0, 100.0, 40.0):
        for model in (faulty, frozen):
            model.faults.set_probability(probability)
            model.faults.reset()
        stand_ins = stand_in(hand, faulty)
        expected = run(hand, inputs)
        assert all(stand_in.asked for stand_in in stand_ins)
        found = run(faulty, inputs)
        assert same(found, expected), probability
        assert same(found, clean) or probability
        # A flip of a bias of 32 bits may be lost where an output is quantised.
        assert probability != 100.0 or not same(found, clean)
        assert state_bytes(faulty) == before
        for _ in range(2):
            assert same(run(frozen, inputs), expected)
        faulty.faults.reset(1)
        frozen.faults.reset(1)
        assert same(run(frozen, inputs), run(faulty, inputs))
    stripped = fxfault.strip(faulty)
    assert getattr(stripped, "code", "") == getattr(
        trace(net, fxfault.FaultInjectionConfig(memory=(memory,))), "code", ""
    )
    assert same(run(stripped, inputs), clean)
    assert "bit for bit" in str(fxfault.check(faulty, net, *inputs, measure=False))
    assert state_bytes(net) == before
    return faulty


# -- the layers -------------------------------------------------------------------------------

A = {"bias_quant": Int16Bias}


def conv(kind: str, dims: int, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = getattr(qnn, f"Quant{kind}{dims}d")(
            *(2, 4, 3), **{"weight_bit_width": 4, "bias": True, **A, **settings}
        )
        return nn.Sequential(qnn.QuantIdentity(**IN), layer, qnn.QuantReLU())

    return build


def linear(**settings: Any) -> Callable[[], nn.Module]:
    defaults: dict[str, Any] = {"bias": True, "weight_bit_width": 4, **A}

    def build() -> nn.Module:
        merged = {**defaults, **settings}
        if "weight_quant" in settings and "weight_bit_width" not in settings:
            merged.pop("weight_bit_width")
        return nn.Sequential(qnn.QuantIdentity(**IN), qnn.QuantLinear(6, 5, **merged))

    return build


def x(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


IMAGES = {1: x(3, 2, 7), 2: x(3, 2, 7, 6), 3: x(2, 2, 5, 4, 6)}


class Attention(nn.Module):
    def __init__(self, packed: bool, **settings: Any) -> None:
        super().__init__()
        self.quantise = qnn.QuantIdentity(**IN)
        self.mha = qnn.QuantMultiheadAttention(
            8, 2, packed_in_proj=packed, batch_first=True, **settings
        )

    def forward(self, x: Tensor) -> Any:
        x = self.quantise(x)
        return self.mha(x, x, x)[0]


class ScaledDot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (qnn.QuantLinear(6, 6, bias=True, **A, **IN) for _ in range(2))
        self.quantise = qnn.QuantIdentity(**IN)
        self.sdpa = qnn.QuantScaledDotProductAttention()

    def forward(self, x: Tensor) -> Any:
        x = self.quantise(x)
        return self.sdpa(*(getattr(y, "value", y) for y in (self.q(x), self.k(x), x)))


def words(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(2)),)


def recurrent(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(qnn, kind)(4, 3, **settings)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], int, int]] = {}
for _dims in (1, 2, 3):
    LAYERS[f"conv{_dims}d"] = (conv("Conv", _dims), IMAGES[_dims], 1, 1)
    LAYERS[f"transposed{_dims}d"] = (conv("ConvTranspose", _dims), IMAGES[_dims], 1, 1)
LAYERS |= {
    "grouped": (conv("Conv", 2, groups=2), IMAGES[2], 1, 1),
    "same padding": (conv("Conv", 2, padding="same"), IMAGES[2], 1, 1),
    "transposed, per channel": (
        conv("ConvTranspose", 2, weight_scaling_per_output_channel=True),
        *(IMAGES[2], 1, 1),
    ),
    "linear": (linear(), x(3, 6), 1, 1),
    "embedding": (lambda: nn.Sequential(qnn.QuantEmbedding(7, 5)), words(3, 4), 1, 0),
    "embedding, quantised": (
        lambda: nn.Sequential(qnn.QuantEmbedding(7, 5, **IN), linear_after(5)),
        *(words(3, 4), 2, 1),
    ),
    "embedding, max norm": (
        lambda: nn.Sequential(qnn.QuantEmbedding(7, 5, weight_bit_width=4, max_norm=1.0)),
        *(words(3, 4), 1, 0),
    ),
    "scale and bias": (
        lambda: nn.Sequential(
            varied(
                qnn.QuantScaleBias(2, bias=True, bias_quant=Int8BiasPerTensorFloatInternalScaling)
            )
        ),
        *(IMAGES[2], 1, 1),
    ),
    "batch norm 1d": (
        lambda: nn.Sequential(
            varied(
                qnn.BatchNorm1dToQuantScaleBias(2, bias_quant=Int8BiasPerTensorFloatInternalScaling)
            )
        ),
        *(IMAGES[1], 1, 1),
    ),
    "batch norm 2d": (
        lambda: nn.Sequential(
            varied(
                qnn.BatchNorm2dToQuantScaleBias(2, bias_quant=Int8BiasPerTensorFloatInternalScaling)
            )
        ),
        *(IMAGES[2], 1, 1),
    ),
    "rnn": (recurrent("QuantRNN"), x(5, 3, 4), 2, 1),
    "rnn, bidirectional": (
        recurrent("QuantRNN", num_layers=2, bidirectional=True, batch_first=True),
        *(x(5, 3, 4), 8, 4),
    ),
    "rnn, shared": (
        recurrent("QuantRNN", bidirectional=True, shared_input_hidden_weights=True),
        *(x(5, 3, 4), 3, 2),
    ),
    "lstm": (recurrent("QuantLSTM"), x(5, 3, 4), 8, 4),
    "lstm, coupled": (recurrent("QuantLSTM", coupled_input_forget_gates=True), x(5, 3, 4), 6, 3),
    "lstm, bidirectional, shared": (
        recurrent("QuantLSTM", bidirectional=True, shared_input_hidden_weights=True),
        *(x(5, 3, 4), 12, 8),
    ),
    "lstm, own quantisers": (
        recurrent(
            "QuantLSTM",
            shared_intra_layer_weight_quant=False,
            shared_intra_layer_gate_acc_quant=False,
        ),
        *(x(5, 3, 4), 8, 4),
    ),
    "attention, packed": (lambda: Attention(True), x(2, 3, 8), 2, 2),
    "attention": (lambda: Attention(False), x(2, 3, 8), 4, 4),
    "scaled dot product": (ScaledDot, x(2, 3, 6), 2, 2),
}


def linear_after(features: int) -> nn.Module:
    return qnn.QuantLinear(features, 3, bias=True, weight_bit_width=4, **A)


def varied(layer: Any) -> Any:
    """Give a layer weights and biases that are not all alike."""
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(torch.linspace(-1, 1.5, parameter.numel()).reshape(parameter.shape))
    return layer


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        pytest.param(n, m, marks=needs_1d_batch_norm if n == "batch norm 1d" else ())
        for n, (_, _, *counts) in LAYERS.items()
        for m, c in zip(STORED, counts, strict=True)
        if c
    ],
)
def test_every_layer_against_plain_integers(name: str, memory: str) -> None:
    build, inputs, weights, biases = LAYERS[name]
    expected = weights if memory == "weights" else biases
    verify(built(build), inputs, memory, expected)


QUANTISERS: dict[str, dict[str, Any]] = {
    "1 bit": {"weight_quant": SignedBinaryWeightPerTensorConst, "weight_scaling_const": 0.1},
    "ternary": {"weight_quant": SignedTernaryWeightPerTensorConst, "weight_scaling_const": 0.3},
    **{f"{bits} bits": {"weight_bit_width": bits} for bits in (2, 3, 4, 5, 6, 7, 8, 16)},
    "wide range": {"weight_narrow_range": False},
    "per channel": {"weight_scaling_per_output_channel": True},
    "power of two": {"weight_quant": Int8WeightPerTensorFixedPoint},
    "shifted": {"weight_quant": ShiftedUint8WeightPerTensorFloat},
    "shifted, per channel": {"weight_quant": ShiftedUint8WeightPerChannelFloat},
    "shifted, HQO": {"weight_quant": ShiftedUint8WeightPerTensorFloatHQO},
    "HQO": {"weight_quant": Int8WeightPerChannelFloatHQO},
    "MSE": {"weight_quant": Int8WeightPerTensorFloatMSE},
    "A2Q": {"weight_quant": Int8AccumulatorAwareWeightQuant},
    "A2Q+": {"weight_quant": Int8AccumulatorAwareZeroCenterWeightQuant},
    "weight norm": {"weight_quant": Int8WeightNormL2PerChannelFixedPoint},
    "decoupled": {"weight_quant": Int8WeightPerChannelFloatDecoupled},
    "learned bit width": {"weight_bit_width_impl_type": BitWidthImplType.PARAMETER},
    "learned scale": {"weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS},
    "8 bits of bias": {"bias_quant": Int8Bias},
    "32 bits of bias": {"bias_quant": Int32Bias},
    "bias with its own scale": {"bias_quant": Int8BiasPerTensorFloatInternalScaling},
    "bias, power of two": {"bias_quant": Int8BiasPerTensorFixedPointInternalScaling},
    "quantised input": {"input_quant": qnn.QuantIdentity().act_quant.quant_injector},
    "quantised output": {"output_quant": qnn.QuantIdentity().act_quant.quant_injector, **IN},
    "integer input": {
        "input_quant": qnn.QuantIdentity().act_quant.quant_injector,
        "weight_quant": Int8AccumulatorAwareWeightQuant,
    },
}


@pytest.mark.parametrize("memory", STORED)
@pytest.mark.parametrize("name", QUANTISERS)
def test_every_quantiser_against_plain_integers(name: str, memory: str) -> None:
    verify(built(linear(**QUANTISERS[name])), x(3, 6), memory, 1)


# -- networks that share and compute in ways of their own -------------------------------------


def four(i: int = 6, o: int = 6, **settings: Any) -> Any:
    return qnn.QuantLinear(i, o, **{"bias": True, "weight_bit_width": 4, **A, **settings})


class Net(nn.Module):
    """A network with a quantised input and one layer, `a`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.q, self.a = qnn.QuantIdentity(**IN), four(**settings)

    def forward(self, x: Tensor) -> Any:
        return self.a(self.q(x))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = qnn.QuantEmbedding(6, 6, weight_bit_width=4)
        self.fc = qnn.QuantLinear(6, 6, bias=False, weight_bit_width=4)
        self.fc.weight = self.emb.weight

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.emb(x))


class Tied(Net):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.b = four(**settings)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Any:
        return self.b(self.q(super().forward(x)))


class Twice(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(super().forward(x))


class Branch(Net):
    """Keeps its own forward, as it branches on a value."""

    def forward(self, x: Tensor) -> Any:
        return x if x.sum() > 1e9 else super().forward(x)


class Both(Net):
    """A graph calls `a`, and so does the Python code of `branch`."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()
        self.branch.a = self.a

    def forward(self, x: Tensor) -> Any:
        return self.branch(super().forward(x))


class ByName(Net):
    def forward(self, x: Tensor) -> Any:
        return self.a(input=self.q(x))


class Asks(Net):
    """Uses a layer's words without a call of the layer."""

    def forward(self, x: Tensor) -> Any:
        return nn.functional.linear(self.q(x).value, self.a.quant_weight().value)


class AsksAndCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = qnn.QuantEmbedding(6, 6, weight_bit_width=4)

    def forward(self, x: Tensor) -> Any:
        return nn.functional.linear(self.emb(x), self.emb.quant_weight().value)


class AsksBeside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.asks, self.after = Asks(), Net()

    def forward(self, x: Tensor) -> Any:
        return self.after(self.asks(x))


class OwnForward(qnn.QuantLinear):
    def forward(self, x: Any) -> Any:
        x = getattr(x, "value", x)
        return nn.functional.linear(x, self.quant_weight().value * 2, self.bias)


class OwnWeight(qnn.QuantLinear):
    def quant_weight(self, *args: Any, **kwargs: Any) -> Any:
        mask = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0, 1.0])
        return self.weight_quant(self.weight * mask)


class OwnImplementation(qnn.QuantLinear):
    def forward_impl(self, x: Any) -> Any:
        return super().forward_impl(x) + self.quant_weight().value.sum()


class AroundTheQuantiser(qnn.QuantLinear):
    def forward(self, x: Any) -> Any:
        return nn.functional.linear(x, self.weight_quant.tensor_quant(self.weight)[0], self.bias)


def own(kind: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(qnn.QuantIdentity(**IN), kind(6, 6, bias=True, weight_bit_width=4))


def with_hook() -> nn.Module:
    """A hook gives the layer another input than the graph does."""
    net = Net()
    again = qnn.QuantIdentity(bit_width=4, **IN).eval()
    net.a.register_forward_pre_hook(lambda _, args: (again(args[0].value * 2),))
    return net


def clamped_by_hook() -> nn.Module:
    """A hook writes to the weight after the graph could have read it."""
    net = Net()

    def clamp(layer: Any, _: Any) -> None:
        layer.weight.data.clamp_(-0.1, 0.1)

    net.a.register_forward_pre_hook(clamp)
    return net


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "tied": (Tied, {"weights": ("a.weight",), "biases": ("a.bias", "b.bias")}),
    "twice": (Twice, {"weights": ("a.weight",), "biases": ("a.bias",)}),
    "kept": (Branch, {"weights": ("a.weight",), "biases": ("a.bias",)}),
    "graph and code": (
        Both,
        {"weights": ("a.weight",), "biases": ("a.bias",)},
    ),
    "by name": (ByName, {"weights": ("a.weight",), "biases": ("a.bias",)}),
    "asks": (Asks, {"weights": ("a.weight",)}),
    "asks beside": (AsksBeside, {"weights": ("asks.a.weight", "after.a.weight")}),
    "own forward": (own(OwnForward), {"weights": ("1.weight",)}),
    "own weight": (own(OwnWeight), {"weights": ("1.weight",)}),
    "own implementation": (own(OwnImplementation), {"weights": ("1.weight",)}),
    "hook": (with_hook, {"weights": ("a.weight",), "biases": ("a.bias",)}),
    "hook that writes": (clamped_by_hook, {"weights": ("a.weight",), "biases": ("a.bias",)}),
    "root": (
        lambda: four(bias_quant=Int8BiasPerTensorFloatInternalScaling),
        {"weights": ("weight",), "biases": ("bias",)},
    ),
    "root of its own": (lambda: OwnForward(6, 6, bias=True), {"weights": ("weight",)}),
}


@pytest.mark.parametrize(("name", "memory"), [(n, m) for n, (_, ms) in NETS.items() for m in ms])
def test_every_network_against_plain_integers(name: str, memory: str) -> None:
    build, names = NETS[name]
    faulty = verify(built(build), x(3, 6), memory)
    assert faulty.faults.names == names[memory]


@pytest.mark.parametrize("build", [TiedEmbedding, AsksAndCalls])
def test_an_embedding_used_as_a_matrix_is_one_memory(build: Callable[[], nn.Module]) -> None:
    faulty = verify(built(build), (words(3, 4)[0] % 6,), "weights")
    assert faulty.faults.names == ("emb.weight",)


@pytest.mark.parametrize("memory", STORED)
def test_a_network_quantised_by_brevitas(memory: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas's flow uses deprecated calls of its own.
        from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize, quantize
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(36, 5)),
    ).eval()
    image = x(3, 2, 7, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = quantize(preprocess_for_quantize(copy.deepcopy(net)))
    for made in (whole, layerwise_quantize(copy.deepcopy(net))):
        verify(made, image, memory, 3)


def test_a_graph_that_asks_for_words_is_inspected_and_drawn() -> None:
    faulty = struck(built(lambda: nn.Sequential(Asks(), Branch())))
    found = fxfault.inspect(faulty)
    assert [site.name for site in found.sites] == ["0.a.weight", "1.a.weight"]
    assert "0.a.weight_quant" in to_dot(faulty)


def test_tied_weights_whose_words_depend_on_the_input_are_two_memories() -> None:
    net = built(lambda: Tied(weight_quant=Int8AccumulatorAwareWeightQuant, bias_quant=None))
    faulty = struck(net)
    assert faulty.faults.names == ("a.weight", "b.weight")
    fxfault.check(faulty, net, *x(3, 6))


def test_transform_leaves_quantisers_that_count_or_start_alone() -> None:
    """To find out whether tied layers have the same words, their quantisers must run."""
    settings: dict[str, Any] = {
        "weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
        "weight_quant_delay_steps": 3,
    }
    torch.manual_seed(0)
    net = Tied(**settings).train()
    before = state_bytes(net)
    delays = [part for part in net.modules() if hasattr(part, "quant_delay_steps")]
    struck(net)
    assert state_bytes(net) == before
    assert {part.quant_delay_steps for part in delays if part.quant_delay_steps > 0} == {3}


@pytest.mark.parametrize("build", [Net, Branch, with_hook])
@pytest.mark.parametrize("memory", [*STORED, ["weights", "biases"]], ids=str)
def test_a_weight_is_quantised_once_in_each_forward(memory: Any, build: Any) -> None:
    """Else a quantiser that counts forwards, or draws random numbers, would go on twice."""
    net = built(build)
    calls: list[int] = []
    net.a.weight_quant.register_forward_hook(lambda *_: calls.append(1))
    faulty = struck(net, memory=memory)
    run(faulty, x(3, 6))
    run(faulty, x(3, 6))
    assert len(calls) == 2


# -- what has no words, or hides them ---------------------------------------------------------


def parametrized(net: Net) -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 2

    parametrize.register_parametrization(net.a, "weight", Double())


COMPUTED: dict[str, Callable[[Net], Any]] = {
    "parametrized": parametrized,
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net.a),
    "pruned": lambda net: prune.l1_unstructured(net.a, "weight", 0.5),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_refused_or_skipped(name: str) -> None:
    net = built(lambda: nn.Sequential(Net(), Net()))
    COMPUTED[name](net[0])  # type: ignore[arg-type]
    why = "its weight is computed in each forward, by a parametrization or a hook"
    with pytest.raises(TransformError, match=rf"0\.a\.weight \({why}\)"):
        struck(net, unsupported="error")
    faulty = struck(net)
    assert faulty.faults.names == ("1.a.weight",)
    assert faulty.faults.skipped == {"0.a.weight": why}
    assert "bit for bit" in str(fxfault.check(faulty, net, *x(3, 6)))


def test_a_computed_bias_is_refused() -> None:
    net = built(lambda: nn.Sequential(Net(), Net()))
    prune.l1_unstructured(net[0].a, "bias", 0.5)
    with pytest.raises(TransformError, match=r"0\.a\.bias \(its bias is computed"):
        struck(net, memory="biases", unsupported="error")


def test_the_check_finds_words_that_are_not_struck() -> None:
    net = built(lambda: nn.Sequential(AroundTheQuantiser(6, 6, bias=True), four(bias_quant=None)))
    faulty = struck(net)
    with pytest.raises(SiteError, match=r"site 0\.weight: .* called 1 times, .* struck 0 times"):
        fxfault.check(faulty, net, *x(3, 6))


def test_a_part_of_a_quantiser_that_a_graph_calls_is_refused() -> None:
    class Around(Net):
        def forward(self, x: Tensor) -> Any:
            return nn.functional.linear(x, self.a.weight_quant.tensor_quant(self.a.weight)[0])

    net = built(lambda: nn.Sequential(Around(), Net()))
    message = r"0\.a\.weight \(a part of its quantiser is called by itself \(0\.a\.weight_quant\."
    with pytest.raises(TransformError, match=message):
        struck(net, unsupported="error")


def test_a_part_of_a_tensor_is_refused() -> None:
    class Part(qnn.QuantLinear):
        def forward(self, x: Any) -> Any:
            half = self.quant_weight(subtensor_slice_list=[(0, 3), None])
            return nn.functional.linear(x, half.value)

    faulty = struck(built(lambda: nn.Sequential(Part(6, 6, bias=True))))
    with pytest.raises(SiteError, match=r"words have the shape \(3, 6\), and had \(6, 6\)"):
        run(faulty, x(3, 6))


def test_a_parameter_of_another_shape_is_refused() -> None:
    net = built(Net)
    faulty = struck(net)
    net.a.weight = nn.Parameter(torch.randn(4, 6))
    net.a.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(SiteError, match="transform the model again"):
        run(faulty, x(3, 6))


# -- layers, quantisers and hooks that change after transform ---------------------------------


@pytest.mark.parametrize("memory", STORED)
def test_a_hook_that_comes_later_is_obeyed(memory: str) -> None:
    net = built(Net)
    faulty = struck(net, memory=memory, probability=30.0)
    hand, _ = by_hand(net, faulty)
    again = qnn.QuantIdentity(bit_width=4, **IN).eval()
    for layer in (faulty.get_submodule("a"), hand.get_submodule("a")):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: ((again(args[0].value * 2),), kwargs), with_kwargs=True
        )
    assert same(run(faulty, x(3, 6)), run(hand, x(3, 6)))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("bits", [3, 8])
def test_a_replaced_quantiser_is_struck(bits: int, kept: bool) -> None:
    net = built(Branch if kept else Net)
    faulty = struck(net, probability=30.0)
    run(faulty, x(3, 6))
    net.a.weight_quant = four(weight_bit_width=bits).eval().weight_quant
    found = run(faulty, x(3, 6))
    assert faulty.faults[0].bit_width == bits
    assert same(found, run(by_hand(net, faulty)[0], x(3, 6)))
    net.a.weight_quant = four(weight_quant=None, bias_quant=None).eval().weight_quant
    with pytest.raises(SiteError, match=r"a\.weight: its quantiser was replaced.*not quantised"):
        run(faulty, x(3, 6))


@pytest.mark.parametrize("kept", [False, True])
def test_a_replaced_layer_is_struck_and_so_is_its_next_quantiser(kept: bool) -> None:
    net = built(lambda: nn.Sequential(Branch() if kept else Net()))
    faulty = struck(net, probability=30.0)
    new = four(weight_bit_width=6).eval()
    net[0].a = new
    faulty.get_submodule("0").a = new
    assert same(run(faulty, x(3, 6)), run(by_hand(net, faulty)[0], x(3, 6)))
    assert faulty.faults[0].bit_width == 6
    new.weight_quant = four(weight_bit_width=3).eval().weight_quant
    assert same(run(faulty, x(3, 6)), run(by_hand(net, faulty)[0], x(3, 6)))
    assert faulty.faults[0].bit_width == 3


@pytest.mark.parametrize(
    ("build", "name", "new", "why"),
    [
        (Net, "a", {"weight_quant": Int8AccumulatorAwareWeightQuant}, "depends on its quantised"),
        (Net, "a", {"weight_quant": None, "bias_quant": None}, "is not quantised"),
        (Tied, "b", {"weight_bit_width": 6}, "another layer has the same memory"),
    ],
)
def test_a_replaced_layer_that_cannot_be_struck_is_refused(
    build: Any, name: str, new: dict[str, Any], why: str
) -> None:
    net = built(build)
    faulty = struck(net)
    faulty._modules[name] = four(**new).eval()
    with pytest.raises(SiteError, match=rf"a\.weight: its layer was replaced.*{why}"):
        run(faulty, x(3, 6))


def test_a_layer_that_does_not_ask_for_its_words_is_refused() -> None:
    net = built(Net)
    faulty = struck(net, memory=["weights", "biases"])
    inputs = qnn.QuantIdentity(**IN).eval()(*x(3, 6))
    layer = faulty.get_submodule("a")
    layer.export_handler, layer._export_mode = (lambda _: inputs), True
    # Brevitas 0.12 calls this after an export, and has it nowhere.
    layer.__dict__.setdefault("_set_global_is_quant_layer", lambda _: None)
    with pytest.raises(SiteError, match=r"site a\.bias: its QuantLinear did not ask bias_quant"):
        run(faulty, x(3, 6))
    faulty.faults.enabled = False
    assert same(run(faulty, x(3, 6)), (inputs.value,))


# -- words that are struck once a trial -------------------------------------------------------


def test_frozen_words_follow_the_selection_of_all_sites() -> None:
    """`num_faults` is spread over the selected sites, so that one site's faults depend on all."""
    net = built(lambda: nn.Sequential(four(), four(), four()))
    for layer in net:
        layer.bias_quant = four(bias_quant=None).bias_quant
    faulty = struck(net, num_faults=30)
    frozen = fxfault.freeze(faulty)
    found = []
    for layers in (None, ["0.weight", "1.weight"], ["0.weight"], None):
        for model in (faulty, frozen):
            model.faults.select(layers)
        assert same(run(frozen, x(3, 6)), run(faulty, x(3, 6)))
        found.append(run(frozen, x(3, 6)))
    assert same(found[0], found[3])
    assert not same(found[0], found[1])
    assert not same(found[1], found[2])


def test_frozen_words_follow_a_fault_model_that_changes() -> None:
    class Flip(fxfault.FaultModel):
        name, bit = "flip of one bit", 0

        def corrupt(self, codes: Tensor, word: Any, draw: Any) -> Tensor:
            return word.from_pattern(word.to_pattern(codes) ^ (1 << self.bit))

    net = built(lambda: Net(bias_quant=None))
    model = Flip()
    faulty = struck(net)
    faulty.faults.set_fault_model(model)
    frozen = fxfault.freeze(faulty)
    before = run(frozen, x(3, 6))
    model.bit = 2
    assert same(run(frozen, x(3, 6)), run(faulty, x(3, 6)))
    assert not same(run(frozen, x(3, 6)), before)


def test_an_embedding_that_writes_to_its_words_does_not_keep_them() -> None:
    net = built(lambda: nn.Sequential(qnn.QuantEmbedding(7, 5, max_norm=1.0)))
    with torch.no_grad():
        net[0].weight.mul_(3)
    frozen = fxfault.freeze(struck(net, probability=50.0))
    run(frozen, words(3, 4))
    net[0].max_norm = None
    for layer in frozen.modules():
        if isinstance(layer, qnn.QuantEmbedding):
            layer.max_norm = None
    again = struck(net, probability=50.0)
    assert same(run(frozen, words(3, 4)), run(again, words(3, 4)))
