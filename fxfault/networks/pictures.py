"""Crops of the colour pictures that scikit-image and scikit-learn ship, at ImageNet's size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from fxfault.errors import DataError

SIDE = 224  # pixels

# Windows of a picture: size as a share of its shorter side, and the place of the window between
# the top (left) edge, 0, and the bottom (right) edge, 1.
_TEST_WINDOWS = (
    (1.0, 0.5, 0.5),
    (0.85, 0.5, 0.5),
    (0.7, 0.5, 0.5),
    (0.7, 0.0, 0.0),
    (0.7, 0.0, 1.0),
    (0.7, 1.0, 0.0),
    (0.7, 1.0, 1.0),
    (0.55, 0.5, 0.5),
)
_CALIBRATION_WINDOWS = ((0.95, 0.25, 0.25), (0.6, 0.75, 0.75))

# Labels are ImageNet classes: what EfficientNet-Lite0 in floating point says of each test crop.
# There is a line for each picture, in the order of `_PICTURES`.
# fmt: off
_LABELS = (
    285, 285, 285, 285, 285, 285, 285, 285,
    967, 967, 967, 967, 967, 967, 967, 967,
    665, 665, 665, 665, 665, 665, 665, 665,
    698, 698, 698, 442, 978, 698, 978, 449,
    985, 985, 985, 109, 109, 985, 985, 985,
    450, 450, 450, 450, 768, 450, 560, 560,
    657, 657, 657, 540, 540, 540, 540, 657,
)
# fmt: on


class Crops(Dataset[tuple[Tensor, int]]):
    """Square crops of seven pictures, 56 for tests and 14 others to calibrate with.

    The pictures are `chelsea` (a cat), `coffee`, `astronaut`, `rocket` and the left picture of
    `stereo_motorcycle` of scikit-image, and the two of scikit-learn's `load_sample_images` (a
    Chinese temple, a flower). Each gives eight test crops. Nobody has labelled these crops: their
    labels are what EfficientNet-Lite0 in floating point predicts. So the accuracy of another
    network on them is its agreement with that one.

    Args:
        split: "test", or "train" for the crops to calibrate with, which are mirrored and have the
            label 0.
        pictures: number of pictures, 1 to 7, of which the first are taken.

    Attributes:
        images: shape (N, 3, 224, 224), float32, -1 (black) to 1.
        labels: shape (N,), int64.
    """

    num_classes = 1000

    def __init__(self, split: str, pictures: int = 7) -> None:
        if not 1 <= pictures <= len(_PICTURES):
            raise DataError(
                f"pictures is {pictures!r}; it must be an integer from 1 to {len(_PICTURES)}"
            )
        windows = _TEST_WINDOWS if split == "test" else _CALIBRATION_WINDOWS
        loaded = [load() for load in _loaders()[:pictures]]
        crops = [_crop(picture, *window) for picture in loaded for window in windows]
        self.images = torch.cat(crops)
        self.labels = torch.zeros(len(crops), dtype=torch.int64)
        if split == "test":
            self.labels = torch.tensor(_LABELS[: len(crops)])
        else:
            self.images = self.images.flip(3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The crop, shape (3, 224, 224), and its label."""
        return self.images[index], int(self.labels[index])


_PICTURES = ("chelsea", "coffee", "stereo_motorcycle", "china", "flower", "astronaut", "rocket")


def _loaders() -> list[Any]:
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise DataError(
            f"the pictures need scikit-image and scikit-learn ({error}): pip install "
            f'"fxfault[examples]"'
        ) from error
    return [
        data.chelsea,
        data.coffee,
        lambda: data.stereo_motorcycle()[0],
        lambda: load_sample_image("china.jpg"),
        lambda: load_sample_image("flower.jpg"),
        data.astronaut,
        data.rocket,
    ]


def _crop(picture: Any, share: float, down: float, right: float) -> Tensor:
    """A square window of a picture, shape (H, W, 3), uint8; as (1, 3, 224, 224)."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0).float()
    height, width = pixels.shape[2:]
    side = int(share * min(height, width))
    top, left = int(down * (height - side)), int(right * (width - side))
    window = pixels[:, :, top : top + side, left : left + side]
    scaled = interpolate(window, (SIDE, SIDE), mode="bilinear", antialias=True)
    return scaled / 127.5 - 1
