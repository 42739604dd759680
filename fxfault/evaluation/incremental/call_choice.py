"""Choose the calls whose results are kept, within a memory budget.

A call is of use if a site strikes after it and it is not inside another kept call that ends before
any such strike. The outermost calls come first: one result of a whole block stands for all that
runs in it. Calls inside serve the strikes in that block. The choice depends on the order of calls
and on sizes only, never on a clock.
"""

from __future__ import annotations

from bisect import bisect_right

from fxfault.evaluation.incremental.call_log import Log

Key = tuple[str, int]
"""The path of a module, and the number of its call in a forward, from 1."""


def keys_of(log: Log) -> list[Key]:
    """The key of each call of a forward."""
    seen: dict[str, int] = {}
    keys = []
    for call in log.calls:
        seen[call.path] = seen.get(call.path, 0) + 1
        keys.append((call.path, seen[call.path]))
    return keys


def choose_calls(log: Log, batches: int, budget: int) -> set[Key]:
    """Choose the calls to keep.

    Args:
        log: a forward of one batch, with the results that could be kept.
        batches: number of batches, taken to be of that size.
        budget: largest number of bytes for the results of all batches.
    """
    times = [strike.time for strike in log.strikes]
    keys = keys_of(log)
    chosen: dict[int, bool] = {}
    around = _enclosing(log)
    for number in sorted(range(len(keys)), key=lambda n: (log.calls[n].depth, n)):
        call = log.calls[number]
        if call.kept is None or call.end is None or call.kept.is_argument:
            continue
        end = _next_end(log, around[number], chosen)
        served = bisect_right(times, end) - bisect_right(times, call.end)
        size = call.kept.bytes * batches
        if served and size <= budget:
            chosen[number] = True
            budget -= size
    return {keys[number] for number in chosen}


def _enclosing(log: Log) -> list[list[int]]:
    """The numbers of the calls around each call, the outermost first."""
    found: list[list[int]] = []
    open_calls: list[int] = []
    for number, call in enumerate(log.calls):
        del open_calls[call.depth :]
        found.append(open_calls.copy())
        open_calls.append(number)
    return found


def _next_end(log: Log, around: list[int], chosen: dict[int, bool]) -> int:
    """When the innermost chosen call around a call ends; the end of the forward if there is none.

    From then on that call's own result serves.
    """
    ends = [log.calls[number].end or 0 for number in around if number in chosen]
    last = max([strike.time for strike in log.strikes], default=0)
    return min(ends, default=last)
