"""The loops of a strike on the CPU, compiled by Numba.

Few elements are hit, so a strike is many small steps, and as calls of torch or NumPy most of
its time would go into calling. Each loop has its counterpart in torch, which serves other
devices and what a loop does not take; tests hold the two together, bit for bit.

The first call on a machine compiles (a second or two); the result is kept on disk, beside this
file or in the user's cache, where either can be written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numba
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]
    UInts = npt.NDArray[np.uint64]
    Floats = npt.NDArray[Any]

Function = TypeVar("Function", bound=Callable[..., Any])

# Odd constants of SplitMix64 (the golden ratio step and the two multipliers of its finaliser).
STEP = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)

# The counters of a sample start at its number, shifted by so many bits: no two of 2**32 samples
# with up to 2**32 elements share one.
SAMPLE_SHIFT = 32

# What a fault does, as `strike` knows it, and which bits it keeps and then flips.
MASKS, UNIFORM = 0, 1
Fault: TypeAlias = tuple[int, int, int]

# Hits that are drawn, then read, then struck together.
BLOCK = 256

# Where a loop goes on: row of the sample, position of its last hit in the tensor, draws of the
# sample so far. All is drawn when the row is the number of samples.
Place: TypeAlias = tuple[int, int, int]
START: Place = (0, -1, 0)

_STEP, _FIRST, _SECOND = (np.uint64(number) for number in (STEP, *MULTIPLIERS))
_SHIFTS = tuple(np.uint64(shift) for shift in SHIFTS)
_SAMPLE_SHIFT = np.uint64(SAMPLE_SHIFT)
_TWELVE = np.uint64(12)
_SIGN_OFF = np.int64((1 << 63) - 1)


# Numba takes ten times as long to look at a named tuple as at a plain one, so the loops are called
# with the fields, and name them inside.
class Word(NamedTuple):
    """A word as the loops know it; see `fxfault.codes.Word`."""

    lowest: int
    highest: int
    min: int
    max: int
    size: int
    all_ones: int
    msb: int
    signed: bool
    narrow: bool
    binary: bool


class Stream(NamedTuple):
    """Where the hits of a tensor come from.

    Attributes:
        key: of the site's random numbers, the 64 bits as a signed number.
        numbers: of the samples, uint64.
        elements: of one sample, at least 1.
        scale: 1 / ln(1 - p), what turns ln u into a gap.
    """

    key: int
    numbers: UInts
    elements: int
    scale: float


def _compiled(function: Function) -> Function:
    """Compile at the first call, without Python's lock while it runs."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # No folder for the cache can be written.
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]


@_compiled
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _SHIFTS[0])) * _FIRST
    x = (x ^ (x >> _SHIFTS[1])) * _SECOND
    return x ^ (x >> _SHIFTS[2])


@_compiled
def mix64(numbers: UInts) -> None:
    """Scramble in place; see `fxfault.random_numbers.mix64`."""
    for i in range(numbers.size):
        numbers[i] = _mix(numbers[i])


@_compiled
def _rehash(bits: Any) -> int:
    """Stream 0 of `fxfault.random_numbers.rehash`."""
    product = np.int64(bits * _STEP)
    return (product ^ (product >> 32)) & _SIGN_OFF


@_compiled
def _start(stream: Stream, row: int) -> Any:
    """The counter of a sample, hashed as far as all its draws have in common."""
    return (stream.numbers[row] << _SAMPLE_SHIFT) * _STEP + np.uint64(stream.key)


@_compiled
def _gap(bits: Any, scale: float) -> float:
    # An odd multiple of 2**-53: neither 0 nor 1 occurs.
    return math.log((np.float64(np.int64(bits >> _TWELVE)) + 0.5) * 2.0**-52) * scale


@_compiled
def draw_hits(given: tuple[Any, ...], place: Place, index: Ints, bits: Ints) -> tuple[int, Place]:
    """Draw hits until every sample is spanned or the arrays are full.

    Args:
        given: the fields of `Stream`, where they come from.
        place: where to go on; `START` at first.
        index: takes the positions, ascending.
        bits: takes the 64 random bits of each; same length.

    Returns:
        How many hits were written, and the place to go on from.
    """
    stream = Stream(*given)
    row, position, drawn = place
    count = 0
    while row < stream.numbers.size:
        last = (row + 1) * stream.elements - 1
        start = _start(stream, row)
        while True:
            hashed = _mix(start + np.uint64(drawn + 1) * _STEP)
            gap = _gap(hashed, stream.scale)
            if gap >= last - position:
                break
            if count == index.size:
                return count, (row, position, drawn)
            position += np.int64(gap) + 1
            index[count], bits[count] = position, np.int64(hashed)
            count += 1
            drawn += 1
        row, position, drawn = row + 1, last, 0
    return count, (row, position, drawn)


@_compiled
def find_struck(given: tuple[Any, ...], struck: Bools) -> None:
    """Say which samples have a hit at all: those whose first gap ends within them.

    Args:
        given: the fields of `Stream`, where the hits come from.
        struck: takes the answers, one for each sample.
    """
    stream = Stream(*given)
    for row in range(stream.numbers.size):
        struck[row] = _gap(_mix(_start(stream, row) + _STEP), stream.scale) < stream.elements


@_compiled
def _corrupt(code: int, bits: Any, word: Word, fault: Fault) -> int:
    """The code that is read back after a fault; `bits` are the hit's 64 random ones."""
    kind, keep, flip = fault
    pattern = (code + 1) // 2 if word.binary else code & word.all_ones
    if kind == MASKS:
        pattern = (pattern & keep) ^ flip
    elif word.narrow and not word.binary:
        r = np.int64(np.float64(_rehash(bits) >> 10) * 2.0**-53 * word.size)
        beyond = code + r - word.max - 1
        return beyond + ((beyond >> 63) & word.size) + word.min
    else:
        pattern = (pattern + _rehash(bits)) & word.all_ones
    if word.binary:
        return 2 * pattern - 1
    return (pattern ^ word.msb) - word.msb if word.signed else pattern


@_compiled
def strike(
    values: Floats,
    given_stream: tuple[Any, ...],
    quantiser: tuple[float, float, float],
    given_word: tuple[Any, ...],
    fault: Fault,
    place: Place,
    record: Ints,
) -> tuple[int, int, Place]:
    """Draw hits, read their codes, corrupt and write them, in one go.

    Args:
        values: of the whole tensor, float32 or float64, one dimension; changed in place.
        given_stream: the fields of `Stream`, where the hits come from.
        quantiser: scale, zero point, and how far from a code a value may lie, in codes.
        given_word: the fields of `Word`, what the codes are stored in.
        fault: what becomes of them.
        place: where to go on; `START` at first.
        record: takes the positions and the codes before and after, shape (3, n), until it is full;
            where n is 0 nothing is recorded and nothing stops the loop.

    Returns:
        How many hits there were, how many of their values are no codes, and the place to go on
        from.
    """
    word = Word(*given_word)
    scale, zero_point, limit = quantiser
    kind = values.dtype.type
    factor, shift = kind(scale), kind(zero_point)
    lowest, highest = np.float64(word.lowest), np.float64(word.highest)
    index, bits = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    clean = np.empty(BLOCK, values.dtype)
    total, wrong, room = 0, 0, record.shape[1]
    while place[0] < given_stream[1].size:
        block = min(BLOCK, room - total) if room > 0 else BLOCK
        if block == 0:
            break
        count, place = draw_hits(given_stream, place, index[:block], bits[:block])
        for i in range(count):  # By itself, so that these wait for memory together.
            clean[i] = values[index[i]]
        for i in range(count):
            exact = np.float64(clean[i]) / scale + zero_point
            rounded = min(max(np.rint(exact), lowest), highest)
            if word.binary:
                rounded = 1.0 if exact > 0 else -1.0
            code = np.int64(rounded)
            new = _corrupt(code, np.uint64(bits[i]), word, fault)
            wrong += not abs(exact - rounded) <= limit  # So that a NaN is wrong.
            # Always written, as a branch that nobody foretells takes longer.
            values[index[i]] = clean[i] if new == code else (kind(new) - shift) * factor
            if room > 0:
                record[0, total + i], record[1, total + i], record[2, total + i] = (
                    index[i],
                    code,
                    new,
                )
        total += count
    return total, wrong, place
