"""Make a metric of a name: a built-in one, or a function or class of the user's own.

A function gets the outputs and the targets of a batch. It gives a value for each sample, which is
best: then faults can be judged sample by sample. Or it gives one number for the batch, which is
averaged over the batches by their sizes. A class collects batches by `update(outputs, targets)` and
gives one number for all data by `compute()`, as those of torchmetrics do. If it has a method
`per_sample(outputs, targets)`, too, this gives a value for each sample, by which faults are judged.

>>> import torch
>>> metric = make_metric("torch.nn.functional:l1_loss", {"reduction": "none"},
...                      higher_is_better=False)
>>> metric.records(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 3.0]), 2)
tensor([0.5000, 0.0000], dtype=torch.float64)
>>> metric.facts.name, metric.facts.each
('l1_loss', 'sample')
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxfault.errors import ConfigError, DataError
from fxfault.factories import find_factory
from fxfault.foreign import quoting
from fxfault.messages import OWN_TASK, got, nearest
from fxfault.metrics.built_in import BUILT_IN
from fxfault.metrics.facts import BATCH, BOTH, DATA, SAMPLE, MetricFacts


class Metric:
    """A metric that evaluations can use.

    Attributes:
        name: name for tables and messages.
        needs_golden: whether its targets are the outputs without faults.
    """

    def __init__(
        self,
        judge: Any,
        name: str,
        *,
        higher_is_better: bool = True,
        tolerance: float = 0.0,
        unit: str = "",
        needs_golden: bool = False,
    ) -> None:
        """Take a function, or an object with `update` and `compute`.

        Args:
            judge: the function or object.
            name: name for tables and messages.
            higher_is_better: whether a higher value is the better one.
            tolerance: see `MetricFacts`.
            unit: unit of the values.
            needs_golden: whether its targets are the outputs without faults.
        """
        self.name, self.needs_golden = name, needs_golden
        self._facts = MetricFacts(name, unit, higher_is_better, tolerance)
        self._each: str | None = None
        self._function: Callable[..., Any] | None = None
        self._object: Any = None
        if _collects(judge):
            self._object, self._function = judge, getattr(judge, "per_sample", None)
            self._each = DATA if self._function is None else BOTH
        else:
            self._function = judge

    @property
    def declared(self) -> MetricFacts:
        """What is known of the metric before the first batch: all but `each`."""
        return self._facts

    @property
    def facts(self) -> MetricFacts:
        """What reports say about the metric; `each` is known after the first batch."""
        assert self._each is not None, "no batch was measured yet"
        return MetricFacts(**{**self._facts.to_dict(), "each": self._each})

    @property
    def collects(self) -> bool:
        """Whether it gives one number for all data, which is no mean."""
        return self._object is not None

    @property
    def has_records(self) -> bool:
        """Whether it gives numbers for samples or batches."""
        return self._function is not None

    def records(self, outputs: Any, targets: Any, samples: int) -> Tensor:
        """Measure a batch.

        Args:
            outputs: outputs of the network for the batch.
            targets: targets of the batch.
            samples: number of samples of the batch.

        Returns:
            Float64 on the CPU, shape (samples,), or (1,) if there is one number for the batch.

        Raises:
            DataError: the function raises an error, or gives something else.
        """
        assert self._function is not None
        with _unwritten(self.name, (outputs, targets)), quoting(f"metric {self.name!r}"):
            given = self._function(outputs, targets)
        values, each = self._numbers(given, samples)
        if self._object is not None:
            if each != SAMPLE:
                raise DataError(
                    f"metric {self.name!r}: per_sample() returned one number; {_expected(samples)}"
                )
            return values
        if each != (self._each or each):
            raise DataError(
                f"metric {self.name!r}: it gives {_GIVES[self._each or each]} for one batch and "
                f"{_GIVES[each]} for another; {_expected(samples)}"
            )
        self._each = each
        return values

    def collected(self) -> Collected:
        """Start to collect batches by a metric that gives one number for all data."""
        # A copy: what was collected before, and by others, stays out.
        return Collected(self.name, copy.deepcopy(self._object))

    def value_of(self, records: Tensor, sizes: Sequence[int]) -> float:
        """The metric over all data, from what `records` gave for each batch; NaN if one is missing.

        Args:
            records: joined records of all batches, float64.
            sizes: number of samples of each batch.
        """
        numbers = records.numpy()
        if self._each != BATCH:
            return float(np.mean(numbers))
        return float(np.average(numbers, weights=np.asarray(sizes, np.float64)))

    def _numbers(self, given: Any, samples: int) -> tuple[Tensor, str]:
        values = _as_tensor(given)
        if values is None or values.is_complex():
            raise DataError(
                f"metric {self.name!r}: it returned {_kind(given)}; {_expected(samples)}"
            )
        if values.layout != torch.strided or values.device.type == "meta":
            raise DataError(
                f"metric {self.name!r}: it returned a tensor of layout {values.layout} on "
                f"{values.device}; expected a dense one with values"
            )
        if values.dim() == 0:
            return values.detach().to("cpu", torch.float64).reshape(1), BATCH
        if values.shape != (samples,):
            raise DataError(
                f"metric {self.name!r}: it returned {_kind(given)} for a batch of {samples} "
                f"samples; {_expected(samples)}"
            )
        return values.detach().to("cpu", torch.float64), SAMPLE


class Collected:
    """Collects batches, and gives one number for all of them."""

    def __init__(self, name: str, judge: Any) -> None:
        """Take the name of a metric, and an object with `update` and `compute`."""
        self.name, self._judge = name, judge

    def add(self, outputs: Any, targets: Any) -> None:
        """Collect a batch.

        Raises:
            DataError: the object raises an error.
        """
        with _unwritten(self.name, (outputs, targets)), quoting(f"metric {self.name!r}"):
            tensors = _tensors_in(outputs)
            if tensors and isinstance(self._judge, torch.nn.Module):
                # Those of torchmetrics live on a device.
                self._judge = self._judge.to(tensors[0].device)
            self._judge.update(outputs, targets)

    def value(self) -> float:
        """The number for all batches; NaN and infinities are returned as they are.

        Raises:
            DataError: the object raises an error, or gives no number.
        """
        with quoting(f"metric {self.name!r}: compute()"):
            given = self._judge.compute()
        value = _as_tensor(given)
        if value is None or value.numel() != 1 or value.is_complex():
            keys = ""
            if isinstance(given, Mapping):
                keys = f" with the keys {', '.join(map(str, given))[:100]}"
            raise DataError(
                f"metric {self.name!r}: compute() returned {_kind(given)}{keys}; expected one real "
                f"number; {OWN_TASK}"
            )
        return float(value.to(torch.float64))


_GIVES = {SAMPLE: "a value for each sample", BATCH: "one number"}


def _expected(samples: int) -> str:
    return (
        f"expected real numbers: a tensor of shape ({samples},) with a value for each sample, or "
        f"one number for the batch; {OWN_TASK}"
    )


def _collects(judge: Any) -> bool:
    return all(callable(getattr(judge, name, None)) for name in ("update", "compute"))


def _as_tensor(given: Any) -> Tensor | None:
    """Numbers as a tensor; None if they are not numbers."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, (bool, int, float, np.generic, np.ndarray)):
        try:
            return torch.as_tensor(given)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            return None
    return None


def _kind(given: Any) -> str:
    """Say what came, without its values."""
    if isinstance(given, (Tensor, np.ndarray)):
        kind = str(given.dtype).removeprefix("torch.")
        return f"a tensor of shape {tuple(given.shape)} ({kind})"
    return f"a value of type {type(given).__name__}"


def _tensors_in(values: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class _unwritten:
    """Refuse a metric that writes into what it is given, which other evaluations use, too."""

    def __init__(self, name: str, values: Any) -> None:
        self.name, self.tensors = name, _tensors_in(values)
        self.before = [tensor._version for tensor in self.tensors]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None and [tensor._version for tensor in self.tensors] != self.before:
            raise DataError(
                f"metric {self.name!r}: it writes into the outputs or targets that it is given; "
                "let it work on copies"
            )


def make_metric(
    name: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    higher_is_better: bool | None = None,
    tolerance: float | None = None,
    unit: str | None = None,
) -> Metric:
    """Make a metric.

    What is not given here is asked of the function or class: its attributes `higher_is_better`,
    `tolerance` and `unit`. By default a higher value is better, the tolerance is 0, and there is
    no unit.

    Args:
        name: name of a built-in metric, or `package.module:function` or `package.module:Class`.
        kwargs: further arguments of each call of the function, or of the class when it is made.
        higher_is_better: whether a higher value is the better one.
        tolerance: see `fxfault.metrics.facts.MetricFacts`.
        unit: unit of the values, such as `dB`.

    Raises:
        ConfigError: there is no such metric, or a value is not allowed.
        DataError: the module, function or class cannot be imported, or the class cannot be made.
    """
    found = find_factory(_reference(name), what="metric")
    short = name.rpartition(":")[2].rpartition(".")[2]
    judge: Any = functools.partial(found, **kwargs) if kwargs else found
    if isinstance(found, type):
        with quoting(f"metric {name!r}: {short}({', '.join(kwargs or {})})"):
            judge = found(**(kwargs or {}))
        if not _collects(judge) and not callable(judge):
            raise DataError(
                f"metric {name!r}: an object of the class has neither `update(outputs, targets)` "
                f"and `compute()` nor a call; {OWN_TASK}"
            )

    def of(attribute: str, default: Any) -> Any:
        for owner in (judge, found):
            value = getattr(owner, attribute, None)
            if value is not None:
                return value
        return default

    return Metric(
        judge,
        short,
        higher_is_better=_direction(
            name, of("higher_is_better", True) if higher_is_better is None else higher_is_better
        ),
        tolerance=_tolerance(name, of("tolerance", 0.0) if tolerance is None else tolerance),
        unit=str(of("unit", "") if unit is None else unit),
        needs_golden=bool(of("needs_golden", False)),
    )


def _reference(name: str) -> str:
    if ":" in name:
        return name
    if name not in BUILT_IN:
        raise ConfigError(
            f"metric.name: got {got(name)}, allowed: {', '.join(BUILT_IN)}, or your own as "
            f"package.module:function{nearest(name, BUILT_IN)}; {OWN_TASK}"
        )
    return BUILT_IN[name]


def _direction(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(
            f"metric {name!r}: higher_is_better: got {got(value)}, allowed: true or false"
        )
    return value


def _tolerance(name: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ConfigError(
            f"metric {name!r}: tolerance: got {got(value)}, allowed: a number of at least 0"
        )
    return float(value)
