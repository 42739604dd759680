"""Strike one call, in compiled code or outside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.quantisers.quant_tensors import IntQuantTensor
from fxfault.sites.site import FaultSite
from fxfault.strike.moments import moment_of
from fxfault.strike.operators import strike_compiled
from fxfault.strike.strikes import strike_values, with_value


def strike_call(x: Any, site: FaultSite, extra: int = 0) -> Any:
    """Strike what a layer has quantised, in the layer itself; see `fxfault.passes.layer_outputs`.

    Args:
        x: an `IntQuantTensor`; nobody else has it.
        site: state and settings of the place.
        extra: how many calls this is after the one that the site is of.

    Returns:
        What came in, of the same type, with faults.
    """
    if torch.compiler.is_dynamo_compiling():
        value = _strike_compiled(x, site)
        return x if value is None else type(x)(value, *x[1:])
    moment = moment_of(site, extra)
    return x if moment is None else with_value(x, x, strike_values(x, site, moment))


def inject_compiled(x: Any, site: FaultSite) -> Any:
    """`fault_inject` in code that is being compiled."""
    activation, struck = (x, False) if site.output is None else site.output.take_compiled(x)
    if struck:
        return x
    value = _strike_compiled(activation, site)
    if value is None:
        return x
    # torch 2.13 loses track of what `_replace` gives.
    return value if activation is not x else type(x)(value, *x[1:])


def _strike_compiled(x: Any, site: FaultSite) -> Any:
    """Leave the strike to an operator, which a compiler takes as it is."""
    if not isinstance(x, IntQuantTensor):
        return _strike_out_of_graph(x, site)
    zero_faulty = site.gradient_mode == "zero_faulty"
    return strike_compiled(x, site.clock.handle.number, site.index, zero_faulty)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _strike_out_of_graph(x: Any, site: FaultSite) -> Tensor | None:
    """Refuse what has no integer word if the site is armed by then, as without a compiler."""
    moment = moment_of(site)
    return None if moment is None else strike_values(x, site, moment)
