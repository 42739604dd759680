"""The constants that settled quantisers compute with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.quantisers.quant_tensors import IntQuantTensor
from fxfault.quantisers.watch import Watch


@dataclass
class Settled:
    """The constants of a frozen layer, or the reason why it has none.

    Attributes:
        constants: `WeightConstants` or `ActivationConstants`; None if the layer is not settled.
        why_not: why the layer is not settled; empty if it is.
        watch: sees when the layer has to be settled again.
    """

    constants: Any
    why_not: str
    watch: Watch


@dataclass
class WeightConstants:
    """Quantised weights, and the quantised bias if it is settled too.

    Attributes:
        quantised: the weights as a QuantTensor.
        value: the values of the weights.
        plain_output: whether the layer returns the plain product, because neither its input nor
            its output has a quantiser.
        bias: the quantised bias; None if there is none or if it needs the scale of the input.
        bias_needs_input: whether the bias needs the scale of the input.
        last_bias: the last bias that was quantised with a scale of the input, after that scale,
            its version and the number of dimensions of the input.
    """

    quantised: Any
    value: Tensor
    plain_output: bool = False
    bias: Tensor | None = None
    bias_needs_input: bool = False
    last_bias: tuple[Tensor, int, int, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class IntegerSteps:
    """Integer quantisation as a few operations that give the same bits as Brevitas.

    Brevitas computes `(clamp(round(act(x) / scale + zero_point)) - zero_point) * scale`.

    Attributes:
        scale, zero_point: one number or one per channel, of the dtype of the values.
        low, high: the lowest and the highest code.
        shifted: whether the zero point is not 0. A zero point of 0 is still added, because that
            turns -0.0 into 0.0.
        rectified: whether a ReLU comes first; a clamp before the rounding does its work.
        rounding: name of the tensor method that rounds in place.
        activation: the activation function; None if there is none or `rectified` covers it.
    """

    scale: Tensor
    zero_point: Tensor
    low: float
    high: float
    shifted: bool
    rectified: bool
    rounding: str
    activation: nn.Module | None

    def __call__(self, x: Tensor) -> Tensor:
        """The quantised values; a new tensor."""
        if self.activation is not None:
            x = self.activation(x)
        y = x / self.scale
        if self.rectified:
            y.clamp_(self.low, self.high)
        y.add_(self.zero_point)
        getattr(y, self.rounding)()
        if not self.rectified:
            y = self._clamp(y)
        if self.shifted:
            y.sub_(self.zero_point)
        return y.mul_(self.scale)

    def _clamp(self, y: Tensor) -> Tensor:
        if self.low < 0 < self.high:
            return y.clamp_(self.low, self.high)
        # If a bound is zero, `clamp_` may give a zero of either sign; Brevitas keeps the sign.
        y = torch.where(y > self.high, self.high, y)
        return torch.where(y < self.low, self.low, y)


@dataclass(frozen=True)
class BinarySteps:
    """Binary quantisation: the code is +1 for values of at least 0, and -1 for others and NaN.

    Attributes:
        scale: positive; one number or one per channel.
        minus_scale: the negated scale.
        activation: the activation function; None if there is none.
    """

    scale: Tensor
    minus_scale: Tensor
    activation: nn.Module | None

    def __call__(self, x: Tensor) -> Tensor:
        """The quantised values; a new tensor."""
        if self.activation is not None:
            x = self.activation(x)
        return torch.where(x >= 0, self.scale, self.minus_scale)


@dataclass(frozen=True)
class ActivationConstants:
    """A settled activation quantiser.

    Attributes:
        steps: computes the values.
        dtype: the dtype of the inputs that `steps` accepts.
        scale, zero_point, bit_width, signed, training: the other fields of the QuantTensor.
        is_signed: `signed` as a Python bool, which a compiler can read.
    """

    steps: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    scale: Tensor
    zero_point: Tensor
    bit_width: Tensor
    signed: Tensor
    training: Tensor
    is_signed: bool


class SettledQuantTensor(IntQuantTensor):  # type: ignore[misc]
    """The output of a frozen activation in code that is being compiled.

    Brevitas asks a QuantTensor for its signedness and mode, and compares the scales of two that
    are joined. A compiler cannot answer questions about a tensor's values. Here signedness and
    mode are Python values, and the comparisons, which could only raise errors, are left out; a run
    without a compiler makes them.
    """

    training = False

    def check_scaling_factors_same(self, other: Any) -> None:
        """Skip the comparison."""

    check_zero_points_same = check_bit_width_same = check_scaling_factors_same
