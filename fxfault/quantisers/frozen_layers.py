"""Frozen layers: Brevitas layers that quantise once instead of in every forward.

A frozen layer is a new object that shares parameters, buffers and quantiser with the layer that it
was made from. Weights and biases are quantised once. An activation is a division, a rounding, a
clamp and a product with constants, which give the same bits as Brevitas's modules. Layers that
cannot be settled, and all forwards with gradients on, are computed as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from brevitas.nn import QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from brevitas.nn.mixin.parameter import QuantWeightMixin
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from torch import Tensor, nn

from fxfault.errors import FreezeError
from fxfault.quantisers.constants import Settled, SettledQuantTensor, WeightConstants
from fxfault.quantisers.quant_tensors import IntQuantTensor, plain
from fxfault.quantisers.settling import settle_activation, settle_weights

HOW_TO_THAW = (
    "a frozen model is for evaluation and does not train; train the model that fxfault.thaw gives "
    "back, and use the frozen one again afterwards: they share their parameters"
)


class FrozenLayer(nn.Module):
    """Base of the frozen layers; it comes before the layer's own class.

    Attributes:
        what: the part of the layer that is settled.
        settled_by: settles such a layer.
        source: the layer's own class.
    """

    what = ""
    settled_by: Callable[[Any], Settled]
    source: type
    _settled: Settled
    # These come from Brevitas's class.
    return_quant_tensor: bool
    inner_forward_impl: Callable[..., Any]
    bias_quant: Callable[..., Any]
    pack_output: Callable[..., Any]

    def refresh(self) -> bool:
        """Bring the constants up to date; returns whether they were out of date."""
        if self._settled.watch.unchanged():
            return False
        self.__dict__["_settled"] = self.settled_by(self)
        return True

    def train(self, mode: bool = True) -> Any:
        """Refuse to train.

        Raises:
            FreezeError: `mode` is true.
        """
        if mode:
            raise FreezeError(f"{type(self).__name__}.train(): {HOW_TO_THAW}")
        return super().train(mode)

    def _constants(self) -> Any:
        """The constants for this forward; None if it must run as before freezing."""
        if torch.is_grad_enabled() or self.__dict__.get("_export_mode"):
            return None
        # Compiled code would look only once, while it is compiled; see `fxfault.passes.refresh`.
        if not torch.compiler.is_compiling():
            # A trace is checked without gradients, whether it was recorded with them or not, and
            # goes on with the model's parameters. That for ONNX is not, and does not.
            if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():  # type: ignore[attr-defined]
                return None
            self.refresh()
        return self._settled.constants

    def extra_repr(self) -> str:
        """The layer's own representation, and what is frozen."""
        return ", ".join(filter(None, [super().extra_repr(), f"frozen={self.what}"]))


class FrozenWeights(FrozenLayer):
    """A layer that quantises its weights once."""

    what = "weights"
    settled_by = staticmethod(settle_weights)

    def quant_weight(self, quant_input: Any = None, subtensor_slice_list: Any = None) -> Any:
        """The quantised weights."""
        constants = self._constants()
        if constants is None or subtensor_slice_list is not None:
            return super().quant_weight(quant_input, subtensor_slice_list)  # type: ignore[misc]
        return self._struck("weight_quant", constants.quantised)

    def _struck(self, quantiser: str, words: Any) -> Any:
        """The words with the faults that strike them; the words themselves if there are none."""
        stand_in = self.__dict__.get(quantiser)
        return words if stand_in is None else stand_in.struck(words)


class FrozenProduct(FrozenWeights):
    """A convolution or linear layer that can compute a plain output by one call."""

    def forward(self, input: Any) -> Any:
        """Compute the product; leave it to Brevitas if the result is a QuantTensor."""
        constants = self._constants()
        if constants is None or not constants.plain_output or self.return_quant_tensor:
            return super().forward(input)  # type: ignore[misc]
        weight, bias = constants.value, constants.bias
        if "weight_quant" in self.__dict__:
            weight = plain(self._struck("weight_quant", constants.quantised))
        if "bias_quant" in self.__dict__:
            bias = plain(self.bias_quant(self.bias, input, constants.quantised))
        elif constants.bias_needs_input:
            bias = self._scaled_bias(constants, input)
        return self.inner_forward_impl(plain(input), weight, bias)

    def _scaled_bias(self, constants: WeightConstants, input: Any) -> Any:
        """The bias, quantised with the scale of the input times that of the weights."""
        kept = None if torch.compiler.is_compiling() else constants.last_bias
        if kept is not None and isinstance(input, IntQuantTensor):
            scale, version, dimensions, bias = kept
            same = input.scale is scale and scale._version == version
            if same and input.value.dim() == dimensions:
                return bias
        bias = plain(self.bias_quant(self.bias, input, constants.quantised))
        if isinstance(input, IntQuantTensor) and not torch.compiler.is_compiling():
            key = (input.scale, input.scale._version, input.value.dim())
            constants.last_bias = (*key, bias)
        return bias


class FrozenActivation(FrozenLayer):
    """An activation layer that computes its values by a few operations."""

    what = "activation"
    settled_by = staticmethod(settle_activation)

    def forward(self, input: Any) -> Any:
        """Quantise the input."""
        constants = self._constants()
        if "unpack_input" in self.__dict__ and not torch.compiler.is_compiling():
            self.__dict__["unpack_input"](input)
        x = plain(input)
        if constants is None or not isinstance(x, Tensor) or x.dtype is not constants.dtype:
            return super().forward(input)  # type: ignore[misc]
        value = constants.steps(x)
        if not self.return_quant_tensor and "pack_output" not in self.__dict__:
            return value
        kind: Any = IntQuantTensor
        signed: bool | Tensor = constants.signed
        if torch.compiler.is_compiling():
            kind, signed = SettledQuantTensor, constants.is_signed
        return self.pack_output(
            kind(
                value,
                constants.scale,
                constants.zero_point,
                constants.bit_width,
                signed,
                constants.training,
            )
        )


@functools.cache
def _class_of(kind: Any, source: Any) -> type:
    names = {"__module__": source.__module__, "__doc__": source.__doc__, "source": source}
    new = type(source.__name__, (kind, source), names)
    new.__qualname__ = source.__qualname__
    return new


def freeze_layer(layer: nn.Module, settled: Settled) -> None:
    """Turn a layer into a frozen one, in place.

    Args:
        layer: our copy of the layer (see `fxfault.passes.tracing.sharing`).
        settled: the result of `settle` for it.
    """
    kind: Any = _kind_of(layer)
    source: Any = type(layer)
    layer.__dict__["_settled"] = settled
    layer.__class__ = _class_of(kind, source)


def settle(layer: nn.Module) -> Settled | None:
    """Settle a layer in eval mode, without changing it.

    Returns:
        None if the layer is frozen already or is of no kind that can be frozen.
    """
    kind = _kind_of(layer)
    if kind is None or isinstance(layer, FrozenLayer):
        return None
    return kind.settled_by(layer)


def _kind_of(layer: nn.Module) -> type[FrozenLayer] | None:
    if isinstance(layer, QuantNonLinearActLayer):
        return FrozenActivation
    if isinstance(layer, (QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear)):
        return FrozenProduct
    return FrozenWeights if isinstance(layer, QuantWeightMixin) else None
