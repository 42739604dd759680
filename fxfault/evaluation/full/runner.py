"""Evaluate by running every sample through the whole model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from fxfault.evaluation.full.hits_by_batch import HitsByBatch
from fxfault.evaluation.full.judging import Judge, MetricJudge, taken
from fxfault.evaluation.full.model_state import disabled, state_of
from fxfault.evaluation.full.predictions import (
    CLASSES,
    InputShapes,
    OnBatch,
    predict,
    sample_numbers,
)
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.sample_layouts import measure_on

if TYPE_CHECKING:
    import torch

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

    @property
    def samples_alike(self) -> bool:
        """Whether the inputs of all samples have one shape; known after `golden`."""

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

    >>> import fxfault, torch
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
        self._shapes = InputShapes()

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
        hits = HitsByBatch(self.model)
        made = self._pass(hits.following(on_batch), golden)
        self.faults.check()
        numbers = sample_numbers(self.faults.clock, made.sizes)
        return made.with_hits(hits.close(numbers, made.sizes))

    @property
    def samples_alike(self) -> bool:
        """See `Runner.samples_alike`."""
        return self._shapes.alike

    def _pass(self, on_batch: OnBatch | None, golden: Result | None = None) -> Result:
        everything = self.model, self.loader, self.device, on_batch, self.faults
        self._shapes = InputShapes()
        return predict(*everything, judge=self.judge, golden=golden, shapes=self._shapes)

    def _measure(self) -> None:
        """See which elements of each activation belong to which sample."""
        measure_on(self.faults, taken(self.judge, self.loader), self.device)
        self._measured = True
