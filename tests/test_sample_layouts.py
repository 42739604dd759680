"""Which elements belong to which sample is measured: laws over small networks after public code.

Where `arrangement` does not say otherwise, the faults of a sample are the same whatever batch it
comes in; and incremental runs predict what full runs predict, always.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from sample_layouts import (
    CONSECUTIVE,
    MIXING,
    NETWORKS,
    REFUSED,
    TWO,
    BatchStatistics,
    BothFolded,
    Data,
    FoldedTime,
    N,
    Raft,
    Siamese,
    Skips,
    Small,
    Sorted,
    Transposed,
    TwoViews,
    Vit,
    act,
    data_of,
    model_of,
)
from torch import Tensor, nn

import fxfault
from fxfault.campaign.workers.plan import Plan
from fxfault.errors import SiteError
from fxfault.evaluation import FullRunner, IncrementalRunner, make_runner
from fxfault.evaluation.runners import run_golden
from fxfault.faults.layouts import Arrangement


def struck(model: Any, data: Data) -> dict[str, list[list[int]]]:
    """The elements that are hit at each site, sample by sample, in one pass over the data."""
    found: dict[str, list[list[int]]] = {}
    model.faults.reset(trial=1)
    for inputs, _ in data:
        calls: dict[str, int] = {}
        for site in model.faults:
            site.observer = None
        seen: list[tuple[str, Any, Tensor, Tensor]] = []
        with watching(seen, calls), torch.no_grad():
            model(inputs)
        for name, site, clean, faulty in seen:
            layout = site.layout_of(tuple(clean.shape), len(inputs))
            index = torch.arange(layout.samples * layout.elements)
            places = layout.place(index).view(layout.samples, -1)
            hits = (clean != faulty).flatten()[places]
            rows = [hit.nonzero()[:, 0].tolist() for hit in hits]
            found.setdefault(name, []).extend(rows)
    return found


class watching:
    """Notes what each strike writes, with a fault that changes every word that is hit."""

    def __init__(self, seen: list[Any], calls: dict[str, int]) -> None:
        self.seen, self.calls = seen, calls

    def __enter__(self) -> None:
        from fxfault.strike import strikes

        self.strike = strikes.strike_values

        def strike(x: Any, site: Any, moment: Any) -> Any:
            clean = x.value.clone()
            faulty = self.strike(x, site, moment)
            call = self.calls[site.name] = self.calls.get(site.name, 0) + 1
            self.seen.append((f"{site.name}#{call}", site, clean, faulty.clone()))
            return faulty

        self._put(strike)

    def __exit__(self, *error: object) -> None:
        self._put(self.strike)

    def _put(self, strike: Any) -> None:
        from fxfault import functional
        from fxfault.strike import calls

        for module in (functional, calls):
            module.strike_values = strike  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_layouts_are_found(kind: type[nn.Module]) -> None:
    model = model_of(kind)
    model.faults.measure(data_of(kind, N)[0][0])
    found = [str(site.seen.arrangement) for site in model.faults]
    assert len(found) >= 1
    expected = NETWORKS[kind]
    if len(found) != len(expected):  # A kept container has one site for all its calls.
        assert set(found) == set(expected)
        return
    for text, end in zip(found, expected, strict=True):
        assert end in text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rate_unit": "bit", "injection_type": "bit_flip"},
        {"num_faults": 2},
        {"hw_mask": True, "frequency_value": 7, "probability": 30.0},
        {"injection_type": "stuck_at_1", "bit": 0, "probability": 60.0},
    ],
    ids=["elements", "bits", "num_faults", "hw_mask", "stuck_at"],
)
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_faults_do_not_depend_on_the_batch_size(
    kind: type[nn.Module], settings: dict[str, Any]
) -> None:
    """Which elements: `full_flip` changes every word."""
    if "bit" in settings and kind in MIXING:
        return  # A stuck bit shows by the value, which depends on the batch.
    given = {"injection_type": "full_flip", "probability": 20.0, **settings}
    if "num_faults" in settings:
        given["probability"] = fxfault.FaultInjectionConfig().probability
    model = model_of(kind, **given)
    passes = []
    if "num_faults" in settings and kind in REFUSED:
        with pytest.raises(SiteError, match="belongs to the batch, not to samples"):
            FullRunner(model, data_of(kind, 4)).run()
        return
    for batch in (1, 7, N):
        data = data_of(kind, batch)
        if batch == 1 and kind is BatchStatistics:
            continue  # Of one sample there are no statistics.
        FullRunner(model, data).golden()
        passes.append(struck(model, data))
    whole = passes[-1]
    for site in model.faults:
        text = str(site.seen.arrangement)
        if "belong to" in text:
            continue
        for other in passes[:-1]:
            for name in [name for name in whole if name.startswith(f"{site.name}#")]:
                assert other[name] == whole[name], (name, text)
                assert len(whole[name]) == N


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_predictions_do_not_depend_on_the_batch_size(kind: type[nn.Module]) -> None:
    model = model_of(kind, injection_type="msb_flip")
    tops = []
    for batch in (1, 7, N):
        if batch == 1 and kind is BatchStatistics:
            continue
        runner = FullRunner(model, data_of(kind, batch))
        model.faults.reset(trial=2)
        tops.append(runner.run().top)
    said = [str(site.seen.arrangement) for site in model.faults]
    if not any("belong to" in text or "influence" in text for text in said):
        assert all(torch.equal(top, tops[0]) for top in tops)


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_incremental_runs_predict_what_full_runs_do(kind: type[nn.Module], batch: int) -> None:
    if batch == 1 and kind is BatchStatistics:
        return
    data = data_of(kind, batch, samples=N + 3 if kind is not BatchStatistics else 2 * N)
    model = model_of(kind, injection_type="msb_flip")
    incremental, full = IncrementalRunner(model, data, cache_memory=2**20), FullRunner(model, data)
    for trial in range(2):
        for sites in (None, [0], [len(model.faults) - 1]):
            model.faults.select(sites)
            model.faults.reset(trial=trial)
            made, expected = incremental.run(), full.run()
            assert torch.equal(made.top, expected.top)
            assert made.struck is not None
            assert expected.struck is not None
            if incremental.why_full is None:
                assert torch.equal(made.struck, expected.struck)
    if kind in MIXING and batch > 1:
        assert "influence" in (incremental.why_full or "")


def test_compiled_code_strikes_the_same_elements() -> None:
    for kind in (TwoViews, Raft):
        data, model = data_of(kind, 7), model_of(kind, injection_type="msb_flip")
        model.faults.reset(trial=1)
        expected = FullRunner(model, data).run().top
        compilation = fxfault.compile(model, data[0][0], backend="aot_eager", exact=True)
        assert compilation.compiled
        model.faults.measure_layouts(torch.randn(7, *kind.shape))
        assert [str(site.seen.arrangement) for site in model.faults] == [TWO, TWO]
        assert torch.equal(FullRunner(model, data).run().top, expected)


def test_gradients_end_at_what_was_hit() -> None:
    torch.manual_seed(0)
    net = TwoViews()
    net(torch.randn(32, 12))
    settings = {"injection_type": "full_flip", "probability": 20.0, "gradient_mode": "zero_faulty"}
    model: Any = fxfault.transform(net.eval(), {"enabled": True, "apply_during": "eval"} | settings)
    inputs = torch.randn(6, 12)
    model.faults.measure(inputs)
    site = model.faults[0]
    model.faults.select(0)
    x = qnn.QuantReLU(
        bit_width=4, scaling_impl_type="const", max_val=15.0, return_quant_tensor=True
    )
    quantised = x(torch.randint(0, 15, (12, 16)).float().requires_grad_())
    model.faults.clock.begin(6)
    from fxfault.functional import fault_inject

    leaf = quantised.value.detach().requires_grad_()
    out = fault_inject(quantised._replace(value=leaf), site)
    out.value.sum().backward()
    hit = out.value != leaf
    assert hit.any()
    assert torch.equal(leaf.grad == 0, hit)


def test_statistics_count_every_hit() -> None:
    data, model = data_of(TwoViews, 7), model_of(TwoViews, injection_type="full_flip")
    runner = FullRunner(model, data)
    runner.golden()
    statistics = model.faults.new_statistics()
    model.faults.reset(trial=0)
    runner.run()
    layers = [statistics.layer_stats[site.index] for site in model.faults]
    counted = [layer.injected_count for layer in layers]
    totals = [layer.total_activations for layer in layers]
    model.faults.set_statistics(None)
    model.faults.reset(trial=0)
    hits = {0: 0, 1: 0}
    for inputs, _ in data:
        seen: list[Any] = []
        with watching(seen, {}), torch.no_grad():
            model(inputs)
        for _, site, clean, faulty in seen:
            hits[site.index] += int((clean != faulty).sum())
    assert counted == [hits[0], hits[1]]
    assert totals == [N * 2 * 16, N * 2 * 8]


def test_two_views_run_incrementally() -> None:
    for kind in (TwoViews, Raft, Skips, FoldedTime, BothFolded, Transposed):
        runner = IncrementalRunner(model_of(kind), data_of(kind, 7), cache_memory=2**20)
        runner.golden()
        assert runner.why_full is None, kind
        golden = runner._golden
        assert golden is not None
        assert golden.why_whole is None
        assert len(golden.cuts) > 1, kind
        assert all(cut.roles is not None for cut in golden.cuts)


def test_why_full_names_the_site_whose_faults_belong_to_the_batch() -> None:
    model = model_of(Sorted)
    runner = IncrementalRunner(model, data_of(Sorted, 7))
    runner.golden()
    assert "influence" in (runner.why_full or "") or "not independent at act" in runner.why_full
    model = model_of(Vit)
    runner = IncrementalRunner(model, data_of(Vit, 7))
    runner.golden()
    assert "where table is struck: its activation belongs to the batch" in (runner.why_full or "")
    model.faults.select("act*")
    assert runner.why_full is None


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_measuring_changes_nothing_else(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    net: Any = kind()
    model: Any = fxfault.transform(net.train(), {"enabled": True, "seed": 5})
    before = copy.deepcopy(model.state_dict())
    random_states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    clock = model.faults.clock.state()
    model.faults.measure(data_of(kind, N)[0][0])
    assert model.training
    assert model.faults.clock.state() == clock
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random_states[0], torch.random.get_rng_state())
    assert (random_states[1] == np.random.get_state()[1]).all()
    assert all(site.observer is None and site.selected for site in model.faults)


class Membrane(nn.Module):
    """A spiking network that keeps its state, of the size of the batch, between forwards."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(6, 8), act(), nn.Linear(8, 5)
        self.membrane: Tensor | None = None
        self.calls, self.history = 0, [0]
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.membrane is None or len(self.membrane) != len(x):
            self.membrane = torch.zeros(len(x), 8)
        self.membrane = 0.5 * self.membrane + self.fc(x)
        self.calls += 1
        self.history.append(self.calls)
        self.total += 1
        self.seen = x
        return self.head(self.act(self.membrane))


def test_what_forwards_leave_behind_is_as_before() -> None:
    torch.manual_seed(0)
    net = Membrane()
    net(torch.randn(9, 6))
    net.eval()
    model: Any = fxfault.transform(net, {"enabled": True, "apply_during": "eval", "seed": 1})
    for module in model.modules():
        vars(module).pop("seen", None)
    state = [(dict(vars(m)), dict(m._buffers)) for m in model.modules() if type(m) is type(net)]
    total = model.total.clone()
    model.faults.measure_layouts(torch.randn(14, 6))
    assert str(model.faults[0].seen.arrangement) == CONSECUTIVE
    assert torch.equal(model.total, total)
    for module, (before, buffers) in zip(
        [m for m in model.modules() if type(m) is type(net)], state, strict=True
    ):
        assert vars(module).keys() == before.keys()
        assert all(vars(module)[name] is value for name, value in before.items())
        assert all(module._buffers[name] is value for name, value in buffers.items())


@pytest.mark.parametrize("incremental", [True, False])
def test_a_study_says_whose_faults_belong_to_the_batch(incremental: bool) -> None:
    notes: list[str] = []

    def run(network: type[nn.Module]) -> None:
        data: Any = data_of(network, 7)
        cpu, options = torch.device("cpu"), Plan(study={}, incremental=incremental)
        runner = make_runner(
            model_of(network), data, cpu, notes.append, **options.runner_options(cpu)
        )
        run_golden(runner, notes.append)

    run(Sorted)
    assert "the faults of act belong to the batch, not to its samples: its values" in notes[-1]
    assert len(notes) == 1 + incremental
    notes.clear()
    run(TwoViews)
    assert notes == []


def test_noise_tells_nothing() -> None:
    class Noisy(Small):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.dropout(self.act(self.fc(x)), 0.3, True)
            return self.head(self.act2(self.fc2(y)))

    torch.manual_seed(0)
    net = Noisy()
    net(torch.randn(16, 8))
    model: Any = fxfault.transform(net.eval(), {"enabled": True, "seed": 1})
    model.faults.measure(torch.randn(7, 8))
    assert str(model.faults[0].seen.arrangement) == CONSECUTIVE
    assert model.faults[1].seen.arrangement is None
    assert "other results each time (act2)" in (model.faults.layouts_note or "")


def test_layouts_survive_copies_and_freezing() -> None:
    torch.manual_seed(0)
    net = TwoViews()
    net(torch.randn(32, 12))
    model = fxfault.transform(net.eval(), {"enabled": True, "seed": 1})
    model.faults.measure(torch.randn(7, 12))
    for other in (copy.deepcopy(model), fxfault.freeze(model)):
        assert [str(site.seen.arrangement) for site in other.faults] == [TWO, TWO]


def test_nothing_but_a_few_samples_is_run() -> None:
    model = model_of(TwoViews)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    runner = FullRunner(model, data_of(TwoViews, 14, samples=140))
    runner.golden()
    assert sizes[:5] == [7, 7, 7, 5, 5]
    assert sizes[5:] == [14] * 10
    runner.run()
    assert len(sizes) == 25


@pytest.mark.parametrize("inputs", [torch.zeros(1, 12), torch.ones(3, 12), torch.rand(2, 12)])
def test_few_samples_or_none_that_differ_are_enough(inputs: Tensor) -> None:
    model = model_of(TwoViews)
    model.faults.measure(inputs)
    assert [str(site.seen.arrangement) for site in model.faults] == [TWO, TWO]


def test_what_fails_in_other_batches_is_not_measured_but_said() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.head = act(), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(x).reshape(4, 6) * torch.ones(4, 6))

    torch.manual_seed(0)
    net = Fixed()
    net(torch.randn(4, 6))
    model = fxfault.transform(net.eval(), {"enabled": True, "seed": 1})
    model.faults.measure(torch.randn(4, 6))  # As a whole it can be.
    assert str(model.faults[0].seen.arrangement) == CONSECUTIVE
    model = fxfault.transform(net.eval(), {"enabled": True, "seed": 1})
    model.faults.measure_layouts(torch.randn(3, 6))
    assert model.faults[0].seen.arrangement is None
    assert "other sizes" in model.faults.why_unmeasured


def test_one_warning_where_a_layout_is_guessed(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(TwoViews)
    with caplog.at_level(logging.WARNING):
        model(torch.randn(4, 12))
        model(torch.randn(4, 12))
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert "site act:" in caplog.text
        assert "model.faults.measure(inputs)" in caplog.text
        caplog.clear()
        model = model_of(TwoViews)
        model.faults.measure(torch.randn(4, 12))
        model(torch.randn(4, 12))
        plain = model_of(Siamese)
        plain(torch.randn(4, 2, 6))
        assert not caplog.records


def test_roundings_by_place_are_no_layout() -> None:
    """One step, at one element in a hundred, as kernels round; more than that is something else."""

    class Rounding(nn.Module):
        shape = (400,)

        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            kwargs: dict[str, Any] = {"scaling_impl_type": "const", "max_val": 15.0}
            self.act, self.head, self.change = act(4, **kwargs), nn.Linear(400, 5), change

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.change(x)))

    def moved(by: float, count: int) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            noise = torch.zeros_like(x)
            noise[0, :count] = by  # Of the first place in the batch, whoever is there.
            return x + noise

        return change

    inputs = torch.randint(2, 12, (7, 400)).float()
    for by, count, belongs in ((1.0, 3, False), (4.0, 3, True), (1.0, 200, True)):
        net = Rounding(moved(by, count)).eval()
        model = fxfault.transform(net, {"enabled": True, "seed": 1})
        model.faults.measure(inputs)
        assert (model.faults[0].seen.arrangement.why_batch is not None) == belongs, (by, count)


def test_an_arrangement_says_what_it_is() -> None:
    assert str(Arrangement()) == "consecutive"
    assert Arrangement(dim=0, outer=3).over((7, 2), batch=2).samples == 1
    assert Arrangement(dim=0, outer=2, each=3).over((2 * 5 * 4, 2), batch=5).rows == 8
    assert Arrangement(dim=0, outer=2, each=3).over((3 * 5, 2), batch=5).samples == 1
    assert Arrangement(why_batch="so").over((4, 2), batch=4).samples == 1
