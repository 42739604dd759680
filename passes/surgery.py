"""Adopt layers that replace others in a transformed model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from fxfault.errors import SiteError
from fxfault.passes.layer_outputs import FloatOutput, LayerOutput, installed
from fxfault.passes.layer_quantisers import (
    LayerQuantisers,
    StruckQuantiser,
    accept_words,
    install_struck,
    struck_of,
)
from fxfault.passes.stored_sites import scales_in
from fxfault.passes.tracing.sharing import holds, shell
from fxfault.passes.tracing.targets import inner_rule, rule_of
from fxfault.quantisers.grouped_tensors import read_scales
from fxfault.quantisers.inner_quantisers import is_named, quantisers_inside
from fxfault.quantisers.quant_tensors import (
    dtype_of,
    has_own_forward,
    is_grouped,
    read_proxy,
    why_unsupported,
    why_wordless,
)
from fxfault.quantisers.stored_words import (
    KINDS,
    channel_dim,
    has_memory,
    needs_input,
    runs_brevitas_forward,
    why_no_words,
)
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite, Stored

_AGAIN = "transform the model again"


def follow(sites: FaultSites, module: nn.Module, before: Sequence[nn.Module | None]) -> None:
    """Let the sites of replaced layers and quantisers strike the new ones.

    A layer that replaces another takes over its sites, and so does a quantiser. Any other new
    target needs another graph or another list of sites.

    Args:
        sites: the sites of the transformed model.
        module: a part of the model whose children have changed.
        before: the former children of the module.

    Raises:
        SiteError: sites are armed, and a new layer has no site or no words for faults; or the
            graph calls a new layer with words that it does not have.
    """
    here, own = list(module.children()), struck_of(module)
    if own is not None:
        _keep_words(sites, own, before)
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
            ours = module._modules[name] = _adopted(sites, child, output, struck)
            if struck is not None:
                sites.watch_also(ours)
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
        _take_quantisers(sites, layer, ours, struck)
    _refuse_new(sites, layer, [] if struck is None else list(struck.struck))
    return ours


def _refuse_new(sites: FaultSites, layer: nn.Module, known: Collection[str]) -> None:
    """Refuse an armed forward if a layer makes words by quantisers that were not known before.

    Raises:
        SiteError: that is so.
    """
    if sites.clock.why_quiet is not None or not inner_rule(sites.config)(layer):
        return
    for name, quantiser in quantisers_inside(layer).items():
        if quantiser.is_quant_enabled and name not in known:
            raise SiteError(
                f"{name}: a {type(layer).__name__} was put into the model after transform, and "
                f"this quantiser of it has no fault site; {_AGAIN}"
            )


def _take_output(sites: FaultSites, layer: Any, ours: nn.Module, output: LayerOutput) -> bool:
    """Strike the output of our copy of a new layer; returns whether faults can do that."""
    struck = {id(site): site for calls in output.sites.values() for site in calls}
    is_float = isinstance(output, FloatOutput)
    why = None if is_float else _why_no_output(sites, layer)
    if why is not None:
        if sites.clock.why_quiet is not None:
            return False
        name = next(iter(struck.values())).name
        raise SiteError(
            f"site {name}: its layer was replaced by a {type(layer).__name__} that faults cannot "
            f"strike ({why}); {_AGAIN}"
        )
    output.layer = [ours]
    output.install()
    for site in struck.values() if not is_float else ():
        site.layer = ours if site.layer is not None else None
        _look_again(site, layer)
    return True


def _why_no_output(sites: FaultSites, layer: Any) -> str | None:
    """Why faults cannot strike the quantised output of a new layer; None if they can."""
    if not is_named(layer, sites.config.targets):
        return f"it is not one of {', '.join(sites.config.targets)}"
    why = why_unsupported(layer)
    return "it has a forward of its own" if why is None and has_own_forward(layer) else why


def _take_quantisers(
    sites: FaultSites, layer: nn.Module, ours: nn.Module, struck: LayerQuantisers
) -> None:
    """Strike the quantisers in our copy of a new layer by the sites of the old one's."""
    for name, stand_in in struck.struck.items():
        why = _why_not(sites, layer, name, struck)
        if why and stand_in.site is not None:
            # Armed or not: the graph calls the layer with the words of the old one.
            raise SiteError(
                f"site {stand_in.site.name}: its layer was replaced by a {type(layer).__name__} "
                f"that faults cannot strike ({why}); {_AGAIN}"
            )
    new = install_struck(ours)
    for name, stand_in in struck.struck.items():
        _take(new, name, stand_in, layer)
    for kind in struck.in_graph:
        accept_words(ours, kind)
    if struck.fast_mode is not None:
        new.run_own_cell()


def _keep_words(
    sites: FaultSites, struck: LayerQuantisers, before: Sequence[nn.Module | None]
) -> None:
    """Strike the words of quantisers that replaced others in a layer."""
    layer = struck.layer[0]
    for name, stand_in in list(struck.struck.items()):
        why = _why_not(sites, layer, name, struck)
        if why and stand_in.site is not None:
            raise SiteError(
                f"site {stand_in.site.name}: its quantiser was replaced, and faults cannot strike "
                f"the new one ({why}); {_AGAIN}"
            )
        _take(struck, name, stand_in, layer)
    changed = [n for n, child in layer._modules.items() if all(child is not old for old in before)]
    old_ones = [name for name in quantisers_inside(layer) if name not in changed]
    _refuse_new(sites, layer, [*struck.struck, *old_ones])


def _take(struck: LayerQuantisers, name: str, stand_in: StruckQuantiser, layer: nn.Module) -> None:
    """Strike a quantiser of a layer by the site that another one had."""
    for site in stand_in.sites:
        _look_again(site, layer)
    struck.add(name, stand_in.site, stand_in.scales)


def _why_not(sites: FaultSites, layer: nn.Module, name: str, struck: LayerQuantisers) -> str:
    """Why the sites of a layer cannot strike the words of a new one; empty if they can.

    Args:
        sites: the sites of the transformed model.
        layer: the new layer, or the same one with a new quantiser.
        name: the attribute of the layer that has the quantiser.
        struck: the struck quantisers of the old layer.
    """
    kind = next((kind for kind, found in KINDS.items() if found.quantiser == name), None)
    before, grouped = struck.struck[name], is_grouped(layer._modules.get(name))
    if before.site is not None and grouped != (before.scales is not None):
        return "it is groupwise" if grouped else "it is not groupwise"
    if kind is None:
        quantiser = quantisers_inside(layer).get(name)
        return f"it has no {name}" if quantiser is None else why_wordless(quantiser) or ""
    if not has_memory(layer, kind):
        return f"it has no {KINDS[kind].parameter} of Brevitas"
    why = why_no_words(layer, kind)
    if why is not None:
        return why
    if kind in struck.in_graph and struck_of(layer) is None and not runs_brevitas_forward(layer):
        return "it has a forward of its own"
    if kind in struck.in_graph and any(needs_input(layer, k) for k in ("weights", kind)):
        return f"its {KINDS[kind].parameter} depends on its quantised input"
    others = [struck_of(part) for part in sites.clock.model.modules()]
    tied = [o.struck[name].site for o in others if o not in (None, struck) and name in o.struck]
    if any(site is struck.struck[name].site is not None for site in tied):
        return "another layer has the same memory"
    return ""


def _look_again(site: FaultSite, layer: Any) -> None:
    """Bring the facts of a site up to date with the layer that it strikes."""
    proxy, site.module_type = layer._modules[site.part], type(layer).__name__
    of_scales = site.quantiser.group == "scales"
    site.quantiser = read_scales(proxy, dtype_of(layer)) if of_scales else read_proxy(proxy)
    if site.stored is not None:
        kind = site.stored.kind
        shape = getattr(layer, KINDS[kind].parameter).shape
        stored = Stored(kind, tuple(shape), channel_dim(layer, kind))
        site.stored = scales_in(stored, proxy) if of_scales else stored
    site.caches.clear()
    site.before = {}
    for fault in site.faults if site.selected else ():
        site.check_word(fault.model, site.bit_width)


def _holds_target(sites: FaultSites, module: nn.Module) -> bool:
    wanted = rule_of(sites.config)

    def is_target(part: nn.Module) -> bool:
        return wanted(part) and installed(part) is None and struck_of(part) is None

    return is_target(module) or holds(module, is_target)
