"""Labelled images of noise, for trying things out without data.

Options (kwargs): size (256 images), image_size (32), num_classes (10), in_channels (3) and
seed (1).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxfault.data.facts import DatasetFacts
from fxfault.data.options import read_options

_DEFAULTS = {"size": 256, "image_size": 32, "num_classes": 10, "in_channels": 3, "seed": 1}


@dataclass(eq=False)
class FakeImages(Dataset[tuple[Tensor, int]]):
    """Standard normal noise: image `i` of a split depends on the seed, the split and `i` only.

    Image `i` has the label `i % num_classes`, so the classes are balanced. No global generator is
    used.

    Attributes:
        split: "train" or "test"; their images differ.
        size: number of images.
        facts: number of classes and shape of the images.
        seed: seed of the noise.

    >>> facts = DatasetFacts(num_classes=3, in_channels=1, image_size=(4, 6))
    >>> images = FakeImages("test", size=10, facts=facts, seed=1)
    >>> images[4][0].shape, images[4][1], bool((images[4][0] == images[4][0]).all())
    (torch.Size([1, 4, 6]), 1, True)
    """

    split: str
    size: int
    facts: DatasetFacts
    seed: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, shape (C, H, W), and its label."""
        position = index + self.size if index < 0 else index
        if not 0 <= position < self.size:
            raise IndexError(f"image {index} of {self.size}")
        # Hash the seed, as torch's CPU generator keeps only the low 32 bits of one.
        seed = zlib.crc32(f"{self.seed}/{self.split}/{position}".encode())
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(self.facts.in_channels, *self.facts.image_size, generator=generator)
        return image, position % self.facts.num_classes


def build(name: str, split: str, root: Path, kwargs: dict[str, Any]) -> FakeImages:
    """Make a split."""
    options = read_options(name, kwargs, _DEFAULTS)
    return FakeImages(
        split, size=options["size"], facts=facts(name, root, kwargs), seed=options["seed"]
    )


def facts(name: str, root: Path, kwargs: dict[str, Any]) -> DatasetFacts:
    """Sizes of the images and number of classes, from the options."""
    options = read_options(name, kwargs, _DEFAULTS)
    return DatasetFacts(options["num_classes"], options["in_channels"], options["image_size"])
