"""A frozen model computes what the model computes, bit for bit, and notices when it must not."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas.core.quant.delay import _DelayQuant
from brevitas.proxy.runtime_quant import DynamicActQuantProxyFromInjector
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8BiasPerTensorFloatInternalScaling,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int32Bias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryActPerTensorConst,
    SignedTernaryWeightPerTensorConst,
    Uint8ActPerTensorFloat,
)
from brevitas_names import HARD_SWISH, float_quant
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO, Chain, Entry

import fxfault
from fxfault.cli import evaluate
from fxfault.errors import FreezeError
from fxfault.evaluation import accuracy
from fxfault.models import build_model
from fxfault.passes import FreezeLayers, TracedModule, diff, frozen_parts, probe, refresh
from fxfault.quantisers.frozen_layers import FrozenLayer

FAULTS = {
    "enabled": True,
    "probability": 5.0,
    "apply_during": "both",
    "seed": 3,
    "track_statistics": True,
}


def value(output: Any) -> Any:
    return output.value if hasattr(output, "value") else output


def same_bits(a: Any, b: Any) -> bool:
    """Same type, same values to the last bit, same QuantTensor; all NaN are one."""
    if type(a) is not type(b):
        return False
    if hasattr(a, "_fields"):
        return all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return bool(torch.equal(a, b)) if isinstance(a, Tensor) else bool(a == b)
    same_sign = torch.equal(a.nan_to_num(7).signbit(), b.nan_to_num(7).signbit())
    return a.stride() == b.stride() and same_sign and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def ready(model: nn.Module, *inputs: Any) -> nn.Module:
    """Calibrate a model and put it in eval mode."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of Brevitas, about zero points of accumulators.
        model.train()(*inputs)
    return model.eval()


def what(model: nn.Module) -> dict[str, str]:
    return {part.path: part.what or part.why_not for part in frozen_parts(model)}


@torch.no_grad()
def check(model: nn.Module, *inputs: Any, times: int = 2) -> nn.Module:
    """A model and its frozen twin must agree; returns the twin."""
    frozen = fxfault.freeze(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(times):
            assert same_bits(frozen(*inputs), model(*inputs))
    return frozen


def test_a_forward_of_its_own_is_kept_where_the_layer_is_the_whole_model() -> None:
    x = torch.linspace(0, 1, 8)[None]
    layer = ready(qnn.QuantReLU(bit_width=4), x)
    own = layer.forward
    layer.forward = lambda x: own(x) * 2  # type: ignore[method-assign]
    faulty = fxfault.transform(layer, FAULTS)
    frozen = check(faulty, x)
    assert what(frozen) == {"": "it has a forward of its own"}
    assert vars(fxfault.strip(frozen))["forward"] is vars(layer)["forward"]


# -- whole networks -------------------------------------------------------------------------


LEFT = {
    # Its own forward begins the clock.
    "recurrent": 8,  # The gates of an LSTM.
    "attention": 1,  # Quantisers that are disabled.
    "vit": 2,
}


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_frozen_network_gives_the_same_bits_faults_and_statistics(entry: Entry) -> None:
    model, x = entry(), entry.input()
    ready(model, x)
    faulty = fxfault.transform(model, FAULTS)
    texts, keys = graph_texts(faulty), list(faulty.state_dict())
    frozen = check(faulty, x)
    assert frozen.faults.statistics.to_dict() == faulty.faults.statistics.to_dict()
    left = [part for part in frozen_parts(frozen) if not part.what]
    assert len(left) == LEFT.get(entry.name, 0), left
    assert graph_texts(frozen) == graph_texts(faulty) == texts
    state, expected = frozen.state_dict(), faulty.state_dict()
    assert list(state) == list(expected) == keys
    assert all(same_bits(state[key], expected[key]) for key in keys)
    assert fxfault.thaw(frozen) is faulty
    assert not any(isinstance(module, FrozenLayer) for module in faulty.modules())


def graph_texts(model: nn.Module) -> list[str]:
    traced = [module for module in model.modules() if isinstance(module, TracedModule)]
    return [str(graph) for module in traced for graph in module.graphs]


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_network_that_is_not_transformed_is_frozen_too(entry: Entry) -> None:
    model, x = entry(), entry.input()
    check(ready(model, x), x, times=1)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("quant_digits", 1, 8),
        ("quant_lenet", 1, 28),
        ("quant_cnv", 3, 32),
        ("quant_resnet20", 3, 8),
    ],
)
def test_built_in_networks_are_frozen_whole(name: str, channels: int, side: int, bits: int) -> None:
    torch.manual_seed(0)
    model = build_model(
        name,
        num_classes=10,
        in_channels=channels,
        image_size=(side, side),
        weight_bit_width=bits,
        act_bit_width=bits,
    )
    x = torch.randn(3, channels, side, side)
    frozen = check(fxfault.transform(ready(model, x), FAULTS), x)
    assert set(what(frozen).values()) == {"weights", "activation"}


@pytest.mark.parametrize("batch", [1, 5, 16])
@pytest.mark.parametrize("settings", [{"hw_mask": True, "frequency_value": 7}, {"mode": "layer"}])
def test_faults_are_those_of_the_model_whatever_the_settings(
    convnet: nn.Module, batch: int, settings: dict[str, Any]
) -> None:
    faulty = fxfault.transform(convnet, {**FAULTS, "probability": 30.0, **settings})
    frozen = check(faulty, torch.randn(batch, 3, 6, 6), times=3)
    assert frozen.faults.statistics.to_dict() == faulty.faults.statistics.to_dict()


# -- activations ----------------------------------------------------------------------------


class LearnedWidth(Int8ActPerTensorFloat):
    bit_width_impl_type = "parameter"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "signed": lambda: qnn.QuantIdentity(bit_width=4),
    "narrow": lambda: qnn.QuantIdentity(bit_width=2, narrow_range=True),
    "wide": lambda: qnn.QuantIdentity(bit_width=16),
    "rectified": lambda: qnn.QuantReLU(bit_width=3),
    "one bit, rectified": lambda: qnn.QuantReLU(bit_width=1),
    "unsigned without a ReLU": lambda: qnn.QuantIdentity(Uint8ActPerTensorFloat, bit_width=3),
    "hard tanh": lambda: qnn.QuantHardTanh(bit_width=3, min_val=-1.0, max_val=1.0),
    "sigmoid": lambda: qnn.QuantSigmoid(bit_width=4),
    "tanh": lambda: qnn.QuantTanh(bit_width=4),
    "fixed point": lambda: qnn.QuantIdentity(Int8ActPerTensorFixedPoint),
    "zero point": lambda: qnn.QuantIdentity(ShiftedUint8ActPerTensorFloat),
    "learned width": lambda: qnn.QuantIdentity(LearnedWidth),
    "constant": lambda: qnn.QuantReLU(bit_width=4, scaling_impl_type="const", max_val=3.0),
    "floor": lambda: qnn.QuantIdentity(bit_width=4, float_to_int_impl_type="floor"),
    "channels": lambda: qnn.QuantReLU(
        bit_width=4,
        scaling_impl_type="parameter",
        scaling_init=2.0,
        scaling_per_output_channel=True,
        per_channel_broadcastable_shape=(1, 3, 1, 1),
    ),
    "binary": lambda: qnn.QuantIdentity(SignedBinaryActPerTensorConst),
    "ternary": lambda: qnn.QuantIdentity(SignedTernaryActPerTensorConst),
}
if HARD_SWISH is not None:
    ACTIVATIONS["hard swish"] = lambda: HARD_SWISH(bit_width=4)


def activation_input() -> Tensor:
    x = torch.randn(4, 3, 8, 9, generator=torch.Generator().manual_seed(1)) * 2
    x[0, 0, 0, :6] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), -1e-9])
    x[1] = (x[1] * 4).round() / 8  # On codes, and halfway between them.
    return x


@pytest.mark.parametrize("quant_tensor", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_gives_the_same_bits(kind: str, quant_tensor: bool) -> None:
    layer = ACTIVATIONS[kind]()
    layer.return_quant_tensor = quant_tensor
    model = ready(nn.Sequential(layer), torch.randn(16, 3, 8, 9))
    for x in (activation_input(), activation_input().to(memory_format=torch.channels_last)):
        frozen = check(model, x)
        assert what(frozen) == {"0": "activation"}


def test_activation_on_codes_and_halfway_between_them_gives_the_same_bits() -> None:
    for layer in (qnn.QuantReLU, qnn.QuantHardTanh, qnn.QuantIdentity):
        options = {"scaling_impl_type": "const", "min_val": -2.0, "max_val": 1.5, "bit_width": 3}
        quantiser = layer(**options, return_quant_tensor=True)
        model = nn.Sequential(quantiser).eval()
        scale = model(torch.zeros(1)).scale
        frozen = check(model, torch.arange(-12, 12, 0.125) * scale)
        assert what(frozen) == {"0": "activation"}


def test_activation_of_another_dtype_is_computed_as_before() -> None:
    model = ready(nn.Sequential(qnn.QuantReLU(bit_width=4)), torch.randn(16, 3))
    check(model, torch.randn(4, 3).double())
    check(model, torch.randn(4, 3).bfloat16())


def test_activation_that_takes_a_quant_tensor() -> None:
    layers = [qnn.QuantIdentity(return_quant_tensor=True), qnn.QuantReLU(bit_width=3)]
    model = ready(nn.Sequential(*layers), torch.randn(16, 3))
    check(model, torch.randn(4, 3))


def test_activation_takes_five_operations_and_a_binary_one_two() -> None:
    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    expected = {
        "rectified": ["div", "clamp_", "add_", "round_", "mul_"],
        "signed": ["div", "add_", "round_", "clamp_", "mul_"],
        "binary": ["ge", "where"],
    }
    for kind, names in expected.items():
        frozen = fxfault.freeze(ready(nn.Sequential(ACTIVATIONS[kind]()), torch.randn(16, 3)))
        x = torch.randn(4, 3)
        with torch.no_grad(), Count() as count:
            frozen(x)
        assert count.names == names


# -- weights --------------------------------------------------------------------------------

WEIGHTS = {
    "tensor": {"weight_bit_width": 4},
    "channel": {"weight_quant": Int8WeightPerChannelFloat},
    "fixed point": {"weight_quant": Int8WeightPerTensorFixedPoint},
    "zero point": {"weight_quant": ShiftedUint8WeightPerTensorFloat},
    "binary": {"weight_quant": SignedBinaryWeightPerTensorConst},
    "ternary": {"weight_quant": SignedTernaryWeightPerTensorConst},
    "bias of its own scale": {"bias_quant": Int8BiasPerTensorFloatInternalScaling},
    "bias of the input's scale": {"bias_quant": Int32Bias},
}
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda **o: qnn.QuantConv1d(4, 6, 3, bias=True, **o), (2, 4, 9)),
    "conv2d": (lambda **o: qnn.QuantConv2d(4, 6, 3, bias=True, groups=2, **o), (2, 4, 6, 6)),
    "circular": (
        lambda **o: qnn.QuantConv2d(4, 6, 3, bias=True, padding=1, padding_mode="circular", **o),
        (2, 4, 6, 6),
    ),
    "linear": (lambda **o: qnn.QuantLinear(4, 6, bias=True, **o), (3, 4)),
    "transposed": (lambda **o: qnn.QuantConvTranspose2d(4, 6, 3, bias=True, **o), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("quant_tensor", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layer_gives_the_same_bits(kind: str, weights: str, quant_tensor: bool) -> None:
    make, shape = LAYERS[kind]
    layer = make(**WEIGHTS[weights])
    layer.return_quant_tensor = quant_tensor and weights != "zero point"
    model = nn.Sequential(qnn.QuantIdentity(bit_width=4, return_quant_tensor=True), layer)
    ready(model, torch.randn(shape))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    frozen = fxfault.freeze(model)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert what(frozen) == {"0": "activation", "1": "weights"}
    check(model, torch.randn(shape))


def test_layer_that_takes_plain_tensors() -> None:
    model = nn.Sequential(qnn.QuantLinear(4, 6, bias=True), nn.ReLU(), qnn.QuantLinear(6, 2, True))
    frozen = check(model.eval(), torch.randn(3, 4))
    assert what(frozen) == {"0": "weights", "2": "weights"}


def test_layer_with_quantised_input_and_output() -> None:
    quantisers = {"input_quant": Int8ActPerTensorFloat, "output_quant": Int8ActPerTensorFloat}
    for quant_tensor in (False, True):
        layer = qnn.QuantLinear(4, 6, True, return_quant_tensor=quant_tensor, **quantisers)
        frozen = check(ready(nn.Sequential(layer), torch.randn(9, 4)), torch.randn(3, 4))
        assert what(frozen) == {"0": "weights"}


def test_embedding_is_frozen() -> None:
    model = nn.Sequential(qnn.QuantEmbedding(10, 4, weight_bit_width=4)).eval()
    assert what(check(model, torch.arange(10))) == {"0": "weights"}


def test_bias_follows_the_scale_of_the_input() -> None:
    class Twice(nn.Module):
        """One layer, called with inputs of two scales and of two shapes."""

        def __init__(self) -> None:
            super().__init__()
            self.fine = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
            self.coarse = qnn.QuantIdentity(bit_width=3, return_quant_tensor=True)
            self.linear = qnn.QuantLinear(4, 4, True, bias_quant=Int32Bias)

        def forward(self, x: Tensor) -> Tensor:
            small = self.linear(self.fine(x)) + self.linear(self.coarse(x))
            return small + self.linear(self.coarse(x.unsqueeze(0)))[0]

    model = ready(Twice(), torch.randn(5, 4))
    with torch.no_grad():
        model.linear.bias.uniform_(-1, 1)
    check(model, torch.randn(5, 4), times=3)


def test_weights_are_quantised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(Chain(), torch.randn(4, 3, 8, 8))
    frozen = fxfault.freeze(model)
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        if name.endswith(("weight_quant", "act_quant")):
            original = module.forward
            monkeypatch.setattr(
                module, "forward", lambda *a, _n=name, _f=original: (calls.update([_n]), _f(*a))[1]
            )
    with torch.no_grad():
        frozen(torch.randn(4, 3, 8, 8))
        assert not calls
        model(torch.randn(4, 3, 8, 8))
    assert len(calls) == 4


# -- what is left as it is ------------------------------------------------------------------


class Dynamic(Int8ActPerTensorFloat):
    proxy_class = DynamicActQuantProxyFromInjector


class OwnForward(qnn.QuantReLU):
    def forward(self, input: Any) -> Any:
        return super().forward(input * 2)


class OwnWeight(qnn.QuantLinear):
    def quant_weight(self, *args: Any) -> Any:
        return super().quant_weight(*args).value * 2


def hooked() -> nn.Module:
    layer = qnn.QuantReLU(bit_width=4)
    layer.act_quant.register_forward_hook(lambda module, args, output: None)
    return layer


def delayed() -> nn.Module:
    layer = qnn.QuantReLU(bit_width=4, quant_delay_steps=2)
    assert any(isinstance(part, _DelayQuant) for part in layer.modules())
    return layer


def normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(qnn.QuantLinear(4, 4, False))


def training_quantiser() -> nn.Module:
    layer = qnn.QuantReLU(bit_width=4, scaling_impl_type="const", max_val=1.0)
    layer.eval().act_quant.fused_activation_quant_proxy.tensor_quant.train()
    return layer


UNSETTLED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (OwnForward, "it has a forward of its own"),
    "own weights": (lambda: OwnWeight(4, 4, False), "it has a quant_weight of its own"),
    "disabled": (lambda: qnn.QuantReLU(act_quant=None), "its quantiser is disabled"),
    "float weights": (
        lambda: qnn.QuantLinear(4, 4, False, weight_quant=None),
        "its weights are not quantised",
    ),
    "hook": (hooked, "there are forward hooks in its quantiser"),
    "delay": (delayed, "its quantiser has a _DelayQuant"),
    "dynamic": (
        lambda: qnn.QuantIdentity(Dynamic),
        "its quantiser is a DynamicActQuantProxyFromInjector",
    ),
    "quantised input": (
        lambda: qnn.QuantReLU(input_quant=Int8ActPerTensorFloat),
        "it also quantises its input",
    ),
    "float": (
        lambda: qnn.QuantIdentity(float_quant.Fp8e4m3ActPerTensorFloat),
        "its quantiser is a ActFloatQuantProxyFromInjector",
    ),
    "weight norm": (normed, "it has a forward of its own|its weights are computed"),
    "training": (training_quantiser, "its quantiser is in training mode"),
    "stochastic": (
        lambda: qnn.QuantLinear(4, 4, False, weight_float_to_int_impl_type="stochastic_round"),
        "its quantiser has a StochasticRoundSte",
    ),
    "not started": (
        lambda: qnn.QuantLinear(4, 4, False, weight_scaling_impl_type="parameter_from_stats"),
        "takes its scale from the first forward",
    ),
}


@pytest.mark.parametrize("kind", UNSETTLED)
def test_layer_that_is_not_settled_is_left_and_said(kind: str) -> None:
    make, why = UNSETTLED[kind]
    model = nn.Sequential(make())
    if kind != "training":
        model.eval()
    model.training = False
    frozen = fxfault.freeze(model)
    assert not isinstance(frozen[0], FrozenLayer)
    (part,) = frozen_parts(frozen)
    assert not part.what
    assert re.search(why, part.why_not), part


# -- changes --------------------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantLinear(4, 8, True, weight_bit_width=4, bias_quant=Int32Bias),
        nn.BatchNorm1d(8),
        qnn.QuantReLU(bit_width=3, return_quant_tensor=True),
        qnn.QuantLinear(8, 3, True, weight_bit_width=4),
    ]
    return ready(nn.Sequential(*layers), torch.randn(32, 4))


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()


def trained(model: nn.Module) -> None:
    model.train()
    for _ in range(2):
        step(model)
    model.eval()


def other_state() -> dict[str, Tensor]:
    other = small()
    trained(other)
    return other.state_dict()


def replace_parameter(model: Any) -> None:
    model[1].weight = nn.Parameter(torch.randn(8, 4))


def move_scale(model: Any) -> None:
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("scaling_impl.buffer"):
                buffer.mul_(1.7)


def other_data(model: Any) -> None:
    model[4].weight.data = torch.randn(3, 8)


CHANGES: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "training the source": lambda source, frozen: trained(source),
    "an optimizer step on the frozen one": lambda source, frozen: step(frozen),
    "loading into the source": lambda source, frozen: source.load_state_dict(other_state()),
    "loading into the frozen one": lambda source, frozen: frozen.load_state_dict(other_state()),
    "assigning a state": lambda s, frozen: frozen.load_state_dict(other_state(), assign=True),
    "another parameter": lambda source, frozen: replace_parameter(frozen),
    "another parameter in the source": lambda source, frozen: replace_parameter(source),
    "a scale": lambda source, frozen: move_scale(source),
    "data": lambda source, frozen: other_data(source),
}


@pytest.mark.parametrize("change", CHANGES)
def test_frozen_model_follows_changed_parameters(change: str) -> None:
    source, x = small(), torch.randn(5, 4)
    frozen = check(source, x)
    with torch.no_grad():
        before = source(x).clone()
    CHANGES[change](source, frozen)
    with torch.no_grad():
        expected = source.eval()(x)
        assert not torch.equal(expected, before)
        assert same_bits(frozen(x), expected)
    assert refresh(frozen) == 0


def test_frozen_model_follows_to_another_dtype() -> None:
    source = small()
    frozen = check(source, torch.randn(5, 4))
    frozen.double()
    x = torch.randn(5, 4).double()
    with torch.no_grad():
        assert same_bits(frozen(x), source(x))


def test_frozen_model_follows_a_switched_quantiser() -> None:
    source = small()
    x = torch.randn(5, 4)
    frozen = check(source, x)
    source[3].act_quant.disable_quant = True
    source[3].return_quant_tensor = frozen[3].return_quant_tensor = False
    with torch.no_grad():
        expected = source(x)
        assert same_bits(frozen(x), expected)
    source[3].act_quant.disable_quant = False
    with torch.no_grad():
        assert not torch.equal(source(x), expected)
        assert same_bits(frozen(x), source(x))


def test_constants_that_somebody_overwrites_are_made_anew() -> None:
    source, x = small(), torch.randn(5, 4)
    frozen = check(source, x)
    with torch.no_grad():
        frozen[0](x).scale.mul_(2)
        assert same_bits(frozen(x), source(x))


def test_refresh_counts_the_layers_that_changed() -> None:
    source = small()
    frozen = fxfault.freeze(source)
    assert refresh(frozen) == 0
    with torch.no_grad():
        source[4].weight.mul_(2)
    assert refresh(frozen) == 1
    assert refresh(source) == 0


# -- training -------------------------------------------------------------------------------


def test_frozen_model_that_is_asked_to_train_says_so() -> None:
    frozen: Any = fxfault.freeze(
        fxfault.transform(nn.Sequential(small(), nn.Linear(3, 3)), FAULTS).eval()
    )
    for module in (frozen, frozen[0], frozen[0][1], frozen[0][3]):
        with pytest.raises(FreezeError, match=r"\.train\(\): .* fxfault\.thaw"):
            module.train()
    assert not any(module.training for module in frozen.modules())
    assert frozen.eval() is frozen
    assert frozen.train(False) is frozen


def test_model_in_training_mode_is_refused() -> None:
    with pytest.raises(FreezeError, match=r"training mode .* call \.eval\(\)"):
        fxfault.freeze(small().train())


def test_thawed_model_trains_as_if_it_had_never_been_frozen() -> None:
    plain, source = small(), small()
    thawed = fxfault.thaw(check(source, torch.randn(5, 4)))
    for model in (plain, thawed):
        torch.manual_seed(1)
        trained(model)
    a, b = plain.state_dict(), thawed.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_gradients_are_those_of_the_model() -> None:
    source = small()
    frozen = fxfault.freeze(source)
    x = torch.randn(5, 4)
    found = []
    for model in (source, frozen):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        output.square().sum().backward()
        weight: Any = source[1].weight  # type: ignore[index]
        found.append((output.detach(), leaf.grad, weight.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][1].abs().sum() > 0


def test_validation_between_epochs_sees_what_was_trained() -> None:
    source = fxfault.transform(small(), {**FAULTS, "apply_during": "eval"})
    frozen = fxfault.freeze(source)
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    for _ in range(2):
        trained(source)
        source.train()
        reached = accuracy(frozen, [(x, y)])
        assert frozen.faults.statistics.total_injections > 0
        source.eval().faults.reset()
        frozen.faults.reset()
        assert accuracy(source, [(x, y)]) == reached


# -- other passes ---------------------------------------------------------------------------


def test_sites_of_the_frozen_model_are_its_own(convnet: nn.Module) -> None:
    faulty = fxfault.transform(convnet, FAULTS)
    frozen: Any = fxfault.freeze(faulty)
    frozen.faults.set_probability(0)
    frozen(torch.randn(2, 3, 6, 6))
    assert faulty.faults[0].probability == 5.0
    assert faulty.faults.statistics.total_activations == 0
    faulty.train()
    assert frozen.faults.clock.training is False
    assert frozen.faults.original is faulty.faults.original
    assert frozen.faults[0].layer is frozen.get_submodule("0")


def test_order_of_freezing_and_transforming_does_not_matter(convnet: nn.Module) -> None:
    first = fxfault.freeze(fxfault.transform(convnet, FAULTS))
    second = fxfault.transform(fxfault.freeze(convnet), FAULTS)
    assert first.faults.names == second.faults.names
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        assert same_bits(first(x), second(x))
    with pytest.raises(FreezeError, match="does not train"):
        second.train()


def test_freezing_twice_changes_nothing(convnet: nn.Module) -> None:
    frozen = fxfault.freeze(convnet)
    assert fxfault.freeze(frozen) is frozen
    assert fxfault.thaw(convnet) is convnet
    assert frozen_parts(convnet) == ()


def test_stripped_frozen_model_is_frozen_and_cannot_be_thawed(convnet: nn.Module) -> None:
    stripped = fxfault.strip(fxfault.freeze(fxfault.transform(convnet, FAULTS)))
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        assert same_bits(stripped(x), convnet(x))
    with pytest.raises(FreezeError, match="made from a frozen model"):
        fxfault.thaw(stripped)


def test_copy_of_a_frozen_model_is_independent(convnet: nn.Module) -> None:
    faulty = fxfault.transform(convnet, FAULTS)
    frozen = fxfault.freeze(faulty)
    twin = copy.deepcopy(frozen)
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        expected = frozen(x)
        assert same_bits(twin(x), expected)
        for parameter in twin.parameters():
            parameter.mul_(-1)
        frozen.faults.reset()
        assert same_bits(frozen(x), expected)
        twin.faults.reset()
        thawed = fxfault.thaw(twin)
        assert same_bits(twin(x), thawed(x))
        assert not torch.equal(value(thawed(x)), value(expected))


def test_pass_says_whether_it_changed_something() -> None:
    for model, modified in ((small(), True), (nn.Sequential(nn.Linear(2, 2)).eval(), False)):
        freeze_layers: Any = FreezeLayers()
        assert freeze_layers(model).modified is modified


def test_frozen_model_compiles_as_one_graph() -> None:
    source, x = small(), torch.randn(5, 4)
    frozen = fxfault.freeze(source)
    compiled = torch.compile(frozen, backend="eager", fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of torch, about Brevitas's autograd functions.
        assert same_bits(compiled(x), source(x))
        source.get_parameter("4.weight").mul_(2)
        assert refresh(frozen) == 1
        assert same_bits(compiled(x), source(x))


def test_frozen_model_can_be_inspected_like_the_model(convnet: nn.Module) -> None:
    faulty = fxfault.transform(convnet, FAULTS)
    frozen = fxfault.freeze(faulty)
    x = torch.randn(2, 3, 6, 6)
    for model in (faulty, frozen):
        probe(model, x)
    assert str(fxfault.inspect(frozen)) == str(fxfault.inspect(faulty))
    assert diff(frozen) == diff(faulty)
    assert "frozen=weights" in str(frozen)


def test_hook_on_a_frozen_layer_sees_the_activation_after_it_was_struck(
    convnet: nn.Module,
) -> None:
    faults = {**FAULTS, "probability": 100.0, "injection_type": "full_flip", "layers": [0]}
    frozen = fxfault.freeze(fxfault.transform(convnet, faults))
    seen: list[Tensor] = []
    layer = frozen.get_submodule("0")
    layer.register_forward_hook(lambda module, args, output: seen.append(output.value))
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        frozen(x)
        scale = convnet.get_submodule("0")(x).scale
        clean = value(convnet.get_submodule("0")(x))
        # A full flip of a two's complement code is its negative, less one.
        assert same_bits(seen[0], (-torch.round(clean / scale) - 1) * scale)


@pytest.mark.parametrize("context", ["autocast", "inference_mode"])
def test_frozen_model_agrees_under_autocast_and_in_inference_mode(
    convnet: nn.Module, context: str
) -> None:
    faulty = fxfault.transform(convnet, FAULTS)
    frozen = fxfault.freeze(faulty)
    x = torch.randn(2, 3, 6, 6)
    entered = torch.inference_mode() if context == "inference_mode" else torch.autocast("cpu")
    with torch.no_grad(), entered:
        assert same_bits(frozen(x), faulty(x))


# -- the command ----------------------------------------------------------------------------


def test_command_gives_the_same_results_with_and_without_freezing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--config", "digits", "--batch-size", "250", "--sweep", "1,10", "--num-runs", "2"]
    found, printed = [], []
    for options in ([], ["--no-freeze"]):
        assert evaluate.main([*argv, *options, "--no-progress"]) == 0
        found.append(json.loads(Path("fault_eval_random.json").read_text(encoding="utf-8")))
        printed.append(capsys.readouterr().out)
    assert found[0].pop("frozen") == {"weights": 5, "activations": 5, "left": []}
    assert found[1].pop("frozen") is None
    for document in found:
        document.pop("command")
    assert found[0] == found[1]
    assert printed[0] == printed[1]
