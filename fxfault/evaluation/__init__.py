"""Predictions of a network under faults: runners, trials and their rows.

This package counts; `fxfault.campaign` estimates from the counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.evaluation.compiled_runner import CompiledRunner
    from fxfault.evaluation.full.predictions import accuracy
    from fxfault.evaluation.full.runner import FullRunner
    from fxfault.evaluation.incremental.runner import IncrementalRunner
    from fxfault.evaluation.runners import make_runner

__all__ = [
    "CompiledRunner",
    "FullRunner",
    "IncrementalRunner",
    "accuracy",
    "make_runner",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.evaluation.compiled_runner": ["CompiledRunner"],
        "fxfault.evaluation.incremental.runner": ["IncrementalRunner"],
        "fxfault.evaluation.full.predictions": ["accuracy"],
        "fxfault.evaluation.full.runner": ["FullRunner"],
        "fxfault.evaluation.runners": ["make_runner"],
    },
)
