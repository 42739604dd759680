"""A data set of files, with its facts, whose broken files are named."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fxfault.data.facts import DatasetFacts
from fxfault.errors import DataError
from fxfault.messages import quote_error


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """A torchvision data set that gives plain integer labels and knows its facts.

    Args:
        inner: the torchvision data set, which transforms pictures to tensors.
        facts: number of classes and shape of the images.
        where: names the data set in the message about a broken image.
    """

    def __init__(self, inner: Any, facts: DatasetFacts, where: str) -> None:
        self.inner = inner
        self.facts = facts
        self.where = where

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, shape (C, H, W), and its label."""
        try:
            image, label = self.inner[index]
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
            raise DataError(
                f"{self.where}: {self._image_name(index)} cannot be read "
                f"({quote_error(error)}): replace or remove it"
            ) from error
        return image, int(label)

    def _image_name(self, index: int) -> str:
        files = getattr(self.inner, "samples", None)  # ImageFolder's (file, label) pairs
        return f"image {index}" if files is None else str(files[index][0])
