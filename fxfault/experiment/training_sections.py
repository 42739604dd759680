"""The sections of an experiment file that only training reads, apart from `training.batch_size`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue

from fxfault.config.schema import tuple_from_list

_Name = Annotated[str, Field(min_length=1)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of training, batches of training and evaluation, augmentation and calibration."""

    batch_size: Annotated[_AtLeastOne, Field(description="Samples in a batch of each process.")] = (
        64
    )
    epochs: Annotated[_AtLeastOne, Field(description="Passes over the training data.")] = 1
    validation_fraction: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of the training data, drawn by the seed, that is held out to "
            "choose the best checkpoint.",
        ),
    ] = 0.1
    loss: Annotated[
        _Name,
        Field(
            description="What training makes small: `cross_entropy`, `nll`, `mse`, `l1`, "
            "`smooth_l1`, `huber`, `bce_with_logits`, or `package.module:function` of outputs and "
            "targets; see [your own task](your-own-task.md)."
        ),
    ] = "cross_entropy"
    loss_kwargs: Annotated[
        dict[str, JsonValue],
        Field(description="Further arguments of the loss, such as `ignore_index`."),
    ] = field(default_factory=dict)
    label_smoothing: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of each label that `cross_entropy` spreads over all classes.",
        ),
    ] = 0.0
    shift: Annotated[
        int,
        Field(ge=0, description="Largest shift of a training image in each direction, in pixels."),
    ] = 0
    flip: Annotated[
        bool,
        Field(description="Mirror each training image left to right with probability 0.5."),
    ] = False
    gradient_clip: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="Largest norm of the gradients; null does not limit it."),
    ] = None
    num_workers: Annotated[
        int,
        Field(ge=0, description="Processes that load training data; 0 uses the main process."),
    ] = 0
    calibrate: Annotated[
        Literal["none", "clean", "faulty"],
        Field(
            description="Recompute the statistics of batch norms after training, without faults "
            "(`clean`) or under faults (`faulty`); `none` keeps those of training."
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
            description="Half period of `cosine`, in epochs; null takes all epochs after the "
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
