"""LeNet-5 with quantised weights and activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import conv2d, linear, quantised_input, relu

# Padding of the first convolution, so that 28 x 28 is left either way.
_PADDING = {(28, 28): 2, (32, 32): 0}


class QuantLeNet(nn.Module):
    """LeNet-5 for 28 x 28 or 32 x 32 images.

    5 x 5 convolutions of 6 and 16 channels, each followed by 2 x 2 max pooling, and linear
    layers of 120, 84 and `num_classes` features. As in later practice, and unlike 1998, with
    BatchNorm, ReLU and max pooling. Five activations in all, the quantised input being the
    first.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
        image_size: (28, 28), which is padded by two pixels on each side, or (32, 32).
        weight_bit_width: bits of every weight.
        act_bit_width: bits of every activation but the input.
        input_bit_width: bits of the quantised input.

    Reference:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition",
        Proceedings of the IEEE, 1998, section II.B.

    Example:
        >>> net = QuantLeNet(num_classes=10, in_channels=1, image_size=(28, 28),
        ...                  weight_bit_width=4, act_bit_width=4)
        >>> net.eval()(torch.zeros(2, 1, 28, 28)).shape
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
        if image_size not in _PADDING:
            raise DataError(
                f"model 'quant_lenet' takes images of 28 x 28 or 32 x 32, not {image_size[0]} x "
                f"{image_size[1]}; resize them (data set kwargs image_size: 28) or use "
                f"quant_digits (8 x 8)"
            )
        self.input_quant = quantised_input(input_bit_width)
        self.features = nn.Sequential(
            conv2d(in_channels, 6, 5, padding=_PADDING[image_size], bit_width=weight_bit_width),
            nn.BatchNorm2d(6),
            relu(act_bit_width),
            nn.MaxPool2d(2),
            conv2d(6, 16, 5, bit_width=weight_bit_width),
            nn.BatchNorm2d(16),
            relu(act_bit_width),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            linear(16 * 5 * 5, 120, bit_width=weight_bit_width),
            nn.BatchNorm1d(120),
            relu(act_bit_width),
            linear(120, 84, bit_width=weight_bit_width),
            nn.BatchNorm1d(84),
            relu(act_bit_width),
            linear(84, num_classes, bit_width=weight_bit_width, bias=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, num_classes), of images, shape (N, C, H, W)."""
        features = self.features(self.input_quant(images))
        scores: Tensor = self.classifier(torch.flatten(features, 1))
        return scores
