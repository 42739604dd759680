"""Strikes one call, in compiled code or outside it."""

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
    """Strike an activation inside the layer that makes it; see `fxfault.passes.layer_outputs`.

    Args:
        x: an `IntQuantTensor` that nothing else refers to.
        site: the site to strike.
        extra: calls of the layer since the one that the site stands for.

    Returns:
        The faulty activation, of the type of `x`.
    """
    if torch.compiler.is_dynamo_compiling():
        value = _strike_compiled(x, site)
        return x if value is None else type(x)(value, *x[1:])
    moment = moment_of(site, extra)
    return x if moment is None else with_value(x, x, strike_values(x, site, moment))


def inject_compiled(x: Any, site: FaultSite) -> Any:
    """Do what `fault_inject` does, in code that is being compiled."""
    activation, struck = (x, False) if site.output is None else site.output.take_compiled(x)
    if struck:
        return x
    value = _strike_compiled(activation, site)
    if value is None:
        return x
    # torch 2.13 cannot trace `_replace`.
    return value if activation is not x else type(x)(value, *x[1:])


def _strike_compiled(x: Any, site: FaultSite) -> Any:
    """Strike by an operator, which the compiler does not look into."""
    if not isinstance(x, IntQuantTensor):
        return _strike_out_of_graph(x, site)
    zero_faulty = site.gradient_mode == "zero_faulty"
    return strike_compiled(x, site.clock.handle.number, site.index, zero_faulty)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _strike_out_of_graph(x: Any, site: FaultSite) -> Tensor | None:
    """Refuse a value without an integer word if the site is armed, as uncompiled code does."""
    moment = moment_of(site)
    return None if moment is None else strike_values(x, site, moment)
