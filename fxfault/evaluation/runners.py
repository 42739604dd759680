"""Make what evaluates a network, in the ways that a user allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fxfault.evaluation.full.predictions import FullRunner
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.evaluation.full.predictions import OnNote, Runner


def make_runner(
    model: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    on_note: OnNote,
    *,
    incremental: bool = True,
    compile: bool = False,
    cache_memory: int | None = None,
    verify: float | None = None,
) -> Runner:
    """Make what evaluates a network, in the ways that a user allows.

    Args:
        model: transformed, on the device.
        batches: of inputs and labels; read once for each pass over the data.
        device: where the model is.
        on_note: called with what came of compiling.
        incremental: do again only what faults change.
        compile: run compiled code where that is faster; the model must be frozen.
        cache_memory: bytes for activations that incremental runs start from; None: a quarter of
            what is free.
        verify: share of the batches that are run in full and without compiled code, too, in
            percent; None: as far as that takes little time.
    """
    from fxfault.evaluation.compiled_runner import CompiledRunner
    from fxfault.evaluation.incremental.runner import IncrementalRunner

    runner: Runner = FullRunner(model, batches, device)
    if incremental:
        runner = IncrementalRunner(model, batches, device, cache_memory, verify)
    return CompiledRunner(runner, verify, on_note) if compile else runner


def run_golden(runner: Runner, on_note: OnNote) -> None:
    """Run the data without faults, and tell what a user should know of what was found.

    Args:
        runner: of `make_runner`.
        on_note: called with why an incremental run does more than faults make necessary, and with
            which faults belong to batches, not to samples.
    """
    runner.golden()
    for note in (getattr(runner, "why_full", None), faults_of(runner.model).layouts_note):
        if note is not None:
            on_note(note)
