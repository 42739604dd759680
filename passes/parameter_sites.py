"""Float parameters and buffers as sites: biases, batch-norm statistics, scales.

They are not written. While a forward of the whole model runs, an attribute of our copy of the
module that holds a tensor stands in front of it, with the faulty value. Whoever reads the parameter
in the forward, a layer, the graph or Python code, reads that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxfault.passes.tracing.containers import joined
from fxfault.quantisers.quant_tensors import ieee_words
from fxfault.quantisers.stored_words import float_tensors_of
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite, Stored
from fxfault.strike.calls import strike_call

KIND = "parameters"


@dataclass
class Held:
    """A tensor that a module holds, and its site."""

    module: list[nn.Module]
    name: str
    site: FaultSite


class StruckParameters:
    """The parameters and buffers of a model that faults strike while it runs."""

    def __init__(self, held: list[Held]) -> None:
        """Take the tensors; nothing is struck yet."""
        self.held = held
        self._shown: list[Held] = []

    def show(self) -> None:
        """Let the modules show the struck tensors.

        Raises:
            SiteError: the faults do not fit a tensor.
        """
        for place in self.held:
            if not place.site.armed:
                continue
            module: Any = place.module[0]
            clean = _held_by(module, place.name)
            struck = strike_call(clean, place.site)
            if struck is not clean:
                module.__dict__[place.name] = struck
                self._shown.append(place)

    def hide(self) -> None:
        """Let the modules show their own tensors again."""
        while self._shown:
            place = self._shown.pop()
            place.module[0].__dict__.pop(place.name, None)


class ParameterSites:
    """The float parameters and buffers of a model, in the order of its modules."""

    def __init__(self, sites: FaultSites, memories: Collection[str]) -> None:
        """Look for them if they are among the memories."""
        self.sites, self.wanted = sites, KIND in memories
        self.held: list[Held] = []

    def add_all(self, root: nn.Module) -> None:
        """Add the sites of a model. A tensor that several modules hold is one site.

        What `state_dict` leaves out is no memory of the network: constants of Brevitas's quantisers
        and second names of a tensor.
        """
        known: dict[int, FaultSite] = {}
        saved = root.state_dict(keep_vars=True) if self.wanted else {}
        for path, module in root.named_modules() if self.wanted else ():
            scripted = isinstance(module, torch.jit.ScriptModule)
            for name, tensor in float_tensors_of(module).items():
                full = joined(path, name)
                if full not in saved and id(tensor) not in known:
                    continue
                if scripted:
                    self.sites.skipped[full] = f"a {type(module).__name__} in TorchScript holds it"
                    continue
                if id(tensor) not in known:
                    stored = Stored(KIND, tuple(tensor.shape))
                    words = ieee_words(tensor.dtype)
                    kind = type(module).__name__
                    known[id(tensor)], _ = self.sites.add(full, path, kind, words, stored)
                self.held.append(Held([module], name, known[id(tensor)]))

    def install(self) -> None:
        """Let the model show struck tensors while it runs."""
        if self.wanted:
            self.sites.parameters = StruckParameters(self.held)


def _held_by(module: nn.Module, name: str) -> Any:
    """The tensor itself, whatever the attribute shows."""
    held: dict[str, Any] = {**module._parameters, **module._buffers}
    return held[name]
