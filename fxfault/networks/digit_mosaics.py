"""Pictures of several digits of MNIST with a class for each pixel, made from `mnist_5k`."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxfault.data.mnist_5k import Mnist5kDataset
from fxfault.errors import DataError

SIDE = 48  # pixels
CLASSES = 11  # the ten digits, and 10 for the background
BACKGROUND = 10
_MOST_DIGITS = 3
_INK = 0.5  # from which value on a pixel belongs to its digit


class Mosaics(Dataset[tuple[Tensor, Tensor]]):
    """Pictures of 48 x 48 pixels with one to three digits, which may overlap at their edges.

    Picture `i` of a split depends on the split and on `i` only. The digits of the two splits are
    those of `mnist_5k`, so no digit is in both. Where digits overlap, the later one is on top.

    Args:
        split: "train" or "test".
        size: number of pictures.

    Attributes:
        images: shape (N, 1, 48, 48), float32, from 0 (paper) to 1 (ink).
        labels: shape (N, 48, 48), int64: a digit, or 10 for the background.
    """

    num_classes = CLASSES

    def __init__(self, split: str, size: int = 200) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"size is {size!r}; it must be an integer of at least 1")
        digits = Mnist5kDataset(split)
        self.images = torch.zeros(size, 1, SIDE, SIDE)
        self.labels = torch.full((size, SIDE, SIDE), BACKGROUND)
        for number in range(size):
            seed = zlib.crc32(f"{split}/{number}".encode())
            self._draw(number, digits, np.random.RandomState(seed))

    def _draw(self, number: int, digits: Mnist5kDataset, generator: np.random.RandomState) -> None:
        height, width = digits.facts.image_size
        for _ in range(generator.randint(1, _MOST_DIGITS + 1)):
            image, label = digits[generator.randint(len(digits))]
            top, left = generator.randint(SIDE - height + 1), generator.randint(SIDE - width + 1)
            place = slice(top, top + height), slice(left, left + width)
            canvas = self.images[number, 0][place]
            canvas.copy_(torch.maximum(canvas, image[0]))
            self.labels[number][place][image[0] >= _INK] = label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture, shape (1, 48, 48), and its classes, shape (48, 48)."""
        return self.images[index], self.labels[index]
