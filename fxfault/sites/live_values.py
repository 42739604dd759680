"""The values of a forward at one place, and the samples' shares of them.

Such a state is a tuple of tensors, QuantTensors (named tuples of tensors), numbers and containers
of these. Its *leaves* are the tensors and numbers in it. A leaf holds rows for each sample of the
batch along one of its dimensions, or is a number that grows with the batch (a size), or is the same
for every batch (a scale).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxfault.faults.bits import bits_of

Rows = tuple[Tensor, Tensor]
"""A leaf of a batch, and the numbers of samples in it (int64, one dimension)."""


@dataclass(frozen=True)
class SampleRows:
    """A tensor with rows for each sample.

    Attributes:
        dim: the dimension along which samples lie.
        each: consecutive rows of one sample.
        outer: how many times the dimension runs through all samples.
    """

    dim: int
    each: int
    outer: int = 1


@dataclass(frozen=True)
class SampleCount:
    """A number that is a multiple of the batch.

    Attributes:
        each: the number for one sample.
    """

    each: int


Role = SampleRows | SampleCount | None
"""How a leaf belongs to the samples of a batch; None if it does not."""


def leaves_of(state: Any) -> list[Any]:
    """Return the leaves of a state, in a fixed order.

    >>> leaves_of((1, [2, {"a": 3}]))
    [1, 2, 3]
    """
    if isinstance(state, (tuple, list)):
        return [leaf for item in state for leaf in leaves_of(item)]
    if type(state) in (dict, OrderedDict):
        return [leaf for item in state.values() for leaf in leaves_of(item)]
    return [state]


def with_leaves(state: Any, leaves: Iterator[Any]) -> Any:
    """Return a state of the same structure with other leaves.

    >>> with_leaves((1, [2, {"a": 3}]), iter("xyz"))
    ('x', ['y', {'a': 'z'}])
    """
    if isinstance(state, tuple):
        items = [with_leaves(item, leaves) for item in state]
        # The constructor of a QuantTensor makes tensors of its arguments; `_make` does not.
        make = getattr(type(state), "_make", type(state))
        return make(items)
    if isinstance(state, list):
        return [with_leaves(item, leaves) for item in state]
    if type(state) in (dict, OrderedDict):
        return type(state)((key, with_leaves(item, leaves)) for key, item in state.items())
    return next(leaves)


def structure_of(state: Any) -> Any:
    """Return the state with None for every leaf, which keeps no tensor alive."""
    return with_leaves(state, iter([None] * len(leaves_of(state))))


def role_of(leaf: Any, batch: int, other: Any, other_batch: int) -> Role:
    """Find out how a leaf belongs to samples, from two batches of different sizes.

    This assumes consecutive rows; see `roles_of`.

    >>> role_of(torch.zeros(12, 5), 4, torch.zeros(6, 5), 2)
    SampleRows(dim=0, each=3, outer=1)
    >>> role_of(8, 4, 4, 2), role_of(0.5, 4, 0.5, 2)
    (SampleCount(each=2), None)

    Raises:
        ValueError: the two leaves fit no role.
    """
    if isinstance(leaf, Tensor):
        return _role_of_tensor(leaf, batch, other, other_batch)
    if type(leaf) is not type(other):
        raise ValueError(f"a {type(leaf).__name__} is a {type(other).__name__} in another batch")
    if type(leaf) is int and leaf != other:
        if leaf % batch or leaf // batch * other_batch != other:
            raise ValueError(f"{leaf} becomes {other} in another batch")
        return SampleCount(leaf // batch)
    if leaf is not other and leaf != other:
        raise ValueError(f"a {type(leaf).__name__} is another one in another batch")
    return None


def _role_of_tensor(leaf: Tensor, batch: int, other: Any, other_batch: int) -> Role:
    if not isinstance(other, Tensor) or other.dim() != leaf.dim() or leaf.is_sparse:
        raise ValueError("a tensor has another number of dimensions in another batch")
    changed = [d for d in range(leaf.dim()) if leaf.shape[d] != other.shape[d]]
    if not changed:
        return None
    (dim, *more), size = changed, leaf.shape[changed[0]]
    if more or size % batch or size // batch * other_batch != other.shape[dim]:
        shapes = f"{tuple(leaf.shape)} and {tuple(other.shape)}"
        raise ValueError(f"a tensor has the shapes {shapes} in two batches")
    return SampleRows(dim, size // batch)


def roles_of(leaf: Any, batch: int, other: Any, other_batch: int) -> list[Role]:
    """Find every way in which a leaf may belong to samples, from two batches of different sizes.

    >>> roles_of(torch.zeros(8, 5), 4, torch.zeros(4, 5), 2)[1]
    SampleRows(dim=0, each=1, outer=2)

    Returns:
        At least one role; consecutive rows come first.

    Raises:
        ValueError: the two leaves fit no role.
    """
    role = role_of(leaf, batch, other, other_batch)
    if not isinstance(role, SampleRows):
        return [role]
    every = role.each
    return [
        SampleRows(role.dim, every // outer, outer)
        for outer in range(1, every + 1)
        if every % outer == 0
    ]


def gather(parts: Sequence[Rows], role: SampleRows) -> Tensor:
    """Join samples of several batches, in a copy with the memory format of the first batch.

    >>> leaf = torch.arange(6).reshape(3, 2)
    >>> gather([(leaf, torch.tensor([2, 0])), (leaf, torch.tensor([1]))], SampleRows(0, 1))
    tensor([[4, 5],
            [0, 1],
            [2, 3]])
    """
    first, samples = parts[0]
    every = first.shape[role.dim] // (role.each * role.outer)
    if len(parts) == 1 and torch.equal(samples, torch.arange(every)):
        return first.clone()
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    dim = order.index(role.dim)
    sizes = (role.outer, -1, role.each)
    taken = [
        leaf.permute(order).unflatten(dim, sizes).index_select(dim + 1, samples.to(leaf.device))
        for leaf, samples in parts
    ]
    together = taken[0] if len(taken) == 1 else torch.cat(taken, dim + 1)
    together = together.flatten(dim, dim + 2)
    return together.permute([order.index(d) for d in range(together.dim())])


def equal_samples(a: Tensor, b: Tensor, role: SampleRows) -> Tensor:
    """Compare the samples of two leaves of one shape bit for bit; bool, on their device.

    >>> equal_samples(torch.tensor([[0.0], [1.0]]), torch.tensor([[-0.0], [1.0]]), SampleRows(0, 1))
    tensor([False,  True])
    """
    same = (bits_of(a) == bits_of(b)).movedim(role.dim, 0)
    same = same.unflatten(0, (role.outer, -1, role.each)).movedim(1, 0)
    return same.reshape(same.shape[0], -1).all(1)
