"""Read experiment files, and make the data, network and weights that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.experiment.sections import ExperimentConfig, experiment_reference, load_experiment

__all__ = ["ExperimentConfig", "experiment_reference", "load_experiment"]

__getattr__, __dir__ = lazy_names(__name__, {"fxfault.experiment.sections": __all__})
