"""One edge, one fault: words that reach an activation layer with an equal quantiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxfault
from fxfault.evaluation.full.runner import FullRunner
from fxfault.evaluation.runners import make_runner
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
    """Networks in which an activation layer gets words of an equal quantiser inside a layer."""
    conv = qnn.QuantConv2d(3, 3, 1, output_quant=eighths().act_quant)
    conv.return_quant_tensor = returns
    return {
        "behind": chain(conv, eighths()),
        "behind a view": chain(conv, nn.Flatten(), eighths()),
        "across containers": chain(chain(conv, nn.Identity()), chain(eighths())),
    }


NAMES = ("behind", "behind a view", "across containers")


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


def test_two_activation_layers_both_strike() -> None:
    net, x = chain(eighths(), eighths(), conv_of_words()), torch.randn(4, 3, 6, 6)
    faulty = fxfault.transform(net, {**FLIP, "probability": 100.0, "layers": ["0", "1"]})
    with torch.no_grad():
        struck = faulty(x)
    assert torch.equal(struck, net(x))  # The second flip has undone the first.
    assert [site.name for site in faulty.faults if site.armed] == ["0", "1"]


def conv_of_words(bits: int = 5) -> nn.Module:
    return qnn.QuantConv2d(3, 3, 1, output_quant=eighths(bits).act_quant)


def test_a_word_of_other_width_is_struck_again() -> None:
    net, x = chain(conv_of_words(4), eighths()), torch.randn(4, 3, 6, 6)
    faulty = fxfault.transform(net, {**FLIP, "probability": 100.0})
    with torch.no_grad():
        struck = faulty(x)
    assert torch.equal(struck, net(x))
    assert [site.armed for site in faulty.faults] == [True, True]


def test_incremental_runs_give_what_full_runs_give() -> None:
    torch.manual_seed(0)
    tail = (nn.Flatten(), qnn.QuantLinear(108, 4, bias=True), qnn.QuantReLU())
    net, x = chain(conv_of_words(), eighths(), *tail), torch.randn(22, 3, 6, 6)
    faulty: Any = fxfault.transform(net, {**FLIP, "probability": 1.0})
    loader = DataLoader(TensorDataset(x, net(x).argmax(1)), batch_size=4)
    runners = (FullRunner(faulty, loader), make_runner(faulty, loader, torch.device("cpu"), print))
    for runner in runners:
        runner.golden()
    for chosen in (None, ["0.output_quant"], ["1"], ["4"], ["0.output_quant", "4"]):
        faulty.faults.select(chosen)
        for trial in range(5):
            tops = []
            for runner in runners:
                faulty.faults.reset(trial=trial)
                tops.append(runner.run().top)
            assert torch.equal(*tops)


class Kept(nn.Module):
    """A forward that stays Python, as it asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_of_words(), eighths()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if float(x.detach().sum()) > -1e9 else x


def test_a_forward_that_stays_python_strikes_a_word_once() -> None:
    net, x = Kept().eval(), torch.randn(4, 3, 6, 6)
    faulty = fxfault.transform(net, {**FLIP, "probability": 100.0})
    with torch.no_grad():
        struck = faulty(x)
    assert torch.equal((struck * 8).round().long(), (net(x) * 8).round().long() ^ 1)


def test_strip_leaves_no_trace() -> None:
    net, x = same_word(True)["behind"], torch.randn(4, 3, 2, 2)
    stripped = fxfault.strip(fxfault.transform(net, {**FLIP, "probability": 100.0}))
    assert torch.equal(stripped(x), net(x))
    assert all("unpack_input" not in vars(part) for part in stripped.modules())
