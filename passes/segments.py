"""Split a transformed model's forward at its fault sites, so that it can start in the middle.

A *cut* lies just before a fault strikes: after the layer that makes the activation, before
`fault_inject`; for a weight or bias, before its layer reads it; for another quantiser inside a
layer, before the layer. The code after a cut depends only
on the values that are *live* there: made before the cut and used after it. A *segment* is the code
from one cut to the next.

The forward of a model with the sites `quant` and `relu`::

    begin_forward(self.faults, x)
    quant = self.quant(x)                                # segment 0: x -> (quant,)
    fault_inject = fault_inject(quant, self.faults.quant)     # cut 1
    conv = self.conv(fault_inject)
    relu = self.relu(conv)                               # segment 1: -> (relu, fault_inject)
    fault_inject_1 = fault_inject(relu, self.faults.relu)     # cut 2
    return fault_inject_1 + fault_inject                 # segment 2: -> output

becomes three functions; their caller strikes the first live value at each cut. A segment that
starts at a weight or bias, or before a layer, strikes that itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.graph import CodeGen

from fxfault.functional import fault_inject, stored_weight
from fxfault.passes.layer_quantisers import (
    called_module,
    site_of_quantiser,
    sites_struck_inside,
)
from fxfault.passes.tracing.containers import containers_of
from fxfault.passes.tracing.refusals import OF_A_LIBRARY
from fxfault.passes.tracing.traced_module import TracedModule, compile_graph
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.site import FaultSite


@dataclass(frozen=True)
class Segment:
    """The part of a forward between two cuts.

    Attributes:
        site: the site at the start; see `takes_struck`. None for the first segment, which takes
            the model's inputs.
        inside: the other sites that strike while the segment runs.
        kept: paths of its containers that keep a user's Python forward, which may ask about values
            of several samples at once.
        function: the code of the segment; called with the model and the values that are live at the
            start, it returns a tuple of those that are live at the end, or the output of the model.
    """

    site: FaultSite | None
    inside: tuple[FaultSite, ...]
    kept: tuple[str, ...]
    function: Callable[..., Any] = field(repr=False)

    @property
    def takes_struck(self) -> bool:
        """Whether the site at the start strikes the first input before the segment runs."""
        return self.site is not None and self.site.stored is None and not self.site.is_inner

    @property
    def sites(self) -> tuple[FaultSite, ...]:
        """All sites that strike at the start of the segment or while it runs."""
        return self.inside if self.site is None else (self.site, *self.inside)


def split_at_sites(model: nn.Module, sites: Collection[str] | None = None) -> tuple[Segment, ...]:
    """Split the evaluation of a transformed model just before some of its fault sites.

    >>> import torch, fxfault
    >>> from brevitas.nn import QuantIdentity, QuantReLU
    >>> net = nn.Sequential(QuantIdentity(), nn.Linear(4, 4), QuantReLU()).eval()
    >>> faulty = fxfault.transform(net, {"enabled": True, "probability": 5.0})
    >>> first, second, third = split_at_sites(faulty)
    >>> second.site.name, third.site.name
    ('0', '2')
    >>> x = torch.randn(2, 4)
    >>> values = second.function(faulty, *first.function(faulty, x))
    >>> torch.equal(third.function(faulty, *values), faulty(x))
    True

    Args:
        model: the result of `fxfault.transform`, frozen or not.
        sites: names of the sites to split at; default: all possible ones. A split is not possible
            inside a container that keeps its own forward or graph, or between two calls of a site
            that counts its calls in a forward.

    Returns:
        The segments in the order of execution: a single one if nothing can be split, none if the
        model's own forward is not a graph.
    """
    if not isinstance(model, TracedModule) or type(model.graph._codegen) is not CodeGen:
        return ()
    nodes = [node for node in model.graph.nodes if node.op != "get_attr"]
    struck = {node: _sites_of(model, node) for node in nodes}
    cuts: list[tuple[int, FaultSite | None]] = [(0, None)]
    for place, site in _possible_cuts(nodes, struck):
        if sites is None or site.name in sites:
            cuts.append((place, site))
    starts = [place for place, _ in cuts]
    ends = [*starts[1:], len(nodes)]
    live = [_live_at(nodes, start) for start in starts]
    return tuple(
        _segment(model, site, nodes[start:end], live[number : number + 2], struck)
        for number, ((start, site), end) in enumerate(zip(cuts, ends, strict=True))
    )


def _sites_of(model: nn.Module, node: Node) -> tuple[FaultSite, ...]:
    """The sites that strike when a node runs."""
    if node.op == "call_function" and node.target is fault_inject:
        state: Any = node.args[1]
        return (operator.attrgetter(state.target)(model),)
    if node.op != "call_module":
        return ()
    found: dict[int, FaultSite] = {}
    words = site_of_quantiser(model, str(node.target))
    if words is not None:
        return (words,)
    for module in called_module(model, str(node.target)).modules():
        found.update((id(site), site) for site in sites_struck_inside(module))
        if isinstance(module, TracedModule):
            for inner in module.graph.nodes:
                found.update((id(site), site) for site in _sites_of(module, inner))
    return tuple(found.values())


def _kept_below(model: nn.Module, node: Node) -> Iterator[str]:
    """Paths of the containers that a node calls and that keep the user's Python forward."""
    if node.op != "call_module":
        return
    for container in containers_of(model):
        is_below = f"{container.path}.".startswith(f"{node.target}.")
        if is_below and container.handling == "kept" and container.reason != OF_A_LIBRARY:
            yield container.path


def _possible_cuts(
    nodes: list[Node], struck: dict[Node, tuple[FaultSite, ...]]
) -> Iterator[tuple[int, FaultSite]]:
    """The places before which the forward may be split, and the site that strikes first there."""
    spans: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        for site in struck[node]:
            if site.counts_calls:
                spans.setdefault(id(site), []).append(place)
    cut_at: set[int] = set()
    for place, node in enumerate(nodes):
        # The faults of such a site depend on its number of calls before in the same forward.
        torn = any(min(places) < place <= max(places) for places in spans.values())
        first = None if torn else _first_struck(node, struck)
        if first is not None and id(first) not in cut_at:  # Two layers may read one weight.
            cut_at.add(id(first))
            yield place, first


def _first_struck(node: Node, struck: dict[Node, tuple[FaultSite, ...]]) -> FaultSite | None:
    """The first site that strikes after a cut before a node; None if no cut is possible there."""
    if node.op == "call_module":
        given = [value for value in node.kwargs.values() if isinstance(value, Node)]
        gets_words = any(value.target is fault_inject for value in given)
        first = min(struck[node], key=lambda site: site.index, default=None)
        return first if first is not None and first.is_inner and not gets_words else None
    if node.op != "call_function":
        return None
    if node.target is stored_weight:  # With it, its layer begins to read its words.
        (layer,) = node.all_input_nodes
        strikes = [user for words in layer.users for user in words.users if user in struck]
        sites = [
            site for strike in strikes if strike.target is fault_inject for site in struck[strike]
        ]
        return sites[0] if sites else None
    if node.target is not fault_inject or struck[node][0].stored is not None:
        return None
    (site,) = struck[node]
    # A layer with hooks strikes its output itself, so a cut has nothing to strike.
    can_be_cut = site.output is not None and not site.output.strikes_itself
    return site if can_be_cut and not site.counts_calls else None


def _live_at(nodes: list[Node], place: int) -> list[Node]:
    """The nodes made before a place and used from there on; a struck activation comes first."""
    if place == 0:
        return []
    if nodes[place].target is not fault_inject:
        later = set(nodes[place:])
        return [node for node in nodes[:place] if not later.isdisjoint(node.users)]
    struck = nodes[place].args[0]
    later = set(nodes[place + 1 :])
    others = [node for node in nodes[:place] if not later.isdisjoint(node.users)]
    assert isinstance(struck, Node)
    return [struck, *(node for node in others if node is not struck)]


def _segment(
    model: nn.Module,
    site: FaultSite | None,
    nodes: list[Node],
    live: list[list[Node]],
    struck: dict[Node, tuple[FaultSite, ...]],
) -> Segment:
    """Make a segment of nodes that begins at a site; None for the first segment.

    `live` has the live nodes at the start and, unless it is the last segment, at the end.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    taken = live[0]
    for node in taken:
        copies[node] = graph.placeholder(node.name)
    given_struck = site is not None and nodes[0].target is fault_inject
    if given_struck:  # The placeholder of the unstruck value receives the struck one.
        copies[nodes[0]] = copies[taken[0]]

    def copy_of(node: Node) -> Node:
        # Parameters and the states of sites are read in the segment that uses them.
        if node not in copies:
            copies[node] = graph.node_copy(node)
        return copies[node]

    body = nodes[1:] if given_struck else nodes
    for node in body:
        copies[node] = graph.node_copy(node, copy_of)
    given = live[1] if len(live) > 1 else []
    if given:
        graph.output(tuple(map(copy_of, given)))
    graph.lint()
    inside = {id(other): other for node in body for other in struck[node]}
    return Segment(
        site=site,
        inside=tuple(other for other in inside.values() if other is not site),
        kept=tuple(path for node in body for path in _kept_below(model, node)),
        function=_compiled(graph),
    )


def _compiled(graph: Graph) -> Callable[..., Any]:
    """The code of a segment; while it runs, layers pass their words to the graph."""
    function = compile_graph(graph, "<segment>")

    def run(model: Any, *values: Any) -> Any:
        with faults_of(model).running_graph(model.__dict__["_number"]):
            return function(model, *values)

    return run
