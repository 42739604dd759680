"""Accuracy under faults: the figures, the trials behind them, and what is left as it was."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxfault.errors import ConfigError, DataError, SiteError
from fxfault.evaluation import AccuracyUnderFaults, FaultEvaluation, LayerResult, accuracy, rank
from fxfault.predictions import FullRunner
from fxfault.statistics import FaultStatistics

SAMPLES = 40


def loader_of(data: TensorDataset, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size)


def data_for(model: nn.Module) -> TensorDataset:
    """Noise, labelled by what the model says of it: its accuracy without faults is 100 %."""
    images = torch.randn(SAMPLES, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    return TensorDataset(images, labels)


@pytest.fixture
def evaluation(convnet: nn.Module, faulty: Callable[..., Any]) -> Callable[..., FaultEvaluation]:
    data = data_for(convnet)

    def make(
        batch_size: int = 16, num_runs: int = 3, track: bool = False, **settings: Any
    ) -> FaultEvaluation:
        settings = {"apply_during": "eval", "seed": 3, "probability": 10.0, **settings}
        model = faulty(convnet, **settings).eval()
        loader = loader_of(data, batch_size)
        return FaultEvaluation(FullRunner(model, loader), num_runs, track_statistics=track)

    return make


# -- accuracy -------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Returns what it was made with, one row for each input."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Any:
        state = (self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        self.seen.append(state)
        return self.wrap(x)


class QuantTensorLike(tuple):
    """A named tuple with its values under `value`, as a QuantTensor is."""

    value: Tensor


def quant_tensor_like(x: Tensor) -> QuantTensorLike:
    made = QuantTensorLike((torch.zeros(1), torch.ones(1)))
    made.value = x
    return made


SCORES = TensorDataset(torch.eye(4), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, "auxiliary"),
        lambda x: [x],
        quant_tensor_like,
        lambda x: (quant_tensor_like(x),),
    ],
)
def test_accuracy_reads_scores_from_what_networks_return(wrap: Callable[[Tensor], Any]) -> None:
    assert accuracy(Fixed(wrap), loader_of(SCORES, 3)) == 75.0


def test_accuracy_of_a_network_that_returns_a_quant_tensor(calibrated: Any) -> None:
    from brevitas.nn import QuantIdentity

    model = calibrated(QuantIdentity(bit_width=8, return_quant_tensor=True), torch.eye(4))
    assert accuracy(model, loader_of(SCORES)) == 75.0


def test_accuracy_runs_in_eval_mode_without_gradients_and_not_in_inference_mode() -> None:
    model = Fixed(lambda x: x).train()
    accuracy(model, loader_of(SCORES, 2))
    assert model.seen == [(False, False, False)] * 2
    assert model.training


def test_accuracy_gives_every_module_its_mode_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    model[0].eval()  # frozen on purpose
    accuracy(model, loader_of(SCORES))
    assert [m.training for m in model.modules()] == [True, False, True]
    with pytest.raises(RuntimeError):
        accuracy(model, [(torch.zeros(2, 5), torch.zeros(2))])
    assert [m.training for m in model.modules()] == [True, False, True]


def test_accuracy_tells_of_each_batch() -> None:
    sizes: list[int] = []
    accuracy(Fixed(lambda x: x), loader_of(SCORES, 3), on_batch=sizes.append)
    assert sizes == [3, 1]


def test_accuracy_of_no_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample"):
        accuracy(nn.Identity(), [])


@pytest.mark.parametrize("wrap", [lambda x: x[:1], lambda x: x.sum(1), lambda x: {"logits": x}])
def test_accuracy_refuses_what_are_no_scores(wrap: Callable[[Tensor], Any]) -> None:
    with pytest.raises(DataError, match=r"expected scores of shape \(4, classes\)"):
        accuracy(Fixed(wrap), loader_of(SCORES))


# -- figures --------------------------------------------------------------------------------


def test_mean_std_and_degradation() -> None:
    runs = (81.25, 80.0, 84.5, 79.0)
    result = AccuracyUnderFaults(probability=5.0, baseline=90.0, runs=runs)
    assert result.mean == pytest.approx(statistics.mean(runs), abs=1e-12)
    assert result.std == pytest.approx(statistics.stdev(runs), abs=1e-12)
    assert result.degradation == pytest.approx(90 - statistics.mean(runs), abs=1e-12)
    assert result.injection_rate is None


def test_std_of_one_run_is_zero() -> None:
    assert AccuracyUnderFaults(probability=5.0, baseline=90.0, runs=(80.0,)).std == 0.0


def test_ranking_starts_with_the_most_vulnerable_and_keeps_ties_in_order() -> None:
    means = [90.0, 70.0, 90.0, 95.0]
    results = [
        LayerResult(index=i, name=str(i), probability=1.0, baseline=90.0, runs=(mean,))
        for i, mean in enumerate(means)
    ]
    assert [result.index for result in rank(reversed(results))] == [1, 0, 2, 3]


# -- sweep ----------------------------------------------------------------------------------


def test_zero_percent_is_the_baseline(evaluation: Callable[..., FaultEvaluation]) -> None:
    made = evaluation()
    assert made.baseline() == 100.0
    (result,) = made.sweep([0], 100.0)
    assert result.runs == (100.0,) * 3
    assert (result.std, result.degradation) == (0.0, 0.0)


def test_run_k_is_trial_k(evaluation: Callable[..., FaultEvaluation]) -> None:
    made = evaluation()
    (result,) = made.sweep([30], 100.0)
    by_hand = []
    made.faults.set_probability(30)
    for trial in range(3):
        made.faults.reset(trial=trial)
        by_hand.append(accuracy(made.runner.model, made.runner.loader))
    assert list(result.runs) == by_hand
    assert len(set(by_hand)) > 1
    assert result.mean < 100


def test_results_do_not_depend_on_what_was_evaluated_before(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    forth = {r.probability: r.runs for r in evaluation().sweep([1, 10, 50], 100.0)}
    made = evaluation(num_runs=2)
    list(made.per_layer(20, 100.0))
    back = {r.probability: r.runs for r in made.sweep([50, 10, 1], 100.0)}
    assert back == {p: runs[:2] for p, runs in forth.items()}


@pytest.mark.parametrize("batch_size", [1, 7, SAMPLES])
def test_results_do_not_depend_on_the_batch_size(
    evaluation: Callable[..., FaultEvaluation], batch_size: int
) -> None:
    (result,) = evaluation(batch_size=batch_size).sweep([20], 100.0)
    (reference,) = evaluation().sweep([20], 100.0)
    assert result == reference


def test_a_network_with_its_own_forward_gives_the_same_runs_each_time(
    branching: nn.Module, faulty: Callable[..., Any]
) -> None:
    data = TensorDataset(torch.randn(8, 12), torch.zeros(8, dtype=torch.int64))
    model = faulty(branching, apply_during="eval", probability=30.0)
    made = FaultEvaluation(FullRunner(model, loader_of(data, 8)), num_runs=2)  # one batch
    assert [r.runs for r in made.sweep([30], 0.0)] == [r.runs for r in made.sweep([30], 0.0)]


def test_results_come_one_by_one(evaluation: Callable[..., FaultEvaluation]) -> None:
    asked: list[float] = []

    def probabilities():
        for probability in (1.0, 2.0):
            asked.append(probability)
            yield probability

    sweep = evaluation().sweep(probabilities(), 100.0)
    next(sweep)
    assert asked == [1.0]


def test_each_result_has_statistics_of_its_own(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(track=True)
    low, high = made.sweep([1, 50], 100.0)
    assert low.statistics is not None
    assert high.statistics is not None
    per_run = sum(site.elements or 0 for site in made.faults) * SAMPLES
    assert low.statistics.total_activations == high.statistics.total_activations == 3 * per_run
    # Within 5 standard deviations: fails once in a million seeds, and the seed is fixed.
    assert high.injection_rate == pytest.approx(50, abs=5 * 50 / (3 * per_run) ** 0.5)
    assert low.injection_rate == pytest.approx(1, abs=5 * 10 / (3 * per_run) ** 0.5)


def test_statistics_are_not_collected_unless_asked(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(track_statistics=True)
    own = made.faults.statistics
    (result,) = made.sweep([5], 100.0)
    assert result.statistics is None
    assert own is not None
    assert made.faults.statistics is own
    assert own.total_activations == 0


def test_layer_mode_draws_one_site_for_each_run(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(mode="layer", num_runs=8)
    (result,) = made.sweep([20], 100.0)
    assert result.run_layers is not None
    assert set(result.run_layers) <= {0, 1, 2}
    assert len(set(result.run_layers)) > 1
    alone = {r.index: r.runs for r in made.per_layer(20, 100.0)}
    assert [alone[layer][k] for k, layer in enumerate(result.run_layers)] == list(result.runs)


def test_full_model_mode_names_no_layer(evaluation: Callable[..., FaultEvaluation]) -> None:
    (result,) = evaluation().sweep([20], 100.0)
    assert result.run_layers is None


def test_a_model_that_injects_only_while_training_is_refused(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(apply_during="train")
    with pytest.raises(ConfigError, match="apply_during"):
        next(made.sweep([5], 100.0))
    with pytest.raises(ConfigError, match="apply_during"):
        next(made.per_layer(5, 100.0))


def test_a_probability_out_of_range_is_refused(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    with pytest.raises(ConfigError, match="from 0 to 100"):
        list(evaluation().sweep([101], 100.0))


@pytest.mark.parametrize("num_runs", [0, -1, True])
def test_less_than_one_run_is_refused(
    evaluation: Callable[..., FaultEvaluation], num_runs: int
) -> None:
    with pytest.raises(ConfigError, match="num_runs"):
        evaluation(num_runs=num_runs)


def test_a_model_without_sites_is_refused() -> None:
    with pytest.raises(SiteError, match="no fault sites"):
        FullRunner(nn.Identity(), [])


# -- one site alone -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "layer"}, {"mode": "layer", "injection_layer": 1}]
)
def test_each_site_is_struck_alone(
    evaluation: Callable[..., FaultEvaluation], settings: dict[str, Any]
) -> None:
    made = evaluation(track=True, num_runs=2, **settings)
    results = list(made.per_layer(40, 100.0))
    assert [(r.index, r.name) for r in results] == [(s.index, s.name) for s in made.faults]
    for result in results:
        assert isinstance(result.statistics, FaultStatistics)
        layers = result.statistics.layer_stats
        assert [i for i, layer in layers.items() if layer.total_activations] == [result.index]


def test_a_site_alone_has_the_faults_that_it_has_among_others(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    alone = next(evaluation(track=True).per_layer(40, 100.0))
    together = next(evaluation(track=True).sweep([40], 100.0))
    assert alone.statistics is not None
    assert together.statistics is not None
    # The first site sees the same values in both, so the same hits do the same to them.
    assert alone.statistics.layer_stats[0].to_dict() == together.statistics.layer_stats[0].to_dict()


def test_selected_sites_are_the_ones_struck_alone(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    assert [r.index for r in evaluation(layers=[0, 2]).per_layer(5, 100.0)] == [0, 2]
    assert [r.index for r in evaluation().per_layer(5, 100.0, layers=[1])] == [1]
    with pytest.raises(SiteError, match="no site 7"):
        next(evaluation().per_layer(5, 100.0, layers=[7]))


# -- what is left as it was -----------------------------------------------------------------


def settings_of(made: FaultEvaluation) -> Any:
    faults = made.faults
    sites = [(site.probability, site.selected) for site in faults]
    return faults.enabled, faults.trial, id(faults.statistics), sites, made.runner.model.training


@pytest.mark.parametrize("mode", ["full_model", "layer"])
def test_settings_come_back_when_a_generator_ends_or_is_dropped(
    evaluation: Callable[..., FaultEvaluation], mode: str
) -> None:
    made = evaluation(track=True, mode=mode)
    made.faults[1].set_probability(77.0)
    made.faults[0].selected = not made.faults[0].selected
    made.faults.enabled = False
    made.runner.model.train()
    before = settings_of(made)
    made.baseline()
    list(made.sweep([1, 2], 100.0))
    list(made.per_layer(5, 100.0))
    for generator in (made.sweep([1, 2], 100.0), made.per_layer(5, 100.0)):
        next(generator)
        generator.close()
    assert settings_of(made) == before


def test_global_random_generators_and_threads_are_not_touched(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation()

    def states() -> tuple[Any, ...]:
        numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        return random.getstate(), numpy_state, torch.get_rng_state().tolist()

    before, threads = states(), torch.get_num_threads()
    list(made.sweep([20], made.baseline()))
    list(made.per_layer(20, 100.0))
    # A DataLoader draws one seed from torch's generator for each pass, with or without faults.
    torch_state, after = torch.get_rng_state(), states()
    assert after[:2] == before[:2]
    assert torch.get_num_threads() == threads
    torch.set_rng_state(torch.tensor(before[2], dtype=torch.uint8))
    for _ in range(1 + 3 + 9):
        list(made.runner.loader)
    assert torch.equal(torch.get_rng_state(), torch_state)
