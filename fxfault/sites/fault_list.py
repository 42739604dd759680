"""The list of every fault of an evaluation: a row for each hit, and the files that hold it.

>>> place = Place("act", "activations", (3, 2), bits=4)
>>> numbers = {name: np.array([value]) for name, value in HIT.items()}
>>> found = FaultList((place,), ("bit_flip 3",), {**numbers, "element": np.array([5])})
>>> print(found.csv_text())
site,memory,call,sample,element,coordinates,fault,bits,mask,code_before,code_after,value_before,value_after
act,activations,1,0,5,"2,1",bit_flip 3,8,8,,,,
<BLANKLINE>
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fxfault.errors import ConfigError, FxFaultError
from fxfault.files.access import write_atomically
from fxfault.files.csv_fields import inert

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas

Numbers = Mapping[str, "npt.NDArray[Any]"]

COLUMNS = (
    *("site", "memory", "call", "sample", "element", "coordinates", "fault", "bits", "mask"),
    *("code_before", "code_after", "value_before", "value_after"),
)

# The numbers of a hit, with examples. -1 stands for bits or a mask that are not known.
HIT = {"place": 0, "call": 1, "sample": 0, "element": 0, "fault": 0, "bits": 8, "mask": 8}
# What only a forward shows.
CODES = ("code_before", "code_after", "value_before", "value_after")

ACTIVATIONS = "activations"
"""The memory of a site that strikes what a layer puts out; any other memory holds parameters."""

_AT_ONCE = 100_000  # rows


class Place(NamedTuple):
    """What a list says of a site.

    Attributes:
        name: the name of the site.
        memory: what is struck there: `activations`.
        shape: the shape of one sample.
        bits: bits of the word.
    """

    name: str
    memory: str
    shape: tuple[int, ...]
    bits: int


@dataclass(frozen=True, eq=False)
class FaultList:
    """Every hit of the faults of an evaluation, in the order of sites, samples and elements.

    A hit may leave its word as it was. If several faults hit an element, each has a row, in the
    order in which they struck.

    The columns of `rows`, `to_pandas` and the files are:

    - `site`, `memory`: the name of the site, and what is struck there (`activations`).
    - `call`: 1, or which call of the site in its forward, if there are several.
    - `sample`: number of the sample, from 0.
    - `element`, `coordinates`: the element of the sample, as its row-major number and as
      coordinates such as `3,0,5` (channel, row, column).
    - `fault`: the fault model.
    - `bits`: the bits that the fault model strikes, as a number whose binary digits they are: bit 0
      has the value 1. None if the fault model does not strike single bits, such as `random`.
    - `mask`: the bits that the hit changed: the word's pattern before XOR its pattern after. None
      if that depends on the code, and no forward was recorded.
    - `code_before`, `code_after`, `value_before`, `value_after`: the integer code and the
      dequantised value of the element. None if no forward was recorded.

    Attributes:
        places: the sites with hits.
        faults: labels of the fault models.
        numbers: the numbers of each hit by name, int64 arrays of one length: indices into `places`
            (`place`) and `faults` (`fault`), and the columns; values are float64. Unknown `bits`
            and `mask` are -1. Codes and values are missing if no forward was recorded.
    """

    places: tuple[Place, ...]
    faults: tuple[str, ...]
    numbers: Numbers

    def __len__(self) -> int:
        return len(self.numbers["element"])

    @property
    def has_codes(self) -> bool:
        """Whether a forward was recorded, so that codes, values and masks are known."""
        return CODES[0] in self.numbers

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each hit as a mapping from column to a plain value."""
        for start in range(0, len(self), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            columns = [self._column(name, part) for name in COLUMNS]
            for values in zip(*columns, strict=True):
                yield dict(zip(COLUMNS, values, strict=True))

    def _column(self, name: str, part: slice) -> Sequence[Any]:
        """A part of a column as plain values."""
        if name in ("site", "memory", "coordinates"):
            return self._place_column(name, part)
        if name == "fault":
            return [self.faults[number] for number in self.numbers[name][part].tolist()]
        if name not in self.numbers:
            return [None] * len(self.numbers["element"][part])
        values = self.numbers[name][part].tolist()
        if name in ("bits", "mask"):
            return [None if value < 0 else value for value in values]
        return values

    def _place_column(self, name: str, part: slice) -> list[str]:
        place, element = self.numbers["place"][part], self.numbers["element"][part]
        if name != "coordinates":
            texts = [p.name if name == "site" else p.memory for p in self.places]
            return [texts[number] for number in place.tolist()]
        found = np.empty(len(place), object)
        for number in np.unique(place).tolist():
            here = np.flatnonzero(place == number)
            parts = np.unravel_index(element[here], self.places[number].shape)
            joined = zip(*(axis.tolist() for axis in parts), strict=True)
            found[here] = [",".join(map(str, coordinates)) for coordinates in joined]
        return list(found)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a `pandas.DataFrame` with the columns; missing integers are `pandas.NA`.

        Raises:
            ConfigError: pandas is not installed.
        """
        if importlib.util.find_spec("pandas") is None:
            raise ConfigError(
                "to_pandas: pandas is not installed; pip install pandas, or use rows() or to_csv()"
            )
        import pandas

        whole = slice(None)
        return pandas.DataFrame(
            {
                name: pandas.array(self._column(name, whole), dtype=_kind(name))  # type: ignore[call-overload]
                for name in COLUMNS
            }
        )

    def csv_text(self) -> str:
        """Return the content of a CSV file; missing values are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for start in range(0, len(self), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            columns = [self._column(name, part) for name in COLUMNS]
            for name in ("site", "fault"):
                place = COLUMNS.index(name)
                columns[place] = [inert(value) for value in columns[place]]
            writer.writerows(zip(*columns, strict=True))
        return text.getvalue()

    def parquet_bytes(self) -> bytes:
        """Return the content of a Parquet file; missing values are null.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        check_parquet("to_parquet")
        import pyarrow
        import pyarrow.parquet

        kinds = {"string": pyarrow.string(), "Int64": pyarrow.int64(), "Float64": pyarrow.float64()}
        columns = {
            name: pyarrow.array(self._column(name, slice(None)), kinds[_kind(name)])
            for name in COLUMNS
        }
        target = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns), target)
        content: bytes = target.getvalue().to_pybytes()
        return content

    def to_csv(self, path: str | Path) -> None:
        """Write a CSV file; an existing file is replaced, whole or not at all.

        Raises:
            FxFaultError: the file cannot be written.
        """
        _write(path, self.csv_text())

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file; an existing file is replaced, whole or not at all.

        Raises:
            ConfigError: pyarrow is not installed.
            FxFaultError: the file cannot be written.
        """
        _write(path, self.parquet_bytes())

    def __repr__(self) -> str:
        hits = f"{len(self)} hit{'' if len(self) == 1 else 's'}"
        sites = len({place.name for place in self.places})
        codes = "with" if self.has_codes else "without"
        return f"FaultList({hits} at {sites} site{'' if sites == 1 else 's'}, {codes} codes)"


def check_parquet(flag: str) -> None:
    """Check before the work that a Parquet file can be written or read.

    Raises:
        ConfigError: pyarrow is not installed; the message starts with `flag`.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f'{flag}: pyarrow is not installed; pip install "fxfault[parquet]", or use CSV'
        )


def _kind(name: str) -> str:
    """The type of a column, as pandas calls it."""
    if name in ("site", "memory", "coordinates", "fault"):
        return "string"
    return "Float64" if name.startswith("value") else "Int64"


def _write(path: str | Path, content: str | bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise FxFaultError(f"{path}: cannot write the list of faults: {error}") from error
