"""Statistics of batch norms, estimated anew: those of torch's own way, and nothing else moves."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from torch import nn
from torch.optim.swa_utils import update_bn

import fxfault
from fxfault.errors import ConfigError, DataError, SiteError
from fxfault.training import calibrate_batch_norm
from fxfault.training.generators import generator_states

FAULTS = {"enabled": True, "probability": 20.0, "seed": 7}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Net(nn.Module):
    """Quantised, with dropout, an auxiliary head of training, and norms of several momenta."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = QuantIdentity(bit_width=8, return_quant_tensor=True)
        self.first = QuantLinear(6, 8, bias=False, weight_bit_width=4)
        self.norm = nn.BatchNorm1d(8)
        self.relu = QuantReLU(bit_width=4, return_quant_tensor=False)
        self.drop = nn.Dropout(0.5)
        self.late = nn.BatchNorm1d(8, momentum=0.7)
        self.untracked = nn.BatchNorm1d(8, track_running_stats=False)
        self.auxiliary = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.relu(self.norm(self.first(self.quant(x)))))
        if self.training:
            x = self.auxiliary(x)
        scores: torch.Tensor = self.untracked(self.late(x))
        return scores


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    network = Net().train()
    for _ in range(40):  # past the calibration of scales
        network(torch.randn(16, 6))
    network.first.eval()  # A mode of its own is kept.
    return network


@pytest.fixture
def batches() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[1 + torch.randn(16, 6, generator=generator), torch.zeros(16)] for _ in range(5)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    now = model.state_dict()
    assert now.keys() == before.keys()
    return {key for key, value in now.items() if not torch.equal(value, before[key])}


def test_statistics_are_those_of_update_bn(batches: Any) -> None:
    """Where nothing but batch norm depends on the mode, torch's own function does the same."""
    ours = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    torchs = copy.deepcopy(ours)
    assert calibrate_batch_norm(ours, batches) == 2
    update_bn(batches, torchs)
    assert not changed(state(torchs), ours)


@pytest.mark.parametrize("faults", ["clean", "faulty"])
def test_only_statistics_that_were_reached_change(net: Net, batches: Any, faults: Any) -> None:
    model = fxfault.transform(net, FAULTS)
    before, modes = state(net), [module.training for module in model.modules()]
    generators = str(generator_states())
    clock, recorded = model.faults.clock.state(), model.faults.new_statistics()
    assert calibrate_batch_norm(model, batches, faults=faults) == 2
    expected = {f"{norm}.{name}" for norm in ("norm", "late") for name in STATISTICS}
    assert changed(before, net) == expected
    assert [module.training for module in model.modules()] == modes
    assert (net.norm.momentum, net.late.momentum) == (0.1, 0.7)
    assert str(generator_states()) == generators
    assert model.faults.clock.state() == clock
    assert model.faults.statistics is recorded
    assert recorded.total_activations == 0
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("apply_during", ["train", "eval", "both"])
def test_clean_is_that_of_the_network_without_sites(
    net: Net, batches: Any, apply_during: str
) -> None:
    plain = copy.deepcopy(net)
    calibrate_batch_norm(plain, batches)
    model = fxfault.transform(net, {**FAULTS, "apply_during": apply_during})
    calibrate_batch_norm(model, batches)
    assert not changed(state(plain), net)


@pytest.mark.parametrize(
    "settings",
    [
        {"apply_during": "train"},
        {"apply_during": "eval"},
        {"apply_during": "train", "step_interval": 0.0},
        {"apply_during": "both", "epoch_interval": 7},
    ],
)
def test_faulty_strikes_in_every_batch_whenever_training_does(
    net: Net, batches: Any, settings: Any
) -> None:
    clean, always = copy.deepcopy(net), copy.deepcopy(net)
    calibrate_batch_norm(clean, batches)
    calibrate_batch_norm(fxfault.transform(always, FAULTS), batches, faults="faulty")
    model = fxfault.transform(net, {**FAULTS, **settings})
    model.faults.set_epoch(3)
    model.faults.enabled = False
    calibrate_batch_norm(model, batches, faults="faulty")
    assert not model.faults.enabled
    assert not changed(state(always), net)
    # The activation before `late` is struck: that of `norm` too, as the input is.
    assert changed(state(clean), net) >= {"norm.running_mean", "late.running_mean"}


def test_without_probability_faulty_is_clean(net: Net, batches: Any) -> None:
    clean = copy.deepcopy(net)
    calibrate_batch_norm(clean, batches)
    model = fxfault.transform(net, {**FAULTS, "probability": 0.0})
    calibrate_batch_norm(model, batches, faults="faulty")
    assert not changed(state(clean), net)


def test_faults_with_a_number_of_their_own_are_measured_and_struck(net: Net, batches: Any) -> None:
    clean = copy.deepcopy(net)
    calibrate_batch_norm(clean, batches)
    model = fxfault.transform(net, {"enabled": True, "num_faults": 4, "seed": 1})
    calibrate_batch_norm(model, batches, faults="faulty")
    assert "late.running_mean" in changed(state(clean), net)


def test_faults_are_not_those_that_an_evaluation_meets(net: Net, batches: Any) -> None:
    """Statistics that know the faults of the test would be tested on what they were made from."""
    model = fxfault.transform(net, {**FAULTS, "apply_during": "eval"})
    struck: list[torch.Tensor] = []
    net.late.register_forward_pre_hook(lambda module, inputs: struck.append(inputs[0].clone()))
    calibrate_batch_norm(model, batches[:1], faults="faulty")
    calibrate_batch_norm(model, batches[:1], faults="faulty")
    model.eval()
    net.norm.train()  # What comes before the second site is then the same.
    model.faults.reset()
    model(batches[0][0])
    assert torch.equal(struck[0], struck[1])
    assert not torch.equal(struck[0], struck[2])


def test_a_layer_that_the_seed_drew_stays_drawn(net: Net, batches: Any) -> None:
    for seed in range(6):
        model = fxfault.transform(net, {**FAULTS, "mode": "layer", "seed": seed})
        selected = [site.selected for site in model.faults]
        calibrate_batch_norm(model, batches, faults="faulty")
        assert [site.selected for site in model.faults] == selected


@pytest.mark.parametrize("twice", [[], ["once more"]])
def test_the_old_statistics_have_no_part(net: Net, batches: Any, twice: list[str]) -> None:
    other = copy.deepcopy(net)
    other.norm.running_mean.fill_(1e6)  # type: ignore[operator]
    for _ in range(1 + len(twice)):
        calibrate_batch_norm(net, batches)
    calibrate_batch_norm(other, batches)
    assert not changed(state(net), other)


def test_dropout_draws_nothing_and_user_transforms_leave_the_generators(net: Net) -> None:
    def drawn() -> Any:
        for _ in range(3):
            random.random()
            np.random.rand()
            yield torch.rand(16, 6)

    before = str(generator_states())
    calibrate_batch_norm(net, drawn())
    assert str(generator_states()) == before


def test_several_processes_are_not_waited_for() -> None:
    """SyncBatchNorm would wait for processes that ended before; on a CPU it refuses to run."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    batches = torch.randn(3, 8, 6)
    calibrate_batch_norm(plain, batches)
    calibrate_batch_norm(synced, batches)
    assert not changed(state(plain), synced)
    assert "forward" not in vars(synced[1])


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise ValueError("no third batch")
        scores: torch.Tensor = self.norm(x)
        return scores


def test_after_an_error_all_is_as_before(batches: Any) -> None:
    model = Failing()
    before = state(model)
    with pytest.raises(DataError, match=r"of shape \(16, 6\): .*no third batch"):
        calibrate_batch_norm(model, batches)
    assert not changed(before, model)
    assert (model.training, model.norm.training, model.norm.momentum) == (True, True, 0.1)
    with pytest.raises(DataError, match="there is no batch"):
        calibrate_batch_norm(model, [])
    assert not changed(before, model)


def test_what_cannot_be_calibrated_is_refused(net: Net, batches: Any) -> None:
    with pytest.raises(ConfigError, match="Linear has no batch norm"):
        calibrate_batch_norm(nn.Linear(6, 2), batches)
    with pytest.raises(SiteError, match="Net has no fault sites"):
        calibrate_batch_norm(net, batches, faults="faulty")
    with pytest.raises(ConfigError, match="got 'noisy', allowed: 'clean' or 'faulty'"):
        calibrate_batch_norm(net, batches, faults="noisy")  # type: ignore[arg-type]
