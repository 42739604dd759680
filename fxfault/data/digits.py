"""scikit-learn's handwritten digits: 1,797 scans of 8 x 8 pixels, inside its wheel.

The data set has no options and reads nothing from `root`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxfault.data.facts import DatasetFacts
from fxfault.data.options import read_options
from fxfault.errors import DataError

_TEST_PER_CLASS = 50


class DigitsDataset(Dataset[tuple[Tensor, int]]):
    """One split of the digits, always the same: 1,297 training images and 500 test images.

    The split is stratified: the first 50 images of each class in a fixed permutation are test
    images, the rest training images, both in scikit-learn's order. The permutation comes from
    `numpy.random.RandomState(0)`, whose stream NumPy has frozen (NEP 19); no global generator is
    touched.

    Args:
        split: "train" or "test".

    Attributes:
        images: shape (N, 1, 8, 8), float32, from 0 (paper) to 1 (ink).
        labels: shape (N,), int64, 0 to 9.

    Reference:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository, 1998.
    """

    facts = DatasetFacts(num_classes=10, in_channels=1, image_size=(8, 8))

    def __init__(self, split: str) -> None:
        pixels, labels = _load()
        chosen = _split_rows(labels, split)
        self.images = (torch.tensor(pixels, dtype=torch.float32) / 16)[chosen].unsqueeze(1)
        self.labels = torch.tensor(labels, dtype=torch.int64)[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, shape (1, 8, 8), and its label."""
        return self.images[index], int(self.labels[index])


def build(name: str, split: str, root: Path, kwargs: dict[str, Any]) -> DigitsDataset:
    """Open a split."""
    read_options(name, kwargs, {})
    return DigitsDataset(split)


def facts(name: str, root: Path, kwargs: dict[str, Any]) -> DatasetFacts:
    """Sizes of the images and number of classes."""
    read_options(name, kwargs, {})
    return DigitsDataset.facts


def _load() -> tuple[Any, Any]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"data set 'digits' needs scikit-learn ({error}): pip install \"fxfault[cli]\""
        ) from error
    digits = load_digits()
    return digits.images, digits.target


def _split_rows(labels: Any, split: str) -> Tensor:
    generator = np.random.RandomState(0)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(DigitsDataset.facts.num_classes):
        rows = np.flatnonzero(labels == label)
        is_test[generator.permutation(rows)[:_TEST_PER_CLASS]] = True
    return torch.from_numpy(np.flatnonzero(is_test if split == "test" else ~is_test))
