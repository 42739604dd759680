"""How the elements of a tensor belong to the samples of a batch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from torch import Tensor

# Why an activation does not belong to samples, although the samples are independent.
CONSTANT = "it is the same for every batch"


@dataclass(frozen=True)
class Layout:
    """How the elements of a tensor belong to the samples of a batch.

    A sample consists of `outer` pieces of the same size. The tensor holds the first pieces of all
    samples, then their second pieces, and so on. If there is one piece, the rows of a sample are
    consecutive. Two views of each sample that `torch.cat` joins are two pieces. A tensor of T time
    steps, (T, batch, features), has T pieces.

    >>> import torch
    >>> views = Layout(samples=3, rows=2, row_shape=(5,), outer=2)
    >>> views.place(torch.tensor([0, 4, 5, 10])).tolist()  # three of sample 0, one of sample 1
    [0, 4, 15, 5]

    Attributes:
        samples: number of samples in the tensor.
        rows: rows of one sample.
        row_shape: shape of one row, channels first: the dimensions after that of the samples.
        outer: pieces of a sample.
    """

    samples: int
    rows: int
    row_shape: tuple[int, ...]
    outer: int = 1

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, shape: tuple[int, ...], batch: int) -> Layout:
        """Guess the layout of a tensor from its shape and the batch size.

        A leading dimension of k times the batch is taken as k consecutive rows (windows, tokens)
        for each sample. Any other tensor is one sample. `fxfault.sites.sample_layouts` measures
        the true layout.

        >>> Layout.of((12, 3, 8, 8), batch=4)
        Layout(samples=4, rows=3, row_shape=(3, 8, 8), outer=1)
        >>> Layout.of((7, 5), batch=4).samples
        1
        """
        if not shape:
            return cls(1, 1, ())
        leading = shape[0]
        samples = batch if batch > 0 and leading % batch == 0 and leading > 0 else 1
        return cls(samples, leading // samples, tuple(shape[1:]))

    @functools.cached_property
    def elements(self) -> int:
        """Elements of one sample."""
        return self.rows * math.prod(self.row_shape)

    @functools.cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: that of a row, with the number of rows first if it has several.

        >>> Layout(4, 1, (3, 8, 8)).sample_shape, Layout(4, 6, (8,)).sample_shape
        ((3, 8, 8), (6, 8))
        """
        return self.row_shape if self.rows == 1 and self.row_shape else (self.rows, *self.row_shape)

    def place(self, index: Tensor) -> Tensor:
        """Return the positions in the tensor of elements that are counted sample after sample.

        Args:
            index: n * elements + e for element e of sample n; int64, any shape.

        Returns:
            Flat row-major positions; `index` itself if each sample is one piece.
        """
        if self.outer == 1 or self.samples == 1 or self.elements == 0:
            return index
        piece = self.elements // self.outer
        sample, within = index // self.elements, index % self.elements
        return (within // piece * self.samples + sample) * piece + within % piece

    def locate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples, and the elements in them, at some positions: the inverse of `place`.

        >>> import torch
        >>> views = Layout(samples=3, rows=2, row_shape=(5,), outer=2)
        >>> [found.tolist() for found in views.locate(torch.tensor([0, 4, 15, 5]))]
        [[0, 0, 0, 1], [0, 4, 5, 0]]

        Args:
            position: flat row-major positions in the tensor; int64, any shape.
        """
        elements = max(1, self.elements)
        if self.outer == 1 or self.samples == 1 or self.elements == 0:
            return position // elements, position % elements
        piece = elements // self.outer
        block, within = position // piece, position % piece
        return block % self.samples, block // self.samples * piece + within


@dataclass(frozen=True)
class Arrangement:
    """How the samples of any batch lie in an activation.

    They lie along one dimension, of size outer * batch * each, which
    `fxfault.sites.sample_layouts` measures.

    >>> views = Arrangement(dim=0, outer=2)
    >>> views.over((14, 5), batch=7)
    Layout(samples=7, rows=2, row_shape=(5,), outer=2)
    >>> views.over((6, 5), batch=3)
    Layout(samples=3, rows=2, row_shape=(5,), outer=2)
    >>> steps = Arrangement(dim=1, pieces=4)
    >>> print(steps), steps.over((4, 7, 5), batch=7)
    every N-th row (outer=4)
    (None, Layout(samples=7, rows=4, row_shape=(5,), outer=4))

    Attributes:
        dim: the dimension.
        outer: how many times the dimension runs through all samples.
        each: neighbouring entries of one sample along the dimension.
        pieces: pieces of a sample in the measured activation, see `Layout.outer`.
        why_batch: why the activation belongs to the batch as a whole and has one draw of faults;
            None if it belongs to samples.
        why_shared: how samples influence each other nevertheless; None if they do not.
        why_guessed: why other arrangements explain the measurement as well; None if none does.
    """

    dim: int = 0
    outer: int = 1
    each: int = 1
    pieces: int = 1
    why_batch: str | None = None
    why_shared: str | None = None
    why_guessed: str | None = None

    def over(self, shape: tuple[int, ...], batch: int) -> Layout:
        """Return the layout of an activation of some shape, from a batch of `batch` samples.

        A shape that does not fit the measurement is one sample.
        """
        if self.why_batch is None and self.dim == 0 and self.outer == 1:
            return Layout.of(shape, batch)
        return _layout_over(self, shape, batch)

    @property
    def mixing(self) -> bool:
        """Whether samples influence each other there, or may; constants do not count."""
        shared = self.why_shared is not None or self.why_guessed is not None
        return shared or self.why_batch not in (None, CONSTANT)

    @property
    def consecutive(self) -> bool:
        """Whether the rows of each sample are consecutive."""
        return self.why_batch is None and self.pieces == 1

    def __str__(self) -> str:
        if self.why_batch is not None:
            return f"belong to the batch: {self.why_batch}"
        rows = "row" if self.each == 1 else f"{self.each} rows"
        text = "consecutive" if self.consecutive else f"every N-th {rows} (outer={self.pieces})"
        if self.why_guessed is not None:
            text = f"{text}, which is a guess: {self.why_guessed}"
        return text if self.why_shared is None else f"{text}, but {self.why_shared}"


@functools.lru_cache(maxsize=1024)
def _layout_over(arrangement: Arrangement, shape: tuple[int, ...], batch: int) -> Layout:
    dim, one = arrangement.dim, Layout(1, *((shape[0], shape[1:]) if shape else (1, ())))
    if arrangement.why_batch is not None or dim >= len(shape) or batch < 1:
        return one
    each, rest = divmod(shape[dim], batch)
    if rest or each == 0:
        return one
    outer = arrangement.outer
    if arrangement.each == 1 and outer > 1:
        outer = each  # The number of views or time steps may differ from the measured one.
    elif each % outer:
        return one
    before = math.prod(shape[:dim])
    return Layout(batch, before * each, tuple(shape[dim + 1 :]), before * outer)
