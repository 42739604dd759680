"""Lists of faults to strike again, read from files of fxfault and of other tools.

A file is CSV or Parquet, and has the columns of `fxfault.sites.fault_list.FaultList`, of which
`site`, `mask` and `element` or `coordinates` are needed; or it has the columns `Injection`,
`Layer`, `TensorIndex` and `Bit` of other tools. `docs/fault-lists.md` describes both.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from fxfault.errors import ConfigError
from fxfault.faults.codes import MAX_BIT_WIDTH
from fxfault.faults.given_hits import EVERY, Origin
from fxfault.files.access import UnfitFileError, expanded, no_such_file, read_limited
from fxfault.files.csv_fields import given_to_inert
from fxfault.messages import and_more, got, one_line, quote_error, reason_of
from fxfault.sites.fault_list import COLUMNS, FaultList, check_parquet

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_BYTES = 2**28  # About three million rows, which take 3 GB of memory.
_LARGEST = 2**53
_NUMBER = re.compile(r"(-?[0-9]{1,19})(\.0+)?")
_BITS = re.compile(r"0[xX][0-9a-fA-F]{1,16}|0[bB][01]{1,64}")
_OURS, _OTHERS = ("site", "mask"), ("layer", "tensorindex", "bit")
_SPELLED = {"layer": "Layer", "tensorindex": "TensorIndex", "bit": "Bit", "injection": "Injection"}
_KNOWN_FORMS = (
    "site, sample, element or coordinates, and mask (as fxfault writes them), or Injection, "
    "Layer, TensorIndex and Bit"
)


class Hit(NamedTuple):
    """A row of a list.

    Attributes:
        line: its line in the file.
        site: name of the site, or in a list of another tool perhaps its index.
        memory: what is struck; None if the list does not say.
        injection: number of the injection, or `EVERY`.
        call: which call of the site, from 1.
        sample: number of the sample, or `EVERY`.
        element: row-major number of the element; -1 if only coordinates are given.
        coordinates: coordinates of the element, or empty.
        mask: the bits to flip.
    """

    line: int
    site: str
    memory: str | None
    injection: int
    call: int
    sample: int
    element: int
    coordinates: tuple[int, ...]
    mask: int


@dataclass(frozen=True, eq=False)
class ReplayList:
    """A list of faults to strike again.

    Attributes:
        origin: where it comes from.
        hits: its rows.
        by_index: whether a site may be given by its index.
    """

    origin: Origin
    hits: Sequence[Hit]
    by_index: bool = False

    @property
    def site_column(self) -> str:
        """The column of site names, for messages."""
        return "Layer" if self.by_index else "site"

    @functools.cached_property
    def injections(self) -> tuple[int, ...]:
        """The numbers of the injections, ascending; empty if the list has none."""
        found = {hit.injection for hit in self.hits} - {EVERY}
        return tuple(sorted(found))

    def column(self, name: str, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        """A column of numbers, in some rows."""
        place = Hit._fields.index(name)
        return np.array([self.hits[row][place] for row in rows], np.int64)


def replay_of(source: str | FaultList) -> ReplayList:
    """Read a list of faults.

    Args:
        source: the file, or a list.

    Raises:
        ConfigError: the file cannot be read, or a field is not allowed; the message names line
            and column.
    """
    if isinstance(source, FaultList):
        return _of_listing(source)
    path = expanded(source)
    try:
        status = os.stat(path)
    except OSError as error:
        why = no_such_file(path) if isinstance(error, FileNotFoundError) else reason_of(error)
        raise ConfigError(f"replay: {source}: {why}; check the path") from error
    return _read(source, str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _of_listing(listing: FaultList) -> ReplayList:
    origin = Origin("list of faults", "row")
    hits = []
    for number, row in enumerate(listing.rows(), start=1):
        mask = row["mask"]
        if mask is None:
            _refuse_mask(origin, number, row["fault"])
        places = row["site"], row["memory"], EVERY, row["call"], row["sample"], row["element"]
        hits.append(Hit(number, *places, (), mask))
    return ReplayList(origin, hits)


@functools.lru_cache(maxsize=4)
def _read(source: str, path: str, changed: int, size: int) -> ReplayList:
    """Read a file; its time and its size tell whether it was read before."""
    try:
        content = read_limited(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"replay: {source}: {reason_of(error)}") from error
    except UnfitFileError as error:
        raise ConfigError(f"replay: {source} {error}") from error
    is_parquet = content.startswith(b"PAR1")
    records = _parquet(source, content) if is_parquet else _csv(source, content)
    _, names = next(records)
    unit = "row" if is_parquet else "line"
    columns = [name.strip().lower() for name in names]
    _check_header(source, unit, names, columns)
    if set(_OTHERS) <= set(columns):
        origin = Origin(source, unit, "TensorIndex", "TensorIndex", "Bit", with_sample=True)
        read, by_index = _hit_of_others, True
    else:
        origin, read, by_index = Origin(source, unit), _hit_of_ours, False
    hits = []
    for line, fields in records:
        if not fields:  # An empty line.
            continue
        if len(fields) != len(columns):
            raise ConfigError(
                f"{source}, {unit} {line}: got {len(fields)} fields, allowed: {len(columns)}, one "
                "for each column"
            )
        values = _Fields(dict(zip(columns, fields, strict=True)), origin, line)
        hits.append(read(values))
    return ReplayList(origin, hits, by_index)


Record = tuple[int, list[str]]


def _csv(source: str, content: bytes) -> Iterator[Record]:
    """Yield the lines of a CSV file with their numbers; the header first."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{source}, line {line}: is no text in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        yield 1, next(reader, [])
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise ConfigError(f"{source}, line {reader.line_num}: is no CSV: {error}") from error


def _parquet(source: str, content: bytes) -> Iterator[Record]:
    """Yield the rows of a Parquet file as text, with their numbers from 1; the header first."""
    check_parquet(f"replay: {source}")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        names, columns = table.column_names, [column.to_pylist() for column in table.columns]
    except Exception as error:  # A damaged file may raise many kinds.
        raise ConfigError(f"{source}: is no Parquet file: {quote_error(error)}") from error
    yield 0, names
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        yield number, ["" if value is None else str(value) for value in values]


def _check_header(source: str, unit: str, names: Sequence[str], columns: Sequence[str]) -> None:
    where = f"{source}, line 1" if unit == "line" else source
    place = {"element", "coordinates"} & set(columns)
    if not (set(_OURS) <= set(columns) and place) and not set(_OTHERS) <= set(columns):
        shown = one_line(and_more(names, 15)) or "none"
        raise ConfigError(f"{where}: got the columns {shown}; allowed: {_KNOWN_FORMS}")
    known = _SPELLED if set(_OTHERS) <= set(columns) else COLUMNS
    for name, column in zip(names, columns, strict=True):
        if column and column not in known:  # A misspelt `sample` would mean every sample.
            shown = got(name).removesuffix(" (str)")
            listed = ", ".join(_SPELLED.get(key, key) for key in known)
            raise ConfigError(f"{where}: got the column {shown}, allowed: {listed}")
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: has the column {twice[0]} twice, allowed: once")


# The same texts come again and again.
@functools.lru_cache(maxsize=1 << 16)
def _number(text: str) -> int | None:
    """Read a whole number; None if the text is none."""
    written = _NUMBER.fullmatch(text)
    return None if written is None else int(written[1])


@functools.lru_cache(maxsize=1 << 16)
def _coordinates(text: str) -> tuple[int, ...] | None:
    """Read numbers such as `3,0,5` or `(3, 0, 5)`; None if the text has others."""
    inner = re.sub(r"^[(\[]|[)\]]$", "", text)
    numbers = [_number(part) for part in re.split(r"[,;\s]+", inner) if part]
    found = tuple(number for number in numbers if number is not None)
    return found if len(found) == len(numbers) else None


class _Fields:
    """The fields of a row by the lower-case names of their columns."""

    def __init__(self, fields: Mapping[str, str], origin: Origin, line: int) -> None:
        self.fields, self.origin, self.line = fields, origin, line

    def text(self, column: str) -> str:
        """A field; empty if there is no such column."""
        return self.fields.get(column, "").strip()

    def whole(self, column: str, least: int, most: int = _LARGEST, empty: int | None = None) -> int:
        """A whole number; `empty` if the field is empty and may be."""
        text = self.text(column)
        if not text and empty is not None:
            return empty
        number = _number(text)
        if number is None and column == "mask" and _BITS.fullmatch(text):
            number = int(text, 0)
        if number is None or not least <= number <= most:
            upper = " up" if most == _LARGEST else f" to {most}"
            self.refuse(column, f"a whole number from {least}{upper}")
        return number

    def coordinates(self, column: str, least: int) -> tuple[int, ...]:
        """Numbers such as `3,0,5` or `(3, 0, 5)`; empty if the field is."""
        found = _coordinates(self.text(column))
        if found is None or not all(least <= number <= _LARGEST for number in found):
            self.refuse(column, "coordinates such as (3, 0, 5)")
        return found

    def refuse(self, column: str, allowed: str) -> NoReturn:
        """Raise an error about a field."""
        text = self.text(column)
        shown = got(text).removesuffix(" (str)") if text else "nothing"
        where = self.origin.at(self.line, _SPELLED.get(column, column))
        raise ConfigError(f"{where}: got {shown}, allowed: {allowed}")


def _hit_of_ours(fields: _Fields) -> Hit:
    if not fields.text("mask"):
        _refuse_mask(fields.origin, fields.line, fields.text("fault"))
    name = fields.text("site")
    if not name:
        fields.refuse("site", "the name of a site")
    if fields.origin.unit == "line":  # Of a CSV file.
        name = given_to_inert(name)
    element = fields.whole("element", -1, empty=-1)
    coordinates = fields.coordinates("coordinates", 0)
    if element < 0 and not coordinates:
        column = "element" if "element" in fields.fields else "coordinates"
        fields.refuse(column, "the element that is hit")
    return Hit(
        line=fields.line,
        site=name,
        memory=fields.text("memory") or None,
        injection=EVERY,
        call=fields.whole("call", 1, empty=1),
        sample=fields.whole("sample", EVERY, empty=EVERY),
        element=element,
        coordinates=coordinates,
        mask=fields.whole("mask", 0, 2**MAX_BIT_WIDTH - 1),
    )


def _hit_of_others(fields: _Fields) -> Hit:
    name = fields.text("layer")
    if not name:
        fields.refuse("layer", "the name or the index of a site")
    coordinates = fields.coordinates("tensorindex", -1)
    alone = len(coordinates) == 1  # The row-major number of an element.
    if not coordinates or (alone and coordinates[0] < 0):
        fields.refuse("tensorindex", "the number of an element, or coordinates such as (3, 0, 5)")
    return Hit(
        line=fields.line,
        site=name,
        memory=None,
        injection=fields.whole("injection", 0, empty=EVERY),
        call=1,
        sample=EVERY,
        element=coordinates[0] if alone else -1,
        coordinates=() if alone else coordinates,
        mask=1 << fields.whole("bit", 0, MAX_BIT_WIDTH - 1),
    )


def _refuse_mask(origin: Origin, line: int, fault: Any) -> NoReturn:
    raise ConfigError(
        f"{origin.at(line, 'mask')}: got nothing, allowed: the bits that changed; those of "
        f"{fault or 'such a fault'} are known after a forward only: list the faults of one "
        "(`listing` with inputs, or fxfault campaign faults)"
    )
