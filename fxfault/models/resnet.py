"""ResNet-20 for CIFAR, with residual sums of integer codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfault.errors import DataError
from fxfault.models.quantised_layers import conv2d, conv_block, linear, quantised_input, relu

WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 3
SMALLEST_SIDE = 8  # pixels


class QuantBasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a residual sum.

    Both operands of the sum pass through the *same* quantiser, so they share one scale and
    their integer codes can be added, as in an accelerator and as Brevitas requires of two
    QuantTensors in eval mode. The quantiser is unsigned because its inputs are: a signed one would
    spend one of few bits on a sign. A forward calls it twice, which makes two fault sites.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: stride of the first convolution; 2 halves the height and the width.
        weight_bit_width: bits of every weight.
        act_bit_width: bits of every activation.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        weight_bit_width: int,
        act_bit_width: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv2d(
            in_channels, channels, 3, stride=stride, padding=1, bit_width=weight_bit_width
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = relu(act_bit_width)
        self.conv2 = conv2d(channels, channels, 3, padding=1, bit_width=weight_bit_width)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                conv2d(in_channels, channels, 1, stride=stride, bit_width=weight_bit_width),
                nn.BatchNorm2d(channels),
            )
        self.sum_quant = relu(act_bit_width)
        self.act2 = relu(act_bit_width)

    def forward(self, features: Tensor) -> Tensor:
        """Features as a QuantTensor, shape (N, channels, H / stride, W / stride)."""
        branch = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(features)))))
        return self.act2(self.sum_quant(branch) + self.sum_quant(self.shortcut(features)))


class QuantResNet20(nn.Module):
    """ResNet-20 for 32 x 32 images: three stages of three blocks, 16, 32 and 64 channels wide.

    If a block changes the shape, its shortcut is a 1 x 1 convolution (option B of the paper, which
    pads with zeros in its CIFAR networks, option A). The pooled features are quantised again before
    the last layer. The network has 39 activations, in execution order: the input, the stem, four
    in each block, and the pooled features.

    The arguments are those of `fxfault.models.build_model`. `image_size` must be at least
    (8, 8); the network was designed for (32, 32).

    >>> net = QuantResNet20(num_classes=10, in_channels=3, image_size=(32, 32),
    ...                     weight_bit_width=4, act_bit_width=4)
    >>> net.eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016
        (arXiv:1512.03385), section 4.2.
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
        if min(image_size) < SMALLEST_SIDE:
            raise DataError(
                f"model 'quant_resnet20' takes images of at least {SMALLEST_SIDE} x "
                f"{SMALLEST_SIDE}, not {image_size[0]} x {image_size[1]}; resize them "
                f"(data set kwargs image_size: 32)"
            )
        self.input_quant = quantised_input(input_bit_width)
        bits = weight_bit_width, act_bit_width
        self.stem = nn.Sequential(*conv_block(in_channels, WIDTHS[0], 3, bits, padding=1))
        blocks: list[nn.Module] = []
        width = WIDTHS[0]
        for channels in WIDTHS:
            for index in range(BLOCKS_PER_STAGE):
                stride = 2 if index == 0 and channels != WIDTHS[0] else 1
                blocks.append(
                    QuantBasicBlock(
                        width,
                        channels,
                        stride=stride,
                        weight_bit_width=weight_bit_width,
                        act_bit_width=act_bit_width,
                    )
                )
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pool_quant = relu(act_bit_width)
        self.classifier = linear(width, num_classes, bit_width=weight_bit_width, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, num_classes), of images, shape (N, C, H, W)."""
        features = self.blocks(self.stem(self.input_quant(images)))
        pooled = self.pool_quant(self.pool(features))
        return self.classifier(torch.flatten(pooled, 1))
