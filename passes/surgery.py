"""Adopt layers that replace others in a transformed model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxfault.errors import SiteError
from fxfault.passes.layer_memories import LayerMemory, accept_words, install_memory, memory_of
from fxfault.passes.layer_outputs import FloatOutput, LayerOutput, installed
from fxfault.passes.tracing.sharing import holds, shell
from fxfault.passes.tracing.targets import rule_of
from fxfault.quantisers.quant_tensors import (
    has_own_forward,
    is_activation,
    read_proxy,
    read_quantiser,
    why_unsupported,
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
    own = memory_of(module)
    if own is not None:
        _keep_words(sites, own)
        return
    outputs = [installed(child) for child in before if child is not None]
    gone = [output for output in outputs if output and output.layer[0] not in module.children()]
    for name, child in list(module._modules.items()):
        if child is None or any(child is old for old in before):
            continue
        place = list(module._modules).index(name)
        old = before[place] if place < len(before) else None
        output = None if old is None else installed(old)
        memory = None if old is None else memory_of(old)
        if memory is not None and memory.layer[0] not in module.children():
            ours = module._modules[name] = _with_memory(sites, child, memory)
            sites.watch_also(ours)
        elif output is not None and output in gone:
            module._modules[name] = _adopted(sites, child, output)
        elif _holds_target(sites, child) and sites.clock.why_quiet is None:
            raise SiteError(
                f"{type(module).__name__}.{name}: a {type(child).__name__} was put there after "
                f"transform, and has activations without a fault site; {_AGAIN}"
            )


def _adopted(sites: FaultSites, layer: Any, output: LayerOutput) -> nn.Module:
    """Our copy of a new layer, struck by the sites of the old one."""
    if isinstance(output, FloatOutput):
        output.layer = [shell(layer)]
        output.install()
        return output.layer[0]  # type: ignore[no-any-return]
    struck = {id(site): site for calls in output.sites.values() for site in calls}
    why = why_unsupported(layer)
    if why is None and has_own_forward(layer):
        why = "it has a forward of its own"
    if not is_activation(layer, tuple(sites.config.targets)):
        why = f"it is not one of {', '.join(sites.config.targets)}"
    if why is not None:
        if sites.clock.why_quiet is not None:
            return layer  # type: ignore[no-any-return]
        name = next(iter(struck.values())).name
        raise SiteError(
            f"site {name}: its layer was replaced by a {type(layer).__name__} that faults cannot "
            f"strike ({why}); {_AGAIN}"
        )
    ours = shell(layer)
    output.layer = [ours]
    output.install()
    for site in struck.values():
        site.quantiser, site.module_type = read_quantiser(layer), type(layer).__name__
        site.layer = ours if site.layer is not None else None
        site.caches.clear()
        for fault in site.faults if site.selected else ():
            site.check_word(fault.model, site.bit_width)
    return ours


def _with_memory(sites: FaultSites, layer: nn.Module, memory: LayerMemory) -> nn.Module:
    """Our copy of a new layer, whose words are struck by the sites of the old one's."""
    ours = shell(layer)
    for kind, word in memory.words.items():
        why = _why_not(sites, layer, kind, memory)
        if why and word.site is not None:
            # Armed or not: the graph calls the layer with the words of the old one.
            raise SiteError(
                f"site {word.site.name}: its layer was replaced by a {type(layer).__name__} that "
                f"faults cannot strike ({why}); {_AGAIN}"
            )
    new = install_memory(ours)
    for kind, word in memory.words.items():
        if word.site is not None:
            _read_again(word.site, layer, kind)
        new.add(kind, word.site)
    for kind in memory.in_graph:
        accept_words(ours, kind)
    return ours


def _why_not(sites: FaultSites, layer: nn.Module, kind: str, memory: LayerMemory) -> str:
    """Why the sites of a layer's memory cannot strike a layer in its place; empty if they can."""
    if not has_memory(layer, kind):
        return f"it has no {KINDS[kind].parameter} of Brevitas"
    why = why_no_words(layer, kind)
    if why is not None:
        return why
    if kind in memory.in_graph and memory_of(layer) is None and not runs_brevitas_forward(layer):
        return "it has a forward of its own"
    if kind in memory.in_graph and any(needs_input(layer, k) for k in ("weights", kind)):
        return f"its {KINDS[kind].parameter} depends on its quantised input"
    others = [memory_of(part) for part in sites.clock.model.modules()]
    tied = [o.words[kind].site for o in others if o not in (None, memory) and kind in o.words]
    if any(site is memory.words[kind].site is not None for site in tied):
        return "another layer has the same memory"
    return ""


def _read_again(site: FaultSite, layer: Any, kind: str) -> None:
    """Bring the facts of a site up to date with the layer that it strikes."""
    parameter = getattr(layer, KINDS[kind].parameter)
    site.quantiser = read_proxy(layer._modules[KINDS[kind].quantiser])
    site.module_type = type(layer).__name__
    site.stored = Stored(kind, tuple(parameter.shape), channel_dim(layer, kind))
    site.caches.clear()
    for fault in site.faults if site.selected else ():
        site.check_word(fault.model, site.bit_width)


def _keep_words(sites: FaultSites, memory: LayerMemory) -> None:
    """Strike the words of quantisers that replaced others in a layer."""
    layer = memory.layer[0]
    for kind, word in list(memory.words.items()):
        why = _why_not(sites, layer, kind, memory)
        if why and word.site is not None:
            raise SiteError(
                f"site {word.site.name}: its quantiser was replaced, and faults cannot strike the "
                f"new one ({why}); {_AGAIN}"
            )
        if word.site is not None:
            _read_again(word.site, layer, kind)
        memory.add(kind, word.site)


def _holds_target(sites: FaultSites, module: nn.Module) -> bool:
    wanted = rule_of(sites.config)

    def is_target(part: nn.Module) -> bool:
        return wanted(part) and installed(part) is None and memory_of(part) is None

    return is_target(module) or holds(module, is_target)
