"""Fault injection into Brevitas-quantised networks, as a torch.fx graph pass.

>>> import fxfault
>>> from brevitas.nn import QuantReLU
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
>>> faulty = fxfault.transform(model, {"enabled": True, "probability": 5.0, "seed": 0})

fxfault imports each name on first use, so that `import fxfault` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.errors import (
        ConfigError,
        DataError,
        FreezeError,
        FxFaultError,
        SiteError,
        TrainingError,
        TransformError,
    )
    from fxfault.faults.fault_models import (
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
    from fxfault.passes.checking import Check, check
    from fxfault.passes.compilation import compile
    from fxfault.passes.freeze import freeze, thaw
    from fxfault.passes.injector import FaultInjector
    from fxfault.passes.inspection import inspect
    from fxfault.passes.segments import split_at_sites
    from fxfault.passes.transform import strip, transform
    from fxfault.sites.statistics import FaultStatistics

_HOMES = {
    "fxfault.config.fault_injection": ("FaultInjectionConfig",),
    "fxfault.errors": (
        "ConfigError",
        "DataError",
        "FreezeError",
        "FxFaultError",
        "SiteError",
        "TrainingError",
        "TransformError",
    ),
    "fxfault.faults.fault_models": (
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
    "fxfault.passes.checking": ("Check", "check"),
    "fxfault.passes.compilation": ("compile",),
    "fxfault.passes.freeze": ("freeze", "thaw"),
    "fxfault.passes.injector": ("FaultInjector",),
    "fxfault.passes.inspection": ("inspect",),
    "fxfault.passes.segments": ("split_at_sites",),
    "fxfault.passes.transform": ("strip", "transform"),
    "fxfault.sites.statistics": ("FaultStatistics",),
}
__all__ = [
    "BitFlipStrategy",
    "BitMaskModel",
    "BitModel",
    "BurstStrategy",
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

_lazy, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fxfault")
    return _lazy(name)
