"""When faults strike: modes, epochs, steps, curricula, and runs that go on."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from clock.tools import Faulty, Net, activation, armed_sites, data, frozen
from torch import Tensor, nn

import fxfault
from fxfault.errors import ConfigError
from fxfault.functional import begin_forward


def is_noisy(net: Any) -> bool:
    armed = armed_sites(net)
    assert armed in ([], list(range(len(net.faults))))
    return bool(armed)


# -- apply_during -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply_during", "training", "evaluating"),
    [("train", True, False), ("eval", False, True), ("both", True, True)],
)
def test_apply_during(net: Any, apply_during: str, training: bool, evaluating: bool) -> None:
    net.faults.clock.apply_during = apply_during
    assert is_noisy(net.train()) is training
    assert is_noisy(net.eval()) is evaluating
    assert is_noisy(net.train()) is training


def test_training_is_the_default(net: Any) -> None:
    assert fxfault.FaultInjectionConfig().apply_during == "train"
    assert fxfault.transform(Net(), {"enabled": True}).faults.clock.apply_during == "train"


def test_the_master_switch(net: Any) -> None:
    net.faults.enabled = False
    assert not is_noisy(net)
    net.faults.enabled = True
    assert is_noisy(net)


def test_why_nothing_strikes_is_told(net: Any) -> None:
    assert net.faults[0].why_unarmed is None
    net.faults.enabled = False
    assert "disabled" in net.faults[0].why_unarmed
    net.faults.enabled = True
    net.faults.clock.apply_during = "train"
    net(data(2, 3))
    assert "apply_during is train" in net.faults[0].why_unarmed
    net.faults.select("head")
    assert net.faults[0].why_unarmed == "not selected"


# -- epoch_interval -----------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "epochs"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_epoch_interval(net: Any, interval: int, epochs: list[int]) -> None:
    clock = net.train().faults.clock
    clock.epoch_interval = interval
    struck = []
    for clock.epoch in range(4):
        if is_noisy(net):
            struck.append(clock.epoch)
    assert struck == epochs


def test_epoch_interval_says_nothing_about_evaluation(net: Any) -> None:
    net.faults.clock.epoch_interval = 5
    net.faults.clock.epoch = 3
    assert is_noisy(net.eval())
    assert not is_noisy(net.train())


def test_epoch_interval_of_a_configuration(faulty: Faulty) -> None:
    net = faulty(Net().train(), epoch_interval=2)
    injector = fxfault.FaultInjector()
    struck = []
    for epoch in range(5):
        injector.update_epoch(net, epoch)
        injector.reset_counters(net)
        struck.append(is_noisy(net))
    assert struck == [True, False, True, False, True]


# -- step_interval ------------------------------------------------------------------------


def steps(faulty: Faulty, count: int, seed: int = 0, epoch: int = 0, **settings: Any) -> list[bool]:
    net = faulty(nn.Sequential(activation(), activation()).train(), seed=seed, **settings)
    net.faults.clock.epoch = epoch
    x, drawn = data(2, 3), []
    for _ in range(count):
        drawn.append(is_noisy_quickly(net, x))
    return drawn


def is_noisy_quickly(net: Any, x: Tensor) -> bool:
    begin_forward(net.faults, x)
    armed = {site.armed for site in net.faults}
    assert len(armed) == 1
    return armed.pop()


@pytest.mark.parametrize("interval", [0.1, 0.5, 0.9])
def test_share_of_noisy_steps(faulty: Faulty, interval: float) -> None:
    """Of 600 steps, within 4.9 standard deviations: fails with probability 1e-6."""
    noisy = sum(steps(faulty, 600, step_interval=interval))
    assert abs(noisy - 600 * interval) < 4.9 * (600 * interval * (1 - interval)) ** 0.5


def test_no_step_and_every_step(faulty: Faulty) -> None:
    assert not any(steps(faulty, 50, step_interval=0.0))
    assert all(steps(faulty, 50, step_interval=1.0))


def test_steps_are_drawn_reproducibly(faulty: Faulty) -> None:
    first = steps(faulty, 60, step_interval=0.5)
    assert steps(faulty, 60, step_interval=0.5) == first
    assert steps(faulty, 60, step_interval=0.5, seed=1) != first
    assert steps(faulty, 60, step_interval=0.5, epoch=1) != first


def test_a_step_is_clean_or_noisy_as_a_whole(faulty: Faulty) -> None:
    net = faulty(Net().train(), step_interval=0.5)
    drawn = {tuple(armed_sites(net)) for _ in range(30)}
    assert drawn == {(), (0, 1, 2, 3, 4)}


def test_a_clean_step_gives_the_clean_output(faulty: Faulty) -> None:
    net = faulty(Net().train(), step_interval=0.5, injection_type="full_flip")
    x = data(4, 5)
    clean = Net()(x).value
    equal = {torch.equal(net(x).value, clean) == (not net.faults[0].armed) for _ in range(20)}
    assert equal == {True}


def test_step_interval_says_nothing_about_evaluation(faulty: Faulty) -> None:
    net = faulty(Net().eval(), step_interval=0.0)
    assert is_noisy(net)
    assert not is_noisy(net.train())


def test_evaluating_in_between_does_not_move_the_steps(faulty: Faulty) -> None:
    net = faulty(nn.Sequential(activation(), activation()), step_interval=0.5)
    x, drawn = data(2, 3), []
    for _ in range(40):
        drawn.append(is_noisy_quickly(net.train(), x))
        is_noisy_quickly(net.eval(), x)
    assert drawn == steps(faulty, 40, step_interval=0.5)


def test_set_condition_injector_sets_the_share(faulty: Faulty) -> None:
    net = faulty(Net().train(), step_interval=1.0)
    injector = fxfault.FaultInjector()
    injector.set_condition_injector(net, 100, 0.0)
    assert not is_noisy(net)
    for iterations, interval in [(100, 1.5), (100, -0.1), (0, 0.5)]:
        with pytest.raises(ConfigError):
            injector.set_condition_injector(net, iterations, interval)


# -- curriculum ---------------------------------------------------------------------------


CURRICULUM = [
    {"epoch": 0, "probability": 0, "step_interval": 0.5},
    {"epoch": 2, "probability": 20, "injection_type": "msb_flip"},
    {"epoch": 4, "epoch_interval": 2, "step_interval": 1},
]


def schedule(net: Any) -> tuple[set[float], float, int, set[str]]:
    faults = net.faults
    return (
        {site.probability for site in faults},
        faults.clock.step_interval,
        faults.clock.epoch_interval,
        {site.fault_model.name for site in faults},
    )


def test_a_transformed_model_starts_with_the_plan_of_epoch_0(faulty: Faulty) -> None:
    net = faulty(Net(), curriculum=CURRICULUM)
    assert schedule(net) == ({0.0}, 0.5, 1, {"random"})
    first = [{"epoch": 0, "epoch_interval": 3, "injection_type": "lsb_flip"}]
    assert schedule(faulty(Net(), curriculum=first)) == ({100.0}, 1.0, 3, {"lsb_flip"})
    later = faulty(Net(), curriculum=CURRICULUM[1:], probability=7.0)
    assert schedule(later) == ({7.0}, 1.0, 1, {"random"})


def test_starting_an_epoch_applies_its_plan(faulty: Faulty) -> None:
    net = faulty(Net(), curriculum=CURRICULUM, interpolate="linear")
    seen = []
    for epoch in (1, 2, 3, 4, 9, 0):
        net.faults.start_epoch(epoch)
        assert net.faults.clock.epoch == epoch
        seen.append(schedule(net))
    assert seen == [
        ({10.0}, 0.625, 1, {"random"}),
        ({20.0}, 0.75, 1, {"msb_flip"}),
        ({20.0}, 0.875, 1, {"msb_flip"}),
        ({20.0}, 1.0, 2, {"msb_flip"}),
        ({20.0}, 1.0, 2, {"msb_flip"}),
        ({0.0}, 0.5, 1, {"random"}),
    ]


def test_what_no_point_names_stays_as_it_was_set_by_hand(faulty: Faulty) -> None:
    net = faulty(Net(), curriculum=[{"epoch": 1, "step_interval": 0.5}])
    net.faults[1].set_probability(3.0)
    net.faults[2].set_fault_model("lsb_flip")
    net.faults.clock.epoch_interval = 4
    net.faults.start_epoch(1)
    assert [site.probability for site in net.faults] == [100.0, 3.0, 100.0, 100.0, 100.0]
    assert net.faults[2].fault_model.name == "lsb_flip"
    assert (net.faults.clock.epoch_interval, net.faults.clock.step_interval) == (4, 0.5)


def test_without_a_curriculum_an_epoch_changes_no_setting(faulty: Faulty) -> None:
    net = faulty(Net())
    net.faults.set_probability(3.0)
    net.faults.clock.step_interval = 0.25
    net.faults.start_epoch(5)
    assert schedule(net) == ({3.0}, 0.25, 1, {"random"})


def test_starting_an_epoch_numbers_samples_and_steps_anew(net: Any) -> None:
    x = data(6, 4)
    net.train().faults.start_epoch(3)
    first = net(x).value
    assert not torch.equal(net(x).value, first)
    net.faults.start_epoch(3)
    assert net.faults.clock.step == 0
    assert torch.equal(net(x).value, first)
    net.faults.start_epoch(4)
    assert not torch.equal(net(x).value, first)


@pytest.mark.parametrize("epoch", [-1, 2.0, None, True])
def test_an_epoch_that_is_no_number_changes_nothing(faulty: Faulty, epoch: Any) -> None:
    net = faulty(Net(), curriculum=CURRICULUM)
    net.faults.start_epoch(3)
    before = net.faults.clock.state()
    with pytest.raises(ConfigError, match=r"^epoch: got .* allowed: an integer of at least 0"):
        net.faults.start_epoch(epoch)
    assert net.faults.clock.state() == before


def test_fault_models_of_a_curriculum_strike(faulty: Faulty) -> None:
    points = [
        {"epoch": 1, "injection_type": "lsb_flip"},
        {"epoch": 2, "injection_type": fxfault.get_fault_model("full_flip")},
    ]
    net = faulty(nn.Sequential(activation()), curriculum=points, injection_type="msb_flip").train()
    x = torch.tensor([[0.75]])  # 3 is 0011: flipped to 1011, 0010 and 1100
    codes = []
    for epoch in range(3):
        net.faults.start_epoch(epoch)
        codes.append(round(float(net(x).value) * 4))
    assert codes == [-5, 2, -4]


def test_a_curriculum_is_not_for_evaluation_alone(faulty: Faulty) -> None:
    net = faulty(Net(), curriculum=CURRICULUM, probability=7.0, apply_during="eval")
    net.faults.start_epoch(4)
    assert schedule(net) == ({7.0}, 1.0, 1, {"random"})


def test_verbose_logs_the_plan_of_an_epoch(
    faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    net = faulty(Net(), curriculum=CURRICULUM, verbose=True)
    plain = faulty(Net(), verbose=True)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="fxfault"):
        for epoch in (1, 2):
            net.faults.start_epoch(epoch)
            plain.faults.start_epoch(epoch)
    assert caplog.messages == [
        "Curriculum, epoch 1: no faults",
        "Curriculum, epoch 2: msb_flip at 20 %, in 50 % of the steps",
    ]


# -- stopping and going on ----------------------------------------------------------------


def training(net: Any, epochs: range, steps: int, first_step: int = 0) -> Iterator[Any]:
    """Train; gives the output of each step, and whether faults struck."""
    for epoch in epochs:
        if epoch > epochs[0] or first_step == 0:
            net.faults.start_epoch(epoch)
        for step in range(first_step if epoch == epochs[0] else 0, steps):
            output = net(data(4, 3, 8, 8, seed=step))
            yield net.faults[0].armed, output.detach()


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 0), (3, 5), (4, 1)])
def test_a_resumed_loop_is_the_uninterrupted_one(
    faulty: Faulty, epoch: int, step: int, seed: int | None
) -> None:
    def make() -> Any:
        curriculum = [{"epoch": 0, "probability": 10}, *CURRICULUM[1:]]
        return frozen(
            "chain",
            faulty,
            curriculum=curriculum,
            interpolate="cosine",
            step_interval=0.5,
            seed=seed,
        )

    whole = make()
    start = whole.faults.clock.state()
    expected = list(training(whole, range(6), 6))
    assert {armed for armed, _ in expected} == {False, True}

    stopped = make()
    stopped.faults.clock.restore(start)
    first = training(stopped, range(6), 6)
    seen = [next(first) for _ in range(6 * epoch + step)]
    file = io.BytesIO()
    torch.save(stopped.faults.clock.state(), file)
    file.seek(0)

    resumed = make()
    resumed.faults.clock.restore(torch.load(file, weights_only=True))
    seen += training(resumed, range(epoch, 6), 6, first_step=step)
    assert [armed for armed, _ in seen] == [armed for armed, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(seen, expected, strict=True))


def test_going_on_takes_the_layer_that_the_saved_seed_drew(faulty: Faulty) -> None:
    selected = []
    for seed in range(12):
        first = faulty(Net(), mode="layer", seed=seed)
        other = faulty(Net(), mode="layer", seed=99)
        other.faults.clock.restore(first.faults.clock.state())
        selected.append(armed_sites(first))
        assert armed_sites(other) == selected[-1]
    assert len({sites[0] for sites in selected}) > 1


def test_restoring_the_same_place_keeps_what_was_set_by_hand(faulty: Faulty) -> None:
    net = faulty(Net(), curriculum=CURRICULUM)
    net.faults.start_epoch(2)
    net.faults.set_probability(1.0)
    state = net.faults.clock.state()
    net.faults.clock.reset()
    net.faults.clock.restore(state)
    assert schedule(net)[0] == {1.0}


def test_a_copy_follows_its_own_clock(faulty: Faulty) -> None:
    net = faulty(Net(), curriculum=CURRICULUM)
    twin = copy.deepcopy(net)
    net.faults.start_epoch(4)
    twin.faults.clock.restore(net.faults.clock.state())
    net.faults.start_epoch(0)
    assert schedule(twin) == ({20.0}, 1.0, 2, {"msb_flip"})
    assert schedule(net) == ({0.0}, 0.5, 1, {"random"})


@pytest.mark.parametrize("state", [{}, {"epoch": 3}, None, [("epoch", 3)]])
def test_a_state_from_elsewhere_is_refused(net: Any, state: Any) -> None:
    before = net.faults.clock.state()
    with pytest.raises(ConfigError, match=r"^state of the clock: got .*'epoch'"):
        net.faults.clock.restore(state)
    assert net.faults.clock.state() == before
