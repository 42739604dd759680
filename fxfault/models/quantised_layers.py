"""The quantised layers of the built-in networks.

Activations return QuantTensors, so that scale, zero point and bit width travel with the value;
convolutions and linear layers return plain tensors, which the BatchNorm after them needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloatMaxInit
from brevitas.quant.binary import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst
from torch import Tensor, nn

BINARY_WEIGHT = 0.1  # the scale of Brevitas's SignedBinaryWeightPerTensorConst

# Clipping limit of an unsigned quantiser by its bit width: the one with the least mean squared
# error for the positive half of a standard normal, which a BatchNorm sends into a ReLU. (With the
# default of Brevitas, the largest value seen, hardly any code of two bits is used but zero.)
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
    layer = qnn.QuantConv2d(
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
    layer = qnn.QuantLinear(in_features, out_features, bias=bias, **_weight_quantiser(bit_width))
    return _initialised(layer, bit_width)


def quantised_input(bit_width: int) -> nn.Module:
    """A signed quantiser for images; its scale is calibrated on the first batches.

    Images may have any normalisation: for the first 300 training steps the scale follows the
    99.999th percentile of the input; after that it is learned. One bit is binary: the values are
    -1 and +1 and the scale is fixed at 1.

    >>> quantised_input(1)(torch.tensor([-0.3, 0.0, 2.0])).value.tolist()
    [-1.0, 1.0, 1.0]
    """
    if bit_width == 1:
        return qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True)
    return qnn.QuantIdentity(bit_width=bit_width, return_quant_tensor=True)


def hard_tanh(bit_width: int) -> nn.Module:
    """A signed activation with a learned symmetric range, initially [-1, 1].

    The range is narrow: two bits hold -1, 0 and 1, four bits -7 to 7. One bit is binary, -1 and +1.

    >>> hard_tanh(2)(torch.tensor([-3.0, -0.2, 0.7])).int().tolist()
    [-1, 0, 1]
    """
    settings: dict[str, Any] = {"min_val": -1.0, "max_val": 1.0, "return_quant_tensor": True}
    if bit_width == 1:
        settings["act_quant"] = SignedBinaryActPerTensorConst
    else:
        settings.update(bit_width=bit_width, narrow_range=True)
    return qnn.QuantHardTanh(**settings)


def relu(bit_width: int) -> nn.Module:
    """An unsigned activation with a learned range, for values after a BatchNorm.

    One bit holds the codes 0 and 1.

    >>> relu(4)(torch.tensor([-1.0, 9.0])).int().tolist()
    [0, 15]
    """
    return qnn.QuantReLU(
        act_quant=Uint8ActPerTensorFloatMaxInit,
        bit_width=bit_width,
        max_val=BEST_LIMITS[bit_width],
        return_quant_tensor=True,
    )


class ImageClassifier(nn.Module):
    """A network that quantises its input, then applies `features` and `classifier`.

    Args:
        input_bit_width: bits of the quantised input.
    """

    features: nn.Module
    classifier: nn.Module

    def __init__(self, input_bit_width: int) -> None:
        super().__init__()
        self.input_quant = quantised_input(input_bit_width)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, num_classes), of images, shape (N, C, H, W)."""
        features = self.features(self.input_quant(images))
        return self.classifier(torch.flatten(features, 1))


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    bits: tuple[int, int],
    padding: int = 0,
    activation: Callable[[int], nn.Module] = relu,
) -> list[nn.Module]:
    """A convolution, its batch norm and an activation; `bits` of a weight and of an activation."""
    layer = conv2d(in_channels, out_channels, kernel_size, bit_width=bits[0], padding=padding)
    return [layer, nn.BatchNorm2d(out_channels), activation(bits[1])]


def linear_block(
    in_features: int,
    out_features: int,
    bits: tuple[int, int],
    activation: Callable[[int], nn.Module] = relu,
) -> list[nn.Module]:
    """A linear layer, its batch norm and an activation; `bits` as for `conv_block`."""
    layer = linear(in_features, out_features, bit_width=bits[0])
    return [layer, nn.BatchNorm1d(out_features), activation(bits[1])]


def _weight_quantiser(bit_width: int) -> dict[str, Any]:
    if bit_width == 1:
        return {"weight_quant": SignedBinaryWeightPerTensorConst}
    return {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": bit_width}


def _initialised(layer: Any, bit_width: int) -> nn.Module:
    """Draw initial weights that keep the variance of the input.

    An untrained network then gives useful values in eval mode too, in which an untrained BatchNorm
    does not help. The distribution is uniform because the largest weight sets the scale: with few
    bits, most weights of a normal distribution would become zero. Binary weights start within the
    range that their quantiser clips them to at each forward, so that the first one changes nothing.

    Reference:
        He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2.
    """
    if bit_width == 1:
        nn.init.uniform_(layer.weight, -BINARY_WEIGHT, BINARY_WEIGHT)
    else:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer
