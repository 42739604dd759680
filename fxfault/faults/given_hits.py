"""The hits of one site that a list of faults gives, in place of a draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch

from fxfault.errors import SiteError
from fxfault.faults.layouts import Layout
from fxfault.faults.sampling import Hits, Numbers, on_host

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Integers = npt.NDArray[np.int64]

EVERY = -1
"""In place of the number of a run or a sample: all of them."""


class Origin(NamedTuple):
    """Where a list comes from, and what it calls its columns.

    >>> Origin("faults.csv").at(7, "mask")
    'faults.csv, line 7, column mask'

    Attributes:
        source: the file, or `list of faults`.
        unit: what the file counts: `line` or `row`.
        element: the column of element numbers.
        coordinates: the column of coordinates.
        mask: the column of bits.
        with_sample: whether coordinates may begin with the number of the sample.
    """

    source: str
    unit: str = "line"
    element: str = "element"
    coordinates: str = "coordinates"
    mask: str = "mask"
    with_sample: bool = False

    def at(self, line: int, column: str) -> str:
        """The start of a message about a field."""
        return f"{self.source}, {self.unit} {line}, column {column}"


@dataclass(frozen=True, eq=False)
class GivenHits:
    """The hits at one site, in the order of the list.

    All arrays are int64 and have one entry for each hit.

    Attributes:
        site: name of the site.
        origin: where the list comes from, for messages.
        line: line of each hit in the file.
        run: number of the trial that has the hit, or `EVERY`.
        call: which call of the site in a forward is struck, from 1.
        sample: number of the sample, or `EVERY`.
        element: row-major number of the element in its sample; -1 if only coordinates are given.
        mask: the bits to flip.
        coordinates: coordinates of each hit; empty if the list has none.
    """

    site: str
    origin: Origin
    line: Integers
    run: Integers
    call: Integers
    sample: Integers
    element: Integers
    mask: Integers
    coordinates: Sequence[tuple[int, ...]] = ()
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.line)

    @property
    def most_bits(self) -> int:
        """The fewest bits of a word that has all bits of the list, at least 1."""
        return max(1, int(self.mask.max(initial=1)).bit_length())

    def check(self, shape: tuple[int, ...]) -> None:
        """Check that all elements exist in samples of a shape.

        Raises:
            SiteError: one does not; the message names its line.
        """
        self._placed(shape)

    def hits(
        self, run: int, call: int, numbers: Numbers, layout: Layout, device: torch.device
    ) -> Iterator[Hits]:
        """Yield the hits of a batch at once; nothing if there are none.

        If the list names an element several times, all of its bits flip.

        Args:
            run: number of the trial.
            call: which call of the site this is.
            numbers: numbers of the batch's samples.
            layout: samples and elements of the tensor.
            device: the device for the hits.

        Raises:
            SiteError: an element does not exist; the message names its line.
        """
        sample, element = self._placed(layout.sample_shape)
        place, row = self._rows(run, call, numbers, sample)
        if len(row) == 0:
            return
        index = place * layout.elements + element[row]
        order = np.argsort(index, kind="stable")
        index, mask = index[order], self.mask[row[order]]
        first = np.flatnonzero(np.diff(index, prepend=-1))
        struck = torch.from_numpy(np.bitwise_xor.reduceat(mask, first))
        where = layout.place(torch.from_numpy(index[first]))
        yield Hits(where.to(device), struck=struck.to(device))

    def samples_hit(self, run: int, call: int, numbers: Numbers, shape: tuple[int, ...]) -> Tensor:
        """Say which samples have a hit; bool on the CPU, one for each number."""
        sample, _ = self._placed(shape)
        hit = np.zeros(len(numbers), bool)
        hit[self._rows(run, call, numbers, sample)[0]] = True
        return torch.from_numpy(hit)

    def _rows(
        self, run: int, call: int, numbers: Numbers, sample: Integers
    ) -> tuple[Integers, Integers]:
        """The hits of a batch: the place of the sample in the batch, and the entry."""
        own, anywhere = self._of_call(run, call, sample)
        wanted = on_host(numbers).view(np.int64)
        start = np.searchsorted(sample[own], wanted, "left")
        count = np.searchsorted(sample[own], wanted, "right") - start
        place = np.repeat(np.arange(len(wanted)), count)
        # Entry i of the sample at a place: its first entry and i more.
        more = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
        row = own[np.repeat(start, count) + more]
        if len(anywhere):
            place = np.concatenate([place, np.repeat(np.arange(len(wanted)), len(anywhere))])
            row = np.concatenate([row, np.tile(anywhere, len(wanted))])
        return place, row

    def _of_call(self, run: int, call: int, sample: Integers) -> tuple[Integers, Integers]:
        """The entries of a call, sorted by their samples, and those of every sample."""
        wanted = (run, call)
        if self._known.get("call") != wanted:
            here = ((self.run == run) | (self.run == EVERY)) & (self.call == call)
            own = np.flatnonzero(here & (sample != EVERY))
            own = own[np.argsort(sample[own], kind="stable")]
            self._known["entries"] = own, np.flatnonzero(here & (sample == EVERY))
            self._known["call"] = wanted
        own, anywhere = self._known["entries"]
        return own, anywhere

    def _placed(self, shape: tuple[int, ...]) -> tuple[Integers, Integers]:
        """The samples and the elements of all hits, in samples of a shape."""
        if self._known.get("shape") != shape:
            self._known.update(placed=self._place(shape), shape=shape, call=None)
        sample, element = self._known["placed"]
        return sample, element

    def _place(self, shape: tuple[int, ...]) -> tuple[Integers, Integers]:
        sample, element = self.sample.copy(), self.element.copy()
        size = int(np.prod(shape))
        lengths = np.array([len(c) for c in self.coordinates], np.int64)
        for length in np.unique(lengths[lengths > 0]).tolist():
            rows = np.flatnonzero(lengths == length)
            table = np.array([self.coordinates[row] for row in rows.tolist()], np.int64)
            if self.origin.with_sample and length == len(shape) + 1:
                sample[rows], table = table[:, 0], table[:, 1:]
            found = self._elements_of(rows, table, shape)
            differs = (element[rows] >= 0) & (element[rows] != found)
            if differs.any():
                at = int(np.flatnonzero(differs)[0])
                why = f"got {_text(table[at])}, which is element {found[at]}"
                self._refuse(
                    rows[at], self.origin.coordinates, f"{why}, not {element[rows[at]]}", shape
                )
            element[rows] = found
        beyond = np.flatnonzero((element < 0) | (element >= size))
        if len(beyond):
            got = f"got {element[beyond[0]]}, allowed: 0 to {size - 1}"
            self._refuse(beyond[0], self.origin.element, got, shape)
        return sample, element

    def _elements_of(
        self, rows: Integers, coordinates: Integers, shape: tuple[int, ...]
    ) -> Integers:
        """The elements at coordinates, which are an array of shape (hits, dimensions)."""
        if coordinates.shape[1] == len(shape):
            fits = np.all((coordinates >= 0) & (coordinates < np.array(shape)), axis=1)
        else:
            fits = np.zeros(len(rows), bool)
        if not fits.all():
            at = int(np.flatnonzero(~fits)[0])
            more = ", with the number of the sample first or not" if self.origin.with_sample else ""
            got = f"got {_text(coordinates[at])}, allowed: {len(shape)} coordinates{more}"
            self._refuse(rows[at], self.origin.coordinates, f"{got}, each below its size", shape)
        return np.ravel_multi_index(tuple(coordinates.T), shape)

    def _refuse(self, row: Any, column: str, why: str, shape: tuple[int, ...]) -> NoReturn:
        raise SiteError(
            f"{self.origin.at(int(self.line[row]), column)}: {why}, as a sample of site "
            f"{self.site} has the shape {shape}; was the list made for another network?"
        )


def _text(coordinates: Integers) -> str:
    """Write coordinates for a message: `(3, 0, 5)`."""
    return f"({', '.join(map(str, coordinates.tolist()))})"
