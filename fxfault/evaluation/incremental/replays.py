"""Evaluate a model whose forward stays Python code, by repeating only what comes after a fault.

No graph says where such a forward could start. But up to the first strike that hits something, it
does what the fault-free forward of the same batch did. So each call of a module that ended before
that strike returns a copy of its fault-free result in place of running. Everything else runs, in
whole batches, as Python code may ask about several samples at once. A batch that nothing hits does
not run at all.

That is only right if the calls have no other effects than their results. `record_replays` tests
this (`fxfault.evaluation.incremental.replay_trials`), and if it fails, every run is a full one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxfault.errors import SiteError
from fxfault.evaluation.full.hits_by_batch import HitsByBatch
from fxfault.evaluation.full.predictions import OnBatch
from fxfault.evaluation.full.verification import some_batches
from fxfault.evaluation.incremental.call_log import (
    Call,
    Log,
    Strike,
    call_of,
    has_hooks,
    intercepted,
)
from fxfault.passes.tracing.side_effects import Snapshot
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.site import FaultSite
from fxfault.strike.draws import samples_hit

if TYPE_CHECKING:
    from fxfault.data.batches import Batch
    from fxfault.evaluation.incremental.runner import IncrementalRunner

WHOLE = "the forward of {} keeps its own code, which may ask about several samples at once"


class Replay:
    """Replaces calls of one forward by their results, up to a strike.

    Attributes:
        diverged: whether the forward did something else than the fault-free one before the strike,
            so that its output is of no use.
        replaced: the calls that were replaced so far.
    """

    def __init__(self, log: Log, strike: int, sites: FaultSites) -> None:
        """Prepare for a forward of the batch of a log; see `Strike.time` for the strike."""
        self.log, self.strike, self.sites = log, strike, sites
        self.diverged = False
        self.replaced: list[Call] = []
        self._next: int | None = 0
        self._on_call: Callable[[Call, Any], None] | None = None

    @contextmanager
    def watch(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Replace calls within the block; `modules` are those that the log has watched."""
        edges = self.sites.edges
        with nullcontext() if edges is None else edges.unknown(), intercepted(modules, self._call):
            yield

    def compare(self, on_call: Callable[[Call, Any], None]) -> None:
        """Follow the log to its end, and call a function with each call that ran, and its result.

        For forwards without faults.
        """
        self._on_call = on_call

    def finish(self) -> bool:
        """Whether the forward, which has ended, was like the fault-free one up to the strike."""
        calls = self.log.calls
        if self._next is not None and self._next < len(calls):
            missed = calls[self._next].start < self.strike or self._on_call is not None
            self.diverged |= missed
        return not self.diverged

    def _call(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self._following(module)
        if call is None:
            return call_of(module, args, kwargs)
        if call.kept is not None and call.end is not None and call.end < self.strike:
            self._next = call.after
            call.pass_over()
            self.replaced.append(call)
            return call.kept.give(args, kwargs)
        result = call_of(module, args, kwargs)
        if self._on_call is not None:
            self._on_call(call, result)
        return result

    def _following(self, module: nn.Module) -> Call | None:
        """The logged call that is now made; None if the strike has come, or after `diverged`."""
        if self._next is None:
            return None
        ended = self._next >= len(self.log.calls)
        call = None if ended else self.log.calls[self._next]
        if call is None or call.module is not module:
            # After the strike, the forward may do what it likes.
            if self._on_call is not None or (call is not None and call.start < self.strike):
                self.diverged = True
            self._next = None
            return None
        if call.start > self.strike and self._on_call is None:
            self._next = None
            return None
        self._next += 1
        return call


class ReplayRun:
    """The fault-free run of a kept forward, and the evaluations that start from it.

    Attributes:
        logs: the log of each batch; None for one that is run in full.
        result: the result without faults.
        why_whole: why batches are run whole, as a sentence.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        logs: list[Log | None],
        last: Log,
        result: Any,
        why_whole: str,
        snapshot: Snapshot,
    ) -> None:
        """Take the logs of a fault-free run.

        Args:
            modules: the modules that were watched, by path.
            logs: see the attributes.
            last: the log of the last batch.
            result: see the attributes.
            why_whole: see the attributes.
            snapshot: the attributes of all modules, at the fault-free run.
        """
        self.modules, self.logs, self.result = modules, logs, result
        self.why_whole = why_whole
        self._last, self._snapshot = last, snapshot

    def is_current(self, model: nn.Module) -> bool:
        """Whether a model has the attributes of the fault-free run, and no hooks.

        Python code reads them, and no guard of a graph tells if they have changed.
        """
        return self._snapshot.changed_attribute() is None and not has_hooks(model)

    def run(
        self,
        runner: IncrementalRunner,
        numbers: Tensor,
        on_batch: OnBatch | None,
        seen: HitsByBatch,
    ) -> Any:
        """Evaluate under the faults that are set now.

        Args:
            runner: the model in eval mode, under `no_grad`, and its data.
            numbers: numbers of all samples, int64.
            on_batch: see `Runner.run`.
            seen: told what each batch shows, and what is exposed where nothing runs.

        Returns:
            A revision of the result without faults.
        """
        sites = faults_of(runner.model)
        parts, revision = numbers.split(list(self.result.sizes)), self.result.revision()
        places = torch.arange(len(numbers)).split(list(self.result.sizes))
        starts: dict[int, int] = {}
        last = len(parts) - 1
        if sites.clock.why_quiet is None:
            for batch, (log, here) in enumerate(zip(self.logs, parts, strict=True)):
                start = 0 if log is None else first_hit(log, here)
                if start is not None:
                    starts[batch] = start
        masked = sum(len(part) for batch, part in enumerate(parts) if batch not in starts)
        if masked and on_batch is not None:
            on_batch(masked)
        for log in (log for batch, log in enumerate(self.logs) if batch not in starts):
            if log is not None:
                log.show_sources()
                seen.pass_over(log.exposed())
        chosen = some_batches(runner.loader, list(starts), runner.judge, runner.device)
        for batch, given in chosen:
            size = given.samples
            if batch == last:
                self._show_last(starts[batch])
            seen.clear()
            with sites.samples(parts[batch]):
                output = self._forward(runner.model, given, batch, starts[batch], seen)
            seen.note(batch)
            revision.put(places[batch], output, size)
            if on_batch is not None:
                on_batch(size)
        if last not in starts:
            self._show_last(None)
        return revision

    def _forward(
        self, model: nn.Module, given: Batch, batch: int, start: int, seen: HitsByBatch
    ) -> Any:
        log = self.logs[batch]
        if log is None:
            return model(*given.inputs, **given.keywords)
        log.show_sources()
        replay = Replay(log, start, faults_of(model))
        with replay.watch(self.modules):
            output = model(*given.inputs, **given.keywords)
        if replay.finish():
            for call in replay.replaced:
                seen.pass_over(log.exposed(call))
            return output
        self.logs[batch] = None  # From now on, too: it does not do the same each time.
        seen.clear()
        return model(*given.inputs, **given.keywords)

    def _show_last(self, start: int | None) -> None:
        """Let sites show what a full run would show of them in the last batch.

        Args:
            start: where the last batch is about to start; None if it does not run.
        """
        if start is None:
            self._last.show_sources()
        for strike in self._last.strikes:
            if start is None or strike.time < start:
                strike.site.seen.elements = strike.layout.elements
            if start is None:
                strike.site.pass_over(strike.call)


def first_hit(log: Log, numbers: Tensor) -> int | None:
    """When faults first hit something in a batch, see `Strike.time`; None if nowhere.

    Args:
        log: the fault-free forward of the batch: up to the first hit, the struck one is the same.
        numbers: numbers of the samples of the batch, int64.
    """
    for strike in log.strikes:
        if strike.site.is_struck and strike.site.strikes and _may_hit(strike, numbers):
            return strike.time
    return None


def _may_hit(strike: Strike, numbers: Tensor) -> bool:
    """Whether faults hit anything at a strike, or that cannot be told."""
    site = strike.site
    if site.bit_width is None and any(fault.rate_unit == "bit" for fault in site.faults):
        return True  # The forward tells how many bits there are.
    here = numbers[: strike.layout.samples]
    try:
        return any(
            bool(samples_hit(site, here, strike.layout, key, call).any())
            for key, call in _draws(site, strike.call)
        )
    except SiteError:  # The forward itself will raise it, or knows better.
        return True


def _draws(site: FaultSite, call: int) -> Iterable[tuple[int, int]]:
    """The keys that a call of a site may draw with, and the number of the call that each is for."""
    if site.stored is not None:
        return [(site.first_stream(), 1)]
    # Calls whose words were struck before have no number, so this one may have a lower one.
    first = 1 if site.before else call
    return [
        (site.clock.stream(site.name if number == 1 else f"{site.name}#{number}"), number)
        for number in range(first, call + 1)
    ]
