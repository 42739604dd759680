"""Strikes one call, in compiled code or outside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxfault.quantisers.quant_tensors import IntQuantTensor, plain
from fxfault.sites.edges import is_struck_before
from fxfault.sites.site import FaultSite
from fxfault.strike.moments import moment_of, recomputing
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
        return x if value is None else _with_compiled(x, value)
    moment = moment_of(site, extra)
    return x if moment is None else with_value(x, x, strike_values(x, site, moment))


def strike_inside(words: Any, given: Any, site: FaultSite, extra: int = 0) -> Any:
    """Strike the words that a quantiser has made, unless they are struck already.

    Args:
        words: what the quantiser made: an `IntQuantTensor` that nothing else refers to.
        given: the input of the quantiser.
        site: the site to strike.
        extra: calls of the layer since the one that the site stands for.

    Returns:
        The faulty words, of the type of `words`.

    Raises:
        SiteError: `words` is no `IntQuantTensor`; or words that the quantiser leaves as they are
            come from several sites, and only some of those are struck.
    """
    edges = site.edges
    if edges is None or torch.compiler.is_dynamo_compiling():
        return strike_call(words, site, extra)
    if recomputing():
        moment = moment_of(site, extra)  # The first run of the checkpoint has decided.
        if moment is None:
            return words
        return with_value(words, words, strike_values(words, site, moment))
    site.seen.shape = tuple(plain(words).shape)
    call, sources = edges.call(site), edges.sources(site, given, words)
    if not site.is_in_layer:  # An activation layer strikes the words of another one again.
        sources = tuple(s for s in sources if any(one.is_inner for one in s))
    if edges.forward == site.clock.forward:  # All words of this forward are known.
        site.before = {**(site.before if call else {}), call: sources}
    passes = site.is_struck and call in site.before and is_struck_before(site, call)
    if passes and site.quantiser.narrow_range:  # Which leaves out a code that a fault may give.
        value = plain(given)
        words = words._replace(value=torch.where(words.value == value, words.value, value))
    moment = moment_of(site, extra, passes=passes)
    if moment is not None:
        words = with_value(words, words, strike_values(words, site, moment))
    here = [s for sites in sources for s in sites]
    edges.note((*dict.fromkeys(here), site), words, plain(words))
    return words


def inject_followed(x: Any, activation: Any, site: FaultSite) -> Any:
    """Do what `fault_inject` does, if words are followed from site to site.

    Args:
        x: what `fault_inject` got.
        activation: the word of `x`.
        site: the site to strike.
    """
    given = None if site.output is None else site.output.take_given()
    struck = strike_inside(activation, given, site)
    return x if struck is activation else with_value(x, activation, plain(struck))


def inject_compiled(x: Any, site: FaultSite) -> Any:
    """Do what `fault_inject` does, in code that is being compiled."""
    activation, struck = (x, False) if site.output is None else site.output.take_compiled(x)
    if struck:
        return x
    value = _strike_compiled(activation, site)
    if value is None:
        return x
    return value if activation is not x else _with_compiled(x, value)


def _with_compiled(x: Any, value: Tensor) -> Any:
    """Do what `with_value` does; torch 2.13 cannot trace `_replace`."""
    return value if isinstance(x, Tensor) else type(x)(value, *x[1:])


def _strike_compiled(x: Any, site: FaultSite) -> Any:
    """Strike by an operator, which the compiler does not look into."""
    if not isinstance(x, IntQuantTensor):
        return _strike_out_of_graph(x, site)
    zero_faulty = site.gradient_mode == "zero_faulty"
    return strike_compiled(x, site.clock.handle.number, site.index, zero_faulty)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _strike_out_of_graph(x: Any, site: FaultSite) -> Tensor | None:
    """Strike float words, and refuse a value without words, as uncompiled code does."""
    moment = moment_of(site)
    return None if moment is None else strike_values(x, site, moment)
