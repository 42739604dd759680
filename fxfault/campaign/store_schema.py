"""What each value that is read from a store must be: one may have been edited, or damaged.

SQLite keeps any value in any column, so that a text may stand where a count was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fxfault.campaign.background import Background
from fxfault.campaign.errors import StoreError
from fxfault.campaign.rows import FIELDS, TrialRow
from fxfault.campaign.study import Cell
from fxfault.errors import FxFaultError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_MOST = 2**53  # A count beyond has lost digits in the columns of a table, which are float64.
_SECTIONS = ("study", "code", "data", "networks")

Columns = Mapping[str, "np.ndarray[Any, Any]"]


def refuse(path: Path, what: str) -> NoReturn:
    """Say what is wrong with a value, and what to do.

    Raises:
        StoreError: always.
    """
    raise StoreError(
        f"{path}: {what}; the store was damaged, or changed by something else: go on from a copy, "
        "or start a new one"
    )


def checked_about(path: Path, about: Mapping[Any, Any]) -> tuple[dict[str, Any], ...]:
    """Read what a store says of itself.

    Args:
        path: of the store.
        about: its table of that name.

    Returns:
        Study, fingerprint and background.

    Raises:
        StoreError: something is missing, or is not what it must be.
    """
    study = _mapping(path, about, "study")
    fingerprint = _mapping(path, about, "fingerprint")
    background = _mapping(path, {"background": "{}", **about}, "background")
    for name in _SECTIONS:
        if not isinstance(fingerprint.get(name, {}), dict):
            refuse(path, f"{name!r} of the fingerprint is no mapping")
    networks = fingerprint.get("networks", {})
    axes = fingerprint.get("study", {}).get("axes", {})
    if not all(isinstance(network, dict) for network in networks.values()):
        refuse(path, "a network of the fingerprint is no mapping")
    if not isinstance(axes, dict) or not all(isinstance(a, (list, dict)) for a in axes.values()):
        refuse(path, "the axes of the fingerprint are no lists")
    _check_background(path, background)
    return study, fingerprint, background


def _mapping(path: Path, about: Mapping[Any, Any], name: str) -> dict[str, Any]:
    try:
        content = json.loads(about[name])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: the store does not say which study it holds ({type(error).__name__} in "
            f"{name!r}); it was changed by something else"
        ) from error
    if not isinstance(content, dict):
        refuse(path, f"{name!r} holds a {type(content).__name__}, no mapping")
    return content


def _check_background(path: Path, content: Mapping[str, Any]) -> None:
    from pydantic import TypeAdapter, ValidationError

    try:
        read = TypeAdapter(Background).validate_json(json.dumps(content), strict=True)
    except (ValidationError, ValueError) as error:
        listed = error.errors() if isinstance(error, ValidationError) else []
        where = ".".join(map(str, listed[0]["loc"])) if listed else str(error)
        message = listed[0]["msg"] if listed else "no JSON"
        refuse(path, f"background.{where}: {message}")
    try:
        Background.from_dict(content)
    except (TypeError, ValueError, AttributeError) as error:  # Another key, beside what is there.
        refuse(path, f"background: {error}")
    last = len(read.nodes) - 1
    if any(not 0 <= first < second <= last for first, second in read.edges):
        refuse(path, "background.edges: an edge that leads to no later node")


def checked_cell(path: Path, key: Any) -> Cell:
    """Read the key of a cell.

    Raises:
        StoreError: it is none that a study can have.
    """
    try:
        settings = json.loads(key)
        cell = Cell.of(**settings)
        sound = _is_sound(cell.settings)
    except (TypeError, ValueError, LookupError, RecursionError):
        sound = False
    if not sound:
        refuse(path, f"{str(key)[:80]!r} is no cell of a study")
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
        path: of the store.
        values: as `TrialRow` has them.

    Raises:
        StoreError: a value has another type, or the counts cannot be.
    """
    *counts, seconds = values[1:]
    whole = all(type(c) is int for c in counts if c is not None)
    absent = [name for name, c in zip(FIELDS[1:], counts, strict=False) if c is None]
    if not whole or absent not in ([], ["top5"]) or not _is_number(seconds) or seconds < 0:
        refuse(path, f"a trial of {values[0]} has values that are no counts: {list(values[1:])}")
    try:
        return TrialRow(*values)
    except FxFaultError:  # It calls that a bug, which it is where a row is counted.
        refuse(path, f"a trial of {values[0]} has counts that cannot be: {list(values[1:])}")


def check_columns(path: Path, columns: Columns, cells: Iterable[int]) -> None:
    """See that all rows of a table can be.

    Args:
        path: of the store.
        columns: float64, by the names of the fields; `cell` holds the store's own numbers.
        cells: those that there are.

    Raises:
        StoreError: one of them cannot.
    """
    import numpy as np

    samples = columns["samples"]
    wrong = ~np.isin(columns["cell"], np.fromiter(cells, np.float64))
    for name, values in columns.items():
        known = np.isnan(values) if name == "top5" else np.zeros(len(values), bool)
        bad = ~np.isfinite(values) | (values < 0) | (values > _MOST)
        bad |= (values % 1 != 0) if name != "seconds" else False
        if name in ("correct", "golden_correct", "sdc", "critical_sdc", "struck", "masked", "top5"):
            bad |= values > samples
        wrong |= bad & ~known
    for part, whole in (("masked", "struck"), ("faults", "elements")):
        wrong |= columns[part] > columns[whole]
    if wrong.any():
        row = int(np.argmax(wrong))
        shown = {name: float(values[row]) for name, values in columns.items()}
        refuse(path, f"a trial has counts that cannot be: {shown}")
