"""A small convolutional network for scikit-learn's 8 x 8 digits."""

from __future__ import annotations

from torch import nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import ImageClassifier, conv_block, linear, linear_block


class QuantDigits(ImageClassifier):
    """Three 3 x 3 convolutions and two linear layers, 23,000 parameters.

    It trains in seconds, so that examples, tests and benchmarks can run a real network on real
    images anywhere. It has five activations; the first is the quantised input.

    The arguments are those of `fxfault.models.build_model`; `image_size` must be (8, 8).

    >>> import torch
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
        super().__init__(input_bit_width)
        if image_size != (8, 8):
            raise DataError(
                f"model 'quant_digits' takes images of 8 x 8, not {image_size[0]} x "
                f"{image_size[1]}; use quant_lenet (28 x 28 or 32 x 32), quant_cnv (32 x 32) or "
                f"quant_resnet20"
            )
        bits = weight_bit_width, act_bit_width
        self.features = nn.Sequential(
            *conv_block(in_channels, 16, 3, bits, padding=1),
            *conv_block(16, 32, 3, bits, padding=1),
            nn.MaxPool2d(2),
            *conv_block(32, 32, 3, bits, padding=1),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            *linear_block(32 * 2 * 2, 64, bits),
            linear(64, num_classes, bit_width=weight_bit_width, bias=True),
        )
