"""Incremental runs predict what full runs do, whatever the model, the faults and the memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import BNN_PYNQ, HAND_WRITTEN, TORCHVISION

import fxfault
from fxfault.errors import ConfigError, DataError, FxFaultError, SiteError
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.full import verification
from fxfault.evaluation.incremental import golden_cache, packs
from fxfault.evaluation.incremental import runner as incremental
from fxfault.evaluation.incremental.batch_independence import INFLUENCE, PLACE, independence
from fxfault.evaluation.incremental.free_memory import free_memory
from fxfault.faults.bits import same_bits
from fxfault.functional import fault_inject
from fxfault.models import build_model
from fxfault.passes.segments import split_at_sites
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.live_values import (
    SampleRows,
    equal_samples,
    gather,
    leaves_of,
    role_of,
    with_leaves,
)

pytestmark = pytest.mark.filterwarnings("ignore:Named tensors", "ignore::DeprecationWarning")

Batches = list[tuple[Tensor, Tensor]]


def batches_of(shape: tuple[int, ...], samples: int, batch: int) -> Batches:
    """Noise, in batches of which the last is smaller unless `batch` divides `samples`."""
    images = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(7))
    labels = torch.zeros(samples, dtype=torch.int64)
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def transformed(model: nn.Module, **changes: Any) -> Any:
    config = {"enabled": True, "probability": 1.0, "apply_during": "eval", "seed": 4, **changes}
    return fxfault.freeze(fxfault.transform(model.eval(), {"unsupported": "skip", **config}))


def strike(faults: FaultSites, percent: float, fault_model: str, site: int | None) -> None:
    faults.set_probability(percent)
    faults.set_fault_model(fault_model)
    for candidate in faults:
        candidate.selected = site is None or candidate.index == site % len(faults)


def assert_same(model: Any, data: Batches, runner: IncrementalRunner) -> None:
    expected, found = FullRunner(model, data).run(), runner.run()
    assert torch.equal(found.top, expected.top)
    assert torch.equal(found.labels, expected.labels)
    assert found.struck is not None
    assert torch.equal(found.struck, expected.struck)


def counted(
    runner: IncrementalRunner, monkeypatch: pytest.MonkeyPatch, segment: int | None = None
) -> list[int]:
    """Sizes of the batches that run through a segment, or through any, as they come."""
    sizes: list[int] = []

    def advance(model: nn.Module, segments: Any, number: int, state: Any) -> Any:
        leaf = leaves_of(state)[0]
        if segment in (None, number):
            sizes.append(len(leaf))
        return original(model, segments, number, state)

    original = packs.advance
    monkeypatch.setattr(packs, "advance", advance)
    return sizes


# -- the law: incremental is full -----------------------------------------------------------

# Percent, fault model, and the one site that is struck (None: all of them).
FAULTS = [
    (0.02, "random", None),
    (0.5, "msb_flip", 1),
    (30.0, "random", -1),
    (0.02, "msb_flip", 0),
    (100.0, "lsb_flip", None),
    (0.0, "random", None),
]


def assert_splits(model: Any, images: Tensor) -> None:
    """Segments, one after the other, are the model, wherever it is split."""
    strike(model.faults, 5.0, "random", None)
    with torch.no_grad():
        model.faults.reset()
        expected = model(images)
        reached = {site for site in model.faults if site.elements}
        names = [segment.site.name for segment in split_at_sites(model)[1:]]
        for sites in (None, names[::2], ()):
            segments = split_at_sites(model, sites)
            model.faults.reset()
            state: Any = (images,)
            for segment in segments:
                if segment.takes_struck:
                    state = (fault_inject(state[0], segment.site), *state[1:])
                state = segment.function(model, *state)
            if segments:
                assert all(map(same_bits, leaves_of(state), leaves_of(expected)))
                struck = {site for segment in segments for site in segment.sites}
                # What a site passes on was struck before.
                assert {site for site in struck if not site.passes_on} == reached
            else:
                assert not names


def built_in(name: str, shape: tuple[int, ...], bits: int) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        name,
        num_classes=10,
        in_channels=shape[0],
        image_size=shape[1:],
        weight_bit_width=bits,
        act_bit_width=bits,
    )
    with torch.no_grad():
        model(torch.randn(8, *shape))
    return model


@pytest.mark.parametrize(
    ("name", "shape", "bits"),
    [
        ("quant_digits", (1, 8, 8), 4),
        ("quant_lenet", (1, 28, 28), 3),
        ("quant_cnv", (3, 32, 32), 2),
        ("quant_resnet20", (3, 8, 8), 1),
    ],
)
def test_built_in_networks(name: str, shape: tuple[int, ...], bits: int) -> None:
    model = transformed(built_in(name, shape, bits))
    data = batches_of(shape, samples=11, batch=4)
    assert_splits(model, data[0][0])
    runners = [IncrementalRunner(model, data, cache_memory=m) for m in (None, 0, 30_000)]
    for faults, runner in zip(FAULTS, itertools.cycle(runners)):
        strike(model.faults, *faults)
        assert_same(model, data, runner)


@pytest.mark.parametrize("entry", [*BNN_PYNQ, *TORCHVISION], ids=lambda entry: entry.name)
def test_third_party_networks(entry: Any) -> None:
    model = transformed(entry())
    data = batches_of(entry.shape[1:], samples=7, batch=4)
    assert_splits(model, data[0][0])
    runner = IncrementalRunner(model, data)
    for faults in FAULTS[:3]:
        strike(model.faults, *faults)
        assert_same(model, data, runner)


@pytest.mark.parametrize("entry", HAND_WRITTEN, ids=lambda entry: entry.name)
def test_networks_that_the_passes_find_hard(entry: Any) -> None:
    model = transformed(entry())
    assert_splits(model, entry.input())
    if len(entry.shape) == 3:
        return  # No scores come out of these, and no predictions.
    data = batches_of(entry.shape[1:], samples=11, batch=4)
    runner = IncrementalRunner(model, data)
    for faults in FAULTS:
        strike(model.faults, *faults)
        assert_same(model, data, runner)


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    return built_in("quant_digits", (1, 8, 8), 4)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    samples=st.integers(1, 21),
    batch=st.sampled_from([1, 2, 5, 8, 16]),
    memory=st.sampled_from([None, 0, 2_000, 20_000]),
    percent=st.sampled_from([0.0, 0.001, 0.05, 1.0, 60.0, 100.0]),
    fault_model=st.sampled_from(["random", "lsb_flip", "msb_flip", "full_flip"]),
    site=st.one_of(st.none(), st.integers(0, 4)),
    trial=st.integers(0, 3),
    changes=st.sampled_from(
        [{}, {"hw_mask": True, "frequency_value": 16}, {"mode": "layer", "layers": ["*"]}]
    ),
)
def test_incremental_is_full(
    digits: nn.Module,
    samples: int,
    batch: int,
    memory: int | None,
    percent: float,
    fault_model: str,
    site: int | None,
    trial: int,
    changes: dict[str, Any],
) -> None:
    model = transformed(digits, **changes)
    data = batches_of((1, 8, 8), samples, batch)
    model.faults.reset(trial=trial)
    model.faults.set_probability(percent)
    model.faults.set_fault_model(fault_model)
    if site is not None:
        strike(model.faults, percent, fault_model, site)
    assert_same(model, data, IncrementalRunner(model, data, cache_memory=memory, verify=100))


def test_sites_with_settings_of_their_own(digits: nn.Module) -> None:
    model = transformed(digits)
    data = batches_of((1, 8, 8), 40, 16)
    runner = IncrementalRunner(model, data)
    for percents in ((0.0, 2.0, 0.0, 0.3, 0.0), (0.01, 0.0, 0.0, 5.0, 1.0)):
        for site, percent in zip(model.faults, percents, strict=True):
            site.set_probability(percent)
        for trial in range(3):
            model.faults.reset(trial=trial)
            assert_same(model, data, runner)


def test_an_unfrozen_model(digits: nn.Module) -> None:
    config = {"enabled": True, "probability": 0.3, "apply_during": "eval", "seed": 4}
    model = fxfault.transform(digits.eval(), config)
    data = batches_of((1, 8, 8), 20, 8)
    assert_same(model, data, IncrementalRunner(model, data))


def test_shares_of_several_processes(digits: nn.Module) -> None:
    model = transformed(digits, probability=0.3)
    model.faults.shard(rank=1, world_size=2)
    data = batches_of((1, 8, 8), 20, 8)
    assert_same(model, data, IncrementalRunner(model, data))


# -- what is not run ------------------------------------------------------------------------


@pytest.fixture
def model(digits: nn.Module) -> Any:
    return transformed(digits)


@pytest.fixture
def data() -> Batches:
    return batches_of((1, 8, 8), 64, 16)


def test_nothing_runs_where_nothing_is_struck(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = IncrementalRunner(model, data)
    golden = runner.golden()
    sizes = counted(runner, monkeypatch)
    strike(model.faults, 0.0, "random", None)
    assert torch.equal(runner.run().top, golden.top)
    assert sizes == []


def test_a_run_starts_at_the_struck_site_with_the_struck_samples(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = IncrementalRunner(model, data)
    strike(model.faults, 0.3, "msb_flip", -1)
    runner.golden()
    sizes = counted(runner, monkeypatch)
    struck = runner.run().struck
    assert struck is not None
    assert 1 < int(struck.sum()) <= 16  # a few in several batches: one pack
    assert len(sizes) == 1
    assert int(struck.sum()) <= sizes[0] <= 16


class Masking(nn.Sequential):
    """The second activation saturates, so that no fault in the first shows behind it."""

    def __init__(self) -> None:
        constant = {"bit_width": 4, "scaling_impl_type": "const"}
        super().__init__(
            QuantIdentity(min_val=-100.0, max_val=100.0, **constant),
            QuantReLU(max_val=1e-3, **constant),
            nn.Linear(6, 6),
            QuantReLU(max_val=1.0, **constant),
            nn.Linear(6, 4),
        )


def test_masked_samples_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = transformed(Masking(), probability=100.0, injection_type="lsb_flip")
    images = 50 + torch.rand(16, 6)
    runner = IncrementalRunner(model, [(images, torch.zeros(16, dtype=torch.int64))])
    strike(model.faults, 100.0, "lsb_flip", 0)
    golden = runner.golden()
    sizes = counted(runner, monkeypatch)
    made = runner.run()
    assert bool(made.struck.all())  # type: ignore[union-attr]
    assert torch.equal(made.top, golden.top)
    assert sizes == [16]  # one segment, and not the two behind it


def test_samples_that_are_struck_again_later_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = transformed(Masking(), injection_type="msb_flip")
    images = 50 + torch.rand(64, 6)
    data = [(part, torch.zeros(16, dtype=torch.int64)) for part in images.split(16)]
    runner = IncrementalRunner(model, data)
    for percents in ((20.0, 0.0, 20.0), (5.0, 5.0, 5.0), (100.0, 0.0, 1.0)):
        for site, percent in zip(model.faults, percents, strict=True):
            site.set_probability(percent)
        assert_same(model, data, runner)


def test_every_sample_is_told_once(model: Any, data: Batches) -> None:
    for memory in (None, 0):
        runner = IncrementalRunner(model, data, cache_memory=memory)
        done: list[int] = []
        runner.golden(done.append)
        assert done == [16] * 4
        for faults in FAULTS:
            strike(model.faults, *faults)
            done.clear()
            runner.run(done.append)
            assert sum(done) == 64
            assert min(done) > 0


# -- the golden run -------------------------------------------------------------------------


def test_golden_is_that_of_full_runs_and_is_kept(model: Any, data: Batches) -> None:
    runner = IncrementalRunner(model, data)
    golden = runner.golden()
    expected = FullRunner(model, data).golden()
    assert torch.equal(golden.top, expected.top)
    assert golden.struck is None
    assert runner.golden() is golden
    assert runner.why_full is None


def test_golden_is_made_anew_when_parameters_change(data: Batches) -> None:
    model = transformed(built_in("quant_digits", (1, 8, 8), 4))
    runner = IncrementalRunner(model, data)
    before = runner.golden()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.neg_()
    assert not torch.equal(runner.golden().top, before.top)
    assert_same(model, data, runner)


def test_nothing_of_the_model_is_moved(model: Any, data: Batches) -> None:
    faults = model.faults
    strike(faults, 1.0, "random", 2)
    faults.reset(trial=3)
    model(torch.randn(4, 1, 8, 8))
    states = random.getstate(), torch.get_rng_state().tolist()
    before = faults.clock.state(), [(site.probability, site.selected) for site in faults]
    runner = IncrementalRunner(model, data, verify=50)
    runner.golden()
    runner.run()
    after = faults.clock.state(), [(site.probability, site.selected) for site in faults]
    # Where the next forward starts to count, not where the last one was.
    for state in (before[0], after[0]):
        state.pop("batch")
    assert after == before
    assert (random.getstate(), torch.get_rng_state().tolist()) == states


def test_a_loader_without_a_length(model: Any, data: Batches) -> None:
    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(data)

    strike(model.faults, 0.3, "random", None)
    assert_same(model, data, IncrementalRunner(model, Stream()))


def test_running_out_of_memory_means_less_cache(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [12]

    def copy(leaf: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return original(leaf)

    original = golden_cache._copy
    monkeypatch.setattr(golden_cache, "_copy", copy)
    runner = IncrementalRunner(model, data)
    strike(model.faults, 0.3, "random", None)
    assert_same(model, data, runner)
    assert runner._golden is not None
    assert len(runner._golden.cache.sites) < 5


def test_memory_is_kept_to(model: Any, data: Batches) -> None:
    for budget in (0, 40_000, 200_000):
        runner = IncrementalRunner(model, data, cache_memory=budget)
        runner.golden()
        assert runner._golden is not None
        cache = runner._golden.cache
        held = [
            golden_cache.bytes_of(cache.leaves(site, batch))
            for site in cache.sites
            for batch in range(4)
        ]
        assert sum(held) <= budget
        assert bool(held) == (budget > 0)


def test_an_error_that_is_not_about_memory_is_not_hidden(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(leaf: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(golden_cache, "_copy", copy)
    with pytest.raises(RuntimeError, match="something else"):
        IncrementalRunner(model, data).golden()


# -- batches that must stay whole -----------------------------------------------------------


class Scaled(nn.Module):
    """Divides by the largest value of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max()


class RoundsByBatch(nn.Module):
    """Stands for a kernel that sums up in another order for batches of some sizes."""

    def __init__(self, odd: Callable[[int], bool]) -> None:
        super().__init__()
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 2e-7) if self.odd(len(x)) else x


class RoundsByPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:-1], x[-1:] * (1 + 2e-7)])


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.rand(x.shape)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class AsksValues(nn.Module):
    """Keeps its own forward, and looks at the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.act = QuantIdentity(bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if x.sum() > 0 else -self.act(x)


def around(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        QuantIdentity(bit_width=6, scaling_impl_type="const", min_val=-4.0, max_val=4.0),
        exact_linear(6, 6),
        middle,
        QuantReLU(bit_width=4, scaling_impl_type="const", max_val=3.75),  # steps of 1/4
        exact_linear(6, 4),
    )


def exact_linear(width: int, out: int) -> nn.Linear:
    """A layer whose sums are exact in any order: its weights are multiples of 1/8."""
    layer = nn.Linear(width, out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(16).round_().div_(8)
    return layer


def whole_and_right(middle: nn.Module, batch: int = 8, samples: int = 30) -> str | None:
    model = transformed(around(middle))
    data = batches_of((6,), samples, batch)
    runner = IncrementalRunner(model, data)
    for faults in ((0.2, "msb_flip", None), (3.0, "random", 0), (3.0, "msb_flip", -1)):
        strike(model.faults, *faults)
        assert_same(model, data, runner)
    return runner.why_full


def test_samples_that_influence_each_other_stay_in_their_batches() -> None:
    assert whole_and_right(Scaled()) == f"batches are run whole: {INFLUENCE}"


def test_a_batch_norm_without_running_statistics_is_noticed() -> None:
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    assert INFLUENCE in str(whole_and_right(norm))


def test_results_that_depend_on_the_place_keep_batches_whole() -> None:
    assert PLACE in str(whole_and_right(RoundsByPlace()))


def test_code_that_may_look_at_the_whole_batch_keeps_batches_whole() -> None:
    why = whole_and_right(AsksValues())
    assert why is not None
    assert "the forward of 2 keeps its own code" in why


@pytest.mark.parametrize(
    ("middle", "part"), [(Noise(), "gives other results each time"), (Counts(), "buffers")]
)
def test_a_model_that_does_not_repeat_itself_is_run_in_full(middle: nn.Module, part: str) -> None:
    model = transformed(around(middle))
    data = batches_of((6,), 8, 4)
    runner = IncrementalRunner(model, data)
    runner.golden()
    assert runner.run().top.shape == (8, 4)
    assert str(runner.why_full).startswith("every run is a full one")
    assert part in str(runner.why_full)


def test_a_model_without_a_graph_is_run_in_whole_batches(branching: nn.Module) -> None:
    data = batches_of((12,), 8, 4)
    model = transformed(branching)
    runner = IncrementalRunner(model, data)
    assert_same(model, data, runner)
    assert "batches are run whole: the forward of" in str(runner.why_full)


def test_a_model_with_hooks_is_run_in_full() -> None:
    model = transformed(around(nn.Identity()))
    model.register_forward_hook(lambda module, inputs, output: -output)
    data = batches_of((6,), 8, 4)
    runner = IncrementalRunner(model, data)
    assert_same(model, data, runner)
    assert "hooks" in str(runner.why_full)


def test_sizes_that_round_differently_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do; the parts before and after take them."""
    assert whole_and_right(RoundsByBatch(lambda n: n < 4), batch=8, samples=24) is None
    model = transformed(around(RoundsByBatch(lambda n: n < 4)), injection_type="msb_flip")
    data = batches_of((6,), 24, 8)
    runner = IncrementalRunner(model, data)
    strike(model.faults, 4.0, "msb_flip", 0)
    runner.golden()
    here, behind = (counted(runner, monkeypatch, segment) for segment in (1, 2))
    runner.run()
    assert min(here) >= 4
    assert min(behind) < 4
    assert_same(model, data, runner)


def test_where_no_other_size_is_safe_packs_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformed(around(RoundsByBatch(lambda n: n != 8)), injection_type="msb_flip")
    data = batches_of((6,), 30, 8)  # the last batch, of 6, rounds in its own way
    runner = IncrementalRunner(model, data)
    strike(model.faults, 30.0, "msb_flip", 0)
    runner.golden()
    sizes = counted(runner, monkeypatch, segment=1)
    runner.run()
    assert set(sizes) == {8, 6}
    assert_same(model, data, runner)


def test_a_network_that_takes_one_batch_size_only_runs_batches_whole() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(8, -1)

    why = whole_and_right(Fixed(), samples=24)
    assert why is not None
    assert "it fails on batches of other sizes" in why


def test_statistics_make_runs_full(model: Any, data: Batches) -> None:
    runner = IncrementalRunner(model, data)
    strike(model.faults, 0.5, "random", None)
    statistics = model.faults.new_statistics()
    made = runner.run()
    assert statistics.total_activations == 64 * sum(site.elements for site in model.faults)
    assert "statistics are tracked" in str(runner.why_full)
    model.faults.set_statistics(None)
    assert runner.why_full is None
    assert torch.equal(runner.run().top, made.top)


# -- verify ---------------------------------------------------------------------------------


def test_verify_finds_a_wrong_prediction(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike(model.faults, 1.0, "random", None)
    IncrementalRunner(model, data, verify=100).run()
    evaluate = incremental.Evaluation.run

    def wrong(self: Any) -> None:
        evaluate(self)
        self.revision.top[21] = self.revision.top[21].flip(0)

    monkeypatch.setattr(incremental.Evaluation, "run", wrong)
    IncrementalRunner(model, data).run()
    message = r"verify: batch 1, sample 21: .* 1 of 16 samples \(trial 0\); evaluate this model"
    with pytest.raises(FxFaultError, match=message):
        IncrementalRunner(model, data, verify=100).run()


def test_verify_takes_a_share_of_the_batches(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    batches = verification.some_batches

    def watched(loader: Any, wanted: Any, *more: Any) -> Any:
        asked.append(len(wanted))
        return batches(loader, wanted, *more)

    monkeypatch.setattr(verification, "some_batches", watched)
    runner = IncrementalRunner(model, data, verify=30)
    for trial in range(50):
        model.faults.reset(trial=trial)
        runner.run()
    # 200 draws of 30 %: within 4 standard deviations of 60, for this seed and any other.
    assert 34 < sum(asked) < 86


def watch_verifying(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    asked: list[tuple[int, ...]] = []
    batches = verification.some_batches

    def watched(loader: Any, wanted: Any, *more: Any) -> Any:
        asked.append(tuple(wanted))
        return batches(loader, wanted, *more)

    monkeypatch.setattr(verification, "some_batches", watched)
    return asked


def test_by_default_one_batch_of_each_setting_is_verified_where_time_allows(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = watch_verifying(monkeypatch)
    monkeypatch.setattr(verification, "SMALL", 1e9)
    runner = IncrementalRunner(model, data, verify=None)
    for _ in range(2):
        for probability in (0.5, 1.0, 2.0):
            strike(model.faults, probability, "random", None)
            for trial in range(3):
                model.faults.reset(trial=trial)
                runner.run()
    assert [len(batches) for batches in asked] == [1, 1, 1]
    last = asked[-1]
    model.faults.reset(trial=0)
    IncrementalRunner(model, data, verify=None).run()
    assert asked[-1] == last  # The seed chooses.


def test_by_default_verifying_takes_little_of_the_time(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = watch_verifying(monkeypatch)
    monkeypatch.setattr(verification, "SMALL", 0.0)
    runner = IncrementalRunner(model, data, verify=None)
    for probability in (0.5, 1.0, 2.0):
        strike(model.faults, probability, "random", None)
        runner.run()
    assert len(asked) == 1  # The first is verified whatever it takes.
    strike(model.faults, 0.0, "random", None)
    IncrementalRunner(model, data, verify=None).run()
    assert len(asked) == 1  # Where nothing is struck there is nothing to compare.


def test_the_default_finds_a_wrong_prediction(
    model: Any, data: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike(model.faults, 5.0, "random", None)
    evaluate = incremental.Evaluation.run

    def wrong(self: Any) -> None:
        evaluate(self)
        self.revision.top[:] = self.revision.top.flip(1)

    monkeypatch.setattr(incremental.Evaluation, "run", wrong)
    with pytest.raises(FxFaultError, match="verify: batch"):
        IncrementalRunner(model, data, verify=None).run()
    IncrementalRunner(model, data, verify=0).run()


@pytest.mark.parametrize(
    ("options", "match"),
    [({"cache_memory": -1}, "bytes, 0 and up"), ({"verify": 101}, "from 0 to 100")],
)
def test_options_out_of_range_are_refused(
    model: Any, data: Batches, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        IncrementalRunner(model, data, **options)


def test_no_sample_and_no_sites_are_errors(model: Any) -> None:
    with pytest.raises(DataError, match="no sample"):
        IncrementalRunner(model, []).golden()
    with pytest.raises(SiteError, match="no fault sites"):
        IncrementalRunner(nn.Identity(), [])


# -- the split ------------------------------------------------------------------------------


def test_a_site_that_counts_its_calls_is_in_one_segment() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = QuantIdentity(), QuantIdentity()
            self.between = QuantIdentity()
            self.kept = AsksValues()

        def forward(self, x: Tensor) -> Tensor:
            x = self.kept(self.first(x))
            return self.last(self.kept(self.between(x)))

    segments = split_at_sites(transformed(Twice()))
    assert [[site.name for site in segment.sites] for segment in segments] == [
        [],
        ["first", "kept.act", "between"],
        ["last"],
    ]
    assert segments[1].kept == ("kept", "kept")


# -- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim", "each"), [((6, 4), 0, 1), ((6, 4), 0, 2), ((3, 6, 2), 1, 3), ((6,), 0, 1)]
)
def test_gather_takes_rows_of_samples(shape: tuple[int, ...], dim: int, each: int) -> None:
    leaf = torch.randn(shape)
    samples = torch.arange(shape[dim] // each).flip(0)
    taken = gather([(leaf, samples), (leaf, samples[:1])], SampleRows(dim, each))
    parts = leaf.split(each, dim)
    expected = [parts[int(s)] for s in samples] + [parts[int(samples[0])]]
    assert torch.equal(taken, torch.cat(expected, dim))


def test_gather_keeps_the_memory_format_and_copies() -> None:
    leaf = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    for samples in (torch.tensor([2, 0]), torch.arange(4)):
        taken = gather([(leaf, samples)], SampleRows(0, 1))
        assert taken.is_contiguous(memory_format=torch.channels_last)
        assert taken.data_ptr() != leaf.data_ptr()


def test_samples_are_compared_bit_by_bit() -> None:
    nan = float("nan")
    a, b = torch.tensor([[0.0], [nan], [1.0]]), torch.tensor([[-0.0], [nan], [1.0 + 2**-23]])
    assert equal_samples(a, b, SampleRows(0, 1)).tolist() == [False, True, False]
    assert same_bits(a[1], b[1])
    assert not same_bits(a[0], b[0])
    assert not same_bits(a, a.double())


def test_roles_that_do_not_fit_are_errors() -> None:
    for leaf, other in [
        (torch.zeros(4, 4), torch.zeros(2, 2)),
        (torch.zeros(5), torch.zeros(3)),
        (5, 3),
        ("a", "b"),
        (torch.zeros(4), 1),
    ]:
        with pytest.raises(ValueError, match="batch"):
            role_of(leaf, 4, other, 2)


def test_a_quant_tensor_is_rebuilt_without_its_constructor() -> None:
    quantised = QuantIdentity(bit_width=4, return_quant_tensor=True).eval()(torch.randn(3, 2))
    leaves = leaves_of((quantised, torch.Size([1, 2])))
    again, size = with_leaves((quantised, torch.Size([1, 2])), iter(leaves))
    assert type(again) is type(quantised)
    assert again.value is quantised.value
    assert size == torch.Size([1, 2])


def test_sites_whose_activations_have_the_batch_elsewhere_are_found() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.turned = QuantIdentity(), QuantIdentity()

        def forward(self, x: Tensor) -> Tensor:
            return self.turned(self.first(x).t().contiguous()).t()

    model = transformed(Turned())
    model.faults.enabled = False
    with torch.no_grad():
        found = independence(model, torch.randn(8, 6))
    assert found.why_not is None
    assert found.mixed == {"turned"}
    data = batches_of((8,), 30, 8)
    runner = IncrementalRunner(model, data)
    model.faults.enabled = True
    for faults in ((1.0, "msb_flip", 0), (1.0, "msb_flip", 1), (1.0, "msb_flip", None)):
        strike(model.faults, *faults)
        expected, made = FullRunner(model, data).run(), runner.run()
        assert torch.equal(made.top, expected.top)


def test_free_memory_keeps_to_the_limit_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxfault.evaluation.incremental import free_memory as module

    texts = {"meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n"}
    monkeypatch.setattr(module, "_text", lambda path: texts.get(path.name, ""))
    assert free_memory() == 4000 * 1024
    texts.update({"memory.max": "3000000\n", "memory.current": "1000000\n"})
    assert free_memory() == 2_000_000
    texts["memory.max"] = "max\n"
    assert free_memory() == 4000 * 1024


def test_slices_of_batches_of_any_size_fit_each_other() -> None:
    """A sample's slice is compared with one of a golden batch, which may be smaller or larger."""
    for role, shape in ((SampleRows(0, 1), (8, 64, 9, 9)), (SampleRows(1, 2), (64, 16, 81))):
        shapes = set()
        for size in (1, 2, 8):
            leaf = torch.zeros(shape).narrow(role.dim, 0, size * role.each)
            part = list(packs._slice_of(leaf, role).shape)
            part[role.dim] //= size
            shapes.add(tuple(part))
        assert shapes == {(1, 1, 9, 9) if role.dim == 0 else (1, 2, 81)}
