"""What a network predicts for each sample of a data set, with and without faults.

A *runner* evaluates a transformed model again and again on the same data, under whatever faults
its sites are set to. `FullRunner` runs every sample through the whole model; what is faster
(`fxfault.evaluation.incremental.runner`) gives the same predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fxfault.errors import DataError
from fxfault.faults.layouts import Layout
from fxfault.sites.clock import FaultClock
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.sample_layouts import measure_on
from fxfault.sites.site import FaultSite
from fxfault.sites.statistics import FaultStatistics
from fxfault.strike.draws import samples_hit

OnBatch = Callable[[int], None]
"""Called with a number of samples when they are done; a pass over the data adds up to all."""

MOST_CLASSES = 5


@dataclass(frozen=True)
class Predictions:
    """What one evaluation of a data set gave, on the CPU, in the order of the data.

    >>> made = Predictions(top=torch.tensor([[2, 0], [1, 0]]), labels=torch.tensor([2, 0]))
    >>> made.correct, made.accuracy
    (1, 50.0)

    Attributes:
        top: classes by falling score, the best first, int64, shape (samples, min(5, classes)).
            Of equal scores the lower class comes first, so that column 0 is `argmax`.
        labels: the right classes, int64, shape (samples,).
        struck: whether any element of a sample was hit, bool, shape (samples,); None without
            faults. Where hardware units are broken (`hw_mask`) and a container calls the site by
            its own code, all samples count as hit.
        classes: that the model gives scores for; None where nobody noted it.
    """

    top: Tensor
    labels: Tensor
    struck: Tensor | None = None
    classes: int | None = None

    @property
    def correct(self) -> int:
        """Samples whose best class is their label."""
        return int((self.top[:, 0] == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """The share of those, in percent."""
        return 100.0 * self.correct / len(self.labels)


class Runner(Protocol):
    """Evaluates a transformed model on one set of data."""

    @property
    def model(self) -> nn.Module:
        """What `fxfault.transform` returned, frozen or not."""

    @property
    def loader(self) -> Iterable[Any]:
        """Gives the same batches of (inputs, labels) each time that it is iterated."""

    @property
    def device(self) -> torch.device | str:
        """Where the model is."""

    def golden(self, on_batch: OnBatch | None = None) -> Predictions:
        """Evaluate without faults; the result is kept until parameters change."""

    def run(self, on_batch: OnBatch | None = None) -> Predictions:
        """Evaluate under the faults that `model.faults` is set to.

        Samples are numbered from 0, and the count of the model's own forwards does not move.
        """


class FullRunner:
    """Runs every sample through the whole model.

    >>> import fxfault
    >>> from brevitas.nn import QuantReLU
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = TensorDataset(torch.eye(8), torch.arange(8))
    >>> model = fxfault.transform(
    ...     nn.Sequential(QuantReLU(bit_width=4, scaling_impl_type="const", max_val=1.0)),
    ...     {"enabled": True, "apply_during": "eval", "injection_type": "msb_flip", "seed": 1},
    ... )
    >>> runner = FullRunner(model, DataLoader(data, batch_size=4))
    >>> runner.golden().accuracy
    100.0
    >>> model.faults.set_probability(100)
    >>> made = runner.run()
    >>> made.accuracy, made.struck.tolist() == [True] * 8
    (0.0, True)
    """

    def __init__(
        self, model: nn.Module, loader: Iterable[Any], device: torch.device | str = "cpu"
    ) -> None:
        """Take a model and its data.

        Args:
            model: what `fxfault.transform` returned, on `device`.
            loader: gives the same batches of (inputs, labels) each time that it is iterated.
            device: where the model is.

        Raises:
            SiteError: the model has no fault sites.
        """
        self.model, self.loader, self.device = model, loader, device
        self.faults = faults_of(model)
        self._golden: Predictions | None = None
        self._state: list[Any] = []
        self._measured = False

    def golden(self, on_batch: OnBatch | None = None) -> Predictions:
        """See `Runner.golden`.

        Raises:
            DataError: there is no sample, or the model returns no scores.
        """
        state = state_of(self.model)
        if self._golden is None or self._state != state:
            self._measure()
            state = state_of(self.model)
            with disabled(self.faults):
                made = predict(self.model, self.loader, self.device, on_batch, self.faults)
            self._golden, self._state = made, state
        return self._golden

    def run(self, on_batch: OnBatch | None = None) -> Predictions:
        """See `Runner.run`.

        Raises:
            DataError: there is no sample, or the model returns no scores.
            SiteError: values that were hit are no codes.
        """
        if not self._measured:
            self._measure()
        sizes: list[int] = []

        def note(samples: int) -> None:
            sizes.append(samples)
            if on_batch is not None:
                on_batch(samples)

        made = predict(self.model, self.loader, self.device, note, self.faults)
        self.faults.check()
        numbers = sample_numbers(self.faults.clock, sizes)
        return replace(made, struck=samples_hit_anywhere(self.model, numbers, sizes))

    def _measure(self) -> None:
        """See which elements of each activation belong to which sample."""
        measure_on(self.faults, self.loader, self.device)
        self._measured = True


def predict(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    on_batch: OnBatch | None = None,
    faults: FaultSites | None = None,
) -> Predictions:
    """Run a network over a data set.

    The model is in eval mode meanwhile; each of its modules gets the mode back that it had. The
    scores may come as a tensor, a QuantTensor, or the first item of a tuple or list.

    Args:
        model: gives scores, shape (N, classes).
        loader: gives batches of (inputs, labels); labels as `labels_of` takes them.
        device: where the model is.
        on_batch: called after each batch.
        faults: sites that number their samples from 0 in this pass; by default they count on.

    Raises:
        DataError: there is no sample, the scores have another shape, or the labels are none.
    """
    top, labels, done = [], [], 0
    scores: Tensor | None = None
    # Under no_grad: inference_mode breaks some quantised layers (Xilinx/brevitas#1245).
    with in_eval_mode(model), torch.no_grad():
        for inputs, given in loader:
            right = labels_of(given, done)
            with _numbered(faults, done, len(right)):
                scores = scores_of(model(inputs.to(device)), len(right))
                top.append(ranked(scores))
            labels.append(labels_of(right, done, scores.shape[1]))
            done += len(right)
            if on_batch is not None:
                on_batch(len(right))
    if scores is None or done == 0:
        raise DataError("accuracy: the data has no sample")
    return Predictions(torch.cat(top).cpu(), torch.cat(labels).cpu(), classes=scores.shape[1])


def _numbered(faults: FaultSites | None, done: int, batch: int) -> Any:
    if faults is None:
        return nullcontext()
    return faults.samples(sample_numbers(faults.clock, [batch], done))


def sample_numbers(clock: FaultClock, sizes: Sequence[int], done: int = 0) -> Tensor:
    """The numbers that the samples of some batches have in an evaluation, int64.

    Args:
        clock: of the model's sites; knows of other processes that share the data.
        sizes: samples in each of the batches.
        done: samples before them.
    """
    numbers = []
    for size in sizes:
        first = done * clock.world_size + clock.rank * size
        numbers.append(torch.arange(first, first + size))
        done += size
    return torch.cat(numbers)


def ranked(scores: Tensor) -> Tensor:
    """The best classes of each sample, the best first; see `Predictions.top`.

    >>> ranked(torch.tensor([[0.5, 2.0, 2.0]]))
    tensor([[1, 2, 0]])
    """
    # Not `topk`, whose order of equal scores may follow the number of samples.
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :MOST_CLASSES]


def scores_of(output: Any, samples: int) -> Tensor:
    """The scores in what a model returned, shape (samples, classes).

    Raises:
        DataError: there are none of that shape.
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
    """Refuse scores without values that can be looked at: sparse ones, and those of no device.

    Raises:
        DataError: they are so.
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
    # A QuantTensor is a tuple too, with its values under `value`.
    scores = getattr(output, "value", output)
    if isinstance(scores, (tuple, list)) and scores:
        scores = getattr(scores[0], "value", scores[0])
    return scores


def labels_of(given: Any, first: int | None = None, classes: int | None = None) -> Tensor:
    """The labels in what a data set gave for a batch, one class for each sample.

    Labels of any other kind could be compared with predictions, too, and would count each
    prediction many times, or never.

    >>> labels_of(torch.tensor([[2], [0]], dtype=torch.uint8))
    tensor([2, 0])
    >>> labels_of(torch.tensor([2, 0, 3]), first=64, classes=3)
    Traceback (most recent call last):
    ...
    fxfault.errors.DataError: labels: got 3 for sample 66; allowed: 0 to 2, as the model gives \
scores for 3 classes

    Args:
        given: integers, shape (N,) or (N, 1).
        first: number of the first sample of the batch; None: samples are counted in the batch.
        classes: that the model gives scores for; None: not known yet.

    Returns:
        int64, shape (N,), where the labels were.

    Raises:
        DataError: they have another shape or type, or one of them is no class.
    """
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise DataError(f"labels: got a {kind} for a batch; allowed: {_LABELS}") from error
    if not (labels.dim() == 1 or (labels.dim() == 2 and labels.shape[1] == 1)):
        raise DataError(
            f"labels: got shape {tuple(labels.shape)} for a batch; allowed: {_LABELS}"
            f"{' (of one-hot or soft labels their argmax)' if labels.dim() == 2 else ''}"
        )
    labels = labels.reshape(-1)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        value = f"{labels[0].item()} ({kind}){_of_sample(0, first)}" if len(labels) else kind
        raise DataError(f"labels: got {value}; allowed: {_LABELS}")
    labels = labels.to(torch.int64)
    if classes is not None:
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise DataError(
                f"labels: got {int(labels[place])}{_of_sample(place, first)}; allowed: 0 to "
                f"{classes - 1}, as the model gives scores for {classes} classes"
            )
    return labels


_LABELS = "integers of shape (N,) or (N, 1), for each sample the number of its class"


def _of_sample(place: int, first: int | None) -> str:
    return f" for sample {place} of a batch" if first is None else f" for sample {first + place}"


def samples_hit_anywhere(
    model: nn.Module, numbers: Tensor, sizes: Sequence[int] | None = None
) -> Tensor:
    """Which samples were hit at all, judged by the settings of the sites after an evaluation.

    Where a site's faults belong to the batch, all samples of a batch that has any are hit.

    Args:
        model: that was evaluated.
        numbers: of the samples, int64, one dimension.
        sizes: samples in each of the batches; default: all are one batch.

    Returns:
        bool, one for each number.
    """
    hit = torch.zeros(len(numbers), dtype=torch.bool)
    with in_eval_mode(model):
        for site in faults_of(model):
            if not (site.armed and site.strikes and site.elements):
                continue
            lies = site.seen.arrangement
            if lies is not None and lies.why_batch is not None:
                hit |= _samples_hit_by_batch(site, numbers, sizes or [len(numbers)])
            else:
                hit |= _samples_hit_at(site, numbers, Layout(1, 1, (site.elements,)))
    return hit


def _samples_hit_by_batch(site: FaultSite, numbers: Tensor, sizes: Sequence[int]) -> Tensor:
    """`_samples_hit_at` for faults that belong to batches, each drawn as its first sample."""
    assert site.elements is not None
    hits = []
    first = 0
    for size in sizes:
        elements = site.elements  # Of the last batch; another one has as much for each sample.
        if size != sizes[-1] and elements % sizes[-1] == 0:
            elements = elements // sizes[-1] * size
        hit = _samples_hit_at(site, numbers[first : first + 1], Layout(1, 1, (elements,)))
        hits.append(hit.expand(size))
        first += size
    return torch.cat(hits)


def _samples_hit_at(site: FaultSite, numbers: Tensor, layout: Layout) -> Tensor:
    if not site.counts_calls:
        return samples_hit(site, numbers, layout)
    if site.setting.hw_units is not None:
        return torch.ones(len(numbers), dtype=torch.bool)
    hit = torch.zeros(len(numbers), dtype=torch.bool)
    for call in range(1, site._calls[1] + 1):  # Each call of the last forward, as in `stream`.
        key = site.clock.stream(site.name if call == 1 else f"{site.name}#{call}")
        hit |= samples_hit(site, numbers, layout, key)
    return hit


def state_of(model: nn.Module) -> list[Any]:
    """What changes when a parameter or buffer is replaced, moved or written to.

    And when what a graph was traced for, or the hooks of a struck layer, are no longer the same.
    """
    modules = modules_of(model)
    tables = [t for m in modules for t in (m._parameters, m._buffers)]
    tensors = [t for table in tables for t in table.values() if t is not None]
    state = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
    hooked = [len(output.layer[0]._forward_hooks) for output in faults_of(model).outputs]
    return [*state, own_forwards(modules), hooked]


def own_forwards(modules: Iterable[nn.Module]) -> list[str]:
    """Why traced modules among some would run their own forward now, whatever the call."""
    asked: list[Any] = [m for m in modules if hasattr(type(m), "why_own_forward")]
    reasons = (module.why_own_forward() for module in asked)
    return [why for why in reasons if why is not None]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once.

    `nn.Module.modules` makes a name for each of them, which takes three times as long: a hundredth
    of a short evaluation each time.
    """
    found, seen = [model], {id(model)}
    for module in found:  # It grows meanwhile.
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


@contextmanager
def recording(faults: FaultSites, statistics: FaultStatistics | None) -> Iterator[None]:
    """Record forwards in these statistics for a while, or in none."""
    before = faults.statistics
    faults.set_statistics(statistics)
    try:
        yield
    finally:
        faults.set_statistics(before)


@contextmanager
def disabled(faults: FaultSites) -> Iterator[None]:
    """Let no site strike for a while."""
    enabled, faults.enabled = faults.enabled, False
    try:
        yield
    finally:
        faults.enabled = enabled


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; each of its modules gets the mode back that it had."""
    # One by one: a part may have been put into eval mode on purpose (frozen batch norm).
    training = [module for module in modules_of(model) if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def accuracy(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    on_batch: OnBatch | None = None,
) -> float:
    """Give the share of samples whose highest score is that of their label, in percent.

    See `fxfault.evaluation.full.predictions.predict` for what the model and the loader may give.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    >>> accuracy(nn.Identity(), DataLoader(TensorDataset(scores, labels)))
    75.0

    Args:
        model: gives scores, shape (N, classes).
        loader: gives batches of (inputs, labels); labels are integers, shape (N,) or (N, 1).
        device: where the model is.
        on_batch: called after each batch.

    Raises:
        DataError: there is no sample, the scores have another shape, or the labels are none.
    """
    return predict(model, loader, device, on_batch).accuracy


OnNote = Callable[[str], object]
"""Called with a sentence that a user should know of, such as why nothing is compiled."""
