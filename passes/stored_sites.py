"""Insert the sites of weights and biases into a traced model; see `fxfault.passes.insert`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from fxfault.functional import fault_inject, stored_bias, stored_weight
from fxfault.passes.layer_quantisers import accept_words, install_struck
from fxfault.passes.tracing.containers import joined
from fxfault.passes.tracing.traced_module import TracedModule
from fxfault.quantisers.grouped_tensors import read_scales, scales_shape
from fxfault.quantisers.quant_tensors import is_grouped, read_proxy
from fxfault.quantisers.stored_words import (
    KINDS,
    channel_dim,
    has_memory,
    needs_input,
    runs_brevitas_forward,
    same_memory,
    why_no_words,
)
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite, Stored

_READS = (stored_bias, stored_weight)

SCALES = "scales"
"""The last part of the name of a site whose words are the scales of groups."""


@dataclass(frozen=True)
class _Call:
    """A call of a layer by a graph."""

    module: TracedModule
    graph: Graph
    node: Node
    layer: nn.Module
    kinds: tuple[str, ...]


class StoredSites:
    """The weights and biases that faults can strike, found in the order of execution.

    Attributes:
        problems: why weights have no words that faults could strike, by their names.
    """

    def __init__(self, sites: FaultSites, kinds: Collection[str]) -> None:
        """Look for the memories of some kinds: `weights`, `biases`."""
        self.sites, self.kinds = sites, tuple(kind for kind in KINDS if kind in kinds)
        self.problems: dict[str, str] = {}
        self._calls: list[_Call] = []
        # By layer (its id) and kind. The layer is kept, so that no other one gets its id.
        self._found: dict[tuple[int, str], tuple[nn.Module, FaultSite | None]] = {}
        self._attributes: dict[str, str] = {}
        self._scales: dict[str, FaultSite] = {}

    def is_target(self, module: nn.Module) -> bool:
        """Whether a module has a memory of one of the kinds."""
        return any(has_memory(module, kind) for kind in self.kinds)

    def add_call(
        self, module: TracedModule, graph: Graph, node: Node, layer: nn.Module, path: str
    ) -> None:
        """Add the sites of a layer that a graph calls."""
        self.add(layer, path)
        kinds = [kind for kind in self.kinds if self._site_of(layer, kind) is not None]
        given = tuple(kind for kind in kinds if _can_be_given(layer, kind, node))
        if given:
            self._calls.append(_Call(module, graph, node, layer, given))

    def add_quantiser_call(self, module: nn.Module, target: str, path: str) -> None:
        """Add the site of a layer whose quantiser a graph calls, or a part of it.

        Args:
            module: the module that has the graph.
            target: what the graph calls.
            path: the path of the module in the model.
        """
        names = target.split(".")
        for place, name in enumerate(names):
            layer = module.get_submodule(".".join(names[:place]))
            for kind in self.kinds:
                if name != KINDS[kind].quantiser or not has_memory(layer, kind):
                    continue
                full = joined(path, ".".join(names[:place]))
                self.add(layer, full)
                if place < len(names) - 1 and self._site_of(layer, kind) is not None:
                    word = joined(full, KINDS[kind].parameter)
                    self.problems[word] = f"a part of its quantiser is called by itself ({target})"

    def add(self, layer: nn.Module, path: str) -> None:
        """Add the sites of a layer, whoever calls it."""
        for kind in self.kinds:
            if has_memory(layer, kind) and (id(layer), kind) not in self._found:
                self._found[id(layer), kind] = (layer, self._new_site(layer, path, kind))

    def _site_of(self, layer: nn.Module, kind: str) -> FaultSite | None:
        return self._found.get((id(layer), kind), (layer, None))[1]

    def _new_site(self, layer: Any, path: str, kind: str) -> FaultSite | None:
        parameter, quantiser = KINDS[kind][:2]
        name = joined(path, parameter)
        why = why_no_words(layer, kind)
        if why is not None:
            self.sites.skipped[name] = why
            # A float bias is the rule in networks of Brevitas.
            if kind == "weights" or layer._modules[quantiser].is_quant_enabled:
                self.problems[name] = why
            return None
        for (_, of_kind), (other, site) in self._found.items():
            if of_kind == kind and site is not None and same_memory(other, layer, kind):
                return site
        stored = Stored(kind, tuple(getattr(layer, parameter).shape), channel_dim(layer, kind))
        proxy, type_name = layer._modules[quantiser], type(layer).__name__
        facts = read_proxy(proxy)
        site, attribute = self.sites.add(name, path, type_name, facts, stored, quantiser)
        self._attributes[site.name] = attribute
        if is_grouped(proxy):
            name, facts = joined(name, SCALES), read_scales(proxy, layer.weight.dtype)
            stored = scales_in(stored, proxy)
            scales, _ = self.sites.add(name, path, type_name, facts, stored, quantiser)
            self._scales[site.name] = scales
        return site

    def rewrite(self, attribute_for: Callable[[nn.Module], str]) -> None:
        """Let graphs and layers strike the words.

        Args:
            attribute_for: names the attribute of a traced module that leads to the sites.
        """
        for (_, kind), (layer, site) in self._found.items():
            if site is not None:
                install_struck(layer).add(KINDS[kind].quantiser, site, self._scales.get(site.name))
        for call in self._calls:
            self._rewrite(call, attribute_for(call.module))

    def _rewrite(self, call: _Call, sites: str) -> None:
        """Strike the words of a layer before a graph calls it, and call it with them."""
        graph, node = call.graph, call.node
        stack = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
        with graph.inserting_before(node):
            layer = graph.create_node("get_attr", str(node.target))
            # Read even if only the bias is struck, which may have its scale.
            words = weight = graph.call_function(stored_weight, (layer,))
            for kind in call.kinds:
                if kind == "biases":
                    words = graph.call_function(stored_bias, (layer, node.args[0], weight))
                site = self._site_of(call.layer, kind)
                assert site is not None
                state = graph.create_node("get_attr", f"{sites}.{self._attributes[site.name]}")
                struck = graph.call_function(fault_inject, (words, state))
                words.meta.update(stack)  # The containers that the layer is in.
                node.update_kwarg(KINDS[kind].parameter, struck)
        if "weights" not in call.kinds:  # It must not be quantised twice.
            node.update_kwarg("weight", weight)
            install_struck(call.layer).add(KINDS["weights"].quantiser, None)
        for kind in ("weights", *call.kinds):
            accept_words(call.layer, kind)


def scales_in(stored: Stored, proxy: Any) -> Stored:
    """The tensor of the scales that a grouped quantiser gives to a weight."""
    dim, channel = int(proxy.group_dim) % len(stored.shape), stored.channel_dim
    moved = channel if channel <= dim else channel + 1
    return Stored(stored.kind, scales_shape(proxy, stored.shape), moved)


def reads_words(node: Node) -> bool:
    """Whether a node of a graph only reads the words of a layer, for a `fault_inject` to strike."""
    if node.op == "get_attr":
        return bool(node.users) and all(user.target in _READS for user in node.users)
    return node.target in _READS


def erase_words(graph: Graph) -> bool:
    """Remove what `StoredSites` put into a graph; returns whether there was anything."""
    erased = False
    for target in _READS:
        for words in graph.find_nodes(op="call_function", target=target):
            for user in list(words.users):
                if user.op == "call_function" and user.target is fault_inject:
                    _erase_keyword(user)
                    state = user.args[1]
                    graph.erase_node(user)
                    graph.erase_node(state)
            _erase_keyword(words)
            layer = words.args[0]
            graph.erase_node(words)
            if not layer.users:
                graph.erase_node(layer)
            erased = True
    return erased


def _erase_keyword(value: Node) -> None:
    """Call layers without a value that they got by name."""
    for user in list(value.users):
        if user.op == "call_module":
            user.kwargs = {name: given for name, given in user.kwargs.items() if given is not value}


def _can_be_given(layer: nn.Module, kind: str, node: Node) -> bool:
    """Whether a graph can read a layer's words before it calls the layer."""
    if not runs_brevitas_forward(layer) or needs_input(layer, "weights"):
        return False
    if is_grouped(layer._modules.get("weight_quant")):
        return False  # Two sites strike the weight, and the graph has a node for one.
    if layer._forward_pre_hooks:  # One may change the input or the parameters.
        return False
    return kind == "weights" or (bool(node.args) and not needs_input(layer, kind))
