"""Which faults strike a sample: samples by number, processes, hardware units, layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clock.tools import Faulty, Net, activation, armed_sites, data, frozen
from torch import Tensor, nn

import fxfault
from fxfault.errors import ConfigError, FxFaultError, SiteError
from fxfault.faults.layouts import Layout
from fxfault.strike.draws import samples_hit

NAMES = ("stem", "layer1.0.act", "layer1.1.act", "layer2.0.act", "head")


# -- samples ------------------------------------------------------------------------------


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


# -- several processes --------------------------------------------------------------------


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


# -- hardware units -----------------------------------------------------------------------


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


# -- layers and mode ----------------------------------------------------------------------


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


# -- addressing ---------------------------------------------------------------------------


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


# -- samples told by number ---------------------------------------------------------------


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
