"""Two threads and one transformed model: an error that says so, never mixed-up faults."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantReLU
from torch import nn

import fxfault
from fxfault.errors import SiteError

CONFIG = {"enabled": True, "apply_during": "eval", "seed": 1, "probability": 50.0}


class Waits(nn.Module):
    """A layer whose forward waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] = lambda: None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.act()
        return values


class Kept(nn.Module):
    """A network whose forward cannot be traced."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if float(values.sum()) > -1:
                values = layer(values)
        return values


@pytest.mark.parametrize("kind", [nn.Sequential, Kept])
def test_a_second_thread_gets_an_error_and_the_first_its_faults(kind: Any) -> None:
    net = kind(Waits(), QuantReLU(bit_width=4)).eval()
    images = torch.rand(4, 64)
    model = fxfault.transform(net, CONFIG)
    waits: Any = next(module for module in model.modules() if isinstance(module, Waits))
    alone = copy.deepcopy(model)(images)
    inside, go_on = threading.Event(), threading.Event()
    outputs: list[torch.Tensor] = []

    def hold() -> None:
        inside.set()
        go_on.wait(30)

    waits.act = hold
    first = threading.Thread(target=lambda: outputs.append(model(images)))
    first.start()
    try:
        assert inside.wait(30)
        with pytest.raises(SiteError, match=r"runs in another thread.*copy\.deepcopy"):
            model(images)
        waits.act = lambda: None
        clone = copy.deepcopy(model)  # Made in the middle of a forward, it belongs to nobody.
        clone(images)
    finally:
        go_on.set()
        first.join()
    assert torch.equal(outputs[0], alone)
    model(images)


def test_a_forward_that_fails_leaves_the_model_to_others() -> None:
    model = fxfault.transform(nn.Sequential(QuantReLU(bit_width=4)).eval(), CONFIG)
    with pytest.raises(TypeError):
        model("no tensor", "and too many")
    outputs: list[Any] = []
    other = threading.Thread(target=lambda: outputs.append(model(torch.rand(2, 8))))
    other.start()
    other.join()
    assert len(outputs) == 1
