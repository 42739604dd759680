"""The rows or the estimates of a store, as CSV, JSON or Parquet."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fxfault.errors import ConfigError
from fxfault.evaluation.rows import FIELDS, OPTIONAL, REALS
from fxfault.experiment.applied_settings import applied
from fxfault.results.reports.campaign_findings import Findings
from fxfault.results.reports.text import csv_text

SCHEMA = "fxfault-campaign/1"
FORMATS = ("csv", "json", "parquet")
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
    """Give the content of an exported file: a row for each trial, or for each cell."""
    rows = rows_of(findings, what)
    if file_format == "csv":
        return csv_text(rows)
    if file_format == "json":
        return _json(findings, what, rows)
    return _parquet(rows)


def rows_of(findings: Findings, what: str) -> Iterator[Row]:
    """Give a row for each trial (`what` is `trials`), or for each cell."""
    return _trial_rows(findings) if what == "trials" else _cell_rows(findings)


def _trial_rows(findings: Findings) -> Iterator[Row]:
    """Give each trial with the settings of its cell and its counts.

    If cells have several faults at once, `faults` is the name of these faults, and the number of
    elements that were hit is called `hits`. If no trial has any `due`, that column is left out.
    With a metric, `value`, `golden` and `squares` take the place of what only classes have.
    """
    settings = [cell.columns for cell in findings.summary.cells]
    metric = findings.summary.metric
    hidden = {*(() if findings.summary.has_due else ("due",))}
    if metric.is_accuracy:
        hidden.update(REALS)
    else:
        hidden.update(("correct", "golden_correct", "critical_sdc", "top5"))
        hidden.update(() if metric.has_sdc else ("sdc", "masked", "squares"))
    names = [name for name in FIELDS[1:] if name not in hidden]
    taken = {name for columns in settings for name in columns}
    shown = [_OTHER_NAMES.get(name, name) if name in taken else name for name in names]
    columns = [findings.table[name] for name in names]
    hollow = [name for name in names if name in OPTIONAL]
    for start in range(0, len(findings.table["cell"]), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        cells = findings.table["cell"][part].tolist()
        counts = zip(*(column[part].tolist() for column in columns), strict=True)
        for cell, values in zip(cells, counts, strict=True):
            row = dict(zip(names, values, strict=True))
            for name in hollow:  # `top5` is missing with fewer than five classes, for instance.
                missing = math.isnan(row[name])
                row[name] = None if missing else row[name] if name in REALS else int(row[name])
            yield {**settings[cell], **dict(zip(shown, row.values(), strict=True))}


def _cell_rows(findings: Findings) -> Iterator[Row]:
    for row, state in zip(findings.summary.rows(), findings.states, strict=True):
        yield {**row, "state": state}


def _json(findings: Findings, what: str, rows: Iterator[Row]) -> str:
    metric = findings.summary.metric.to_dict()
    document = {
        "schema": SCHEMA,
        "what": what,
        **({} if findings.summary.metric.is_accuracy else {"metric": metric}),
        "confidence": findings.summary.confidence,
        "study": applied(findings.study.to_dict()),
        "fingerprint": findings.fingerprint,
        "verdict": findings.verdict().to_dict(),
    }
    # Row by row: as Python objects, a million of them would take over a gigabyte.
    text = io.StringIO()
    text.write(json.dumps(document, allow_nan=False).removesuffix("}") + ', "rows": [')
    for number, row in enumerate(rows):
        text.write((", " if number else "") + json.dumps(row, allow_nan=False))
    text.write("]}\n")
    return text.getvalue()


def _parquet(rows: Iterator[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    parts = [pyarrow.Table.from_pylist(list(itertools.islice(rows, _AT_ONCE)))]
    while part := list(itertools.islice(rows, _AT_ONCE)):
        parts.append(pyarrow.Table.from_pylist(part))
    # A column may have no value, or whole numbers only, in one part and others in the next.
    table = pyarrow.concat_tables(parts, promote_options="permissive")
    target = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, target)
    return target.getvalue().to_pybytes()
