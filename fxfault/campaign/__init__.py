"""Campaigns: many trials of a network under faults, kept in a store, and their estimates.

>>> from fxfault.campaign import Study
>>> Study.from_yaml("digits_study").experiment.model.name
'quant_digits'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfault.lazy_names import lazy_names

if TYPE_CHECKING:
    from fxfault.campaign.fault_evaluation import FaultEvaluation
    from fxfault.campaign.studies.cell import Cell
    from fxfault.campaign.studies.stop_rule import StopRule
    from fxfault.campaign.studies.study import Study, bundled_studies

__all__ = [
    "Cell",
    "FaultEvaluation",
    "StopRule",
    "Study",
    "bundled_studies",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fxfault.campaign.fault_evaluation": ["FaultEvaluation"],
        "fxfault.campaign.studies.cell": ["Cell"],
        "fxfault.campaign.studies.stop_rule": ["StopRule"],
        "fxfault.campaign.studies.study": ["Study", "bundled_studies"],
    },
)
