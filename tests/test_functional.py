"""`fault_inject`: what it changes, what it leaves, and what gradients see of it."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantReLU
from brevitas.quant import ShiftedUint8ActPerTensorFloat
from brevitas.quant.binary import SignedBinaryActPerTensorConst
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from fxfault.errors import SiteError
from fxfault.faults import sampling
from fxfault.functional import fault_inject
from fxfault.strike import draws, plan, strikes

MODELS = ("random", "lsb_flip", "msb_flip", "full_flip")
FLIPS = MODELS[1:]

Faulty = Callable[..., Any]
Calibrated = Callable[..., nn.Module]


def fixed_scale(bits: int = 4, **settings: Any) -> Any:
    """A quantiser of fixed scale; where signed a power of two, so that sums of it are exact."""
    return QuantIdentity(
        bit_width=bits,
        scaling_impl_type="const",
        scaling_init=2.0,
        return_quant_tensor=True,
        **settings,
    )


def chain(*layers: nn.Module) -> nn.Sequential:
    """A network in eval mode."""
    return nn.Sequential(*layers).eval()


def exact_net() -> nn.Sequential:
    """For (N, 3, 4, 4), three sites.

    Every sum is exact, so that batches cannot differ by rounding.
    """
    linear = nn.Linear(48, 40, bias=False)
    weights = torch.randint(-3, 4, (40, 48), generator=torch.Generator().manual_seed(0))
    linear.weight.data = weights.float() / 4
    rest = [nn.Flatten(), linear, fixed_scale(3), nn.ReLU(), fixed_scale(5)]
    return nn.Sequential(fixed_scale(4), *rest).eval()


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def value(x: Any) -> Tensor:
    return x.value if isinstance(x, IntQuantTensor) else x


# -- unarmed -----------------------------------------------------------------------------


def disable(net: Any) -> None:
    net.faults.enabled = False


def other_mode(net: Any) -> None:
    net.faults.clock.apply_during = "train"


def deselect(net: Any) -> None:
    net.faults.select(1)


@pytest.mark.parametrize("disarm", [disable, other_mode, deselect])
def test_unarmed_returns_the_very_object(
    convnet: nn.Module, faulty: Faulty, disarm: Callable[[Any], None]
) -> None:
    net = faulty(convnet)
    disarm(net)
    x = convnet[0](data(2, 3, 6, 6))
    assert fault_inject(x, net.faults[0]) is x


def test_unarmed_plain_output_is_the_very_tensor(faulty: Faulty) -> None:
    activation = QuantIdentity(bit_width=4).eval()
    net = faulty(chain(activation), apply_during="train")
    seen = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(output))
    result = net(data(2, 5))
    assert type(result) is Tensor
    assert result is value(seen[0])


@pytest.mark.parametrize("disarm", [disable, other_mode, deselect])
def test_unarmed_returns_whatever_came(
    convnet: nn.Module, faulty: Faulty, disarm: Callable[[Any], None]
) -> None:
    net = faulty(convnet)
    disarm(net)
    x = data(2, 3)
    assert fault_inject(x, net.faults[0]) is x


def test_quiet_model_gives_the_clean_output(convnet: nn.Module, faulty: Faulty) -> None:
    x = data(4, 3, 6, 6)
    net = faulty(convnet, apply_during="train")
    assert torch.equal(net(x), convnet(x))


# -- what is hit -------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("grad", [False, True])
def test_no_probability_is_the_identity(convnet: nn.Module, faulty: Faulty, grad: bool) -> None:
    x = data(4, 3, 6, 6).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        expected = convnet(x)
        result = faulty(convnet, probability=0.0)(x)
    assert torch.equal(result, expected)
    assert result.stride() == expected.stride()


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("model", FLIPS)
@pytest.mark.parametrize("grad", [False, True])
def test_all_of_them_are_hit(faulty: Faulty, model: str, grad: bool) -> None:
    activation = fixed_scale(4)
    x = data(6, 3, 5).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        struck = faulty(chain(activation), injection_type=model)(x)
    bits = {"lsb_flip": 0b0001, "msb_flip": 0b1000, "full_flip": 0b1111}[model]
    changed = (struck.int().long() ^ activation(x).int().long()) & 0b1111
    assert torch.equal(changed, torch.full_like(changed, bits))


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("model", MODELS)
def test_what_is_not_hit_stays_bit_for_bit(convnet: nn.Module, faulty: Faulty, model: str) -> None:
    x = data(8, 3, 6, 6)
    clean = value(convnet[0](x))
    net = faulty(convnet[:1], probability=10.0, injection_type=model)
    net.faults.new_statistics()
    struck = value(net(x))
    changed = clean != struck
    hits = net.faults.statistics.layer_stats[0].injected_count
    share = hits / clean.numel()
    assert 0.05 < share < 0.15
    if model == "random":
        assert 0.5 * hits < int(changed.sum()) <= hits
    else:
        assert int(changed.sum()) == hits
    bits = clean.view(torch.int32), struck.view(torch.int32)
    assert torch.equal(bits[0][~changed], bits[1][~changed])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("bits", "signed", "narrow"),
    # Brevitas divides by zero for signed words of one bit that are not binary, and for
    # unsigned ones of narrow range.
    [
        case
        for case in itertools.product([1, 2, 3, 7], [True, False], [True, False])
        if case not in {(1, True, True), (1, True, False), (1, False, True)}
    ],
)
def test_codes_stay_in_their_word(
    faulty: Faulty, model: str, bits: int, signed: bool, narrow: bool
) -> None:
    activation = fixed_scale(bits, signed=signed, narrow_range=narrow)
    struck = faulty(chain(activation), injection_type=model)(3 * data(40, 30))
    codes = (struck.value.double() / struck.scale.double()).round()
    low = -(2 ** (bits - 1)) if signed else 0
    if model == "random":
        low, high = low + (narrow and signed), low + 2**bits - 1 - (narrow and not signed)
    else:
        high = low + 2**bits - 1
    assert int(codes.min()) >= low
    assert int(codes.max()) <= high


def test_quantisation_parameters_are_passed_on(convnet: nn.Module, faulty: Faulty) -> None:
    x = convnet[0](data(2, 3, 6, 6))
    struck = fault_inject(x, faulty(convnet).faults[0])
    assert type(struck) is type(x)
    for name in ("scale", "zero_point", "bit_width", "signed_t", "training_t"):
        assert getattr(struck, name) is getattr(x, name)


TWICE = {
    "signed": lambda: fixed_scale(4),
    "narrow range": lambda: fixed_scale(4, narrow_range=True),
    "unsigned": lambda: QuantReLU(bit_width=5, return_quant_tensor=True),
    "unsigned narrow": lambda: QuantReLU(bit_width=3, narrow_range=True, return_quant_tensor=True),
    "binary": lambda: QuantIdentity(
        act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True
    ),
    "zero point": lambda: QuantIdentity(
        act_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True
    ),
}


@pytest.mark.parametrize("probability", [30.0, 100.0])
@pytest.mark.parametrize("model", FLIPS)
@pytest.mark.parametrize("kind", TWICE)
def test_flipping_twice_at_the_same_places_is_the_identity(
    faulty: Faulty, calibrated: Calibrated, kind: str, model: str, probability: float
) -> None:
    activation = calibrated(TWICE[kind](), data(50, 40))
    net = faulty(chain(activation), injection_type=model, probability=probability)
    x = data(20, 40, seed=2)
    clean = activation(x)
    once = net(x)
    assert not torch.equal(once.value, clean.value)
    assert torch.equal(fault_inject(once, net.faults[0]).value, clean.value)


def test_the_low_rate_is_a_rate(faulty: Faulty) -> None:
    """0.1 % of a million elements: 1,000 with deviation 32; within 4.9 of them (1e-6)."""
    activation = fixed_scale(4)
    net = faulty(chain(activation), probability=0.1, injection_type="msb_flip")
    x = data(100, 10_000)
    changed = (net(x).value != activation(x).value).sum()
    assert abs(int(changed) - 1000) < 155


# -- samples, seeds, trials --------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 16}], ids=str)
@pytest.mark.parametrize("probability", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("batch", [1, 7, 64, 130])
def test_same_faults_whatever_the_batch(
    faulty: Faulty, batch: int, probability: float, settings: dict[str, Any]
) -> None:
    x = data(130, 3, 4, 4)
    net = faulty(exact_net(), probability=probability, **settings)
    whole = net(x).value
    net.faults.reset()
    parts = torch.cat([net(part).value for part in x.split(batch)])
    assert torch.equal(parts, whole)
    assert not torch.equal(whole, exact_net()(x).value)


def test_same_faults_whatever_the_batch_where_windows_are_folded(faulty: Faulty) -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = fixed_scale(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x.reshape(-1, x.shape[2])).value.reshape(x.shape)

    x = data(12, 5, 8)
    net = faulty(Windows().eval(), probability=30.0)
    whole = net(x)
    net.faults.reset()
    assert torch.equal(torch.cat([net(part) for part in x.split([1, 4, 7])]), whole)


def test_every_forward_has_faults_of_its_own(faulty: Faulty) -> None:
    net = faulty(exact_net(), probability=20.0)
    x = data(4, 3, 4, 4)
    assert not torch.equal(net(x).value, net(x).value)


def test_every_sample_has_faults_of_its_own(faulty: Faulty) -> None:
    net = faulty(chain(fixed_scale(4)), probability=20.0, injection_type="msb_flip")
    x = data(1, 200).expand(30, 200).contiguous()
    rows = net(x).value
    assert rows.unique(dim=0).shape[0] == 30


def test_two_models_with_one_seed_are_bit_identical(convnet: nn.Module, faulty: Faulty) -> None:
    x = data(5, 3, 6, 6)
    nets = [faulty(convnet, probability=3.0, seed=11) for _ in range(2)]
    assert torch.equal(nets[0](x), nets[1](x))
    assert torch.equal(nets[0](x), nets[1](x))


def test_seeds_trials_sites_and_training_epochs_differ(faulty: Faulty) -> None:
    pair = chain(fixed_scale(4), fixed_scale(4))

    def masks(seed: int = 0, trial: int = 0, epoch: int = 0, training: bool = False) -> list[Any]:
        net = faulty(pair, probability=20.0, injection_type="msb_flip", seed=seed)
        net.train(training)
        net.faults.reset(trial=trial)
        net.faults.clock.epoch = epoch
        x = torch.full((5, 60), 0.25)
        clean = pair[0](x).value
        return [
            (value(fault_inject(pair[0](x), site)) != clean).flatten().tolist()
            for site in net.faults
            if net(x) is not None
        ]

    runs = [
        masks(),
        masks(seed=1),
        masks(trial=1),
        masks(training=True),
        masks(training=True, epoch=1),
    ]
    drawn = [tuple(mask) for run in runs for mask in run]
    assert len(set(drawn)) == len(drawn) == 10
    assert masks() == runs[0]
    assert masks(epoch=3) == runs[0]  # evaluating after another epoch is the same evaluation


def test_a_missing_seed_is_drawn_and_told(faulty: Faulty) -> None:
    x = data(5, 3, 4, 4)
    first, second = (faulty(exact_net(), probability=20.0, seed=None) for _ in range(2))
    assert first.faults.seed != second.faults.seed
    again = faulty(exact_net(), probability=20.0, seed=first.faults.seed)
    assert torch.equal(again(x).value, first(x).value)


def test_faults_of_a_site_do_not_depend_on_other_sites(faulty: Faulty) -> None:
    x = data(5, 3, 4, 4)
    alone = faulty(exact_net()[:1].eval(), probability=20.0)
    among = faulty(exact_net(), probability=20.0)
    among.faults.select(0)
    rest = exact_net()[1:].eval()
    assert torch.equal(rest(alone(x)).value, among(x).value)


def test_global_generators_are_neither_read_nor_moved(convnet: nn.Module, faulty: Faulty) -> None:
    x = data(5, 3, 6, 6)
    net = faulty(convnet, probability=10.0)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        net.faults.reset()
        results.append(net(x))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
    assert torch.equal(*results)


def test_transforming_moves_no_global_generator(convnet: nn.Module, faulty: Faulty) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    faulty(convnet, seed=None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_calls_by_a_containers_own_code_have_faults_of_their_own(
    branching: nn.Module, faulty: Faulty
) -> None:
    net = faulty(branching, probability=30.0, injection_type="msb_flip")
    assert [site.name for site in net.faults] == ["first", "again"]
    struck: list[Tensor] = []
    for layer in (net.first, net.again):
        layer.register_forward_hook(lambda m, args, output: struck.append(output.value))
    net(torch.zeros(6, 12))
    clean = [torch.zeros(6, 12), branching.again(struck[0]).value]
    clean.append(branching.again(struck[1] - 0.25).value)
    hits = [(now != then).flatten().tolist() for now, then in zip(struck, clean, strict=True)]
    assert all(any(mask) for mask in hits)
    assert hits[1] != hits[2]


# -- shapes and layouts in memory --------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", [(), (6,), (6, 5), (6, 5, 4), (6, 2, 3, 4), (6, 2, 3, 2, 2)])
@pytest.mark.parametrize("grad", [False, True])
def test_any_rank(faulty: Faulty, shape: tuple[int, ...], model: str, grad: bool) -> None:
    activation = fixed_scale(4)
    x = data(*shape).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        struck = faulty(chain(activation), injection_type=model)(x).value
    assert struck.shape == shape
    if model != "random":
        assert bool((struck != activation(x).value).all())


@pytest.mark.parametrize("settings", [{}, {"hw_mask": True}], ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0,), (4, 0), (2, 0, 5)])
def test_empty(faulty: Faulty, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    net = faulty(chain(fixed_scale(4)), **settings)
    assert net(torch.empty(shape)).value.shape == shape


def test_empty_batch_of_a_whole_model_moves_no_counter(faulty: Faulty) -> None:
    x = data(3, 3, 4, 4)
    net = faulty(exact_net(), probability=30.0)
    expected = net(x).value
    net.faults.reset()
    assert net(x[:0]).value.shape == (0, 40)
    assert torch.equal(net(x).value, expected)


ARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every second": lambda x: torch.stack([x, -x], -1).flatten(3)[..., ::2],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 10}], ids=str)
@pytest.mark.parametrize("arrangement", ARRANGED)
def test_arrangement_in_memory_is_kept_and_does_not_matter(
    faulty: Faulty, arrangement: str, settings: dict[str, Any], gradient_mode: str, grad: bool
) -> None:
    activation = fixed_scale(4)
    settings = {**settings, "injection_type": "msb_flip", "gradient_mode": gradient_mode}
    net = faulty(chain(activation), probability=30.0, **settings)
    arranged = ARRANGED[arrangement](data(4, 6, 3, 5))
    results, gradients = [], []
    for x in (arranged.clone(memory_format=torch.contiguous_format), arranged.detach()):
        net.faults.reset()
        x.requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            results.append(net(x).value)
        if grad:
            gradients.append(torch.autograd.grad(results[-1], x, data(4, 6, 3, 5, seed=5))[0])
    assert torch.equal(*results)
    assert results[1].stride() == activation(arranged).value.stride()
    assert not torch.equal(results[1], activation(arranged).value)
    if grad:
        assert torch.equal(*gradients)


# -- gradients ---------------------------------------------------------------------------


def gradients_of(
    model: Any, x: Tensor, upstream: Tensor, outputs: Callable[[Any], Tensor] = value
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The output, the gradient of the input, and those of the parameters."""
    x = x.clone().requires_grad_()
    parameters = dict(model.named_parameters())
    result = outputs(model(x))
    wanted = [x, *parameters.values()]
    grads = torch.autograd.grad(result, wanted, upstream.expand_as(result), allow_unused=True)
    named = {n: g for n, g in zip(parameters, grads[1:], strict=True) if g is not None}
    return result.detach(), grads[0], named


_LEARNED: dict[str, Any] = {"collect_stats_steps": 1, "return_quant_tensor": True}
LEARNED: dict[str, Callable[[], nn.Module]] = {
    "scale": lambda: QuantIdentity(bit_width=4, **_LEARNED),
    "scale of relu": lambda: QuantReLU(bit_width=4, **_LEARNED),
    "bit width": lambda: QuantReLU(bit_width=4, bit_width_impl_type="parameter", **_LEARNED),
    "zero point": lambda: QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, **_LEARNED),
    "hard tanh": lambda: QuantHardTanh(
        bit_width=4, min_val=-1.0, max_val=1.0, return_quant_tensor=True
    ),
}


def learned(kind: str, calibrated: Calibrated) -> nn.Module:
    """An activation whose statistics are collected, so that its scale is a parameter."""
    activation = LEARNED[kind]()
    for _ in range(3):
        calibrated(activation, data(30, 40))
    return activation


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_values_that_gradients_pass_are_not_overwritten(faulty: Faulty, mode: str) -> None:
    net = faulty(chain(fixed_scale(4)), gradient_mode=mode, injection_type="full_flip")
    x = fixed_scale(4)(data(5, 7).requires_grad_())
    before = x.value.detach().clone()
    net.faults.clock.begin(5)
    struck = fault_inject(x, net.faults[0])
    assert torch.equal(x.value, before)
    assert not (struck.value == before).any()


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", LEARNED)
def test_ste_passes_every_gradient(
    faulty: Faulty, calibrated: Calibrated, kind: str, training: bool
) -> None:
    activation = learned(kind, calibrated)
    model = chain(copy.deepcopy(activation)).train(training)
    net = faulty(chain(activation), probability=40.0, injection_type="full_flip")
    net.train(training)
    x, upstream = data(8, 40), data(8, 40, seed=9)
    clean, clean_x, clean_named = gradients_of(model, x, upstream)
    struck, struck_x, struck_named = gradients_of(net, x, upstream)
    assert not torch.equal(struck, clean)
    assert torch.equal(struck_x, clean_x)
    assert clean_named.keys() == struck_named.keys() != set()
    for name, gradient in clean_named.items():
        assert torch.equal(struck_named[name], gradient), name


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", LEARNED)
def test_zero_faulty_stops_gradients_at_the_hits_and_nowhere_else(
    faulty: Faulty, calibrated: Calibrated, kind: str, training: bool
) -> None:
    activation = learned(kind, calibrated)
    model = chain(copy.deepcopy(activation)).train(training)
    settings = {"injection_type": "full_flip", "gradient_mode": "zero_faulty"}
    net = faulty(chain(activation), probability=40.0, **settings).train(training)
    x, upstream = data(8, 40), data(8, 40, seed=9)
    struck, struck_x, struck_named = gradients_of(net, x, upstream)
    hit = struck != value(copy.deepcopy(model)(x)).detach()
    assert 0 < int(hit.sum()) < hit.numel()
    _, clean_x, clean_named = gradients_of(model, x, upstream.masked_fill(hit, 0.0))
    assert torch.equal(struck_x, clean_x)
    assert clean_named.keys() == struck_named.keys() != set()
    for name, gradient in clean_named.items():
        assert torch.equal(struck_named[name], gradient), name


@pytest.mark.usefixtures("small_tensors")
def test_zero_faulty_holds_where_a_hit_changed_nothing(faulty: Faulty) -> None:
    class Nothing:
        name = "nothing"

        def corrupt(self, codes: Tensor, word: Any, draw: Any) -> Tensor:
            return codes

    net = faulty(chain(fixed_scale(4)), injection_type=Nothing(), gradient_mode="zero_faulty")
    x = (data(5, 6) / 4).requires_grad_()
    net(x).value.sum().backward()
    assert not x.grad.any()


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
@pytest.mark.parametrize("part", ["scale", "bit_width"])
def test_gradients_of_scale_and_bit_width_are_untouched(
    faulty: Faulty, calibrated: Calibrated, part: str, gradient_mode: str
) -> None:
    def outputs(x: Any) -> Tensor:
        return getattr(x, part)

    activation = learned("bit width", calibrated)
    net = faulty(chain(activation), gradient_mode=gradient_mode)
    x, one = data(8, 40), torch.tensor(1.0)
    parameters = list(activation.parameters())
    clean = torch.autograd.grad(outputs(activation(x)), parameters, one, allow_unused=True)
    struck = torch.autograd.grad(outputs(net(x)), parameters, one, allow_unused=True)
    assert any(gradient is not None for gradient in clean)
    for have, want in zip(struck, clean, strict=True):
        assert (have is None) == (want is None)
        assert have is None or torch.equal(have, want)


def quant_tensor(values: Tensor, scale: float = 0.5) -> Any:
    def parameter(number: float) -> Tensor:
        return torch.tensor(number, dtype=values.dtype)

    return IntQuantTensor(values, parameter(scale), parameter(0.0), parameter(4.0), True, False)


@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 4}], ids=str)
def test_gradcheck(faulty: Faulty, settings: dict[str, Any]) -> None:
    """`zero_faulty` is the true derivative; `ste` is its own; both can be derived again."""
    values = (torch.arange(-8, 8).double() * 0.5).reshape(4, 4).requires_grad_()
    for mode in ("zero_faulty", "ste"):
        net = faulty(
            chain(fixed_scale(4)),
            probability=40.0,
            injection_type="msb_flip",  # `random` may give the same code, which follows the input
            gradient_mode=mode,
            **settings,
        )
        net.eval()
        net(data(4, 4))

        def strike(v: Tensor, site: Any = net.faults[0]) -> Tensor:
            return fault_inject(quant_tensor(v), site).value

        if mode == "zero_faulty":
            assert torch.autograd.gradcheck(strike, (values,))
        assert torch.autograd.gradgradcheck(strike, (values,))


@pytest.mark.usefixtures("small_tensors")
def test_gradient_of_a_whole_model_in_training(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet, probability=5.0, apply_during="train").train()
    loss = net(data(8, 3, 6, 6)).square().mean()
    loss.backward()
    for parameter in net.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())
    assert any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


# -- in place ----------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("probability", [0.0, 2.0, 50.0, 100.0])
@pytest.mark.parametrize("model", MODELS)
def test_without_gradients_the_values_are_the_same(
    convnet: nn.Module, faulty: Faulty, model: str, probability: float
) -> None:
    net = faulty(convnet, probability=probability, injection_type=model)
    x = data(6, 3, 6, 6)
    with torch.no_grad():
        quick = net(x)
    net.faults.reset()
    assert torch.equal(net(x.requires_grad_()), quick)


class Residual(nn.Module):
    """An activation with two users."""

    def __init__(self) -> None:
        super().__init__()
        self.act = fixed_scale(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.act(x).value
        return y, x, y + x


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_input_and_all_users_of_an_activation(faulty: Faulty) -> None:
    x = data(5, 7)
    kept = x.clone()
    net = faulty(Residual().eval(), injection_type="msb_flip")
    y, same, total = net(x)
    assert torch.equal(x, kept)
    assert same is x
    assert torch.equal(total, y + x)
    assert bool((y != Residual()(x)[0]).all())


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_results_of_two_forwards_are_apart(faulty: Faulty) -> None:
    net = faulty(chain(fixed_scale(4)), probability=30.0)
    first = net(data(5, 7)).value
    kept = first.clone()
    net(data(5, 7, seed=2))
    assert torch.equal(first, kept)


def hook_on_the_layer(net: Any, original: Any, keep: Callable[..., None]) -> Any:
    return net[0].register_forward_hook(keep)


def hook_on_the_quantiser(net: Any, original: Any, keep: Callable[..., None]) -> Any:
    return net[0].act_quant.register_forward_hook(keep)


def hook_on_the_original_quantiser(net: Any, original: Any, keep: Callable[..., None]) -> Any:
    return original[0].act_quant.register_forward_hook(keep)


def hook_on_every_module(net: Any, original: Any, keep: Callable[..., None]) -> Any:
    def only_the_layer(module: nn.Module, args: Any, output: Any) -> None:
        if module is net[0]:
            keep(module, args, output)

    return nn.modules.module.register_module_forward_hook(only_the_layer)


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
@pytest.mark.parametrize(
    ("observe", "sees_faults"),
    [
        (hook_on_the_layer, True),
        (hook_on_the_quantiser, False),
        (hook_on_the_original_quantiser, False),
        (hook_on_every_module, True),
    ],
)
def test_observers_keep_their_tensor_that_of_the_layer_with_faults(
    faulty: Faulty, observe: Callable[..., Any], sees_faults: bool
) -> None:
    original = chain(fixed_scale(4))
    clean = original[0](data(5, 7)).value
    net = faulty(original, injection_type="msb_flip")
    net(data(5, 7))  # By now the site knows that nobody looks on.
    seen: list[Any] = []
    handle = observe(net, original, lambda module, args, output: seen.append(value(output)))
    try:
        struck = net(data(5, 7)).value
    finally:
        handle.remove()
    assert torch.equal(seen[0], struck if sees_faults else clean)
    assert bool((struck != clean).all())


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_an_observer_that_comes_with_another_part_keeps_its_clean_tensor(faulty: Faulty) -> None:
    net, another = faulty(chain(fixed_scale(4)), injection_type="msb_flip"), fixed_scale(4)
    clean = another(data(5, 7)).value
    seen: list[Any] = []
    another.act_quant.fused_activation_quant_proxy.tensor_quant.register_forward_hook(
        lambda module, args, output: seen.append(output[0])
    )
    for part in ("act_quant.fused_activation_quant_proxy.tensor_quant", "act_quant"):
        net(data(5, 7))
        path, _, name = part.rpartition(".")
        setattr(net[0].get_submodule(path), name, another.get_submodule(part))
        seen.clear()
        struck = net(data(5, 7)).value
        assert torch.equal(seen[0], clean)
        assert bool((struck != clean).all())


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_hooks_set_before_the_transform_see_the_faults(faulty: Faulty) -> None:
    original = chain(fixed_scale(4))
    seen: list[Tensor] = []
    original[0].register_forward_hook(lambda m, a, output: seen.append(value(output)))
    clean = fixed_scale(4)(data(5, 7)).value
    for net in (original, copy.deepcopy(original)):
        seen.clear()
        struck = faulty(net, injection_type="msb_flip")(data(5, 7)).value
        assert seen
        assert all(torch.equal(tensor, struck) for tensor in seen)
        assert bool((struck != clean).all())


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_hooks_set_on_a_copy_of_the_transformed_model(faulty: Faulty) -> None:
    net = copy.deepcopy(faulty(chain(fixed_scale(4)), injection_type="msb_flip"))
    seen: list[Tensor] = []
    net[0].register_forward_hook(lambda m, a, output: seen.append(value(output)))
    struck = net(data(5, 7)).value
    assert torch.equal(seen[0], struck)
    assert not torch.equal(seen[0], fixed_scale(4)(data(5, 7)).value)


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_layer_with_code_of_its_own_is_struck_where_its_quantiser_ends(faulty: Faulty) -> None:
    class Remembering(QuantIdentity):
        def forward(self, x: Tensor) -> Any:
            self.last = super().forward(x)
            return self.last

    layer = Remembering(
        bit_width=4, scaling_impl_type="const", scaling_init=2.0, return_quant_tensor=True
    )
    net = faulty(chain(layer), injection_type="msb_flip")
    output = net(data(5, 7))
    assert torch.equal(net[0].last.value, output.value)
    assert not torch.equal(output.value, fixed_scale(4)(data(5, 7)).value)


@pytest.mark.usefixtures("small_tensors")
@torch.no_grad()
def test_brevitas_own_cache_stays_clean(faulty: Faulty) -> None:
    layer = fixed_scale(4).eval()
    layer.act_quant.cache_inference_quant_act = True
    layer.act_quant.cache_quant_io_metadata_only = False
    net = faulty(chain(layer), injection_type="msb_flip")
    net(data(5, 7))
    cached = layer.act_quant._cached_act.quant_tensor.value
    assert torch.equal(cached, fixed_scale(4)(data(5, 7)).value)


# -- draws of a fixed size, as on an accelerator -----------------------------------------


@pytest.fixture(params=[0.5, 10.0, 90.0, 100.0])
def both_draws(
    request: pytest.FixtureRequest, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Give a function that runs a measurement with draws of either kind."""

    def run(measure: Callable[[Any], Any], **settings: Any) -> list[Any]:
        results = []
        for fixed in (False, True):
            for name in ("random_hits", "random_upsets"):
                draw = functools.partial(getattr(sampling, name), fixed_size=fixed)
                monkeypatch.setattr(draws, name, draw)
            if fixed:
                monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
            net = faulty(
                chain(fixed_scale(4, narrow_range=True)),
                probability=request.param,
                **settings,
            )
            results.append(measure(net))
        return results

    return run


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_fixed_size_gives_the_same_values(
    both_draws: Callable[..., list[Any]], model: str, grad: bool
) -> None:
    def measure(net: Any) -> Tensor:
        with torch.set_grad_enabled(grad):
            return net(data(30, 20).requires_grad_(grad)).value

    assert torch.equal(*both_draws(measure, injection_type=model))


def numbers_of(statistics: Any) -> dict[str, Any]:
    """What was recorded at the first site."""
    layer = statistics.to_dict()["layers"]["0"]
    return {key: number for key, number in layer.items() if key != "name"}


KINDS: dict[str, dict[str, Any]] = {
    "random bit": {"injection_type": "bit_flip"},
    "stuck": {"injection_type": "stuck_at_1"},
    "burst": {"injection_type": "burst", "burst_length": 3},
    "bits": {"injection_type": "bit_flip", "rate_unit": "bit"},
    "stuck bits": {"injection_type": "stuck_at_0", "rate_unit": "bit"},
}


@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=str)
def test_fixed_size_gives_the_same_gradients(
    both_draws: Callable[..., list[Any]], gradient_mode: str, kind: dict[str, Any]
) -> None:
    def measure(net: Any) -> Tensor:
        return gradients_of(net, data(30, 20), data(30, 20, seed=3))[1]

    assert torch.equal(*both_draws(measure, gradient_mode=gradient_mode, **kind))


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_fixed_size_gives_the_same_faults_of_other_kinds(
    both_draws: Callable[..., list[Any]], kind: dict[str, Any]
) -> None:
    def measure(net: Any) -> tuple[list[float], dict[str, Any]]:
        statistics = net.faults.new_statistics()
        values = net(data(30, 400)).value.tolist()
        return values, numbers_of(statistics)

    (values, layer), (fixed_values, fixed_layer) = both_draws(measure, **kind)
    assert fixed_values == values
    assert fixed_layer == pytest.approx(layer, rel=1e-12)
    assert layer["injected_count"] > 0


SEVERAL = [
    {"injection_type": "bit_flip", "rate_unit": "bit", "probability": 20.0},
    {"injection_type": "random", "probability": 1.0},
    {"injection_type": "stuck_at_1", "bit": 1, "probability": 30.0},
    {"injection_type": "burst", "num_faults": 4},
]


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_fixed_size_gives_the_same_where_several_faults_strike(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    results = []
    for fixed in (False, True):
        for name in ("random_hits", "random_upsets"):
            draw = functools.partial(getattr(sampling, name), fixed_size=fixed)
            monkeypatch.setattr(draws, name, draw)
        if fixed:
            monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
        net = faulty(chain(fixed_scale(4)), faults=SEVERAL, gradient_mode=mode)
        statistics = net.faults.new_statistics()
        x = data(30, 20) / 4  # Clipped nowhere.
        output, gradient, _ = gradients_of(net, x, data(30, 20, seed=3))
        results.append((output, gradient, numbers_of(statistics)))
        if mode == "zero_faulty":
            clean = gradients_of(chain(fixed_scale(4)), x, data(30, 20, seed=3))[1]
            assert bool((clean != 0).all())
            assert int((gradient == 0).sum()) == statistics.total_injections
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[1][2] == pytest.approx(results[0][2], rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_fixed_size_gives_the_same_statistics(
    both_draws: Callable[..., list[Any]], model: str
) -> None:
    def measure(net: Any) -> dict[str, Any]:
        statistics = net.faults.new_statistics()
        for _ in range(3):
            net(data(30, 20))
        return numbers_of(statistics)

    plain, fixed = both_draws(measure, injection_type=model)
    assert fixed == pytest.approx(plain, rel=1e-12)


# -- run-time changes --------------------------------------------------------------------


def test_probability_is_changed_without_tracing_again(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet, probability=0.0)
    code, x = net.code, data(4, 3, 6, 6)
    net.faults[1].set_probability(100.0)
    struck = net(x)
    assert not torch.equal(struck, convnet(x))
    net.faults.set_probability(0.0)
    assert torch.equal(net(x), convnet(x))
    assert net.code == code


def test_a_learned_bit_width_that_moves_is_followed(faulty: Faulty, calibrated: Calibrated) -> None:
    activation: Any = learned("bit width", calibrated)
    net = faulty(chain(activation), injection_type="full_flip")
    x = data(8, 40)
    for change in (0.0, 1.0, -2.0):
        for name, parameter in activation.named_parameters():
            if "bit_width" in name:
                parameter.data += change
        clean, struck = activation(x), net(x)
        top = 2 ** round(clean.bit_width.item()) - 1
        codes = [(q.value.double() / q.scale.double()).round() for q in (clean, struck)]
        assert torch.equal(codes[0] + codes[1], torch.full_like(codes[0], top))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_changed_after_the_transform(
    convnet: nn.Module, faulty: Faulty, dtype: torch.dtype
) -> None:
    net = faulty(convnet, probability=10.0).to(dtype)
    result = net(data(4, 3, 6, 6, dtype=dtype))
    assert result.dtype == dtype
    assert bool(result.isfinite().all())


# -- what cannot be injected faithfully --------------------------------------------------


def test_nan_scale_is_an_error_that_names_the_site(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet, probability=5.0)
    with torch.no_grad():
        for name, tensor in (*convnet[3].named_parameters(), *convnet[3].named_buffers()):
            if "scaling" in name and tensor.is_floating_point():
                tensor.fill_(float("nan"))
    with pytest.raises(SiteError, match=r"site 3\b.*NaN"):
        net(data(4, 3, 6, 6))


def test_nan_in_the_input_is_an_error(faulty: Faulty) -> None:
    net = faulty(chain(fixed_scale(4)))
    with pytest.raises(SiteError, match="site 0"):
        net(torch.tensor([[0.5, float("nan")]]))


@pytest.mark.parametrize(
    ("bits", "dtype", "limit"),
    [
        (16, torch.bfloat16, "8 in bfloat16"),
        (12, torch.float16, "11 in float16"),
    ],
)
def test_codes_that_the_dtype_cannot_hold(
    faulty: Faulty, bits: int, dtype: torch.dtype, limit: str
) -> None:
    activation = fixed_scale(bits, signed=False).to(dtype)
    net = faulty(chain(activation))
    with pytest.raises(SiteError) as caught:
        net(data(4, 5, dtype=dtype))
    for part in ("site 0", f"{bits}-bit", str(dtype), limit):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(16, torch.float32), (24, torch.float32), (32, torch.float64), (8, torch.bfloat16)],
)
@pytest.mark.parametrize("model", FLIPS)
def test_widest_codes_that_the_dtype_holds(
    faulty: Faulty, bits: int, dtype: torch.dtype, model: str
) -> None:
    activation = fixed_scale(bits).to(dtype)
    x = data(20, 5, dtype=dtype)
    struck = faulty(chain(activation), injection_type=model)(x)
    clean = activation(x)
    pair = [(q.value.double() / q.scale.double()).round().long() for q in (clean, struck)]
    mask = 2**bits - 1
    pattern = {"lsb_flip": 1, "msb_flip": 2 ** (bits - 1), "full_flip": mask}[model]
    assert torch.equal((pair[0] ^ pair[1]) & mask, torch.full_like(pair[0], pattern))


def test_a_quantiser_that_was_disabled_later_is_an_error(faulty: Faulty) -> None:
    activation = QuantIdentity(bit_width=4)
    net = faulty(chain(nn.Identity(), activation))
    activation.act_quant.disable_quant = True
    with pytest.raises(SiteError, match="site 1"):
        net(data(4, 6))


def test_a_quantiser_that_was_disabled_later_is_none_of_our_business_while_unarmed(
    faulty: Faulty,
) -> None:
    activation = QuantIdentity(bit_width=4)
    model = chain(nn.Identity(), activation)
    net = faulty(model, apply_during="train")
    activation.act_quant.disable_quant = True
    x = data(4, 6)
    assert torch.equal(net(x), model(x))


def test_a_delayed_quantiser_is_an_error_and_its_input_is_left_alone(faulty: Faulty) -> None:
    activation = QuantIdentity(bit_width=4, quant_delay_steps=100, return_quant_tensor=True)
    net = faulty(chain(activation).train())
    x = data(5, 7)
    kept = x.clone()
    with pytest.raises(SiteError, match="quant_delay_steps"), torch.no_grad():
        net(x)
    assert torch.equal(x, kept)


# -- the compiled loop and torch's operations ----------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("probability", [0.5, 20.0, 100.0])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("width", [1, 3, 8, 16])
@pytest.mark.parametrize("narrow", [False, True])
def test_the_loop_gives_what_torch_gives(
    faulty: Faulty,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    narrow: bool,
    model: str,
    probability: float,
    dtype: torch.dtype,
) -> None:
    binary = QuantIdentity(act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True)
    layer = fixed_scale(width, narrow_range=narrow) if width > 1 else binary
    results = []
    for by_loop in (True, False):
        if not by_loop:
            monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
        net = faulty(chain(layer), probability=probability, injection_type=model, seed=1).to(dtype)
        statistics = net.faults.new_statistics()
        with torch.no_grad():
            recorded = net(data(30, 50).to(dtype)).value
        net.faults.set_statistics(None)
        net.faults.reset()
        with torch.no_grad():
            alone = net(data(30, 50).to(dtype)).value
        assert torch.equal(alone, recorded)
        results.append((recorded.view(torch.uint8), statistics.to_dict()))
    (looped, counts), (plain, plain_counts) = results
    assert torch.equal(looped, plain)  # All bits, the sign of a zero too.
    assert counts == plain_counts


RATES: dict[str, dict[str, Any]] = {
    "elements": {"probability": 20.0},
    "bits": {"probability": 20.0, "rate_unit": "bit"},
    "so many": {"num_faults": 9},
    "so many bits": {"num_faults": 30, "rate_unit": "bit"},
    "units": {"probability": 20.0, "hw_mask": True, "frequency_value": 16},
}
BIT_MODELS: list[dict[str, Any]] = [
    {"injection_type": "bit_flip"},
    {"injection_type": "stuck_at_0"},
    {"injection_type": "stuck_at_1"},
    {"injection_type": "bit_flip", "bit": 0},
    {"injection_type": "stuck_at_0", "bit": 0},
    {"injection_type": "stuck_at_1", "bit": 0},
    {"injection_type": "burst", "burst_length": 1},
    {"injection_type": "random"},
]


EVERY_KIND = [
    (model, rate)
    for model, rate in itertools.product(BIT_MODELS, RATES.values())
    # What counts bits draws each of them by itself.
    if "rate_unit" not in rate
    or ("bit" not in model and model["injection_type"] not in ("burst", "random"))
]


@pytest.mark.parametrize(("model", "rate"), EVERY_KIND, ids=str)
@pytest.mark.parametrize("width", [1, 3, 16])
def test_the_loop_gives_what_torch_gives_of_every_kind(
    faulty: Faulty,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    model: dict[str, Any],
    rate: dict[str, Any],
) -> None:
    binary = QuantIdentity(act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True)
    layer = fixed_scale(width, narrow_range=True) if width > 1 else binary
    results = []
    for by_loop in (True, False):
        if not by_loop:
            monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
        net = faulty(chain(layer), **model, **rate)
        statistics = net.faults.new_statistics()
        with torch.no_grad():
            struck = net(data(30, 50)).value
        results.append((struck.view(torch.uint8), statistics.to_dict()))
    (looped, counts), (plain, plain_counts) = results
    assert torch.equal(looped, plain)
    assert counts == plain_counts
    assert counts["total_injections"] > 0


SHAPES = [
    (3, 4, 5),
    (1, 7, 2),
    (3, 6, 3, 5),
    (2, 1, 3, 4),
    (2, 5, 1, 1),
    (1, 2, 1, 6),
    (2, 3, 2, 3, 2),
]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rate", RATES.values(), ids=str)
def test_the_loop_finds_its_way_where_channels_come_last(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, rate: dict[str, Any], shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(strikes, "_write", None)  # Nobody calls it.
    rate = {**rate, "injection_type": "bit_flip"}
    if "num_faults" in rate:
        rate["num_faults"] = 2
    x = data(*shape)
    results = []
    for arranged in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        net = faulty(fixed_scale(4), **rate)
        statistics = net.faults.new_statistics()
        recorded = net(arranged).value
        net.faults.set_statistics(None)
        net.faults.reset()
        assert torch.equal(net(arranged).value, recorded)
        assert recorded.stride() == fixed_scale(4)(arranged).value.stride()
        results.append((recorded, statistics.to_dict()))
    (rows, counts), (last, last_counts) = results
    assert torch.equal(rows, last)
    assert counts == last_counts
    assert counts["total_injections"] > 0


# -- parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 16}])
@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
def test_nothing_depends_on_the_size_of_a_part(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, gradient_mode: str, settings: dict[str, Any]
) -> None:
    results = []
    for size in (1 << 14, 5):
        monkeypatch.setattr(sampling, "PART", size)
        net = faulty(
            chain(fixed_scale(4, narrow_range=True)),
            probability=30.0,
            gradient_mode=gradient_mode,
            **settings,
        )
        statistics = net.faults.new_statistics()
        output, gradient, _ = gradients_of(net, data(30, 20), data(30, 20, seed=3))
        results.append((output, gradient, statistics.to_dict()))
    (output, gradient, statistics), (parted, parted_gradient, parted_statistics) = results
    assert torch.equal(parted, output)
    assert torch.equal(parted_gradient, gradient)
    assert parted_statistics == statistics
    assert statistics["total_injections"] > 100
