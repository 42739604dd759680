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

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fxfault.codes import Word
from fxfault.errors import ConfigError
from fxfault.random_numbers import stream_key, uniform_int63

Draw = Callable[[int], Tensor]
"""`draw(stream)` gives one random number from 0 to 2**63 - 1 (int64) for each code; two
streams are independent, and one stream called twice gives the same numbers."""


class FaultModel(ABC):
    """What happens to the word of an element that is hit.

    Attributes:
        name: how configuration files, tables and plots call it.
    """

    name: str

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
        """
        device = int_tensor.device if device is None else device
        codes = int_tensor.to(device=device, dtype=torch.int64)
        mask = mask.to(device)
        hit = codes[mask]
        elements = torch.arange(hit.numel(), device=device)

        def draw(stream: int) -> Tensor:
            return uniform_int63(stream_key(seed, self.name, stream), elements)

        faulty = codes.clone()
        faulty[mask] = self.corrupt(hit, Word(bit_width, signed), draw)
        return faulty.to(int_tensor.dtype)

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


def get_fault_model(model: str | FaultModel) -> FaultModel:
    """Find a fault model by name; an instance is returned as it is.

    >>> get_fault_model("msb_flip")
    MSBFlipStrategy()

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
    return _REGISTRY[model]


for _model in (RandomStrategy(), LSBFlipStrategy(), MSBFlipStrategy(), FullFlipStrategy()):
    register_fault_model(_model)

# The specification's names for the same two things.
InjectionStrategy = FaultModel
get_strategy = get_fault_model
