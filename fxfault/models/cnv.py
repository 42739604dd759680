"""The CNV network of FINN."""

from __future__ import annotations

from torch import nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import (
    ImageClassifier,
    conv_block,
    hard_tanh,
    linear,
    linear_block,
)

# Output channels of the 3 x 3 convolutions, and whether a 2 x 2 pooling follows.
CONVOLUTIONS = ((64, False), (64, True), (128, False), (128, True), (256, False), (256, False))
HIDDEN_FEATURES = (512, 512)


class QuantCNV(ImageClassifier):
    """A small VGG for 32 x 32 images: six convolutions, two hidden linear layers.

    The 3 x 3 convolutions have 64, 64, 128, 128, 256 and 256 channels and no padding; max pooling
    follows the second and the fourth. The linear layers have 512, 512 and `num_classes` features.
    BatchNorm and a signed, narrow-range activation follow every layer but the last. The network
    has nine activations; the first is the quantised input.

    The arguments are those of `fxfault.models.build_model`. `image_size` must be (32, 32): the
    convolutions shrink it to 1 x 1.

    >>> import torch
    >>> net = QuantCNV(num_classes=10, in_channels=3, image_size=(32, 32),
    ...                weight_bit_width=2, act_bit_width=2)
    >>> net.eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])

    Reference:
        Umuroglu et al., "FINN: A Framework for Fast, Scalable Binarized Neural Network
        Inference", FPGA 2017, section 5 (network CNV).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        weight_bit_width: int,
        act_bit_width: int,
        input_bit_width: int = 8,
    ) -> None:
        super().__init__(input_bit_width)
        if image_size != (32, 32):
            raise DataError(
                f"model 'quant_cnv' takes images of 32 x 32, not {image_size[0]} x "
                f"{image_size[1]}; resize them (data set kwargs image_size: 32) or use "
                f"quant_lenet (28 x 28) or quant_digits (8 x 8)"
            )
        bits = weight_bit_width, act_bit_width
        layers: list[nn.Module] = []
        width = in_channels
        for channels, has_pooling in CONVOLUTIONS:
            layers += conv_block(width, channels, 3, bits, activation=hard_tanh)
            if has_pooling:
                layers.append(nn.MaxPool2d(2))
            width = channels
        self.features = nn.Sequential(*layers)
        layers = []
        for features in HIDDEN_FEATURES:
            layers += linear_block(width, features, bits, activation=hard_tanh)
            width = features
        layers.append(linear(width, num_classes, bit_width=weight_bit_width, bias=True))
        self.classifier = nn.Sequential(*layers)
