"""Metrics of networks that make images: denoising, super-resolution, reconstruction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxfault.metrics.declared import declared
from fxfault.metrics.outputs import Output, matched, refusal, tensor_of
from fxfault.metrics.regression import mse


@declared(higher_is_better=True, unit="dB")
def psnr(
    outputs: Any, targets: Any, *, data_range: float | None = None, output: Output = None
) -> Tensor:
    """Peak signal-to-noise ratio of each image: 10 log10(data_range^2 / mean squared error).

    Papers publish the mean over the images, which is not the ratio of the data set's error. An
    image without any error has an infinite ratio.

    >>> images = torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])
    >>> psnr(images + 0.1, images, data_range=1.0).round(decimals=5).tolist()
    [20.0, 20.0]

    Args:
        outputs: images, shape (samples, ...), or what holds them (see
            `fxfault.metrics.outputs.tensor_of`).
        targets: the right images, of the same shape.
        data_range: the largest value that an image may have less the smallest: 1 for images from 0
            to 1, 255 for 8-bit ones. It must be given.
        output: the item of the outputs that counts.

    Returns:
        float64, shape (samples,), in dB; NaN where an output is not finite.

    Raises:
        DataError: the shapes or types are others, `data_range` is missing, or the targets span
            more than it.

    Reference:
        Huynh-Thu and Ghanbari, "Scope of validity of PSNR in image/video quality assessment",
        Electronics Letters 44, 2008.
    """
    found = tensor_of(outputs, output, metric="psnr")
    expected = matched(found, targets, metric="psnr")
    if isinstance(data_range, bool) or not isinstance(data_range, (int, float)):
        given = "no `data_range`" if data_range is None else f"`data_range` {data_range!r}"
        raise refusal("psnr", given, "a number, such as 1.0 for images from 0 to 1, 255 for 8 bits")
    if not (0 < data_range < math.inf):
        raise refusal("psnr", f"`data_range` {data_range}", "a finite number above 0")
    if expected.numel():
        low, high = (float(value) for value in expected.to(torch.float64).aminmax())
        # A little room, as normalising images rounds.
        if high - low > data_range * (1 + 1e-6):
            seen = f"targets from {low:g} to {high:g} and `data_range` {data_range:g}"
            raise refusal("psnr", seen, "a `data_range` that spans the targets")
    errors = mse(found, expected).tolist()
    return torch.tensor([_decibels(error, data_range) for error in errors], dtype=torch.float64)


def _decibels(error: float, data_range: float) -> float:
    if math.isnan(error):
        return math.nan
    if error == 0:
        return math.inf
    # Apart, as the square of a range may be larger than a float.
    return -math.inf if error == math.inf else 20 * math.log10(data_range) - 10 * math.log10(error)
