"""What releases of Brevitas name differently, or lack: the one place where tests ask for it.

Brevitas 0.13 moved its float quantisers out of `brevitas.quant.experimental`, whose old names warn
since. fxfault itself uses names that all releases from 0.12 have.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import brevitas.nn as qnn
import pytest
import torch

_MOVED = importlib.util.find_spec("brevitas.quant.float") is not None
_FOLDER = "brevitas.quant" if _MOVED else "brevitas.quant.experimental"


def _quantisers(name: str) -> Any:
    return importlib.import_module(f"{_FOLDER}.{name}")


float_base = _quantisers("float_base")
float_quant = _quantisers("float")
float_quant_fnuz = _quantisers("float_quant_fnuz")
float_quant_ocp = _quantisers("float_quant_ocp")
mx_quant_ocp = _quantisers("mx_quant_ocp")

# Brevitas has it since 0.13.
HARD_SWISH = getattr(qnn, "QuantHardSwish", None)

# The dtypes for which Brevitas gives the codes of its own tensors.
READABLE = (torch.float32, torch.float64) if _MOVED else (torch.float32,)

needs_1d_batch_norm = pytest.mark.skipif(
    not _MOVED, reason="Brevitas 0.12 takes the input of a batch norm 1d for an image, and fails"
)
needs_unsigned_floats = pytest.mark.skipif(
    not _MOVED, reason="Brevitas 0.12 refuses unsigned float quantisers"
)
