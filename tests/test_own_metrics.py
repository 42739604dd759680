"""Evaluations and rows with a metric of the user's own, in full and incrementally."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxfault
from fxfault.campaign.fault_evaluation import FaultEvaluation, estimate, rank
from fxfault.errors import ConfigError, DataError
from fxfault.evaluation import CompiledRunner, FullRunner, IncrementalRunner
from fxfault.evaluation.full.judging import Measured
from fxfault.evaluation.rows import OPTIONAL, TrialRow
from fxfault.evaluation.trials import Trials
from fxfault.metrics import Metric, make_metric
from fxfault.metrics.facts import ACCURACY, BATCH, BOTH, DATA, SAMPLE, MetricFacts

SAMPLES, BATCH_SIZE = 44, 8


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the best class is the label, in percent."""
    return (outputs.argmax(1) == targets) * 100.0


right.unit = "%"  # type: ignore[attr-defined]


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """The score of the label less the best other score."""
    own = outputs.gather(1, targets[:, None])[:, 0]
    return own - outputs.scatter(1, targets[:, None], float("-inf")).amax(1)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """One number for a batch."""
    return nn.functional.cross_entropy(outputs, targets)


loss.higher_is_better = False  # type: ignore[attr-defined]


class Errors:
    """Counts wrong samples over all data."""

    higher_is_better = False

    def __init__(self) -> None:
        self.wrong = self.all = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.wrong += int((outputs.argmax(1) != targets).sum())
        self.all += len(targets)

    def compute(self) -> float:
        return self.wrong / self.all


class RootMean(Errors):
    """A number for all data that is no mean, with a value for each sample."""

    higher_is_better = True

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.wrong += float(outputs.square().sum())  # type: ignore[assignment]
        self.all += len(targets)

    def compute(self) -> float:
        return float((self.wrong / self.all) ** 0.5)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.double().square().sum(1).sqrt()


HERE = __name__
KINDS = {
    f"{HERE}:right": SAMPLE,
    f"{HERE}:margin": SAMPLE,
    f"{HERE}:loss": BATCH,
    f"{HERE}:Errors": DATA,
    f"{HERE}:RootMean": BOTH,
    "cosine": SAMPLE,
    "changed_decisions": SAMPLE,
}


def data(classes: int = 5) -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(SAMPLES, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(classes, (SAMPLES,), generator=torch.Generator().manual_seed(6))
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


@pytest.fixture
def model(convnet: nn.Module, faulty: Callable[..., Any]) -> Any:
    made = faulty(convnet, apply_during="eval", probability=2.0, seed=3).eval()
    return fxfault.freeze(made)


def rows_of(runner: Any, trials: int = 3) -> list[TrialRow]:
    made = Trials(runner)
    made.set(made.faults.config)
    return [replace(made.run("{}", trial), seconds=0.0) for trial in range(trials)]


# -- the same in every runner -----------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_incremental_runs_give_the_rows_of_full_ones_bit_for_bit(model: Any, name: str) -> None:
    full = rows_of(FullRunner(model, data(), metric=make_metric(name)))
    runner = IncrementalRunner(model, data(), verify=100.0, metric=make_metric(name))
    assert rows_of(runner) == full
    assert runner.why_full is None
    assert runner.golden().facts.each == KINDS[name]
    assert any(row.value != row.golden for row in full)
    assert all((row.sdc is None) == (KINDS[name] in (BATCH, DATA)) for row in full)


@pytest.mark.parametrize("name", [f"{HERE}:margin", f"{HERE}:Errors", "l2"])
def test_compiled_runs_give_the_rows_of_full_ones_bit_for_bit(model: Any, name: str) -> None:
    full = FullRunner(model, data(), metric=make_metric(name))
    other = FullRunner(model, data(), metric=make_metric(name))
    compiled = CompiledRunner(other, verify=100.0, backend="aot_eager")
    assert rows_of(compiled) == rows_of(full)
    assert compiled.why_not is None


def test_a_metric_that_is_wrong_in_incremental_runs_is_found(model: Any) -> None:
    runner = IncrementalRunner(model, data(), verify=100.0, metric=make_metric(f"{HERE}:margin"))
    runner.golden()
    put = fxfault.evaluation.full.judging.Revision.put

    def wrong(self: Any, samples: Tensor, output: Tensor, size: int) -> None:
        put(self, samples, output + 1e-3, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fxfault.evaluation.full.judging.Revision, "put", wrong)
        with pytest.raises(fxfault.FxFaultError, match="has another output than the incremental"):
            runner.run()


# -- accuracy as a plug-in --------------------------------------------------------------------


def test_accuracy_as_a_plug_in_measures_what_the_built_in_does_bit_for_bit(model: Any) -> None:
    mine = rows_of(IncrementalRunner(model, data(), metric=make_metric(f"{HERE}:right")), 6)
    built_in = rows_of(IncrementalRunner(model, data()), 6)
    assert mine == rows_of(IncrementalRunner(model, data(), metric=make_metric("top1")), 6)
    same = ("cell", "trial", "samples", "faults", "elements", "struck", "due")
    for a, b in zip(mine, built_in, strict=True):
        assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
        assert (a.measure, a.golden_measure) == (b.measure, b.golden_measure)
        # The built-in also counts samples that went from one wrong class to another.
        counts = b.critical_sdc, a.sdc, b.sdc
        assert list(counts) == sorted(counts, key=lambda n: n or 0)
        assert a.squares == 100.0**2 * a.sdc
    assert sum(row.sdc or 0 for row in mine) > 0


def test_changed_decisions_are_the_sdcs_of_the_built_in(model: Any) -> None:
    mine = rows_of(FullRunner(model, data(), metric=make_metric("changed_decisions")))
    built_in = rows_of(FullRunner(model, data()))
    assert [(r.sdc, r.masked, r.struck) for r in mine] == [
        (r.sdc, r.masked, r.struck) for r in built_in
    ]
    assert [row.value for row in mine] == [100.0 * row.sdc / SAMPLES for row in built_in]


def test_results_and_ranks_of_a_plug_in_are_those_of_the_built_in(model: Any) -> None:
    found = []
    for metric in (None, make_metric(f"{HERE}:right")):
        runner = IncrementalRunner(model, data(), metric=metric)
        evaluation = FaultEvaluation(runner, num_runs=8)
        found.append(list(evaluation.per_layer(evaluation.faults.config)))
    for a, b in zip(*found, strict=True):
        assert (a.runs, a.baseline) == (b.runs, b.baseline)
        assert a.mean == pytest.approx(b.mean, abs=1e-12)
        assert a.std == pytest.approx(b.std, abs=1e-12)
        x, y = estimate([a]), estimate([b])
        assert x["measure"].value == pytest.approx(y["measure"].value, abs=1e-9)
        if a.std:
            assert x["measure"].low == pytest.approx(max(y["measure"].low[0], 0.0), abs=1e-9)
    names = [[site.name for site in rank(results)] for results in found]
    assert names[0] == names[1]


# -- which way is better ----------------------------------------------------------------------


def test_a_rise_of_a_metric_that_should_be_low_is_the_cost(model: Any) -> None:
    runner = IncrementalRunner(model, data(), metric=make_metric("l2"))
    evaluation = FaultEvaluation(runner, num_runs=4)
    (result,) = evaluation.sweep([20.0])
    assert result.mean > result.baseline == 0.0
    assert result.degradation == result.mean
    summary = estimate([result])
    assert summary["fall"].value[0] == pytest.approx(result.degradation)
    assert summary["fall"].low[0] <= summary["fall"].value[0] <= summary["fall"].high[0]
    assert summary.shown == ["measure", "fall", "sdc", "masked", "fault_rate"]


# -- values that are missing ------------------------------------------------------------------


def test_a_sample_without_a_value_is_due_and_left_out_of_the_change() -> None:
    metric = make_metric(f"{HERE}:margin")
    records = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    metric.records(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 1)
    golden = Measured(metric, 2.5, records, (4,))
    hit = torch.tensor([True, True, True, False])
    now = torch.tensor([1.0, float("nan"), 1.0, 4.0], dtype=torch.float64)
    from fxfault.evaluation.rows import measure

    row = measure(
        golden, Measured(metric, float("nan"), now, (4,), hit),
        cell="{}", trial=0, faults=3, elements=9, seconds=0.0,
    )  # fmt: skip
    assert (row.due, row.sdc, row.masked, row.squares) == (1, 1, 1, 4.0)
    assert row.value == 2.5 + (0 - 2 + 0) / 3
    nothing = torch.full((4,), float("inf"), dtype=torch.float64)
    row = measure(
        golden, Measured(metric, float("nan"), nothing, (4,), hit),
        cell="{}", trial=0, faults=3, elements=9, seconds=0.0,
    )  # fmt: skip
    assert (row.due, row.sdc, row.masked, row.value) == (4, 0, 0, None)
    assert np.isnan(row.measure)


# -- bad metrics ------------------------------------------------------------------------------


def nan(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum(1) * float("nan")


def wide(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def few(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:3, 0]


def text(outputs: Tensor, targets: Tensor) -> str:
    return "much"


def drawn(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.rand(len(outputs))


def writes(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.zero_().sum(1)


def fails(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ValueError(f"cannot use {outputs}")


def fickle(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0] if len(outputs) == BATCH_SIZE else outputs.mean()


class Dict(Errors):
    """Computes several numbers."""

    def compute(self) -> Any:
        return {"map": torch.tensor(1.0), "map_50": torch.tensor(1.0)}


class Nothing(Errors):
    """Computes no number."""

    def compute(self) -> float:
        return float("nan")


BAD = {
    "nan": "it is nan for sample 0 without faults",
    "wide": r"returned a tensor of shape \(8, 5\) \(float32\) for a batch of 8 samples",
    "few": r"returned a tensor of shape \(3,\) \(float32\) for a batch of 8 samples",
    "text": "returned a value of type str",
    "drawn": "gives other values for the same outputs",
    "writes": "writes into the outputs",
    "fails": "metric 'fails': ValueError: cannot use tensor",
    "fickle": "gives a value for each sample for one batch and one number for another",
    "Dict": r"compute\(\) returned a value of type dict with the keys map, map_50",
    "Nothing": "it is nan for all data without faults",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", [FullRunner, IncrementalRunner])
def test_a_metric_that_cannot_be_used_is_refused(model: Any, name: str, kind: Any) -> None:
    runner = kind(model, data(), metric=make_metric(f"{HERE}:{name}"))
    with pytest.raises(DataError, match=BAD[name]) as caught:
        runner.golden()
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "nowhere.at_all:metric"}, "there is no module 'nowhere'"),
        ({"name": f"{HERE}:absent"}, "has no 'absent'"),
        ({"name": f"{HERE}:KINDS"}, "must be a function or a class"),
        ({"name": "top2"}, r"got 'top2' \(str\), allowed: top1, .*your-own-task"),
        ({"name": f"{HERE}:margin", "tolerance": -1.0}, "tolerance: got -1.0"),
        ({"name": f"{HERE}:Errors", "kwargs": {"bad": 1}}, r"Errors\(bad\): TypeError"),
    ],
)
def test_a_metric_that_is_not_there_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        make_metric(**settings)


def test_the_metric_is_asked_for_what_the_file_does_not_say() -> None:
    assert make_metric(f"{HERE}:Errors").facts.higher_is_better is False
    assert make_metric(f"{HERE}:RootMean").facts.each == BOTH
    said = make_metric(f"{HERE}:right", higher_is_better=False, tolerance=2, unit="points")
    said.records(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 2)
    assert said.facts == MetricFacts("right", "points", False, 2.0, SAMPLE)


# -- batches of other forms -------------------------------------------------------------------


class Two(nn.Module):
    """Two inputs, and two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        from brevitas.nn import QuantReLU

        self.left, self.act, self.head = nn.Linear(6, 8), QuantReLU(bit_width=4), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.act(self.left(x) * scale)
        return {"mean": self.head(hidden), "sum": hidden.sum(1)}


def of_two(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return (outputs["mean"].sum(1) + outputs["sum"] - targets).abs()


of_two.higher_is_better = False  # type: ignore[attr-defined]
Named = namedtuple("Named", "x scale target")


@pytest.mark.parametrize(
    "form",
    [
        lambda x, s, t: (x, s, t),
        lambda x, s, t: ((x, s), t),
        lambda x, s, t: {"x": x, "scale": s, "target": t},
        lambda x, s, t: Named(x, s, t),
    ],
    ids=["triple", "nested", "dict", "named tuple"],
)
def test_networks_of_several_inputs_and_outputs_have_rows(form: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, s, t = (torch.rand(20, n, generator=generator) for n in (6, 1, 1))
    batches = [form(x[k : k + 5], s[k : k + 5], t[k : k + 5, 0]) for k in range(0, 20, 5)]
    torch.manual_seed(0)
    model = fxfault.transform(
        Two().eval(), {"enabled": True, "apply_during": "eval", "probability": 10.0, "seed": 1}
    )
    metric = make_metric(f"{HERE}:of_two")
    full = rows_of(FullRunner(model, batches, metric=metric))
    assert full == rows_of(IncrementalRunner(model, batches, metric=metric))
    plain = [(x[k : k + 5], s[k : k + 5], t[k : k + 5, 0]) for k in range(0, 20, 5)]
    assert full == rows_of(FullRunner(model, plain, metric=metric))
    assert all(row.sdc and row.value != row.golden for row in full)


def test_facts_come_back_from_a_store() -> None:
    facts = MetricFacts("psnr", "dB", True, 0.5, SAMPLE)
    assert MetricFacts.from_dict(facts.to_dict()) == facts
    for wrong in ({}, {**facts.to_dict(), "tolerance": -1}, {**ACCURACY.to_dict()}):
        with pytest.raises(ValueError, match="metric"):
            MetricFacts.from_dict(wrong)
    assert set(OPTIONAL) <= set(vars(TrialRow("{}", 0, 1, 1, 1, 0, 0, None, 0, 1, 0, 0, 0.0)))
    assert isinstance(make_metric("mae"), Metric)
