"""What the commands set up before they work: what an experiment names, seeds, threads.

Importing this module imports neither torch nor brevitas.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from fxfault.experiment import SeedConfig
from fxfault.experiment_parts import (
    Batches,
    EvaluationData,
    check_model,
    check_sections,
    load_model,
    open_test_data,
    open_training_data,
    pick_device,
    try_model,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "Batches",
    "EvaluationData",
    "check_model",
    "check_sections",
    "fit_threads",
    "load_model",
    "open_test_data",
    "open_training_data",
    "pick_device",
    "seed_generators",
    "try_model",
]

# Below so many multiply-adds in a batch, threads wait for each other longer than they work.
SMALL_BATCH = 5e8


def seed_generators(seed: SeedConfig) -> None:
    """Do what the section `seed` asks; faults do not depend on it."""
    import numpy as np
    import torch

    if not seed.enabled:
        return
    random.seed(seed.value)
    np.random.seed(seed.value)
    torch.manual_seed(seed.value)
    if seed.deterministic:
        # Read when CUDA starts; without it cuBLAS is not deterministic.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def fit_threads(operations: int, device: torch.device) -> None:
    """Use one thread where a batch is little work, unless the user chose a number.

    On a machine with other work, two threads made a small network 20 times slower.

    Args:
        operations: of a batch, as `try_model` counts them.
        device: where it runs.
    """
    import torch

    chosen = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    if device.type == "cpu" and operations < SMALL_BATCH and not chosen:
        torch.set_num_threads(1)
