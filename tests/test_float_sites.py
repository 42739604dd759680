"""Sites with float words: outputs of any modules, parameters and buffers, minifloats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from brevitas_names import float_quant_ocp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxfault
from fxfault.errors import ConfigError, SiteError, TransformError
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.incremental.runner import IncrementalRunner
from fxfault.passes import trace
from fxfault.quantisers.float_tensors import float_words

INTEGERS = {torch.float32: np.uint32, torch.float16: np.uint16, torch.bfloat16: np.uint16}


def struck(net: nn.Module, **settings: Any) -> Any:
    defaults = {"enabled": True, "apply_during": "eval", "seed": 3, "injection_type": "bit_flip"}
    if "num_faults" not in settings:
        defaults["probability"] = 100.0
    return fxfault.transform(net.eval(), {**defaults, **settings})


def ieee(net: nn.Module, *targets: str, **settings: Any) -> Any:
    return struck(net, word="ieee", targets=list(targets), **settings)


def parameters(net: nn.Module, **settings: Any) -> Any:
    return struck(net, memory="parameters", **settings)


def bits_of(x: Tensor) -> Any:
    """The bits of a tensor, as NumPy reads them."""
    raw = x.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
    return raw.view(INTEGERS[x.dtype])


def flipped(x: Tensor, bit: int) -> Tensor:
    """A tensor with one bit of each element flipped, by NumPy."""
    found = bits_of(x) ^ INTEGERS[x.dtype](1 << bit)
    return torch.from_numpy(found.view(np.uint8).copy()).view(x.dtype).reshape(x.shape)


def same(a: Tensor, b: Tensor) -> bool:
    return bool((bits_of(a) == bits_of(b)).all())


class Small(nn.Module):
    """A float network with a shared layer, a kept container and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.kept = Kept()
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        y = self.act(self.kept(y.mean((2, 3))) - 0.25)
        return self.head(y * self.scale)


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if bool(x.sum() > -1e9) else x


def small() -> nn.Module:
    torch.manual_seed(0)
    net = Small().train()
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8))
    return net.eval()


def batch(samples: int = 6) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# -- outputs of any modules -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_each_bit_of_an_output_against_numpy(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).to(dtype)
    x = torch.randn(5, 4).to(dtype)
    width = torch.finfo(dtype).bits
    for bit in range(width):
        faulty = ieee(net, "ReLU", bit=bit)
        assert faulty.faults[0].bit_width == width
        with torch.no_grad():
            assert same(faulty(x), flipped(net(x), bit))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("stuck_at_0", lambda bits: bits & ~np.uint32(1 << 30)),
        ("stuck_at_1", lambda bits: bits | np.uint32(1 << 30)),
    ],
)
def test_a_stuck_bit_of_an_output(model: str, expected: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    x = torch.randn(5, 4)
    faulty = ieee(net, "Linear", injection_type=model, bit=30)
    with torch.no_grad():
        assert (bits_of(faulty(x)) == expected(bits_of(net(x)))).all()


def test_the_sites_are_the_calls_of_the_types_and_strip_gives_the_clean_text() -> None:
    net = small()
    faulty = ieee(net, "ReLU", "Lin*", probability=5.0)

    assert faulty.faults.names == ("act", "kept.linear", "act@2", "head")
    config = faulty.faults.config
    assert fxfault.strip(faulty).code == trace(net, config).code
    with torch.no_grad():
        assert torch.equal(fxfault.strip(faulty)(batch()), net(batch()))
    fxfault.check(faulty, net, batch())


def test_a_layer_that_graph_and_python_code_call_is_struck_once_a_call() -> None:
    net = small()
    faulty = ieee(net, "Linear", bit=31)
    seen: list[tuple[Tensor, Tensor]] = []
    faulty.get_submodule("kept.linear").register_forward_hook(
        lambda layer, args, output: seen.append((args[0], output))
    )
    with torch.no_grad():
        faulty(batch())
        ((given, output),) = seen
        assert torch.equal(output, -net.get_submodule("kept.linear")(given))


def test_samples_have_the_same_faults_in_any_batch() -> None:
    faulty = ieee(small(), "ReLU", "Linear", probability=3.0, bit=None)
    faulty.faults.measure(batch(12))
    found = []
    for sizes in ([12], [5, 7], [1] * 12):
        faulty.faults.reset()
        with torch.no_grad():
            found.append(torch.cat([faulty(part) for part in batch(12).split(sizes)]))
    finite = found[0].isfinite()
    for other in found[1:]:
        assert torch.equal(other.isfinite(), finite)
        assert torch.allclose(other[finite], found[0][finite], rtol=1e-3)


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_gradients_pass_or_end_at_hits(mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    x = torch.randn(40, 6, requires_grad=True)
    settings = {"probability": 30.0, "bit": 31, "apply_during": "both", "gradient_mode": mode}
    faulty = ieee(net, "Linear", **settings)
    seen: list[Tensor] = []
    faulty.get_submodule("1").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    faulty(x).sum().backward()
    (struck_values,) = seen
    hit = struck_values != net[0](x)  # The sign of a hit flips, and no value is 0.
    passed = (struck_values > 0) & ~(hit if mode == "zero_faulty" else torch.zeros_like(hit))

    assert hit.any()
    assert not hit.all()
    assert x.grad is not None
    assert torch.allclose(x.grad, passed.float() @ net[0].weight, atol=1e-6)


# Dynamo makes an object of Brevitas's autograd functions, of which torch warns.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function:DeprecationWarning")
@pytest.mark.parametrize("kind", ["ieee", "minifloat output", "minifloat weight"])
def test_compiled_code_and_lists_have_the_same_faults(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        QuantIdentity(act_quant=float_quant_ocp.Fp8e4m3OCPActPerTensorFloat),
        QuantLinear(4, 3, bias=False, weight_quant=float_quant_ocp.Fp8e4m3OCPWeightPerTensorFloat),
    )
    net.train()(torch.randn(9, 4))
    settings: dict[str, Any] = {"memory": "weights"} if kind == "minifloat weight" else {}
    if kind == "ieee":
        net, settings = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {"word": "ieee"}
        settings["targets"] = ["ReLU"]
    faulty, x = struck(net, probability=50.0, bit=2, **settings), torch.randn(5, 4)
    faulty.faults.measure(x)
    faulty.faults.reset()
    with torch.no_grad():
        expected = faulty(x)
        faulty.faults.reset()
        found = torch.compile(faulty, backend="aot_eager")(x)
        clean = net(x)
    torch._dynamo.reset()

    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert not torch.equal(expected, clean)
    places = [
        [(row["sample"], row["element"]) for row in listed.rows()]
        for listed in (faulty.faults.listing(samples=5), faulty.faults.listing(x))
    ]
    assert places[0] == places[1] != []


def test_nonfinite_values_go_on_and_are_counted() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    nn.init.constant_(net[0].weight, 0.3)
    nn.init.zeros_(net[0].bias)
    faulty = ieee(net, "ReLU", bit=30, track_statistics=True)
    x = torch.full((2, 4), 1.4)
    with torch.no_grad():
        clean, output = net(x), faulty(x)
    statistics = faulty.faults.statistics
    assert same(output, flipped(clean, 30))
    expected = int((~output.isfinite()).sum())
    assert statistics.layer_stats[0].nonfinite_count == expected
    entry = statistics.layer_stats[0].to_dict()
    assert ("nonfinite_count" in entry) == (expected > 0)
    assert expected == 8  # The exponent of values from 1 to 2 becomes all ones.


# -- parameters and buffers -------------------------------------------------------------------


def with_flip(net: nn.Module, name: str, bit: int, x: Tensor) -> Tensor:
    """The output of a network with one bit of each element of a tensor flipped by hand."""
    state = {key: value.detach().clone() for key, value in net.state_dict().items()}
    state[name] = flipped(state[name], bit)
    with torch.no_grad():
        output: Tensor = torch.func.functional_call(net, state, (x,))
    return output


def test_each_bit_of_each_parameter_and_buffer_against_a_flip_by_hand() -> None:
    net, x = small(), batch(3)
    names = [key for key, value in net.state_dict().items() if value.is_floating_point()]
    faulty = parameters(net, bit=0)
    assert sorted(faulty.faults.names) == sorted(names)
    for name in names:
        for bit in range(32):
            config = fxfault.FaultInjectionConfig(
                memory="parameters", injection_type="bit_flip", bit=bit, probability=100.0
            )
            faulty.faults.set_faults(config)
            faulty.faults.select(name)
            with torch.no_grad():
                assert same(faulty(x), with_flip(net, name, bit, x)), (name, bit)


def test_parameters_are_not_written_and_show_again_after_an_exception() -> None:
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    faulty = parameters(net, probability=5.0)
    during: list[bool] = []

    def look(*_: Any) -> None:
        state = faulty.state_dict()
        during.append(all(torch.equal(state[k], v) for k, v in before.items()))
        raise RuntimeError("stop")

    hook = faulty.get_submodule("norm").register_forward_hook(look)
    with pytest.raises(RuntimeError, match="stop"):
        faulty(batch())
    hook.remove()

    assert during == [True]
    assert all(torch.equal(faulty.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(faulty.get_submodule("head").weight, net.head.weight)
    faulty.faults.enabled = False
    with torch.no_grad():
        assert torch.equal(faulty(batch()), net(batch()))


def test_the_model_as_given_never_shows_a_fault() -> None:
    net = small()
    expected = net(batch())
    faulty = parameters(net, probability=5.0)
    found: list[Tensor] = []
    faulty.get_submodule("norm").register_forward_hook(lambda *_: found.append(net(batch())))
    faulty(batch())

    assert torch.equal(found[0], expected)


def test_a_tensor_with_two_names_is_one_memory() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    faulty = parameters(net, bit=31)
    assert faulty.faults.names == ("0.weight",)
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(faulty(x), x @ -net[0].weight.T @ -net[0].weight.T)


def test_scales_of_a_quantised_network_are_parameters_too() -> None:
    net = nn.Sequential(QuantIdentity(), QuantLinear(4, 4, bias=True), QuantReLU())
    net.train()(torch.randn(20, 4))
    faulty = parameters(net, bit=23, num_faults=1)
    scales = [name for name in faulty.faults.names if name.endswith("scaling_impl.value")]
    assert len(scales) == 2
    x = torch.randn(3, 4)
    frozen = fxfault.freeze(faulty)
    for trial in range(8):
        for model in (faulty, frozen):
            model.faults.reset(trial)
        with torch.no_grad():
            assert torch.equal(frozen(x), faulty(x))
    faulty.faults.set_faults(
        fxfault.FaultInjectionConfig(
            memory="parameters", injection_type="bit_flip", bit=23, probability=100.0
        )
    )
    for name in scales:
        faulty.faults.select(name)
        with torch.no_grad():
            assert same(faulty(x), with_flip(net, name, 23, x))


def test_runs_of_the_evaluation_agree() -> None:
    net = small()
    data = DataLoader(TensorDataset(batch(20), torch.arange(20) % 3), batch_size=6)
    settings: dict[str, Any] = {"probability": 30.0, "bit": None}
    for faulty in (
        parameters(net, **settings),
        ieee(net, "ReLU", "Linear", **settings),
        ieee(net, "ReLU", memory=["activations", "parameters"], **settings),
    ):
        full, part = FullRunner(faulty, data), IncrementalRunner(faulty, data)
        part.golden()
        changed = 0
        for trial in range(6):
            faulty.faults.reset(trial)
            expected = full.run()
            faulty.faults.reset(trial)
            found = part.run()
            assert torch.equal(found.top, expected.top)
            assert torch.equal(found.struck, expected.struck)
            changed += int((found.top != full.golden().top).any())
        assert changed


# -- minifloats -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "activation"),
    [
        (
            float_quant_ocp.Fp8e4m3OCPWeightPerTensorFloat,
            float_quant_ocp.Fp8e4m3OCPActPerTensorFloat,
        ),
        (
            float_quant_ocp.Fp8e5m2OCPWeightPerTensorFloat,
            float_quant_ocp.Fp8e5m2OCPActPerTensorFloat,
        ),
    ],
)
def test_each_bit_of_minifloats(weight: Any, activation: Any) -> None:
    torch.manual_seed(0)
    layer = QuantLinear(6, 6, bias=False, weight_quant=weight)
    quantise = QuantIdentity(act_quant=activation, return_quant_tensor=True)
    net = nn.Sequential(quantise, layer)
    net.train()(torch.randn(30, 6))
    net.eval()
    x = torch.randn(4, 6)
    for kind in ("activations", "weights"):
        for bit in range(8):
            faulty = struck(net, memory=kind, bit=bit)
            assert [site.bit_width for site in faulty.faults] == [8]
            clean = {"activations": net[0](x), "weights": layer.quant_weight()}
            word, scale = float_words(clean[kind])  # type: ignore[misc]
            codes, _ = word.to_codes(clean[kind].value.detach(), scale)
            values = word.to_values(codes ^ (1 << bit), scale.detach())
            parts = {key: tensor.value for key, tensor in clean.items()} | {kind: values}
            with torch.no_grad():
                expected = nn.functional.linear(parts["activations"], parts["weights"])
                found = faulty(x)
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found.nan_to_num(), expected.nan_to_num())
            frozen = fxfault.freeze(faulty)
            frozen.faults.reset()
            with torch.no_grad():
                assert torch.equal(frozen(x).nan_to_num(), expected.nan_to_num())


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word": "ieee"}, "targets: missing, name the module types"),
        ({"word": "ieee", "targets": ["ReLU"], "memory": "weights"}, "word: got 'ieee'"),
        ({"targets": ["*ReLU"]}, "allowed: class names; patterns with word: ieee"),
        ({"memory": "parameters", "apply_during": "both"}, "memory: got 'parameters' with apply_"),
        ({"word": "ieee", "targets": ["LSTM"]}, r"no module of the types LSTM; it has .*ReLU"),
        ({"word": "ieee", "targets": ["Tanh*"]}, "Name some of these in `targets`"),
        ({"memory": "parameters", "layers": "head.wieght"}, "did you mean 'head.weight'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, SiteError, TransformError), match=message):
        struck(small(), **settings)


def test_an_output_without_float_words_is_refused() -> None:
    net = nn.Sequential(nn.LSTM(3, 3))
    with pytest.raises(SiteError, match="site 0: LSTM gave a tuple, allowed: a tensor of float32"):
        ieee(net, "LSTM")(torch.randn(2, 3))
    doubles = nn.Sequential(nn.ReLU(), nn.Linear(3, 3)).double()
    with pytest.raises(SiteError, match=r"site 0: ReLU gave a torch\.float64, allowed"):
        ieee(doubles, "ReLU")(torch.randn(2, 3).double())


def test_compiled_code_refuses_parameters() -> None:
    faulty = parameters(small(), probability=1.0)
    compiled = torch.compile(faulty, backend="eager")
    with pytest.raises(SiteError, match="memory: got 'parameters' in compiled code"):
        compiled(batch())
