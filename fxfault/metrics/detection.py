"""Mean average precision of object detectors, computed by torchmetrics and pycocotools."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxfault.data.torchvision_import import import_torchvision
from fxfault.errors import DataError
from fxfault.messages import described, quote_error
from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, item_of, items_of, refusal, tensor_of

_OUTPUTS = (
    "for each image a dict of boxes (K, 4), scores (K,) and labels (K,), or one dict of tensors "
    "with a first dimension for the samples; its scores may be (samples, K, classes)"
)
_TARGETS = (
    "for each image a dict of boxes (K, 4) and labels (K,), or one dict of tensors with a first "
    "dimension for the samples, in which a label below 0 marks what is no object"
)
COCO = tuple(float(threshold) for threshold in np.linspace(0.5, 0.95, 10))
"""The IoU thresholds of COCO."""
_FORMATS = ("xyxy", "xywh", "cxcywh")


@declared(higher_is_better=True, unit="%")
class MeanAveragePrecision:
    """Mean average precision over the data set, in percent, as COCO defines it.

    For each class, and each of the IoU thresholds 0.50, 0.55, ..., 0.95, the detections of all
    images are ranked by their scores; the average precision is the area under the curve of
    precision over recall, at 101 recalls. The mean is over the classes with objects and over the
    thresholds, not over images. torchmetrics computes it and rounds it to float32.

    A network with faults may return a box or a score that is NaN or infinite. Such an image has no
    detections: its objects count as missed.

    >>> box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    >>> found = [{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}]
    >>> metric = MeanAveragePrecision()
    >>> metric.update(found, [{"boxes": box, "labels": torch.tensor([1])}])
    >>> metric.compute()
    100.0

    Args:
        box_format: the numbers of a box: `xyxy` (two corners), `xywh` (a corner and sizes) or
            `cxcywh` (centre and sizes), in pixels.
        iou_thresholds: other thresholds, such as [0.5].
        output: the item of the outputs that has the detections.

    Attributes:
        unpredicted: number of images without detections because a number is not finite.

    Raises:
        DataError: torchmetrics, pycocotools or torchvision is not installed, or an argument is
            not allowed.

    Reference:
        Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the evaluation is
        described at https://cocodataset.org/#detection-eval.
    """

    def __init__(
        self,
        *,
        box_format: str = "xyxy",
        iou_thresholds: Sequence[float] = COCO,
        output: Output = None,
    ) -> None:
        if box_format not in _FORMATS:
            raise refusal("map", f"`box_format` {box_format!r}", " or ".join(_FORMATS))
        self.output = output
        thresholds = [float(threshold) for threshold in iou_thresholds]
        if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
            raise refusal("map", f"`iou_thresholds` {thresholds}", "numbers above 0, up to 1")
        self._all = _torchmetrics_map(box_format, thresholds)
        self._one = _torchmetrics_map(box_format, thresholds)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._all.reset()
        self._images = 0
        self.unpredicted = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the images of a batch.

        Args:
            outputs: for each image a dict of boxes, float, shape (K, 4), scores, shape (K,), and
                labels, integers, shape (K,), as torchvision's detectors return them. Or, for a
                network that always returns K boxes, one dict of tensors with a first dimension for
                the samples, without labels if there is one class. If the scores have the shape
                (samples, K, classes), the best class of a box is its label.
            targets: the objects of each image in the same form, without scores. In one dict of
                tensors, a label below 0 marks what is no object.

        Raises:
            DataError: the shapes or types are others.
        """
        found, right, known = self._images_of(outputs, targets)
        self._all.update(found, right)
        self._images += len(found)
        self.unpredicted += known.count(False)

    def compute(self) -> float:
        """The mean average precision in percent; NaN if there is no object."""
        return _percent(self._all) if self._images else math.nan

    def per_sample(self, outputs: Any, targets: Any) -> Tensor:
        """The mean average precision of each image alone, in percent.

        Args:
            outputs: as in `update`.
            targets: as in `update`.

        Returns:
            float64, shape (samples,); NaN where a number is not finite or there is no object.
        """
        values = []
        for found, right, known in zip(*self._images_of(outputs, targets), strict=True):
            self._one.reset()
            self._one.update([found], [right])
            values.append(_percent(self._one) if known else math.nan)
        self._one.reset()
        return torch.tensor(values, dtype=torch.float64)

    def _images_of(
        self, outputs: Any, targets: Any
    ) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], list[bool]]:
        """Detections and objects of each image, and whether its detections are finite."""
        if self.output is not None:
            outputs = item_of(outputs, self.output, metric="map")
        found = [_finite(image) for image in _detections(outputs)]
        right = _objects(targets)
        if len(found) != len(right):
            numbers = f"outputs of {len(found)} images and targets of {len(right)}"
            raise refusal("map", numbers, "as many of each")
        return [image for image, _ in found], right, [known for _, known in found]


def _torchmetrics_map(box_format: str, thresholds: list[float]) -> Any:
    with contextlib.suppress(DataError):  # torchmetrics says what is missing.
        import_torchvision()
    try:
        from torchmetrics.detection import MeanAveragePrecision as Library

        # By default, torchmetrics 1.9 rounds its thresholds to float32, and so misses recalls.
        recalls = [float(recall) for recall in np.linspace(0.0, 1.0, 101)]
        metric = Library(
            box_format=box_format,  # type: ignore[arg-type]
            iou_thresholds=thresholds,
            rec_thresholds=recalls,
        )
    except (ImportError, RuntimeError, OSError) as error:
        raise DataError(
            f"map needs torchmetrics, pycocotools and torchvision ({quote_error(error)}): "
            'pip install "fxfault[detection]"'
        ) from error
    metric.warn_on_many_detections = False  # COCO counts the best 100 of an image.
    return metric


def _percent(metric: Any) -> float:
    value = float(metric.compute()["map"])
    return 100 * value if value >= 0 else math.nan  # -1: no object


def _detections(outputs: Any) -> list[dict[str, Tensor]]:
    if _is_list_of_dicts(outputs):
        return [
            _image(item, ("boxes", "scores", "labels"), "outputs", _OUTPUTS) for item in outputs
        ]
    items = _tensors(outputs, ("boxes", "scores"), "outputs", _OUTPUTS)
    boxes, scores, labels = items["boxes"], items["scores"], items.get("labels")
    if scores.dim() == 3 and labels is None and scores.shape[2] > 0:
        best, where = scores.max(2)
        # A score that is not finite anywhere is seen, not only if it is the best.
        scores, labels = best.masked_fill(~scores.isfinite().all(2), torch.nan), where
    if labels is None:
        labels = torch.zeros(scores.shape, dtype=torch.int64)
    if not (boxes.dim() == 3 and boxes.shape[:2] == scores.shape == labels.shape):
        raise refusal("map", f"outputs {described(outputs)}", _OUTPUTS)
    together = zip(boxes, scores, labels, strict=True)
    return [
        _image(
            dict(boxes=b, scores=s, labels=n), ("boxes", "scores", "labels"), "outputs", _OUTPUTS
        )
        for b, s, n in together
    ]


def _objects(targets: Any) -> list[dict[str, Tensor]]:
    if _is_list_of_dicts(targets):
        return [_image(item, ("boxes", "labels"), "targets", _TARGETS) for item in targets]
    items = _tensors(targets, ("boxes", "labels"), "targets", _TARGETS)
    boxes, labels = items["boxes"], items["labels"]
    if not (boxes.dim() == 3 and boxes.shape[:2] == labels.shape):
        raise refusal("map", f"targets {described(targets)}", _TARGETS)
    return [
        _image(dict(boxes=b[n >= 0], labels=n[n >= 0]), ("boxes", "labels"), "targets", _TARGETS)
        for b, n in zip(boxes, labels, strict=True)
    ]


def _is_list_of_dicts(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple))
    return is_list and all(isinstance(item, Mapping) for item in value)


def _tensors(value: Any, needed: Sequence[str], what: str, expected: str) -> dict[str, Tensor]:
    items = items_of(value)
    if not set(needed) <= set(items):
        raise refusal("map", f"{what} {described(value)}", expected)
    names = [name for name in ("boxes", "scores", "labels") if items.get(name) is not None]
    return {name: tensor_of(items[name], metric="map").cpu() for name in names}


def _image(image: Any, names: Sequence[str], what: str, expected: str) -> dict[str, Tensor]:
    """The checked tensors of one image, on the CPU."""
    items = _tensors(image, names, what, expected)
    boxes, labels, scores = items["boxes"], items["labels"], items.get("scores")
    number = len(labels) if labels.dim() == 1 else -1
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    no_class = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    right_types = not (no_class or boxes.is_complex() or boxes.dtype == torch.bool)
    fits = tuple(boxes.shape) == (number, 4) and (scores is None or scores.shape == labels.shape)
    if not (right_types and fits) or (scores is not None and not scores.is_floating_point()):
        raise refusal("map", f"{what} with an image of {described(items)}", expected)
    if what == "targets" and not bool(boxes.isfinite().all()):
        raise refusal("map", "a box of a target that is not finite", expected)
    found = {"boxes": boxes.float(), "labels": labels.to(torch.int64)}
    return found if "scores" not in names else {**found, "scores": items["scores"].float()}


def _finite(image: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The detections of an image, none if a number is not finite, and whether all are."""
    known = all(bool(image[name].isfinite().all()) for name in ("boxes", "scores"))
    return (image if known else {name: tensor[:0] for name, tensor in image.items()}), known
