"""A data set of files, with its facts, whose broken files are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fxfault.data.facts import DatasetFacts
from fxfault.errors import DataError
from fxfault.models.user_factory import quote_error


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """A torchvision data set that gives plain integer labels and knows its facts.

    Args:
        inner: the torchvision data set, which transforms pictures to tensors.
        facts: number of classes and shape of the images.
        describe: names the image at an index, for the message about a broken one.
    """

    def __init__(self, inner: Any, facts: DatasetFacts, describe: Callable[[int], str]) -> None:
        self.inner = inner
        self.facts = facts
        self._describe = describe

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, shape (C, H, W), and its label."""
        try:
            image, label = self.inner[index]
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
            raise DataError(
                f"{self._describe(index)} cannot be read ({quote_error(error)}): "
                f"replace or remove it"
            ) from error
        return image, int(label)
