"""The metrics that come with the package, by their names."""

from __future__ import annotations

BUILT_IN = {
    "top1": "fxfault.metrics.classification:top1",
    "top5": "fxfault.metrics.classification:top5",
    "mean_iou": "fxfault.metrics.segmentation:MeanIoU",
    "map": "fxfault.metrics.detection:MeanAveragePrecision",
    "mae": "fxfault.metrics.regression:mae",
    "mse": "fxfault.metrics.regression:mse",
    "rmse": "fxfault.metrics.regression:RMSE",
    "relative_error": "fxfault.metrics.regression:relative_error",
    "psnr": "fxfault.metrics.images:psnr",
    "perplexity": "fxfault.metrics.language:Perplexity",
    "cosine": "fxfault.metrics.distance:cosine",
    "l2": "fxfault.metrics.distance:l2",
    "changed_decisions": "fxfault.metrics.distance:changed_decisions",
}
"""Where each metric is defined, as `package.module:name`; nothing is imported before it is used."""
