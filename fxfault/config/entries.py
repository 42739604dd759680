"""What one fault of a list and one point of a curriculum say, and the types of their values."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from fxfault.faults.fault_models import FaultModel
else:  # This module must not import torch; `_FaultModelRule` checks the object.
    FaultModel = object


class _FaultModelRule:
    """The name of a registered fault model, or an instance of one.

    The registry imports torch and users add to it, so each check asks it again.
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


class _ReplayRule:
    """The file of a list of faults, or from Python a `fxfault.sites.fault_list.FaultList`."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        file = {"description": "the file of a list of faults"}
        return {"anyOf": [file, {"type": "null"}]}

    @staticmethod
    def _check(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        is_listing = hasattr(value, "places") and hasattr(value, "csv_text")
        if value is not None and not is_listing and not (isinstance(value, str) and value):
            raise ValueError("no list of faults")
        return value


def _fault_model_names() -> tuple[str, ...]:
    from fxfault.faults.fault_models import fault_model_names

    return fault_model_names()


def _unique(value: Any) -> Any:
    """Turn a list into a tuple without repetitions."""
    return tuple(dict.fromkeys(map(str, value))) if isinstance(value, (list, tuple)) else value


Name = Annotated[str, Field(min_length=1)]
Index = Annotated[int, Field(ge=0)]
Percentage = Annotated[float, Field(ge=0, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Bit = Annotated[int, Field(ge=0, le=31)] | Literal["random", "each"]
Length = Annotated[int, Field(ge=1, le=32)]
Layers = Name | Index | Annotated[list[Name | Index], Field(min_length=1)] | None
RateUnit = Literal["element", "bit"]
Memory = Literal["activations", "weights", "biases", "parameters"]
MEMORIES: tuple[str, ...] = get_args(Memory)
Memories = Memory | Annotated[tuple[Memory, ...], Field(min_length=1), BeforeValidator(_unique)]
InjectionType = Annotated[str | FaultModel, _FaultModelRule()]

_AS_ABOVE = Field(description="As the key of the section.")
_UNCHANGED = Field(description="As the key of the section; null leaves the setting as it is.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultEntry:
    """One of the faults that strike in the same run: its model, its rate and its layers.

    >>> print(FaultEntry(injection_type="bit_flip", bit=3, probability=0.1))
    bit_flip 3 at 0.1 %
    >>> print(FaultEntry(num_faults=2))
    random, 2 a sample
    >>> print(FaultEntry(num_faults=2, memory=["weights", "biases"]))
    random, 2 a draw in weights and biases
    """

    injection_type: Annotated[InjectionType, _AS_ABOVE] = "random"
    bit: Annotated[Bit | None, _AS_ABOVE] = None
    burst_length: Annotated[Length | None, _AS_ABOVE] = None
    probability: Annotated[
        Percentage | None,
        Field(description="As the key of the section; an entry has this or `num_faults`."),
    ] = None
    rate_unit: Annotated[RateUnit, _AS_ABOVE] = "element"
    num_faults: Annotated[
        Count | None,
        Field(description="As the key of the section; an entry has this or `probability`."),
    ] = None
    memory: Annotated[Memories, _AS_ABOVE] = "activations"
    layers: Annotated[Layers, _AS_ABOVE] = None
    replay: Annotated[
        Any,
        _ReplayRule(),
        Field(
            description="In place of all of these but `memory`: the file of a list of faults to "
            "strike. `memory` names the memories that the list is about."
        ),
    ] = None

    @property
    def memories(self) -> tuple[str, ...]:
        """The memories that the fault strikes.

        >>> FaultEntry(memory=["weights", "biases"]).memories
        ('weights', 'biases')
        """
        return (self.memory,) if isinstance(self.memory, str) else tuple(self.memory)

    @property
    def each(self) -> str:
        """What has `num_faults` hits: a `sample`, or a `draw` of faults that all samples share."""
        return "sample" if "activations" in self.memories else "draw"

    @property
    def strikes(self) -> bool:
        """Whether the fault can hit anything."""
        return bool(self.probability or self.num_faults or self.replay is not None)

    def __str__(self) -> str:
        if self.replay is not None:
            return f"replay of {self.replay}"
        model: Any = self.injection_type
        label = str(getattr(model, "label", None) or getattr(model, "name", model))
        chosen = [str(c) for c in (self.bit, self.burst_length) if c not in (None, "random")]
        where = "" if self.memories == ("activations",) else f" in {' and '.join(self.memories)}"
        return f"{' '.join([label, *chosen])}{rate_text(self, self.each)}{where}"


def rate_text(fault: Any, each: str = "sample") -> str:
    """The rate of a fault, as the text after its name.

    >>> rate_text(FaultEntry(probability=0.1, rate_unit="bit")), rate_text(FaultEntry(num_faults=2))
    (' at 0.1 % of the bits', ', 2 a sample')

    Args:
        fault: an object with `probability`, `rate_unit` and `num_faults`.
        each: what has `num_faults` hits: a `sample`, or a `draw` of faults in weights.
    """
    bits = fault.rate_unit == "bit"
    if fault.num_faults is not None:
        return f", {fault.num_faults} {'bits ' if bits else ''}a {each}"
    return f" at {fault.probability:g} %{' of the bits' if bits else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumPoint:
    """The schedule of a training from one epoch on; see `fxfault.config.curriculum`."""

    epoch: Annotated[int, Field(ge=0, description="Epoch of the point; epochs count from 0.")]
    probability: Annotated[Percentage | None, _UNCHANGED] = None
    step_interval: Annotated[Fraction | None, _UNCHANGED] = None
    epoch_interval: Annotated[Interval | None, _UNCHANGED] = None
    injection_type: Annotated[InjectionType | None, _UNCHANGED] = None


CURRICULUM_SETTINGS = tuple(f.name for f in fields(CurriculumPoint) if f.name != "epoch")
