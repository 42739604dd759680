"""The axes of a study: the values to cross, and the sites and bits that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxfault.config.fault_injection import SECTION, FaultInjectionConfig, contradictions
from fxfault.config.schema import parse_section, section_to_dict, tuple_from_list, unknown_key
from fxfault.errors import SiteError
from fxfault.experiment.sections import CheckpointConfig, ExperimentConfig
from fxfault.messages import got, key_text
from fxfault.sites.site_names import indices_of

EACH, ALL = "each", "all"
_OF_ONE_FAULT = ("injection_type", "probability", "num_faults", "bit", "memory", "layers")
AXES = (*_OF_ONE_FAULT, "faults", "checkpoint")
MOST_VALUES = 10_000  # Of an axis; to check so many takes seconds.

Layers = str | int | tuple[str | int, ...]
"""A value of the axis `layers`: `each`, `all`, a pattern, an index, or several of the last two."""

Faults = Mapping[str, Sequence[Mapping[str, Any]]]
"""The values of the axis `faults`: lists of the faults that strike together, by name."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values to cross; an axis that a file does not name has the single value of the base.

    An axis without values is not crossed: either `probability` or `num_faults` has values, and
    beside `faults` only `checkpoint` has any.

    Attributes:
        injection_type: names of fault models.
        probability: probabilities, in percent.
        num_faults: numbers of hits in each sample, or for weights and the like in each trial, in
            place of a probability.
        bit: bits, or `each`, for fault models that take a bit; None is the model's default.
        memory: what faults strike: `activations`, `weights`, `biases`, `parameters`, or several
            together. Empty for activations alone.
        layers: `each` (a cell for each site), `all`, a pattern or index, or several together.
        faults: lists of faults that strike together, by name; entries as plain values.
        checkpoint: files or `bundled:NAME`; None alone for a network that loads its weights.
    """

    injection_type: tuple[str, ...] = ()
    probability: tuple[float, ...] = ()
    num_faults: tuple[int, ...] = ()
    bit: tuple[int | str | None, ...] = ()
    memory: tuple[str | tuple[str, ...], ...] = ()
    layers: tuple[Layers, ...] = ()
    faults: Faults = field(default_factory=dict)
    checkpoint: tuple[str | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the axes that have values, as plain values."""
        given = {key: values for key, values in section_to_dict(self).items() if values}
        if self.checkpoint == (None,):  # The network's factory loads its weights.
            del given["checkpoint"]
        return given


def takes_bit(injection_type: str) -> bool:
    """Whether a fault model strikes one bit of the word, which the key `bit` names."""
    from fxfault.faults.fault_models import get_fault_model, takes

    return takes(get_fault_model(injection_type), "bit")


# -- checking -------------------------------------------------------------------------------


def given_axes(section: Any, problems: list[str]) -> dict[str, Any]:
    """Read the axes of a file; each but `faults` may be one value or a list of values."""
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
        values, found = _faults(given) if key == "faults" else _values(key, given)
        problems += found
        if not found:
            axes[key] = values
    if "probability" in section and "num_faults" in section:
        problems.append(
            "axes.probability, axes.num_faults: both are given, allowed: one of them, as a cell "
            "has a probability or a number of faults"
        )
    beside = [f"axes.{key}" for key in _OF_ONE_FAULT if key in section]
    if "faults" in section and beside:
        problems.append(
            f"axes.faults: given beside {', '.join(beside)}, which its entries set themselves; "
            "leave one or the other out"
        )
    return axes


def _values(key: str, given: Any) -> tuple[tuple[Any, ...], list[str]]:
    """Read the values of an axis other than `faults`; no values if there is a problem."""
    listed = isinstance(given, (list, tuple))
    values = list(given) if listed else [given]
    if not values:
        return (), [f"axes.{key}: got an empty list, allowed: a value or a list of values"]
    if len(values) > MOST_VALUES:
        return (), [f"axes.{key}: got a list of {len(values)} values, allowed: up to {MOST_VALUES}"]
    problems = []
    for index, value in enumerate(values):
        place = f"axes.{key}[{index}]" if listed else f"axes.{key}"
        problem = _value_problem(key, value, place)
        if problem is None and value in values[:index]:
            problem = f"{place}: {got(value)} is there twice"
        problems += [problem] if problem else []
    if problems:
        return (), problems
    return tuple(float(v) if key == "probability" else tuple_from_list(v) for v in values), []


# The rules of these axes differ from those of the key in its section: null is not allowed.
_ALLOWED = {
    "num_faults": f"an integer from 0 to {2**31 - 1}; leave the axis out for none",
    "layers": "'each', 'all', a pattern such as 'layer1.*', the index of a site, or a list of "
    "patterns and indices that are struck together",
    "checkpoint": "a file or 'bundled:NAME'",
}


def _value_problem(key: str, value: Any, place: str) -> str | None:
    """Check a value by the rules of its section, which are written only there."""
    plain = list(value) if isinstance(value, tuple) else value
    home: Any = CheckpointConfig if key == "checkpoint" else FaultInjectionConfig
    found = parse_section(home, {"path" if key == "checkpoint" else key: plain}, "axes")[1]
    if key in _ALLOWED and (found or value is None):
        return f"{place}: got {got(value)}, allowed: {_ALLOWED[key]}"
    return found[0].replace(f"axes.{key}", place, 1) if found else None


def _faults(given: Any) -> tuple[dict[str, Any], list[str]]:
    """Read the axis `faults`; its lists are checked as `fault_injection.faults` is."""
    if not isinstance(given, Mapping) or not given:
        return {}, [
            f"axes.faults: got {got(given)}, allowed: a mapping of a name to a list of the faults "
            "that strike together, such as `both: [{injection_type: msb_flip, probability: 1}, "
            "...]`"
        ]
    lists: dict[str, Any] = {}
    problems: list[str] = []
    for name, entries in given.items():
        where = f"axes.faults.{key_text(name)}"
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            problems.append(f"{where}: got {got(name)} as a name, allowed: text on one line")
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
    return lists, problems


def with_base(given: Mapping[str, Any], experiment: ExperimentConfig, problems: list[str]) -> Axes:
    """Fill the axes that the file does not name from the base, and check that they fit."""
    base = experiment.fault_injection
    checkpoint = given.get("checkpoint", (experiment.checkpoint.path,))
    if "faults" in given or base.faults is not None:
        return Axes(faults=_faults_with_base(given, base, problems), checkpoint=checkpoint)
    plain = base.to_dict()
    models = given.get("injection_type", (plain["injection_type"],))
    if "bit" in given and given["bit"] != (None,) and not any(map(takes_bit, models)):
        problems.append(
            f"axes.bit: none of the fault models {', '.join(models)} strikes a single bit; leave "
            "it out"
        )
    if "probability" in given and base.num_faults is not None:
        problems.append(
            f"axes.probability: given beside {SECTION}.num_faults: {base.num_faults}, which it "
            "would replace; leave one out"
        )
    counts = given.get("num_faults", () if base.num_faults is None else (base.num_faults,))
    for memory in given.get("memory", (base.memory,)) if counts else ():
        of_cell = dataclasses.replace(base, num_faults=counts[0], memory=memory)
        problems += contradictions(of_cell, SECTION)
    return Axes(
        injection_type=models,
        probability=() if counts else given.get("probability", (float(base.probability),)),
        num_faults=counts,
        bit=given.get("bit", (plain.get("bit"),)),
        memory=_memory(given.get("memory", (base.memory,))),
        layers=given.get("layers", (ALL,)),
        checkpoint=checkpoint,
    )


def _memory(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return () if values == ("activations",) else values


def _faults_with_base(
    given: Mapping[str, Any], base: FaultInjectionConfig, problems: list[str]
) -> Faults:
    """The lists of `faults`; the list of the base is named by its entries."""
    if "faults" in given:
        faults: Faults = given["faults"]
        first = next(iter(faults.values()))
        problems += contradictions(dataclasses.replace(base, faults=first), SECTION)
        problems += [
            f"axes.faults.{name}: {_NO_REPLAY}" for name, each in faults.items() if _replays(each)
        ]
        return faults
    problems += [
        f"axes.{key}: given beside {SECTION}.faults, whose entries set it; leave one out"
        for key in _OF_ONE_FAULT
        if key in given
    ]
    listed = base.to_dict()["faults"]
    if _replays(listed):
        problems.append(f"{SECTION}.faults: {_NO_REPLAY}")
    return {" + ".join(map(str, base.entries())): listed}


_NO_REPLAY = (
    "has a list to replay, which is the same in every trial; strike it by fxfault eval --replay"
)


def _replays(entries: Sequence[Mapping[str, Any]]) -> bool:
    return any("replay" in entry for entry in entries)


# -- crossing -------------------------------------------------------------------------------


def places_of(
    axis: Sequence[Layers], base: Any, names: Sequence[str]
) -> list[tuple[str, ...] | None]:
    """Return the sites of each cell for the values of `layers`; None stands for all sites."""

    def matching(layers: Any, where: str, words: Sequence[str] = ()) -> tuple[str, ...]:
        return tuple(names[index] for index in indices_of(layers, names, where, words))

    selected = matching(base, f"{SECTION}.layers")
    places: list[tuple[str, ...] | None] = []
    for value in axis:
        if value == EACH:
            places += [(name,) for name in selected]
        elif value == ALL:
            places.append(None if base is None else selected)
        else:
            places.append(matching(value, "axes.layers", (EACH, ALL)))
    return places


def names_in(memory: Any, names: Sequence[str], memories: Mapping[str, str]) -> list[str]:
    """The names of the sites in a memory, or in several."""
    kinds = (memory,) if isinstance(memory, str) else memory
    return [name for name in names if memories.get(name, "activations") in kinds]


def bits_of(
    axis: Sequence[int | str | None], sites: Sequence[str], widths: Mapping[str, int] | None
) -> list[int | str | None]:
    """Return the bits of some sites for the values of `bit`."""
    known = widths or {}
    unknown = [site for site in sites if site not in known]
    if EACH in axis and unknown:
        raise SiteError(
            f"axes.bit: 'each' needs the bit width of {', '.join(unknown)}, which is not "
            "known before a forward; list the bits"
        )
    bits: list[int | str | None] = []
    for value in axis:
        bits += range(min(known[site] for site in sites)) if value == EACH else [value]
    return list(dict.fromkeys(bits))
