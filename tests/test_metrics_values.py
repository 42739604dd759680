"""Every built-in metric against an oracle in plain Python, and what does not depend on batches."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from fxfault.errors import DataError
from fxfault.evaluation.full.predictions import accuracy
from fxfault.metrics.built_in import BUILT_IN
from fxfault.metrics.classification import top1, top5
from fxfault.metrics.decisions import decisions, top_classes
from fxfault.metrics.distance import changed_decisions, cosine, l2
from fxfault.metrics.images import psnr
from fxfault.metrics.language import Perplexity
from fxfault.metrics.regression import RMSE, mae, mse, relative_error
from fxfault.metrics.segmentation import MeanIoU
from fxfault.metrics.sums import sample_sums

INF, NAN = math.inf, math.nan


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, most: int, seed: int = 0) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, expected: list[float]) -> None:
    """Compare values that round a few times on different ways; NaN equals NaN."""
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-300, nan_ok=True)


# -- sums ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 64, 1000])
def test_a_sum_is_that_of_exact_arithmetic_but_for_few_roundings(width: int) -> None:
    values = drawn(5, width).exp()
    sums = sample_sums(values).tolist()
    assert sums == pytest.approx([math.fsum(row) for row in values.tolist()], rel=1e-15)


def test_a_sum_of_whole_numbers_is_exact() -> None:
    values = torch.full((2, 3, 1 << 16), 2.0**30 + 1)
    assert sample_sums(values).tolist() == [3 * (1 << 16) * 2.0**30] * 2  # float32 has no + 1
    assert sample_sums(values.double() + 1).tolist() == [3 * (1 << 16) * (2.0**30 + 1)] * 2


def test_a_sum_of_many_values_does_not_depend_on_the_batch_or_on_threads() -> None:
    values = drawn(6, 1_000_003)[3:]
    whole = sample_sums(values).tolist()
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # `torch.sum` then splits some sums of a batch of one in two.
    try:
        alone = [float(sample_sums(row[None])) for row in values]
    finally:
        torch.set_num_threads(before)
    assert alone == whole
    assert sample_sums(values.t().contiguous().t()).tolist() == whole


# -- classification -----------------------------------------------------------------------


def test_top1_is_the_accuracy() -> None:
    scores, labels = drawn(500, 10), classes(500, most=10)
    scores[:9] = scores[:9].round()  # ties
    data = [(scores, labels)]
    assert float(top1(scores, labels).mean()) == accuracy(torch.nn.Identity(), data)


def test_top5_counts_labels_among_the_best_five() -> None:
    scores, labels = drawn(200, 9).round(), classes(200, most=9)
    expected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        best = sorted(range(9), key=lambda c: (-row[c], c))[:5]  # the lower class first
        expected.append(100.0 * (label in best))
    same(top5(scores, labels), expected)
    assert 0 < sum(expected) < 20_000


def test_decisions_are_those_of_an_evaluation() -> None:
    scores = drawn(64, 6)
    scores[0, 1], scores[1, 2], scores[2] = NAN, INF, -INF
    scores[3, :5], scores[4, 0] = -INF, -INF
    assert torch.equal(decisions(scores), top_classes(scores, 5)[:, 0])
    assert (
        top1(scores, torch.zeros(64, dtype=torch.int64)).isnan().tolist()
        == [True] * 3 + [False] * 61
    )
    assert top5(scores, torch.zeros(64, dtype=torch.int64)).isnan().sum() == 3


def test_labels_may_be_a_column_and_of_any_integer_type() -> None:
    scores = drawn(8, 3)
    labels = classes(8, 1, most=3).to(torch.uint8)
    same(top1(scores, labels), top1(scores, labels[:, 0].long()).tolist())


# -- segmentation -------------------------------------------------------------------------


def test_mean_iou_is_the_mean_jaccard_index_of_the_classes_that_are_there() -> None:
    scores, targets = drawn(6, 5, 7, 4), classes(6, 7, 4, most=4)  # no pixel is of class 4
    targets[0, :3] = 255
    scores[:, 4] = -100.0  # nor predicted as such
    metric = MeanIoU(ignore_index=255)
    metric.update(scores, targets)
    counts = targets != 255
    right, predicted = targets[counts].numpy(), scores.argmax(1)[counts].numpy()
    expected = jaccard_score(right, predicted, labels=range(4), average="macro")
    assert metric.compute() == pytest.approx(100 * expected, rel=1e-14)
    each = [
        100
        * jaccard_score(
            targets[n][counts[n]].numpy(),
            scores[n].argmax(0)[counts[n]].numpy(),
            labels=range(4),
            average="macro",
        )
        for n in range(6)
    ]
    same(metric.per_sample(scores, targets), each)


def test_mean_iou_counts_a_class_that_is_only_predicted() -> None:
    scores = torch.tensor([[[0.0, 9.0], [9.0, 0.0], [0.0, 0.0]]])  # pixels of class 1 and 0
    metric = MeanIoU()
    metric.update(scores, torch.tensor([[0, 0]]))
    assert metric.compute() == 25.0  # class 0: 1 of 2; class 1: 0 of 1; class 2 is not there


def test_mean_iou_is_of_the_data_set_not_of_the_samples() -> None:
    scores = torch.tensor([[[9.0, 9.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
    targets = torch.tensor([[0, 0], [1, 1]])
    metric = MeanIoU()
    metric.update(scores, targets)
    assert metric.compute() == pytest.approx(100 * (2 / 3 + 1 / 2) / 2, rel=1e-15)
    same(metric.per_sample(scores, targets), [100.0, 25.0])


@pytest.mark.parametrize("broken", [NAN, INF])
def test_a_pixel_without_a_prediction_makes_all_pixels_of_its_sample_missed(broken: float) -> None:
    scores, targets = torch.zeros(2, 2, 4), torch.zeros(2, 4, dtype=torch.int64)
    scores[1, 1, 3] = broken
    metric = MeanIoU()
    metric.update(scores, targets)
    assert metric.compute() == 50.0
    assert metric.unpredicted == 1
    same(metric.per_sample(scores, targets), [100.0, NAN])


def test_mean_iou_without_a_pixel_that_counts_is_no_number() -> None:
    metric = MeanIoU(ignore_index=7)
    assert math.isnan(metric.compute())
    metric.update(torch.zeros(1, 2, 3), torch.full((1, 3), 7))
    assert math.isnan(metric.compute())
    assert metric.per_sample(torch.zeros(1, 2, 3), torch.full((1, 3), 7)).isnan().all()


def test_mean_iou_takes_classes_in_place_of_scores() -> None:
    scores, targets = drawn(3, 4, 5, 5), classes(3, 5, 5, most=4)
    by_scores, by_classes = MeanIoU(), MeanIoU(classes=4)
    by_scores.update(scores, targets)
    by_classes.update(scores.argmax(1).to(torch.int32), targets)
    assert by_classes.compute() == by_scores.compute()
    assert by_classes.per_sample(torch.full((1, 2), 10**9), torch.zeros(1, 2).long()).isnan().all()


# -- regression and images ----------------------------------------------------------------


def test_regression_errors_are_those_of_plain_python() -> None:
    outputs, targets = drawn(7, 3, 5), drawn(7, 3, 5, seed=1)
    rows = list(zip(outputs.flatten(1).tolist(), targets.flatten(1).tolist(), strict=True))
    absolute = [math.fsum(abs(a - b) for a, b in zip(*row, strict=True)) / 15 for row in rows]
    squared = [math.fsum((a - b) ** 2 for a, b in zip(*row, strict=True)) / 15 for row in rows]
    norms = [math.fsum(b * b for b in row[1]) for row in rows]
    same(mae(outputs, targets), absolute)
    same(mse(outputs, targets), squared)
    relative = [100 * math.sqrt(15 * s / n) for s, n in zip(squared, norms, strict=True)]
    same(relative_error(outputs, targets), relative)
    metric = RMSE()
    metric.update(outputs, targets)
    assert metric.compute() == pytest.approx(math.sqrt(math.fsum(squared) / 7), rel=1e-14)
    same(metric.per_sample(outputs, targets), [math.sqrt(s) for s in squared])


def test_squares_of_float32_do_not_overflow() -> None:
    huge = torch.tensor([[3e38], [-3e38]])
    expected = [float(value) ** 2 for value in huge[:, 0]]
    same(mse(huge, torch.zeros(2, 1)), expected)
    assert not mse(huge, torch.zeros(2, 1)).isinf().any()


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_an_output_that_is_not_finite_has_no_error(broken: float) -> None:
    outputs = torch.tensor([[1.0, 2.0], [broken, 2.0]])
    targets = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    same(mae(outputs, targets), [0.5, NAN])
    same(mse(outputs, targets), [0.5, NAN])
    same(relative_error(outputs, targets), [100 * math.sqrt(0.5), NAN])
    same(psnr(outputs, targets, data_range=1), [-10 * math.log10(0.5), NAN])
    metric = RMSE()
    metric.update(outputs, targets)
    assert math.isnan(metric.compute())
    assert metric.unpredicted == 1
    metric.reset()
    metric.update(outputs[:1], targets[:1])
    assert metric.compute() == math.sqrt(0.5)


def test_psnr_is_that_of_plain_python() -> None:
    targets = drawn(4, 1, 6, 6).sigmoid() * 255
    outputs = targets + drawn(4, 1, 6, 6, seed=2)
    expected = []
    for a, b in zip(outputs.flatten(1).tolist(), targets.flatten(1).tolist(), strict=True):
        error = math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 36
        expected.append(10 * math.log10(255**2 / error))
    same(psnr(outputs, targets, data_range=255), expected)
    assert psnr(targets, targets, data_range=255).tolist() == [INF] * 4


# -- language -----------------------------------------------------------------------------


def plain_losses(logits: Tensor, tokens: Tensor, ignored: int) -> list[list[float]]:
    losses = []
    for rows, right in zip(logits.tolist(), tokens.tolist(), strict=True):
        sample = []
        for row, token in zip(rows, right, strict=True):
            if token != ignored:
                most = max(row)
                sum_of_all = math.fsum(math.exp(value - most) for value in row)
                sample.append(most + math.log(sum_of_all) - row[token])
        losses.append(sample)
    return losses


def test_perplexity_is_of_all_tokens_that_count() -> None:
    logits, tokens = 3 * drawn(5, 70, 11), classes(5, 70, most=11)
    for sample, length in enumerate([70, 3, 65, 64, 1]):
        tokens[sample, length:] = -100
    losses = plain_losses(logits, tokens, -100)
    metric = Perplexity()
    metric.update(logits, tokens)
    every = [loss for sample in losses for loss in sample]
    assert metric.compute() == pytest.approx(math.exp(math.fsum(every) / 203), rel=1e-12)
    same(metric.per_sample(logits, tokens), [math.exp(math.fsum(s) / len(s)) for s in losses])
    ratio = metric.compute() / float(metric.per_sample(logits, tokens).mean())
    assert abs(ratio - 1) > 0.01  # It is no mean over samples.


def test_perplexity_shifts_the_tokens_if_asked() -> None:
    logits, tokens = drawn(2, 6, 5), classes(2, 6, most=5)
    shifted, plain = Perplexity(shift=True), Perplexity()
    same(
        shifted.per_sample(logits, tokens),
        plain.per_sample(logits[:, :-1], tokens[:, 1:]).tolist(),
    )


def test_perplexity_of_padding_alone_is_no_number() -> None:
    metric = Perplexity()
    padding = torch.full((1, 3), -100)
    assert metric.per_sample(drawn(1, 3, 4), padding).isnan().all()
    metric.update(drawn(1, 3, 4), padding)
    assert math.isnan(metric.compute())
    assert metric.unpredicted == 0
    metric.update(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64))
    assert metric.compute() == pytest.approx(4.0, rel=1e-15)


def test_perplexity_of_scores_that_are_not_finite() -> None:
    logits, tokens = torch.zeros(4, 2, 3), torch.zeros(4, 2, dtype=torch.int64)
    logits[0, 1, 2], logits[1, 0, 0], logits[2, 0, 1] = NAN, INF, -INF
    metric = Perplexity()
    same(metric.per_sample(logits, tokens), [NAN, NAN, math.sqrt(6), 3.0])
    metric.update(logits, tokens)
    assert metric.unpredicted == 2
    assert math.isnan(metric.compute())


def test_perplexity_of_what_cannot_be_is_infinite() -> None:
    impossible = torch.tensor([[[0.0, -INF]], [[0.0, -3e38]]])
    tokens = torch.ones(2, 1, dtype=torch.int64)
    assert Perplexity().per_sample(impossible, tokens).tolist() == [INF, INF]


# -- distance -----------------------------------------------------------------------------


def test_distances_are_those_of_plain_python() -> None:
    outputs, golden = drawn(6, 3, 4), drawn(6, 3, 4, seed=3)
    angles, lengths = [], []
    for a, b in zip(outputs.flatten(1).tolist(), golden.flatten(1).tolist(), strict=True):
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        sizes = [math.sqrt(math.fsum(x * x for x in v)) for v in (a, b)]
        angles.append(1 - dot / (sizes[0] * sizes[1]))
        lengths.append(math.dist(a, b))
    same(cosine(outputs, golden), angles)
    same(l2(outputs, golden), lengths)


def test_the_distance_of_equal_outputs_is_zero() -> None:
    outputs = drawn(300, 37)
    for metric in (cosine, l2, changed_decisions):
        assert metric(outputs, outputs.clone()).tolist() == [0.0] * 300
    assert cosine(3 * outputs, outputs).max() < 1e-13


def test_cosine_keeps_its_digits_and_its_range() -> None:
    pairs = torch.tensor(
        [
            [[1.0, 1e-9], [1.0, 0.0]],
            [[1e300, 0.0], [1e-300, 0.0]],
            [[-5.0, 0.0], [2.0, 0.0]],
            [[0.0, 0.0], [2.0, 0.0]],
            [[0.0, 0.0], [0.0, 0.0]],
        ],
        dtype=torch.float64,
    )
    expected = [5e-19, 0.0, 2.0, 1.0, 0.0]
    assert cosine(pairs[:, 0], pairs[:, 1]).tolist() == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("broken", [NAN, INF])
def test_distances_of_what_is_not_finite_are_no_numbers(broken: float) -> None:
    outputs, golden = torch.ones(3, 2), torch.ones(3, 2)
    outputs[0, 1] = golden[1, 0] = broken
    for metric in (cosine, l2, changed_decisions):
        same(metric(outputs, golden), [NAN, NAN, 0.0])


def test_decisions_of_pixels_tokens_and_integers() -> None:
    outputs, golden = drawn(4, 3, 6), drawn(4, 3, 6, seed=1)
    pixels = (outputs.argmax(1) != golden.argmax(1)).double().mean(1) * 100
    same(changed_decisions(outputs, golden), pixels.tolist())
    tokens = (outputs.argmax(2) != golden.argmax(2)).double().mean(1) * 100
    same(changed_decisions(outputs, golden, dim=-1), tokens.tolist())
    same(changed_decisions(outputs.argmax(1), golden.argmax(1)), pixels.tolist())


# -- laws of all --------------------------------------------------------------------------

SAMPLES = 24
SCORES, IMAGES, TEXT = drawn(SAMPLES, 9), drawn(SAMPLES, 3, 8, 9), 4 * drawn(SAMPLES, 70, 33)
EXAMPLES: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {
    "top1": (SCORES, classes(SAMPLES, most=9, seed=1), {}),
    "top5": (SCORES, classes(SAMPLES, most=9), {}),
    "mean_iou": (IMAGES, classes(SAMPLES, 8, 9, most=3), {"ignore_index": 2}),
    "mae": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
    "mse": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
    "rmse": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
    "relative_error": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
    "psnr": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {"data_range": 20}),
    "perplexity": (TEXT, classes(SAMPLES, 70, most=33), {"ignore_index": 5}),
    "cosine": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
    "l2": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
    "changed_decisions": (IMAGES, IMAGES + drawn(SAMPLES, 3, 8, 9, seed=4), {}),
}


def find(name: str) -> Any:
    module, _, attribute = BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def per_sample(name: str, options: dict[str, Any]) -> Callable[[Any, Any], Tensor]:
    found = find(name)
    if isinstance(found, type):
        return found(**options).per_sample
    return lambda outputs, targets: found(outputs, targets, **options)


def test_every_built_in_metric_has_an_example_here_or_a_file_of_its_own() -> None:
    assert {*EXAMPLES, "map"} == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_metric_says_what_kind_it_is(name: str) -> None:
    metric = find(name)
    assert isinstance(metric.higher_is_better, bool)
    assert metric.tolerance == 0.0
    assert metric.unit in ("", "%", "dB")
    assert metric.needs_golden is (name in ("cosine", "l2", "changed_decisions"))
    better = name in ("top1", "top5", "mean_iou", "map", "psnr")
    assert metric.higher_is_better is better


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 23])
@pytest.mark.parametrize("name", EXAMPLES)
def test_values_do_not_depend_on_the_batch(name: str, size: int, threads: int) -> None:
    outputs, targets, options = EXAMPLES[name]
    measure = per_sample(name, options)
    whole = measure(outputs, targets)
    assert whole.dtype == torch.float64
    assert whole.shape == (SAMPLES,)
    assert len(whole.unique()) > 1  # so that an exchange would be seen
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = zip(outputs.split(size), targets.split(size), strict=True)
        again = torch.cat([measure(*part) for part in parts])
    finally:
        torch.set_num_threads(before)
    assert again.tolist() == whole.tolist()
    order = torch.arange(SAMPLES).flip(0)
    assert measure(outputs[order], targets[order]).flip(0).tolist() == whole.tolist()
    # Nor on how the outputs lie in memory.
    strided = outputs.transpose(0, -1).contiguous().transpose(0, -1)
    assert measure(strided, targets).tolist() == whole.tolist()


@pytest.mark.parametrize("name", ["mean_iou", "rmse", "perplexity"])
def test_the_number_for_all_data_does_not_depend_on_the_batches(name: str) -> None:
    outputs, targets, options = EXAMPLES[name]
    values = set()
    for size in (1, 2, 5, 23, 24):
        metric = find(name)(**options)
        metric.update(outputs[:3], targets[:3])
        metric.reset()
        parts = list(zip(outputs.split(size), targets.split(size), strict=True))
        for part in reversed(parts):
            metric.update(*part)
        values.add(metric.compute())
    assert len(values) == 1
    assert math.isfinite(values.pop())


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_that_is_given_is_written(name: str) -> None:
    outputs, targets, options = EXAMPLES[name]
    before, versions = outputs.clone(), (outputs._version, targets._version)
    per_sample(name, options)(outputs, targets)
    assert torch.equal(outputs, before)
    assert (outputs._version, targets._version) == versions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", EXAMPLES)
def test_outputs_of_other_precision_are_taken_as_they_are(name: str, dtype: torch.dtype) -> None:
    outputs, targets, options = EXAMPLES[name]
    narrow = outputs.to(dtype)
    measure = per_sample(name, options)
    assert measure(narrow, targets).tolist() == measure(narrow.double(), targets).tolist()


@pytest.mark.parametrize("name", EXAMPLES)
def test_outputs_without_a_sample_give_no_value(name: str) -> None:
    outputs, targets, options = EXAMPLES[name]
    assert per_sample(name, options)(outputs[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_refused_is_told_in_one_line_without_values(name: str) -> None:
    outputs, targets, options = EXAMPLES[name]
    measure = per_sample(name, options)
    sparse = outputs.to_sparse()
    wrong: list[tuple[Any, Any]] = [
        (outputs, targets[:-1]),
        (outputs, targets[..., None, None]),
        (outputs, {"a": targets}),
        (outputs, "text"),
        (outputs.sum(), targets),
        (outputs.to(torch.complex64), targets),
        (sparse, targets),
        (outputs.to("meta"), targets),
        (None, targets),
        ([], targets),
        ({"scores": 3}, targets),
    ]
    for given, expected in wrong:
        if name in ("cosine", "l2", "changed_decisions") and expected == {"a": targets}:
            continue  # The targets are outputs, too, and may be a dict.
        with pytest.raises(DataError) as error:
            measure(given, expected)
        text = str(error.value)
        assert text.startswith(f"{name}: got ")
        assert "docs/your-own-task.md" in text
        assert "\n" not in text
        assert "tensor(" not in text
        assert len(text) < 400
