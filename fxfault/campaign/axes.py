"""The axes of a study: which values are crossed, and what they mean for a network's sites."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxfault.config import SECTION, FaultInjectionConfig, contradictions
from fxfault.errors import SiteError
from fxfault.experiment import ExperimentConfig
from fxfault.schema import got, key_text, known_keys, parse_section, section_to_dict, unknown_key

EACH, ALL = "each", "all"
_OF_ONE_FAULT = ("injection_type", "probability", "num_faults", "bit", "layers")
AXES = (*_OF_ONE_FAULT, "faults", "checkpoint")
MOST_VALUES = 10_000  # Of an axis; to check so many takes seconds.

Layers = str | int | tuple[str | int, ...]
"""One value of the axis `layers`: `each`, `all`, a pattern, an index, or several of these two."""


Faults = Mapping[str, Sequence[Mapping[str, Any]]]
"""The values of the axis `faults`: by a name for each, the faults that strike in one run."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values that are crossed; one that a file does not name has the base's single value.

    An axis without values is not crossed: of `probability` and `num_faults` one has values, and
    where `faults` has some, only `checkpoint` has any beside it.

    Attributes:
        injection_type: names of fault models.
        probability: in percent.
        num_faults: hits of each sample, in place of a probability.
        bit: bits, or `each`; for fault models that take a bit. None: not asked.
        layers: `each` (a cell for each site), `all`, a pattern or index, or several together.
        faults: several faults that strike together, by a name; entries as plain values.
        checkpoint: files or `bundled:NAME`.
    """

    injection_type: tuple[str, ...] = ()
    probability: tuple[float, ...] = ()
    num_faults: tuple[int, ...] = ()
    bit: tuple[int | str | None, ...] = ()
    layers: tuple[Layers, ...] = ()
    faults: Faults = field(default_factory=dict)
    checkpoint: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the axes that have values, as plain values."""
        return {key: values for key, values in section_to_dict(self).items() if values}


def takes_bit(injection_type: str) -> bool:
    """Whether a fault model strikes one bit of the word, which the key `bit` names.

    A fault model says so with an attribute `takes_bit` that is true.
    """
    from fxfault.fault_models import get_fault_model

    return bool(getattr(get_fault_model(injection_type), "takes_bit", False))


# -- checking -------------------------------------------------------------------------------


def given_axes(section: Any, problems: list[str]) -> dict[str, Any]:
    """Read the axes that a file names; each but `faults` may be one value or a list of them."""
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        problems.append(f"axes: got {got(section)}, allowed: a mapping of keys to values")
        return {}
    axes: dict[str, Any] = {}
    for key, given in section.items():
        if key not in AXES:
            problems.append(unknown_key(key, "axes.", AXES))
            continue
        found = len(problems)
        values = _faults(given, problems) if key == "faults" else _values(key, given, problems)
        if len(problems) == found:
            axes[key] = values
    problems += _clashes(section)
    return axes


def _clashes(section: Mapping[Any, Any]) -> list[str]:
    """Say which axes cannot be named together."""
    problems = []
    if "probability" in section and "num_faults" in section:
        problems.append(
            "axes.probability, axes.num_faults: both are given, allowed: one of them, as a cell "
            "has a probability or a number of faults"
        )
    beside = [f"axes.{key}" for key in _OF_ONE_FAULT if key in section]
    if "faults" in section and beside:
        problems.append(
            f"axes.faults: given beside {', '.join(beside)}, which its entries say for themselves; "
            "leave one or the other out"
        )
    return problems


def _values(key: str, given: Any, problems: list[str]) -> tuple[Any, ...]:
    listed = isinstance(given, (list, tuple))
    values = list(given) if listed else [given]
    places = [f"axes.{key}[{i}]" if listed else f"axes.{key}" for i in range(len(values))]
    found = _axis_problems(key, values, places)
    problems += found
    return () if found else tuple(_AXIS_VALUE[key](value) for value in values)


def _faults(given: Any, problems: list[str]) -> dict[str, Any]:
    """Read the axis `faults`; its lists are checked as `fault_injection.faults` is."""
    if not isinstance(given, Mapping) or not given:
        problems.append(
            f"axes.faults: got {got(given)}, allowed: a mapping of a name to a list of what "
            "strikes together, such as `both: [{injection_type: msb_flip, probability: 1}, ...]`"
        )
        return {}
    lists: dict[str, Any] = {}
    for name, entries in given.items():
        where = f"axes.faults.{key_text(name)}"
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            problems.append(f"{where}: got {got(name)} as a name, allowed: text in one line")
            continue
        if entries is None:
            problems.append(
                f"{where}: got null, allowed: a non-empty list of mappings, one for each fault"
            )
            continue
        config, found = parse_section(FaultInjectionConfig, {"faults": entries}, "axes")
        problems += [text.replace("axes.faults", where, 1) for text in found]
        if config is not None:
            lists[name] = config.to_dict()["faults"]
    return lists


def _axis_problems(key: str, values: Sequence[Any], places: Sequence[str]) -> list[str]:
    if not values:
        return [f"axes.{key}: got an empty list, allowed: a value or a list of values"]
    if len(values) > MOST_VALUES:
        return [f"axes.{key}: got a list of {len(values)} values, allowed: up to {MOST_VALUES}"]
    problems = []
    for index, (value, place) in enumerate(zip(values, places, strict=True)):
        found = _VALUE_PROBLEM[key](value, place)
        if not found and value in values[:index]:
            found = f"{place}: {got(value)} is there twice"
        problems += [found] if found else []
    return problems


def _fault_value_problem(key: str) -> Callable[[Any, str], str | None]:
    """Check as the key of `fault_injection` is checked, so that the rules stand in one place."""

    def problem(value: Any, place: str) -> str | None:
        _, found = parse_section(FaultInjectionConfig, {key: value}, "axes")
        return found[0].replace(f"axes.{key}", place, 1) if found else None

    return problem


def _num_faults_problem(value: Any, place: str) -> str | None:
    if value is None:
        return f"{place}: got null, allowed: an integer from 0; leave the axis out for none"
    found = _fault_value_problem("num_faults")(value, place)
    return found.replace(" or null", "") if found else None


def _bit_problem(value: Any, place: str) -> str | None:
    # Where no fault model takes a bit, `with_base` says that.
    if value == EACH or "bit" not in known_keys(FaultInjectionConfig):
        return None
    return _fault_value_problem("bit")(value, place)


def _layers_problem(value: Any, place: str) -> str | None:
    several = list(value) if isinstance(value, (list, tuple)) else [value]
    if several and all(_is_place(item) for item in several):
        return None
    return (
        f"{place}: got {got(value)}, allowed: 'each', 'all', a pattern such as 'layer1.*', the "
        "index of a site, or a list of patterns and indices that are struck together"
    )


def _is_place(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _checkpoint_problem(value: Any, place: str) -> str | None:
    if isinstance(value, str) and value:
        return None
    return f"{place}: got {got(value)}, allowed: a file or 'bundled:NAME'"


_VALUE_PROBLEM: dict[str, Callable[[Any, str], str | None]] = {
    "injection_type": _fault_value_problem("injection_type"),
    "probability": _fault_value_problem("probability"),
    "num_faults": _num_faults_problem,
    "bit": _bit_problem,
    "layers": _layers_problem,
    "checkpoint": _checkpoint_problem,
}
_AXIS_VALUE: dict[str, Callable[[Any], Any]] = {
    "injection_type": lambda value: value,
    "probability": float,
    "num_faults": lambda value: value,
    "bit": lambda value: value,
    "layers": lambda value: tuple(value) if isinstance(value, (list, tuple)) else value,
    "checkpoint": lambda value: value,
}


def with_base(given: Mapping[str, Any], experiment: ExperimentConfig, problems: list[str]) -> Axes:
    """Fill the axes that the file does not name from the base, and check what they make."""
    base = experiment.fault_injection
    checkpoint = given.get("checkpoint", (experiment.checkpoint.path,))
    if "faults" in given or base.faults is not None:
        return Axes(faults=_faults_with_base(given, base, problems), checkpoint=checkpoint)
    plain = base.to_dict()
    models = given.get("injection_type", (plain["injection_type"],))
    bits = given.get("bit", (plain.get("bit"),))
    if "bit" in given and given["bit"] != (None,) and not any(map(takes_bit, models)):
        problems.append(
            f"axes.bit: none of the fault models {', '.join(models)} strikes a single bit; leave "
            "it out"
        )
    probabilities, counts = _rates_with_base(given, base, problems)
    return Axes(
        injection_type=models,
        probability=probabilities,
        num_faults=counts,
        bit=bits,
        layers=given.get("layers", (ALL,)),
        checkpoint=checkpoint,
    )


def _rates_with_base(
    given: Mapping[str, Any], base: FaultInjectionConfig, problems: list[str]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Give `probability` and `num_faults`, of which one says how often faults strike."""
    if "probability" in given and base.num_faults is not None:
        problems.append(
            f"axes.probability: given beside {SECTION}.num_faults: {base.num_faults}, in whose "
            "place it would be; leave one out"
        )
    if "num_faults" not in given and base.num_faults is None:
        return given.get("probability", (float(base.probability),)), ()
    counts = given.get("num_faults", (base.num_faults,))
    problems += contradictions(dataclasses.replace(base, num_faults=counts[0]), SECTION)
    return (), counts


def _faults_with_base(
    given: Mapping[str, Any], base: FaultInjectionConfig, problems: list[str]
) -> Faults:
    """Give the lists of `faults`; that of the base is named by what it holds."""
    if "faults" in given:
        faults: Faults = given["faults"]
        first = next(iter(faults.values()))
        problems += contradictions(dataclasses.replace(base, faults=first), SECTION)
        return faults
    problems += [
        f"axes.{key}: given beside {SECTION}.faults, whose entries say it; leave one out"
        for key in _OF_ONE_FAULT
        if key in given
    ]
    return {" + ".join(map(str, base.entries())): base.to_dict()["faults"]}


# -- crossing -------------------------------------------------------------------------------


def places_of(
    axis: Sequence[Layers], base: Any, names: Sequence[str]
) -> list[tuple[str, ...] | None]:
    """Turn the values of `layers` into the sites of each cell; None stands for all sites."""
    selected = tuple(names) if base is None else _matching(_several(base), names)
    places: list[tuple[str, ...] | None] = []
    for value in axis:
        if value == EACH:
            places += [(name,) for name in selected]
        elif value == ALL:
            places.append(None if base is None else selected)
        else:
            places.append(_matching(_several(value), names))
    return places


def _several(layers: Any) -> Sequence[str | int]:
    return [layers] if isinstance(layers, (str, int)) else list(layers)


def _matching(items: Sequence[str | int], names: Sequence[str]) -> tuple[str, ...]:
    """Find the sites of some patterns and indices, in the order of execution."""
    chosen: set[str] = set()
    for item in items:
        if isinstance(item, int):
            found = list(names[item : item + 1])
        else:
            found = [name for name in names if fnmatch.fnmatchcase(name, item)]
        if not found:
            close = difflib.get_close_matches(str(item), names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(names[:12]))
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            raise SiteError(
                f"axes.layers: {item!r} matches no site; {hint}the {len(names)} sites are: "
                f"{listed}{more}"
            )
        chosen.update(found)
    return tuple(name for name in names if name in chosen)


def bits_of(
    axis: Sequence[int | str | None], sites: Sequence[str], widths: Mapping[str, int] | None
) -> list[int | str | None]:
    """Turn the values of `bit` into the bits of some sites."""
    bits: list[int | str | None] = []
    for value in axis:
        if value != EACH:
            bits.append(value)
            continue
        unknown = [site for site in sites if site not in (widths or {})]
        if widths is None or unknown:
            raise SiteError(
                f"axes.bit: 'each' needs the bit width of {', '.join(unknown)}, which is not "
                "known before a forward; name the bits"
            )
        bits += range(min(widths[site] for site in sites))
    return list(dict.fromkeys(bits))
