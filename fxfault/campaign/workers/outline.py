"""Describes a transformed network and its sites in plain values, for the store."""

from __future__ import annotations

import operator
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx import Node as GraphNode

from fxfault.campaign.records.background import (
    CONTAINER,
    INPUT,
    LAYER,
    OPERATION,
    OUTPUT,
    SITE,
    Background,
    Node,
    SiteNote,
)
from fxfault.functional import begin_forward, fault_inject
from fxfault.passes.layer_quantisers import called_module, sites_struck_inside
from fxfault.passes.stored_sites import reads_words
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite


def background_of(
    model: nn.Module,
    faults: FaultSites,
    elements: Mapping[str, int | None],
    device: torch.device,
) -> Background:
    """Describe a network for reports.

    Args:
        model: a network that `fxfault.transform` returned, after a forward with armed sites
        faults: its sites
        elements: the number of elements of one sample at each site, by name; None if unknown
        device: the device that it runs on
    """
    outline = _Outline()
    outline.model(model)
    sites = [_note(site, elements[site.name]) for site in faults]
    return Background(outline.nodes, outline.edges, sites, _environment(device))


def _note(site: FaultSite, elements: int | None) -> SiteNote:
    return SiteNote(
        *(site.name, site.index, site.module_type, site.bit_width, site.signed, elements),
        memory=site.memory,
    )


def _environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch build": torch.__version__,
        "system": platform.platform(),
        "device": str(device),
        "processor": name,
        "threads": str(torch.get_num_threads()),
    }


class _Outline:
    """Collects the nodes and edges of a transformed model."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self._seen: set[int] = set()

    def model(self, model: nn.Module) -> None:
        """Add a whole model."""
        if isinstance(model, GraphModule):
            self._graph(model, model.graph, "", None)
        else:
            caller = self._add(Node(type(model).__name__, CONTAINER, type(model).__name__))
            self._insides(model, "", caller)

    def _graph(self, module: nn.Module, graph: Graph, path: str, caller: int | None) -> int:
        """Add a graph, and return the node that stands for its result.

        Args:
            module: the module that owns the graph
            graph: the graph
            path: the module's path
            caller: the node that stands for the inputs; None if the graph has nodes for them
        """
        numbers: dict[GraphNode, int] = {}
        for node in graph.nodes:
            known = [numbers[source] for source in node.all_input_nodes if source in numbers]
            sources = list(dict.fromkeys(known))
            if caller is not None and node.op == "placeholder":
                numbers[node] = caller
            elif caller is not None and node.op == "output" and len(sources) == 1:
                return sources[0]
            elif not _is_bookkeeping(node):
                numbers[node] = self._node(module, node, path, sources)
        return numbers[node]

    def _node(self, module: nn.Module, node: GraphNode, path: str, sources: Sequence[int]) -> int:
        if node.target is fault_inject:
            state: Any = node.args[1]
            return self._site(operator.attrgetter(state.target)(module), sources)
        if node.op != "call_module":
            return self._add(_plain_node(node, path), sources)
        child = called_module(module, str(node.target))
        full = _joined(path, str(node.target))
        if not _has_sites_inside(child) or id(child) in self._seen:
            return self._add(Node(full, LAYER, type(child).__name__), sources)
        caller = self._add(Node(full, CONTAINER, type(child).__name__), sources)
        return self._insides(child, full, caller)

    def _insides(self, module: nn.Module, path: str, caller: int) -> int:
        """Add what a module contains, and return the node that stands for its result."""
        self._seen.add(id(module))
        if isinstance(module, GraphModule):
            return self._graph(module, module.graph, path, caller)
        for struck in sites_struck_inside(module):
            self._site(struck, [caller])
        for name, child in module.named_children():
            if id(child) not in self._seen:
                self._insides(child, _joined(path, name), caller)
        return caller

    def _site(self, site: FaultSite, sources: Sequence[int]) -> int:
        return self._add(Node(site.module_path, SITE, site.module_type, site.name), sources)

    def _add(self, node: Node, sources: Sequence[int] = ()) -> int:
        self.nodes.append(node)
        number = len(self.nodes) - 1
        self.edges += [(source, number) for source in sources]
        return number


def _plain_node(node: GraphNode, path: str) -> Node:
    """Describe a node that calls no module."""
    name = _joined(path, node.name)
    if node.op == "placeholder":
        return Node(name, INPUT, str(node.target))
    if node.op == "output":
        return Node(name, OUTPUT, "output")
    return Node(name, OPERATION, str(getattr(node.target, "__name__", node.target)))


def _is_bookkeeping(node: GraphNode) -> bool:
    """Whether a node only numbers samples, reads words, or passes on a site's state."""
    users = {user.target for user in node.users}
    is_state = node.op == "get_attr" and bool(users) and users <= {fault_inject, begin_forward}
    return is_state or reads_words(node) or node.target is begin_forward


def _has_sites_inside(module: nn.Module) -> bool:
    return any(
        sites_struck_inside(inner)
        or (
            isinstance(inner, GraphModule)
            and any(node.target is fault_inject for node in inner.graph.nodes)
        )
        for inner in module.modules()
    )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
