"""Count the calls of quantisers inside layers, to compare them with the strikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxfault.passes.layer_quantisers import struck_of
from fxfault.quantisers.frozen_layers import FrozenLayer
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import OUTPUT, FaultSite


@dataclass(eq=False)
class InnerCalls:
    """The calls of one quantiser, which several layers may share.

    Attributes:
        counted: the module whose calls are counted.
        sites: the sites of its words.
        number: the number of calls so far.
    """

    counted: nn.Module
    sites: list[FaultSite]
    number: int = 0

    def count(self, *_: Any) -> None:
        """Count a call."""
        self.number += 1


def inner_strikes(sites: FaultSites) -> list[InnerCalls]:
    """The quantisers of activations inside the layers of a model, each with its sites.

    A quantiser that is also the `act_quant` of a frozen layer is left out: that does not call it.
    """
    found: dict[tuple[int, bool], InnerCalls] = {}
    left_out: set[int] = set()
    for module in sites.clock.model.modules():
        struck = struck_of(module)
        for stand_in in struck.struck.values() if struck is not None else ():
            for site in stand_in.sites:
                if site.is_inner:
                    counted, scales = _counted(stand_in.quantiser), site.quantiser.group == "scales"
                    calls = found.setdefault((id(counted), scales), InnerCalls(counted, []))
                    calls.sites.append(site)
    for output in sites.outputs if found else ():  # The same quantiser may make outputs.
        layer = output.layer[0]
        counted = _counted(layer._modules[OUTPUT])
        if (id(counted), False) not in found:
            continue
        if isinstance(layer, FrozenLayer):
            left_out.add(id(counted))
        own = {id(site): site for calls in output.sites.values() for site in calls}
        found[id(counted), False].sites.extend(own.values())
    return [calls for (key, _), calls in found.items() if key not in left_out]


def _counted(quantiser: Any) -> nn.Module:
    """The part of a quantiser that the fast cell of an LSTM calls, too, if that can be counted."""
    fused = quantiser._modules.get("fused_activation_quant_proxy")
    is_counted = fused is not None and not isinstance(fused, torch.jit.ScriptModule)
    made: nn.Module = fused if is_counted else quantiser
    return made
