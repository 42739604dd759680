"""What stands in for the last step of an activation layer that faults strike.

A Brevitas activation layer ends its forward with `self.pack_output(quantised)`, which
takes the scale away where a plain tensor was asked for. Our copies of the layers carry one
of these objects in its place, so that the layer returns what it always did, to whoever
calls it, and the fault still finds the scale.
"""

from __future__ import annotations

from typing import Any

from fxfault.quant_tensors import IntQuantTensor, plain
from fxfault.site import FaultSite

_METHOD = "pack_output"


class Handover:
    """Keeps the QuantTensor of a plain output until the graph's `fault_inject` takes it."""

    def __init__(self) -> None:
        self.kept: Any = None

    def __call__(self, output: Any) -> Any:
        """Take what the quantiser gave; return its plain value."""
        self.kept = output if isinstance(output, IntQuantTensor) else None
        return plain(output)

    def take(self, value: Any) -> Any:
        """The QuantTensor that a plain value came out of; None if it is another one's."""
        kept, self.kept = self.kept, None
        return kept if kept is not None and kept.value is value else None


class StruckOutput:
    """Strikes the output of a layer that a container calls by its own Python code."""

    def __init__(self, site: FaultSite, returns_quant_tensor: bool) -> None:
        self.site = site
        self.returns_quant_tensor = returns_quant_tensor

    def __call__(self, output: Any) -> Any:
        """Take what the quantiser gave; return it with faults, as it was asked for."""
        from fxfault.functional import fault_inject

        struck = fault_inject(output, self.site)
        return struck if self.returns_quant_tensor else plain(struck)


def install(layer: Any, output: Handover | StruckOutput) -> None:
    """Let a layer of ours end its forward with `output`."""
    layer.__dict__[_METHOD] = output


def installed(layer: Any) -> Handover | StruckOutput | None:
    """What a layer ends its forward with, if it is one of ours."""
    output = layer.__dict__.get(_METHOD)
    return output if isinstance(output, (Handover, StruckOutput)) else None


def uninstall(layer: Any) -> bool:
    """Take it off again; returns whether there was one."""
    if installed(layer) is None:
        return False
    del layer.__dict__[_METHOD]
    return True
