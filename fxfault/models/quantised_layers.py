"""The quantised layers that the built-in networks are made of.

The one place of this package that imports brevitas. Activations return QuantTensors, so that
scale, zero point and bit width travel with the value; convolutions and linear layers return
plain tensors, which the BatchNorm after them needs.
"""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloatMaxInit
from brevitas.quant.binary import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst
from torch import nn

BINARY_WEIGHT = 0.1  # the scale of Brevitas's SignedBinaryWeightPerTensorConst

# Where an unsigned quantiser of so many bits should clip: the limit that makes the mean squared
# error least for the positive half of a standard normal, which is what a BatchNorm sends into a
# ReLU. (The default of Brevitas, the largest value seen, leaves two bits with hardly any code
# but zero.)
BEST_LIMITS = {1: 1.22, 2: 1.95, 3: 2.47, 4: 2.90, 5: 3.27, 6: 3.61, 7: 3.92, 8: 4.21}


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    bit_width: int,
    stride: int = 1,
    padding: int = 0,
) -> nn.Module:
    """A convolution with quantised weights and no bias (a BatchNorm follows it)."""
    layer: nn.Module = qnn.QuantConv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        bias=False,
        **_weight_quantiser(bit_width),
    )
    return _initialised(layer, bit_width)


def linear(in_features: int, out_features: int, *, bit_width: int, bias: bool = False) -> nn.Module:
    """A linear layer with quantised weights; its bias, if any, stays in floating point."""
    layer: nn.Module = qnn.QuantLinear(
        in_features, out_features, bias=bias, **_weight_quantiser(bit_width)
    )
    return _initialised(layer, bit_width)


def quantised_input(bit_width: int) -> nn.Module:
    """The signed quantiser of the images, whose scale is calibrated on the first batches.

    Images come in any normalisation: for the first 300 training steps the scale follows the
    99.999th percentile of what is seen, and is learned from there. One bit is binary: the
    values are -1 and +1 and the scale is fixed at 1.

    Example:
        >>> import torch
        >>> quantised_input(1)(torch.tensor([-0.3, 0.0, 2.0])).value.tolist()
        [-1.0, 1.0, 1.0]
    """
    if bit_width == 1:
        binary: nn.Module = qnn.QuantIdentity(
            act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True
        )
        return binary
    layer: nn.Module = qnn.QuantIdentity(bit_width=bit_width, return_quant_tensor=True)
    return layer


def hard_tanh(bit_width: int) -> nn.Module:
    """A signed activation with a symmetric range that starts as [-1, 1] and is learned.

    Narrow range: two bits hold -1, 0 and 1, four bits -7 to 7. One bit is binary, -1 and +1.

    Example:
        >>> import torch
        >>> hard_tanh(2)(torch.tensor([-3.0, -0.2, 0.7])).int().tolist()
        [-1, 0, 1]
    """
    settings: dict[str, Any] = {"min_val": -1.0, "max_val": 1.0, "return_quant_tensor": True}
    if bit_width == 1:
        settings["act_quant"] = SignedBinaryActPerTensorConst
    else:
        settings.update(bit_width=bit_width, narrow_range=True)
    layer: nn.Module = qnn.QuantHardTanh(**settings)
    return layer


def relu(bit_width: int) -> nn.Module:
    """An unsigned activation with a learned range, for values after a BatchNorm.

    One bit holds the codes 0 and 1.

    Example:
        >>> import torch
        >>> relu(4)(torch.tensor([-1.0, 9.0])).int().tolist()
        [0, 15]
    """
    layer: nn.Module = qnn.QuantReLU(
        act_quant=Uint8ActPerTensorFloatMaxInit,
        bit_width=bit_width,
        max_val=BEST_LIMITS[bit_width],
        return_quant_tensor=True,
    )
    return layer


def _weight_quantiser(bit_width: int) -> dict[str, Any]:
    if bit_width == 1:
        return {"weight_quant": SignedBinaryWeightPerTensorConst}
    return {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": bit_width}


def _initialised(layer: nn.Module, bit_width: int) -> nn.Module:
    """Start with weights that keep the variance of what comes in.

    So that values reach the last layer in eval mode, too, where a BatchNorm that was not trained
    does not help. Uniform, because the largest weight sets the scale: few bits would round most
    weights of a normal distribution to zero. Binary weights start within the range that their
    quantiser clips them to, in place, at each forward: the first one then changes nothing.

    Reference:
        He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2.
    """
    weight: nn.Parameter = layer.weight  # type: ignore[assignment]
    if bit_width == 1:
        nn.init.uniform_(weight, -BINARY_WEIGHT, BINARY_WEIGHT)
    else:
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")
    return layer
