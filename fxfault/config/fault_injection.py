"""What to inject, when and where, as one validated record.

>>> config = FaultInjectionConfig.from_dict({"enabled": True, "probability": 1})
>>> config.probability, config.injection_type
(1.0, 'random')
>>> FaultInjectionConfig.from_dict({"probabilty": 5.0, "mode": "all"})
Traceback (most recent call last):
...
fxfault.errors.InvalidConfigError: 2 problems: fault_injection.probabilty: unknown key; \
did you mean 'probability'?; fault_injection.mode: got 'all' (str), \
allowed: 'full_model' or 'layer'
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from fxfault.config.schema import (
    SectionList,
    known_keys,
    parse_section,
    section_reference,
    section_to_dict,
    tuple_from_list,
)
from fxfault.config.yaml_files import load_yaml
from fxfault.errors import ConfigError, InvalidConfigError
from fxfault.messages import did_you_mean, got, key_text

if TYPE_CHECKING:
    from fxfault.faults.fault_models import FaultModel
else:  # this module must not import torch; the schema checks the object by `_FaultModelRule`
    FaultModel = object

SECTION = "fault_injection"
MAX_SEED = 2**63 - 1


class _FaultModelRule:
    """The name of a registered fault model, or an instance of one.

    The registry imports torch and users add to it, so it is asked at each check and not before.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        instance = {"description": "from Python an object with a `corrupt` method"}
        return {"anyOf": [{"enum": list(_fault_model_names())}, instance]}

    @staticmethod
    def _check(value: Any) -> Any:
        if isinstance(value, str):
            allowed = value in _fault_model_names()
        else:
            allowed = callable(getattr(value, "corrupt", None)) and not isinstance(value, type)
        if not allowed:
            raise ValueError("no fault model")
        return value


def _fault_model_names() -> tuple[str, ...]:
    from fxfault.faults.fault_models import fault_model_names

    return fault_model_names()


_Name = Annotated[str, Field(min_length=1)]
_Index = Annotated[int, Field(ge=0)]
_Percentage = Annotated[float, Field(ge=0, le=100)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Interval = Annotated[int, Field(ge=1)]
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Bit = Annotated[int, Field(ge=0, le=31)] | Literal["random", "each"]
_Length = Annotated[int, Field(ge=1, le=32)]
_Layers = _Name | _Index | Annotated[list[_Name | _Index], Field(min_length=1)] | None
_AS_ABOVE = "As the key of the section."


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultEntry:
    """One of several faults that strike in one run: what, how often and where.

    >>> print(FaultEntry(injection_type="bit_flip", bit=3, probability=0.1))
    bit_flip 3 at 0.1 %
    >>> print(FaultEntry(num_faults=2))
    random, 2 a sample
    """

    injection_type: Annotated[str | FaultModel, _FaultModelRule(), Field(description=_AS_ABOVE)] = (
        "random"
    )
    bit: Annotated[_Bit | None, Field(description=_AS_ABOVE)] = None
    burst_length: Annotated[_Length | None, Field(description=_AS_ABOVE)] = None
    probability: Annotated[
        _Percentage | None,
        Field(description="As the key of the section; an entry has this or `num_faults`."),
    ] = None
    rate_unit: Annotated[Literal["element", "bit"], Field(description=_AS_ABOVE)] = "element"
    num_faults: Annotated[
        _Count | None,
        Field(description="As the key of the section; an entry has this or `probability`."),
    ] = None
    layers: Annotated[_Layers, Field(description=_AS_ABOVE)] = None

    @property
    def strikes(self) -> bool:
        """Whether it can hit anything."""
        return bool(self.probability or self.num_faults)

    def __str__(self) -> str:
        model: Any = self.injection_type
        label = str(getattr(model, "label", None) or getattr(model, "name", model))
        chosen = [str(c) for c in (self.bit, self.burst_length) if c not in (None, "random")]
        return f"{' '.join([label, *chosen])}{rate_text(self)}"


def rate_text(fault: Any) -> str:
    """How often a fault strikes, to stand after its name.

    >>> rate_text(FaultEntry(probability=0.1, rate_unit="bit")), rate_text(FaultEntry(num_faults=2))
    (' at 0.1 % of the bits', ', 2 a sample')

    Args:
        fault: has `probability`, `rate_unit` and `num_faults`.
    """
    bits = fault.rate_unit == "bit"
    if fault.num_faults is not None:
        return f", {fault.num_faults} {'bits ' if bits else ''}a sample"
    return f" at {fault.probability:g} %{' of the bits' if bits else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumPoint:
    """What the schedule of a training is from an epoch on; see `fxfault.config.curriculum`."""

    epoch: Annotated[int, Field(ge=0, description="Epoch of the point; epochs count from 0.")]
    probability: Annotated[
        _Percentage | None,
        Field(description="As the key of the section; null leaves the setting as it is."),
    ] = None
    step_interval: Annotated[
        _Fraction | None,
        Field(description="As the key of the section; null leaves the setting as it is."),
    ] = None
    epoch_interval: Annotated[
        _Interval | None,
        Field(description="As the key of the section; null leaves the setting as it is."),
    ] = None
    injection_type: Annotated[
        Annotated[str | FaultModel, _FaultModelRule()] | None,
        Field(description="As the key of the section; null leaves the setting as it is."),
    ] = None


CURRICULUM_SETTINGS = tuple(f.name for f in fields(CurriculumPoint) if f.name != "epoch")


def _point_problems(points: Sequence[CurriculumPoint | None]) -> list[str]:
    """Say which points come too early, and which name no setting."""
    problems = []
    last: int | None = None
    for index, point in enumerate(points):
        if point is None:
            continue
        if last is not None and point.epoch <= last:
            problems.append(
                f"[{index}].epoch: got {got(point.epoch)}, allowed: an integer above {last}, "
                "as the points are in ascending order"
            )
        last = point.epoch if last is None else max(last, point.epoch)
        if all(getattr(point, name) is None for name in CURRICULUM_SETTINGS):
            problems.append(
                f"[{index}]: names no setting, allowed: at least one of "
                f"{', '.join(CURRICULUM_SETTINGS)}"
            )
    return problems


def _entry_problems(entries: Sequence[FaultEntry | None]) -> list[str]:
    """Say what cannot be together in an entry."""
    problems = []
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        if (entry.probability is None) == (entry.num_faults is None):
            have = "neither" if entry.probability is None else "both"
            problems.append(f"[{index}]: has {have}, allowed: one of probability and num_faults")
        problems += _word_problems(entry, [entry.injection_type], f"[{index}].")
    return problems


def _word_problems(fault: Any, models: Sequence[str | FaultModel], prefix: str) -> list[str]:
    """Say which of `bit`, `burst_length` and `rate_unit` do not fit the fault models."""
    if (fault.bit, fault.burst_length, fault.rate_unit) == (None, None, "element"):
        return []
    from fxfault.faults.fault_models import fault_model_names, get_fault_model, takes

    def allowed(key: str) -> str:
        fit = [repr(name) for name in fault_model_names() if takes(get_fault_model(name), key)]
        return f"allowed with an injection_type of {', '.join(fit)}"

    problems = []
    named = [get_fault_model(model) for model in models if isinstance(model, str)]
    if fault.bit == "each":
        problems.append(
            f"{prefix}bit: got 'each' (str), which stands for many runs: make it an axis of a "
            "study (fxfault-campaign), or give one bit, from 0 to 31, or 'random'"
        )
    for key in ("bit", "burst_length"):
        value = getattr(fault, key)
        if value not in (None, "each") and not any(takes(model, key) for model in named):
            problems.append(f"{prefix}{key}: got {got(value)}, {allowed(key)}")
    if fault.rate_unit == "bit":
        if not all(takes(get_fault_model(model), "rate_unit") for model in models):
            problems.append(f"{prefix}rate_unit: got 'bit' (str), {allowed('rate_unit')}")
        elif fault.bit not in (None, "random", "each"):
            problems.append(
                f"{prefix}bit: got {got(fault.bit)}, allowed with rate_unit: bit: null or "
                "'random', as every bit is drawn by itself"
            )
    return problems


def contradictions(config: FaultInjectionConfig | None, where: str) -> list[str]:
    """Say which values are allowed, but not together.

    Args:
        config: a section whose values are allowed one by one; None: there is nothing to say.
        where: path of the section in its file; empty for the top level.
    """
    if config is None:
        return []
    prefix = f"{where}." if where else ""
    points = [point for point in config.curriculum or () if isinstance(point, CurriculumPoint)]
    if config.faults is not None:
        return _beside_entries(config, points, prefix)
    types = [point.injection_type for point in points if point.injection_type is not None]
    problems = _word_problems(config, [config.injection_type, *types], prefix)
    if config.num_faults is not None:
        problems += _beside_num_faults(config, points, prefix)
    if config.hw_mask and config.rate_unit == "bit":
        problems.append(
            f"{prefix}rate_unit: got 'bit' (str), allowed with hw_mask: 'element', as a broken "
            "unit computes whole values"
        )
    return problems


def _default_of(key: str) -> Any:
    return next(field.default for field in fields(FaultInjectionConfig) if field.name == key)


def _beside_num_faults(
    config: FaultInjectionConfig, points: Sequence[CurriculumPoint], prefix: str
) -> list[str]:
    problems = []
    if config.probability != _default_of("probability"):
        problems.append(
            f"{prefix}probability: got {got(config.probability)} beside num_faults, which takes "
            "its place; leave one out"
        )
    if any(point.probability is not None for point in points):
        problems.append(f"{prefix}curriculum: changes probability, in whose place num_faults is")
    if config.hw_mask:
        problems.append(
            f"{prefix}num_faults: got {got(config.num_faults)}, allowed with hw_mask: null; "
            "`probability` says how many units are broken"
        )
    return problems


def _beside_entries(
    config: FaultInjectionConfig, points: Sequence[CurriculumPoint], prefix: str
) -> list[str]:
    """Say what the section itself must leave to the entries of `faults`."""
    problems = [
        f"{prefix}{key}: got {got(getattr(config, key))} beside faults; say it in their entries"
        for key in (*(field.name for field in fields(FaultEntry)), "hw_mask")
        if getattr(config, key) != _default_of(key)
    ]
    problems += [
        f"{prefix}curriculum: changes {key}, which each entry of faults has for itself"
        for key in ("probability", "injection_type")
        if any(getattr(point, key) is not None for point in points)
    ]
    return problems


@dataclass(kw_only=True, slots=True)
class FaultInjectionConfig:
    """The `fault_injection` section: which faults to inject, how often, when and where.

    Nothing is checked on construction or assignment; `validate` checks everything at once.
    `config_reference` gives the fields as a table.

    >>> config = FaultInjectionConfig(enabled=True, probability=150.0)
    >>> config.validate()
    Traceback (most recent call last):
    ...
    fxfault.errors.InvalidConfigError: fault_injection.probability: got 150.0 (float), \
allowed: a number from 0 to 100
    """

    enabled: Annotated[
        bool,
        Field(description="Master switch; when false, `transform` inserts nothing."),
    ] = False
    probability: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Chance, in percent, that an activation value is hit; each value is drawn "
            "independently, afresh at every forward.",
        ),
    ] = 5.0
    rate_unit: Annotated[
        Literal["element", "bit"],
        Field(
            description="What `probability` and `num_faults` count: values, or single bits of "
            "their words, of which one value may then have several hit."
        ),
    ] = "element"
    num_faults: Annotated[
        _Count | None,
        Field(
            description="In place of a probability: so many hits in each sample, no more and no "
            "less, spread evenly over all selected sites together."
        ),
    ] = None
    mode: Annotated[
        Literal["full_model", "layer"],
        Field(description="Inject at all selected sites, or at one of them (`injection_layer`)."),
    ] = "full_model"
    injection_layer: Annotated[
        int,
        Field(
            ge=-1,
            description="Index, in execution order, of the site used with `mode: layer`; "
            "-1 lets the seed draw one.",
        ),
    ] = -1
    injection_type: Annotated[
        str | FaultModel,
        _FaultModelRule(),
        Field(description="Fault model: what happens to the integer code of a value that is hit."),
    ] = "random"
    bit: Annotated[
        _Bit | None,
        Field(
            description="Bit of the word that `bit_flip`, `stuck_at_0` and `stuck_at_1` strike; 0 "
            "is the lowest. Null and `random` draw it for each hit; `each` is for studies."
        ),
    ] = None
    burst_length: Annotated[
        _Length | None,
        Field(description="Adjacent bits that a `burst` flips; null takes 2."),
    ] = None
    faults: Annotated[
        Sequence[FaultEntry | Mapping[str, Any]] | None,
        SectionList(FaultEntry, _entry_problems),
        Field(
            description="Several faults in one run, each with its own layers and rate; what an "
            "entry says, the section itself then does not."
        ),
    ] = None
    apply_during: Annotated[
        Literal["train", "eval", "both"],
        Field(description="Phase in which faults are injected, told by `model.training`."),
    ] = "train"
    epoch_interval: Annotated[
        int,
        Field(
            ge=1,
            description="While training, inject in every n-th epoch only, counted from epoch 0.",
        ),
    ] = 1
    step_interval: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="While training, chance (a fraction, not percent) that a step is injected "
            "at all; one draw per step for the whole model.",
        ),
    ] = 1.0
    curriculum: Annotated[
        Sequence[CurriculumPoint | Mapping[str, Any]] | None,
        SectionList(CurriculumPoint, _point_problems),
        Field(
            description="While training, how the schedule changes: points in ascending order of "
            "`epoch`, each with some of `probability`, `step_interval`, `epoch_interval` and "
            "`injection_type`."
        ),
    ] = None
    interpolate: Annotated[
        Literal["step", "linear", "cosine"],
        Field(
            description="How `probability` and `step_interval` go from one point of the "
            "curriculum to the next: `step` keeps the earlier value until then."
        ),
    ] = "step"
    seed: Annotated[
        Annotated[int, Field(ge=0, le=MAX_SEED)] | None,
        Field(description="Seed of all faults; null draws one and reports it."),
    ] = None
    track_statistics: Annotated[
        bool,
        Field(description="Count hits and measure RMSE and cosine similarity for each site."),
    ] = False
    verbose: Annotated[
        bool,
        Field(description="Log what is inserted and when it is active."),
    ] = False
    hw_mask: Annotated[
        bool,
        Field(
            description="Hit every value that a faulty hardware unit computes, periodically, "
            "instead of independent values."
        ),
    ] = False
    frequency_value: Annotated[
        int,
        Field(ge=1, description="Number of parallel hardware units, used with `hw_mask`."),
    ] = 1024
    gradient_mode: Annotated[
        Literal["ste", "zero_faulty"],
        Field(
            description="Backward pass: `ste` passes every gradient, `zero_faulty` zeroes it at "
            "the values that were hit."
        ),
    ] = "ste"
    layers: Annotated[
        _Layers,
        Field(
            description="Sites to inject at: names, glob patterns such as `layer1.*`, or indices "
            "in execution order; null selects all."
        ),
    ] = None
    targets: Annotated[
        tuple[_Name, ...],
        Field(min_length=1, description="Class names of the modules whose outputs are sites."),
        BeforeValidator(tuple_from_list),
    ] = ("QuantIdentity", "QuantReLU", "QuantHardTanh")
    unsupported: Annotated[
        Literal["error", "skip"],
        Field(
            description="What to do with a target whose output is not an integer QuantTensor: "
            "refuse the model, or leave that target without faults and list it."
        ),
    ] = "error"

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FaultInjectionConfig:
        """Make a validated configuration from the keys of a `fault_injection` section.

        Args:
            config: the section; keys that are absent take their defaults.

        Raises:
            InvalidConfigError: any number of unknown keys and values that are not allowed.
        """
        made, problems = parse_section(cls, config, SECTION)
        problems += contradictions(made, SECTION)
        if made is None or problems:
            raise InvalidConfigError(problems)
        return made

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> FaultInjectionConfig:
        """Read a validated configuration from a YAML file.

        Args:
            path: a file with a `fault_injection` section, whose other sections are not looked at,
                or a file that holds the keys of that section at its top level.

        Raises:
            InvalidConfigError: the file cannot be read, or its section is not allowed.
        """
        content, source, where = load_yaml(path), str(path), SECTION
        # no key of the section holds a mapping, but an experiment's own `seed` section is one
        own = [
            key
            for key, value in content.items()
            if key in known_keys(cls) and not isinstance(value, Mapping)
        ]
        if SECTION in content:
            section = {} if content[SECTION] is None else content[SECTION]
            made, problems = parse_section(cls, section, SECTION)
            problems += [
                f"{key}: unknown key at the top level; it belongs in {SECTION}"
                for key in own
                if content[key] is not None  # an empty `seed` section of an experiment
            ]
        elif own:
            where = ""
            made, problems = parse_section(cls, content, where)
        else:
            found = ", ".join(key_text(key) for key in content) or "no key"
            hint = did_you_mean(content, [SECTION])
            made, problems = None, [f"no section {SECTION!r}; found: {found}{hint}"]
        problems += contradictions(made, where)
        if made is None or problems:
            raise InvalidConfigError(problems, source)
        return made

    def entries(self) -> tuple[FaultEntry, ...]:
        """Give what strikes: the entries of `faults`, or the one fault of the section itself.

        >>> [str(entry) for entry in FaultInjectionConfig(injection_type="msb_flip").entries()]
        ['msb_flip at 5 %']
        """
        if self.faults is not None:
            return tuple(e if isinstance(e, FaultEntry) else FaultEntry(**e) for e in self.faults)
        own = {field.name: getattr(self, field.name) for field in fields(FaultEntry)}
        if self.num_faults is not None:
            own["probability"] = None
        return (FaultEntry(**own),)

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as plain values that YAML and JSON can hold.

        >>> config = FaultInjectionConfig(probability=0.5)
        >>> FaultInjectionConfig.from_dict(config.to_dict()) == config
        True

        Raises:
            ConfigError: `injection_type` is an object that no registered name stands for.
        """
        return {
            **section_to_dict(self),
            "injection_type": _fault_model_name(self.injection_type, SECTION),
            "curriculum": _plain_list(self.curriculum, "curriculum"),
            "faults": _plain_list(self.faults, "faults"),
        }

    def validate(self) -> None:
        """Check every field.

        Raises:
            InvalidConfigError: any number of values that are not allowed.
        """
        self.from_dict({field.name: getattr(self, field.name) for field in fields(self)})


def _plain_list(items: Sequence[Any] | None, key: str) -> Any:
    """Give the points of a curriculum, or the entries of `faults`, as mappings of what they say."""
    if not isinstance(items, (list, tuple)):
        return items
    return [_plain_item(item, f"{SECTION}.{key}[{i}]") for i, item in enumerate(items)]


def _plain_item(item: Any, where: str) -> dict[str, Any]:
    values = dict(item) if isinstance(item, Mapping) else section_to_dict(item)
    plain = {key: value for key, value in values.items() if value is not None}
    if "injection_type" in plain:
        plain["injection_type"] = _fault_model_name(plain["injection_type"], where)
    return plain


def _fault_model_name(model: str | FaultModel, where: str) -> str:
    if isinstance(model, str):
        return model
    from fxfault.faults.fault_models import fault_model_names, get_fault_model

    name = getattr(model, "name", None)
    if name in fault_model_names() and get_fault_model(name) is model:
        return str(name)
    raise ConfigError(
        f"{where}.injection_type: {got(model)} has no registered name to be written as; "
        "call fxfault.faults.fault_models.register_fault_model on it"
    )


def config_reference() -> str:
    """Give the keys of the `fault_injection` section as a Markdown table.

    >>> print(config_reference().splitlines()[0])
    | key | allowed | default | meaning |
    """
    return section_reference(FaultInjectionConfig)
