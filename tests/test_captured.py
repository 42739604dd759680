"""A captured forward: replays are forwards.

There may be no GPU here. A trace of the operators that a forward runs stands in for a CUDA graph:
it repeats them with what they were called with, on the same tensors, without any Python in between.
`tests/test_gpu.py` captures real ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import fxfault
from fxfault import captured, draws, random_numbers, strikes
from fxfault.errors import ConfigError, SiteError
from fxfault.strikes import Strike

Faulty = Callable[..., Any]


def trace(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """What `captured.record` gives, without a device."""
    run()  # What is worked out once is worked out here, as on a device.
    graph = make_fx(run)()
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"}
    assert not waiting & {getattr(node.target, "_opname", "") for node in called(graph)}
    outputs = graph()

    def replay() -> None:
        for kept, new in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(graph()), strict=True):
            kept.copy_(new)

    return outputs, replay


def called(graph: Any) -> list[Any]:
    return [node for node in graph.graph.nodes if node.op == "call_function"]


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of the CPU go the way of those of a device."""
    monkeypatch.setattr(captured, "_is_on_device", lambda x: isinstance(x, Tensor))
    monkeypatch.setattr(captured, "record", trace)
    monkeypatch.setattr(Strike, "takes_loop", lambda self, values: False)
    monkeypatch.setattr(strikes, "_one_number", lambda parameter: parameter.detach())
    monkeypatch.setattr(strikes, "_must_not_wait", lambda tensor: True)
    for name in ("random_hits", "random_upsets"):
        fixed = functools.partial(getattr(draws, name), fixed_size=True)
        monkeypatch.setattr(draws, name, fixed)

    def mix64(counters: Tensor) -> Tensor:
        mixed = counters.clone()
        random_numbers._mix64_torch(mixed)
        return mixed

    monkeypatch.setattr(random_numbers, "mix64", mix64)


def network() -> nn.Module:
    layers = [QuantIdentity(bit_width=4, scaling_impl_type="const", scaling_init=2.0) for _ in "ab"]
    torch.manual_seed(0)
    return nn.Sequential(layers[0], nn.Linear(12, 9), layers[1]).eval()


def weighty_network() -> nn.Module:
    """With a layer that quantises its weights."""
    made = network()
    made[1] = QuantLinear(12, 9, bias=True, weight_bit_width=4)  # type: ignore[index]
    return made.eval()


def inputs(seed: int = 0, samples: int = 5) -> Tensor:
    return torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, dict[str, Any]] = {
    "random": {},
    "msb": {"injection_type": "msb_flip"},
    "any bit": {"injection_type": "bit_flip"},
    "bits": {"injection_type": "bit_flip", "rate_unit": "bit"},
    "broken cells": {"injection_type": "stuck_at_1"},
    "broken units": {"hw_mask": True, "frequency_value": 7},
    "one layer": {"layers": [1]},
    "several": {
        "faults": [
            {"injection_type": "msb_flip", "probability": 20.0},
            {"injection_type": "stuck_at_0", "probability": 30.0, "layers": [1]},
        ]
    },
}


def pair(faulty: Faulty, **settings: Any) -> tuple[Any, Any]:
    """Two networks alike, one of which is captured."""
    if "faults" not in settings:
        settings = {"probability": 30.0, **settings}
    plain, other = (faulty(network(), **settings) for _ in "ab")
    return plain, fxfault.capture(other, inputs())


@torch.no_grad()
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_replays_are_forwards(faulty: Faulty, settings: dict[str, Any]) -> None:
    plain, forward = pair(faulty, **settings)
    kept = []
    for trial in (0, 1, 7):
        for net in (plain, forward.model):
            net.faults.reset(trial=trial)
        for seed in range(3):
            expected = plain(inputs(seed))
            kept.append((forward(inputs(seed)), expected))
            assert forward.model.faults.clock.state() == plain.faults.clock.state()
    for found, expected in kept:  # Not before the last replay.
        assert torch.equal(found, expected)
    assert len({tuple(found.flatten().tolist()) for found, _ in kept}) == len(kept)
    again = settings.get("hw_mask") or settings.get("injection_type") == "stuck_at_1"
    assert forward.captures == (3 if again or "faults" in settings else 1)
    forward.model.faults.check()


@torch.no_grad()
def test_samples_told_by_number(faulty: Faulty) -> None:
    plain, forward = pair(faulty)
    for chosen in ([4, 3, 2, 1, 0], [100, 7, 2**31, 5, 9]):
        numbers = torch.tensor(chosen)
        with plain.faults.samples(numbers), forward.model.faults.samples(numbers):
            assert torch.equal(forward(inputs()), plain(inputs()))
    assert torch.equal(forward(inputs()), plain(inputs()))
    assert forward.captures == 1


@torch.no_grad()
def test_settings_that_are_built_in_are_captured_again(faulty: Faulty) -> None:
    plain, forward = pair(faulty)
    changes: list[Callable[[Any], None]] = [
        lambda faults: faults.set_probability(80.0),
        lambda faults: faults.set_fault_model("msb_flip"),
        lambda faults: faults.select([0]),
        lambda faults: setattr(faults, "enabled", False),
        lambda faults: setattr(faults, "enabled", True),
    ]
    forward(inputs()), plain(inputs())
    for number, change in enumerate(changes):
        for net in (plain, forward.model):
            change(net.faults)
        for _ in "ab":
            assert torch.equal(forward(inputs(3)), plain(inputs(3)))
        assert forward.captures == 2 + number


@torch.no_grad()
@pytest.mark.parametrize("replace", [False, True])
def test_other_weights_are_captured_again(faulty: Faulty, replace: bool) -> None:
    """A frozen layer has quantised its weights before a graph is captured."""
    plain, other = (fxfault.freeze(faulty(weighty_network(), probability=30.0)) for _ in "ab")
    forward = fxfault.capture(other, inputs())
    before = forward(inputs()), plain(inputs())
    for net in (plain, other):
        layer = net.get_submodule("1")
        if replace:
            layer.weight = nn.Parameter(-layer.weight)
        else:
            layer.weight.mul_(-1)
    assert torch.equal(*before)
    for _ in "ab":
        after = forward(inputs(1))
        assert torch.equal(after, plain(inputs(1)))
    assert forward.captures == 2


@torch.no_grad()
def test_a_capture_that_fails_leaves_no_stale_graph(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, forward = pair(faulty)
    assert torch.equal(forward(inputs()), plain(inputs()))

    def fail(run: Callable[[], Any]) -> Any:
        raise torch.OutOfMemoryError

    forward.model.faults.set_probability(80.0)
    with monkeypatch.context() as patched:
        patched.setattr(captured, "record", fail)
        with pytest.raises(torch.OutOfMemoryError):
            forward(inputs())
    forward.model.faults.set_probability(30.0)
    for net in (plain, forward.model):
        net.faults.reset(trial=5)
    assert torch.equal(forward(inputs()), plain(inputs()))


@torch.no_grad()
def test_other_inputs_run_without_the_graph(faulty: Faulty) -> None:
    plain, forward = pair(faulty)
    for samples in (5, 3, 5):
        assert torch.equal(forward(inputs(1, samples)), plain(inputs(1, samples)))
    assert forward.captures == 1


@torch.no_grad()
def test_values_that_are_no_codes_are_told_when_asked(faulty: Faulty) -> None:
    _, forward = pair(faulty, probability=100.0)
    forward(inputs())
    forward.model.faults.check()
    forward(torch.full((5, 12), torch.nan))
    forward(inputs())
    with pytest.raises(SiteError, match="are not integer codes"):
        forward.model.faults.check()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_faults": 2}, "`num_faults` is drawn on the host"),
        ({"track_statistics": True}, "its statistics are kept on the host"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(
    faulty: Faulty, settings: dict[str, Any], why: str
) -> None:
    net = faulty(network(), **settings)
    forward = fxfault.capture(net, inputs())
    with pytest.raises(SiteError, match=why):
        forward(inputs())
    assert net.faults.clock.first_sample == 0
    assert net.faults.clock.keys is None


def test_a_site_that_a_container_calls_is_refused(faulty: Faulty, branching: nn.Module) -> None:
    net = faulty(branching)
    forward = fxfault.capture(net, torch.randn(4, 12))
    with pytest.raises(SiteError, match="a container calls it"):
        forward(torch.randn(4, 12))


def test_inputs_and_mode_are_checked(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    net = faulty(network())
    with pytest.raises(ConfigError, match="got inputs on nothing"):
        fxfault.capture(net)
    with pytest.raises(ConfigError, match="training mode"):
        fxfault.capture(net.train(), inputs())
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="got inputs on cpu, allowed: CUDA tensors"):
        fxfault.capture(net.eval(), inputs())
