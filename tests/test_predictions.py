"""Predictions of full runs: their order, their numbers of samples, and what was struck."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxfault
from fxfault.errors import DataError, SiteError
from fxfault.evaluation import CompiledRunner, FullRunner, IncrementalRunner
from fxfault.evaluation.full.predictions import (
    Predictions,
    labels_of,
    predict,
    ranked,
    sample_numbers,
)

Batches = list[tuple[Tensor, Tensor]]


def batches_of(samples: int, batch: int) -> Batches:
    images = torch.randn(samples, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(5, (samples,), generator=torch.Generator().manual_seed(6))
    return list(zip(images.split(batch), labels.split(batch), strict=True))


@pytest.fixture
def model(convnet: nn.Module, faulty: Callable[..., Any]) -> Any:
    return faulty(convnet, apply_during="eval", probability=2.0, seed=3).eval()


# -- ranking --------------------------------------------------------------------------------


def test_the_best_class_is_the_one_that_argmax_gives() -> None:
    scores = torch.randint(-2, 3, (500, 12), generator=torch.Generator().manual_seed(0)).float()
    scores[:50, 7] = float("-inf")
    top = ranked(scores)
    assert top.shape == (500, 5)
    assert torch.equal(top[:, 0], scores.argmax(1))
    assert torch.equal(scores.gather(1, top), scores.topk(5).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_scores_that_are_not_finite_make_no_prediction(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    scores = torch.tensor(
        [
            [0.0, 1.0, 2.0],
            [0.0, nan, 2.0],
            [0.0, 1.0, inf],
            [-inf, 1.0, -inf],
            [-inf, -inf, -inf],
            [-inf, nan, 3.0],
            [-nan, 1.0, 2.0],
        ],
        dtype=dtype,
    )
    none = [-1, -1, -1]
    assert ranked(scores).tolist() == [[2, 1, 0], none, none, [1, 0, 2], none, none, none]
    made = Predictions(ranked(scores), torch.tensor([2, 1, 2, 0, 0, 2, 2]))
    assert (made.correct, made.unpredicted) == (1, 5)
    assert ranked(torch.tensor([[3, 9, 4]])).tolist() == [[1, 2, 0]]  # Integers are finite.


def test_equal_scores_come_in_the_order_of_classes() -> None:
    assert ranked(torch.zeros(2, 3)).tolist() == [[0, 1, 2]] * 2


def test_accuracy_counts_the_first_column() -> None:
    made = Predictions(torch.tensor([[1, 0], [0, 1], [1, 0]]), torch.tensor([1, 1, 1]))
    assert (made.correct, made.accuracy) == (2, pytest.approx(200 / 3))


# -- runs -----------------------------------------------------------------------------------


def test_predictions_are_those_of_the_model_batch_by_batch(model: Any) -> None:
    data = batches_of(20, 8)
    made = FullRunner(model, data).run()
    model.faults.reset()
    with torch.no_grad():
        expected = torch.cat([ranked(model(images)) for images, _ in data])
    assert torch.equal(made.top, expected)
    assert torch.equal(made.labels, torch.cat([labels for _, labels in data]))


def test_every_run_starts_from_sample_zero_and_leaves_the_count_alone(model: Any) -> None:
    runner = FullRunner(model, batches_of(20, 8))
    model(torch.randn(4, 3, 6, 6))
    first = runner.run()
    assert torch.equal(runner.run().top, first.top)
    model(torch.randn(4, 3, 6, 6))
    assert model.faults.clock.first_sample == 4


def test_golden_is_without_faults_and_computed_once(model: Any) -> None:
    data = batches_of(20, 8)
    runner = FullRunner(model, data)
    golden = runner.golden()
    model.faults.enabled = False
    assert torch.equal(runner.run().top, golden.top)
    assert golden.struck is None
    data.clear()
    assert runner.golden() is golden


def test_golden_follows_parameters_that_changed(model: Any) -> None:
    runner = FullRunner(model, batches_of(20, 8))
    before = runner.golden()
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() > 1).neg_()
    assert not torch.equal(runner.golden().top, before.top)


@pytest.mark.parametrize("settings", [{}, {"hw_mask": True, "frequency_value": 64}])
@pytest.mark.parametrize("probability", [0.0, 0.3, 2.0, 100.0])
def test_struck_says_which_samples_differ_at_a_site(
    model: Any,
    convnet: nn.Module,
    faulty: Callable[..., Any],
    probability: float,
    settings: dict[str, Any],
) -> None:
    model = faulty(convnet, apply_during="eval", seed=3, injection_type="full_flip", **settings)
    model.eval().faults.set_probability(probability)
    data = batches_of(40, 8)
    seen: list[Tensor] = []
    for site in model.faults:
        site.selected = site.index == 1
    clean = [convnet[:4](images).value for images, _ in data]
    runner = FullRunner(model, data)
    runner.golden()  # Sees first which elements belong to which sample.
    hook = model.get_submodule("5").register_forward_pre_hook(lambda _, x: seen.append(x[0].value))
    struck = runner.run().struck
    hook.remove()
    differs = [(a.flatten(1) != b.flatten(1)).any(1) for a, b in zip(seen, clean, strict=True)]
    assert torch.equal(struck, torch.cat(differs))


def test_struck_counts_each_call_of_a_site_that_a_container_calls(
    branching: nn.Module, faulty: Callable[..., Any]
) -> None:
    model = faulty(branching, apply_during="eval", injection_type="full_flip", probability=3.0)
    model.eval()
    images = torch.rand(64, 12)
    runner = FullRunner(model, [(images, torch.zeros(64, dtype=torch.int64))])
    with torch.no_grad():
        model.faults.reset()
        model.faults.enabled = False
        clean = model(images)
        model.faults.enabled = True
        model.faults.reset()
        struck = model(images)
    changed = (clean != struck).any(1)
    found = runner.run().struck
    assert found is not None
    assert bool((changed <= found).all())
    assert 0 < int(found.sum()) < 64


def test_shares_of_several_processes_have_the_numbers_of_the_clock(model: Any) -> None:
    model.faults.shard(rank=1, world_size=3)
    numbers = []
    model.faults.reset()
    for size in (8, 8):
        model(torch.randn(size, 3, 6, 6))
        first = model.faults.clock.first_sample
        numbers += range(first, first + size)
    assert sample_numbers(model.faults.clock, [8, 8]).tolist() == numbers


def test_a_model_that_never_struck_has_no_struck_samples(model: Any) -> None:
    model.faults.enabled = False
    struck = FullRunner(model, batches_of(6, 4)).run().struck
    assert struck is not None
    assert not struck.any()


def test_batches_are_told_one_by_one(model: Any) -> None:
    done: list[int] = []
    FullRunner(model, batches_of(20, 8)).run(done.append)
    assert done == [8, 8, 4]


def test_no_sample_and_no_sites_are_errors(model: Any) -> None:
    with pytest.raises(DataError, match="no sample"):
        predict(model, [])
    with pytest.raises(SiteError, match="no fault sites"):
        FullRunner(nn.Identity(), [])


# -- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_one_column_and_of_any_integers_are_the_same_labels(dtype: torch.dtype) -> None:
    labels = torch.tensor([2, 0, 1])
    for given in (labels.to(dtype), labels.to(dtype)[:, None], labels.tolist(), labels.numpy()):
        found = labels_of(given, 0, 3)
        assert (found.dtype, found.tolist()) == (torch.int64, [2, 0, 1])


OTHER_LABELS: list[tuple[Any, str]] = [
    (torch.zeros(4, 3, dtype=torch.int64), r"got shape \(4, 3\) .* their argmax"),
    (torch.zeros(1, 4, dtype=torch.int64), r"got shape \(1, 4\)"),
    (torch.zeros(4, 1, 1, dtype=torch.int64), r"got shape \(4, 1, 1\)"),
    (torch.zeros(4, 0, dtype=torch.int64), r"got shape \(4, 0\)"),
    (torch.tensor(1), r"got shape \(\)"),
    (torch.tensor([0.5, 1.0, 0.0, 0.0]), r"got 0\.5 \(float32\) for sample 8; allowed: int"),
    (torch.ones(4, 1), r"got 1\.0 \(float32\) for sample 8"),
    (torch.ones(4, dtype=torch.float16), r"got 1\.0 \(float16\) for sample 8"),
    (torch.tensor([True] * 4), r"got True \(bool\) for sample 8"),
    (torch.ones(4, dtype=torch.complex64), r".*\(complex64\) for sample 8"),
    (torch.tensor([0, 4, 7, -1]), r"got 7 for sample 10; allowed: 0 to 4, .* for 5 classes"),
    (torch.tensor([[0], [-100], [0], [9]]), r"got -100 for sample 9; allowed: 0 to 4"),
    (torch.tensor([0, 1, 2, 5], dtype=torch.uint8), r"got 5 for sample 11"),
    (("cat", "dog", "cat", "cat"), "got a tuple"),
]


@pytest.mark.parametrize("kind", ["predict", "full", "incremental", "compiled"])
def test_labels_of_another_kind_are_refused_by_every_runner(model: Any, kind: str) -> None:
    # In the last batch, so that it is not only looked at first.
    data: list[Any] = [*batches_of(8, 4), None]
    run = golden_of(kind, model, data)
    for labels, message in OTHER_LABELS:
        data[-1] = (torch.randn(4, 3, 6, 6), labels)
        with pytest.raises(DataError, match=f"labels: {message}") as caught:
            run()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["predict", "full", "incremental", "compiled"])
def test_labels_of_one_column_give_the_same_predictions(model: Any, kind: str) -> None:
    data = batches_of(20, 8)
    columns = [(images, labels[:, None].to(torch.int32)) for images, labels in data]
    found, expected = golden_of(kind, model, columns)(), golden_of(kind, model, data)()
    assert found.accuracy == expected.accuracy
    assert found.classes == expected.classes == 5
    assert torch.equal(found.labels, expected.labels)


def golden_of(kind: str, model: Any, data: Any) -> Callable[[], Predictions]:
    """A function that gives golden predictions by a runner; it may be called again."""
    if kind == "predict":
        return functools.partial(predict, model, data)
    if kind == "full":
        return FullRunner(model, data).golden
    if kind == "incremental":
        return IncrementalRunner(model, data).golden
    inner = IncrementalRunner(fxfault.freeze(model), data)
    return CompiledRunner(inner, backend="eager").golden
