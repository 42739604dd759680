"""Train quantised networks, clean or under faults, from a file or in a Lightning script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.training.batch_norm import calibrate_batch_norm
    from fxfault.training.fault_aware import FaultAwareTraining
    from fxfault.training.learner import Learner, TrainingBatches
    from fxfault.training.run import train

__all__ = [
    "FaultAwareTraining",
    "Learner",
    "TrainingBatches",
    "calibrate_batch_norm",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.training.batch_norm": ["calibrate_batch_norm"],
        "fxfault.training.fault_aware": ["FaultAwareTraining"],
        "fxfault.training.learner": ["Learner", "TrainingBatches"],
        "fxfault.training.run": ["train"],
    },
)
