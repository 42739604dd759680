"""Compiled code where faults strike most of the network: the same predictions, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity
from test_compile import float_weights, needs_compiler, small
from torch import Tensor, nn
from torch.nn import functional

import fxfault
from fxfault.errors import ConfigError, FxFaultError
from fxfault.evaluation import CompiledRunner, FullRunner, IncrementalRunner
from fxfault.evaluation.compiled_runner import USED
from fxfault.evaluation.full.predictions import OnBatch, Predictions
from fxfault.evaluation.incremental import runner as incremental
from fxfault.passes.exact_arithmetic import keep_kernels

FAULTS = {"enabled": True, "apply_during": "eval", "probability": 20.0, "seed": 3}
# Of 8, 8 and 5 samples.
DATA = [
    (torch.randn(size, 6, generator=torch.Generator().manual_seed(size)), torch.arange(size) % 5)
    for size in (8, 8, 5)
]


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Of torch, about itself; and of Brevitas, about zero points of accumulators.
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> Any:
    return fxfault.freeze(fxfault.transform(small(), FAULTS))


class Full(FullRunner):
    """Full runs, counted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, DATA)
        self.runs = 0

    def run(self, on_batch: OnBatch | None = None) -> Predictions:
        self.runs += 1
        return super().run(on_batch)


class Incremental(IncrementalRunner):
    """Incremental runs, counted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, DATA)
        self.runs = 0

    def run(self, on_batch: OnBatch | None = None) -> Predictions:
        self.runs += 1
        return super().run(on_batch)


class Backend:
    """A compiler that compiles nothing, and makes code that may be wrong."""

    def __init__(self, wrong: bool = False) -> None:
        self.wrong, self.calls = wrong, 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.calls += 1
            (scores,) = graph(*args)
            return [scores.flip(1) if self.wrong else scores]

        return run


def runner_with(other: Any, backend: Any, said: list[str] | None = None, **options: Any) -> Any:
    say: Any = (lambda text: None) if said is None else said.append
    return CompiledRunner(other, say=say, backend=backend, **options)


def top(runner: Any, trial: int) -> Tensor:
    runner.faults.reset(trial=trial)
    return runner.run().top  # type: ignore[no-any-return]


# -- which of the two -----------------------------------------------------------------------


def test_compiled_code_takes_the_place_of_full_runs(model: Any) -> None:
    other, said = Full(model), list[str]()
    runner = runner_with(other, Backend(), said)
    expected = [top(FullRunner(model, DATA), trial) for trial in range(3)]
    found = [top(runner, trial) for trial in range(3)]
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[1])
    assert other.runs == 0
    assert said == [USED]


def test_compiled_code_never_runs_where_faults_strike_little(model: Any) -> None:
    other, backend = Incremental(model), Backend()
    runner = runner_with(other, backend)
    model.faults.set_probability(0.5)
    runner.golden()
    calls = backend.calls
    for trial in range(3):
        top(runner, trial)
    assert other.runs == 3
    assert backend.calls == calls


# A site that strikes every sample is the first of three, or the last, which skips two of them.
CHOICES = [([0], 100.0, True), ([2], 100.0, False), (None, 100.0, True), (None, 0.5, False)]


@pytest.mark.parametrize("order", [CHOICES, CHOICES[::-1]], ids=["forth", "back"])
def test_the_choice_follows_from_the_faults_alone(model: Any, order: Any) -> None:
    other = Incremental(model)
    runner = runner_with(other, Backend())
    for layers, probability, is_compiled in 2 * order:
        model.faults.select(layers)
        model.faults.set_probability(probability)
        runs = other.runs
        found = top(runner, 5)
        assert (other.runs == runs) == is_compiled, (layers, probability)
        assert torch.equal(found, top(FullRunner(model, DATA), 5))


def test_compiled_code_runs_where_the_other_runner_runs_in_full(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incremental, "why_never_incremental", lambda _: "of a test")
    model.faults.set_probability(0.5)
    other = Incremental(model)
    runner = runner_with(other, Backend())
    assert torch.equal(top(runner, 1), top(FullRunner(model, DATA), 1))
    assert runner.why_full == "every run is a full one: of a test"
    assert other.runs == 0


def test_code_is_compiled_only_inside_of_runs(model: Any) -> None:
    backend = Backend()
    runner = runner_with(Full(model), backend)
    runner.run()
    calls = backend.calls
    with torch.no_grad():
        model(DATA[0][0])
    assert backend.calls == calls


def test_samples_are_told_of_once(model: Any) -> None:
    runner = runner_with(Full(model), Backend())
    done: list[int] = []
    runner.golden(done.append)
    for _ in range(2):
        runner.run(done.append)
    assert done == 3 * [8, 8, 5]


@pytest.mark.parametrize("verify", [0.0, 100.0])
def test_statistics_count_each_run_once(model: Any, verify: float) -> None:
    counts = []
    for runner in (
        FullRunner(model, DATA),
        runner_with(Full(model), Backend(), verify=verify),
    ):
        runner.golden()
        statistics = model.faults.new_statistics()
        for trial in range(3):
            top(runner, trial)
        counts.append(statistics.to_dict())
    assert counts[0] == counts[1]
    assert model.faults.statistics is statistics


# -- never other predictions ----------------------------------------------------------------


def test_code_with_other_outputs_is_not_used(model: Any) -> None:
    other, said = Full(model), list[str]()
    runner = runner_with(other, Backend(wrong=True), said)
    expected = [top(FullRunner(model, DATA), trial) for trial in range(2)]
    assert all(torch.equal(top(runner, trial), expected[trial]) for trial in range(2))
    assert said == [runner.why_not]
    assert "not used: without faults, 21 of 21 samples get other outputs" in said[0]
    assert other.runs == 2


def test_one_bit_in_one_sample_of_the_last_batch_is_seen(model: Any) -> None:
    def rounds_otherwise(graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            (scores,) = graph(*args)
            scores = scores.clone()
            if len(scores) == 5:
                scores[4, 0] = torch.nextafter(scores[4, 0], torch.tensor(torch.inf))
            return [scores]

        return run

    runner = runner_with(Full(model), rounds_otherwise)
    runner.golden()
    assert "1 of 21 samples get other outputs" in runner.why_not


@pytest.mark.parametrize("verify", [None, 100])
def test_code_that_is_wrong_under_faults_is_found_by_verify(
    model: Any, verify: float | None
) -> None:
    backend = Backend()
    runner = runner_with(Full(model), backend, verify=verify)
    runner.golden()
    backend.wrong = True
    with pytest.raises(FxFaultError, match=r"another class than the compiled one, .* \(trial 2\)"):
        top(runner, 2)


def test_later_errors_are_found_by_verify(model: Any) -> None:
    backend = Backend()
    runner = runner_with(Full(model), backend, verify=100)
    for trial in range(2):
        top(runner, trial)
    backend.wrong = True
    with pytest.raises(FxFaultError, match=r"another class than the compiled one, .* \(trial 2\)"):
        top(runner, 2)


def test_new_parameters_are_looked_at_anew(model: Any) -> None:
    backend, said = Backend(), list[str]()
    runner = runner_with(Full(model), backend, said)
    runner.golden()
    backend.wrong = True
    with torch.no_grad():
        model[5].bias.add_(1.0)
    runner.run()
    assert len(said) == 2
    assert "get other outputs" in said[1]


def test_a_model_that_is_not_frozen_is_refused() -> None:
    faulty = fxfault.transform(small(), FAULTS)
    with pytest.raises(ConfigError, match=r"not frozen; give fxfault\.freeze\(model\)"):
        CompiledRunner(FullRunner(faulty, DATA))


def test_without_a_compiler_the_other_runner_is_used(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    other, said = Full(model), list[str]()
    runner = runner_with(other, "inductor", said)
    for trial in range(2):
        top(runner, trial)
    assert other.runs == 2
    assert said[0].startswith("not compiled: torch.compile needs a C++ compiler")


# -- the compiler's arithmetic --------------------------------------------------------------


def test_kernels_are_kept() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            x = functional.batch_norm(x, mean, var, eps=0.5)
            x = functional.adaptive_avg_pool2d(x, (3, 2))
            x = functional.adaptive_avg_pool2d(x, (None, 1))  # One side stays as it is.
            return functional.batch_norm(x, mean, var, training=True)

    graph_module = torch.fx.symbolic_trace(Net())
    assert keep_kernels(graph_module) == 2
    x, mean, var = torch.randn(2, 3, 7, 5), torch.randn(3), torch.rand(3)
    outputs = [run(x, mean.clone(), var.clone()) for run in (graph_module, Net())]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("channels_last", [False, True])
def test_kept_kernels_are_sound_operators(channels_last: bool) -> None:
    x = torch.randn(2, 3, 4, 4)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    operators = torch.ops.fxfault
    each = torch.rand(3)
    torch.library.opcheck(operators.batch_norm.default, (x, each, each, each, None, 0.1))
    torch.library.opcheck(operators.adaptive_avg_pool2d.default, (x, [2, 1]))


@needs_compiler
def test_inductor_rounds_as_the_model_does() -> None:
    """Values are compared that no quantiser has rounded."""
    torch.manual_seed(0)
    net = nn.Sequential(
        QuantIdentity(bit_width=8),
        QuantConv2d(3, 16, 3, bias=False, weight_bit_width=4),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    x = torch.randn(8, 3, 11, 11)
    with torch.no_grad():
        net.train()(x)
        net[2].weight.normal_()
        net[2].bias.normal_()
    made = fxfault.compile(fxfault.transform(net.eval(), FAULTS), x, exact=True)
    assert made.compiled, made
    assert made.difference is None


@needs_compiler
def test_compiled_incremental_and_full_runs_agree() -> None:
    model: Any = fxfault.freeze(fxfault.transform(float_weights(), FAULTS))
    full = Full(model)
    runners = [CompiledRunner(full, verify=50), IncrementalRunner(model, DATA), Full(model)]
    for trial in range(3):
        tops = [top(runner, trial) for runner in runners]
        assert torch.equal(tops[0], tops[1])
        assert torch.equal(tops[0], tops[2])
    assert full.runs == 0
