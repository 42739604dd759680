"""When faults strike, which samples they belong to, and where they are selected."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity
from torch import Tensor, nn
from zoo import HAND_WRITTEN

import fxfault
from fxfault.errors import ConfigError, FxFaultError, SiteError
from fxfault.faults.layouts import Layout
from fxfault.functional import begin_forward
from fxfault.strike.draws import samples_hit

Faulty = Callable[..., Any]


def activation() -> Any:
    """A signed 4-bit quantiser of scale 1/4."""
    return QuantIdentity(
        bit_width=4, scaling_impl_type="const", scaling_init=2.0, return_quant_tensor=True
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = activation()

    def forward(self, x: Any) -> Any:
        return self.act(x)


class Net(nn.Module):
    """Five sites: `stem`, `layer1.0.act`, `layer1.1.act`, `layer2.0.act`, `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = activation()
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block())
        self.head = activation()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer2(self.layer1(self.stem(x))))


NAMES = ("stem", "layer1.0.act", "layer1.1.act", "layer2.0.act", "head")


def data(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net(faulty: Faulty) -> Any:
    """The transformed network, in eval mode, recording statistics; every hit changes its code."""
    net = faulty(Net().eval(), probability=20.0, injection_type="msb_flip")
    net.faults.new_statistics()
    return net


def armed_sites(net: Any, x: Tensor | None = None) -> list[int]:
    """The sites that are armed in the next forward, as their statistics show."""
    statistics = net.faults.new_statistics()
    net(data(40, 10) if x is None else x)
    return [i for i, layer in statistics.layer_stats.items() if layer.total_activations]


def is_noisy(net: Any) -> bool:
    armed = armed_sites(net)
    assert armed in ([], list(range(len(net.faults))))
    return bool(armed)


# -- apply_during ------------------------------------------------------------------------


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


# -- epoch_interval ----------------------------------------------------------------------


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


# -- step_interval -----------------------------------------------------------------------


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


# -- samples -----------------------------------------------------------------------------


def test_training_and_evaluation_number_their_samples_apart(net: Any) -> None:
    x, y = data(6, 4), data(3, 4, seed=2)
    first, second = net(x).value, net(y).value
    net.faults.reset()
    again = net(x).value
    net.train()
    net(data(5, 4, seed=3))
    net.eval()
    assert torch.equal(again, first)
    assert torch.equal(net(y).value, second)
    assert net.faults.clock.first_sample == 6


def test_training_samples_go_on_over_an_evaluation(net: Any) -> None:
    x, y = data(6, 4), data(3, 4, seed=2)
    net.train()
    net(x)
    second = net(y).value
    net.faults.reset()
    net(x)
    net.eval()(y)
    net.train()
    assert torch.equal(net(y).value, second)


def test_two_parts_told_their_offsets_equal_the_joint_run(net: Any) -> None:
    x = data(30, 4)
    joint = net(x).value
    parts = []
    for first, last in [(13, 30), (0, 13)]:
        net.faults.reset(first_sample=first)
        parts.insert(0, torch.cat([net(part).value for part in x[first:last].split(5)]))
    assert torch.equal(torch.cat(parts), joint)


def test_two_workers_statistics_add_up_to_the_joint_runs(faulty: Faulty) -> None:
    x = data(30, 4)
    workers = []
    for first, last in [(0, 13), (13, 30)]:
        net = faulty(Net().eval(), probability=20.0)
        statistics = net.faults.new_statistics()
        net.faults.reset(first_sample=first)
        net(x[first:last])
        workers.append(statistics)
    net = faulty(Net().eval(), probability=20.0)
    joint = net.faults.new_statistics()
    net(x)
    merged = workers[0].merge(workers[1])
    assert merged.total_injections == joint.total_injections
    assert merged.total_activations == joint.total_activations


def test_reset_starts_the_samples_and_steps_anew(net: Any) -> None:
    x = data(6, 4)
    first = net(x).value
    assert not torch.equal(net(x).value, first)
    net.faults.reset()
    assert torch.equal(net(x).value, first)
    assert net.faults.trial == 0


def test_reset_keeps_statistics_and_settings(net: Any) -> None:
    net(data(6, 4))
    net.faults[1].set_probability(3.0)
    total = net.faults.statistics.total_activations
    assert total > 0
    net.faults.reset(trial=4)
    assert net.faults.statistics.total_activations == total
    assert net.faults[1].probability == 3.0
    assert net.faults.trial == 4
    net.faults.reset()
    assert net.faults.trial == 4


def test_trials_have_faults_of_their_own_and_come_back(net: Any) -> None:
    x, seen = data(6, 20), {}
    for trial in (0, 1, 2, 1, 0):
        net.faults.reset(trial=trial)
        result = net(x).value
        assert torch.equal(seen.setdefault(trial, result), result)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_container_with_its_own_code_comes_back_after_one_forward(
    branching: nn.Module, faulty: Faulty
) -> None:
    net = faulty(branching, probability=30.0)
    x = data(6, 12)
    first = net(x)
    net.faults.reset()
    assert torch.equal(net(x), first)
    net.faults.reset()
    net(x)
    net(x)
    net.faults.reset()
    assert torch.equal(net(x), first)


def test_a_container_with_its_own_code_does_not_mind_the_batch(
    branching: nn.Module, faulty: Faulty
) -> None:
    net = faulty(branching, probability=30.0)
    x = data(20, 12)
    joint = net(x)
    net.faults.reset()
    assert torch.equal(torch.cat([net(part) for part in x.split(7)]), joint)


@pytest.mark.parametrize("by", ["keyword", "tuple", "dictionary"])
def test_the_batch_is_that_of_the_first_tensor_among_the_inputs(faulty: Faulty, by: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = activation()

        def forward(self, factor: Any, pair: Any = None) -> Tensor:
            x = pair["x"] if isinstance(pair, dict) else pair[0] if pair is not None else factor
            return self.act(x.reshape(-1, 4)).value

    def run(net: Any, x: Tensor) -> Tensor:
        if by == "keyword":
            return net(factor=x)
        return net(2.0, (x,) if by == "tuple" else {"x": x})

    net = faulty(Other().eval(), probability=30.0)
    x = data(9, 3, 4)
    joint = run(net, x)
    net.faults.reset()
    parts = [run(net, part) for part in x.split(4)]
    assert torch.equal(torch.cat(parts), joint)


# -- curriculum ------------------------------------------------------------------------

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


# -- stopping and going on -----------------------------------------------------------------


def frozen(name: str, faulty: Faulty, **settings: Any) -> Any:
    """A network of the zoo that trains, but whose layers keep their statistics."""
    (entry,) = (entry for entry in HAND_WRITTEN if entry.name == name)
    net = faulty(entry(), **{"probability": 20.0, **settings}).train()
    for child in net.children():
        child.eval()
    return net


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


# -- several processes ---------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", ["chain", "kept_inside", "branching"])
def test_processes_hit_the_joined_batch_as_one_would(
    faulty: Faulty, name: str, world_size: int
) -> None:
    settings: dict[str, Any] = {"gradient_mode": "zero_faulty", "step_interval": 0.7}
    shape = (3, 8, 8) if name == "chain" else (8,)
    joined = frozen(name, faulty, **settings)
    ranks = []
    for rank in range(world_size):
        ranks.append(frozen(name, faulty, **settings))
        ranks[-1].faults.shard(rank, world_size)
    statistics = [net.faults.new_statistics() for net in (joined, *ranks)]
    noisy = set()
    for epoch in range(2):
        for net in (joined, *ranks):
            net.faults.start_epoch(epoch)
        for step in range(5):
            # The size changes from step to step, as that of a last batch does.
            x = data(world_size * (2 + step % 2), *shape, seed=step)
            expected = joined(x)
            parts = [net(part) for net, part in zip(ranks, x.chunk(world_size), strict=True)]
            # Close, as matrix products may add in another order; a hit moves a value by far more.
            torch.testing.assert_close(torch.cat(parts), expected)
            assert {net.faults[0].armed for net in ranks} == {joined.faults[0].armed}
            noisy.add(joined.faults[0].armed)
            expected.square().sum().backward()
            for part in parts:
                part.square().sum().backward()
    assert noisy == {False, True}
    for whole, *shares in zip(joined.parameters(), *(n.parameters() for n in ranks), strict=True):
        if whole.grad is not None:
            total = sum(share.grad for share in shares)
            atol = 1e-6 * float(whole.grad.abs().max())
            torch.testing.assert_close(total, whole.grad, rtol=1e-4, atol=atol)
    first, *others = statistics[1:]
    for other in others:
        first.merge(other)
    assert first.total_injections == statistics[0].total_injections > 0


def test_processes_evaluate_the_joined_batch_as_one_would(faulty: Faulty) -> None:
    x = data(12, 3, 8, 8)
    joined = frozen("chain", faulty).eval()
    expected = torch.cat([joined(x[:8]), joined(x[8:])])
    for rank in range(2):
        net = frozen("chain", faulty).eval()
        net.faults.shard(rank, 2)
        parts = [net(batch.chunk(2)[rank]) for batch in (x[:8], x[8:])]
        mine = torch.cat([batch.chunk(2)[rank] for batch in (expected[:8], expected[8:])])
        torch.testing.assert_close(torch.cat(parts), mine)


def test_processes_number_on_from_the_first_sample_of_all(net: Any) -> None:
    net.faults.shard(2, 3)
    net.faults.reset(first_sample=100)
    numbers = []
    for batch in (5, 5, 2):
        net(data(batch, 4))
        numbers.append(net.faults.clock.first_sample)
    assert numbers == [110, 125, 134]


def test_any_process_goes_on_from_the_state_of_any_other(faulty: Faulty) -> None:
    x = data(3, 4)
    nets = []
    for rank in range(2):
        nets.append(faulty(Net().train(), probability=20.0))
        nets[-1].faults.shard(rank, 2)
        nets[-1](x)
    state = nets[0].faults.clock.state()
    assert not {"rank", "world_size"} & state.keys()
    resumed = faulty(Net().train(), probability=20.0)
    resumed.faults.shard(1, 2)
    resumed.faults.clock.restore(state)
    assert torch.equal(resumed(x).value, nets[1](x).value)
    assert resumed.faults.clock.first_sample == 9


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (0.0, 2), (True, 2)])
def test_a_process_that_cannot_be_is_refused(net: Any, rank: Any, world: Any) -> None:
    with pytest.raises(ConfigError, match=r"shard: got rank .*0 <= rank < world_size"):
        net.faults.shard(rank, world)
    assert (net.faults.clock.rank, net.faults.clock.world_size) == (0, 1)


# -- hardware units ----------------------------------------------------------------------


def struck_places(net: Any, x: Tensor) -> Tensor:
    return (net(x).value != activation()(x).value).nonzero()


def test_faulty_units_stay_for_the_whole_run(faulty: Faulty) -> None:
    settings = {"hw_mask": True, "frequency_value": 16, "injection_type": "msb_flip"}
    net = faulty(nn.Sequential(activation()), probability=20.0, **settings)
    places = [struck_places(net, data(3, 64, seed=seed)) for seed in range(3)]
    net.faults.clock.epoch = 7
    net.train()
    places.append(struck_places(net, data(3, 64, seed=5)))
    net.faults.reset()
    places.append(struck_places(net, data(3, 64, seed=6)))
    assert all(torch.equal(place, places[0]) for place in places)
    units = set((places[0][:, 1] % 16).tolist())
    assert len(units) == 4  # ceil(16 * 20 / 100)
    assert places[0].shape[0] == 3 * 64 * 4 // 16


def test_all_sites_run_on_the_same_units(faulty: Faulty) -> None:
    """The same hardware computes every layer."""
    settings = {"hw_mask": True, "frequency_value": 8, "injection_type": "msb_flip"}
    pair = nn.Sequential(activation(), nn.Flatten(), activation())
    net = faulty(pair, probability=25.0, **settings)
    hits = []
    for index in (0, 1):
        net.faults.select(index)
        hits.append((net(data(4, 48)).value != pair(data(4, 48)).value).any(0))
    assert torch.equal(*hits)


def test_seeds_draw_the_units(faulty: Faulty) -> None:
    settings = {"hw_mask": True, "frequency_value": 64, "injection_type": "msb_flip"}
    places = [
        struck_places(
            faulty(nn.Sequential(activation()), probability=10.0, seed=seed, **settings),
            data(1, 64),
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(places[0], places[1])
    assert not torch.equal(places[0], places[2])


def test_changing_the_probability_changes_the_number_of_units(faulty: Faulty) -> None:
    settings = {"hw_mask": True, "frequency_value": 10, "injection_type": "msb_flip"}
    net = faulty(nn.Sequential(activation()), **settings)
    for percent, units in [(0.0, 0), (0.1, 1), (10.0, 1), (11.0, 2), (99.0, 10), (100.0, 10)]:
        net.faults.set_probability(percent)
        assert struck_places(net, data(1, 10)).shape[0] == units


# -- layers and mode ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("stem", [0]),
        ("layer1.*", [1, 2]),
        ("*.0.act", [1, 3]),
        ("*", [0, 1, 2, 3, 4]),
        ("layer[12].0.*", [1, 3]),
        (3, [3]),
        ([0, "head"], [0, 4]),
        (["layer1.*", "layer1.1.act", 2], [1, 2]),
    ],
)
def test_layers_select_by_name_pattern_index_and_list(
    faulty: Faulty, layers: Any, expected: list[int]
) -> None:
    net = faulty(Net().eval(), layers=layers)
    assert net.faults.names == NAMES
    assert armed_sites(net) == expected
    net.faults.select(None)
    assert armed_sites(net) == [0, 1, 2, 3, 4]
    net.faults.select(layers)
    assert armed_sites(net) == expected


@pytest.mark.parametrize("layers", ["layer3.*", "Stem", 5, ["stem", "nothing"], ["stem", 77]])
def test_layers_that_match_nothing_list_what_exists(faulty: Faulty, layers: Any) -> None:
    with pytest.raises(SiteError) as caught:
        faulty(Net().eval(), layers=layers)
    assert all(f"{index} {name}" in str(caught.value) for index, name in enumerate(NAMES))


def test_a_misspelt_layer_is_told_the_nearest(faulty: Faulty) -> None:
    with pytest.raises(SiteError, match=r"did you mean 'layer2\.0\.act'"):
        faulty(Net().eval(), layers="layer2.0.atc")


def test_a_failed_selection_changes_nothing(net: Any) -> None:
    net.faults.select("stem")
    with pytest.raises(SiteError):
        net.faults.select(["head", "nothing"])
    assert armed_sites(net) == [0]


@pytest.mark.parametrize("index", range(5))
def test_layer_mode_strikes_one_site(faulty: Faulty, index: int) -> None:
    net = faulty(Net().eval(), mode="layer", injection_layer=index)
    assert armed_sites(net) == [index]
    net.faults.reset(trial=3)
    assert armed_sites(net) == [index]


def test_layer_mode_with_an_index_that_is_not_there(faulty: Faulty) -> None:
    with pytest.raises(FxFaultError, match=r"9.*0 stem.*4 head"):
        faulty(Net().eval(), mode="layer", injection_layer=9)


def test_layer_mode_draws_a_site_for_each_trial(faulty: Faulty) -> None:
    """All five in 60 trials: a given one is missed with probability 1.5e-6."""
    net = faulty(Net().eval(), mode="layer", injection_layer=-1)
    drawn = []
    for trial in range(60):
        net.faults.reset(trial=trial)
        (site,) = armed_sites(net)
        drawn.append(site)
    assert set(drawn) == {0, 1, 2, 3, 4}
    other = faulty(Net().eval(), mode="layer", injection_layer=-1)
    for trial in (59, 0, 17):
        other.faults.reset(trial=trial)
        assert armed_sites(other) == [drawn[trial]]


def test_layer_mode_draws_by_the_seed(faulty: Faulty) -> None:
    drawn = {
        seed: [armed_sites(faulty(Net().eval(), mode="layer", seed=seed)) for _ in range(2)]
        for seed in range(8)
    }
    assert all(first == second and len(first) == 1 for first, second in drawn.values())
    assert len({sites[0][0] for sites in drawn.values()}) > 1


def test_layer_mode_draws_among_the_selected_layers(faulty: Faulty) -> None:
    net = faulty(Net().eval(), mode="layer", layers=["layer1.*", "head"])
    drawn = set()
    for trial in range(40):
        net.faults.reset(trial=trial)
        drawn.update(armed_sites(net))
    assert drawn == {1, 2, 4}


def test_full_model_ignores_injection_layer(faulty: Faulty) -> None:
    assert armed_sites(faulty(Net().eval(), injection_layer=2)) == [0, 1, 2, 3, 4]


# -- addressing --------------------------------------------------------------------------


def test_sites_are_addressed_by_index_and_by_name(net: Any) -> None:
    faults = net.faults
    assert len(faults) == 5
    assert [site.name for site in faults] == list(NAMES)
    assert [site.index for site in faults] == [0, 1, 2, 3, 4]
    assert faults[3] is faults["layer2.0.act"] is faults[-2]
    for wrong in (5, -6, "layer2.0"):
        with pytest.raises(SiteError, match="4 head"):
            faults[wrong]


def test_each_site_has_a_probability_of_its_own(net: Any) -> None:
    injector = fxfault.FaultInjector()
    injector.update_probability(net, 0.0)
    injector.update_probability(net, 100.0, layer_id=2)
    assert [site.probability for site in net.faults] == [0.0, 0.0, 100.0, 0.0, 0.0]
    statistics = net.faults.new_statistics()
    net(data(4, 5))
    counts = [layer.injected_count for layer in statistics.layer_stats.values()]
    assert counts == [0, 0, 20, 0, 0]
    with pytest.raises(SiteError):
        injector.update_probability(net, 1.0, layer_id=5)


@pytest.mark.parametrize("wrong", [-0.1, 100.1, float("nan"), float("inf"), "5", None, True])
def test_a_probability_is_a_percentage(net: Any, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="0 to 100"):
        net.faults.set_probability(wrong)
    assert {site.probability for site in net.faults} == {20.0}
    with pytest.raises(ConfigError, match="stem"):
        net.faults[0].set_probability(wrong)


def test_statistics_for_another_number_of_sites_are_refused(net: Any) -> None:
    with pytest.raises(FxFaultError, match="5"):
        net.faults.set_statistics(fxfault.FaultStatistics(4))
    with pytest.raises(FxFaultError, match="5"):
        fxfault.FaultInjector().set_statistics(net, fxfault.FaultStatistics(6))


def test_injector_does_nothing_to_a_model_without_sites() -> None:
    model, injector = Net(), fxfault.FaultInjector()
    assert injector.inject(model, fxfault.FaultInjectionConfig(enabled=False)) is model
    injector.update_probability(model, 3.0)
    injector.update_epoch(model, 1)
    injector.reset_counters(model)
    injector.set_enabled(model, True)
    injector.set_condition_injector(model, 5, 0.5)
    injector.set_statistics(model, fxfault.FaultStatistics(0))
    assert injector.get_num_layers(model) == 0
    assert injector.remove(model) is model


# -- samples told by number ----------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 7}])
@pytest.mark.parametrize("probability", [3.0, 40.0])
def test_samples_told_by_number_meet_their_own_faults(
    faulty: Faulty, probability: float, settings: dict[str, Any]
) -> None:
    net = faulty(nn.Sequential(activation()).eval(), probability=probability, **settings)
    x = data(40, 9)
    whole = net(x).value
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for chosen in order.split([1, 7, 32]):
        with net.faults.samples(chosen):
            assert torch.equal(net(x[chosen]).value, whole[chosen])
    assert not torch.equal(net(x).value, whole)  # samples 40 to 79: the count has rested


def test_numbers_of_samples_rest_while_a_step_is_repeated(faulty: Faulty) -> None:
    net = faulty(nn.Sequential(activation()).train(), probability=40.0)
    clock, x = net.faults.clock, data(6, 9)
    net(x)
    before = clock.state()
    with net.faults.samples(torch.arange(6)):
        net(x)
    assert clock.state() == {**before, "batch": 6}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (torch.arange(3), "got 3 numbers for a batch of 4 samples"),
        (torch.arange(4.0), "got torch.float32"),
        (torch.arange(4)[None], r"shape \(1, 4\)"),
        (torch.arange(-1, 3), "0 and up"),
    ],
)
def test_numbers_that_are_none(net: Any, numbers: Tensor, message: str) -> None:
    with pytest.raises(SiteError, match=message), net.faults.samples(numbers):
        net(data(4, 9))
    net(data(4, 9))


@pytest.mark.parametrize("probability", [0.0, 0.2, 5.0, 100.0])
def test_samples_hit_are_those_that_change(faulty: Faulty, probability: float) -> None:
    one_site = nn.Sequential(activation()).eval()
    net = faulty(one_site, probability=probability, injection_type="full_flip")
    x = data(300, 9)
    net.faults.enabled = False
    clean = net(x).value
    assert not samples_hit(net.faults[0], torch.arange(300), Layout.of((300, 9), 300)).any()
    net.faults.enabled = True
    net.faults.reset()
    changed = (net(x).value != clean).flatten(1).any(1)
    struck = samples_hit(net.faults[0], torch.arange(300), Layout.of((300, 9), 300))
    assert torch.equal(struck, changed)
    assert struck.any() == (probability > 0)
