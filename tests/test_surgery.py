"""Layers that take the place of others after transform: struck, or an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantReLU
from torch import Tensor, nn

import fxfault

CONFIG = {
    "enabled": True,
    "probability": 100.0,
    "apply_during": "eval",
    "injection_type": "full_flip",
    "seed": 1,
}
X = torch.linspace(-1, 1, 128).reshape(16, 8)


def act(bits: int, quant_tensor: bool = False) -> QuantReLU:
    layer = QuantReLU(bit_width=bits, return_quant_tensor=quant_tensor)
    layer(X)
    return layer.eval()


class Kept(nn.Sequential):
    """Control flow on values: keeps its own forward."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) if X.sum() < 1e9 and x.sum() < 1e9 else x


def network(inside: Callable[..., nn.Module], *layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), inside(*layers)).eval()


def struck(faulty: Any, x: Tensor) -> tuple[Tensor, int]:
    statistics = faulty.faults.new_statistics()
    output = faulty(x)
    return getattr(output, "value", output), statistics.total_injections


@pytest.mark.parametrize(
    ("inside", "quant_tensor"), [(nn.Sequential, False), (nn.Sequential, True), (Kept, False)]
)
def test_activation_in_the_place_of_another_is_struck_as_if_it_had_been_there(
    inside: Callable[..., nn.Module], quant_tensor: bool
) -> None:
    faulty: Any = fxfault.transform(network(inside, act(4, quant_tensor)), CONFIG)
    other = act(6, quant_tensor)
    expected: Any = fxfault.transform(network(inside, other), CONFIG)
    faulty(X)
    faulty[1][0] = other
    faulty.faults.reset()
    found, wanted = struck(faulty, X), struck(expected, X)
    assert torch.equal(found[0], wanted[0])
    assert found[1] == wanted[1] == X.numel()
    assert faulty.faults[0].bit_width == 6
    assert "pack_output" not in vars(other)


def test_activation_that_comes_back_is_struck_once() -> None:
    faulty: Any = fxfault.transform(network(nn.Sequential, act(4)), CONFIG)
    first = faulty[1][0]
    expected = struck(faulty, X)
    for layer in (act(6), first):
        faulty[1][0] = layer
        faulty(X)
    faulty.faults.reset()
    found = struck(faulty, X)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: nn.ReLU(), "it is not a Brevitas activation layer|it is not one of"),
        (lambda: QuantReLU(act_quant=None), "its quantiser is disabled"),
    ],
)
def test_layer_that_cannot_be_struck_is_an_error_while_sites_are_armed(
    layer: Callable[[], nn.Module], why: str
) -> None:
    faulty: Any = fxfault.transform(network(nn.Sequential, act(4)), CONFIG)
    faulty[1][0] = layer()
    with pytest.raises(fxfault.SiteError, match=rf"({why}).*transform the model again"):
        faulty(X)
    faulty.faults.enabled = False
    assert torch.equal(faulty(X), faulty[1][0](faulty[0](X)))


def test_new_container_with_activations_is_an_error_while_sites_are_armed() -> None:
    for put in (
        lambda net, new: net.__setitem__(1, new),
        lambda net, new: net[1].append(new),
        lambda net, new: setattr(net, "2", new),
    ):
        faulty: Any = fxfault.transform(network(nn.Sequential, act(4)), CONFIG)
        put(faulty, nn.Sequential(act(4)))
        with pytest.raises(fxfault.SiteError, match=r"put there after transform.*transform the"):
            faulty(X)


def test_container_without_activations_is_called_in_the_place_of_another() -> None:
    faulty: Any = fxfault.transform(
        nn.Sequential(nn.Linear(8, 8), nn.Sequential(act(4)), act(4)).eval(), CONFIG
    )
    faulty[1] = nn.Identity()
    output, injections = struck(faulty, X)
    assert injections == X.numel()
    faulty.faults.enabled = False
    assert torch.equal(faulty(X), faulty[2](faulty[0](X)))
    assert output.shape == X.shape
