"""Evaluate under faults by doing again only what the faults change.

The fault-free run keeps activations (`fxfault.evaluation.incremental.golden_run`). A run under
faults then starts, for each sample, at the first site that strikes it, and leaves samples out that
no site strikes; these keep their golden prediction. Wherever an activation is known, samples that
have become golden again, and that nothing will strike later, are left out from there on: their
fault was masked. Struck samples of several batches are put together, so that few full batches are
run.

The predictions are those of `FullRunner`, bit for bit. Where samples cannot leave their batches
(see `fxfault.evaluation.incremental.batch_independence`) batches are run whole;
`IncrementalRunner.why_full` says why.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.errors import ConfigError
from fxfault.evaluation.full.predictions import (
    FullRunner,
    OnBatch,
    Predictions,
    disabled,
    in_eval_mode,
    ranked,
    sample_numbers,
    samples_hit_anywhere,
    scores_of,
    state_of,
)
from fxfault.evaluation.full.verification import Verification, some_batches
from fxfault.evaluation.incremental.free_memory import free_memory
from fxfault.evaluation.incremental.golden_cache import INPUT
from fxfault.evaluation.incremental.golden_run import (
    CHANGES,
    GoldenRun,
    advance,
    record,
    why_never_incremental,
)
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.sites.live_values import SampleRows, equal_samples, leaves_of, same_bits, with_leaves
from fxfault.strike.draws import samples_hit

TRACKED = "statistics are tracked, which count over whole batches"
INSTEAD = "evaluate this model with full runs (FullRunner, or --no-incremental of a study)"


def check_memory(cache_memory: int | None) -> None:
    """See that an amount of memory is one.

    Raises:
        ConfigError: it is not None, and no number of bytes.
    """
    if cache_memory is not None and (isinstance(cache_memory, bool) or cache_memory < 0):
        raise ConfigError(f"cache_memory: got {cache_memory!r}, allowed: bytes, 0 and up")


class IncrementalRunner:
    """Gives the predictions of `FullRunner` and does only the work that faults make necessary.

    >>> import fxfault
    >>> from brevitas.nn import QuantIdentity, QuantReLU
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = DataLoader(TensorDataset(torch.randn(32, 8), torch.zeros(32).long()), batch_size=8)
    >>> net = nn.Sequential(QuantIdentity(), nn.Linear(8, 8), QuantReLU(), nn.Linear(8, 3)).eval()
    >>> settings = {"enabled": True, "apply_during": "eval", "probability": 1.0, "seed": 1}
    >>> model = fxfault.freeze(fxfault.transform(net, settings))
    >>> runner = IncrementalRunner(model, data)
    >>> torch.equal(runner.run().top, FullRunner(model, data).run().top)
    True

    Attributes:
        model: what `fxfault.transform` returned.
        faults: its sites.
        verify: share of the batches that are run in full, too, in percent; None: a few.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        device: torch.device | str = "cpu",
        cache_memory: int | None = None,
        verify: float | None = 0.0,
    ) -> None:
        """Take a model and its data; nothing is run yet.

        Args:
            model: what `fxfault.transform` returned, on `device`; frozen, it is faster.
            loader: gives the same batches of (inputs, labels) each time that it is iterated.
            device: where the model is.
            cache_memory: bytes for activations of the fault-free run, on `device`; default: a
                quarter of what is free at that run. With less, more is computed again.
            verify: run this share of the batches in full, too, and compare; in percent. None:
                one batch of each setting, as far as that takes little time, see
                `fxfault.evaluation.full.verification`.

        Raises:
            ConfigError: `cache_memory` or `verify` is out of its range.
            SiteError: the model has no fault sites.
        """
        check_memory(cache_memory)
        self.model, self.loader, self.device = model, loader, device
        self.faults: FaultSites = faults_of(model)
        self.verify = verify
        self._verification = Verification(model, loader, device, verify, "incremental", INSTEAD)
        self._memory = cache_memory
        self._full = FullRunner(model, loader, device)
        self._golden: GoldenRun | None = None
        self._why_never: str | None = None
        self._state: list[Any] | None = None

    @property
    def why_full(self) -> str | None:
        """Why more is run than what faults make necessary, as a sentence; None: it is not.

        Known after `golden`; while statistics are tracked there is a reason, too.
        """
        if self._why_never is not None:
            return f"every run is a full one: {self._why_never}"
        if self.faults.statistics is not None:
            return f"every run is a full one: {TRACKED}"
        if self._golden is not None and self._golden.why_whole is not None:
            return f"batches are run whole: {self._golden.why_whole}"
        if self._golden is not None:
            return self._why_of_batches()
        return None

    def _why_of_batches(self) -> str | None:
        """What sites that may be struck have faults that belong to batches, and why."""
        sites = {
            site.name: lies.why_batch
            for site in self.faults
            if site.selected
            and (lies := site.seen.arrangement) is not None
            and lies.why_batch is not None
        }
        if not sites:
            return None
        name, why = next(iter(sites.items()))
        more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        return (
            f"batches are run whole where {name}{more} is struck: its activation belongs to the "
            f"batch, not to samples ({why})"
        )

    def golden(self, on_batch: OnBatch | None = None) -> Predictions:
        """See `Runner.golden`.

        Raises:
            DataError: there is no sample, or the model returns no scores.
        """
        golden = self._golden_run(on_batch)
        if golden is None:
            return self._full.golden(on_batch)
        assert golden.predictions is not None
        return golden.predictions

    def run(self, on_batch: OnBatch | None = None) -> Predictions:
        """See `Runner.run`.

        Raises:
            DataError: there is no sample, or the model returns no scores.
            FxFaultError: a full run of a batch gave other predictions (`verify`).
            SiteError: values that were hit are no codes.
        """
        golden = self._golden_run()
        if golden is None or self.faults.statistics is not None:
            return self._full.run(on_batch)
        assert golden.predictions is not None
        started = time.perf_counter()
        numbers = sample_numbers(self.faults.clock, golden.sizes)
        with in_eval_mode(self.model), torch.no_grad():
            struck = _strikes(golden, numbers)
            evaluation = _Evaluation(self, golden, numbers, struck, on_batch)
            evaluation.run()
            self.faults.check()
        hit = struck.anywhere
        if not struck.known:
            hit = samples_hit_anywhere(self.model, numbers, golden.sizes)
        self._verification.note(time.perf_counter() - started)
        self._verification.check(golden.sizes, numbers, evaluation.top, hit)
        return Predictions(evaluation.top, golden.predictions.labels, hit)

    def _golden_run(self, on_batch: OnBatch | None = None) -> GoldenRun | None:
        """The fault-free run, made anew when parameters have changed; None: only full runs."""
        state = state_of(self.model)
        if self._state == state:
            return self._golden
        self._golden = None  # Its memory is free for the new one.
        with in_eval_mode(self.model), torch.no_grad(), disabled(self.faults):
            self._why_never = why_never_incremental(self.model)
            if self._why_never is None:
                started, memory = time.perf_counter(), self._memory
                budget = free_memory(self.device) // 4 if memory is None else memory
                self._golden = record(self.model, self.loader, self.device, budget, on_batch)
                self._why_never = CHANGES if self._golden is None else None
                self._verification.note(time.perf_counter() - started)
        self._state = state_of(self.model)
        return self._golden


# -- which samples are struck where ---------------------------------------------------------


@dataclass(frozen=True)
class _Strikes:
    """Where samples are struck.

    Attributes:
        first: the first segment in which a sample is struck; the number of all, where none.
        last: the last one; -1 where none.
        whole: whether batches are run whole.
        known: whether all of that is known, and not just feared.
    """

    first: Tensor
    last: Tensor
    whole: bool
    known: bool

    @property
    def anywhere(self) -> Tensor:
        """Which samples are struck at all."""
        return self.last >= 0


def _strikes(golden: GoldenRun, numbers: Tensor) -> _Strikes:
    """Find out which samples the sites will strike, as they are set now."""
    segments = golden.segments
    struck = torch.zeros(len(segments), len(numbers), dtype=torch.bool)
    known = True
    for place, segment in enumerate(segments):
        for site in segment.sites:
            if not (site.armed and site.strikes):
                continue
            layout = golden.layouts.get(site.name)
            if layout is None or golden.mixing:
                struck[place], known = True, False
            else:
                struck[place] |= samples_hit(site, numbers, layout)
    nowhere = ~struck.any(0)
    first = struck.to(torch.uint8).argmax(0)
    last = len(segments) - 1 - struck.flip(0).to(torch.uint8).argmax(0)
    return _Strikes(
        first.masked_fill(nowhere, len(segments)),
        last.masked_fill(nowhere, -1),
        whole=golden.why_whole is not None or not known,
        known=known,
    )


# -- one evaluation -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Waiting:
    """Samples that wait at a cut with a state of their own.

    Attributes:
        samples: which they are, int64.
        leaves: of a state that they are in.
        rows: their places in it, int64.
    """

    samples: Tensor
    leaves: Sequence[Any]
    rows: Tensor


class _Evaluation:
    """One evaluation under faults, from the golden run."""

    def __init__(
        self,
        runner: IncrementalRunner,
        golden: GoldenRun,
        numbers: Tensor,
        struck: _Strikes,
        on_batch: OnBatch | None,
    ) -> None:
        assert golden.predictions is not None
        self.runner, self.golden, self.numbers, self.struck = runner, golden, numbers, struck
        self.model, self.faults = runner.model, runner.faults
        self.top = golden.predictions.top.clone()
        self.on_batch = on_batch
        self.offsets = golden.offsets
        self.end = len(golden.segments)
        self.most = golden.pack_sizes[-1] if golden.pack_sizes else 0
        self.waiting: list[list[_Waiting]] = [[] for _ in range(self.end)]
        self.starting: list[Tensor] = []

    def run(self) -> None:
        """Run what is struck; the predictions are in `top`."""
        first = self.struck.first
        by_batch = first.split(self.golden.sizes)
        whole = {
            batch: int(starts.min())
            for batch, starts in enumerate(by_batch)
            if self.struck.whole or batch in self.golden.alone
        }
        packed = torch.ones_like(first, dtype=torch.bool)
        for batch in whole:
            packed[self.offsets[batch] : self.offsets[batch + 1]] = False
        self.starting = [((first == place) & packed).nonzero()[:, 0] for place in range(self.end)]
        whole = {batch: start for batch, start in whole.items() if start < self.end}
        running = sum(map(len, self.starting)) + sum(self.golden.sizes[b] for b in whole)
        self._done(len(first) - running)
        if INPUT not in self.golden.cache.sites:
            self._run_from_data(whole)
        for batch, start in whole.items():
            leaves = self.golden.cache.leaves(self.golden.cuts[start].site, batch)
            self._run_whole(batch, start, [_copied(leaf) for leaf in leaves])
        self._run_packs()

    def _done(self, samples: int) -> None:
        if samples and self.on_batch is not None:
            self.on_batch(samples)

    def _run_from_data(self, whole: dict[int, int]) -> None:
        """Start what starts at the model's input, which was not kept."""
        samples, self.starting[0] = self.starting[0], self.starting[0][:0]
        parts = self._by_batch(samples)
        wanted = [*parts, *(batch for batch, start in whole.items() if start == 0)]
        for batch, images in some_batches(self.runner.loader, wanted):
            inputs = images.to(self.runner.device)
            if batch in parts:
                here, rows = parts[batch]
                self.waiting[0].append(_Waiting(here, [inputs], rows))
                self._run_packs(only_full=True)
            else:
                del whole[batch]
                self._run_whole(batch, 0, [inputs])

    def _by_batch(self, samples: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Ascending samples, and their places in their batches, batch by batch."""
        parts: dict[int, tuple[Tensor, Tensor]] = {}
        while len(samples):
            batch = bisect_right(self.offsets, int(samples[0])) - 1
            count = int((samples < self.offsets[batch + 1]).sum())
            parts[batch] = (samples[:count], samples[:count] - self.offsets[batch])
            samples = samples[count:]
        return parts

    # -- whole batches ------------------------------------------------------------------

    def _run_whole(self, batch: int, start: int, leaves: list[Any]) -> None:
        """Run a batch from some segment to the end, or until it is golden again for good."""
        samples = torch.arange(self.offsets[batch], self.offsets[batch + 1])
        last = int(self.struck.last[samples].max())
        state = with_leaves(self.golden.cuts[start].structure, iter(leaves))
        with self._numbered(samples, start):
            for place in range(start, self.end):
                if place > last and self._is_golden(place, batch, state):
                    break
                state = advance(self.model, self.golden.segments, place, state)
            else:
                self._predict(samples, state, len(samples))
        self._done(len(samples))

    def _is_golden(self, place: int, batch: int, state: Any) -> bool:
        golden = self.golden.cache.leaves(self.golden.cuts[place].site, batch)
        return all(map(same_bits, leaves_of(state), golden))

    @contextmanager
    def _numbered(self, samples: Tensor, start: int) -> Iterator[None]:
        """Let the samples of a forward have their numbers, also if it starts in the middle."""
        with self.faults.samples(self.numbers[samples]):
            if start > 0:  # Else the first segment does it.
                self.faults.clock.begin(len(samples))
            yield

    def _predict(self, samples: Tensor, output: Any, size: int) -> None:
        self.top[samples] = ranked(scores_of(output, size))[: len(samples)].cpu()

    # -- packs of struck samples --------------------------------------------------------

    def _run_packs(self, only_full: bool = False) -> None:
        """Run what waits, and what starts from golden states.

        Full packs go first, and of them those that are furthest, so that little is in memory.
        Else the earliest go, as nothing can catch up with them.
        """
        while True:
            place = self._next_place(only_full)
            if place is None:
                return
            self._run_pack(place)

    def _next_place(self, only_full: bool) -> int | None:
        for place in reversed(range(self.end)):
            if sum(len(part.samples) for part in self.waiting[place]) >= self.most > 0:
                return place
        if only_full:
            return None
        places = range(self.end)
        return next((p for p in places if self.waiting[p] or len(self.starting[p])), None)

    def _run_pack(self, place: int) -> None:
        samples, size, leaves = self._take(place)
        state = with_leaves(self.golden.cuts[place].structure, iter(leaves))
        with self._numbered(_padded(samples, size), place):
            while True:
                state = advance(self.model, self.golden.segments, place, state)
                place += 1
                if place == self.end:
                    self._predict(samples, state, size)
                    self._done(len(samples))
                    return
                kept = self._kept(place, samples, state)
                others = len(self.starting[place]) > 0 or len(self.waiting[place]) > 0
                # Else nothing is gained by putting the pack together anew.
                if self._size_for(len(kept)) < size or (others and 2 * len(kept) <= self.most):
                    break
        self._done(len(samples) - len(kept))
        if len(kept):
            cut = self.golden.cuts[place]
            leaves = cut.assemble([(leaves_of(state), kept)], len(kept))
            self.waiting[place].append(_Waiting(samples[kept], leaves, torch.arange(len(kept))))

    def _take(self, place: int) -> tuple[Tensor, int, list[Any]]:
        """Put a pack together from what waits and what starts at a place.

        Returns:
            The samples, the size of the batch (the last sample is repeated), and its leaves.
        """
        parts: list[_Waiting] = []
        room = self.most
        while room and self.waiting[place]:
            part = self.waiting[place].pop(0)
            parts.append(_Waiting(part.samples[:room], part.leaves, part.rows[:room]))
            if len(part.samples) > room:
                rest = _Waiting(part.samples[room:], part.leaves, part.rows[room:])
                self.waiting[place].insert(0, rest)
            room -= len(parts[-1].samples)
        starting, self.starting[place] = self.starting[place].split(
            [min(room, len(self.starting[place])), max(0, len(self.starting[place]) - room)]
        )
        cut = self.golden.cuts[place]
        for batch, (samples, rows) in self._by_batch(starting).items():
            parts.append(_Waiting(samples, self.golden.cache.leaves(cut.site, batch), rows))
        together = torch.cat([part.samples for part in parts])
        size = self._size_for(len(together))
        *most, last = ((part.leaves, part.rows) for part in parts)
        filled = (last[0], _padded(last[1], size - len(together) + len(last[1])))
        return together, size, cut.assemble([*most, filled], size)

    def _size_for(self, samples: int) -> int:
        """The smallest batch that some samples may be put into; 0 for none."""
        return next(size for size in (0, *self.golden.pack_sizes) if size >= samples)

    def _kept(self, place: int, samples: Tensor, state: Any) -> Tensor:
        """Which samples of a pack must go on: places in it, int64.

        The others are golden again, and nothing will strike them any more.
        """
        may_go = self.struck.last[samples] < place
        if not may_go.any():
            return torch.arange(len(samples))
        rows = may_go.nonzero()[:, 0]
        golden = self._golden_again(place, samples[rows], rows, leaves_of(state))
        may_go[rows] = golden.cpu()
        return (~may_go).nonzero()[:, 0]

    def _golden_again(self, place: int, samples: Tensor, rows: Tensor, leaves: list[Any]) -> Tensor:
        """Which of some samples have the golden state at a cut; bool.

        Args:
            place: of the cut.
            samples: to look at.
            rows: their places in the pack.
            leaves: of the pack's state.
        """
        cut = self.golden.cuts[place]
        order = samples.argsort()
        parts = [
            (self.golden.cache.leaves(cut.site, batch), inside)
            for batch, (_, inside) in self._by_batch(samples[order]).items()
        ]
        expected = cut.assemble(parts, len(rows))
        found = cut.assemble([(leaves, rows[order])], len(rows))
        assert cut.roles is not None
        same = torch.ones(len(rows), dtype=torch.bool)
        for role, a, b in zip(cut.roles, expected, found, strict=True):
            if isinstance(role, SampleRows):
                same &= equal_samples(a, b, role).cpu()
            elif not same_bits(a, b):
                same[:] = False
        return torch.empty_like(same).index_copy_(0, order, same)


def _padded(index: Tensor, size: int) -> Tensor:
    """An index with its last entry repeated up to a size."""
    return torch.cat([index, index[-1:].expand(size - len(index))])


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
