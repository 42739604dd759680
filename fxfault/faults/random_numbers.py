"""Counter-based random numbers: a pure function of a key and counters.

There is no generator with a state. So the numbers do not depend on the order of draws, the batch
size, the device or the number of workers, and the global generators of torch, NumPy and Python are
neither read nor moved.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

from fxfault.faults import kernels
from fxfault.faults.kernels import MULTIPLIERS, SHIFTS, STEP

# With 52 random bits below the bits of 1.0, a float64 is in [1, 2).
_ONE = 0x3FF0000000000000
_ONE_LESS_HALF = 1 - 2.0**-53

_ALL_ONES = (1 << 64) - 1


def signed(value: int) -> int:
    """Return the int64 that has a 64-bit pattern."""
    value &= _ALL_ONES
    return value - (1 << 64) if value >> 63 else value


def stream_key(*parts: object) -> int:
    """Hash printable parts into the 64-bit key of a stream of random numbers.

    >>> stream_key(1, "relu") == stream_key(1, "relu")
    True
    >>> stream_key(1, "relu") == stream_key(2, "relu")
    False
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


known_key = functools.lru_cache(maxsize=4096)(stream_key)
"""`stream_key` with a cache."""


def mix64(counters: Tensor) -> Tensor:
    """Scramble 64-bit counters by a bijection, so that distinct counters stay distinct.

    Args:
        counters: int64, any shape.

    Returns:
        Scrambled counters, int64, same shape.

    Reference: SplitMix64; Steele, Lea, Flood, "Fast splittable pseudorandom number
        generators", OOPSLA 2014, with Stafford's variant 13 of the finaliser.
    """
    mixed = counters.clone(memory_format=torch.contiguous_format)
    if mixed.device.type == "cpu" and kernels.HAVE_NUMBA:
        kernels.mix64(mixed.view(-1).numpy().view(np.uint64))
    else:
        _mix64_torch(mixed)
    return mixed


def _mix64_torch(mixed: Tensor) -> None:
    """`mix64` in place, on any device and without Numba."""
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        # int64 has no logical right shift, so mask the copies of the sign bit.
        mixed ^= (mixed >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if multiplier != 1:
            mixed *= signed(multiplier)


def counter_hash(key: int, counters: Tensor) -> Tensor:
    """Return 64 random bits (int64) for each counter (int64, any shape) under a 64-bit key."""
    return mix64((counters + 1) * signed(STEP) + signed(key))


def uniform_int63(key: int, counters: Tensor) -> Tensor:
    """Return a uniform integer from 0 to 2**63 - 1 for each counter (int64).

    >>> import torch
    >>> uniform_int63(stream_key(0), torch.arange(2)).tolist() == [
    ...     uniform_int63(stream_key(0), torch.tensor([i])).item() for i in range(2)
    ... ]
    True
    """
    return counter_hash(key, counters) & ((1 << 63) - 1)


def rehash(bits: Tensor, stream: int) -> Tensor:
    """Make uniform integers from 0 to 2**63 - 1 from random bits that were used before.

    Stream 0, which nearly all fault models use, is one multiplication: a bijection whose upper
    bits depend on all lower ones, and so on the bits that no gap was made from. Other streams are
    mixed in full, and are independent of it and of each other.

    Args:
        bits: 64 random bits whose upper 52 were used for something else; int64, any shape.
        stream: number of the stream, from 0.
    """
    if stream > 0:
        return mix64(bits + signed(STEP * (stream + 1))).bitwise_and_((1 << 63) - 1)
    product = bits * signed(STEP)
    product ^= product >> 32
    return product.bitwise_and_((1 << 63) - 1)


def uniform_open(bits: Tensor) -> Tensor:
    """Make uniform float64 in the open interval (0, 1) from 64 random bits each (int64).

    The values are odd multiples of 2**-53, which float64 holds exactly; 0 and 1 do not occur.
    """
    high = (bits >> 12).bitwise_and_((1 << 52) - 1).bitwise_or_(_ONE)
    return high.view(torch.float64).sub_(_ONE_LESS_HALF)


def uniform_float(*parts: object) -> float:
    """Return one uniform number in [0, 1) from printable parts, computed on the host.

    >>> 0 <= uniform_float(7, "step", 3) < 1
    True
    """
    return (stream_key(*parts) >> 11) * 2.0**-53
