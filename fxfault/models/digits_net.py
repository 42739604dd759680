"""A small convolutional network for scikit-learn's 8 x 8 digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import conv2d, linear, quantised_input, relu


class QuantDigits(nn.Module):
    """Three 3 x 3 convolutions and two linear layers, 23,000 parameters.

    Small enough to train in seconds, so that examples, tests and benchmarks can run a real
    network on real images anywhere. Five activations, the quantised input being the first.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
        image_size: must be (8, 8).
        weight_bit_width: bits of every weight.
        act_bit_width: bits of every activation but the input.
        input_bit_width: bits of the quantised input.

    Example:
        >>> net = QuantDigits(num_classes=10, in_channels=1, image_size=(8, 8),
        ...                   weight_bit_width=4, act_bit_width=4)
        >>> net.eval()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
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
        if image_size != (8, 8):
            raise DataError(
                f"model 'quant_digits' takes images of 8 x 8, not {image_size[0]} x "
                f"{image_size[1]}; use quant_lenet (28 x 28 or 32 x 32), quant_cnv (32 x 32) or "
                f"quant_resnet20"
            )
        self.input_quant = quantised_input(input_bit_width)
        self.features = nn.Sequential(
            conv2d(in_channels, 16, 3, padding=1, bit_width=weight_bit_width),
            nn.BatchNorm2d(16),
            relu(act_bit_width),
            conv2d(16, 32, 3, padding=1, bit_width=weight_bit_width),
            nn.BatchNorm2d(32),
            relu(act_bit_width),
            nn.MaxPool2d(2),
            conv2d(32, 32, 3, padding=1, bit_width=weight_bit_width),
            nn.BatchNorm2d(32),
            relu(act_bit_width),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            linear(32 * 2 * 2, 64, bit_width=weight_bit_width),
            nn.BatchNorm1d(64),
            relu(act_bit_width),
            linear(64, num_classes, bit_width=weight_bit_width, bias=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, num_classes), of images, shape (N, C, 8, 8)."""
        features = self.features(self.input_quant(images))
        scores: Tensor = self.classifier(torch.flatten(features, 1))
        return scores
