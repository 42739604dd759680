"""The type of a transformed model, for editors and type checkers."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxfault.passes.sites_of_model import sites_or_none
from fxfault.sites.fault_sites import FaultSites


class _HasSites(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, nn.Module) and sites_or_none(instance) is not None


class FaultyModule(nn.Module, metaclass=_HasSites):
    """A model with fault sites: what `fxfault.transform` returns.

    A transformed model keeps the class that it had, so that no model is made of this one. It is
    what a type checker or an editor takes the model for, and `isinstance` tells whether a model has
    sites.

    >>> from brevitas.nn import QuantReLU
    >>> from fxfault.passes.transform import transform
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> faulty = transform(model, {"enabled": True, "seed": 1})
    >>> isinstance(faulty, FaultyModule), isinstance(model, FaultyModule), type(faulty).__name__
    (True, False, 'Sequential')

    Attributes:
        faults: the sites. A model with a `faults` of its own has them as `fxfault_faults`.
    """

    faults: FaultSites

    def __init__(self) -> None:
        """Refuse to be made.

        Raises:
            TypeError: always.
        """
        raise TypeError("FaultyModule is only a type; fxfault.transform(model, config) makes one")
