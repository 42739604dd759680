"""Adopt layers that replace others in a transformed model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxfault.errors import SiteError
from fxfault.passes.layer_outputs import LayerOutput, install, installed
from fxfault.passes.layer_quantisers import (
    LayerQuantisers,
    accept_words,
    install_struck,
    struck_of,
)
from fxfault.passes.tracing.sharing import holds, shell
from fxfault.passes.tracing.targets import rule_of
from fxfault.quantisers.inner_quantisers import is_named, quantisers_inside
from fxfault.quantisers.quant_tensors import (
    has_own_forward,
    read_proxy,
    why_no_integers,
    why_unsupported,
)
from fxfault.quantisers.stored_words import (
    KINDS,
    channel_dim,
    has_memory,
    runs_brevitas_forward,
    why_no_words,
)
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite, Stored

_AGAIN = "transform the model again"


def follow(sites: FaultSites, module: nn.Module, before: Sequence[nn.Module | None]) -> None:
    """Let the sites of replaced layers strike the new ones.

    An activation layer that replaces another takes over its sites. Any other new target needs
    another graph or another list of sites.

    Args:
        sites: the sites of the transformed model.
        module: a part of the model whose children have changed.
        before: the former children of the module.

    Raises:
        SiteError: sites are armed, and a new layer has no site or no integer words.
    """
    here = list(module.children())
    for name, child in list(module._modules.items()):
        if child is None or any(child is old for old in before):
            continue
        place = list(module._modules).index(name)
        old = before[place] if place < len(before) else None
        # What still has a place in the module strikes there.
        is_gone = old is not None and all(old is not other for other in here)
        output = installed(old) if is_gone and old is not None else None
        struck = struck_of(old) if is_gone and old is not None else None
        if output is not None or struck is not None:
            module._modules[name] = _adopted(sites, child, output, struck)
        elif _holds_target(sites, child) and sites.clock.why_quiet is None:
            raise SiteError(
                f"{type(module).__name__}.{name}: a {type(child).__name__} was put there after "
                f"transform, and has activations without a fault site; {_AGAIN}"
            )


def _adopted(
    sites: FaultSites, layer: Any, output: LayerOutput | None, struck: LayerQuantisers | None
) -> nn.Module:
    """Our copy of a new layer, struck by the sites of the old one.

    Args:
        sites: the sites of the transformed model.
        layer: the new layer.
        output: the last step of the old layer; None if its output is no site.
        struck: the struck quantisers of the old layer; None if it has none.

    Raises:
        SiteError: the new layer has no such words, or has others.
    """
    ours = shell(layer)
    if output is not None and not _take_output(sites, layer, ours, output):
        return layer  # type: ignore[no-any-return]
    if struck is not None:
        _take_quantisers(layer, ours, struck)
    left = [] if struck is None else list(struck.struck)
    for name, quantiser in quantisers_inside(layer).items():
        is_new = quantiser.is_quant_enabled and name not in left
        if is_new and is_named(layer, sites.config.targets) and sites.clock.why_quiet is None:
            raise SiteError(
                f"{name}: a {type(layer).__name__} was put into the model after transform, and "
                f"this quantiser of it has no fault site; {_AGAIN}"
            )
    return ours


def _take_output(sites: FaultSites, layer: Any, ours: nn.Module, output: LayerOutput) -> bool:
    """Strike the output of our copy of a new layer; returns whether faults can do that."""
    struck = {id(site): site for calls in output.sites.values() for site in calls}
    why = why_unsupported(layer)
    if why is None and has_own_forward(layer):
        why = "it has a forward of its own"
    if not is_named(layer, sites.config.targets):
        why = f"it is not one of {', '.join(sites.config.targets)}"
    if why is not None:
        if sites.clock.why_quiet is not None:
            return False
        name = next(iter(struck.values())).name
        raise SiteError(
            f"site {name}: its layer was replaced by a {type(layer).__name__} that faults cannot "
            f"strike ({why}); {_AGAIN}"
        )
    output.layer = [ours]
    install(ours, output)
    for site in struck.values():
        site.layer = ours if site.layer is not None else None
        _look_again(site, layer)
    return True


def _take_quantisers(layer: nn.Module, ours: nn.Module, struck: LayerQuantisers) -> None:
    """Strike the quantisers in our copy of a new layer by the sites of the old one's."""
    for name, stand_in in struck.struck.items():
        why = _why_not(layer, name, name in {KINDS[kind].quantiser for kind in struck.in_graph})
        if why:  # Armed or not: the graph calls the layer with the words of the old one.
            raise SiteError(
                f"site {stand_in.site.name}: its layer was replaced by a {type(layer).__name__} "
                f"that faults cannot strike ({why}); {_AGAIN}"
            )
    new = install_struck(ours)
    for name, stand_in in struck.struck.items():
        site = stand_in.site
        if site.stored is not None:
            kind = site.stored.kind
            shape = getattr(layer, KINDS[kind].parameter).shape
            site.stored = Stored(kind, tuple(shape), channel_dim(layer, kind))
        _look_again(site, layer)
        new.add(name, site)
    for kind in struck.in_graph:
        accept_words(ours, kind)
    if struck.fast_mode is not None:
        new.run_own_cell()


def _why_not(layer: nn.Module, name: str, in_graph: bool) -> str:
    """Why a new layer has no words of a quantiser that faults could strike; empty if it has."""
    kind = next((kind for kind, found in KINDS.items() if found.quantiser == name), None)
    if kind is None:
        quantiser = quantisers_inside(layer).get(name)
        return f"it has no {name}" if quantiser is None else why_no_integers(quantiser) or ""
    if in_graph and not runs_brevitas_forward(layer):
        return "it has a forward of its own"
    if not has_memory(layer, kind):
        return f"it has no {KINDS[kind].parameter} of Brevitas"
    return why_no_words(layer, kind) or ""


def _look_again(site: FaultSite, layer: nn.Module) -> None:
    """Read the constants of a new layer's quantiser."""
    site.quantiser, site.module_type = read_proxy(layer._modules[site.part]), type(layer).__name__
    site.caches.clear()
    site.before = {}
    for fault in site.faults if site.selected else ():
        site.check_word(fault.model, site.bit_width)


def _holds_target(sites: FaultSites, module: nn.Module) -> bool:
    wanted = rule_of(sites.config)

    def is_target(part: nn.Module) -> bool:
        return wanted(part) and installed(part) is None and struck_of(part) is None

    return is_target(module) or holds(module, is_target)
