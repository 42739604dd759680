"""Activations of the fault-free run, kept within a budget of memory.

What is kept are states at cuts (see `fxfault.passes.segments`) for all batches of the data. With
the state at a cut, everything before it need not be computed again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INPUT = ""


@dataclass(frozen=True)
class Candidate:
    """A place at which states could be kept.

    Attributes:
        place: number of the segment that starts there; 0 is the model's input.
        bytes: of the states of all batches.
        seconds: it takes to get there from the data of one batch.
    """

    place: int
    bytes: int
    seconds: float


def choose(candidates: Sequence[Candidate], starts: Sequence[int], budget: int) -> list[int]:
    """Choose where to keep states so that most work is saved, within a budget.

    A run that starts at some segment goes back to the last kept place before it, or to the data.
    Each of `starts` is taken to be as frequent as the others. One place after the other is
    taken, the one that saves most seconds for each byte first.

    >>> early, late = Candidate(1, bytes=100, seconds=1.0), Candidate(2, bytes=10, seconds=4.0)
    >>> choose([early, late], starts=[1, 2], budget=1000)
    [1, 2]
    >>> choose([early, late], starts=[1, 2], budget=50)
    [2]

    Args:
        candidates: in the order of their places.
        starts: segments that runs start at, ascending.
        budget: bytes.

    Returns:
        Chosen places, ascending.
    """
    end = max(starts, default=0) + 1
    chosen = [Candidate(-1, 0, 0.0), Candidate(end, 0, 0.0)]  # The data, and what is behind all.
    while True:
        best, best_gain = None, 0.0
        for candidate in candidates:
            at = bisect_left(chosen, candidate.place, key=lambda c: c.place)
            if candidate.bytes > budget or chosen[at].place == candidate.place:
                continue
            after = bisect_left(starts, chosen[at].place)
            served = after - bisect_left(starts, candidate.place)
            gain = served * (candidate.seconds - chosen[at - 1].seconds) / max(1, candidate.bytes)
            if gain > best_gain:
                best, best_gain = candidate, gain
        if best is None:
            return [candidate.place for candidate in chosen[1:-1]]
        insort(chosen, best, key=lambda c: c.place)
        budget -= best.bytes


class GoldenCache:
    """States by site (see `Segment.site`; `INPUT` stands for the model's input) and batch."""

    def __init__(self, sites: Iterable[str]) -> None:
        """Make room for the states at some sites."""
        self._states: dict[str, list[list[Any]]] = {site: [] for site in sites}

    @property
    def sites(self) -> tuple[str, ...]:
        """Where states are kept."""
        return tuple(self._states)

    def keep(self, site: str, leaves: Sequence[Any]) -> None:
        """Keep the leaves of a batch's state, in copies; batches come in their order.

        Where memory gives out, nothing is kept at this site from then on.
        """
        if site not in self._states:
            return
        try:
            self._states[site].append([_copy(leaf) for leaf in leaves])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            del self._states[site]

    def leaves(self, site: str, batch: int) -> list[Any]:
        """What was kept at a site for a batch; nobody may write into it."""
        return self._states[site][batch]


def _copy(leaf: Any) -> Any:
    # A later operation may write into the tensor (in-place ReLU, residual sums).
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf


def bytes_of(leaves: Sequence[Any]) -> int:
    """Memory that copies of some leaves take."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; on the CPU torch has no type for it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error)
