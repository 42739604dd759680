"""What a network predicts under faults: runners, trials and their rows.

It counts; what the counts are worth is said by `fxfault.campaign`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.evaluation.compiled_runner import CompiledRunner
    from fxfault.evaluation.full.predictions import FullRunner, accuracy
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
        "fxfault.evaluation.full.predictions": ["FullRunner", "accuracy"],
        "fxfault.evaluation.runners": ["make_runner"],
    },
)
