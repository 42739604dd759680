"""What reports say about a metric, in plain values: its name, its unit, and which way is better.

A store keeps these facts, so that a report needs neither torch nor the user's code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# What a metric gives a number for.
SAMPLE, BATCH, DATA, BOTH, CLASS = "sample", "batch", "data", "sample and data", "class"
_DIGITS = 4


@dataclass(frozen=True)
class MetricFacts:
    """The facts about a metric.

    >>> psnr = MetricFacts("psnr", "dB")
    >>> psnr.shown(31.2345), psnr.loss(golden=31.5, value=30.0)
    ('31.23 dB', 1.5)
    >>> error = MetricFacts("error", higher_is_better=False)
    >>> error.shown(0.012345), error.loss(golden=0.25, value=0.5)
    ('0.01235', 0.25)

    Attributes:
        name: name for tables and figures.
        unit: unit of the values; empty if they have none.
        higher_is_better: whether a higher value is the better one.
        tolerance: by how much faults may move the value of a sample before that counts as silent
            data corruption (SDC), in the unit.
        each: what the metric gives a number for: each `sample`, each `batch`, all `data`, or each
            `sample and data`, where the number for all data is no mean of the samples. The built-in
            accuracy looks at the `class` of each sample.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    tolerance: float = 0.0
    each: str = SAMPLE

    @property
    def is_accuracy(self) -> bool:
        """Whether this is the built-in accuracy, which counts samples."""
        return self.each == CLASS

    @property
    def has_sdc(self) -> bool:
        """Whether SDCs are counted: only what is known of each sample tells which changed."""
        return self.each in (SAMPLE, BOTH, CLASS)

    @property
    def title(self) -> str:
        """The name at the start of a line.

        >>> ACCURACY.title, MetricFacts("mIoU").title
        ('Accuracy', 'mIoU')
        """
        return "Accuracy" if self.is_accuracy else self.name

    @property
    def column(self) -> str:
        """A name for the column of a file; never that of another column of a report.

        >>> ACCURACY.column, MetricFacts("my psnr").column, MetricFacts("sdc").column
        ('accuracy', 'my_psnr', 'metric_sdc')
        """
        plain = re.sub(r"\W", "_", self.name)
        if self.is_accuracy or plain not in _TAKEN:
            return plain
        return f"metric_{plain}"

    @property
    def in_unit(self) -> str:
        """The unit in brackets, for a head or an axis; empty if there is none.

        >>> ACCURACY.in_unit, MetricFacts("psnr", "dB").in_unit, MetricFacts("loss").in_unit
        (' (%)', ' (dB)', '')
        """
        return f" ({self.unit})" if self.unit else ""

    @property
    def in_points(self) -> str:
        """The unit of a difference in brackets: points if the values are percentages."""
        return " (percentage points)" if self.unit == "%" else self.in_unit

    @property
    def difference_unit(self) -> str:
        """The unit after a difference: points if the values are percentages; empty without one."""
        return " points" if self.unit == "%" else f" {self.unit}" if self.unit else ""

    def loss(self, golden: Any, value: Any) -> Any:
        """How much worse a value is than the golden one, in the unit; negative if it is better."""
        return golden - value if self.higher_is_better else value - golden

    def number(self, value: float) -> str:
        """Write a value without its unit: percentages with two decimals, others in four digits.

        >>> ACCURACY.number(81.0), MetricFacts("loss").number(-1234567.0)
        ('81.00', '-1.235e+06')
        """
        if math.isnan(value):
            return "-"
        if self.unit == "%":
            return f"{round(float(value), 2) + 0.0:.2f}"
        return f"{float(value) + 0.0:.{_DIGITS}g}"

    def shown(self, value: float) -> str:
        """Write a value with its unit."""
        if math.isnan(value) or not self.unit:
            return self.number(value)
        return f"{self.number(value)}{'' if self.unit == '%' else ' '}{self.unit}"

    def signed(self, value: float) -> str:
        """Write a difference with its sign and without its unit.

        >>> ACCURACY.signed(5.142), MetricFacts("loss").signed(-0.5)
        ('+5.14', '-0.5')
        """
        text = self.number(value)
        return text if text.startswith("-") else f"+{text}"

    def with_interval(self, value: float, low: float, high: float) -> str:
        """Write a value with its interval, if it has one, and without its unit.

        >>> ACCURACY.with_interval(83.214, 82.0, 84.4)
        '83.21 [82.00, 84.40]'
        """
        if math.isnan(low) or math.isnan(high):
            return self.number(value)
        return f"{self.number(value)} [{self.number(low)}, {self.number(high)}]"

    @property
    def sentence(self) -> str:
        """What the metric is, for the settings of a report.

        >>> MetricFacts("psnr", "dB", tolerance=0.5).sentence
        'psnr (dB), higher is better, SDC if a sample moves by more than 0.5'
        >>> MetricFacts("mAP", each=DATA).sentence
        'mAP, higher is better, one number for all data: no SDC'
        """
        better = f"{'higher' if self.higher_is_better else 'lower'} is better"
        if self.has_sdc:
            judged = f"SDC if a sample moves by more than {self.tolerance:g}"
        elif self.each == BATCH:
            judged = "one number for each batch: no SDC"
        else:
            judged = "one number for all data: no SDC"
        return f"{self.name}{self.in_unit}, {better}, {judged}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> MetricFacts:
        """Invert `to_dict`.

        Raises:
            ValueError: a value is missing or has the wrong type.
        """
        kinds = {"name": str, "unit": str, "higher_is_better": bool, "each": str}
        try:
            tolerance = content["tolerance"]
            values = {name: content[name] for name in kinds}
        except KeyError as error:
            raise ValueError(f"a metric without {error}") from error
        wrong = [name for name, kind in kinds.items() if type(values[name]) is not kind]
        sound = type(tolerance) in (int, float) and math.isfinite(tolerance) and tolerance >= 0
        if wrong or not sound or values["each"] not in (SAMPLE, BATCH, DATA, BOTH):
            raise ValueError(f"no facts about a metric: {dict(content)}")
        return cls(tolerance=float(tolerance), **values)


ACCURACY = MetricFacts("accuracy", "%", each=CLASS)
"""The built-in metric of classification: samples whose highest score is that of their label. An SDC
is another class with the highest score."""

# Columns of the reports and exports beside that of the metric.
_TAKEN = frozenset(
    "accuracy fall sdc critical_sdc due masked fault_rate top5 trials golden seconds_per_trial "
    "state checkpoint injection_type faults hits memory layers layer bit probability num_faults "
    "trial samples correct golden_correct elements struck seconds value squares loss".split()
)
