"""The specification's programs, on `FaultInjector`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from zoo import Chain

from fxfault import (
    ConfigError,
    FaultInjectionConfig,
    FaultInjector,
    FaultStatistics,
    SiteError,
)
from fxfault.faults.random_numbers import uniform_float


def config(**changes: object) -> FaultInjectionConfig:
    settings = {"enabled": True, "probability": 5.0, "apply_during": "both", "seed": 1}
    return FaultInjectionConfig(**{**settings, **changes})


@pytest.fixture
def injector() -> FaultInjector:
    return FaultInjector()


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, 8, 8, generator=generator), torch.zeros(4, dtype=torch.long))
        for _ in range(count)
    ]


def test_basic_usage(injector: FaultInjector) -> None:
    settings = config()
    settings.validate()
    model = injector.inject(Chain(), settings)
    assert injector.get_num_layers(model) == 2
    assert {"QuantIdentity", "QuantReLU", "QuantHardTanh"} < injector.QUANT_TARGET_LAYERS
    assert {"QuantSigmoid", "QuantTanh", "QuantLSTM", "QuantRNN"} < injector.QUANT_TARGET_LAYERS


def test_statistics_tracking(injector: FaultInjector, tmp_path: Path) -> None:
    model = injector.inject(Chain(), config(probability=50.0)).eval()
    statistics = FaultStatistics(num_layers=injector.get_num_layers(model))
    injector.set_statistics(model, statistics)
    with torch.no_grad():
        for inputs, _ in batches():
            model(inputs)
    statistics.save_to_file(str(tmp_path / "fault_stats.json"))
    for layer_id, layer in statistics.layer_stats.items():
        assert layer.layer_id == layer_id
        assert 40 < layer.injection_rate < 60
        assert layer.sample_count == 2


def test_training_loop(injector: FaultInjector) -> None:
    settings = config(apply_during="train", step_interval=0.5, probability=20.0)
    model = injector.inject(Chain(), settings)
    statistics = model.faults.new_statistics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    criterion = nn.CrossEntropyLoss()
    loader = batches(8)
    for epoch in range(2):
        injector.update_epoch(model, epoch)
        injector.reset_counters(model)
        if settings.step_interval > 0:
            injector.set_condition_injector(model, len(loader), settings.step_interval)
        injector.set_enabled(model, settings.apply_during in ("train", "both"))
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
        injector.set_enabled(model, settings.apply_during in ("eval", "both"))
        model.eval()
        assert torch.equal(model(loader[0][0]), model(loader[0][0]))
    assert model.faults.clock.step == 8
    assert 0 < statistics.layer_stats[0].sample_count < 16


def test_a_loop_that_never_calls_the_schedule_draws_steps_by_itself(
    injector: FaultInjector,
) -> None:
    model = injector.inject(Chain(), config(step_interval=0.5)).train()
    statistics = model.faults.new_statistics()
    for inputs, _ in batches(32):
        model(inputs)
    assert 4 < statistics.layer_stats[0].sample_count < 28


def test_the_curriculum_wins_over_the_step_interval_that_a_loop_hands_over(
    injector: FaultInjector,
) -> None:
    curriculum = [
        {"epoch": 0, "step_interval": 0.5, "probability": 20},
        {"epoch": 2, "step_interval": 1, "probability": 40},
    ]
    settings = config(
        apply_during="train", step_interval=0.1, curriculum=curriculum, interpolate="linear"
    )
    model = injector.inject(Chain(), settings).train()
    noisy = []
    for epoch, share in enumerate([0.5, 0.75, 1.0]):
        injector.update_epoch(model, epoch)
        injector.reset_counters(model)
        injector.set_condition_injector(model, 6, settings.step_interval)
        for inputs, _ in batches(6):
            model(inputs)
            noisy.append(model.faults[0].armed)
        assert noisy[6 * epoch :] == [
            uniform_float(1, "step", epoch, step) < share for step in range(6)
        ]
        assert {site.probability for site in model.faults} == {20.0 + 10.0 * epoch}
    assert set(noisy) == {False, True}


def test_the_step_interval_of_a_loop_counts_where_no_point_names_it(
    injector: FaultInjector,
) -> None:
    curriculum = [{"epoch": 0, "probability": 20}]
    model = injector.inject(Chain(), config(curriculum=curriculum))
    injector.update_epoch(model, 3)
    injector.set_condition_injector(model, 6, 0.25)
    assert model.faults.clock.step_interval == 0.25


def test_updating_the_epoch_leaves_the_numbers_of_samples_and_steps(
    injector: FaultInjector,
) -> None:
    model = injector.inject(Chain(), config()).train()
    model(batches()[0][0])
    injector.update_epoch(model, 2)
    model(batches()[0][0])
    clock = model.faults.clock
    assert (clock.epoch, clock.step, clock.first_sample) == (2, 2, 4)
    with pytest.raises(ConfigError, match="epoch: got -1"):
        injector.update_epoch(model, -1)


def test_probability_of_all_or_one_layer(injector: FaultInjector) -> None:
    model = injector.inject(Chain(), config())
    injector.update_probability(model, probability=10.0)
    injector.update_probability(model, probability=15.0, layer_id=1)
    assert [site.probability for site in model.faults] == [10.0, 15.0]


def test_remove_gives_the_very_model_back_with_what_training_changed(
    injector: FaultInjector,
) -> None:
    original = Chain()
    keys = list(original.state_dict())
    model = injector.inject(original, config()).train()
    model(batches()[0][0]).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    removed = injector.remove(model)
    assert removed is original
    assert not removed.training
    assert list(removed.state_dict()) == list(state)
    assert set(keys) <= set(state)
    assert all(torch.equal(removed.state_dict()[key], value) for key, value in state.items())


def test_loop_runs_unchanged_where_injection_is_not_enabled(injector: FaultInjector) -> None:
    original = Chain()
    model = injector.inject(original, config(enabled=False))
    assert model is original
    injector.update_epoch(model, 1)
    injector.reset_counters(model)
    injector.set_condition_injector(model, 10, 0.5)
    injector.set_enabled(model, True)
    injector.update_probability(model, 1.0)
    injector.set_statistics(model, FaultStatistics(0))
    assert injector.get_num_layers(model) == 0
    assert injector.remove(model) is original


def test_configuration_from_a_mapping_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text("fault_injection:\n  enabled: true\n  probability: 1e-3\n")
    with path.open() as file:
        full_config = yaml.safe_load(file)
    full_config["fault_injection"]["probability"] = float(
        full_config["fault_injection"]["probability"]
    )
    assert FaultInjectionConfig.from_dict(full_config["fault_injection"]).probability == 1e-3
    assert FaultInjectionConfig.from_yaml(path).probability == 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, m: i.update_probability(m, 101.0), "got 101.0, allowed: a number from 0 to 100"),
        (lambda i, m: i.update_probability(m, True), "got True, allowed: a number"),
        (lambda i, m: i.set_condition_injector(m, 10, 1.5), "step_interval: got 1.5"),
        (lambda i, m: i.set_condition_injector(m, 0, 0.5), "num_iterations: got 0"),
        (lambda i, m: i.set_statistics(m, FaultStatistics(7)), "statistics for 7 layers"),
    ],
)
def test_values_out_of_range_are_refused(injector: FaultInjector, call, message: str) -> None:  # type: ignore[no-untyped-def]
    model = injector.inject(Chain(), config())
    with pytest.raises(ConfigError, match=message):
        call(injector, model)


def test_layer_that_does_not_exist_is_an_error_that_lists_the_sites(
    injector: FaultInjector,
) -> None:
    model = injector.inject(Chain(), config())
    with pytest.raises(SiteError, match="no site 7; the 2 sites are: 0 0, 1 3"):
        injector.update_probability(model, 1.0, layer_id=7)


def test_verbose_logs_what_was_inserted(
    injector: FaultInjector, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fxfault"):
        model = injector.inject(Chain(), config(verbose=True, mode="layer"))
    assert caplog.messages[1:] == [
        "Fault injection enabled: 2 injection layers added",
        "  Mode: layer",
        "  Probability: 5.0%",
        "  Injection type: random",
        "  Apply during: both",
    ]
    selected = next(site.index for site in model.faults if site.selected)
    assert caplog.messages[0] == f"Randomly selected layer {selected} for injection"


def test_what_a_device_found_unsound_is_told_when_asked(injector: FaultInjector) -> None:
    model = injector.inject(Chain(), config())
    model.faults.check()
    model.faults[1].seen.sound = torch.tensor(False)
    with pytest.raises(SiteError, match="site 3: values that were to be hit are not integer"):
        model.faults.check()
