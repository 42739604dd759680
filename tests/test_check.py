"""The net under tracing: whatever the tracer misses, the comparison with the given model finds.

The tracer is blinded on purpose (`CallTree` reads nothing), so that it computes another network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from brevitas.nn import QuantReLU
from torch import Tensor, nn

import fxfault
from fxfault.passes import containers_of
from fxfault.passes.checking import UNSTABLE
from fxfault.passes.layer_outputs import LayerOutput
from fxfault.passes.tracing.call_tree import CallTree

CONFIG = {"enabled": True, "probability": 20.0, "apply_during": "both", "seed": 1}
X = torch.linspace(-1, 1, 32).reshape(4, 8)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer that reads no code: it answers `is None` of a symbolic value with no."""
    monkeypatch.setattr(CallTree, "_on_call", lambda *_: None)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.act = QuantReLU(bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Maybe(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class AsksForNone(Block):
    """Computes another network if the tracer takes a value that is None for one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.maybe = Maybe()

    def forward(self, x: Tensor) -> Tensor:
        mask = self.maybe(x)
        x = super().forward(x)
        return x if mask is None else x * 0.5


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = Block()
        self.stage = nn.Sequential(Block(), inner)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.first(x)))


def prepared(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    model(X)
    return model


@pytest.mark.usefixtures("blind")
def test_the_innermost_container_that_differs_keeps_its_own_forward() -> None:
    model = prepared(lambda: Outer(AsksForNone())).eval()
    faulty: Any = fxfault.transform(model, CONFIG)
    faulty.faults["first.act"].set_probability(3.0)
    recorded = faulty.faults.new_statistics()
    faulty(X)
    struck = recorded.total_activations
    faulty.faults.enabled = False
    assert not torch.equal(faulty(X), model(X))  # The tracer is blind indeed.
    found = fxfault.check(faulty, model, X)
    assert torch.equal(faulty(X), model(X))
    assert [container.path for container in found.kept] == ["stage.1"]
    kept = {c.path: c.reason for c in containers_of(faulty) if c.handling == "kept"}
    assert kept == {"stage.1": "its graph gave other results than its own forward in eval mode"}
    assert "stage.1" in str(fxfault.inspect(faulty))
    assert faulty.faults.enabled is False
    assert faulty.faults["first.act"].probability == 3.0
    assert faulty.faults.statistics is recorded
    faulty.faults.enabled = True
    faulty(X)
    assert recorded.total_activations == 2 * struck > 0
    again: Any = fxfault.transform(model, CONFIG)
    assert [c.path for c in containers_of(again) if c.handling == "kept"] == ["stage.1"]


@pytest.mark.usefixtures("blind")
def test_transform_checks_on_example_inputs() -> None:
    model = prepared(lambda: Outer(AsksForNone())).eval()
    for example in (X, (X,)):
        faulty: Any = fxfault.transform(model, CONFIG, example_inputs=example)
        faulty.faults.enabled = False
        assert torch.equal(faulty(X), model(X))
        assert "Checked: bit for bit" in str(fxfault.inspect(faulty))


def test_a_graph_that_differs_only_in_gradients_is_found() -> None:
    model = prepared(lambda: Outer(Block()))
    faulty: Any = fxfault.transform(model, CONFIG)
    assert fxfault.check(faulty, model, X).kept == ()
    (head,) = (n for n in faulty.graph.nodes if n.target == "head")
    with faulty.graph.inserting_before(head):
        head.args = (faulty.graph.call_method("detach", head.args),)
    faulty.recompile()
    found = fxfault.check(faulty, model, X)
    assert found.modes == ("eval", "train")
    assert found.kept[0].reason == "its graph gave other results than its own forward in train mode"


def test_buffers_are_compared_too() -> None:
    class Counts(Block):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return super().forward(x)

    model = prepared(lambda: Outer(Counts()))
    faulty: Any = fxfault.transform(model, CONFIG)
    before = model.stage[1].seen.clone()
    assert fxfault.check(faulty, model, X).kept == ()
    assert torch.equal(model.stage[1].seen, before)
    (node,) = (n for n in faulty.graph.nodes if n.target == "add_")
    faulty.graph.erase_node(node)
    faulty.recompile()
    assert fxfault.check(faulty, model, X).kept != ()


def test_a_network_that_behaves_differently_each_time_is_named_as_such() -> None:
    class Drifts(Block):
        def __init__(self) -> None:
            super().__init__()
            self.noise = torch.Generator().manual_seed(1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(8, generator=self.noise)

    model = prepared(Drifts)
    found = fxfault.check(fxfault.transform(model, CONFIG), model, X, modes=("eval",))
    assert found.modes == ()
    assert found.not_compared == {"eval": UNSTABLE}


def test_dropout_is_no_difference() -> None:
    class Drops(Block):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, training=True)

    model = prepared(Drops)
    state = torch.get_rng_state()
    assert fxfault.check(fxfault.transform(model, CONFIG), model, X).modes == ("eval", "train")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mode_that_the_given_model_does_not_take_is_said() -> None:
    model = prepared(lambda: nn.Sequential(nn.Linear(8, 8), QuantReLU(), nn.BatchNorm1d(8)))
    found = fxfault.check(fxfault.transform(model, CONFIG), model, X[:1])
    assert found.modes == ("eval",)
    assert "the given model raises ValueError: Expected more than 1" in str(found)


def test_everything_is_afterwards_as_it_was() -> None:
    model = prepared(lambda: Outer(nn.Sequential(Block(), nn.BatchNorm1d(8)))).train()
    model.stage[1][1].eval()
    faulty: Any = fxfault.transform(model, {**CONFIG, "track_statistics": True})
    faulty(X)
    settings = [(s.setting, s.selected) for s in faulty.faults]
    clock, injected = faulty.faults.clock.state(), faulty.faults.statistics.total_injections
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    fxfault.check(faulty, model, X)
    assert [(s.setting, s.selected) for s in faulty.faults] == settings
    assert {**faulty.faults.clock.state(), "forward": 0} == {**clock, "forward": 0}
    assert faulty.faults.statistics.total_injections == injected
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True)
    )
    assert [m.training for m in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sites_that_the_inputs_do_not_lead_to_are_named() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return x if x.sum() < 1e9 else self.second(x)

    model = prepared(Early)
    found = fxfault.check(fxfault.transform(model, CONFIG), model, X)
    assert found.not_called == ("second.act",)


def test_a_layer_that_is_called_and_not_struck_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(lambda: Outer(Block()))
    faulty: Any = fxfault.transform(model, CONFIG)
    monkeypatch.setattr(LayerOutput, "take", lambda self, value: None)
    with pytest.raises(
        fxfault.SiteError, match=r"site first\.act: its layer was called 1 times and struck 0 times"
    ):
        fxfault.check(faulty, model, X)


def test_a_frozen_model_is_compared_in_eval_mode_and_never_rebuilt() -> None:
    model = prepared(lambda: Outer(Block())).eval()
    frozen: Any = fxfault.freeze(fxfault.transform(model, CONFIG))
    found = fxfault.check(frozen, model, X)
    assert found.modes == ("eval",)
    assert found.not_compared == {"train": "it is frozen, for evaluation"}
    (head,) = (n for n in frozen.graph.nodes if n.target == "head")
    with frozen.graph.inserting_before(head):
        head.args = (frozen.graph.call_method("neg", head.args),)
    frozen.recompile()
    with pytest.raises(fxfault.TransformError, match=r"thaw it, call fxfault\.check, and freeze"):
        fxfault.check(frozen, model, X)


def test_a_model_with_other_weights_is_refused() -> None:
    model = prepared(lambda: Outer(Block()))
    faulty = fxfault.transform(model, CONFIG)
    assert fxfault.check(faulty, copy.deepcopy(model), X).modes == ("eval", "train")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += 1.0
    with pytest.raises(fxfault.TransformError, match=r"head\.bias is not the same in the two"):
        fxfault.check(faulty, other, X)


def test_a_lone_activation_and_a_kept_model_are_checked() -> None:
    class Loop(Outer):
        def forward(self, x: Tensor) -> Tensor:
            for part in self.stage:
                x = part(x) if x.sum() < 1e9 else x
            return x

    for build in (lambda: QuantReLU(bit_width=4), lambda: Loop(Block())):
        model = prepared(build)
        found = fxfault.check(fxfault.transform(model, CONFIG), model, X)
        assert found.modes == ("eval", "train")
        assert found.kept == ()


def test_inputs_of_any_kind_reach_both_models_and_stay_as_they_are() -> None:
    class Many(Block):
        def forward(self, x: Tensor, pair: Any, table: Any, *, scale: float = 1.0) -> Any:
            x.mul_(table["gain"])
            return {"y": super().forward(x + pair[0][1]) * scale, "n": pair[1]}

    torch.manual_seed(0)
    model = Many()
    model(X.clone(), ([0, X], 3), {"gain": 2})
    given = X.clone()
    faulty = fxfault.transform(model, CONFIG)
    found = fxfault.check(faulty, model, given, ([0, X], 3), {"gain": 2}, scale=0.5)
    assert found.modes == ("eval", "train")
    assert torch.equal(given, X)


def test_how_samples_lie_is_measured_unless_it_is_not_wanted() -> None:
    model = prepared(Block)
    for measure in (True, False):
        faulty: Any = fxfault.transform(model, CONFIG)
        fxfault.check(faulty, model, X, measure=measure)
        assert (faulty.faults[0].seen.arrangement is not None) is measure


@pytest.mark.parametrize("entry", zoo.ZOO, ids=[entry.name for entry in zoo.ZOO])
def test_each_network_of_the_zoo_passes_as_it_was_traced(entry: zoo.Entry) -> None:
    model = entry()
    modes = ("eval", "train") if entry in zoo.HAND_WRITTEN else ("eval",)
    found = fxfault.check(fxfault.transform(model, CONFIG), model, entry.input(), modes=modes)
    assert found.modes == modes
    assert found.kept == ()


def test_evaluation_with_faults_for_training_only_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = prepared(Block)
    with caplog.at_level(logging.WARNING, logger="fxfault"):
        faulty: Any = fxfault.transform(model, {**CONFIG, "apply_during": "train"}).eval()
        faulty(X)
        faulty(X)
        assert [record.message for record in caplog.records] == [
            "no fault strikes in this evaluation: apply_during is train, the model is in eval "
            "mode; for faults here, transform the network with `apply_during: both`, or `eval`"
        ]
        caplog.clear()
        trained: Any = fxfault.transform(model, {**CONFIG, "apply_during": "train"})
        trained.train()(X)
        trained.eval()(X)
        assert caplog.records == []
