"""The sizes of a data set that a network is built for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetFacts:
    """The sizes that a network is built for.

    Attributes:
        num_classes: number of classes; labels run from 0 to `num_classes - 1`.
        in_channels: channels of an image.
        image_size: height and width of an image, in pixels.
    """

    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
