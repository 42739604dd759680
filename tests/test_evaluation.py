"""Accuracy under faults: the figures, the trials behind them, and what is left as it was."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxfault.campaign import Cell, FaultEvaluation
from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.fault_evaluation import estimate, rank, with_num_faults, with_probability
from fxfault.errors import ConfigError, DataError, SiteError
from fxfault.evaluation import FullRunner, accuracy
from fxfault.evaluation.rows import TrialRow
from fxfault.sites.statistics import FaultStatistics

SAMPLES = 40


def loader_of(data: TensorDataset, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size)


def data_for(model: nn.Module) -> TensorDataset:
    """Noise, labelled by what the model says of it: its accuracy without faults is 100 %."""
    images = torch.randn(SAMPLES, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    return TensorDataset(images, labels)


def struck_alone(made: FaultEvaluation, probability: float, **options: Any) -> Iterator[CellResult]:
    """Each site alone at some probability."""
    return made.per_layer(with_probability(made.faults.config, probability), **options)


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
        accuracy(model, [(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))])
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


def result_of(*correct: int, sdc: int = 5, place: str | None = None) -> CellResult:
    """A result of trials on 100 samples, of which 90 are right without faults."""
    cell = Cell.of(injection_type="random", probability=5.0, layers=[place] if place else None)
    counts = {"samples": 100, "golden_correct": 90, "critical_sdc": 0, "top5": None, "sdc": sdc}
    seen = {"faults": 30, "elements": 1000, "struck": 20, "masked": 10, "seconds": 0.1}
    rows = [
        TrialRow(cell=cell.key, trial=k, correct=right, **counts, **seen)
        for k, right in enumerate(correct)
    ]
    return CellResult(cell=cell, rows=tuple(rows))


def test_mean_std_and_degradation() -> None:
    runs = (81, 80, 84, 79)
    result = result_of(*runs)
    assert result.runs == runs
    assert result.mean == pytest.approx(statistics.mean(runs), abs=1e-12)
    assert result.std == pytest.approx(statistics.stdev(runs), abs=1e-12)
    assert result.degradation == pytest.approx(90 - statistics.mean(runs), abs=1e-12)
    assert (result.baseline, result.injection_rate) == (90.0, 3.0)


def test_std_of_one_run_is_zero() -> None:
    assert result_of(80).std == 0.0


def test_ranking_starts_with_the_most_vulnerable_and_keeps_ties_in_order() -> None:
    results = [result_of(mean, place=str(i)) for i, mean in enumerate([90, 70, 90, 95])]
    ranked = rank(results)
    assert [site.name for site in ranked] == ["1", "0", "2", "3"]
    assert [(site.rank_low, site.rank_high) for site in ranked] == [(1, 4)] * 4  # One trial each.


def test_ranks_have_the_intervals_of_a_campaign() -> None:
    results = [result_of(90, 89, 90, place="a"), result_of(50, 52, 51, place="b")]
    assert [(s.name, s.rank_low, s.rank_high) for s in rank(results)] == [("b", 1, 1), ("a", 2, 2)]
    (alone,) = rank(results[:1])
    assert (alone.name, alone.rank, alone.rank_high) == ("a", 1, 1)


def test_estimates_have_the_intervals_of_a_campaign() -> None:
    result = result_of(81, 80, 84, 79)
    summary = estimate([result])
    low, high = stats.ttest_1samp(result.runs, 0).confidence_interval()
    accuracy, sdc = summary["measure"], summary["sdc"]
    assert (accuracy.low[0], accuracy.high[0]) == (pytest.approx(low), pytest.approx(high))
    assert accuracy.value[0] == result.mean
    assert (100 * wilson(20, 400)[0], 100 * wilson(20, 400)[1]) == (sdc.low[0], sdc.high[0])
    assert np.isnan(estimate([result_of(81)])["measure"].low[0])
    assert estimate([result], 99.0)["sdc"].low[0] < sdc.low[0]


# -- sweep ----------------------------------------------------------------------------------


def test_zero_percent_is_the_baseline(evaluation: Callable[..., FaultEvaluation]) -> None:
    made = evaluation()
    assert made.baseline() == 100.0
    (result,) = made.sweep([0])
    assert result.runs == (100.0,) * 3
    assert (result.std, result.degradation) == (0.0, 0.0)


def test_run_k_is_trial_k(evaluation: Callable[..., FaultEvaluation]) -> None:
    made = evaluation()
    (result,) = made.sweep([30])
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
    forth = {r.cell.probability: r.runs for r in evaluation().sweep([1, 10, 50])}
    made = evaluation(num_runs=2)
    list(struck_alone(made, 20))
    back = {r.cell.probability: r.runs for r in made.sweep([50, 10, 1])}
    assert back == {p: runs[:2] for p, runs in forth.items()}


@pytest.mark.parametrize("batch_size", [1, 7, SAMPLES])
def test_results_do_not_depend_on_the_batch_size(
    evaluation: Callable[..., FaultEvaluation], batch_size: int
) -> None:
    (result,) = evaluation(batch_size=batch_size).sweep([20])
    (reference,) = evaluation().sweep([20])
    assert result.runs == reference.runs


def test_a_network_with_its_own_forward_gives_the_same_runs_each_time(
    branching: nn.Module, faulty: Callable[..., Any]
) -> None:
    data = TensorDataset(torch.randn(8, 12), torch.zeros(8, dtype=torch.int64))
    model = faulty(branching, apply_during="eval", probability=30.0)
    made = FaultEvaluation(FullRunner(model, loader_of(data, 8)), num_runs=2)  # one batch
    assert [r.runs for r in made.sweep([30])] == [r.runs for r in made.sweep([30])]


def test_results_come_one_by_one(evaluation: Callable[..., FaultEvaluation]) -> None:
    asked: list[float] = []

    def probabilities():
        for probability in (1.0, 2.0):
            asked.append(probability)
            yield probability

    sweep = evaluation().sweep(probabilities())
    next(sweep)
    assert asked == [1.0]


def test_each_result_has_statistics_of_its_own(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(track=True)
    low, high = made.sweep([1, 50])
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
    (result,) = made.sweep([5])
    assert result.statistics is None
    assert result.injection_rate == pytest.approx(5, abs=2)
    assert own is not None
    assert made.faults.statistics is own
    assert own.total_activations == 0


def test_layer_mode_draws_one_site_for_each_run(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(mode="layer", num_runs=8)
    (result,) = made.sweep([20])
    assert result.run_layers is not None
    assert set(result.run_layers) <= {0, 1, 2}
    assert len(set(result.run_layers)) > 1
    alone = {r.index: r.runs for r in struck_alone(made, 20)}
    assert [alone[layer][k] for k, layer in enumerate(result.run_layers)] == list(result.runs)


def test_full_model_mode_names_no_layer(evaluation: Callable[..., FaultEvaluation]) -> None:
    (result,) = evaluation().sweep([20])
    assert result.run_layers is None


def test_a_model_that_injects_only_while_training_is_refused(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(apply_during="train")
    with pytest.raises(ConfigError, match="apply_during"):
        next(made.sweep([5]))
    with pytest.raises(ConfigError, match="apply_during"):
        next(struck_alone(made, 5))


def test_a_probability_out_of_range_is_refused(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    with pytest.raises(ConfigError, match="from 0 to 100"):
        list(evaluation().sweep([101]))


@pytest.mark.parametrize("num_runs", [0, -1, True])
def test_less_than_one_run_is_refused(
    evaluation: Callable[..., FaultEvaluation], num_runs: int
) -> None:
    with pytest.raises(ConfigError, match="num_runs"):
        evaluation(num_runs=num_runs)


def test_a_model_without_sites_is_refused() -> None:
    with pytest.raises(SiteError, match="no fault sites"):
        FullRunner(nn.Identity(), [])


# -- faults that are no probability ---------------------------------------------------------


def test_every_sample_has_exactly_so_many_faults(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(track=True, layers=[0, 2])
    config = made.faults.config
    results = list(made.evaluate(with_num_faults(config, k) for k in (0, 1, 7)))
    assert [result.total("faults") for result in results] == [0, 3 * SAMPLES, 3 * SAMPLES * 7]
    assert [result.cell.rate_text for result in results] == ["k = 0", "k = 1", "k = 7"]
    assert [result.total("struck") for result in results] == [0, 3 * SAMPLES, 3 * SAMPLES]
    for result in results:
        assert result.statistics is not None
        assert result.statistics.total_injections == result.total("faults")
    assert results[0].runs == (100.0,) * 3
    assert results[2].mean < results[1].mean


def test_several_faults_strike_as_the_configuration_says(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    several = [
        {"injection_type": "msb_flip", "probability": 30.0, "layers": [0]},
        {"injection_type": "random", "num_faults": 2, "layers": [2]},
    ]
    made = evaluation(probability=5.0, faults=several)
    (result,) = made.evaluate([made.faults.config])
    by_hand = []
    for trial in range(3):
        made.faults.reset(trial=trial)
        by_hand.append(accuracy(made.runner.model, made.runner.loader))
    assert list(result.runs) == by_hand
    assert result.cell.fault == "msb_flip at 30 % + random, 2 a sample"
    assert (result.cell.place, result.cell.rate_text) == ("0 2", "-")
    with pytest.raises(ConfigError, match="no site can be struck alone"):
        next(made.per_layer(made.faults.config))


def test_what_does_not_fit_is_found_ahead_of_any_trial(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    made = evaluation(layers=[2])
    config = made.faults.config
    made.check([config, with_num_faults(config, 3)])
    with pytest.raises(SiteError, match="allowed: up to the"):
        made.check([with_num_faults(config, 10**6)])
    with pytest.raises(ConfigError, match="from 0 to 100"):
        made.check([with_probability(config, 101)])


@pytest.mark.parametrize("mode", ["full_model", "layer"])
def test_what_does_not_fit_a_site_alone_is_found_ahead_of_any_trial(
    evaluation: Callable[..., FaultEvaluation], mode: str
) -> None:
    made = evaluation(layers=[0, 2], mode=mode)
    together = made.faults.measure(next(iter(made.runner.loader))[0])
    assert together is None
    sizes = [made.faults[i].seen.extent.elements for i in (0, 2)]  # type: ignore[union-attr]
    config = with_num_faults(made.faults.config, min(sizes) + 1)
    if mode == "full_model":
        made.check([config])
    with pytest.raises(SiteError, match=f"allowed: up to the {min(sizes)} elements"):
        made.check([config], each_alone=mode == "full_model")


# -- one site alone -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "layer"}, {"mode": "layer", "injection_layer": 1}]
)
def test_each_site_is_struck_alone(
    evaluation: Callable[..., FaultEvaluation], settings: dict[str, Any]
) -> None:
    made = evaluation(track=True, num_runs=2, **settings)
    results = list(struck_alone(made, 40))
    assert [(r.index, r.cell.layers) for r in results] == [
        (s.index, (s.name,)) for s in made.faults
    ]
    for result in results:
        assert isinstance(result.statistics, FaultStatistics)
        layers = result.statistics.layer_stats
        assert [i for i, layer in layers.items() if layer.total_activations] == [result.index]


def test_a_site_alone_has_the_faults_that_it_has_among_others(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    alone = next(struck_alone(evaluation(track=True), 40))
    together = next(evaluation(track=True).sweep([40]))
    assert alone.statistics is not None
    assert together.statistics is not None
    # The first site sees the same values in both, so the same hits do the same to them.
    assert alone.statistics.layer_stats[0].to_dict() == together.statistics.layer_stats[0].to_dict()


def test_selected_sites_are_the_ones_struck_alone(
    evaluation: Callable[..., FaultEvaluation],
) -> None:
    assert [r.index for r in struck_alone(evaluation(layers=[0, 2]), 5)] == [0, 2]
    assert [r.index for r in struck_alone(evaluation(), 5, layers=[1])] == [1]
    with pytest.raises(SiteError, match="no site 7"):
        next(struck_alone(evaluation(), 5, layers=[7]))


# -- what is left as it was -----------------------------------------------------------------


def settings_of(made: FaultEvaluation) -> Any:
    faults = made.faults
    sites = [(site.setting, site.selected) for site in faults]
    return faults.enabled, faults.trial, id(faults.statistics), sites, made.runner.model.training


@pytest.mark.parametrize("mode", ["full_model", "layer"])
def test_settings_come_back_when_a_generator_ends_or_is_dropped(
    evaluation: Callable[..., FaultEvaluation], mode: str
) -> None:
    made = evaluation(track=True, mode=mode)
    made.faults[1].set_probability(77.0)
    made.faults[2].set_fault_model("lsb_flip")
    made.faults[0].selected = not made.faults[0].selected
    made.faults.enabled = False
    made.runner.model.train()
    before = settings_of(made)
    made.baseline()
    list(made.sweep([1, 2]))
    list(struck_alone(made, 5))
    for generator in (made.sweep([1, 2]), struck_alone(made, 5)):
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
    list(made.sweep([20]))
    list(struck_alone(made, 20))
    # A DataLoader draws one seed from torch's generator for each pass, with or without faults.
    torch_state, after = torch.get_rng_state(), states()
    assert after[:2] == before[:2]
    assert torch.get_num_threads() == threads
    torch.set_rng_state(torch.tensor(before[2], dtype=torch.uint8))
    for _ in range(1 + (1 + 3) + (1 + 9)):  # Each generator looks at a batch first.
        list(made.runner.loader)
    assert torch.equal(torch.get_rng_state(), torch_state)
