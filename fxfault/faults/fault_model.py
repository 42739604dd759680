"""The interface of a fault model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fxfault.errors import ConfigError
from fxfault.faults.codes import Word
from fxfault.faults.random_numbers import stream_key, uniform_int63

# `inject` works on this many elements at once, so that its temporaries fit a core's L2 cache.
_PART = 1 << 16

Draw = Callable[[int], Tensor]
"""`draw(stream)` returns one random int64 from 0 to 2**63 - 1 for each code. Two streams are
independent; the same stream always returns the same numbers."""


class FaultModel(ABC):
    """What happens to the word of an element that is hit.

    Attributes:
        name: its name in configuration files, tables and plots.
        label: the name with its parameters, such as the bit.
        takes_bit: whether the key `bit` applies; the class is then a dataclass with that field.
        takes_burst_length: the same for the key `burst_length` and the field `length`.
        same_in_every_sample: whether the fault sits in the hardware, so that it hits the same
            elements in the same way in every sample of a trial.
        fewest_bits: the fewest bits of a word that it can strike.
    """

    name: str
    takes_bit: ClassVar[bool] = False
    takes_burst_length: ClassVar[bool] = False
    same_in_every_sample: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The name with its parameters."""
        return self.name

    @property
    def fewest_bits(self) -> int:
        """The fewest bits of a word that it can strike."""
        return 1

    @abstractmethod
    def corrupt(self, codes: Tensor, word: Word, draw: Draw) -> Tensor:
        """Return the codes that are read back after the fault.

        Args:
            codes: the clean codes of the hit elements, int64, one dimension.
            word: the word that stores them.
            draw: the only source of randomness that keeps runs reproducible.

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
        """Apply the fault model to an integer tensor wherever `mask` is true.

        This is the dense form that the specification names; the pass itself does not use it.

        >>> from fxfault.faults import get_fault_model
        >>> codes, mask = torch.tensor([7, 7]), torch.tensor([True, False])
        >>> get_fault_model("msb_flip").inject(codes, mask, bit_width=4, signed=True)
        tensor([-1,  7])

        Args:
            int_tensor: codes, any shape, any integer dtype.
            mask: bool, same shape; true for elements that are hit.
            bit_width: bits of the word, 1 to 32.
            signed: whether the word is two's complement.
            device: device of the result; default: that of `int_tensor`.
            seed: seed of fault models that draw.

        Raises:
            ConfigError: the shapes of the mask and the codes differ.
        """
        device = int_tensor.device if device is None else torch.device(device)
        if mask.shape != int_tensor.shape:
            raise ConfigError(
                f"mask: got shape {tuple(mask.shape)} for codes of shape {tuple(int_tensor.shape)}"
            )
        faulty = int_tensor.to(device).clone(memory_format=torch.contiguous_format)
        hit, word, done = mask.to(device, torch.bool).reshape(-1), Word(bit_width, signed), 0
        size = _PART if device.type == "cpu" else max(1, faulty.numel())
        for part, chosen in zip(faulty.view(-1).split(size), hit.split(size), strict=True):
            index = slice(None) if bool(chosen.all()) else chosen.nonzero().view(-1)
            codes = part[index].to(torch.int64)
            elements = torch.arange(done, done + codes.numel(), device=device)

            def draw(stream: int, elements: Tensor = elements) -> Tensor:
                return uniform_int63(stream_key(seed, self.name, stream), elements)

            part[index] = self.corrupt(codes, word, draw).to(part.dtype)
            done += codes.numel()
        return faulty

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
