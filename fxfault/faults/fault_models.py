"""Fault models: what a fault does to a word.

Adding one takes a class with a name and a `corrupt` method:

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

Pass an instance as `injection_type`, or make it known by name to configuration
files with `register_fault_model(StuckAtZero())`.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxfault.errors import ConfigError
from fxfault.faults.codes import MAX_BIT_WIDTH, Word
from fxfault.faults.random_numbers import stream_key, uniform_int63

# Elements that are worked on together, so that what is made of them fits a core's L2 cache.
_PART = 1 << 16

Draw = Callable[[int], Tensor]
"""`draw(stream)` gives one random number from 0 to 2**63 - 1 (int64) for each code; two
streams are independent, and one stream called twice gives the same numbers."""


class FaultModel(ABC):
    """What happens to the word of an element that is hit.

    Attributes:
        name: how configuration files, tables and plots call it.
        label: the same with what was chosen for it, such as a bit.
        takes_bit: whether the key `bit` is meant for it; then it is a dataclass with that field.
        takes_burst_length: the same for the key `burst_length` and a field `length`.
        same_in_every_sample: whether the fault sits in the hardware: the same elements are hit,
            in the same way, in every sample of a trial.
        fewest_bits: of a word that it can strike.
    """

    name: str
    takes_bit: ClassVar[bool] = False
    takes_burst_length: ClassVar[bool] = False
    same_in_every_sample: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The name, with what was chosen."""
        return self.name

    @property
    def fewest_bits(self) -> int:
        """Bits that a word must have at least."""
        return 1

    @abstractmethod
    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        """Give the codes that are read back after the fault.

        Args:
            codes: the clean codes of the elements that are hit, int64, one dimension.
            word: the word that they are stored in.
            draw: the source of randomness; using any other one breaks reproducibility.

        Returns:
            The faulty codes, int64, same shape. Elements must not influence each other.
        """

    def inject(
        self,
        int_tensor: Tensor,
        mask: Tensor,
        bit_width: int,
        signed: bool,
        device: torch.device | None = None,
        *,
        seed: int = 0,
    ) -> Tensor:
        """Apply the fault model to a whole integer tensor where `mask` is true.

        The dense form that the specification names; the pass never uses it.

        >>> MSBFlipStrategy().inject(
        ...     torch.tensor([7, 7]), torch.tensor([True, False]), bit_width=4, signed=True
        ... )
        tensor([-1,  7])

        Args:
            int_tensor: codes, any shape, any integer dtype.
            mask: bool, same shape; true where the element is hit.
            bit_width: bits of the word, 1 to 32.
            signed: whether the word is two's complement.
            device: where the result is wanted; default: where `int_tensor` is.
            seed: where random fault models draw from; the same seed gives the same result.

        Raises:
            ConfigError: the mask has another shape.
        """
        device = int_tensor.device if device is None else torch.device(device)
        if mask.shape != int_tensor.shape:
            raise ConfigError(
                f"mask: got shape {tuple(mask.shape)} for codes of shape {tuple(int_tensor.shape)}"
            )
        faulty = int_tensor.to(device).clone(memory_format=torch.contiguous_format)
        hit, word, done = mask.to(device, torch.bool).reshape(-1), Word(bit_width, signed), 0
        # In parts that stay in the processor's cache; a device has all of its memory near.
        size = _PART if device.type == "cpu" else max(1, faulty.numel())
        for part, chosen in zip(faulty.view(-1).split(size), hit.split(size), strict=True):
            done += self._inject_part(part, chosen, word, (seed, done))
        return faulty

    def _inject_part(self, part: Tensor, chosen: Tensor, word: Word, first: tuple[int, int]) -> int:
        """`inject` in place, from the given seed and number of hits before; returns how many."""
        seed, done = first
        dense = bool(chosen.all())  # Positions would be more than the codes themselves.
        index = None if dense else chosen.nonzero().view(-1)
        codes = (part if index is None else part[index]).to(torch.int64)
        elements = torch.arange(done, done + codes.numel(), device=codes.device)

        def draw(stream: int) -> Tensor:
            return uniform_int63(stream_key(seed, self.name, stream), elements)

        corrupted = self.corrupt(codes, word, draw).to(part.dtype)
        if index is None:
            part.copy_(corrupted)
        else:
            part[index] = corrupted
        return codes.numel()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class RandomStrategy(FaultModel):
    """The word is replaced by a uniformly drawn code of the quantiser's valid range.

    `((code + r - min) mod size) + min` with r uniform over the whole range, so the
    result may equal the original code.
    """

    name = "random"

    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        if word.binary:
            return word.from_pattern((word.to_pattern(codes) + draw(0)) & 1)
        if not word.narrow_range:  # All patterns are codes: the modulo is that of the word.
            return word.from_pattern(word.to_pattern(codes + draw(0)))
        size = word.max - word.min + 1
        r = ((draw(0) >> 10).double().mul_(2.0**-53) * size).long()
        # An integer division takes four times as long as the sum and the test of its sign.
        beyond = r.add_(codes).sub_(word.max + 1)
        return beyond + ((beyond >> 63) & size) + word.min


class BitMaskModel(FaultModel):
    """Keeps some bits of the word, clears the others, and then flips some.

    A fault model that knows its bits beforehand needs no more than `masks`:

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
        """Give the bits to keep and those to flip then, as patterns from 0 to `word.all_ones`.

        Args:
            word: the word that the codes are stored in.
        """

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

    Which bits is one question, and what becomes of them another: `effect` is that they flip, or
    are stuck and read as 0 (`clear`) or as 1 (`set`).

    Attributes:
        effect: what becomes of a bit that is struck.
        strikes_single_bits: whether an upset is that of one bit, so that upsets of a word's bits
            can be drawn one by one (`rate_unit: bit`).
    """

    effect: ClassVar[Literal["flip", "clear", "set"]]
    strikes_single_bits: ClassVar[bool] = True

    @property
    @abstractmethod
    def span(self) -> int:
        """The bits that are struck together, as a pattern; of those that are drawn, at bit 0."""

    @property
    @abstractmethod
    def is_drawn(self) -> bool:
        """Whether their place in the word is drawn for each hit."""

    @property
    def fewest_bits(self) -> int:
        """Bits that a word must have at least."""
        return self.span.bit_length()

    def places(self, word: Word) -> int | Tensor:
        """How many places in the word the struck bits can have."""
        return word.bit_width - self.fewest_bits + 1

    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        struck = self.span << (draw(0) % self.places(word)) if self.is_drawn else self.span
        return self.corrupt_bits(codes, word, struck)

    def corrupt_bits(self, codes: Tensor, word: Word, struck: int | Tensor) -> Tensor:
        """Give the codes that are read back after certain bits were struck.

        >>> StuckAt1Strategy().corrupt_bits(torch.tensor([4, -8]), Word(4, signed=True), 0b0011)
        tensor([ 7, -5])

        Args:
            codes: as `corrupt` takes them.
            word: the word that they are stored in.
            struck: the bits, as a pattern; one for all codes, or int64 of their shape.
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
    """Strikes one bit: a certain one, or one that is drawn uniformly for each hit.

    Attributes:
        bit: which; None draws it. Bit 0 is the least significant.
    """

    bit: int | None = None
    takes_bit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_range("bit", self.bit, 0, MAX_BIT_WIDTH - 1)

    @property
    def label(self) -> str:
        """The name, and the bit where it is not drawn."""
        return self.name if self.bit is None else f"{self.name} {self.bit}"

    @property
    def span(self) -> int:
        """The bit, as a pattern."""
        return 1 << (self.bit or 0)

    @property
    def is_drawn(self) -> bool:
        """Whether the bit is drawn for each hit."""
        return self.bit is None


class BitFlipStrategy(_OneBit):
    """One bit flips: a single-event upset.

    >>> BitFlipStrategy(bit=2).corrupt(torch.tensor([0, -1]), Word(4, signed=True), draw=None)
    tensor([ 4, -5])
    """

    name = "bit_flip"
    effect = "flip"


class StuckAt0Strategy(_OneBit):
    """One bit reads as 0, in the same elements of every sample: a broken cell.

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
    """Adjacent bits of the word flip; where they start is drawn uniformly for each hit.

    >>> BurstStrategy(length=4).corrupt(torch.tensor([5]), Word(4, False), lambda stream: 12345)
    tensor([10])

    Attributes:
        length: how many; a word must have that many.
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
        """The name, and how many bits."""
        return f"{self.name} {self.length}"

    @property
    def span(self) -> int:
        """So many ones."""
        return (1 << self.length) - 1

    @property
    def is_drawn(self) -> bool:
        """Always."""
        return True


def _check_range(key: str, number: int | None, low: int, high: int) -> None:
    if number is None and key == "bit":
        return
    if type(number) is not int or not low <= number <= high:
        raise ConfigError(f"{key}: got {number!r}, allowed: an integer from {low} to {high}")


_REGISTRY: dict[str, FaultModel] = {}


def register_fault_model(model: FaultModel) -> FaultModel:
    """Make a fault model known by its name, for configurations and commands.

    Args:
        model: an instance; its `name` must be a non-empty string that is still free.

    Returns:
        The instance.

    Raises:
        ConfigError: the name is missing or belongs to another fault model.
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
    """Find a fault model by name; an instance is returned as it is.

    >>> get_fault_model("msb_flip")
    MSBFlipStrategy()
    >>> get_fault_model("bit_flip", bit=3)
    BitFlipStrategy(bit=3)

    Args:
        model: its name, or an instance.
        bit: which bit one that is found by name strikes, if it takes one; None or `random`: it
            draws it.
        burst_length: how many bits, likewise; None leaves it as it was registered.

    Raises:
        ConfigError: no fault model has this name.
    """
    if not isinstance(model, str):
        is_model = callable(getattr(model, "corrupt", None)) and hasattr(model, "name")
        if is_model and not isinstance(model, type):
            return model
        raise ConfigError(
            f"fault model: got {model!r}, expected a name or an instance with `name` and `corrupt`"
        )
    if model not in _REGISTRY:
        near = difflib.get_close_matches(model, _REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"no fault model {model!r}; {hint}known: {', '.join(fault_model_names())}"
        )
    found = _REGISTRY[model]
    if bit not in (None, "random") and found.takes_bit:
        found = dataclasses.replace(found, bit=bit)  # type: ignore[type-var]
    if burst_length is not None and found.takes_burst_length:
        found = dataclasses.replace(found, length=burst_length)  # type: ignore[type-var]
    return found


def label_of(model: FaultModel) -> str:
    """The label of a fault model, also of one without our base class."""
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

# The specification's names for the same two things.
InjectionStrategy = FaultModel
get_strategy = get_fault_model
