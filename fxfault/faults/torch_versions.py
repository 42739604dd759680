"""What releases of torch name differently or lack, from 2.6 on: the one place that asks for it."""

from __future__ import annotations

import torch

COMPILES_FROM = "2.9"
"""The first torch whose torch.compile takes our models as a whole."""


def why_not_compiled() -> str:
    """Why this torch is too old for `fxfault.compile`; empty if it is not."""
    wanted = tuple(map(int, COMPILES_FROM.split(".")))
    if tuple(map(int, torch.__version__.split(".")[:2])) >= wanted:
        return ""
    return f"fxfault.compile needs torch {COMPILES_FROM} or newer, and this is {torch.__version__}"


def _exports() -> bool:
    """`torch.compiler.is_exporting` for torch 2.6, which sets this flag for exports only."""
    return bool(torch.compiler._is_compiling_flag)


# torch.compile knows the function of a newer torch by what it is, so nothing may be around it.
is_exporting = getattr(torch.compiler, "is_exporting", _exports)
"""Say whether torch.export, or what is built on it, records the running code."""
