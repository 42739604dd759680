"""LeNet-5 with quantised weights and activations."""

from __future__ import annotations

from torch import nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import ImageClassifier, conv_block, linear, linear_block

# Padding of the first convolution by image size; its output is 28 x 28 either way.
_PADDING = {(28, 28): 2, (32, 32): 0}


class QuantLeNet(ImageClassifier):
    """LeNet-5 for 28 x 28 or 32 x 32 images.

    The 5 x 5 convolutions have 6 and 16 channels, each followed by 2 x 2 max pooling. The linear
    layers have 120, 84 and `num_classes` features. Unlike the network of 1998, it has BatchNorm,
    ReLU and max pooling, as is common today. It has five activations; the first is the quantised
    input.

    The arguments are those of `fxfault.models.build_model`. `image_size` must be (28, 28), which is
    padded by two pixels on each side, or (32, 32).

    >>> import torch
    >>> net = QuantLeNet(num_classes=10, in_channels=1, image_size=(28, 28),
    ...                  weight_bit_width=4, act_bit_width=4)
    >>> net.eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])

    Reference:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition",
        Proceedings of the IEEE, 1998, section II.B.
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
        if image_size not in _PADDING:
            raise DataError(
                f"model 'quant_lenet' takes images of 28 x 28 or 32 x 32, not {image_size[0]} x "
                f"{image_size[1]}; resize them (data set kwargs image_size: 28) or use "
                f"quant_digits (8 x 8)"
            )
        bits = weight_bit_width, act_bit_width
        self.features = nn.Sequential(
            *conv_block(in_channels, 6, 5, bits, padding=_PADDING[image_size]),
            nn.MaxPool2d(2),
            *conv_block(6, 16, 5, bits),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            *linear_block(16 * 5 * 5, 120, bits),
            *linear_block(120, 84, bits),
            linear(84, num_classes, bit_width=weight_bit_width, bias=True),
        )
