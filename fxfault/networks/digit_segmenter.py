"""A small segmenter that says of each pixel to which digit it belongs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfault.models.checkpoints import load_checkpoint
from fxfault.models.quantised_layers import conv2d, conv_block, quantised_input
from fxfault.networks.digit_mosaics import CLASSES

WEIGHTS = "bundled:digit_segmenter"
_BITS = 4, 4  # of a weight and of an activation
_WIDTHS = 8, 16, 32, 32
_SHRINKS = 4  # times, by two poolings


def trained() -> nn.Module:
    """The network with the weights that come with fxfault, in eval mode.

    `examples/train_segmenter.py` trained them.
    """
    network = DigitSegmenter()
    load_checkpoint(WEIGHTS, network)
    return network.eval()


class DigitSegmenter(nn.Module):
    """Four convolutions of 4 bits, two poolings, and a score of each class for each pixel.

    The last layer gives the scores of 4 x 4 pixels at each place, which a pixel shuffle puts where
    they belong. The network has five activations; the first is the quantised input.

    >>> DigitSegmenter().eval()(torch.zeros(2, 1, 48, 48)).shape
    torch.Size([2, 11, 48, 48])
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = _WIDTHS
        self.input_quant = quantised_input(8)
        self.features = nn.Sequential(
            *conv_block(1, first, 3, _BITS, padding=1),
            nn.MaxPool2d(2),
            *conv_block(first, second, 3, _BITS, padding=1),
            nn.MaxPool2d(2),
            *conv_block(second, third, 3, _BITS, padding=1),
            *conv_block(third, fourth, 3, _BITS, padding=1),
        )
        self.scores = conv2d(fourth, CLASSES * _SHRINKS**2, 1, bit_width=8)
        self.bias = nn.Parameter(torch.zeros(CLASSES, 1, 1))
        self.shuffle = nn.PixelShuffle(_SHRINKS)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, shape (N, 11, H, W), of pictures, shape (N, 1, H, W)."""
        return self.shuffle(self.scores(self.features(self.input_quant(images)))) + self.bias
