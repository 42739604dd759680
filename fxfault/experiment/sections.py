"""A whole experiment file: data set, model, quantisation, training and faults.

>>> experiment = load_experiment("digits")
>>> experiment.quantization.act_bit_width, experiment.fault_injection.probability
(4, 5.0)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from fxfault.bundled.files import bundled_names
from fxfault.config.fault_injection import SECTION, FaultInjectionConfig, contradictions
from fxfault.config.schema import (
    parse_section,
    section_reference,
    section_to_dict,
    tuple_from_list,
    unknown_key,
)
from fxfault.config.yaml_files import load_named
from fxfault.errors import InvalidConfigError
from fxfault.messages import got

_Name = Annotated[str, Field(min_length=1)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_BitWidth = Annotated[int, Field(ge=1, le=32)]
_AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class SeedConfig:
    """Seeding of training: weights, shuffling and augmentation (faults have their own seed)."""

    enabled: Annotated[
        bool, Field(description="Seed the generators of Python, NumPy and torch.")
    ] = True
    value: Annotated[
        int,
        Field(ge=0, le=2**32 - 1, description="The seed; 32 bits, as NumPy takes no more."),
    ] = 0
    deterministic: Annotated[
        bool, Field(description="Ask torch for deterministic algorithms, at some cost of speed.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The data that a model is trained and evaluated on."""

    name: Annotated[_Name, Field(description="Name of the data set.")]
    root: Annotated[_Name, Field(description="Folder of the data files.")] = "./data"
    kwargs: Annotated[
        dict[str, JsonValue],
        Field(description="Further arguments of the data set, such as `image_size`."),
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: Annotated[_Name, Field(description="Name of the model.")]
    kwargs: Annotated[
        dict[str, JsonValue], Field(description="Further arguments of the model's constructor.")
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """Word lengths of the quantised model."""

    weight_bit_width: Annotated[_BitWidth, Field(description="Bits of a weight.")] = 8
    act_bit_width: Annotated[_BitWidth, Field(description="Bits of an activation.")] = 8


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of training, its batches and those of evaluation, and what is done to them."""

    batch_size: Annotated[
        _AtLeastOne, Field(description="Samples in a batch, of each process where there are more.")
    ] = 64
    epochs: Annotated[_AtLeastOne, Field(description="Passes over the training data.")] = 1
    validation_fraction: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of the training data that is held out to choose the best "
            "checkpoint by, drawn by the seed.",
        ),
    ] = 0.1
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of each label that is spread over all classes."),
    ] = 0.0
    shift: Annotated[
        int,
        Field(ge=0, description="Pixels that a training image is moved by at most, each way."),
    ] = 0
    flip: Annotated[
        bool,
        Field(description="Mirror each training image left to right with a chance of one half."),
    ] = False
    gradient_clip: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="Norm that gradients are scaled down to; null leaves them."),
    ] = None
    num_workers: Annotated[
        int, Field(ge=0, description="Processes that load training data; 0 loads in the main one.")
    ] = 0
    calibrate: Annotated[
        Literal["none", "clean", "faulty"],
        Field(
            description="At the end, estimate the statistics of batch norms anew: without faults "
            "(`clean`) or while they strike (`faulty`); `none` leaves those of training."
        ),
    ] = "none"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser."""

    name: Annotated[Literal["adam", "adamw", "sgd"], Field(description="Which optimiser.")] = "adam"
    learning_rate: Annotated[float, Field(gt=0, description="Initial learning rate.")] = 0.001
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay.")] = 0.0
    momentum: Annotated[_Fraction, Field(description="Momentum, used by `sgd` only.")] = 0.9


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How the learning rate changes from epoch to epoch."""

    name: Annotated[
        Literal["cosine", "step", "multistep", "none"], Field(description="Which schedule.")
    ] = "none"
    T_max: Annotated[
        _AtLeastOne | None,
        Field(
            description="Epochs of the half period of `cosine`; null takes the epochs after the "
            "warm-up."
        ),
    ] = None
    step_size: Annotated[_AtLeastOne, Field(description="Epochs between two steps of `step`.")] = 30
    gamma: Annotated[
        float, Field(gt=0, le=1, description="Factor of each step of `step` and `multistep`.")
    ] = 0.1
    milestones: Annotated[
        tuple[_AtLeastOne, ...],
        Field(description="Epochs, in ascending order, at which `multistep` steps."),
        BeforeValidator(tuple_from_list),
    ] = ()
    warmup_epochs: Annotated[
        int, Field(ge=0, description="Epochs of linear warm-up before the schedule.")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints: those that training writes and the one that evaluation reads."""

    enabled: Annotated[bool, Field(description="Write checkpoints while training.")] = True
    dir: Annotated[_Name, Field(description="Folder that checkpoints are written to.")] = (
        "./experiments"
    )
    save_best: Annotated[
        bool, Field(description="Also keep the checkpoint with the best validation accuracy.")
    ] = True
    best_by: Annotated[
        Literal["clean", "faulty"],
        Field(
            description="Which validation accuracy that is: without faults, or under those of "
            "`apply_during: eval` and `both`."
        ),
    ] = "clean"
    resume: Annotated[
        bool,
        Field(description="Continue the newest run in the folder; start one if there is none."),
    ] = False
    init_from: Annotated[
        _Name | None,
        Field(
            description="Checkpoint that training starts from, a file or `bundled:NAME`; null "
            "starts from random weights. A resumed run goes on from its own."
        ),
    ] = None
    path: Annotated[
        _Name | None,
        Field(description="Checkpoint that is evaluated when the command names none."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All sections of an experiment file.

    Data set and model may be absent, as a file can hold faults alone; the commands that need them
    check.

    Attributes:
        seed: seeding of training.
        dataset: the data, or None.
        model: the network, or None.
        quantization: word lengths.
        training: batches and epochs.
        optimizer: the optimiser.
        scheduler: the learning rate schedule.
        fault_injection: the faults.
        checkpoint: checkpoints written and read.
    """

    seed: SeedConfig = field(default_factory=SeedConfig)
    dataset: DatasetConfig | None = None
    model: ModelConfig | None = None
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    fault_injection: FaultInjectionConfig = field(default_factory=FaultInjectionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str | None = None) -> ExperimentConfig:
        """Make a validated experiment from the content of its file.

        >>> ExperimentConfig.from_dict({"model": {}, "training": {"epochs": 0}})
        Traceback (most recent call last):
        ...
        fxfault.errors.InvalidConfigError: 2 problems: model.name: missing, \
allowed: non-empty text; training.epochs: got 0 (int), allowed: an integer of at least 1

        Args:
            config: sections by name; an empty section (null) counts as absent.
            source: what an error calls the file, if there is one.

        Raises:
            InvalidConfigError: all unknown keys and values that are not allowed, of all sections.
        """
        if not isinstance(config, Mapping):
            kind = type(config).__name__
            raise InvalidConfigError([f"got a {kind}, expected a mapping of sections"], source)
        sections: dict[str, Any] = {}
        problems: list[str] = []
        for key, values in config.items():
            if key not in _SECTIONS:
                problems.append(_unknown_section(key))
            elif values is not None:
                sections[key], found = parse_section(_SECTIONS[key], values, key)
                problems += found
        problems += contradictions(sections.get(SECTION), SECTION)
        problems += _schedule_problems(sections.get("scheduler"))
        if problems:
            raise InvalidConfigError(problems, source)
        return cls(**sections)

    @property
    def needs_faulty_validation(self) -> bool:
        """Whether the file asks for faults while evaluating."""
        faults = self.fault_injection
        return faults.enabled and faults.apply_during in ("eval", "both")

    def to_dict(self) -> dict[str, Any]:
        """Give all sections as plain values that YAML and JSON can hold.

        >>> experiment = ExperimentConfig(training=TrainingConfig(epochs=3))
        >>> ExperimentConfig.from_dict(experiment.to_dict()) == experiment
        True
        """
        return {
            section.name: _section_to_dict(getattr(self, section.name)) for section in fields(self)
        }


_SECTIONS: dict[str, type[Any]] = {
    "seed": SeedConfig,
    "dataset": DatasetConfig,
    "model": ModelConfig,
    "quantization": QuantizationConfig,
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "fault_injection": FaultInjectionConfig,
    "checkpoint": CheckpointConfig,
}


def _section_to_dict(section: Any) -> dict[str, Any] | None:
    if section is None:
        return None
    if isinstance(section, FaultInjectionConfig):
        return section.to_dict()
    return section_to_dict(section)


def _unknown_section(key: object) -> str:
    owners = [
        name
        for name, section in _SECTIONS.items()
        if any(key == known.name for known in fields(section))
    ]
    if owners:
        return f"{key}: unknown key at the top level; it belongs in {' or '.join(owners)}"
    return unknown_key(key, "", _SECTIONS)


def _schedule_problems(scheduler: SchedulerConfig | None) -> list[str]:
    if scheduler is None:
        return []
    milestones = scheduler.milestones
    if scheduler.name == "multistep" and not milestones:
        return ["scheduler.milestones: missing, `name: multistep` needs at least one epoch"]
    if list(milestones) != sorted(set(milestones)):
        return [f"scheduler.milestones: got {list(milestones)}, allowed: ascending epochs"]
    return []


def experiment_reference() -> str:
    """Give all keys of an experiment file as Markdown, one heading and table per section."""
    parts = []
    for name, section in _SECTIONS.items():
        summary = (inspect.getdoc(section) or "").partition("\n")[0]
        parts.append(f"### `{name}`\n\n{summary}\n\n{section_reference(section)}")
    return "\n".join(parts)


def bundled_experiments() -> tuple[str, ...]:
    """Give the names of the experiments that come with the package.

    >>> "digits" in bundled_experiments()
    True
    """
    return bundled_names("experiments")


def load_experiment(
    path_or_bundled_name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """Read an experiment file, or one of those that come with the package.

    >>> load_experiment("digits", {"training.epochs": 3, "dataset.name": "fake"}).training.epochs
    3

    Args:
        path_or_bundled_name: path of a file; where there is no such file, a bare name such as
            `digits` or `digits.yaml` stands for the bundled experiment.
        changes: values that take the place of the file's, by the path of the key.

    Raises:
        InvalidConfigError: no such file, or all that is wrong with it and the changes.
    """
    content, source = load_named("experiments", os.fspath(path_or_bundled_name))
    for path, value in (changes or {}).items():
        _set(content, path, value)
    return ExperimentConfig.from_dict(content, source)


def _set(content: dict[Any, Any], path: str, value: Any) -> None:
    """Set the value of a key in nested mappings; a section that is absent is added."""
    *parents, key = path.split(".")
    for depth, parent in enumerate(parents, start=1):
        inner = content.get(parent)
        # A copy: YAML's anchors let two keys share one mapping.
        content[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        if inner is not None and not isinstance(inner, Mapping):
            where = ".".join(parents[:depth])
            raise InvalidConfigError([f"{path}: cannot be set, as {where} is {got(inner)}"])
        content = content[parent]
    content[key] = value
