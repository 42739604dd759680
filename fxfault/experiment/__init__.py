"""A whole experiment file, and the data, network and weights that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.experiment.sections import (
        ExperimentConfig,
        bundled_experiments,
        experiment_reference,
        load_experiment,
    )

__all__ = [
    "ExperimentConfig",
    "bundled_experiments",
    "experiment_reference",
    "load_experiment",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.experiment.sections": [
            "ExperimentConfig",
            "bundled_experiments",
            "experiment_reference",
            "load_experiment",
        ],
    },
)
