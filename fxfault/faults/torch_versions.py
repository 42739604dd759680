"""What releases of torch name differently or lack, from 2.6 on: the one place that asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

COMPILES_FROM = "2.9"
"""The first torch whose torch.compile takes our models as a whole."""


def is_older(version: str) -> bool:
    """Say whether this torch is older than a release, such as 2.9."""
    own, other = (tuple(map(int, v.split(".")[:2])) for v in (torch.__version__, version))
    return own < other


def why_not_compiled() -> str:
    """Why this torch is too old for `fxfault.compile`; empty if it is not."""
    if not is_older(COMPILES_FROM):
        return ""
    return f"fxfault.compile needs torch {COMPILES_FROM} or newer, and this is {torch.__version__}"


def whole_graphs() -> AbstractContextManager[Any]:
    """A context for what torch compiles with `fullgraph`: `Tensor.item`, too, is in the graph.

    Brevitas calls that where two activations are added. From torch 2.10 on, `fullgraph` says so.
    """
    if is_older("2.10"):
        return torch._dynamo.config.patch(capture_scalar_outputs=True)
    return nullcontext()


# What torch sets while it exports; torch 2.6 has one flag, which exports alone set.
_FLAG = "_is_exporting_flag" if hasattr(torch.compiler, "is_exporting") else "_is_compiling_flag"


# torch.compile runs the function as it traces. If it sees `torch.compiler.is_exporting` itself, it
# takes the answer to be yes in torch 2.9.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Say whether torch.export, or what is built on it, records the running code."""
    return bool(getattr(torch.compiler, _FLAG))
