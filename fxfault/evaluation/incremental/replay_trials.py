"""Record the fault-free run of a kept forward, and try whether its calls may be replaced.

Results may stand for calls only if calls have no other effects: a value that a module keeps for
another one, a random number that the next call would have drawn, a list that it fills. Three tests
look for such effects, all on clean data:

- Forwards change no attribute of a module, no parameter or buffer, and draw no random number.
- A call that changes its arguments is never replaced, nor one with a result that shares their
  memory (`fxfault.evaluation.incremental.call_values`).
- For each place where a trial may start, the first batch runs with the calls before it replaced. A
  forward of other samples has run before, so that whatever the model kept is not of this batch. All
  later calls, and the output, must have the results of the first run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from fxfault.data.batches import Batch
from fxfault.evaluation.full.judging import Judge, NoRowsError, taken
from fxfault.evaluation.full.model_state import state_of
from fxfault.evaluation.full.predictions import InputShapes, OnBatch, predict
from fxfault.evaluation.incremental.call_choice import Key, choose_calls
from fxfault.evaluation.incremental.call_log import (
    Call,
    Log,
    Recorder,
    has_hooks,
    modules_to_watch,
)
from fxfault.evaluation.incremental.golden_cache import is_out_of_memory
from fxfault.evaluation.incremental.golden_run import (
    CHANGES,
    NO_ROWS,
    count_batches,
    first_batch,
    memory_left,
    why_not_one,
)
from fxfault.evaluation.incremental.replays import WHOLE, Replay, ReplayRun
from fxfault.faults.bits import same_bits
from fxfault.passes.tracing.containers import containers_of
from fxfault.passes.tracing.side_effects import Snapshot
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.sample_layouts import measure_on

HOOKED = "there are forward hooks, which calls that are replaced by their results would pass by"
NO_CALL = "no module is called before a site, so that no result could stand for a call"
HIDDEN = (
    "the calls before {} have other effects than their results: without these calls, "
    "the forward gives other results"
)


class NoReplays(Exception):
    """Why every run is a full one, as a sentence."""


def record_replays(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str,
    budget: int,
    on_batch: OnBatch | None,
    judge: Judge,
) -> ReplayRun:
    """Run a model without faults, keep results of calls, and try them.

    Args:
        model: the transformed model, in eval mode with its sites disabled, under `no_grad`.
        loader: batches of (inputs, labels), the same in each pass.
        device: the device of the model.
        budget: largest number of bytes for results, and with a metric for outputs.
        on_batch: called after each batch.
        judge: what is kept of the outputs.

    Raises:
        DataError: there is no sample, or the judge cannot use the outputs.
        NoReplays: results may not stand for calls.
    """
    first = first_batch(judge, loader, device)
    if has_hooks(model):
        raise NoReplays(HOOKED)
    sites = faults_of(model)
    measure_on(sites, taken(judge, loader), device)
    before = state_of(model)
    with sites.samples(torch.arange(first.samples)):
        expected = _rows_of(_run(model, first), first.samples, judge)
        budget = _required(memory_left(model, first, judge, count_batches(loader), budget))
        chosen = _survey(model, sites, first, count_batches(loader), budget)
        watched = {path for path, _ in chosen}
        modules = {path: m for path, m in modules_to_watch(model).items() if path in watched}
        recorder = Recorder(sites, modules, lambda path, call: (path, call) in chosen)
        snapshot = Snapshot(model)
        again, log = _first(model, recorder, first, budget, judge)
        if not _same(again, expected) or state_of(model) != before:
            raise NoReplays(CHANGES)
        _check_unchanged(snapshot)
        _try(model, modules, log, first, expected, judge)
        del log
    logs, result = _record(model, loader, device, recorder, budget, on_batch, judge)
    if state_of(model) != before or snapshot.changed_attribute() is not None:
        raise NoReplays(CHANGES)
    order = logs[0].order
    alike = [log if log.order == order else None for log in logs]
    why_whole = why_not_one(first) or WHOLE.format(_kept_forward(model))
    return ReplayRun(modules, alike, logs[-1], result, why_whole, snapshot)


def _run(model: nn.Module, batch: Batch) -> Any:
    """The output for a copy of a batch, as a forward may write into what it gets."""
    copy = batch.mapped(torch.clone)
    return model(*copy.inputs, **copy.keywords)


def _required(found: Any) -> Any:
    """What was found; raises `NoReplays` if that is a reason."""
    if isinstance(found, str):
        raise NoReplays(found)
    return found


def _rows_of(output: Any, samples: int, judge: Judge) -> list[Tensor]:
    """Copies of the tensors of an output that the judge looks at."""
    try:
        return [rows.clone() for rows in judge.rows(output, samples)]
    except NoRowsError:
        raise NoReplays(NO_ROWS) from None


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(same_bits, first, second))


def _check_unchanged(snapshot: Snapshot) -> None:
    try:
        snapshot.check()
    except TraceError as error:
        raise NoReplays(f"{error}, so that results cannot stand for calls") from None


def _survey(
    model: nn.Module, sites: FaultSites, batch: Batch, batches: int, budget: int
) -> set[Key]:
    """Run the first batch, and choose the calls to keep."""
    recorder = Recorder(sites, modules_to_watch(model), lambda path, call: True)
    with recorder.watching(), sites.samples(torch.arange(batch.samples)):
        log = recorder.begin()
        _run(model, batch)
    if recorder.why_not is not None:
        raise NoReplays(recorder.why_not)
    chosen = choose_calls(log, batches, budget)
    if not log.calls:
        raise NoReplays(NO_CALL)
    return chosen


def _first(
    model: nn.Module, recorder: Recorder, batch: Batch, budget: int, judge: Judge
) -> tuple[list[Tensor], Log]:
    """Run the first batch, and keep results; returns its outputs and its log."""
    with recorder.watching():
        log = recorder.begin()
        recorder.room = budget
        with recorder.sites.samples(torch.arange(batch.samples)):
            return _rows_of(_run(model, batch), batch.samples, judge), log


def _record(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str,
    recorder: Recorder,
    budget: int,
    on_batch: OnBatch | None,
    judge: Judge,
) -> tuple[list[Log], Any]:
    """Run all batches, and keep results as far as there is room."""
    sites, logs = recorder.sites, list[Log]()
    recorder.room = budget

    def forward(number: int, batch: Batch) -> Any:
        log = recorder.begin()
        output = model(*batch.inputs, **batch.keywords)
        log.before = [(site, dict(site.before)) for site in sites]
        logs.append(log)
        return output

    with recorder.watching():
        result = predict(
            *(model, loader, device, on_batch, sites, forward, judge),
            shapes=InputShapes(strict=True),
        )
    if recorder.why_not is not None:
        raise NoReplays(recorder.why_not)
    return logs, result


def _try(
    model: nn.Module,
    modules: dict[str, nn.Module],
    log: Log,
    batch: Batch,
    expected: list[Tensor],
    judge: Judge,
) -> None:
    """Start the first batch at each strike, without faults.

    Raises:
        NoReplays: a later call, or the output, has another result.
    """
    sites = faults_of(model)
    _run_others(model, batch)
    tried: set[frozenset[int]] = set()
    # Backwards: a call that was replaced has then not run since the other samples.
    for strike in reversed(log.strikes):
        replaced = frozenset(
            number
            for number, call in enumerate(log.calls)
            if call.kept is not None and call.end is not None and call.end < strike.time
        )
        if replaced in tried or not replaced:
            continue
        tried.add(replaced)
        replay, same = Replay(log, strike.time, sites), [True]

        def compare(call: Call, result: Any, same: list[bool] = same) -> None:
            if call.kept is not None and not call.kept.is_like(result):
                same[0] = False

        replay.compare(compare)
        try:
            with replay.watch(modules):
                output = _rows_of(_run(model, batch), batch.samples, judge)
            alike = replay.finish() and same[0] and _same(output, expected)
        # A model's code may raise anything if a value that it keeps is of other samples.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            alike = False
        if not alike:
            raise NoReplays(HIDDEN.format(strike.site.name))


def _run_others(model: nn.Module, batch: Batch) -> None:
    """Run other samples of the same shape, so that whatever the model keeps is of these.

    Raises:
        NoReplays: it fails on them.
    """

    def turned(tensor: Tensor) -> Tensor:
        return tensor.flip(0) if tensor.dim() else tensor

    def rolled(tensor: Tensor) -> Tensor:
        return turned(tensor).roll(1, -1) if tensor.dim() > 1 else turned(tensor)

    for change in (rolled, turned):
        try:
            _run(model, batch.mapped(change))
            return
        # A model's code may raise anything for samples that are not from the data.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = " ".join(str(error).split())
    raise NoReplays(f"it fails on samples in another order ({why[:200]})")


def _kept_forward(model: nn.Module) -> str:
    """A container that keeps its own forward, the outermost first; for messages."""
    kept = [c for c in containers_of(model) if c.handling == "kept" and c.reason]
    first = min(kept, key=lambda c: (c.path.count(".") + bool(c.path), c.path), default=None)
    return type(model).__name__ if first is None else first.path or first.type
