"""Words, fault models, random numbers, hits, and the loops that strike.

Arithmetic on integers and counters, without networks, layers or configurations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.faults.codes import Word
    from fxfault.faults.fault_models import (
        BitMaskModel,
        BitModel,
        FaultModel,
        fault_model_names,
        get_fault_model,
        register_fault_model,
    )

__all__ = [
    "BitMaskModel",
    "BitModel",
    "FaultModel",
    "Word",
    "fault_model_names",
    "get_fault_model",
    "register_fault_model",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.faults.codes": ["Word"],
        "fxfault.faults.fault_models": [
            "BitMaskModel",
            "BitModel",
            "FaultModel",
            "fault_model_names",
            "get_fault_model",
            "register_fault_model",
        ],
    },
)
