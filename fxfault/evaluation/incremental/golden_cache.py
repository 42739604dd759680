"""Activations of the fault-free run, kept within a memory budget.

The cache keeps the states of all batches at some cuts (see `fxfault.passes.segments`). A run that
starts from the state at a cut need not compute what comes before it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxfault.foreign import is_out_of_memory as _is_memory_error

INPUT = ""


@dataclass(frozen=True)
class Candidate:
    """A place at which states could be kept.

    Attributes:
        place: number of the segment that starts there; 0 is the model's input.
        bytes: size of the states of all batches.
        seconds: time from the data of one batch to this place.
    """

    place: int
    bytes: int
    seconds: float


def choose(candidates: Sequence[Candidate], starts: Sequence[int], budget: int) -> list[int]:
    """Choose the places at which keeping states saves most time, within a budget.

    A run that starts at a segment goes back to the last kept place before it, or to the data. All
    of `starts` count as equally frequent. The choice is greedy: the place that saves most seconds
    for each byte comes first.

    >>> early, late = Candidate(1, bytes=100, seconds=1.0), Candidate(2, bytes=10, seconds=4.0)
    >>> choose([early, late], starts=[1, 2], budget=1000)
    [1, 2]
    >>> choose([early, late], starts=[1, 2], budget=50)
    [2]

    Args:
        candidates: the candidates, in the order of their places.
        starts: segments at which runs start, ascending.
        budget: largest number of bytes.

    Returns:
        The chosen places, ascending.
    """
    end = max(starts, default=0) + 1
    chosen = [Candidate(-1, 0, 0.0), Candidate(end, 0, 0.0)]  # The data, and the end.
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
    """States by site and batch; `INPUT` stands for the model's input."""

    def __init__(self, sites: Iterable[str]) -> None:
        """Prepare to keep states at these sites."""
        self._states: dict[str, list[list[Any]]] = {site: [] for site in sites}

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites at which states are kept."""
        return tuple(self._states)

    def keep(self, site: str, leaves: Sequence[Any]) -> None:
        """Keep copies of the leaves of a batch's state; batches come in order.

        If memory runs out, the site is dropped.
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
        """The leaves kept at a site for a batch; callers must not write into them."""
        return self._states[site][batch]


def _copy(leaf: Any) -> Any:
    # A later operation may write into the tensor (in-place ReLU, residual sums).
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf


def bytes_of(leaves: Sequence[Any]) -> int:
    """Size of the tensors among some leaves."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU, torch raises a plain `RuntimeError`."""
    return _is_memory_error(error) or "DefaultCPUAllocator" in str(error)
