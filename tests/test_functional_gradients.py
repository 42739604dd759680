"""The operation in a graph: gradients, and values that are overwritten in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity
from brevitas.quant_tensor import IntQuantTensor
from functional_tools import (
    LEARNED,
    MODELS,
    Calibrated,
    Faulty,
    chain,
    data,
    fixed_scale,
    gradients_of,
    learned,
    value,
)
from torch import Tensor, nn

from fxfault.functional import fault_inject

# -- gradients ----------------------------------------------------------------------------


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


# -- in place -----------------------------------------------------------------------------


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
