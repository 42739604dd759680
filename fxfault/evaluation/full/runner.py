"""Evaluate by running every sample through the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from fxfault.evaluation.full.judging import Judge, MetricJudge, taken
from fxfault.evaluation.full.model_state import disabled, in_eval_mode, state_of
from fxfault.evaluation.full.predictions import CLASSES, OnBatch, predict, sample_numbers
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.sample_layouts import measure_on
from fxfault.sites.site import FaultSite
from fxfault.strike.draws import samples_hit

if TYPE_CHECKING:
    from fxfault.metrics.metric import Metric

Result = Any
"""`Predictions`, or with a metric `Measured`."""


class Runner(Protocol):
    """Evaluates a transformed model on one data set, again and again, under any faults."""

    @property
    def model(self) -> nn.Module:
        """What `fxfault.transform` returned, frozen or not."""

    @property
    def loader(self) -> Iterable[Any]:
        """Batches of (inputs, labels), the same in each pass."""

    @property
    def device(self) -> torch.device | str:
        """The device of the model."""

    @property
    def judge(self) -> Judge:
        """What is kept of the outputs."""

    @property
    def why_full(self) -> str | None:
        """Why a run does more than the faults make necessary; None if it does not, or always does.

        Known after `golden`.
        """

    def golden(self, on_batch: OnBatch | None = None) -> Result:
        """Evaluate without faults; the result is kept until parameters change.

        Raises:
            DataError: there is no sample, or the model returns no scores, or nothing that the
                metric can use.
        """

    def run(self, on_batch: OnBatch | None = None) -> Result:
        """Evaluate under the faults that `model.faults` is set to.

        Samples are numbered from 0, and the count of the model's own forwards does not move.

        Raises:
            DataError: as `golden`.
            FxFaultError: a repeated batch has other predictions; see
                `fxfault.evaluation.full.verification`.
            SiteError: values that were hit are not codes.
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

    why_full: str | None = None

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str = "cpu",
        metric: Metric | None = None,
        *,
        keep_outputs: bool = False,
    ) -> None:
        """Take a model and its data.

        Args:
            model: what `fxfault.transform` returned, on `device`.
            loader: batches of (inputs, labels), the same in each pass.
            device: the device of the model.
            metric: what is measured; by default the accuracy of a classifier.
            keep_outputs: whether to keep outputs, with which a metric that gives one number for
                all data can be verified.

        Raises:
            SiteError: the model has no fault sites.
        """
        self.model, self.loader, self.device = model, loader, device
        self.faults = faults_of(model)
        self.judge: Judge = CLASSES
        if metric is not None:
            self.judge = MetricJudge(metric, keep_outputs, model.forward)
        self._golden: Result | None = None
        self._state: list[Any] = []
        self._measured = False

    def golden(self, on_batch: OnBatch | None = None) -> Result:
        """See `Runner.golden`."""
        state = state_of(self.model)
        if self._golden is None or self._state != state:
            self._measure()
            state = state_of(self.model)
            with disabled(self.faults):
                made = self._pass(on_batch)
            self._golden, self._state = made, state
        return self._golden

    def run(self, on_batch: OnBatch | None = None) -> Result:
        """See `Runner.run`."""
        golden = None if self.judge.metric is None else self.golden()
        if not self._measured:
            self._measure()
        made = self._pass(on_batch, golden)
        self.faults.check()
        numbers = sample_numbers(self.faults.clock, made.sizes)
        return made.with_struck(samples_hit_anywhere(self.model, numbers, made.sizes))

    def _pass(self, on_batch: OnBatch | None, golden: Result | None = None) -> Result:
        everything = self.model, self.loader, self.device, on_batch, self.faults
        return predict(*everything, judge=self.judge, golden=golden)

    def _measure(self) -> None:
        """See which elements of each activation belong to which sample."""
        measure_on(self.faults, taken(self.judge, self.loader), self.device)
        self._measured = True


def samples_hit_anywhere(model: nn.Module, numbers: Tensor, sizes: Sequence[int]) -> Tensor:
    """Which samples any site hits; see `samples_hit_by_site`. Bool, shape (samples,)."""
    hit = torch.zeros(len(numbers), dtype=torch.bool)
    for _, by_site in samples_hit_by_site(model, numbers, sizes):
        hit |= by_site
    return hit


def samples_hit_by_site(
    model: nn.Module, numbers: Tensor, sizes: Sequence[int]
) -> Iterator[tuple[FaultSite, Tensor]]:
    """Which samples each site hits in an evaluation, as the sites are set now.

    The model must have run, so that the sites know their numbers of elements. If the faults of a
    site belong to the batch, a hit anywhere in a batch hits all of its samples.

    Args:
        model: the evaluated model.
        numbers: numbers of the samples, int64, shape (samples,).
        sizes: number of samples in each batch.

    Yields:
        Each site that strikes, and its hits: bool, shape (samples,).
    """
    with in_eval_mode(model):
        for site in faults_of(model):
            if not (site.armed and site.strikes and site.elements):
                continue
            lies = site.seen.arrangement
            if site.stored is not None:
                yield site, samples_hit(site, numbers, site.stored.layout)
            elif lies is not None and lies.why_batch is not None:
                yield site, _hit_by_batch(site, site.elements, numbers, sizes)
            else:
                yield site, _hit(site, site.elements, numbers)


def _hit_by_batch(site: FaultSite, last: int, numbers: Tensor, sizes: Sequence[int]) -> Tensor:
    """`_hit` for faults that belong to batches, each drawn with the number of its first sample.

    `last` is the number of elements in the last batch; others have as many for each sample.
    """
    hits = []
    for part in numbers.split(list(sizes)):
        elements = last
        if len(part) != sizes[-1] and last % sizes[-1] == 0:
            elements = last // sizes[-1] * len(part)
        hits.append(_hit(site, elements, part[:1]).expand(len(part)))
    return torch.cat(hits)


def _hit(site: FaultSite, elements: int, numbers: Tensor) -> Tensor:
    layout = Layout(1, 1, (elements,))
    if not site.counts_calls:
        return samples_hit(site, numbers, layout)
    if site.setting.hw_units is not None:
        return torch.ones(len(numbers), dtype=torch.bool)
    hit = torch.zeros(len(numbers), dtype=torch.bool)
    for call in range(1, site._calls[1] + 1):  # Each call of the last forward, as in `stream`.
        key = site.clock.stream(site.name if call == 1 else f"{site.name}#{call}")
        hit |= samples_hit(site, numbers, layout, key, call)
    return hit
