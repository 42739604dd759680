"""Fault injection into Brevitas-quantised networks, as a torch.fx graph pass.

`evaluate`, `sweep`, `rank_layers` and `run_study` measure what faults do to a network, in one call.
`transform` makes a network that faults can strike, for a loop of your own:

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
    from fxfault import campaign as campaign
    from fxfault import config as config
    from fxfault import data as data
    from fxfault import evaluation as evaluation
    from fxfault import experiment as experiment
    from fxfault import functional as functional
    from fxfault import lightning as lightning
    from fxfault import metrics as metrics
    from fxfault import models as models
    from fxfault import passes as passes
    from fxfault import training as training
    from fxfault.config.fault_injection import FaultInjectionConfig as FaultInjectionConfig
    from fxfault.errors import ConfigError as ConfigError
    from fxfault.errors import DataError as DataError
    from fxfault.errors import FreezeError as FreezeError
    from fxfault.errors import FxFaultError as FxFaultError
    from fxfault.errors import SiteError as SiteError
    from fxfault.errors import TrainingError as TrainingError
    from fxfault.errors import TransformError as TransformError
    from fxfault.faults.fault_models import BitFlipStrategy as BitFlipStrategy
    from fxfault.faults.fault_models import BitMaskModel as BitMaskModel
    from fxfault.faults.fault_models import BitModel as BitModel
    from fxfault.faults.fault_models import BurstStrategy as BurstStrategy
    from fxfault.faults.fault_models import FaultModel as FaultModel
    from fxfault.faults.fault_models import FullFlipStrategy as FullFlipStrategy
    from fxfault.faults.fault_models import InjectionStrategy as InjectionStrategy
    from fxfault.faults.fault_models import LSBFlipStrategy as LSBFlipStrategy
    from fxfault.faults.fault_models import MSBFlipStrategy as MSBFlipStrategy
    from fxfault.faults.fault_models import RandomStrategy as RandomStrategy
    from fxfault.faults.fault_models import StuckAt0Strategy as StuckAt0Strategy
    from fxfault.faults.fault_models import StuckAt1Strategy as StuckAt1Strategy
    from fxfault.faults.fault_models import fault_model_names as fault_model_names
    from fxfault.faults.fault_models import get_fault_model as get_fault_model
    from fxfault.faults.fault_models import get_strategy as get_strategy
    from fxfault.faults.fault_models import register_fault_model as register_fault_model
    from fxfault.passes.checking import Check as Check
    from fxfault.passes.checking import check as check
    from fxfault.passes.compilation import compile as compile
    from fxfault.passes.faulty_module import FaultyModule as FaultyModule
    from fxfault.passes.freeze import freeze as freeze
    from fxfault.passes.freeze import thaw as thaw
    from fxfault.passes.injector import FaultInjector as FaultInjector
    from fxfault.passes.inspection import inspect as inspect
    from fxfault.passes.segments import split_at_sites as split_at_sites
    from fxfault.passes.transform import strip as strip
    from fxfault.passes.transform import transform as transform
    from fxfault.results.calls.evaluating import evaluate as evaluate
    from fxfault.results.calls.evaluating import rank_layers as rank_layers
    from fxfault.results.calls.evaluating import sweep as sweep
    from fxfault.results.calls.studying import run_study as run_study
    from fxfault.results.evaluation import EvaluationResult as EvaluationResult
    from fxfault.results.evaluation import LayerRanking as LayerRanking
    from fxfault.results.evaluation import SweepResult as SweepResult
    from fxfault.results.study import StudyResult as StudyResult
    from fxfault.sites.statistics import FaultStatistics as FaultStatistics

    __version__: str

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
    "fxfault.passes.faulty_module": ("FaultyModule",),
    "fxfault.passes.freeze": ("freeze", "thaw"),
    "fxfault.passes.injector": ("FaultInjector",),
    "fxfault.passes.inspection": ("inspect",),
    "fxfault.passes.segments": ("split_at_sites",),
    "fxfault.passes.transform": ("strip", "transform"),
    "fxfault.results.calls.evaluating": ("evaluate", "rank_layers", "sweep"),
    "fxfault.results.calls.studying": ("run_study",),
    "fxfault.results.evaluation": ("EvaluationResult", "LayerRanking", "SweepResult"),
    "fxfault.results.study": ("StudyResult",),
    "fxfault.sites.statistics": ("FaultStatistics",),
}
_PARTS = (
    *("campaign", "config", "data", "evaluation", "experiment", "functional", "lightning"),
    *("metrics", "models", "passes", "training"),
)
__all__ = sorted(name for names in _HOMES.values() for name in names)

_lazy, __dir__ = lazy_names(__name__, _HOMES, _PARTS)

if not TYPE_CHECKING:  # For a type checker, any name would be one of ours.

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("fxfault")
        return _lazy(name)
