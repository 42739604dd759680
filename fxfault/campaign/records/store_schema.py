"""Check the values read from a store, which may have been edited or damaged.

SQLite keeps any value in any column, so that a text may be where a count should be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fxfault.campaign.records.background import Background
from fxfault.campaign.studies.cell import Cell
from fxfault.errors import FxFaultError, StoreError
from fxfault.evaluation.rows import COUNTS, FIELDS, OPTIONAL, REALS, TrialRow
from fxfault.metrics.facts import MetricFacts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_MOST = 2**53  # Larger counts lose digits in float64, the type of the columns.
_OF_SAMPLES = (
    "correct",
    "golden_correct",
    "sdc",
    "critical_sdc",
    "due",
    "struck",
    "masked",
    "top5",
)
_OF_CLASSES = ("correct", "golden_correct", "critical_sdc", "top5")
_SECTIONS = ("study", "code", "data", "networks")

Columns = Mapping[str, "np.ndarray[Any, Any]"]


def refuse(path: Path, what: str) -> NoReturn:
    """Refuse a store because of a value.

    Raises:
        StoreError: always.
    """
    raise StoreError(
        f"{path}: {what}; the store is damaged, or another program changed it: go on from a copy, "
        "or start a new one"
    )


def checked_about(path: Path, about: Mapping[Any, Any]) -> tuple[dict[str, Any], ...]:
    """Read the table `about` of a store.

    Args:
        path: the store's file, for messages.
        about: the values of the table, by name.

    Returns:
        Study, fingerprint and background.

    Raises:
        StoreError: an entry is missing or malformed.
    """
    study = _mapping(path, about, "study")
    fingerprint = _mapping(path, about, "fingerprint")
    background = _mapping(path, {"background": "{}", **about}, "background")
    for name in _SECTIONS:
        if not isinstance(fingerprint.get(name, {}), dict):
            refuse(path, f"{name!r} of the fingerprint is not a mapping")
    networks = fingerprint.get("networks", {})
    axes = fingerprint.get("study", {}).get("axes", {})
    if not all(isinstance(network, dict) for network in networks.values()):
        refuse(path, "a network of the fingerprint is not a mapping")
    if not isinstance(axes, dict) or not all(isinstance(a, (list, dict)) for a in axes.values()):
        refuse(path, "the axes of the fingerprint are not lists")
    if "metric" in fingerprint:
        try:
            MetricFacts.from_dict(fingerprint["metric"])
        except ValueError:
            refuse(path, "the metric of the fingerprint is none")
    _check_background(path, background)
    return study, fingerprint, background


def _mapping(path: Path, about: Mapping[Any, Any], name: str) -> dict[str, Any]:
    try:
        content = json.loads(about[name])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: the store does not say which study it holds ({type(error).__name__} in "
            f"{name!r}); another program changed it"
        ) from error
    if not isinstance(content, dict):
        refuse(path, f"{name!r} holds a {type(content).__name__}, not a mapping")
    return content


def _check_background(path: Path, content: Mapping[str, Any]) -> None:
    from pydantic import ValidationError

    try:
        read = Background.from_dict(content)
    except ValidationError as error:
        first = error.errors()[0]
        refuse(path, f"background.{'.'.join(map(str, first['loc']))}: {first['msg']}")
    last = len(read.nodes) - 1
    if any(not 0 <= first < second <= last for first, second in read.edges):
        refuse(path, "background.edges: an edge does not lead to a later node")


def checked_cell(path: Path, key: Any) -> Cell:
    """Read the key of a cell.

    Raises:
        StoreError: no study can have such a cell.
    """
    try:
        settings = json.loads(key)
        cell = Cell.of(**settings)
        sound = _is_sound(cell.settings)
    except (TypeError, ValueError, LookupError, RecursionError):
        sound = False
    if not sound:
        refuse(path, f"{str(key)[:80]!r} is not a cell of a study")
    return cell


def _is_sound(settings: Mapping[str, Any]) -> bool:
    if not isinstance(settings["checkpoint"], (str, type(None))):
        return False
    if "injection_type" not in settings:
        faults = settings["faults"]
        return (
            isinstance(faults, dict)
            and len(faults) == 1
            and all(isinstance(entries, list) for entries in faults.values())
            and all(isinstance(entry, dict) for [*entries] in faults.values() for entry in entries)
        )
    rate = settings.get("probability", settings.get("num_faults"))
    layers = settings["layers"]
    return (
        isinstance(settings["injection_type"], (str, type(None)))
        and (rate is None or (_is_number(rate) and 0 <= rate <= _MOST))
        and (settings["bit"] is None or type(settings["bit"]) in (int, str))
        and (layers is None or all(isinstance(layer, str) for layer in layers))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def checked_row(path: Path, values: Sequence[Any]) -> TrialRow:
    """Read a row.

    Args:
        path: the store's file, for messages.
        values: the values of the fields of `TrialRow`.

    Raises:
        StoreError: a value has the wrong type, or the counts contradict each other.
    """
    found = dict(zip(FIELDS, values, strict=True))
    seconds, absent = found["seconds"], {name for name in COUNTS if found[name] is None}
    whole = all(type(found[name]) is int for name in COUNTS if name not in absent)
    whole &= all(found[name] is None or _is_number(found[name]) for name in REALS)
    if found["golden"] is None:  # Without a metric.
        whole &= absent <= {"top5"} and found["value"] is None and found["squares"] is None
    else:
        whole &= {"correct", "golden_correct", "critical_sdc", "top5"} <= absent <= set(OPTIONAL)
        whole &= ("sdc" in absent) == ("masked" in absent)
    if not whole or not _is_number(seconds) or seconds < 0:
        refuse(path, f"a trial of {values[0]} has values that are not counts: {list(values[1:])}")
    try:
        return TrialRow(*values)
    except FxFaultError:  # It calls that a bug, which it is where a row is counted.
        refuse(path, f"a trial of {values[0]} has counts that cannot be: {list(values[1:])}")


def check_columns(path: Path, columns: Columns, cells: Iterable[int]) -> None:
    """Check all rows of a table.

    Args:
        path: the store's file, for messages.
        columns: float64 columns, by the names of the fields; `cell` holds the store's numbers.
        cells: the numbers of the store's cells.

    Raises:
        StoreError: a row has impossible counts.
    """
    import numpy as np

    samples = columns["samples"]
    wrong = ~np.isin(columns["cell"], np.fromiter(cells, np.float64))
    has_metric = ~np.isnan(columns["golden"])
    none = np.zeros(len(samples), bool)
    for name, values in columns.items():
        absent = np.isnan(values)
        if name in REALS:
            # A value or a sum may be missing; without a metric, all are.
            bad = np.isinf(values) | (~absent & ~has_metric)
        else:
            bad = ~np.isfinite(values) | (values < 0) | (values > _MOST)
            bad |= (values % 1 != 0) if name != "seconds" else False
            if name in _OF_SAMPLES:
                bad |= values > samples
        known = none
        if name in OPTIONAL:
            known = absent & (has_metric | (name == "top5"))
        if name in _OF_CLASSES:
            bad |= ~absent & has_metric
        wrong |= bad & ~known
    for part, whole in (("masked", "struck"), ("faults", "elements")):
        wrong |= columns[part] > columns[whole]  # Comparisons with NaN are false.
    wrong |= np.isnan(columns["masked"]) != np.isnan(columns["sdc"])
    most = np.fmax(np.fmax(columns["correct"], columns["sdc"]), 0)
    wrong |= most + columns["due"] > samples
    if wrong.any():
        row = int(np.argmax(wrong))
        shown = {name: float(values[row]) for name, values in columns.items()}
        refuse(path, f"a trial has impossible counts: {shown}")
