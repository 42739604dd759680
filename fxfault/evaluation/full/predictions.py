"""What a network predicts for each sample of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxfault.data.batches import Batch, take_apart
from fxfault.errors import DataError
from fxfault.evaluation.full.hits import Hits
from fxfault.evaluation.full.labels import labels_of
from fxfault.evaluation.full.model_state import in_eval_mode
from fxfault.metrics.decisions import top_classes
from fxfault.metrics.facts import ACCURACY, MetricFacts
from fxfault.sites.clock import FaultClock
from fxfault.sites.fault_sites import FaultSites

if TYPE_CHECKING:
    from fxfault.evaluation.full.judging import Judge

OnBatch = Callable[[int], None]
"""Called with the number of samples done since the last call."""

OnNote = Callable[[str], object]
"""Called with a sentence for the user, such as why nothing is compiled."""

MOST_CLASSES = 5


@dataclass(frozen=True)
class Predictions:
    """The predictions of one evaluation, on the CPU, in the order of the data.

    >>> made = Predictions(top=torch.tensor([[2, 0], [1, 0]]), labels=torch.tensor([2, 0]))
    >>> made.correct, made.accuracy
    (1, 50.0)

    Attributes:
        top: classes with the highest scores, the best first, int64, shape
            (samples, min(5, classes)). Of equal scores the lower class comes first, so that
            column 0 is `argmax`. A sample without a prediction (see `ranked`) has -1 in all
            columns.
        labels: the right classes, int64, shape (samples,).
        struck: whether any element of a sample was hit, bool, shape (samples,); None without
            faults. All samples count as hit if hardware units are broken (`hw_mask`) at a site
            that a container calls by its own code.
        classes: number of classes that the model scores; None if unknown.
        sizes: number of samples in each batch.
        hits: what was hit, as long as the sites are set as they were; None without faults.
    """

    top: Tensor
    labels: Tensor
    struck: Tensor | None = None
    classes: int | None = None
    sizes: tuple[int, ...] = ()
    hits: Hits | None = None

    @property
    def correct(self) -> int:
        """Number of samples with the right best class."""
        return int((self.top[:, 0] == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of correct samples, in percent."""
        return 100.0 * self.correct / len(self.labels)

    @property
    def unpredicted(self) -> int:
        """Number of samples without a prediction, as their scores are not finite."""
        return int((self.top[:, 0] < 0).sum())

    @property
    def facts(self) -> MetricFacts:
        """What reports say about the accuracy."""
        return ACCURACY

    @property
    def value(self) -> float:
        """The accuracy, as that of any metric."""
        return self.accuracy

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def with_hits(self, hits: Hits) -> Predictions:
        """The same predictions, with what was hit."""
        return replace(self, struck=hits.samples(), hits=hits)

    def differing(self, number: int, output: Any, batch: Batch) -> Tensor:
        """Which samples of a batch another output predicts otherwise; bool, shape (samples,)."""
        top = self.top.split(list(self.sizes))[number]
        return (ranked(scores_of(output, len(top))).cpu() != top).any(1)

    def revision(self) -> Revision:
        """Start an evaluation that has other scores for some samples."""
        return Revision(self)


class Revision:
    """An evaluation that puts other predictions in the place of those without faults."""

    def __init__(self, golden: Predictions) -> None:
        """Start from the golden predictions."""
        self.golden, self.top = golden, golden.top.clone()

    def put(self, samples: Tensor, output: Any, size: int) -> None:
        """Put in the predictions of some samples.

        Args:
            samples: numbers of the samples, int64; the first rows of the output are theirs.
            output: output of the network.
            size: number of samples in the output.
        """
        self.top[samples] = ranked(scores_of(output, size))[: len(samples)].cpu()

    def result(self) -> Predictions:
        """The predictions with these scores."""
        return replace(self.golden, top=self.top)


class ClassJudge:
    """Keeps the ranked classes of each sample, and its label."""

    metric = None

    def take(self, given: Any, done: int) -> Batch:
        """See `Judge.take`."""
        if isinstance(given, (tuple, list)) and len(given) == 2:
            labels_of(given[1], done)  # It says more of wrong labels than taking apart does.
        batch = take_apart(given)
        labels = labels_of(batch.targets, done)
        return replace(batch, targets=labels, samples=len(labels))

    def rows(self, output: Any, samples: int) -> list[Tensor]:
        """See `Judge.rows`."""
        return [scores_of(output, samples)]

    def tally(self, golden: Any = None) -> _ClassTally:
        """See `Judge.tally`."""
        return _ClassTally()


class _ClassTally:
    def __init__(self) -> None:
        self.top: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.done = self.classes = 0

    def add(self, output: Any, batch: Batch) -> None:
        """See `Tally.add`."""
        scores = scores_of(output, batch.samples)
        self.top.append(ranked(scores))
        self.classes = scores.shape[1]
        self.labels.append(labels_of(batch.targets, self.done, self.classes))
        self.done += batch.samples

    def result(self, sizes: tuple[int, ...]) -> Predictions:
        """See `Tally.result`."""
        top, labels = torch.cat(self.top).cpu(), torch.cat(self.labels).cpu()
        return Predictions(top, labels, None, self.classes, sizes)


CLASSES = ClassJudge()
"""Judges by ranked classes, without a metric."""


def predict(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    on_batch: OnBatch | None = None,
    faults: FaultSites | None = None,
    forward: Callable[[int, Batch], Any] | None = None,
    judge: Judge = CLASSES,
    golden: Any = None,
    shapes: InputShapes | None = None,
) -> Any:
    """Run a network over a data set.

    The model runs in eval mode; afterwards each of its modules has its former mode again.

    Args:
        model: by default it returns scores, shape (N, classes): a tensor, a QuantTensor, or the
            first item of a tuple or list.
        loader: batches of (inputs, labels), by default with labels as `labels_of` takes them.
        device: the device of the model.
        on_batch: called after each batch.
        faults: sites that number their samples from 0 in this pass; by default they count on.
        forward: runs the batch of a given number in place of `model`.
        judge: what is kept of the outputs; by default their ranked classes.
        golden: the result without faults, for a judge that compares with it.
        shapes: compares the batches, if given.

    Returns:
        `Predictions`, or what else the judge makes.

    Raises:
        DataError: there is no sample, or the judge cannot use the outputs or the targets.
        ShapesDifferError: `shapes` is strict, and batches differ.
    """
    tally, sizes, done = judge.tally(golden), [], 0
    # Under no_grad: inference_mode breaks some quantised layers (Xilinx/brevitas#1245).
    with in_eval_mode(model), torch.no_grad():
        for number, given in enumerate(loader):
            batch = judge.take(given, done)
            numbered: AbstractContextManager[None] = nullcontext()
            if shapes is not None:
                shapes.note(batch)
            if faults is not None:
                numbered = faults.samples(sample_numbers(faults.clock, [batch.samples], done))
            moved = batch.to(device)
            with numbered:
                if forward is None:
                    output = model(*moved.inputs, **moved.keywords)
                else:
                    output = forward(number, moved)
            tally.add(output, moved)
            sizes.append(batch.samples)
            done += batch.samples
            if on_batch is not None:
                on_batch(batch.samples)
    if done == 0:
        what = "accuracy" if judge.metric is None else judge.metric.name
        raise DataError(f"{what}: the data has no sample")
    return tally.result(tuple(sizes))


class ShapesDifferError(ValueError):
    """The inputs of the samples differ in shape from batch to batch."""


class InputShapes:
    """Compares the shapes of samples over the batches of a pass.

    Attributes:
        alike: whether the inputs of all samples so far have the same types and shapes.
    """

    def __init__(self, strict: bool = False) -> None:
        """Start a comparison; `strict` raises a `ShapesDifferError` at the first difference."""
        self.alike, self._strict = True, strict
        self._first: Any = None

    def note(self, batch: Batch) -> None:
        """Compare a batch with the first one."""
        leaves = pytree.tree_leaves([batch.inputs, batch.keywords])
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shapes = [(leaf.dtype, tuple(leaf.shape[1:])) for leaf in tensors]
        self._first = shapes if self._first is None else self._first
        self.alike &= shapes == self._first
        if self._strict and not self.alike:
            raise ShapesDifferError


def sample_numbers(clock: FaultClock, sizes: Sequence[int], done: int = 0) -> Tensor:
    """Numbers of the samples of some batches in an evaluation, int64, shape (samples,).

    Args:
        clock: clock of the model's sites; knows the other processes that share the data.
        sizes: number of samples in each batch.
        done: number of samples before them.
    """
    numbers = []
    for size in sizes:
        first = done * clock.world_size + clock.rank * size
        numbers.append(torch.arange(first, first + size))
        done += size
    return torch.cat(numbers)


def ranked(scores: Tensor) -> Tensor:
    """The best classes of each sample, the best first; see `Predictions.top`.

    A sample has no prediction if one of its scores is NaN or +inf, or all are -inf: whoever reads
    the scores can tell that something went wrong. A single -inf is a score like any other, as
    networks mask classes with it.

    >>> ranked(torch.tensor([[0.5, 2.0, 2.0], [0.5, 2.0, float("nan")]]))
    tensor([[ 1,  2,  0],
            [-1, -1, -1]])

    Args:
        scores: real numbers, shape (samples, classes).

    Returns:
        Classes, int64, shape (samples, min(5, classes)); -1 where a sample has no prediction.
    """
    return top_classes(scores, MOST_CLASSES)


def scores_of(output: Any, samples: int) -> Tensor:
    """Take the scores out of a model's output, shape (samples, classes).

    Raises:
        DataError: the output has no scores of that shape.
    """
    scores = _first(output)
    check_dense(scores)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[0] != samples:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise DataError(
            f"accuracy: the model returned {found} for {samples} samples; expected scores of shape "
            f"({samples}, classes), alone or as the first item of a tuple"
        )
    if scores.is_complex() or scores.shape[1] == 0:
        found = "complex scores" if scores.is_complex() else "no score for a sample (0 classes)"
        raise DataError(
            f"accuracy: the model returned {found}; expected a real number for each class"
        )
    return scores


def check_dense(output: Any) -> None:
    """Refuse scores that are sparse or have no values.

    Raises:
        DataError: the scores are on the meta device, or not dense.
    """
    scores = _first(output)
    if not isinstance(scores, Tensor):
        return
    if scores.layout != torch.strided or scores.device.type == "meta":
        raise DataError(
            f"accuracy: the model returned a tensor of layout {scores.layout} on {scores.device}; "
            "expected a dense one with values"
        )


def _first(output: Any) -> Any:
    # A QuantTensor is a tuple, too, with its values in `value`.
    scores = getattr(output, "value", output)
    if isinstance(scores, (tuple, list)) and scores:
        scores = getattr(scores[0], "value", scores[0])
    return scores


def accuracy(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    on_batch: OnBatch | None = None,
) -> float:
    """Measure the share of samples with the highest score for their label, in percent.

    See `fxfault.evaluation.full.predictions.predict` for the model's outputs and the loader's
    batches.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    >>> accuracy(nn.Identity(), DataLoader(TensorDataset(scores, labels)))
    75.0

    Args:
        model: returns scores, shape (N, classes).
        loader: batches of (inputs, labels); labels are integers, shape (N,) or (N, 1).
        device: the device of the model.
        on_batch: called after each batch.

    Raises:
        DataError: there is no sample, the scores have another shape, or the labels are not
            classes.
    """
    return predict(model, loader, device, on_batch).accuracy
