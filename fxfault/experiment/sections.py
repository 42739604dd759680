"""The sections of an experiment file: data set, model, quantisation, training and faults.

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

from pydantic import Field, JsonValue

from fxfault.config.changes import with_changes
from fxfault.config.fault_injection import SECTION, FaultInjectionConfig, contradictions
from fxfault.config.schema import (
    parse_section,
    section_reference,
    section_to_dict,
    unknown_key,
)
from fxfault.config.yaml_files import load_named
from fxfault.errors import InvalidConfigError
from fxfault.experiment.names import name_problems
from fxfault.experiment.training_sections import OptimizerConfig, SchedulerConfig, TrainingConfig

_Name = Annotated[str, Field(min_length=1)]
_BitWidth = Annotated[int, Field(ge=1, le=32)]


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
    root: Annotated[_Name, Field(description="Folder with the data files.")] = "./data"
    kwargs: Annotated[
        dict[str, JsonValue],
        Field(description="Further arguments of the data set, such as `image_size`."),
    ] = field(default_factory=dict)
    batch: Annotated[
        _Name | None,
        Field(
            description="`package.module:function` from a batch to (arguments, keywords, targets) "
            "of the network; null takes tuples, dicts and dataclasses apart by the rules of "
            "[your own task](your-own-task.md)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: Annotated[_Name, Field(description="Name of the model.")]
    kwargs: Annotated[
        dict[str, JsonValue], Field(description="Further arguments of the model's constructor.")
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """What evaluation and validation measure. `metric: NAME` stands for `metric: {name: NAME}`."""

    name: Annotated[
        _Name,
        Field(
            description="Name of a built-in metric, or `package.module:function`; see "
            "[your own task](your-own-task.md)."
        ),
    ]
    kwargs: Annotated[
        dict[str, JsonValue],
        Field(description="Further arguments of the function, or of the class when it is made."),
    ] = field(default_factory=dict)
    higher_is_better: Annotated[
        bool | None,
        Field(
            description="Whether a higher value is the better one; null asks the metric, and takes "
            "true if it does not say."
        ),
    ] = None
    tolerance: Annotated[
        Annotated[float, Field(ge=0)] | None,
        Field(
            description="By how much faults may move the value of a sample before that counts as "
            "silent data corruption; null asks the metric, and takes 0 if it does not say."
        ),
    ] = None
    unit: Annotated[
        str | None,
        Field(description="Unit of the values, such as `dB`; null asks the metric."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """Word lengths of the quantised model."""

    weight_bit_width: Annotated[_BitWidth, Field(description="Bits of a weight.")] = 8
    act_bit_width: Annotated[_BitWidth, Field(description="Bits of an activation.")] = 8


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The checkpoints that training writes and the one that evaluation reads."""

    enabled: Annotated[bool, Field(description="Write checkpoints while training.")] = True
    dir: Annotated[_Name, Field(description="Folder that checkpoints are written to.")] = (
        "./experiments"
    )
    save_best: Annotated[
        bool,
        Field(
            description="Also keep the checkpoint with the best validation accuracy, or the best "
            "`metric`."
        ),
    ] = True
    best_by: Annotated[
        Literal["clean", "faulty"],
        Field(
            description="Which validation decides: that without faults, or that under the faults "
            "of `apply_during: eval` or `both`."
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
            "starts from random weights. A resumed run continues from its own checkpoint."
        ),
    ] = None
    path: Annotated[
        _Name | None,
        Field(description="Checkpoint to evaluate if the command names none."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All sections of an experiment file.

    `dataset` and `model` may be None, as a file can hold faults alone; the commands that need them
    check. `metric` is None for the accuracy of a classifier.
    """

    seed: SeedConfig = field(default_factory=SeedConfig)
    dataset: DatasetConfig | None = None
    model: ModelConfig | None = None
    metric: MetricConfig | None = None
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    fault_injection: FaultInjectionConfig = field(default_factory=FaultInjectionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str | None = None) -> ExperimentConfig:
        """Make an experiment from the content of its file, and validate it.

        >>> ExperimentConfig.from_dict({"model": {}, "training": {"epochs": 0}})
        Traceback (most recent call last):
        ...
        fxfault.errors.InvalidConfigError: 2 problems: model.name: missing, \
allowed: non-empty text; training.epochs: got 0 (int), allowed: an integer of at least 1

        Args:
            config: sections by name; an empty section (null) counts as absent.
            source: name of the file, for the errors.

        Raises:
            InvalidConfigError: the message lists all unknown keys and invalid values.
        """
        if not isinstance(config, Mapping):
            kind = type(config).__name__
            raise InvalidConfigError([f"got a {kind}, expected a mapping of sections"], source)
        for key in ("axes", "trials", "stop"):
            if key in config:
                problem = f"{key}: is a key of a study, which `fxfault campaign run` runs"
                raise InvalidConfigError([problem], source)
        sections: dict[str, Any] = {}
        problems: list[str] = []
        for key, values in config.items():
            if key not in _SECTIONS:
                problems.append(_unknown_section(key))
            elif values is not None:
                if key == "metric" and isinstance(values, str):
                    values = {"name": values}
                sections[key], found = parse_section(_SECTIONS[key], values, key)
                problems += found
        problems += contradictions(sections.get(SECTION), SECTION)
        problems += _schedule_problems(sections.get("scheduler"))
        for name in ("dataset", "model"):
            if sections.get(name) is not None:
                problems += name_problems(name, sections[name].name)
        if problems:
            raise InvalidConfigError(problems, source)
        return cls(**sections)

    @property
    def needs_faulty_validation(self) -> bool:
        """Whether faults strike during evaluation."""
        faults = self.fault_injection
        return faults.enabled and faults.apply_during in ("eval", "both")

    def to_dict(self) -> dict[str, Any]:
        """Convert all sections to plain values that YAML and JSON can hold.

        >>> experiment = ExperimentConfig(training=TrainingConfig(epochs=3))
        >>> ExperimentConfig.from_dict(experiment.to_dict()) == experiment
        True
        """
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        plain = {name: value and section_to_dict(value) for name, value in sections.items()}
        if self.metric is None:
            del plain["metric"]
        if self.dataset is not None and self.dataset.batch is None:
            del plain["dataset"]["batch"]
        for key, default in (("loss", TrainingConfig.loss), ("loss_kwargs", {})):
            if plain["training"][key] == default:
                del plain["training"][key]
        return {**plain, SECTION: self.fault_injection.to_dict()}


_SECTIONS: dict[str, type[Any]] = {
    "seed": SeedConfig,
    "dataset": DatasetConfig,
    "model": ModelConfig,
    "metric": MetricConfig,
    "quantization": QuantizationConfig,
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "fault_injection": FaultInjectionConfig,
    "checkpoint": CheckpointConfig,
}


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
    """Describe all keys of an experiment file in Markdown, one table per section."""
    parts = []
    for name, section in _SECTIONS.items():
        summary = (inspect.getdoc(section) or "").partition("\n")[0]
        parts.append(f"### `{name}`\n\n{summary}\n\n{section_reference(section)}")
    return "\n".join(parts)


def load_experiment(
    path_or_bundled_name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """Read an experiment file, or an experiment that comes with the package.

    >>> load_experiment("digits", {"training.epochs": 3, "dataset.name": "fake"}).training.epochs
    3

    Args:
        path_or_bundled_name: path of a file; if there is no such file, a bare name such as
            `digits` or `digits.yaml` means the bundled experiment.
        changes: values that replace those of the file, by key path.

    Raises:
        InvalidConfigError: there is no such file, or the file with the changes is invalid.
    """
    content, source = load_named("experiments", os.fspath(path_or_bundled_name))
    return ExperimentConfig.from_dict(with_changes(content, changes or {}), source)
