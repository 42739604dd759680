"""One edge, one fault: words that reach an activation layer with an equal quantiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from torch import Tensor, nn

import fxfault
from fxfault.models import build_model
from fxfault.quantisers.quant_tensors import plain

# Brevitas says this of layers that share a quantiser.
pytestmark = pytest.mark.filterwarnings("ignore:Keyword arguments are being passed:UserWarning")

FLIP = {"enabled": True, "apply_during": "eval", "injection_type": "bit_flip", "bit": 0, "seed": 0}


def eighths(bits: int = 5, **options: Any) -> Any:
    """A quantiser whose scale is 1/8."""
    limit = 2.0 ** (bits - 4)
    return qnn.QuantIdentity(
        bit_width=bits, scaling_impl_type="const", min_val=-limit, max_val=limit, **options
    )


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


def same_word(returns: bool) -> dict[str, nn.Module]:
    """Networks in which a word passes two equal quantisers, the second in an activation layer."""
    words = {"return_quant_tensor": returns}
    conv = qnn.QuantConv2d(3, 3, 1, output_quant=eighths().act_quant)
    conv.return_quant_tensor = returns
    return {
        "of a layer's output": chain(conv, eighths()),
        "of an activation": chain(eighths(**words), nn.Flatten(), eighths()),
        "across containers": chain(chain(nn.Identity(), eighths(**words)), chain(eighths())),
    }


NAMES = ("of a layer's output", "of an activation", "across containers")


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_equal_word_is_struck_once(name: str, returns: bool, freeze: bool) -> None:
    """A second flip of bit 0 would undo the first."""
    torch.manual_seed(0)
    net, x = same_word(returns)[name], torch.randn(4, 3, 6, 6)
    clean = net(x)
    faulty: Any = fxfault.transform(net, {**FLIP, "probability": 100.0})
    model: Any = fxfault.freeze(faulty) if freeze else faulty
    first, second = (site.name for site in model.faults)
    for chosen, armed in ((None, first), ([first], first), ([second], second)):
        model.faults.select(chosen)
        with torch.no_grad():
            struck = plain(model(x))
        assert torch.equal((struck * 8).round().long(), (clean * 8).round().long() ^ 1)
        assert [site.name for site in model.faults if site.armed] == [armed]
    model.faults.select(None)
    with torch.no_grad():
        model(x)
    assert model.faults[second].why_unarmed == f"its words are struck at {first}"


def test_a_word_of_other_width_is_struck_again() -> None:
    net, x = chain(eighths(), eighths(6)), torch.randn(4, 3)
    faulty = fxfault.transform(net, {**FLIP, "probability": 100.0})
    with torch.no_grad():
        struck = faulty(x)
    assert torch.equal(struck, net(x))  # The second flip has undone the first.
    assert [site.armed for site in faulty.faults] == [True, True]


class Kept(nn.Module):
    """A forward that stays Python, as it asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = eighths(), eighths()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if float(x.sum()) > -1e9 else x


def test_a_forward_that_stays_python_strikes_a_word_once() -> None:
    net, x = Kept().eval(), torch.randn(4, 3)
    faulty = fxfault.transform(net, {**FLIP, "probability": 100.0})
    with torch.no_grad():
        struck = faulty(x)
    assert torch.equal((struck * 8).round().long(), (net(x) * 8).round().long() ^ 1)


def test_strip_leaves_no_trace() -> None:
    net, x = same_word(True)["of an activation"], torch.randn(4, 3, 2, 2)
    stripped = fxfault.strip(fxfault.transform(net, {**FLIP, "probability": 100.0}))
    assert torch.equal(stripped(x), net(x))
    assert all("unpack_input" not in vars(part) for part in stripped.modules())


@pytest.mark.parametrize("name", ["quant_digits", "quant_lenet", "quant_cnv"])
def test_networks_without_equal_neighbours_follow_no_words(name: str) -> None:
    """To follow words takes time in every forward."""
    shape: dict[str, Any] = {"in_channels": 3, "image_size": (32, 32), "num_classes": 10}
    if name == "quant_digits":
        shape |= {"in_channels": 1, "image_size": (8, 8)}
    net = build_model(name, **shape, weight_bit_width=4, act_bit_width=4)
    assert fxfault.transform(net, {**FLIP, "probability": 1.0}).faults.edges is None
