"""The process of a command: its threads, random number generators and package versions.

Importing this module imports neither torch nor brevitas.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fxfault.experiment.sections import SeedConfig

# With fewer multiply-adds in a batch, threads wait for each other longer than they work.
_SMALL_BATCH = 5e8


def let_threads_sleep() -> None:
    """Let threads sleep while they wait for each other; call it before torch is imported.

    On a machine with other work, threads that spin made a run take three times as long. The
    results are the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def fit_threads(operations: int, device: torch.device) -> None:
    """Use one thread if a batch has few operations (multiply-adds), unless the user chose a number.

    On a machine with other work, two threads made a small network 20 times slower.
    """
    import torch

    chosen = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    if device.type == "cpu" and operations < _SMALL_BATCH and not chosen:
        torch.set_num_threads(1)


def seed_generators(seed: SeedConfig) -> None:
    """Seed the generators as the section `seed` says; the faults do not depend on it."""
    import numpy as np
    import torch

    if not seed.enabled:
        return
    random.seed(seed.value)
    np.random.seed(seed.value)
    torch.manual_seed(seed.value)
    if seed.deterministic:
        # CUDA reads this when it starts; without it cuBLAS is not deterministic.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
