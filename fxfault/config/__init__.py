"""The configuration of faults: read from files and mappings, and checked.

Importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.config.curriculum import epoch_plan
    from fxfault.config.fault_injection import FaultInjectionConfig, config_reference

__all__ = [
    "FaultInjectionConfig",
    "config_reference",
    "epoch_plan",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.config.curriculum": ["epoch_plan"],
        "fxfault.config.fault_injection": ["FaultInjectionConfig", "config_reference"],
    },
)
