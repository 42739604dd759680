"""The rows or the estimates of a store, as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fxfault.cli.reports.campaign_findings import Findings
from fxfault.cli.terminal.outputs import inert
from fxfault.cli.terminal.text import ten_digits
from fxfault.errors import ConfigError
from fxfault.evaluation.rows import FIELDS
from fxfault.experiment.applied_settings import applied

SCHEMA = "fxfault-campaign/1"
FORMATS = ("csv", "json", "parquet")
# Between the names of sites that are struck together.
_SEPARATOR = ";"
_AT_ONCE = 100_000
# Other names of counts, for cells with a setting of the same name.
_OTHER_NAMES = {"faults": "hits"}

Row = Mapping[str, Any]


def check_format(file_format: str) -> None:
    """Check before the work that a format can be written; Parquet needs pyarrow."""
    if file_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            '--parquet: pyarrow is not installed; pip install "fxfault[parquet]", or use --csv'
        )


def exported(findings: Findings, what: str, file_format: str) -> str | bytes:
    """Give the content of an exported file.

    Args:
        findings: the content of a store.
        what: `trials` for a row for each trial, `cells` for a row for each cell with estimates.
        file_format: one of `FORMATS`.
    """
    rows = trial_rows(findings) if what == "trials" else cell_rows(findings)
    if file_format == "csv":
        return _csv(rows)
    if file_format == "json":
        return _json(findings, what, rows)
    return _parquet(rows)


def trial_rows(findings: Findings) -> Iterator[Row]:
    """Give each trial with the settings of its cell and its counts.

    If cells have several faults at once, `faults` is the name of these faults, and the number of
    elements that were hit is called `hits`.
    """
    settings = [cell.columns for cell in findings.summary.cells]
    names = FIELDS[1:]
    taken = {name for columns in settings for name in columns}
    shown = [_OTHER_NAMES.get(name, name) if name in taken else name for name in names]
    columns = [findings.table[name] for name in names]
    for start in range(0, len(findings.table["cell"]), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        cells = findings.table["cell"][part].tolist()
        counts = zip(*(column[part].tolist() for column in columns), strict=True)
        for cell, values in zip(cells, counts, strict=True):
            row = dict(zip(names, values, strict=True))
            # Missing with fewer than five classes.
            row["top5"] = None if math.isnan(row["top5"]) else int(row["top5"])
            yield {**settings[cell], **dict(zip(shown, row.values(), strict=True))}


def cell_rows(findings: Findings) -> Iterator[Row]:
    """Give each cell with its estimates and its state."""
    for row, state in zip(findings.summary.rows(), findings.states, strict=True):
        yield {**row, "state": state}


def _csv(rows: Iterator[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(map(_entry, row.values()))
    return text.getvalue()


def _entry(value: Any) -> Any:
    if isinstance(value, float):
        return ten_digits(value)
    return inert(_SEPARATOR.join(value) if isinstance(value, list) else value)


def _json(findings: Findings, what: str, rows: Iterator[Row]) -> str:
    document = {
        "schema": SCHEMA,
        "what": what,
        "confidence": findings.summary.confidence,
        "study": applied(findings.study.to_dict()),
        "fingerprint": findings.fingerprint,
        "rows": list(rows),
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _parquet(rows: Iterator[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    target = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), target)
    return target.getvalue().to_pybytes()
