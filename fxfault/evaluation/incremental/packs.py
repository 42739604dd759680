"""One evaluation under faults that starts from the golden run.

Struck samples wait at the cut where they start or where their pack ended. Packs of waiting samples
run from cut to cut; samples leave a pack when they are golden again and nothing strikes them later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.evaluation.full.hits_by_batch import HitsByBatch
from fxfault.evaluation.full.predictions import OnBatch
from fxfault.evaluation.full.runner import Runner
from fxfault.evaluation.full.verification import some_batches
from fxfault.evaluation.incremental.golden_cache import INPUT
from fxfault.evaluation.incremental.golden_run import GoldenRun
from fxfault.evaluation.incremental.states import advance
from fxfault.faults.bits import same_bits
from fxfault.faults.layouts import Layout
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.live_values import Role, SampleRows, equal_samples, leaves_of, with_leaves
from fxfault.sites.site import FaultSite
from fxfault.strike.draws import elements_hit, samples_hit

SMALL = 1 << 12  # Samples of up to so many elements are compared as a whole at once.


@dataclass(frozen=True)
class Strikes:
    """The segments in which samples are struck.

    Attributes:
        first: first segment in which each sample is struck; the number of segments if none.
        last: last segment in which each sample is struck; -1 if none.
        whole: whether batches are run whole.
        known: whether all of that is certain; if not, every batch runs whole, from before the
            first site of which it is not.
    """

    first: Tensor
    last: Tensor
    whole: bool
    known: bool


def find_strikes(model: nn.Module, golden: GoldenRun, numbers: Tensor) -> Strikes:
    """Find out which samples the sites of a model will strike, as they are set now."""
    segments = golden.segments
    struck = torch.zeros(len(segments), len(numbers), dtype=torch.bool)
    known = True
    for place, segment in enumerate(segments):
        for site in segment.sites:
            if not (site.armed and site.strikes):
                continue
            if site.stored is not None:  # Its faults are those of all samples.
                struck[place] |= samples_hit(site, numbers, site.stored.layout)
                continue
            layout = golden.layouts.get(site.name)
            if layout is None or golden.mixing:
                struck[place], known = True, False
            else:
                struck[place] |= samples_hit(site, numbers, layout)
    for site in faults_of(model):
        if site.memory == "parameters" and site.armed and site.strikes:
            struck |= samples_hit(site, numbers, Layout(1, 1, ()))  # Any part may read it.
    nowhere = ~struck.any(0)
    first = struck.to(torch.uint8).argmax(0)
    last = len(segments) - 1 - struck.flip(0).to(torch.uint8).argmax(0)
    return Strikes(
        first.masked_fill(nowhere, len(segments)),
        last.masked_fill(nowhere, -1),
        whole=golden.why_whole is not None or not known,
        known=known,
    )


@dataclass(frozen=True)
class KnownHits:
    """The hits of an evaluation of which it is known ahead what strikes; see `Hits`.

    Attributes:
        strikes: where samples are struck.
        layouts: layouts of the activations that are struck, by the name of the site.
        numbers: numbers of all samples, int64.
    """

    strikes: Strikes
    layouts: dict[str, Layout]
    numbers: Tensor

    def samples(self) -> Tensor:
        """See `Hits.samples`."""
        return self.strikes.last >= 0

    def of(self, site: FaultSite) -> tuple[int, int]:
        """See `Hits.of`."""
        layout = self.layouts[site.name]
        hits = elements_hit(site, self.numbers, layout)
        return hits, layout.elements * len(self.numbers)


@dataclass(frozen=True)
class _Waiting:
    """Samples that wait at a cut with a changed state.

    Attributes:
        samples: the samples, int64.
        leaves: leaves of a state that holds them.
        rows: their places in it, int64.
    """

    samples: Tensor
    leaves: Sequence[Any]
    rows: Tensor


class Evaluation:
    """One evaluation under faults.

    Attributes:
        revision: the results of the samples; those of the golden run before `run`.
    """

    def __init__(
        self,
        runner: Runner,
        golden: GoldenRun,
        numbers: Tensor,
        struck: Strikes,
        on_batch: OnBatch | None,
        seen: HitsByBatch,
    ) -> None:
        """Prepare to run the struck samples.

        Args:
            runner: the model and its data.
            golden: the fault-free run.
            numbers: numbers of all samples, int64.
            struck: where they are struck.
            on_batch: see `Runner.run`.
            seen: told of each batch that runs whole.
        """
        self.seen = seen
        self.runner, self.model, self.faults = runner, runner.model, faults_of(runner.model)
        self.golden, self.numbers, self.struck = golden, numbers, struck
        self.revision = golden.result.revision()
        self.on_batch = on_batch
        self.offsets = golden.offsets
        self.end = len(golden.segments)
        self.sizes = golden.pack_sizes
        self.most = golden.found.sizes[-1] if golden.found.sizes else 0
        self.waiting: list[list[_Waiting]] = [[] for _ in range(self.end)]
        self.starting: list[Tensor] = []

    def run(self) -> None:
        """Run what is struck, and update `revision`."""
        first = self.struck.first
        sizes = self.golden.result.sizes
        whole = {
            batch: int(starts.min())
            for batch, starts in enumerate(first.split(list(sizes)))
            if self.struck.whole or batch in self.golden.alone
        }
        packed = torch.ones_like(first, dtype=torch.bool)
        for batch in whole:
            packed[self.offsets[batch] : self.offsets[batch + 1]] = False
        self.starting = [((first == place) & packed).nonzero()[:, 0] for place in range(self.end)]
        whole = {batch: start for batch, start in whole.items() if start < self.end}
        running = sum(map(len, self.starting)) + sum(sizes[batch] for batch in whole)
        self._done(len(first) - running)
        if INPUT not in self.golden.cache.sites:
            self._run_from_data(whole)
        for batch, start in whole.items():
            leaves = self.golden.cache.leaves(self.golden.cuts[start].site, batch)
            copies = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
            self._run_whole(batch, start, copies)
        self._run_packs()

    def _done(self, samples: int) -> None:
        if samples and self.on_batch is not None:
            self.on_batch(samples)

    def _run_from_data(self, whole: dict[int, int]) -> None:
        """Load and start the samples that start at the model's input, which was not kept."""
        samples, self.starting[0] = self.starting[0], self.starting[0][:0]
        parts = self._by_batch(samples)
        wanted = [*parts, *(batch for batch, start in whole.items() if start == 0)]
        runner = self.runner
        for batch, taken in some_batches(runner.loader, wanted, runner.judge, runner.device):
            (inputs,) = taken.inputs
            if batch in parts:
                here, rows = parts[batch]
                self.waiting[0].append(_Waiting(here, [inputs], rows))
                self._run_packs(only_full=True)
            else:
                del whole[batch]
                self._run_whole(batch, 0, [inputs])

    def _by_batch(self, samples: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Group ascending samples by batch: the samples, and their places in the batch."""
        parts: dict[int, tuple[Tensor, Tensor]] = {}
        while len(samples):
            batch = bisect_right(self.offsets, int(samples[0])) - 1
            count = int((samples < self.offsets[batch + 1]).sum())
            parts[batch] = (samples[:count], samples[:count] - self.offsets[batch])
            samples = samples[count:]
        return parts

    def _run_whole(self, batch: int, start: int, leaves: list[Any]) -> None:
        """Run a whole batch from a segment to the end, or until it is golden again for good."""
        samples = torch.arange(self.offsets[batch], self.offsets[batch + 1])
        last = int(self.struck.last[samples].max())
        state = with_leaves(self.golden.cuts[start].structure, iter(leaves))
        self.seen.clear()
        with self._numbered(samples, start):
            for place in range(start, self.end):
                if place > last and self._is_golden(place, batch, state):
                    break
                state = advance(self.model, self.golden.segments, place, state)
            else:
                self.revision.put(samples, state, len(samples))
        self.seen.note(batch)
        self._done(len(samples))

    def _is_golden(self, place: int, batch: int, state: Any) -> bool:
        golden = self.golden.cache.leaves(self.golden.cuts[place].site, batch)
        return all(map(same_bits, leaves_of(state), golden))

    @contextmanager
    def _numbered(self, samples: Tensor, start: int) -> Iterator[None]:
        """Number the samples of a forward, which may start in the middle."""
        with self.faults.samples(self.numbers[samples]):
            if start > 0:  # The first segment does it itself.
                self.faults.clock.begin(len(samples))
            yield

    def _run_packs(self, only_full: bool = False) -> None:
        """Run the samples that wait, and those that start from golden states.

        Full packs go first, the furthest of them before others to save memory. Then the earliest
        go, as no other samples can join them later.
        """
        while (place := self._next_place(only_full)) is not None:
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
                    self.revision.put(samples, state, size)
                    self._done(len(samples))
                    return
                kept = self._kept(place, samples, state)
                others = len(self.starting[place]) > 0 or len(self.waiting[place]) > 0
                # Repack only if the pack shrinks, has a size that rounds differently from here on,
                # or half of it is free for others.
                shrinks = self._size_for(len(kept), place) < size
                fits = size in self.sizes[place]
                if shrinks or not fits or (others and 2 * len(kept) <= self.most):
                    break
        self._done(len(samples) - len(kept))
        if len(kept):
            cut = self.golden.cuts[place]
            leaves = cut.assemble([(leaves_of(state), kept)], len(kept))
            self.waiting[place].append(_Waiting(samples[kept], leaves, torch.arange(len(kept))))

    def _take(self, place: int) -> tuple[Tensor, int, list[Any]]:
        """Make a pack of the samples that wait and start at a place.

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
        size = self._size_for(len(together), place)
        *most, last = ((part.leaves, part.rows) for part in parts)
        filled = (last[0], _padded(last[1], size - len(together) + len(last[1])))
        return together, size, cut.assemble([*most, filled], size)

    def _size_for(self, samples: int, place: int) -> int:
        """The smallest allowed batch for a number of samples in a segment; 0 for none."""
        return next(size for size in (0, *self.sizes[place]) if size >= samples)

    def _kept(self, place: int, samples: Tensor, state: Any) -> Tensor:
        """Places of the samples that must go on, int64; the others are golden again for good."""
        may_go = self.struck.last[samples] < place
        if not may_go.any():
            return torch.arange(len(samples))
        rows = may_go.nonzero()[:, 0]
        golden = self._golden_again(place, samples[rows], rows, leaves_of(state))
        may_go[rows] = golden.cpu()
        return (~may_go).nonzero()[:, 0]

    def _golden_again(self, place: int, samples: Tensor, rows: Tensor, leaves: list[Any]) -> Tensor:
        """Whether samples, at some rows of a pack's leaves, have the golden state; bool."""
        same = torch.zeros(len(samples), dtype=torch.bool)
        left, roles = samples.argsort(), self.golden.cuts[place].roles
        assert roles is not None
        if any(map(_is_large, leaves, roles)):
            # Most faults show in a slice, so that few samples are copied and compared as a whole.
            left = left[self._equal(place, samples[left], rows[left], leaves, _slice_of)]
        if len(left):
            same[left] = self._equal(place, samples[left], rows[left], leaves)
        return same

    def _equal(
        self,
        place: int,
        samples: Tensor,
        rows: Tensor,
        leaves: Sequence[Any],
        part_of: Callable[[Any, Role], Any] = lambda leaf, _: leaf,
    ) -> Tensor:
        """Whether a part of each leaf is the golden one, bool; `samples` are ascending."""
        cut = self.golden.cuts[place]
        roles = cut.roles
        assert roles is not None

        def parts(of: Sequence[Any]) -> list[Any]:
            return [part_of(leaf, role) for leaf, role in zip(of, roles, strict=True)]

        golden = [
            (parts(self.golden.cache.leaves(cut.site, batch)), inside)
            for batch, (_, inside) in self._by_batch(samples).items()
        ]
        expected = cut.assemble(golden, len(rows))
        found = cut.assemble([(parts(leaves), rows)], len(rows))
        same = torch.ones(len(rows), dtype=torch.bool)
        for role, a, b in zip(roles, expected, found, strict=True):
            if isinstance(role, SampleRows):
                same &= equal_samples(a, b, role).cpu()
            elif not same_bits(a, b):
                same[:] = False
        return same


def _is_large(leaf: Any, role: Role) -> bool:
    """Whether a sample has many elements in a leaf; the same in batches of any size."""
    if not isinstance(role, SampleRows) or leaf.dim() == 1 or leaf.numel() == 0:
        return False
    return bool(leaf.numel() // leaf.shape[role.dim] * role.each * role.outer > SMALL)


def _slice_of(leaf: Any, role: Role) -> Any:
    """A slice of a large leaf that holds a part of each sample (of images, one channel)."""
    if not isinstance(role, SampleRows) or not _is_large(leaf, role):
        return leaf
    dim = 1 if role.dim == 0 else 0
    return leaf.narrow(dim, leaf.shape[dim] // 2, 1)


def _padded(index: Tensor, size: int) -> Tensor:
    """Repeat the last entry of an index up to a size."""
    return torch.cat([index, index[-1:].expand(size - len(index))])
