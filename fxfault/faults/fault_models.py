"""Fault models: what a fault does to a word.

To add one, write a class with a name and a `corrupt` method:

>>> import torch
>>> class StuckAtZero(FaultModel):
...     '''Every bit of the word reads as 0.'''
...
...     name = "stuck_at_zero"
...
...     def corrupt(self, codes, word, draw):
...         return word.from_pattern(word.to_pattern(codes) & 0)
>>> StuckAtZero().corrupt(torch.tensor([3, -7]), Word(4, signed=True), draw=None)
tensor([0, 0])

Pass an instance as `injection_type`, or register it with `register_fault_model(StuckAtZero())`
to use its name in configuration files.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fxfault.errors import ConfigError
from fxfault.faults.codes import MAX_BIT_WIDTH, Word
from fxfault.faults.fault_model import Draw
from fxfault.faults.fault_model import FaultModel as FaultModel
from fxfault.messages import nearest


class RandomStrategy(FaultModel):
    """A uniformly drawn code of the quantiser's range replaces the word.

    The result is `((code + r - min) mod size) + min` with r uniform over the whole range, so it
    may equal the original code.
    """

    name = "random"

    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        if word.binary:
            return word.from_pattern((word.to_pattern(codes) + draw(0)) & 1)
        if not word.narrow_range:  # Every pattern is a code, so the word itself wraps around.
            return word.from_pattern(word.to_pattern(codes + draw(0)))
        size = word.max - word.min + 1
        r = ((draw(0) >> 10).double().mul_(2.0**-53) * size).long()
        # A sum and a test of its sign are four times as fast as an integer modulo.
        beyond = r.add_(codes).sub_(word.max + 1)
        return beyond + ((beyond >> 63) & size) + word.min


class BitMaskModel(FaultModel):
    """Clears some bits of the word and then flips some.

    A fault model that does not draw its bits only needs `masks`:

    >>> import torch
    >>> class StuckAtOne(BitMaskModel):
    ...     '''The least significant bit reads as 1.'''
    ...
    ...     name = "lsb_stuck_at_1"
    ...
    ...     def masks(self, word):
    ...         return word.all_ones ^ 1, 1
    >>> StuckAtOne().corrupt(torch.tensor([4, 5, -2]), Word(4, signed=True), draw=None)
    tensor([ 5,  5, -1])
    """

    @abstractmethod
    def masks(self, word: Word) -> tuple[int | Tensor, int | Tensor]:
        """Return the bits to keep and those to flip, as patterns from 0 to `word.all_ones`."""

    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        keep, flip = self.masks(word)
        return word.from_pattern((word.to_pattern(codes) & keep) ^ flip)


class LSBFlipStrategy(BitMaskModel):
    """The least significant bit (bit 0) flips."""

    name = "lsb_flip"

    def masks(self, word: Word) -> tuple[int | Tensor, int | Tensor]:
        return word.all_ones, 1


class MSBFlipStrategy(BitMaskModel):
    """The most significant bit flips: the sign bit of a signed word."""

    name = "msb_flip"

    def masks(self, word: Word) -> tuple[int | Tensor, int | Tensor]:
        return word.all_ones, word.msb


class FullFlipStrategy(BitMaskModel):
    """Every bit of the word flips."""

    name = "full_flip"

    def masks(self, word: Word) -> tuple[int | Tensor, int | Tensor]:
        return word.all_ones, word.all_ones


class BitModel(FaultModel):
    """Strikes some bits of the word and leaves the others.

    Attributes:
        effect: what happens to a struck bit: it flips, or reads as 0 (`clear`) or as 1 (`set`).
        strikes_single_bits: whether each upset concerns one bit, so that the upsets of a word can
            be drawn bit by bit (`rate_unit: bit`).
    """

    effect: ClassVar[Literal["flip", "clear", "set"]]
    strikes_single_bits: ClassVar[bool] = True

    @property
    @abstractmethod
    def span(self) -> int:
        """The pattern of the bits that are struck together; if drawn, it starts at bit 0."""

    @property
    @abstractmethod
    def is_drawn(self) -> bool:
        """Whether each hit draws the place of the pattern in the word."""

    @property
    def fewest_bits(self) -> int:
        """The fewest bits of a word that it can strike."""
        return self.span.bit_length()

    def places(self, word: Word) -> int | Tensor:
        """The number of places in the word that the pattern can take."""
        return word.bit_width - self.fewest_bits + 1

    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        struck = self.span << (draw(0) % self.places(word)) if self.is_drawn else self.span
        return self.corrupt_bits(codes, word, struck)

    def corrupt_bits(self, codes: Tensor, word: Word, struck: int | Tensor) -> Tensor:
        """Return the codes that are read back after given bits were struck.

        >>> import torch
        >>> StuckAt1Strategy().corrupt_bits(torch.tensor([4, -8]), Word(4, signed=True), 0b0011)
        tensor([ 7, -5])

        Args:
            codes: the clean codes, int64, one dimension.
            word: the word that stores them.
            struck: the pattern of the bits: one for all codes, or int64 of their shape.
        """
        pattern = word.to_pattern(codes)
        if self.effect == "flip":
            pattern = pattern ^ struck
        elif self.effect == "set":
            pattern = pattern | struck
        else:
            pattern = pattern & (pattern ^ struck)
        return word.from_pattern(pattern)


@dataclass(frozen=True)
class _OneBit(BitModel):
    """Strikes one bit.

    Attributes:
        bit: the bit, 0 for the least significant; None draws one uniformly for each hit.
    """

    bit: int | None = None
    takes_bit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bit is not None:
            _check_range("bit", self.bit, 0, MAX_BIT_WIDTH - 1)

    @property
    def label(self) -> str:
        return self.name if self.bit is None else f"{self.name} {self.bit}"

    @property
    def span(self) -> int:
        return 1 << (self.bit or 0)

    @property
    def is_drawn(self) -> bool:
        return self.bit is None


class BitFlipStrategy(_OneBit):
    """One bit flips: a single-event upset.

    >>> import torch
    >>> BitFlipStrategy(bit=2).corrupt(torch.tensor([0, -1]), Word(4, signed=True), draw=None)
    tensor([ 4, -5])
    """

    name = "bit_flip"
    effect = "flip"


class StuckAt0Strategy(_OneBit):
    """One bit reads as 0, in the same elements of every sample: a broken cell.

    >>> import torch
    >>> StuckAt0Strategy(bit=3).corrupt(torch.tensor([7, -1]), Word(4, signed=True), draw=None)
    tensor([7, 7])
    """

    name = "stuck_at_0"
    effect = "clear"
    same_in_every_sample = True


class StuckAt1Strategy(_OneBit):
    """One bit reads as 1, in the same elements of every sample: a broken cell."""

    name = "stuck_at_1"
    effect = "set"
    same_in_every_sample = True


@dataclass(frozen=True)
class BurstStrategy(BitModel):
    """Adjacent bits of the word flip; each hit draws the first one uniformly.

    >>> import torch
    >>> BurstStrategy(length=4).corrupt(torch.tensor([5]), Word(4, False), lambda stream: 12345)
    tensor([10])

    Attributes:
        length: number of bits; a word must have at least that many.
    """

    length: int = 2
    name = "burst"
    effect = "flip"
    strikes_single_bits: ClassVar[bool] = False
    takes_burst_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_range("burst_length", self.length, 1, MAX_BIT_WIDTH)

    @property
    def label(self) -> str:
        return f"{self.name} {self.length}"

    @property
    def span(self) -> int:
        return (1 << self.length) - 1

    @property
    def is_drawn(self) -> bool:
        return True


@dataclass(frozen=True)
class ReplayStrategy(BitModel):
    """The bits flip that a list of faults names; the list takes the place of a draw.

    It has no name in configurations, where `faults: {replay: FILE}` stands for it.

    Attributes:
        most_bits: the fewest bits of a word that has all bits of the list.
        label: the name with that of the list.
    """

    most_bits: int = 1
    label: str = "replay"
    name = "replay"
    effect = "flip"
    strikes_single_bits: ClassVar[bool] = False

    @property
    def fewest_bits(self) -> int:
        return self.most_bits

    @property
    def span(self) -> int:
        return 1

    @property
    def is_drawn(self) -> bool:
        return True  # Each hit brings its own bits.


def _check_range(key: str, number: int, low: int, high: int) -> None:
    if type(number) is not int or not low <= number <= high:
        raise ConfigError(f"{key}: got {number!r}, allowed: an integer from {low} to {high}")


_REGISTRY: dict[str, FaultModel] = {}


def register_fault_model(model: FaultModel) -> FaultModel:
    """Make a fault model available by name to configurations and commands.

    Args:
        model: an instance; its `name` must be a non-empty string that no other model has.

    Returns:
        The instance.

    Raises:
        ConfigError: the name is missing or taken.
    """
    name = getattr(model, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"fault model {type(model).__name__}: `name` is {name!r}, expected a non-empty string"
        )
    if name in _REGISTRY and type(_REGISTRY[name]) is not type(model):
        raise ConfigError(
            f"fault model {name!r} is already registered ({_REGISTRY[name]!r}); choose another name"
        )
    _REGISTRY[name] = model
    return model


def fault_model_names() -> tuple[str, ...]:
    """The names of all registered fault models, in the order of their registration."""
    return tuple(_REGISTRY)


def get_fault_model(
    model: str | FaultModel, bit: int | str | None = None, burst_length: int | None = None
) -> FaultModel:
    """Find a fault model by name; an instance is returned unchanged.

    >>> get_fault_model("msb_flip")
    MSBFlipStrategy()
    >>> get_fault_model("bit_flip", bit=3)
    BitFlipStrategy(bit=3)

    Args:
        model: the name, or an instance.
        bit: the bit of a named model that takes one; None or `random` draws it.
        burst_length: the length of a named burst; None keeps the registered one.

    Raises:
        ConfigError: there is no such fault model.
    """
    if not isinstance(model, str):
        is_model = callable(getattr(model, "corrupt", None)) and hasattr(model, "name")
        if is_model and not isinstance(model, type):
            return model
        raise ConfigError(
            f"fault model: got {model!r}, expected a name or an instance with `name` and `corrupt`"
        )
    if model not in _REGISTRY:
        hint = nearest(model, _REGISTRY)
        raise ConfigError(f"no fault model {model!r}{hint}; known: {', '.join(_REGISTRY)}")
    found = _REGISTRY[model]
    if bit not in (None, "random") and found.takes_bit:
        found = dataclasses.replace(found, bit=bit)  # type: ignore[type-var]
    if burst_length is not None and found.takes_burst_length:
        found = dataclasses.replace(found, length=burst_length)  # type: ignore[type-var]
    return found


def label_of(model: FaultModel) -> str:
    """The label of a fault model, which need not derive from `FaultModel`."""
    return str(getattr(model, "label", model.name))


def is_same_in_every_sample(model: FaultModel) -> bool:
    """Whether the fault sits in the hardware; see `FaultModel.same_in_every_sample`."""
    return bool(getattr(model, "same_in_every_sample", False))


def takes(model: FaultModel, key: str) -> bool:
    """Whether a fault model takes the key `bit` or `burst_length`, or `rate_unit: bit`."""
    attribute = "strikes_single_bits" if key == "rate_unit" else f"takes_{key}"
    return bool(getattr(model, attribute, False))


for _model in (
    RandomStrategy(),
    LSBFlipStrategy(),
    MSBFlipStrategy(),
    FullFlipStrategy(),
    BitFlipStrategy(),
    StuckAt0Strategy(),
    StuckAt1Strategy(),
    BurstStrategy(),
):
    register_fault_model(_model)

# The specification's names.
InjectionStrategy = FaultModel
get_strategy = get_fault_model
