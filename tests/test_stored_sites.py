"""Sites that are weights and biases: the words, the graph, and the parameters that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int16Bias, Int32Bias
from torch import Tensor, nn

import fxfault
from fxfault.errors import ConfigError, SiteError, TransformError
from fxfault.passes import trace
from fxfault.strike.draws import elements_hit

STORED = ("weights", "biases")


def struck(net: nn.Module, **settings: Any) -> Any:
    defaults = {"enabled": True, "apply_during": "eval", "seed": 3, "memory": "weights"}
    if "num_faults" not in settings:
        defaults["probability"] = 100.0
    return fxfault.transform(net.eval(), {**defaults, **settings})


def words_in(faulty: Any, layer: nn.Module, *inputs: Any) -> dict[str, Tensor]:
    """The words that a layer of a transformed model is called with, and its `input`."""
    seen: dict[str, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.update(kwargs, input=args[0])

    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            faulty(*inputs)
    finally:
        hook.remove()
    return seen


def codes_of(words: Any) -> Tensor:
    codes: Tensor = (
        words.value.double() / words.scale.double() + words.zero_point.double()
    ).round()
    return codes.long()


# -- the words, against plain integers --------------------------------------------------------


def linear(bits: int, per_channel: bool, narrow: bool) -> QuantLinear:
    """A layer whose weight holds every code of a word at least once, in each channel."""
    low = -(1 << (bits - 1)) + narrow
    codes = torch.arange(low, 1 << (bits - 1)).float()
    layer = QuantLinear(
        len(codes),
        3,
        bias=False,
        weight_bit_width=bits,
        weight_narrow_range=narrow,
        weight_scaling_impl_type=ScalingImplType.PARAMETER,
        weight_scaling_per_output_channel=per_channel,
        weight_scaling_init=1.0,
    )
    scales = torch.tensor([0.5, 0.25, 2.0]) if per_channel else torch.full((3,), 0.5)
    threshold = (1 << (bits - 1)) - narrow  # What Brevitas divides the range by.
    for parameter in layer.weight_quant.parameters():
        parameter.data = (scales[:, None] if per_channel else scales[:1]).clone().reshape(
            parameter.shape
        ) * threshold
    layer.weight.data = codes * scales[:, None]
    return layer


def signed_of(pattern: int, bits: int) -> int:
    return pattern - (1 << bits) if pattern >> (bits - 1) else pattern


ORACLES: dict[str, Callable[[int, int], int]] = {
    "msb_flip": lambda pattern, bits: pattern ^ (1 << (bits - 1)),
    "lsb_flip": lambda pattern, bits: pattern ^ 1,
    "full_flip": lambda pattern, bits: pattern ^ ((1 << bits) - 1),
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_a_weight_against_plain_integers(
    bits: int, narrow: bool, per_channel: bool
) -> None:
    layer = linear(bits, per_channel, narrow)
    clean = codes_of(layer.quant_weight())
    assert set(clean[0].tolist()) == set(range(-(1 << (bits - 1)) + narrow, 1 << (bits - 1)))
    net, no_input = nn.Sequential(layer), torch.zeros(1, clean.shape[1])
    cases = [(name, None, oracle) for name, oracle in ORACLES.items()]
    for bit in range(bits):
        mask = 1 << bit
        cases += [
            ("bit_flip", bit, lambda pattern, bits, mask=mask: pattern ^ mask),
            ("stuck_at_0", bit, lambda pattern, bits, mask=mask: pattern & ~mask),
            ("stuck_at_1", bit, lambda pattern, bits, mask=mask: pattern | mask),
        ]
    faulty = struck(net)
    for name, bit, oracle in cases:
        settings = {"memory": ["weights"], "injection_type": name, "bit": bit}
        faulty.faults.set_faults(fxfault.FaultInjectionConfig(**settings, probability=100.0))
        words = words_in(faulty, faulty.get_submodule("0"), no_input)["weight"]
        expected = [
            [signed_of(oracle(code & ((1 << bits) - 1), bits), bits) for code in row]
            for row in clean.tolist()
        ]
        assert codes_of(words).tolist() == expected, (name, bit)
        assert torch.equal(words.value, torch.tensor(expected) * words.scale)


@pytest.mark.parametrize("bits", range(2, 9))
def test_random_faults_give_codes_of_the_range(bits: int) -> None:
    layer = linear(bits, per_channel=False, narrow=True)
    net = nn.Sequential(layer)
    clean = codes_of(layer.quant_weight())
    no_input = torch.zeros(1, clean.shape[1])
    faulty = struck(net, injection_type="random")
    found: set[int] = set()
    for trial in range(60):
        faulty.faults.reset(trial)
        words = words_in(faulty, faulty.get_submodule("0"), no_input)["weight"]
        found |= set(codes_of(words).flatten().tolist())
    top = (1 << (bits - 1)) - 1
    assert found <= set(range(-top, top + 1))
    assert bits > 4 or found == set(range(-top, top + 1))  # A code is missed with (14/15)**2700.


# -- every bit of a tiny network, against integers in NumPy -----------------------------------


def tiny() -> nn.Module:
    """A network whose scales are powers of two, so that its floats are exact."""
    half: dict[str, Any] = {"scaling_impl_type": "const", "restrict_scaling_type": "power_of_two"}
    layer = QuantLinear(
        3,
        2,
        bias=True,
        weight_bit_width=4,
        weight_scaling_impl_type="const",
        weight_scaling_init=1.0,
        weight_restrict_scaling_type="power_of_two",
        bias_quant=Int16Bias,
    )
    layer.weight.data = torch.tensor([[0.5, -0.25, 0.875], [-0.75, 0.125, 0.375]])
    layer.bias.data = torch.tensor([0.75, -0.3])
    quantise = QuantIdentity(
        bit_width=4, min_val=-1.0, max_val=1.0, return_quant_tensor=True, **half
    )
    return nn.Sequential(quantise, layer).eval()


def by_integers(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The accumulators of the layer."""
    made: np.ndarray = x @ weight.T + bias
    return made


@pytest.mark.parametrize("memory", STORED)
def test_each_flip_of_each_word_against_a_forward_in_integers(memory: str) -> None:
    net = tiny()
    x = torch.tensor([[0.4, -0.9, 0.2], [1.0, 0.6, -0.1]])
    inputs = net[0](x)
    weight = net[1].quant_weight()
    bias = net[1].bias_quant(net[1].bias, inputs, weight)
    kind, clean = ("weight", weight) if memory == "weights" else ("bias", bias)
    bits, numbers = int(clean.bit_width), clean.value.numel()
    scale = float(inputs.scale * weight.scale)
    for bit in range(bits):
        faulty = struck(net, memory=memory, injection_type="bit_flip", bit=bit, num_faults=1)
        seen: set[int] = set()
        for trial in range(400):
            faulty.faults.reset(trial)
            words = words_in(faulty, faulty.get_submodule("1"), x)[kind]
            with torch.no_grad():
                output = faulty(x)
            (place,) = (codes_of(words) != codes_of(clean)).flatten().nonzero().flatten().tolist()
            seen.add(place)
            parts = {
                "weight": codes_of(weight).numpy().copy(),
                "bias": codes_of(bias).numpy().copy(),
            }
            pattern = int(parts[kind].flat[place]) & ((1 << bits) - 1)
            parts[kind].flat[place] = signed_of(pattern ^ (1 << bit), bits)
            expected = by_integers(codes_of(inputs).numpy(), parts["weight"], parts["bias"])
            assert np.array_equal(output.double().numpy(), expected * scale)
            if len(seen) == numbers:
                break
        assert len(seen) == numbers  # Missed with a chance below 6 * (5/6) ** 400 < 1e-30.


# -- the graph, and what must not change ------------------------------------------------------


def network(bias: Any = Int32Bias) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        QuantIdentity(bit_width=8, return_quant_tensor=True),
        QuantConv2d(3, 4, 3, weight_bit_width=4, bias=True, bias_quant=bias),
        nn.BatchNorm2d(4),
        QuantReLU(bit_width=4, return_quant_tensor=True),
        QuantConv2d(4, 4, 3, weight_bit_width=3, bias=True, bias_quant=bias),
        QuantReLU(bit_width=4),
        nn.Flatten(),
        QuantLinear(64, 5, bias=True, weight_bit_width=8),
    )
    net.train()
    net(torch.randn(8, 3, 8, 8))
    return net.eval()


def batch(samples: int = 6) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {k: v.detach().clone().numpy().tobytes() for k, v in model.state_dict().items()}


MEMORIES = ["weights", "biases", ("weights", "biases"), ("weights", "activations")]


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_graph_strikes_the_words_and_strip_gives_the_clean_text(memory: Any) -> None:
    net = network()
    faulty = struck(net, memory=memory, probability=5.0)
    kinds = (memory,) if isinstance(memory, str) else memory

    assert "stored_weight" in faulty.code
    assert ("weight = fault_inject" in faulty.code) == ("weights" in kinds)
    assert ("bias = fault_inject" in faulty.code) == ("biases" in kinds)
    stripped = fxfault.strip(faulty)
    config = fxfault.FaultInjectionConfig(memory=kinds)
    assert stripped.code == trace(net, config).code == trace(net).code
    assert torch.equal(stripped(batch()), net(batch()))
    assert "stored_weight" in faulty.code  # The transformed model is as it was.
    assert list(faulty.state_dict()) == list(net.state_dict())


def test_the_names_are_those_of_the_state() -> None:
    faulty = struck(network(), memory=["biases", "weights", "activations"])

    assert faulty.faults.names == (
        *("0", "1.weight", "1.bias", "3", "4.weight", "4.bias", "5", "7.weight"),
    )
    stored = [site for site in faulty.faults if site.stored is not None]
    assert all(site.name in faulty.state_dict() for site in stored)
    assert faulty.faults.skipped == {"7.bias": "its bias is not quantised"}


def test_the_state_is_the_same_after_thousands_of_trials() -> None:
    net, x = tiny(), torch.rand(2, 3)
    before = state_bytes(net)
    faulty = struck(net, memory=["weights", "biases"], probability=30.0)
    with torch.no_grad():
        for trial in range(3000):
            faulty.faults.reset(trial)
            faulty(x)
    faulty.faults.enabled = False

    assert state_bytes(faulty) == state_bytes(net) == before
    assert torch.equal(faulty(x), net(x))
    assert fxfault.strip(faulty).code == trace(net).code


@pytest.mark.parametrize("freeze", [False, True])
def test_the_state_is_the_same_before_during_and_after(freeze: bool) -> None:
    net = network()
    before = state_bytes(net)
    faulty = struck(net, memory=["weights", "biases"], probability=20.0)
    faulty = fxfault.freeze(faulty) if freeze else faulty
    during: list[bool] = []
    hook = faulty.get_submodule("5").register_forward_pre_hook(
        lambda *_: during.append(state_bytes(faulty) == before)
    )
    with torch.no_grad():
        for trial in range(50):
            faulty.faults.reset(trial)
            faulty(batch(2))
    hook.remove()

    assert during == [True] * 50
    assert state_bytes(faulty) == state_bytes(net) == before


def test_an_exception_inside_a_forward_leaves_no_fault() -> None:
    net = network()
    expected, before = net(batch()), state_bytes(net)
    faulty = struck(net, memory=["weights", "biases"])

    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    for place in ("1", "2", "5"):
        hook = faulty.get_submodule(place).register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            faulty(batch())
        hook.remove()
    faulty.faults.enabled = False

    assert torch.equal(faulty(batch()), expected)
    assert state_bytes(faulty) == before


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_model_as_given_is_computed_without_faults(memory: Any) -> None:
    net = network()
    faulty = struck(net, memory=memory, probability=0.0)

    assert torch.equal(faulty(batch()), net(batch()))
    fxfault.check(faulty, net, batch())


# -- draws ------------------------------------------------------------------------------------


def outputs(faulty: Any, sizes: list[int], trial: int = 0) -> Tensor:
    faulty.faults.reset(trial)
    with torch.no_grad():
        return torch.cat([faulty(part) for part in batch(12).split(sizes)])


@pytest.mark.parametrize("memory", ["weights", "biases", ["weights", "biases"]], ids=str)
def test_the_faults_are_those_of_a_trial_and_not_of_a_batch(memory: Any) -> None:
    faulty = struck(network(), memory=memory, probability=30.0)
    whole = outputs(faulty, [12])

    assert torch.allclose(outputs(faulty, [5, 5, 2]), whole, atol=1e-5)
    assert torch.equal(outputs(faulty, [12]), whole)
    assert not torch.equal(outputs(faulty, [12], trial=1), whole)


def test_frozen_weights_are_struck_once_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = struck(network(), memory=["weights", "biases"], probability=3.0)
    frozen = fxfault.freeze(faulty)
    layer = frozen.get_submodule("1")
    first = words_in(frozen, layer, batch())["weight"].value
    again = words_in(frozen, layer, batch())["weight"].value
    frozen.faults.reset(trial=1)
    other = words_in(frozen, layer, batch())["weight"].value

    assert again is first
    assert not torch.equal(other, first)
    for trial in range(5):
        assert torch.equal(outputs(frozen, [6, 6], trial), outputs(faulty, [6, 6], trial))


def test_a_frozen_weight_that_is_written_to_is_struck_again() -> None:
    net = network()
    faulty = struck(net, memory="weights", probability=3.0)
    frozen = fxfault.freeze(faulty)
    before = outputs(frozen, [12])
    with torch.no_grad():
        net[1].weight.mul_(-1)
    after = outputs(frozen, [12])

    assert not torch.equal(before, after)
    assert torch.equal(after, outputs(faulty, [12]))


@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("unit", ["element", "bit"])
def test_a_number_of_faults_is_that_of_a_trial(count: int, unit: str) -> None:
    net = network(Int16Bias)
    kinds = ["weights", "biases"]
    fault = {"injection_type": "bit_flip", "rate_unit": unit, "num_faults": count}
    fault.pop("rate_unit") if unit == "element" else None
    settings = fault if unit == "bit" else {**fault, "bit": 0}
    faulty = struck(net, memory=kinds, **settings)
    for trial in range(3):
        faulty.faults.reset(trial)
        flips = 0
        for place in ("1", "4", "7"):
            layer = faulty.get_submodule(place)
            words = words_in(faulty, layer, batch(2))
            inputs = words.pop("input")
            clean = {"weight": net[int(place)].quant_weight()}
            for kind, found in words.items():
                if kind == "bias":
                    layer_bias = net[int(place)]
                    clean["bias"] = layer_bias.bias_quant(layer_bias.bias, inputs, clean["weight"])
                bits = int(found.bit_width)
                for a, b in zip(
                    codes_of(found).flatten().tolist(),
                    codes_of(clean[kind]).flatten().tolist(),
                    strict=True,
                ):
                    flips += bin((a ^ b) & ((1 << bits) - 1)).count("1")
        assert flips == count


def test_broken_units_hold_whole_output_channels() -> None:
    net = network()
    faulty = struck(
        net, hw_mask=True, frequency_value=2, probability=50.0, injection_type="full_flip"
    )
    for place, clean in (("1", net[1].quant_weight()), ("4", net[4].quant_weight())):
        words = words_in(faulty, faulty.get_submodule(place), batch(1))["weight"]
        hit = (codes_of(words) != codes_of(clean)).flatten(1)
        (broken,) = {int(c) % 2 for c in hit.any(1).nonzero().flatten()}
        assert hit.all(1).tolist() == [c % 2 == broken for c in range(len(hit))]


def test_statistics_count_a_weight_once_a_trial() -> None:
    faulty = struck(network(), memory="weights", probability=100.0, track_statistics=True)
    weights = sum(site.stored.layout.elements for site in faulty.faults)
    for trial in range(3):
        outputs(faulty, [4, 4, 4], trial)
    frozen = fxfault.freeze(faulty)
    for trial in range(2):
        outputs(frozen, [4, 4, 4], trial)

    assert faulty.faults.statistics.total_injections == 3 * weights
    assert faulty.faults.statistics.total_activations == 3 * weights
    assert frozen.faults.statistics.total_injections == 5 * weights


def test_hits_are_known_without_a_forward() -> None:
    net = network()
    faulty = struck(net, probability=10.0, injection_type="lsb_flip")
    for trial in range(4):
        faulty.faults.reset(trial)
        for site in faulty.faults:
            layer = faulty.get_submodule(site.module_path)
            words = words_in(faulty, layer, batch(1))["weight"]
            clean = net.get_submodule(site.module_path).quant_weight()
            changed = int((codes_of(words) != codes_of(clean)).sum())
            assert elements_hit(site, range(100), site.stored.layout) == changed


# -- training ---------------------------------------------------------------------------------


def trained(persist: str, steps: int, epochs: int = 1) -> list[Tensor]:
    """The masks of struck weights of each step."""
    net = nn.Sequential(QuantLinear(6, 6, bias=False, weight_bit_width=4))
    settings = {"apply_during": "train", "probability": 20.0, "persist": persist}
    faulty = struck(net, injection_type="msb_flip", **settings)
    faulty.train()
    clean = codes_of(net[0].quant_weight())
    masks = []
    for epoch in range(epochs):
        faulty.faults.start_epoch(epoch)
        for _ in range(steps):
            words = words_in(faulty, faulty.get_submodule("0"), torch.zeros(2, 6))["weight"]
            masks.append(codes_of(words) != clean)
    return masks


def distinct(masks: list[Tensor]) -> int:
    return len({tuple(mask.flatten().tolist()) for mask in masks})


@pytest.mark.parametrize(("persist", "expected"), [("step", 8), ("epoch", 2), ("run", 1)])
def test_how_long_faults_stay_in_training(persist: str, expected: int) -> None:
    torch.manual_seed(0)
    # Two draws of 36 words at 20 % agree with a chance below 1e-5.
    assert distinct(trained(persist, steps=4, epochs=2)) == expected


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_gradients_reach_the_float_weight_through_its_quantiser(mode: str) -> None:
    torch.manual_seed(0)
    layer = QuantLinear(
        6, 6, bias=False, weight_bit_width=4, weight_scaling_impl_type="parameter_from_stats"
    )
    net = nn.Sequential(layer)
    settings = {"apply_during": "both", "probability": 30.0, "gradient_mode": mode}
    faulty = struck(net, injection_type="msb_flip", **settings)
    x = torch.randn(5, 6)
    clean = codes_of(layer.quant_weight())
    words = words_in(faulty, faulty.get_submodule("0"), x)["weight"]
    hit = codes_of(words) != clean
    faulty.faults.reset()
    faulty(x).sum().backward()
    scale = next(p for n, p in layer.named_parameters() if "scaling" in n)
    found, of_scale = layer.weight.grad.clone(), scale.grad
    layer.weight.grad = None
    net(x).sum().backward()

    kept = ~hit if mode == "zero_faulty" else torch.ones_like(hit)
    assert hit.any()
    assert torch.equal(found, layer.weight.grad * kept)
    assert of_scale is not None
    assert of_scale.abs().sum() > 0


# -- words wider than the dtype ---------------------------------------------------------------


def test_a_bias_of_32_bits_goes_to_the_nearest_value() -> None:
    net = network(Int32Bias)
    for bit in range(32):
        faulty = struck(net, memory="biases", injection_type="bit_flip", bit=bit)
        found = words_in(faulty, faulty.get_submodule("1"), batch(2))
        words = found["bias"]
        clean = net[1].bias_quant(net[1].bias, found["input"], net[1].quant_weight())
        flipped = [
            signed_of((code & 0xFFFFFFFF) ^ (1 << bit), 32) for code in codes_of(clean).tolist()
        ]
        exact = np.array(flipped, dtype=np.float64) * clean.scale.detach().double().numpy()
        assert words.value.tolist() == exact.astype(np.float32).tolist()


def test_a_code_that_float32_does_not_tell_is_refused() -> None:
    net = tiny()
    net[1] = QuantLinear(3, 2, bias=True, weight_bit_width=4, bias_quant=Int32Bias)
    net[1].bias.data.fill_(1e6)
    faulty = struck(net, memory="biases", probability=100.0)
    with pytest.raises(SiteError, match=r"site 1\.bias: .* of a 32-bit word, .* up to 2\*\*22"):
        faulty.eval()(torch.ones(1, 3))


# -- bad input --------------------------------------------------------------------------------


def test_a_memory_that_a_network_does_not_have_is_refused() -> None:
    net = nn.Sequential(QuantReLU(), nn.Linear(3, 3))
    with pytest.raises(TransformError, match=r"has no weights in layers of brevitas\.nn"):
        struck(net)
    floats = nn.Sequential(QuantLinear(3, 3, bias=True))
    with pytest.raises(TransformError, match=r"no fault can strike its biases: 0\.bias \(its bias"):
        struck(floats, memory="biases")
    with pytest.raises(TransformError, match="no fault can strike its biases: it has none"):
        struck(nn.Sequential(QuantLinear(3, 3, bias=False)), memory=["weights", "biases"])


def test_a_weight_without_words_is_refused_or_skipped() -> None:
    net = nn.Sequential(QuantLinear(3, 3, bias=False), QuantLinear(3, 3, False, weight_quant=None))
    with pytest.raises(TransformError, match=r"1\.weight \(its weight is not quantised\)"):
        struck(net)
    faulty = struck(net, unsupported="skip")
    assert faulty.faults.names == ("0.weight",)
    assert faulty.faults.skipped == {"1.weight": "its weight is not quantised"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"persist": "run", "memory": "activations"}, "persist: got 'run' .*allowed with a memory"),
        ({"memory": "wights"}, "did you mean 'weights'"),
        ({"memory": []}, "memory: got"),
        ({"num_faults": 1, "memory": ["weights", "activations"]}, "num_faults: got 1 .* entry of"),
        ({"layers": "1.weihgt"}, "did you mean '1.weight'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, SiteError), match=message):
        struck(network(), **{"probability": 5.0, **settings})


def test_other_faults_need_a_memory_that_the_model_has() -> None:
    faulty = struck(network(), probability=1.0)
    with pytest.raises(SiteError, match=r"memory: got 'activations', allowed: .* weights"):
        faulty.faults.set_faults(fxfault.FaultInjectionConfig())
