"""The CNV network of FINN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import conv2d, hard_tanh, linear, quantised_input

# (output channels, whether a 2 x 2 pooling follows) of the 3 x 3 convolutions.
CONVOLUTIONS = ((64, False), (64, True), (128, False), (128, True), (256, False), (256, False))
HIDDEN_FEATURES = (512, 512)


class QuantCNV(nn.Module):
    """A small VGG for 32 x 32 images: six convolutions, two hidden linear layers.

    3 x 3 convolutions without padding of 64, 64, 128, 128, 256 and 256 channels, max pooling
    after the second and the fourth, linear layers of 512, 512 and `num_classes` features.
    BatchNorm and a signed, narrow-range activation follow every layer but the last. Nine
    activations in all, the quantised input being the first.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
        image_size: must be (32, 32): the convolutions shrink it to 1 x 1.
        weight_bit_width: bits of every weight.
        act_bit_width: bits of every activation but the input.
        input_bit_width: bits of the quantised input.

    Reference:
        Umuroglu et al., "FINN: A Framework for Fast, Scalable Binarized Neural Network
        Inference", FPGA 2017, section 5 (network CNV).

    Example:
        >>> net = QuantCNV(num_classes=10, in_channels=3, image_size=(32, 32),
        ...                weight_bit_width=2, act_bit_width=2)
        >>> net.eval()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
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
        super().__init__()
        if image_size != (32, 32):
            raise DataError(
                f"model 'quant_cnv' takes images of 32 x 32, not {image_size[0]} x "
                f"{image_size[1]}; resize them (data set kwargs image_size: 32) or use "
                f"quant_lenet (28 x 28) or quant_digits (8 x 8)"
            )
        self.input_quant = quantised_input(input_bit_width)
        layers: list[nn.Module] = []
        width = in_channels
        for channels, has_pooling in CONVOLUTIONS:
            layers += [
                conv2d(width, channels, 3, bit_width=weight_bit_width),
                nn.BatchNorm2d(channels),
                hard_tanh(act_bit_width),
            ]
            if has_pooling:
                layers.append(nn.MaxPool2d(2))
            width = channels
        self.features = nn.Sequential(*layers)
        layers = []
        for features in HIDDEN_FEATURES:
            layers += [
                linear(width, features, bit_width=weight_bit_width),
                nn.BatchNorm1d(features),
                hard_tanh(act_bit_width),
            ]
            width = features
        layers.append(linear(width, num_classes, bit_width=weight_bit_width, bias=True))
        self.classifier = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, num_classes), of images, shape (N, C, 32, 32)."""
        features = self.features(self.input_quant(images))
        scores: Tensor = self.classifier(torch.flatten(features, 1))
        return scores
