"""What an evaluation with a metric keeps of the outputs of a network, sample by sample.

Without a metric, an evaluation keeps ranked classes (`fxfault.evaluation.full.predictions`). Both
kinds of result have the same interface, so that runners need not know which they make.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxfault.data.batches import Batch, take_apart
from fxfault.errors import DataError, FxFaultError
from fxfault.evaluation.full.hits import Hits
from fxfault.faults.bits import same_bits
from fxfault.metrics.facts import BATCH, SAMPLE, MetricFacts
from fxfault.sites.live_values import SampleRows, equal_samples

if TYPE_CHECKING:
    from fxfault.metrics.metric import Metric


class NoRowsError(ValueError):
    """The outputs of a network are not tensors with a row for each sample."""


class Judge(Protocol):
    """Decides what an evaluation keeps of the batches and outputs of a network."""

    @property
    def metric(self) -> Metric | None:
        """The metric; None for ranked classes."""

    def take(self, given: Any, done: int) -> Batch:
        """Take a batch of a loader apart, and check it; `done` samples came before it."""

    def rows(self, output: Any, samples: int) -> list[Tensor]:
        """The tensors of an output, each with a row for each sample.

        Raises:
            DataError: the network returns something that cannot be judged.
            NoRowsError: the output can be judged, but has no rows for samples.
        """

    def tally(self, golden: Any = None) -> Tally:
        """Start an evaluation; `golden` is the result without faults, None to make it."""


class Tally(Protocol):
    """Collects the outputs of an evaluation, batch by batch."""

    def add(self, output: Any, batch: Batch) -> None:
        """Take the output for a batch, whose targets are on its device."""

    def result(self, sizes: tuple[int, ...]) -> Any:
        """The result, for batches of these sizes."""


def taken(judge: Judge, loader: Iterable[Any]) -> Iterator[Batch]:
    """Yield the batches of a loader, taken apart, with samples numbered for messages."""
    done = 0
    for given in loader:
        batch = judge.take(given, done)
        yield batch
        done += batch.samples


@dataclass(frozen=True)
class _Kept:
    """The outputs and targets of a batch."""

    leaves: list[Any]
    structure: Any
    targets: Any

    @property
    def outputs(self) -> Any:
        return pytree.tree_unflatten(self.leaves, self.structure)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a metric made of an evaluation.

    Attributes:
        metric: the metric.
        value: the metric over all data; NaN if it has no finite value.
        records: float64, a value for each sample or for each batch; None if the metric gives one
            number for all data.
        sizes: number of samples in each batch.
        struck, hits: as in `Predictions`.
        kept: outputs and targets of each batch, if they are kept.
        golden: the result without faults that a metric compared with; None if it did not.
    """

    metric: Metric
    value: float
    records: Tensor | None
    sizes: tuple[int, ...]
    struck: Tensor | None = None
    kept: list[_Kept] = field(default_factory=list)
    golden: Measured | None = None
    hits: Hits | None = None

    @property
    def facts(self) -> MetricFacts:
        """What reports say about the metric."""
        return self.metric.facts

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(self.sizes)

    @property
    def bytes(self) -> int:
        """Size of the kept outputs and targets."""
        return sum(
            leaf.numel() * leaf.element_size()
            for batch in self.kept
            for leaf in (*batch.leaves, *pytree.tree_leaves(batch.targets))
            if isinstance(leaf, Tensor)
        )

    def with_hits(self, hits: Hits) -> Measured:
        """The same result, with what was hit."""
        return replace(self, struck=hits.samples(), hits=hits)

    def differing(self, number: int, output: Any, batch: Batch) -> Tensor:
        """Which samples of a batch have another output or value than in this result; bool.

        Args:
            number: number of the batch.
            output: another output of the network for the batch.
            batch: the batch, with its targets on the device of the output.
        """
        samples = self.sizes[number]
        if self.kept:
            leaves, structure = pytree.tree_flatten(plain(output))
            kept = self.kept[number]
            differs = torch.zeros(samples, dtype=torch.bool)
            if structure != kept.structure:
                return ~differs
            for found, expected in zip(leaves, kept.leaves, strict=True):
                if isinstance(found, Tensor) and found.shape == expected.shape and found.dim():
                    differs |= ~equal_samples(found, expected, SampleRows(0, 1)).cpu()
                elif not same_bits(found, expected):
                    differs[:] = True
            return differs
        assert self.records is not None
        outputs, targets = plain(output), batch.targets
        if self.golden is not None:
            targets = self.golden.kept[number].outputs
        found = self.metric.records(outputs, targets, samples)
        expected = self.records.split(1 if self.facts.each == BATCH else list(self.sizes))[number]
        return ((found != expected) & ~(found.isnan() & expected.isnan())).expand(samples)

    def revision(self) -> Revision:
        """Start an evaluation that has other outputs for some samples."""
        return Revision(self)


class MetricJudge:
    """Measures outputs by a metric.

    >>> from fxfault.metrics import make_metric
    >>> metric = make_metric("torch.nn.functional:l1_loss", {"reduction": "none"})
    >>> judge = MetricJudge(metric)
    >>> tally = judge.tally()
    >>> batch = judge.take((torch.zeros(2, 3), torch.tensor([1.0, 2.0])), 0)
    >>> tally.add(torch.tensor([1.0, 4.0]), batch)
    >>> golden = tally.result((2,))
    >>> golden.value, golden.records.tolist()
    (1.0, [0.0, 2.0])
    """

    def __init__(self, metric: Metric, keeps: bool = False, forward: Any = None) -> None:
        """Take a metric.

        Args:
            metric: the metric.
            keeps: whether a result without faults keeps all outputs and targets.
            forward: the forward of the network, whose parameters tell inputs from targets.
        """
        self.metric, self.keeps, self.forward = metric, keeps, forward

    def take(self, given: Any, done: int) -> Batch:
        """See `Judge.take`."""
        return take_apart(given, forward=self.forward)

    def rows(self, output: Any, samples: int) -> list[Tensor]:
        """See `Judge.rows`."""
        leaves = pytree.tree_leaves(plain(output))
        if not leaves or not all(_has_rows(leaf, samples) for leaf in leaves):
            raise NoRowsError
        return leaves

    def tally(self, golden: Measured | None = None) -> Tally:
        """See `Judge.tally`."""
        return _MetricTally(self, golden)


def _has_rows(leaf: Any, samples: int) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.layout == torch.strided
        and leaf.device.type != "meta"
        and leaf.dim() > 0
        and len(leaf) == samples
    )


def plain(output: Any) -> Any:
    """An output with the values of its QuantTensors in their place."""
    if hasattr(output, "value") and hasattr(output, "zero_point"):
        return output.value
    if type(output) in (tuple, list):
        return type(output)(map(plain, output))
    if type(output) is dict:
        return {key: plain(item) for key, item in output.items()}
    return output


class _MetricTally:
    def __init__(self, judge: MetricJudge, golden: Measured | None) -> None:
        self.metric, self.golden = judge.metric, golden
        if golden is None:
            self.keeps = judge.keeps or self.metric.needs_golden
        else:  # Only of outputs can one tell what one number for all data is made of.
            self.keeps = judge.keeps and self.metric.collects
        self.kept: list[_Kept] = []
        self.records: list[Tensor] = []
        self.collected = self.metric.collected() if self.metric.collects else None

    def add(self, output: Any, batch: Batch) -> None:
        """See `Tally.add`."""
        outputs, number = plain(output), len(self.records)
        if self.keeps:
            self.kept.append(_keep(outputs, batch.targets))
        targets = self._targets(outputs, batch, number)
        if self.collected is not None:
            self.collected.add(outputs, targets)
        if self.metric.has_records:
            found = self.metric.records(outputs, targets, batch.samples)
            if self.golden is None:
                self._check(found, outputs, targets, batch, number)
            self.records.append(found)

    def _targets(self, outputs: Any, batch: Batch, number: int) -> Any:
        if not self.metric.needs_golden:
            return batch.targets
        return outputs if self.golden is None else self.golden.kept[number].outputs

    def _check(self, found: Tensor, outputs: Any, targets: Any, batch: Batch, number: int) -> None:
        """Refuse a metric that fails without faults.

        Raises:
            DataError: a value is not finite, or is another one each time.
        """
        # A sample may have no value of its own, if the value of all data is no mean.
        if not self.metric.collects and not found.isfinite().all():
            place = int((~found.isfinite()).nonzero()[0])
            each = len(found) == batch.samples and self.metric.facts.each == SAMPLE
            done = sum(len(part) for part in self.records)
            where = f"sample {done + place}" if each else f"batch {number}"
            raise DataError(
                f"metric {self.metric.name!r}: it is {float(found[place])} for {where} without "
                "faults; expected a finite number, as faults are judged by how far they move it"
            )
        if number == 0:
            again = self.metric.records(outputs, targets, batch.samples)
            if not same_bits(found, again):
                raise DataError(
                    f"metric {self.metric.name!r}: it gives other values for the same outputs and "
                    "targets; let it draw no random numbers"
                )

    def result(self, sizes: tuple[int, ...]) -> Measured:
        """See `Tally.result`."""
        records = torch.cat(self.records) if self.records else None
        if self.collected is not None:
            value = self.collected.value()
        else:
            assert records is not None
            value = self.metric.value_of(records, sizes)
        if self.golden is None and not math.isfinite(value):
            raise DataError(
                f"metric {self.metric.name!r}: it is {value} for all data without faults; expected "
                "a finite number"
            )
        golden = self.golden if self.metric.needs_golden else None
        return Measured(self.metric, _finite(value), records, sizes, None, self.kept, golden)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _keep(outputs: Any, targets: Any) -> _Kept:
    leaves, structure = pytree.tree_flatten(outputs)
    copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return _Kept(copies, structure, targets)


class Revision:
    """An evaluation that puts other outputs in the place of those of a kept result."""

    def __init__(self, golden: Measured) -> None:
        """Start from the golden result, which keeps its outputs."""
        self.golden = golden
        self.offsets = [0, *itertools.accumulate(golden.sizes)]
        self.ends = torch.tensor(self.offsets[1:])
        self.changed: dict[int, _Kept] = {}

    def put(self, samples: Tensor, output: Any, size: int) -> None:
        """Put in the outputs of some samples.

        Args:
            samples: numbers of the samples, int64; the first rows of the output are theirs.
            output: output of the network.
            size: number of samples in the output.
        """
        leaves, structure = pytree.tree_flatten(plain(output))
        batches = torch.bucketize(samples, self.ends, right=True)
        for batch in batches.unique().tolist():
            rows = (batches == batch).nonzero()[:, 0]
            inside = samples[rows] - self.offsets[batch]
            kept = self.golden.kept[batch]
            whole = len(rows) == size == self.golden.sizes[batch]
            if whole and bool((inside == torch.arange(size)).all()):
                self.changed[batch] = _Kept(leaves, structure, kept.targets)
                continue
            if batch not in self.changed:
                copies = [leaf.clone() for leaf in kept.leaves]
                self.changed[batch] = _Kept(copies, kept.structure, kept.targets)
            targets = self.changed[batch]
            if structure != targets.structure or not all(map(_fit, targets.leaves, leaves)):
                raise FxFaultError(
                    "the network returns outputs of other shapes under faults; evaluate it with "
                    "full runs (--no-incremental)"
                )
            for to, source in zip(targets.leaves, leaves, strict=True):
                to[inside.to(to.device)] = source[rows.to(source.device)]

    def result(self) -> Measured:
        """The result with these outputs."""
        golden, metric = self.golden, self.golden.metric
        kept = [self.changed.get(number, batch) for number, batch in enumerate(golden.kept)]
        records, value = golden.records, golden.value
        if records is not None:
            parts = list(records.split(1 if golden.facts.each == BATCH else list(golden.sizes)))
            for number, batch in self.changed.items():
                targets = self._targets(number)
                parts[number] = metric.records(batch.outputs, targets, golden.sizes[number])
            records = torch.cat(parts)
            value = _finite(metric.value_of(records, golden.sizes))
        if metric.collects:
            value = golden.value
        if metric.collects and self.changed:
            collected = metric.collected()
            for number, batch in enumerate(kept):
                collected.add(batch.outputs, self._targets(number))
            value = _finite(collected.value())
        against = golden if metric.needs_golden else None
        return replace(golden, value=value, records=records, kept=kept, golden=against)

    def _targets(self, number: int) -> Any:
        kept = self.golden.kept[number]
        return kept.outputs if self.golden.metric.needs_golden else kept.targets


def _fit(to: Any, source: Any) -> bool:
    return (
        isinstance(source, Tensor) and to.dtype == source.dtype and to.shape[1:] == source.shape[1:]
    )
