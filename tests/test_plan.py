"""What a site works out once serves as long as what it follows from is the same, and no longer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity
from torch import Tensor, nn

import fxfault
from fxfault.faults import BitMaskModel, Word
from fxfault.faults.layouts import Arrangement
from fxfault.strike import plan

Faulty = Callable[..., Any]
CHANNELS_LAST = torch.channels_last


def network() -> nn.Module:
    layer = QuantIdentity(bit_width=4, scaling_impl_type="const", scaling_init=2.0)
    return nn.Sequential(layer).eval()


def images(samples: int = 6, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 3, size, size, generator=generator)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans that are made."""
    found: list[Any] = []
    make = plan._made

    def note(*given: Any) -> Any:
        found.append(make(*given))
        return found[-1]

    monkeypatch.setattr(plan, "_made", note)
    return found


def other_rate(net: Any) -> None:
    net.faults.set_probability(60.0)


def other_model(net: Any) -> None:
    net.faults.set_fault_model("msb_flip")


def several(net: Any) -> None:
    entries = [{"probability": 20.0}, {"injection_type": "lsb_flip", "num_faults": 3}]
    net.faults.set_faults(fxfault.FaultInjectionConfig(faults=entries))


def broken_units(net: Any) -> None:
    config = fxfault.FaultInjectionConfig(probability=30.0, hw_mask=True, frequency_value=7)
    net.faults.set_faults(config)


def of_the_batch(net: Any) -> None:
    net.faults[0].seen.arrangement = Arrangement(why_batch="as a test has it")


CHANGES: dict[str, tuple[Callable[[Any], None], Callable[[], Tensor]]] = {
    "rate": (other_rate, images),
    "model": (other_model, images),
    "several": (several, images),
    "units": (broken_units, images),
    "arrangement": (of_the_batch, images),
    "batch": (lambda net: None, lambda: images(4)),
    "shape": (lambda net: None, lambda: images(size=4)),
    "memory": (lambda net: None, lambda: images().to(memory_format=CHANNELS_LAST)),
    "dtype": (lambda net: net.double(), lambda: images().double()),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_is_made_once_and_anew_when_something_changes(
    faulty: Faulty, made: list[Any], change: str
) -> None:
    act, data = CHANGES[change]
    net, fresh = (faulty(network(), probability=30.0) for _ in "ab")
    for _ in range(3):
        net(images())
    assert len(made) == 1
    act(net)
    net.faults.reset()
    changed = net(data())
    net(data())
    assert len(made) == 2 + (change == "several")  # One run that measures the extents.
    act(fresh)
    expected = fresh(data())
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, network().to(changed.dtype)(data()))


@torch.no_grad()
def test_a_copied_model_has_plans_of_its_own(faulty: Faulty, made: list[Any]) -> None:
    net = faulty(network(), probability=30.0)
    before = net(images())
    other = copy.deepcopy(net)
    other.faults.set_probability(0.0)
    for model in (net, other):
        model.faults.reset()
    assert torch.equal(net(images()), before)
    assert not torch.equal(other(images()), before)
    assert [len(part.parts) for part in made] == [1, 0]


class Changeable(BitMaskModel):
    """Flips bits that its owner may choose again at any time."""

    name = "changeable"

    def __init__(self) -> None:
        self.bits = 0b0001

    def masks(self, word: Word) -> tuple[int | Tensor, int | Tensor]:
        return word.all_ones, self.bits


@torch.no_grad()
def test_a_fault_model_of_the_user_may_change(faulty: Faulty) -> None:
    model = Changeable()
    net = faulty(network(), injection_type=model)
    first = net(images())
    model.bits = 0b1000
    second = net(images())
    assert torch.equal(second, faulty(network(), injection_type="msb_flip")(images()))
    assert torch.equal(first, faulty(network(), injection_type="lsb_flip")(images()))
