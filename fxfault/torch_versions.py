"""What releases of torch name differently, from 2.6 on: the one place that asks for it."""

from __future__ import annotations

import torch


def _exports() -> bool:
    """`torch.compiler.is_exporting` for torch 2.6, which sets this flag for exports only."""
    return bool(torch.compiler._is_compiling_flag)


# torch.compile knows the function of a newer torch by what it is, so nothing may be around it.
is_exporting = getattr(torch.compiler, "is_exporting", _exports)
"""Say whether torch.export, or what is built on it, records the running code."""
