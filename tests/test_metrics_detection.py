"""Mean average precision against an oracle in plain Python, and what it takes and refuses."""

from __future__ import annotations

import math
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxfault.errors import DataError
from fxfault.metrics.detection import MeanAveragePrecision

INF, NAN = math.inf, math.nan
Image = dict[str, Tensor]
COCO = np.linspace(0.5, 0.95, 10).tolist()


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (areas[0] + areas[1] - both)


def average_precision(found: list[Image], right: list[Image], label: int, least: float) -> float:
    """The area under the curve of one class at one threshold; NaN if it has no object."""
    ranked, objects = [], 0
    for image, truth in zip(found, right, strict=True):
        boxes = truth["boxes"][truth["labels"] == label].tolist()
        objects, taken = objects + len(boxes), set()
        chosen = image["labels"] == label
        pairs = zip(image["scores"][chosen].tolist(), image["boxes"][chosen].tolist(), strict=True)
        for score, box in sorted(pairs, key=lambda pair: -pair[0]):
            overlaps = [
                (overlap(box, other), number)
                for number, other in enumerate(boxes)
                if number not in taken
            ]
            best = max(overlaps, default=(0.0, -1))
            hit = best[0] >= least
            if hit:
                taken.add(best[1])
            ranked.append((score, hit))
    if not objects:
        return math.nan
    ranked.sort(key=lambda pair: -pair[0])
    points, hits = [], 0
    for number, (_, hit) in enumerate(ranked, start=1):
        hits += hit
        points.append((hits / objects, hits / number))
    best_from = [
        max((precision for recall, precision in points if recall >= at), default=0.0)
        for at in np.linspace(0.0, 1.0, 101).tolist()
    ]
    return math.fsum(best_from) / 101


def oracle(found: list[Image], right: list[Image], thresholds: list[float]) -> float:
    labels = {int(label) for image in right for label in image["labels"]}
    values = [
        average_precision(found, right, label, least) for label in labels for least in thresholds
    ]
    return 100 * math.fsum(values) / len(values)


def drawn_images(number: int, seed: int) -> tuple[list[Image], list[Image]]:
    """Images with objects of three classes, and detections of them that are near or wrong."""
    draw = random.Random(seed)
    found, right = [], []
    for _ in range(number):
        objects, labels, boxes, scores, guesses = [], [], [], [], []
        for _ in range(draw.randrange(5)):
            x, y = draw.uniform(0, 90), draw.uniform(0, 90)
            box = [x, y, x + draw.uniform(5, 40), y + draw.uniform(5, 40)]
            objects.append(box)
            labels.append(draw.randrange(3))
            for _ in range(draw.randrange(3)):
                boxes.append([value + draw.uniform(-2, 2) for value in box])
                scores.append(draw.random())
                guesses.append(labels[-1] if draw.random() < 0.8 else draw.randrange(4))
        right.append({"boxes": numbers(objects, 4), "labels": torch.tensor(labels).long()})
        image = {"boxes": numbers(boxes, 4), "scores": torch.tensor(scores)}
        found.append({**image, "labels": torch.tensor(guesses).long()})
    return found, right


def numbers(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, width)


def measured(found: Any, right: Any, **options: Any) -> float:
    metric = MeanAveragePrecision(**options)
    metric.update(found, right)
    return metric.compute()


@pytest.mark.parametrize("seed", range(4))
def test_the_precision_is_that_of_plain_python(seed: int) -> None:
    found, right = drawn_images(12, seed)
    expected = oracle(found, right, COCO)
    assert 5 < expected < 95
    assert measured(found, right) == pytest.approx(expected, rel=1e-6)
    expected = oracle(found, right, [0.75])
    assert measured(found, right, iou_thresholds=[0.75]) == pytest.approx(expected, rel=1e-6)


def test_each_image_has_a_precision_of_its_own() -> None:
    found, right = drawn_images(9, seed=7)
    each = MeanAveragePrecision().per_sample(found, right)
    expected = [
        oracle([image], [truth], COCO) if len(truth["labels"]) else NAN
        for image, truth in zip(found, right, strict=True)
    ]
    assert each.tolist() == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert each.isnan().any()
    assert each.nanmean() != pytest.approx(measured(found, right), rel=0.01)


def test_the_number_does_not_depend_on_the_batches() -> None:
    found, right = drawn_images(12, seed=1)
    values = set()
    for size in (1, 5, 12):
        metric = MeanAveragePrecision()
        metric.update(found[:2], right[:2])
        metric.reset()
        for start in range(0, 12, size):
            metric.update(found[start : start + size], right[start : start + size])
        metric.per_sample(found[:1], right[:1])  # which leaves what was collected
        values.add(metric.compute())
    assert len(values) == 1


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["boxes", "scores"])
def test_an_image_with_a_number_that_is_not_finite_has_no_detections(
    name: str, broken: float
) -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    label = torch.tensor([0])
    image = {"boxes": box, "scores": torch.tensor([0.5]), "labels": label}
    bad = {**image, name: image[name].clone().index_fill_(-1, torch.tensor([0]), broken)}
    truth = [{"boxes": box, "labels": label}] * 2
    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    metric.update([image, bad], truth)
    # Half of the objects are found: the precision is 1 up to a recall of 50 %.
    assert metric.compute() == pytest.approx(100 * 51 / 101, rel=1e-6)
    assert metric.unpredicted == 1
    assert metric.per_sample([image, bad], truth).tolist() == pytest.approx([100, NAN], nan_ok=True)


def test_a_huge_box_is_a_wrong_one() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    label = torch.tensor([0])
    huge = {"boxes": torch.tensor([[-3e38, 0.0, 3e38, 3e38]]), "scores": torch.ones(1)}
    assert measured([{**huge, "labels": label}], [{"boxes": box, "labels": label}]) == 0.0


def test_without_an_object_there_is_no_number() -> None:
    metric = MeanAveragePrecision()
    assert math.isnan(metric.compute())
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    metric.update([{**empty, "scores": torch.zeros(0)}], [empty])
    assert math.isnan(metric.compute())
    truth = {"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "labels": torch.tensor([0])}
    metric.update([{**empty, "scores": torch.zeros(0)}], [truth])
    assert metric.compute() == 0.0


def test_tensors_of_all_samples_are_as_good_as_lists() -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], [5, 5, 9, 9]], [[0, 0, 4, 4], [1, 1, 3, 3]]])
    scores = torch.tensor([[[0.1, 0.9], [0.8, 0.3]], [[0.4, 0.2], [0.2, 0.6]]])
    targets = {"boxes": boxes + 1, "labels": torch.tensor([[1, 0], [0, -1]])}
    best, labels = scores.max(2)
    found = [
        {"boxes": b.float(), "scores": s, "labels": n}
        for b, s, n in zip(boxes, best, labels, strict=True)
    ]
    right = [
        {"boxes": boxes[0].float() + 1, "labels": torch.tensor([1, 0])},
        {"boxes": boxes[1, :1].float() + 1, "labels": torch.tensor([0])},
    ]
    expected = oracle(found, right, COCO)
    assert 0 < expected < 100
    together = {"boxes": boxes.float(), "scores": scores}
    assert measured(together, targets) == pytest.approx(expected, rel=1e-6)
    by_label = {"boxes": boxes.float(), "scores": best, "labels": labels}
    assert measured(by_label, targets) == pytest.approx(expected, rel=1e-6)
    assert measured({"heads": by_label}, targets, output="heads") == measured(by_label, targets)
    moved = {**by_label, "boxes": torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], 2)}
    sizes = torch.cat([boxes[..., :2] + 1, boxes[..., 2:] - boxes[..., :2]], 2)
    as_sizes = measured(moved, {**targets, "boxes": sizes}, box_format="xywh")
    assert as_sizes == pytest.approx(expected, rel=1e-6)


def test_one_class_needs_no_labels_of_detections() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    targets = {"boxes": boxes, "labels": torch.zeros(1, 1, dtype=torch.int64)}
    assert measured({"boxes": boxes, "scores": torch.ones(1, 1)}, targets) == 100.0


def test_a_score_that_is_not_finite_is_seen_though_another_is_the_best() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    targets = {"boxes": boxes, "labels": torch.zeros(1, 1, dtype=torch.int64)}
    found = {"boxes": boxes, "scores": torch.tensor([[[0.9, -INF]]])}
    assert MeanAveragePrecision().per_sample(found, targets).isnan().all()


BOX, ONE, LABEL = torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)
GOOD = [{"boxes": BOX, "scores": ONE, "labels": LABEL}]
TRUTH = [{"boxes": BOX, "labels": LABEL}]


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (GOOD, TRUTH * 2),
        (torch.zeros(4, 4), TRUTH),
        (None, TRUTH),
        ([{"boxes": BOX, "scores": ONE}], TRUTH),
        ([{"boxes": BOX[:, :3], "scores": ONE, "labels": LABEL}], TRUTH),
        ([{"boxes": BOX, "scores": ONE[0], "labels": LABEL}], TRUTH),
        ([{"boxes": BOX, "scores": ONE, "labels": LABEL.float()}], TRUTH),
        ([{"boxes": BOX, "scores": LABEL, "labels": LABEL}], TRUTH),
        (GOOD, torch.zeros(1, 5)),
        (GOOD, [{"boxes": BOX}]),
        (GOOD, [{"boxes": BOX * NAN, "labels": LABEL}]),
        (GOOD, {"boxes": BOX[None], "labels": LABEL}),
        ({"boxes": BOX[None], "scores": ONE}, TRUTH),
        ({"boxes": "a", "scores": ONE}, TRUTH),
    ],
)
def test_what_is_refused_is_told_in_one_line_without_values(found: Any, right: Any) -> None:
    with pytest.raises(DataError) as error:
        measured(found, right)
    text = str(error.value)
    assert text.startswith("map: got ")
    assert "docs/your-own-task.md" in text
    assert "\n" not in text
    assert "tensor(" not in text


@pytest.mark.parametrize(
    "options", [{"box_format": "yxyx"}, {"iou_thresholds": []}, {"iou_thresholds": [50]}]
)
def test_an_argument_that_is_not_allowed_is_refused(options: Any) -> None:
    with pytest.raises(DataError, match=r"map: got .*; expected "):
        MeanAveragePrecision(**options)


@pytest.mark.parametrize("missing", ["torchmetrics", "pycocotools"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "torchmetrics":
        monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    else:
        from torchmetrics.detection import mean_ap

        monkeypatch.setattr(mean_ap, "_PYCOCOTOOLS_AVAILABLE", False)
        monkeypatch.setattr(mean_ap, "_FASTER_COCO_EVAL_AVAILABLE", False)
    with pytest.raises(DataError) as error:
        MeanAveragePrecision()
    assert str(error.value).endswith('pip install "fxfault[detection]"')
    assert "\n" not in str(error.value)
