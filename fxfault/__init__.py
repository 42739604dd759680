"""Fault injection into Brevitas-quantised networks, as a torch.fx graph pass.

>>> import fxfault
>>> from brevitas.nn import QuantReLU
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
>>> faulty = fxfault.transform(model, {"enabled": True, "probability": 5.0, "seed": 0})

Names are imported when they are first used, so that `import fxfault` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfault.captured import CapturedForward, capture
    from fxfault.config import FaultInjectionConfig
    from fxfault.errors import (
        ConfigError,
        DataError,
        FreezeError,
        FxFaultError,
        SiteError,
        TrainingError,
        TransformError,
    )
    from fxfault.fault_models import (
        BitFlipStrategy,
        BitMaskModel,
        BitModel,
        BurstStrategy,
        FaultModel,
        FullFlipStrategy,
        InjectionStrategy,
        LSBFlipStrategy,
        MSBFlipStrategy,
        RandomStrategy,
        StuckAt0Strategy,
        StuckAt1Strategy,
        fault_model_names,
        get_fault_model,
        get_strategy,
        register_fault_model,
    )
    from fxfault.passes.check import Check, check
    from fxfault.passes.compilation import compile
    from fxfault.passes.freeze import freeze, thaw
    from fxfault.passes.injector import FaultInjector
    from fxfault.passes.inspection import inspect
    from fxfault.passes.segments import split_at_sites
    from fxfault.passes.transform import strip, transform
    from fxfault.statistics import FaultStatistics

_HOMES = {
    "fxfault.config": ("FaultInjectionConfig",),
    "fxfault.errors": (
        "ConfigError",
        "DataError",
        "FreezeError",
        "FxFaultError",
        "SiteError",
        "TrainingError",
        "TransformError",
    ),
    "fxfault.captured": ("CapturedForward", "capture"),
    "fxfault.fault_models": (
        "BitFlipStrategy",
        "BitMaskModel",
        "BitModel",
        "BurstStrategy",
        "FaultModel",
        "FullFlipStrategy",
        "InjectionStrategy",
        "LSBFlipStrategy",
        "MSBFlipStrategy",
        "RandomStrategy",
        "StuckAt0Strategy",
        "StuckAt1Strategy",
        "fault_model_names",
        "get_fault_model",
        "get_strategy",
        "register_fault_model",
    ),
    "fxfault.passes.check": ("Check", "check"),
    "fxfault.passes.compilation": ("compile",),
    "fxfault.passes.freeze": ("freeze", "thaw"),
    "fxfault.passes.injector": ("FaultInjector",),
    "fxfault.passes.inspection": ("inspect",),
    "fxfault.passes.segments": ("split_at_sites",),
    "fxfault.passes.transform": ("strip", "transform"),
    "fxfault.statistics": ("FaultStatistics",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BitFlipStrategy",
    "BitMaskModel",
    "BitModel",
    "BurstStrategy",
    "CapturedForward",
    "Check",
    "ConfigError",
    "DataError",
    "FaultInjectionConfig",
    "FaultInjector",
    "FaultModel",
    "FaultStatistics",
    "FreezeError",
    "FullFlipStrategy",
    "FxFaultError",
    "InjectionStrategy",
    "LSBFlipStrategy",
    "MSBFlipStrategy",
    "RandomStrategy",
    "SiteError",
    "StuckAt0Strategy",
    "StuckAt1Strategy",
    "TrainingError",
    "TransformError",
    "capture",
    "check",
    "compile",
    "fault_model_names",
    "freeze",
    "get_fault_model",
    "get_strategy",
    "inspect",
    "register_fault_model",
    "split_at_sites",
    "strip",
    "thaw",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fxfault")
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fxfault' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
