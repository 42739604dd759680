"""A torchvision data set with its sizes, which names the files that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fxfault.data.facts import DatasetFacts
from fxfault.errors import DataError
from fxfault.messages import quote_error


@dataclass(eq=False)
class LabelledImages(Dataset[tuple[Tensor, int]]):
    """A torchvision data set with plain integer labels.

    Attributes:
        inner: the torchvision data set, with a transform from pictures to tensors.
        facts: number of classes and shape of the images.
        where: name of the data set in the message about a broken image.
    """

    inner: Any
    facts: DatasetFacts
    where: str

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, shape (C, H, W), and its label."""
        try:
            image, label = self.inner[index]
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
            files = getattr(self.inner, "samples", None)  # ImageFolder's (file, label) pairs
            image_name = f"image {index}" if files is None else files[index][0]
            raise DataError(
                f"{self.where}: {image_name} cannot be read ({quote_error(error)}): replace or "
                f"remove it"
            ) from error
        return image, int(label)
