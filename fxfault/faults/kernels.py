"""The loops of a strike on the CPU, compiled by Numba.

Few elements are hit, so a strike consists of many small steps. As calls of torch or NumPy they
would cost more to call than to run. Every step has a counterpart in torch for other devices and
for faults that the loops do not support; tests compare the two bit for bit. Draws made ahead (which
samples are hit, exact numbers of faults) use these loops for every device.

The first call on a machine compiles for a second or two. Numba keeps the result on disk, beside
this file or in the user's cache, if it can write there. All loops stay in this one file, because
Numba does not notice a change in another file that a cached loop calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import numpy as np

try:
    import numba
    from numba.extending import intrinsic
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    numba = None

    def intrinsic(_: Any) -> Any:
        """Nothing uses what this replaces."""
        return None


if TYPE_CHECKING:
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]
    UInts = npt.NDArray[np.uint64]
    Floats = npt.NDArray[Any]

# Without Numba, `fxfault.faults.without_loops` and the operations of torch serve.
HAVE_NUMBA = numba is not None

Function = TypeVar("Function", bound=Callable[..., Any])

# Odd constants of SplitMix64 (the golden ratio step and the two multipliers of its finaliser).
STEP = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)

# The counters of a sample start at its number shifted by this many bits, so that no two of 2**32
# samples with up to 2**32 elements share one.
SAMPLE_SHIFT = 32

# The effect of a fault: MASKS with the bits to keep and the bits to flip afterwards; UNIFORM with
# two zeros; or FLIP, CLEAR or SET with the group of bits to strike, shifted to bit 0, and the
# number of places it can have. If that number is 0, each hit comes with the bits to strike.
MASKS, UNIFORM, FLIP, CLEAR, SET = range(5)
Fault: TypeAlias = tuple[int, int, int]

# Hits to draw, read and strike together.
BLOCK = 256

# Where a loop continues: row of the sample, position of the last hit in the tensor, draws of the
# sample so far. The loop is done when the row equals the number of samples.
Place: TypeAlias = tuple[int, int, int]
START: Place = (0, -1, 0)

_STEP, _FIRST, _SECOND = (np.uint64(number) for number in (STEP, *MULTIPLIERS))
_SHIFTS = tuple(np.uint64(shift) for shift in SHIFTS)
_SAMPLE_SHIFT = np.uint64(SAMPLE_SHIFT)
_ELEVEN, _TWELVE = np.uint64(11), np.uint64(12)
_SIGN_OFF = np.int64((1 << 63) - 1)


# Before each call Numba inspects every field of a tuple, but plain numbers and arrays are cheap. So
# `strike`, which every site calls, takes the word as an array and the rest as plain numbers.
class Word(NamedTuple):
    """A word for the loops, passed as an int64 array; see `fxfault.faults.codes.Word`."""

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


class Order(NamedTuple):
    """The memory order of a sample's elements.

    Attributes:
        channels: number of channels if memory is channels-last; 1 if it is row-major.
        places: elements of one channel.
    """

    channels: int
    places: int


ROW_MAJOR = Order(1, 1)


class Stream(NamedTuple):
    """What determines the hits of a tensor.

    Attributes:
        key: key of the random numbers, 64 bits as a signed number.
        numbers: sample numbers, uint64.
        elements: elements of one sample, at least 1.
        scale: 1 / ln(1 - p), the factor from ln u to a gap.
        outer: pieces of a sample; see `fxfault.faults.layouts.Layout`.
    """

    key: int
    numbers: UInts
    elements: int
    scale: float
    outer: int = 1


def _needs_numba(*_: Any) -> NoReturn:
    raise RuntimeError("Numba is not installed, so there are no compiled loops")


def _compiled(function: Function) -> Function:
    """Compile at the first call; the compiled function runs without Python's global lock."""
    if numba is None:
        return _needs_numba  # type: ignore[return-value]
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # There is no writable folder for the cache.
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]


@_compiled
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _SHIFTS[0])) * _FIRST
    x = (x ^ (x >> _SHIFTS[1])) * _SECOND
    return x ^ (x >> _SHIFTS[2])


@_compiled
def mix64(numbers: UInts) -> None:
    """Hash numbers in place; see `fxfault.faults.random_numbers.mix64`."""
    for i in range(numbers.size):
        numbers[i] = _mix(numbers[i])


@_compiled
def _rehash(bits: Any) -> int:
    """Stream 0 of `fxfault.faults.random_numbers.rehash`."""
    product = np.int64(bits * _STEP)
    return (product ^ (product >> 32)) & _SIGN_OFF


@_compiled
def _start(stream: Stream, row: int) -> Any:
    """The counter at which a sample starts, times the step, plus the key."""
    return (stream.numbers[row] << _SAMPLE_SHIFT) * _STEP + np.uint64(stream.key)


@_compiled
def _gap(bits: Any, scale: float) -> float:
    # u is an odd multiple of 2**-53, so neither 0 nor 1 occurs.
    return math.log((np.float64(np.int64(bits >> _TWELVE)) + 0.5) * 2.0**-52) * scale


@_compiled
def _place(index: Ints, count: int, samples: int, elements: int, outer: int) -> None:
    """Turn element numbers, counted sample after sample, into positions; see `Layout.place`."""
    if outer == 1:
        return
    piece = elements // outer
    for i in range(count):
        sample = index[i] // elements
        within = index[i] - sample * elements
        turn = within // piece
        index[i] = (turn * samples + sample) * piece + within - turn * piece


@_compiled
def draw_hits(given: tuple[Any, ...], place: Place, index: Ints, bits: Ints) -> tuple[int, Place]:
    """Draw hits until every sample is spanned or the arrays are full.

    Args:
        given: the fields of `Stream`.
        place: where to continue; `START` at first.
        index: output: positions, sample after sample, ascending within each piece.
        bits: output: 64 random bits of each hit; as long as `index`.

    Returns:
        The number of hits, and the place to continue from.
    """
    stream = Stream(*given)
    count, place = _draw_in_order(stream, place, index, bits)
    _place(index, count, stream.numbers.size, stream.elements, stream.outer)
    return count, place


@_compiled
def _draw_in_order(stream: Stream, place: Place, index: Ints, bits: Ints) -> tuple[int, Place]:
    """Do what `draw_hits` does, with elements numbered sample after sample."""
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
def _is_hit(stream: Stream, row: int) -> Any:
    return _gap(_mix(_start(stream, row) + _STEP), stream.scale) < stream.elements


@_compiled
def samples_hit(given: tuple[Any, ...], hit: Bools) -> None:
    """Say which samples have a hit: those in which the first gap ends.

    Args:
        given: the fields of `Stream`.
        hit: output: one answer for each sample.
    """
    stream = Stream(*given)
    for row in range(stream.numbers.size):
        hit[row] = _is_hit(stream, row)


@_compiled
def any_hit(key: int, numbers: UInts, elements: int, scale: float, outer: int) -> bool:
    """Say whether any sample has a hit, by the fields of `Stream`."""
    stream = Stream(key, numbers, elements, scale, outer)
    for row in range(numbers.size):  # noqa: SIM110  # Numba has no generator expressions.
        if _is_hit(stream, row):
            return True
    return False


@_compiled
def _upset(pattern: int, bits: Any, fault: Fault) -> int:
    """The bits of a word after a strike; see `fxfault.faults.fault_models.BitModel`."""
    kind, span, places = fault
    struck = np.int64(bits) if places == 0 else span << (_rehash(bits) % places)
    if kind == FLIP:
        return pattern ^ struck
    return pattern | struck if kind == SET else pattern & ~struck


@_compiled
def _corrupt(code: int, bits: Any, word: Word, fault: Fault) -> int:
    """The code after a fault; `bits` are the hit's 64 random bits, or the bits to strike."""
    kind, keep, flip = fault
    pattern = (code + 1) // 2 if word.binary else code & word.all_ones
    if kind == MASKS:
        pattern = (pattern & keep) ^ flip
    elif kind >= FLIP:
        pattern = _upset(pattern, bits, fault)
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
def _word_of(fields: Ints) -> Word:
    return Word(
        fields[0],
        fields[1],
        fields[2],
        fields[3],
        fields[4],
        fields[5],
        fields[6],
        fields[7] != 0,
        fields[8] != 0,
        fields[9] != 0,
    )


@_compiled
def _in_memory(position: int, channels: int, places: int) -> int:
    """The memory offset of an element, by its row-major position; see `Order`."""
    if channels == 1:
        return position
    within = position % (channels * places)
    channel = within // places
    return position - within + (within - channel * places) * channels + channel


def _inlined(function: Function) -> Function:
    """Compile into the callers."""
    if numba is None:
        return _needs_numba  # type: ignore[return-value]
    return numba.njit(inline="always")(function)  # type: ignore[no-any-return]


# Else LLVM keeps a call here, which makes the loops a quarter slower.
@_inlined
def _strike_one(
    values: Floats,
    at: int,
    value: float,
    bits: int,
    quantiser: tuple[float, float, float],
    word: Word,
    fault: Fault,
) -> tuple[int, int, bool]:
    """Corrupt one value; return its code before and after, and whether the value was a code."""
    scale, zero_point, limit = quantiser
    exact = np.float64(value) / scale + zero_point
    rounded = min(max(np.rint(exact), np.float64(word.lowest)), np.float64(word.highest))
    if word.binary:
        rounded = 1.0 if exact > 0 else -1.0
    code = np.int64(rounded)
    new = _corrupt(code, np.uint64(bits), word, fault)
    kind = values.dtype.type
    # Always write: a branch that cannot be predicted takes longer.
    values[at] = value if new == code else (kind(new) - kind(zero_point)) * kind(scale)
    return code, new, abs(exact - rounded) <= limit  # False for a NaN.


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to elements of the dtype of the array `like`."""
    kind = numba.types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, like), generate


@_compiled
def _values_at(address: int, like: Floats, count: int) -> Any:
    return numba.carray(_pointer(address, like), count)


# With a cold cache, torch takes longer to make an array of a tensor than the loop takes to strike
# it. So the loops get the tensor's address; `LIKE` tells them its dtype.
LIKE = {kind: np.empty(0, kind) for kind in ("float32", "float64")}


@_compiled
def strike(
    address: int,
    like: Floats,
    channels: int,
    places: int,
    key: int,
    numbers: UInts,
    elements: int,
    gap_scale: float,
    outer: int,
    scale: float,
    zero_point: float,
    limit: float,
    fields: Ints,
    effect: int,
    keep: int,
    flip: int,
    row: int,
    position: int,
    drawn: int,
    record: Ints,
) -> tuple[int, int, Place]:
    """Draw hits, read their codes, corrupt and write them, in one pass.

    Args:
        address: where the values lie, without gaps; the caller keeps them alive. They change.
        like: the array of `LIKE` that has their dtype.
        channels, places: the fields of `Order`.
        key, numbers, elements, gap_scale, outer: the fields of `Stream`.
        scale, zero_point: the parameters of the quantiser.
        limit: largest distance of a value from its code, in codes.
        fields: the fields of `Word`.
        effect, keep, flip: the fields of `Fault`.
        row, position, drawn: the fields of `Place`, where to continue; `START` at first.
        record: output: positions, codes before and codes after, shape (3, n). The loop stops when
            it is full; if n is 0, nothing is recorded and the loop runs to the end.

    Returns:
        The number of hits, the number of values among them that are not codes, and the place to
        continue from.
    """
    word, fault = _word_of(fields), (effect, keep, flip)
    stream, place = (key, numbers, elements, gap_scale, outer), (row, position, drawn)
    quantiser = (scale, zero_point, limit)
    values = _values_at(address, like, numbers.size * elements)
    index, bits = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    clean = np.empty(BLOCK, values.dtype)
    total, wrong, room = 0, 0, record.shape[1]
    while place[0] < numbers.size:
        block = min(BLOCK, room - total) if room > 0 else BLOCK
        if block == 0:
            break
        count, place = draw_hits(stream, place, index[:block], bits[:block])
        if room > 0:
            record[0, total : total + count] = index[:count]
        for i in range(count):  # A loop of its own, so that the reads wait for memory together.
            index[i] = _in_memory(index[i], channels, places)
            clean[i] = values[index[i]]
        for i in range(count):
            code, new, sound = _strike_one(
                values, index[i], clean[i], bits[i], quantiser, word, fault
            )
            wrong += not sound
            if room > 0:
                record[1, total + i], record[2, total + i] = code, new
        total += count
    return total, wrong, place


@_compiled
def strike_at(
    address: int,
    like: Floats,
    order: tuple[int, ...],
    index: Ints,
    bits: Ints,
    quantiser: tuple[float, float, float],
    fields: Ints,
    fault: Fault,
    record: Ints,
) -> int:
    """Read the codes at given positions, corrupt and write them.

    Args:
        address, like: as for `strike`.
        order: the fields of `Order`.
        index: row-major positions, each once.
        bits: 64 random bits of each hit, or the bits to strike; as long as `index`.
        quantiser: scale, zero point, and largest distance of a value from its code, in codes.
        fields: the fields of `Word`.
        fault: the effect of a hit.
        record: output: codes before and codes after, shape (2, hits).

    Returns:
        The number of values that are not codes.
    """
    word = _word_of(fields)
    channels, places = order
    wrong = 0
    values = _values_at(address, like, 1)  # Any count will do: nothing checks bounds.
    for i in range(index.size):
        at = _in_memory(index[i], channels, places)
        code, new, sound = _strike_one(values, at, values[at], bits[i], quantiser, word, fault)
        wrong += not sound
        record[0, i], record[1, i] = code, new
    return wrong


@_compiled
def draw_upsets(
    given: tuple[Any, ...], width: int, place: Place, index: Ints, struck: Ints
) -> tuple[int, Place]:
    """Draw hits of single bits, and join those of one word.

    Args:
        given: the fields of `Stream`; its elements are bits, numbered word after word.
        width: bits of a word.
        place: where to continue; `START` at first.
        index: output: positions of the words, in the order of `draw_hits`.
        struck: output: the bits to strike in each word; as long as `index`.

    Returns:
        The number of words, and the place to continue from.
    """
    stream = Stream(*given)
    elements = stream.elements // width
    row, position, drawn = place
    count = 0
    while row < stream.numbers.size:
        last = (row + 1) * stream.elements - 1
        start = _start(stream, row)
        while True:
            gap = _gap(_mix(start + np.uint64(drawn + 1) * _STEP), stream.scale)
            if gap >= last - position:
                break
            bit = position + np.int64(gap) + 1
            word = bit // width
            if count == 0 or index[count - 1] != word:
                if count == index.size:
                    _place(index, count, stream.numbers.size, elements, stream.outer)
                    return count, (row, position, drawn)
                index[count], struck[count] = word, 0
                count += 1
            struck[count - 1] |= np.int64(1) << (bit - word * width)
            position = bit
            drawn += 1
        row, position, drawn = row + 1, last, 0
    _place(index, count, stream.numbers.size, elements, stream.outer)
    return count, (row, position, drawn)


@_compiled
def _put(table: Ints, number: int) -> bool:
    """Put a number into an open hash table; return false if it is already there."""
    last = table.size - 1
    place = np.int64((np.uint64(number) * _STEP) >> _SHIFTS[0]) & last
    while table[place] >= 0:
        if table[place] == number:
            return False
        place = (place + 1) & last
    table[place] = number
    return True


@_compiled
def draw_distinct(key: int, numbers: UInts, total: int, drawn: Ints) -> None:
    """Draw distinct numbers from 0 to `total` - 1; every set of them is equally likely.

    Args:
        key: key of the random numbers, 64 bits as a signed number.
        numbers: sample numbers; each sample has its own draw.
        total: how many numbers there are, at least as many as are drawn.
        drawn: output: the numbers, ascending, shape (samples, draws).

    Reference: Floyd's algorithm; Bentley and Floyd, "Programming pearls: a sample of brilliance",
        Communications of the ACM 30(9), 1987.
    """
    count = drawn.shape[1]
    size = 2
    while size < 2 * count:
        size *= 2
    table = np.empty(size, np.int64)
    for row in range(numbers.size):
        table[:] = -1
        start = (numbers[row] << _SAMPLE_SHIFT) * _STEP + np.uint64(key)
        for j in range(count):
            most = total - count + j
            hashed = _mix(start + np.uint64(j + 1) * _STEP)
            number = np.int64(np.float64(np.int64(hashed >> _ELEVEN)) * 2.0**-53 * (most + 1))
            if not _put(table, number):
                number = most
                _put(table, number)
            drawn[row, j] = number
        drawn[row].sort()


@_compiled
def take_between(drawn: Ints, low: int, high: int, width: int, index: Ints, struck: Ints) -> int:
    """Select the numbers of one site from numbers drawn over several sites.

    Args:
        drawn: the numbers, ascending, shape (samples, draws).
        low: the site's first number.
        high: the number after the site's last one.
        width: numbers of one element: 1, or the bits of its word.
        index: output: positions of the elements in the tensor, ascending.
        struck: output: the bits to strike in each element; as long as `index`.

    Returns:
        The number of elements.
    """
    elements = (high - low) // width
    count = 0
    for row in range(drawn.shape[0]):
        for j in range(np.searchsorted(drawn[row], low), drawn.shape[1]):
            if drawn[row, j] >= high:
                break
            within = (drawn[row, j] - low) // width
            bit = np.int64(1) << (drawn[row, j] - low - within * width)
            position = row * elements + within
            if count == 0 or index[count - 1] != position:
                index[count], struck[count] = position, 0
                count += 1
            struck[count - 1] |= bit
    return count
