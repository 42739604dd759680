"""Campaigns: many trials, kept in a store, and what they say about a network.

>>> from fxfault.campaign import Study
>>> Study.from_yaml("digits_study").experiment.model.name
'quant_digits'

Names are imported when they are first used, so that importing this package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfault.campaign.study import Cell, StopRule, Study, bundled_studies

_HOMES = {"fxfault.campaign.study": ("Cell", "StopRule", "Study", "bundled_studies")}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["Cell", "StopRule", "Study", "bundled_studies"]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fxfault.campaign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
