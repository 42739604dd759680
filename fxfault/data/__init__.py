"""The data sets that a configuration can name: built in, torchvision's, and the user's own.

Building a data set imports torch and torchvision; importing this package imports neither.
"""

from __future__ import annotations

from fxfault.data.catalogue import build_dataset, dataset_facts, dataset_names
from fxfault.data.facts import DatasetFacts

__all__ = ["DatasetFacts", "build_dataset", "dataset_facts", "dataset_names"]
