"""The `fault_injection` section: what to inject, when and where, as one validated record.

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

from pydantic import BeforeValidator, Field

from fxfault.config.contradictions import contradictions as contradictions
from fxfault.config.contradictions import entry_problems, point_problems
from fxfault.config.entries import (
    Bit,
    Count,
    CurriculumPoint,
    FaultEntry,
    Fraction,
    InjectionType,
    Interval,
    Layers,
    Length,
    Memories,
    Name,
    Percentage,
    RateUnit,
)
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

SECTION = "fault_injection"
MAX_SEED = 2**63 - 1


@dataclass(kw_only=True, slots=True)
class FaultInjectionConfig:
    """The `fault_injection` section: which faults to inject, how often, when and where.

    Construction and assignment check nothing; `validate` checks everything at once.
    `config_reference` returns the fields as a table.

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
        Percentage,
        Field(
            description="Chance, in percent, that a value is hit; each is drawn independently, "
            "for activations afresh at every forward.",
        ),
    ] = 5.0
    rate_unit: Annotated[
        RateUnit,
        Field(
            description="What `probability` and `num_faults` count: values, or single bits of "
            "their words, of which one value may then have several hit."
        ),
    ] = "element"
    num_faults: Annotated[
        Count | None,
        Field(
            description="In place of a probability: so many hits in each sample, or of weights, "
            "biases and parameters in each draw, no more and no less, spread evenly over all "
            "selected sites together."
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
        InjectionType,
        Field(description="Fault model: what happens to the integer code of a value that is hit."),
    ] = "random"
    bit: Annotated[
        Bit | None,
        Field(
            description="Bit of the word that `bit_flip`, `stuck_at_0` and `stuck_at_1` strike; 0 "
            "is the lowest. Null and `random` draw it for each hit; `each` is for studies."
        ),
    ] = None
    burst_length: Annotated[
        Length | None,
        Field(description="Adjacent bits that a `burst` flips; null takes 2."),
    ] = None
    faults: Annotated[
        Sequence[FaultEntry | Mapping[str, Any]] | Mapping[str, Any] | None,
        SectionList(FaultEntry, entry_problems, alone="replay"),
        Field(
            description="Several faults in one run, each with its own layers and rate; what an "
            "entry says, the section itself then does not. `replay` strikes the faults of a list."
        ),
    ] = None
    apply_during: Annotated[
        Literal["train", "eval", "both"],
        Field(description="Phase in which faults are injected, told by `model.training`."),
    ] = "train"
    epoch_interval: Annotated[
        Interval,
        Field(description="While training, inject in every n-th epoch only, counted from epoch 0."),
    ] = 1
    step_interval: Annotated[
        Fraction,
        Field(
            description="While training, chance (a fraction, not percent) that a step is injected "
            "at all; one draw per step for the whole model.",
        ),
    ] = 1.0
    curriculum: Annotated[
        Sequence[CurriculumPoint | Mapping[str, Any]] | None,
        SectionList(CurriculumPoint, point_problems),
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
            description="Hit every value that a faulty hardware unit computes, or of weights its "
            "output channels, periodically, instead of independent values."
        ),
    ] = False
    frequency_value: Annotated[
        Interval,
        Field(description="Number of parallel hardware units, used with `hw_mask`."),
    ] = 1024
    memory: Annotated[
        Memories,
        Field(
            description="What faults strike: the activations of the `targets`, the quantised "
            "weights or the quantised biases of all layers, or the float parameters and buffers "
            "(`parameters`, IEEE words); or a list of these."
        ),
    ] = "activations"
    persist: Annotated[
        Literal["step", "epoch", "run"],
        Field(
            description="While training, how long faults of weights and biases stay: they are "
            "drawn for each step, for each epoch, or once. An evaluation draws them once."
        ),
    ] = "step"
    gradient_mode: Annotated[
        Literal["ste", "zero_faulty"],
        Field(
            description="Backward pass: `ste` passes every gradient, `zero_faulty` zeroes it at "
            "the values that were hit."
        ),
    ] = "ste"
    layers: Annotated[
        Layers,
        Field(
            description="Sites to inject at: names, glob patterns such as `layer1.*`, or indices "
            "in execution order; null selects all."
        ),
    ] = None
    targets: Annotated[
        tuple[Name, ...],
        Field(
            min_length=1,
            description="Class names of the layers whose activations are sites: the output of an "
            "activation layer, and the words of the quantisers that a layer calls itself "
            "(`input_quant`, `output_quant`, those of an LSTM). `QuantInputOutputLayer` stands for "
            "convolutions, linear layers, `QuantEltwiseAdd` and `QuantCat`. With `word: ieee`: "
            "class names or patterns, such as `*ReLU`, of the modules whose outputs are sites.",
        ),
        BeforeValidator(tuple_from_list),
    ] = (
        *("QuantIdentity", "QuantReLU", "QuantHardTanh", "QuantSigmoid", "QuantTanh"),
        *("QuantInputOutputLayer", "QuantLSTM", "QuantRNN"),
    )
    word: Annotated[
        Literal["quantised", "ieee"],
        Field(
            description="The words of activations: those of the quantisers of Brevitas, or the "
            "IEEE-754 bits of the float outputs of any module types that `targets` names."
        ),
    ] = "quantised"
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
            config: the section; absent keys take their defaults.

        Raises:
            InvalidConfigError: all unknown keys and values that are not allowed.
        """
        return cls._checked(config, SECTION, [], None)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> FaultInjectionConfig:
        """Read a validated configuration from a YAML file.

        Args:
            path: a file with a `fault_injection` section, whose other sections are ignored, or a
                file with the keys of that section at its top level.

        Raises:
            InvalidConfigError: the file cannot be read, or its section is not allowed.
        """
        content, source = load_yaml(path), str(path)
        # No key of the section holds a mapping, but an experiment's own `seed` section is one.
        own = [
            key
            for key, value in content.items()
            if key in known_keys(cls) and not isinstance(value, Mapping)
        ]
        if SECTION in content:
            misplaced = [
                f"{key}: unknown key at the top level; it belongs in {SECTION}"
                for key in own
                if content[key] is not None  # an empty `seed` section of an experiment
            ]
            section = {} if content[SECTION] is None else content[SECTION]
            return cls._checked(section, SECTION, misplaced, source)
        if own:
            return cls._checked(content, "", [], source)
        found = ", ".join(key_text(key) for key in content) or "no key"
        hint = did_you_mean(content, [SECTION])
        raise InvalidConfigError([f"no section {SECTION!r}; found: {found}{hint}"], source)

    @classmethod
    def _checked(
        cls, values: object, where: str, more: list[str], source: str | None
    ) -> FaultInjectionConfig:
        """Make a section, or raise its problems and `more`, in a file called `source`."""
        made, problems = parse_section(cls, values, where)
        problems = [*problems, *more, *contradictions(made, where)]
        if made is None or problems:
            raise InvalidConfigError(problems, source)
        return made

    def entries(self) -> tuple[FaultEntry, ...]:
        """Return what strikes: the entries of `faults`, or the one fault of the section itself.

        >>> [str(entry) for entry in FaultInjectionConfig(injection_type="msb_flip").entries()]
        ['msb_flip at 5 %']
        """
        if self.faults is not None:
            given = [self.faults] if isinstance(self.faults, Mapping) else self.faults
            return tuple(e if isinstance(e, FaultEntry) else FaultEntry(**e) for e in given)
        keys = {field.name for field in fields(FaultEntry)} - {"replay"}
        own = {key: getattr(self, key) for key in keys}
        if self.num_faults is not None:
            own["probability"] = None
        return (FaultEntry(**own),)

    @property
    def memories(self) -> tuple[str, ...]:
        """The memories that any of the faults strikes.

        >>> FaultInjectionConfig(memory=["weights", "activations"]).memories
        ('weights', 'activations')
        """
        return tuple(dict.fromkeys(kind for entry in self.entries() for kind in entry.memories))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values that YAML and JSON can hold.

        >>> config = FaultInjectionConfig(probability=0.5)
        >>> FaultInjectionConfig.from_dict(config.to_dict()) == config
        True

        Raises:
            ConfigError: `injection_type` is an object without a registered name.
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
            InvalidConfigError: all values that are not allowed.
        """
        self.from_dict({field.name: getattr(self, field.name) for field in fields(self)})


def _plain_list(items: Any, key: str) -> Any:
    """The points of a curriculum, or the entries of `faults`, as mappings without null."""
    if not isinstance(items, (list, tuple)):
        return items
    return [_plain_item(item, f"{SECTION}.{key}[{i}]") for i, item in enumerate(items)]


def _plain_item(item: Any, where: str) -> dict[str, Any]:
    values = dict(item) if isinstance(item, Mapping) else section_to_dict(item)
    plain = {key: value for key, value in values.items() if value is not None}
    if "replay" in plain and not isinstance(plain["replay"], str):
        raise ConfigError(f"{where}.replay: {plain['replay']!r} is no file; save it, and name that")
    if plain.get("memory") in ("activations", ["activations"], ("activations",)):
        del plain["memory"]  # Stores of studies know these faults without it.
    if "replay" in plain:
        return {key: plain[key] for key in ("replay", "memory") if key in plain}
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
    """Return the keys of the `fault_injection` section as a Markdown table.

    >>> print(config_reference().splitlines()[0])
    | key | allowed | default | meaning |
    """
    return section_reference(FaultInjectionConfig)
