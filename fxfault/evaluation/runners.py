"""Make the runner that evaluates a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fxfault.evaluation.full.runner import FullRunner
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.evaluation.full.predictions import OnNote
    from fxfault.evaluation.full.runner import Runner
    from fxfault.metrics.metric import Metric


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
    metric: Metric | None = None,
) -> Runner:
    """Make the runner that evaluates a network.

    Args:
        model: the transformed model, on `device`.
        batches: batches, see `fxfault.data.batches`, read once in each pass over the data.
        device: the device of the model.
        on_note: called with the result of compiling.
        incremental: whether to repeat only what faults change.
        compile: whether to run compiled code if faults strike most of the network; the model must
            be frozen.
        cache_memory: bytes for the activations that incremental runs start from; None: a quarter
            of the free memory.
        verify: share of the batches to repeat in full and without compiled code, in percent; None:
            as many as take little time.
        metric: what is measured; by default the accuracy of a classifier.
    """
    from fxfault.evaluation.compiled_runner import CompiledRunner
    from fxfault.evaluation.incremental.runner import IncrementalRunner

    runner: Runner = FullRunner(model, batches, device, metric)
    if incremental:
        runner = IncrementalRunner(model, batches, device, cache_memory, verify, metric)
    return CompiledRunner(runner, verify, on_note) if compile else runner


def run_golden(runner: Runner, on_note: OnNote) -> None:
    """Run the data without faults, and report what the user should know.

    Args:
        runner: a runner of `make_runner`.
        on_note: called with the reason if an incremental run does more than faults make necessary,
            and with the sites of which the faults belong to batches, not to samples.
    """
    runner.golden()
    for note in (runner.why_full, faults_of(runner.model).layouts_note):
        if note is not None:
            on_note(note)
