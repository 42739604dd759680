"""A network and data that are objects of this process, in place of those that a study names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxfault.errors import DataError
from fxfault.experiment.parts import Batches
from fxfault.experiment.sections import ExperimentConfig

if TYPE_CHECKING:
    from torch import nn

    from fxfault.metrics.metric import Metric

# What the names of objects start with in the study of a store.
OBJECT = "object:"


@dataclass(frozen=True)
class Given:
    """Objects of this process, which no other process can have.

    Attributes:
        model: the network, in eval mode and on the device of the study.
        batches: the batches of the data.
        metric: what is measured; None for the accuracy of a classifier.
    """

    model: nn.Module
    batches: Batches
    metric: Metric | None


def refuse_objects(experiment: ExperimentConfig) -> None:
    """Refuse a study of objects that another process had.

    Raises:
        DataError: the network of the study was an object.
    """
    name = None if experiment.model is None else experiment.model.name
    if name is not None and name.startswith(OBJECT):
        raise DataError(
            f"model {name!r}: the network was an object of a Python script; continue the study "
            "there, by fxfault.run_study(study, store, model=model, loader=loader)"
        )
