"""Names of modules that torch takes and code does not: kept out of code, and struck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantReLU
from torch import nn

import fxfault
from fxfault.passes.drawing import to_dot
from fxfault.passes.tracing.containers import containers_of

CONFIG = {"enabled": True, "apply_during": "eval", "seed": 1, "probability": 50.0}
CODE = '"+__import__("pathlib")|__import__("os")["mkdir"]("run")+"'
NAMES = [
    'a" b',
    "a\nb",
    "a\\x41",
    "it's",
    "class",
    "None",
    "ﬁ",
    "µ",
    "{x}",
    "\x1b[31m",
    "a\0b",
    CODE,
]
FINE = ["a b", "0", "a-b", "été", "𝟙!", "<b>"]


class Named(nn.Module):
    """Calls a layer, or a container, by whatever name it has."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.called = name
        self.add_module(name, layer)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self._modules[self.called](values)  # type: ignore[misc]


class WithBuffer(nn.Module):
    """Reads a buffer by an odd name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.called = name
        self.act = QuantReLU(bit_width=4)
        self.register_buffer(name, torch.ones(3))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.act(values) * getattr(self, self.called)


def struck(net: nn.Module, images: torch.Tensor) -> Any:
    model = fxfault.transform(net.eval(), CONFIG)
    assert not torch.equal(model(images), net(images))
    model.faults.enabled = False
    assert torch.equal(model(images), net(images))
    return model


@pytest.mark.parametrize("name", [*NAMES, *FINE], ids=ascii)
def test_a_layer_and_a_container_of_any_name_are_struck(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = torch.rand(4, 3)
    for net in (
        Named(name, QuantReLU(bit_width=4)),
        Named(name, nn.Sequential(nn.Linear(3, 3), QuantReLU(bit_width=4))),
        nn.Sequential(Named(name, QuantReLU(bit_width=4)), nn.Linear(3, 3)),
        WithBuffer(name),
    ):
        model = struck(net, images)
        assert list(model.state_dict()) == list(net.state_dict())
        kept = [c for c in containers_of(model) if c.handling == "kept"]
        if name in NAMES:
            assert any("cannot be written into generated code" in c.reason for c in kept)
            codes = [str(getattr(module, "code", "")) for module in model.modules()]
            assert not any(f'"{name}"' in code or f"self.{name}" in code for code in codes)
        str(fxfault.inspect(model))
        to_dot(model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES[:4], ids=ascii)
def test_a_container_below_an_odd_name_is_traced_by_itself(name: str) -> None:
    inner = nn.Sequential(nn.Linear(3, 3), QuantReLU(bit_width=4))
    model = struck(Named(name, inner), torch.rand(4, 3))
    handled = {container.path: container.handling for container in containers_of(model)}
    assert handled == {"": "kept", name: "own graph"}
