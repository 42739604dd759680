"""What the tests of the clock share: small models, and what is hit in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from brevitas.nn import QuantIdentity
from torch import Tensor, nn
from zoo import HAND_WRITTEN

Faulty = Callable[..., Any]


def activation() -> Any:
    """A signed 4-bit quantiser of scale 1/4."""
    return QuantIdentity(
        bit_width=4, scaling_impl_type="const", scaling_init=2.0, return_quant_tensor=True
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = activation()

    def forward(self, x: Any) -> Any:
        return self.act(x)


class Net(nn.Module):
    """Five sites: `stem`, `layer1.0.act`, `layer1.1.act`, `layer2.0.act`, `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = activation()
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block())
        self.head = activation()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer2(self.layer1(self.stem(x))))


def data(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def armed_sites(net: Any, x: Tensor | None = None) -> list[int]:
    """The sites that are armed in the next forward, as their statistics show."""
    statistics = net.faults.new_statistics()
    net(data(40, 10) if x is None else x)
    return [i for i, layer in statistics.layer_stats.items() if layer.total_activations]


def frozen(name: str, faulty: Faulty, **settings: Any) -> Any:
    """A network of the zoo that trains, but whose layers keep their statistics."""
    (entry,) = (entry for entry in HAND_WRITTEN if entry.name == name)
    net = faulty(entry(), **{"probability": 20.0, **settings}).train()
    for child in net.children():
        child.eval()
    return net
