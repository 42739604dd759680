"""Faults of a whole run: counted ones, broken cells, several kinds at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU
from torch import Tensor, nn

import fxfault
from fxfault.config import FaultInjectionConfig
from fxfault.errors import ConfigError, SiteError
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.faults.layouts import Layout
from fxfault.strike.draws import elements_hit, samples_hit

Faulty = Callable[..., Any]
ELEMENTS = {"0": 48, "3": 10, "5": 6}


def act(bits: int = 4) -> Any:
    return QuantIdentity(
        bit_width=bits, scaling_impl_type="const", scaling_init=2.0, return_quant_tensor=True
    )


def net() -> nn.Sequential:
    """For (N, 3, 4, 4), three sites of 4, 3 and 5 bits; every sum is exact."""
    layers = [nn.Linear(48, 10, bias=False), nn.Linear(10, 6, bias=False)]
    for layer in layers:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randint(-3, 4, layer.weight.shape, generator=generator)
        layer.weight.data = weights.float() / 4
    flat = nn.Flatten()
    return nn.Sequential(act(4), flat, layers[0], act(3), layers[1], act(5)).eval()


def data(samples: int = 40, seed: int = 1) -> Tensor:
    return torch.randn((samples, 3, 4, 4), generator=torch.Generator().manual_seed(seed))


def seen(model: Any, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """For each site, its codes before and after the faults of one forward; rows are samples."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    inject = fxfault.functional.fault_inject

    def look(y: Any, site: Any) -> Any:
        scale = y.scale
        before = (y.value / scale).round().long().flatten(1).clone()
        struck = inject(y, site)
        found[site.name] = before, (struck.value / scale).round().long().flatten(1)
        return struck

    for node in model.graph.nodes:
        if node.target is inject:
            node.target = look
    model.recompile()
    with torch.no_grad():
        model(x)
    for node in model.graph.nodes:
        if node.target is look:
            node.target = inject
    model.recompile()
    return found


def flips(model: Any, x: Tensor, bits: int) -> dict[str, Tensor]:
    """For each site, which bits of each element changed, as a pattern."""
    mask = (1 << bits) - 1
    return {name: (a ^ b) & mask for name, (a, b) in seen(model, x).items()}


def set_bits(patterns: Tensor) -> Tensor:
    return (patterns[..., None] >> torch.arange(8) & 1).sum(-1)


# -- exactly so many ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_every_sample_has_exactly_so_many_hits(faulty: Faulty, count: int) -> None:
    changed = flips(faulty(net(), num_faults=count, injection_type="msb_flip"), data(), 8)
    hits = torch.cat([part != 0 for part in changed.values()], 1)
    assert torch.equal(hits.sum(1), torch.full((40,), count))


@pytest.mark.parametrize("count", [1, 9, 252])
def test_every_sample_has_exactly_so_many_hit_bits(faulty: Faulty, count: int) -> None:
    settings = {"num_faults": count, "rate_unit": "bit", "injection_type": "bit_flip"}
    changed = flips(faulty(net(), **settings), data(), 8)
    # The words' own bits; what stands above them in a code follows the sign.
    widths = {"0": 4, "3": 3, "5": 5}
    total = sum(set_bits(part & ((1 << widths[name]) - 1)).sum(1) for name, part in changed.items())
    assert torch.equal(total, torch.full((40,), count))
    assert 48 * 4 + 10 * 3 + 6 * 5 == 252


def test_selected_sites_share_the_hits(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=16, injection_type="msb_flip", layers=["3", "5"])
    changed = flips(model, data(), 8)
    assert not changed["0"].any()
    assert bool((changed["3"] != 0).all())
    assert bool((changed["5"] != 0).all())
    model.faults.select("5")
    with pytest.raises(SiteError, match=r"num_faults: got 16, allowed: up to the 6 elements"):
        model(data())


@pytest.mark.parametrize("settings", [{"num_faults": 5}, {"num_faults": 5, "rate_unit": "bit"}])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_counted_faults_do_not_depend_on_the_batch(
    faulty: Faulty, batch: int, settings: dict[str, Any]
) -> None:
    model = faulty(net(), injection_type="stuck_at_0" if batch == 7 else "bit_flip", **settings)
    whole = model(data()).value
    model.faults.reset()
    parts = torch.cat([model(part).value for part in data().split(batch)])
    assert torch.equal(parts, whole)
    assert not torch.equal(whole, net()(data()).value)


def test_counted_faults_follow_seed_and_trial(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5)
    first = model(data()).value
    model.faults.reset(trial=1)
    assert not torch.equal(model(data()).value, first)
    model.faults.reset(trial=0)
    assert torch.equal(model(data()).value, first)
    assert not torch.equal(faulty(net(), num_faults=5, seed=1)(data()).value, first)


def test_statistics_count_the_hits(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5)
    statistics = model.faults.new_statistics()
    model(data())
    assert statistics.total_injections == 5 * 40
    assert statistics.total_activations == 64 * 40


def test_measuring_changes_nothing(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5).train()
    statistics = model.faults.new_statistics()
    model.faults.select("3")
    before = model.faults.clock.state(), [site.setting for site in model.faults]
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    model.faults.measure(data())
    assert (model.faults.clock.state(), [site.setting for site in model.faults]) == before
    assert [site.selected for site in model.faults] == [False, True, False]
    assert model.training
    assert statistics.total_activations == 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert {s.name: s.seen.extent.elements for s in model.faults} == ELEMENTS
    assert [site.seen.extent.bits for site in model.faults] == [4, 3, 5]


def test_faults_of_a_first_training_step_are_those_of_a_measured_model(faulty: Faulty) -> None:
    at_once, measured = (faulty(net(), num_faults=5).train() for _ in range(2))
    measured.faults.measure(data(3))
    assert torch.equal(at_once(data()).value, measured(data()).value)
    assert at_once.faults.clock.state() == measured.faults.clock.state()


def test_other_shapes_are_measured_by_themselves(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(act(4)).eval(), num_faults=3, injection_type="msb_flip")
    for size in (5, 40, 5):
        x = torch.randn(6, size)
        changed = model(x).value != act(4).eval()(x).value
        assert torch.equal(changed.sum(1), torch.full((6,), 3))


def test_what_was_not_measured_is_told(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5)
    with pytest.raises(SiteError, match=r"site 0: .* call `model\.faults\.measure\(inputs\)`"):
        samples_hit(model.faults[0], torch.arange(4), Layout(4, 1, (48,)))


def test_another_number_of_elements_than_was_measured_is_told(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5)
    model(data())
    with pytest.raises(SiteError, match="it has 20 elements for each sample, but 48 were meas"):
        samples_hit(model.faults[0], torch.arange(4), Layout(4, 1, (20,)))


def test_a_layer_that_a_container_calls_twice_cannot_be_counted(
    branching: nn.Module, faulty: Faulty
) -> None:
    model = faulty(branching, num_faults=2)
    with pytest.raises(SiteError, match=r"again: a container calls it 2 times in a forward.*leave"):
        model(torch.randn(4, 12))
    model.faults.select("first")
    statistics = model.faults.new_statistics()
    model(torch.randn(4, 12))
    assert statistics.total_injections == 8


def test_learned_widths_are_measured_again_when_they_change(faulty: Faulty) -> None:
    layer = QuantReLU(bit_width=5, bit_width_impl_type="parameter", return_quant_tensor=True)
    layer.train()(torch.randn(50, 8))
    model = faulty(
        nn.Sequential(layer).eval(), num_faults=6, rate_unit="bit", injection_type="bit_flip"
    )
    x = torch.rand(20, 8)
    assert torch.equal(set_bits(flips(model, x, 8)["0"]).sum(1), torch.full((20,), 6))
    (offset,) = (p for n, p in model.named_parameters() if "bit_width_offset" in n)
    with torch.no_grad():
        offset -= 2
    assert torch.equal(set_bits(flips(model, x, 8)["0"]).sum(1), torch.full((20,), 6))
    assert model.faults[0].seen.extent.bits == 3


def test_a_frozen_model_counts_too(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5, apply_during="eval")
    frozen = fxfault.freeze(model)
    expected = model(data()).value
    assert torch.equal(frozen(data()).value, expected)
    assert model.faults[0].peers[1] is model.faults[1]
    assert frozen.faults[0].peers[1] is frozen.faults[1]


def test_a_copied_model_counts_by_itself(faulty: Faulty) -> None:
    model = faulty(net(), num_faults=5, injection_type="msb_flip")
    other = copy.deepcopy(model)
    other.faults.select("5")
    hits = flips(other, data(), 8)
    assert torch.equal((hits["5"] != 0).sum(1), torch.full((40,), 5))
    assert [site.selected for site in model.faults] == [True, True, True]


# -- broken cells ------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"rate_unit": "bit"}, {"bit": 2}], ids=str)
@pytest.mark.parametrize(("model", "reads"), [("stuck_at_0", 0), ("stuck_at_1", 1)])
def test_a_broken_cell_is_the_same_in_every_sample(
    faulty: Faulty, model: str, reads: int, settings: dict[str, Any]
) -> None:
    stuck = faulty(net(), injection_type=model, probability=30.0, **settings)
    before, after = seen(stuck, data(200))["0"]
    changed = (before ^ after) & 0b1111
    cells = torch.zeros(48, dtype=torch.int64)
    for row in changed:
        cells |= row
    assert 0 < int((cells > 0).sum()) < 48
    if "bit" in settings:
        assert set(cells.tolist()) == {0, 4}
    elif not settings:
        assert int(set_bits(cells).max()) == 1
    expected = (before | cells if reads else before & ~cells) & 0b1111
    assert torch.equal(after & 0b1111, expected)  # Each of them, in each sample.


def test_broken_cells_are_those_of_the_trial(faulty: Faulty) -> None:
    model = faulty(net(), injection_type="stuck_at_1", probability=20.0, bit=0)

    def cells() -> list[int]:
        before, after = seen(model, data(200))["0"]
        return (before != after).any(0).nonzero()[:, 0].tolist()

    first = cells()
    assert cells() == first  # Other samples.
    model.faults.set_epoch(3)
    model.train()
    assert cells() == first
    model.faults.reset(trial=1)
    assert cells() != first


def test_counted_cells_are_the_same_in_every_sample(faulty: Faulty) -> None:
    model = faulty(net(), injection_type="stuck_at_1", num_faults=9, bit=0)
    cells = sum(int((a != b).any(0).sum()) for a, b in seen(model, data(400)).values())
    assert cells == 9
    statistics = model.faults.new_statistics()
    model(data())
    assert statistics.total_injections == 9 * 40


# -- several faults ----------------------------------------------------------------------

SEVERAL = [
    {"injection_type": "bit_flip", "bit": 0, "probability": 10.0, "layers": ["0", "3"]},
    {"injection_type": "stuck_at_1", "bit": 1, "probability": 20.0, "layers": "0"},
    {"injection_type": "bit_flip", "bit": 2, "num_faults": 2, "layers": ["3", "5"]},
]


def test_each_of_several_faults_has_its_layers_and_rate(faulty: Faulty) -> None:
    model = faulty(net(), faults=SEVERAL)
    assert [[f.number for f in site.faults] for site in model.faults] == [[0, 1], [0, 2], [2]]
    changed = flips(model, data(2000), 3)
    assert set(changed["0"].unique().tolist()) == {0, 1, 2, 3}
    assert set(changed["3"].unique().tolist()) == {0, 1, 4, 5}
    assert set(changed["5"].unique().tolist()) == {0, 4}
    third = torch.cat([changed["3"] & 4, changed["5"] & 4], 1) != 0
    assert torch.equal(third.sum(1), torch.full((2000,), 2))
    # 20,000 elements at 10 %: within 4.9 standard deviations of 42, which fails with 1e-6.
    assert abs(int((changed["3"] & 1).sum()) - 2000) < 4.9 * 42.5


def test_the_first_of_several_is_the_fault_that_it_would_be_alone(faulty: Faulty) -> None:
    entry = {"injection_type": "bit_flip", "probability": 7.0}
    alone = faulty(net(), **entry)(data()).value
    assert torch.equal(faulty(net(), faults=[entry])(data()).value, alone)
    none = {"probability": 0.0, "injection_type": "msb_flip"}
    assert torch.equal(faulty(net(), faults=[entry, none])(data()).value, alone)
    assert not torch.equal(faulty(net(), faults=[none, entry])(data()).value, alone)


def test_two_of_the_same_kind_strike_independently(faulty: Faulty) -> None:
    """Bits 0 and 1 of 96,000 elements at 30 %: both in 9 %, within 4.9 deviations (1e-6)."""
    entries = [{"injection_type": "bit_flip", "bit": b, "probability": 30.0} for b in (0, 1)]
    changed = flips(faulty(net(), faults=entries), data(2000), 2)["0"]
    both = int((changed == 3).sum())
    assert abs(both - 8640) < 4.9 * (96_000 * 0.09 * 0.91) ** 0.5


def test_statistics_count_an_element_once(faulty: Faulty) -> None:
    """They are those of one fault whose codes before and after are given."""
    model = faulty(net(), faults=[*SEVERAL, {"probability": 40.0, "injection_type": "full_flip"}])
    copied = copy.deepcopy(model)
    statistics = model.faults.new_statistics()
    model(data())
    other = fxfault.FaultStatistics(3)
    for index, (name, (before, after)) in enumerate(seen(copied, data()).items()):
        site, numbers = copied.faults[name], torch.arange(40)
        layout = Layout(40, 1, (ELEMENTS[name],))
        count = elements_hit(site, numbers, layout)
        layer = statistics.layer_stats[index]
        assert layer.injected_count == count
        other.record(before, after, before != after, index)
        cosine = other.layer_stats[index].avg_cosine_similarity
        assert layer.avg_cosine_similarity == pytest.approx(cosine, rel=1e-9)
        moved = float((after - before).double().square().sum())
        assert layer.avg_rmse**2 * count == pytest.approx(moved, rel=1e-9)


def test_an_entry_that_names_no_site_is_told(faulty: Faulty) -> None:
    with pytest.raises(SiteError, match=r"^faults\[1\]\.layers: 'body' matches no site"):
        faulty(net(), faults=[{"probability": 1}, {"probability": 1, "layers": "body"}])


def test_a_site_without_an_entry_is_not_armed(faulty: Faulty) -> None:
    model = faulty(net(), faults=[{"probability": 100.0, "layers": "3"}])
    assert [site.armed for site in model.faults] == [False, True, False]
    assert model.faults[0].why_unarmed == "not selected"


@pytest.mark.parametrize("settings", [{"num_faults": 2}, {"faults": SEVERAL}], ids=["k", "list"])
def test_no_probability_is_set_where_none_counts(faulty: Faulty, settings: dict[str, Any]) -> None:
    model = faulty(net(), **settings)
    before = model(data()).value
    with pytest.raises(
        ConfigError, match=r"probability of 0: got 3.0, but `.*` says .*`model.faults.set_faults`"
    ):
        model.faults.set_probability(3.0)
    model.faults.reset()
    assert torch.equal(model(data()).value, before)
    model.faults.set_faults(FaultInjectionConfig(probability=3.0))
    model.faults.set_probability(4.0)
    assert [str(fault) for fault in model.faults[0].faults] == ["random at 4 %"]


def test_a_model_set_by_name_keeps_the_bit_of_the_configuration(faulty: Faulty) -> None:
    points = [{"epoch": 2, "injection_type": "stuck_at_1"}]
    model = faulty(net(), injection_type="bit_flip", bit=2, curriculum=points)
    assert str(model.faults[0].faults[0]) == "bit_flip 2 at 100 %"
    model.faults.set_epoch(2)
    assert str(model.faults[0].faults[0]) == "stuck_at_1 2 at 100 %"
    model.faults.set_fault_model("msb_flip")
    assert str(model.faults[0].faults[0]) == "msb_flip at 100 %"


# -- bits that a word does not have ------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"injection_type": "bit_flip", "bit": 3},
        {"injection_type": "burst", "burst_length": 4},
        {"faults": [{"injection_type": "stuck_at_0", "bit": 3, "probability": 1.0}]},
    ],
    ids=str,
)
def test_bits_that_a_word_does_not_have_are_refused_at_once(
    faulty: Faulty, settings: dict[str, Any]
) -> None:
    told = r"^site 3: .* needs a word of at least 4 bits, its word has 3; choose other bits, or"
    with pytest.raises(SiteError, match=told):
        faulty(net(), **settings)


def test_a_site_that_is_left_out_may_have_fewer_bits(faulty: Faulty) -> None:
    model = faulty(net(), injection_type="bit_flip", bit=3, layers=["0", "5"])
    model(data())
    model.faults.select(None)
    with pytest.raises(SiteError, match="site 3: bit_flip 3 needs a word of at least 4 bits"):
        model(data())


# -- what is known ahead -----------------------------------------------------------------

AHEAD: dict[str, dict[str, Any]] = {
    "elements": {"probability": 1.0, "injection_type": "bit_flip"},
    "bits": {"probability": 0.5, "injection_type": "bit_flip", "rate_unit": "bit"},
    "stuck": {"probability": 5.0, "injection_type": "stuck_at_1"},
    "stuck bits": {"probability": 2.0, "injection_type": "stuck_at_0", "rate_unit": "bit"},
    "so many": {"num_faults": 3, "injection_type": "burst"},
    "so many bits": {"num_faults": 3, "injection_type": "bit_flip", "rate_unit": "bit"},
    "units": {"probability": 5.0, "injection_type": "stuck_at_1", "hw_mask": True},
    "several": {"faults": SEVERAL},
}


@pytest.mark.parametrize("kind", AHEAD)
def test_samples_hit_are_those_that_are_hit(faulty: Faulty, kind: str) -> None:
    model = faulty(net(), **AHEAD[kind])
    statistics = model.faults.new_statistics()
    model.faults.measure(data())
    numbers = torch.tensor([3, 0, 77, 12, 5, 1000, 6, 9, 41, 2])
    for site in model.faults:
        layout = Layout(1, 1, (ELEMENTS[site.name],))
        told = samples_hit(site, numbers, layout)
        counts = []
        for number in numbers:
            before = statistics.layer_stats[site.index].injected_count
            with model.faults.samples(number[None]), torch.no_grad():
                model(data(1))
            counts.append(statistics.layer_stats[site.index].injected_count - before)
        assert told.tolist() == [count > 0 for count in counts]
        assert elements_hit(site, numbers, layout) == sum(counts)


@pytest.mark.parametrize("kind", AHEAD)
def test_an_incremental_run_gives_the_same_predictions(faulty: Faulty, kind: str) -> None:
    model = fxfault.freeze(faulty(net(), apply_during="eval", **AHEAD[kind]))
    loader = [(part, torch.zeros(len(part)).long()) for part in data(200).split(40)]
    full, incremental = FullRunner(model, loader), IncrementalRunner(model, loader)
    for trial in range(3):
        model.faults.reset(trial=trial)
        expected, made = full.run(), incremental.run()
        assert torch.equal(made.top, expected.top)
        assert made.struck is not None
        assert torch.equal(made.struck, expected.struck)
    assert incremental.why_full is None


# -- what is told of them ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (
            {"injection_type": "bit_flip", "bit": 2, "probability": 3.0, "rate_unit": "element"},
            ["  Probability: 3.0%", "  Injection type: bit_flip 2"],
        ),
        (
            {"injection_type": "stuck_at_0", "probability": 3.0, "rate_unit": "bit"},
            ["  Probability: 3.0% of the bits", "  Injection type: stuck_at_0"],
        ),
        ({"num_faults": 4}, ["  Faults: random, 4 a sample"]),
    ],
    ids=str,
)
def test_the_log_says_what_strikes(
    faulty: Faulty, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], lines: list[str]
) -> None:
    with caplog.at_level("INFO"):
        faulty(net(), verbose=True, **settings)
    assert [line for line in caplog.messages if line in lines] == lines


def test_a_site_says_what_strikes_it(faulty: Faulty) -> None:
    model = faulty(net(), faults=SEVERAL)
    assert repr(model.faults[1]) == (
        "FaultSite(1, '3', bit_flip 0 10 %; bit_flip 2, 2 a sample, armed)"
    )
    model.faults.set_faults(FaultInjectionConfig(faults=[{"probability": 1, "layers": "0"}]))
    assert repr(model.faults[1]) == "FaultSite(1, '3', no fault, not selected)"


def test_a_setting_is_put_back(faulty: Faulty) -> None:
    model = faulty(net(), faults=SEVERAL)
    before = model(data()).value
    kept = [(site, site.setting) for site in model.faults]
    model.faults.set_faults(
        FaultInjectionConfig(hw_mask=True, frequency_value=8, injection_type="stuck_at_1")
    )
    assert not torch.equal(model(data()).value, before)
    for site, setting in kept:
        site.setting = setting
    model.faults.reset()
    assert torch.equal(model(data()).value, before)


@pytest.mark.parametrize(
    "settings", [{"num_faults": 3}, {"faults": [{"probability": 20.0}, {"num_faults": 2}]}], ids=str
)
def test_compiled_code_has_the_same_faults(faulty: Faulty, settings: dict[str, Any]) -> None:
    plain = QuantIdentity(bit_width=4, scaling_impl_type="const", scaling_init=2.0)
    model = fxfault.freeze(faulty(nn.Sequential(plain).eval(), apply_during="eval", **settings))
    with torch.no_grad():
        found = torch.compile(model, backend="aot_eager")(data())
        model.faults.reset()
        expected = model(data())
    torch.compiler.reset()
    assert torch.equal(found, expected)
