"""Draw a transformed model as a Graphviz picture with its fault sites marked.

Each node of the graph is one node of the picture, except that the two nodes of a site
(`self.faults.relu` and the call that uses it) are one. A traced container is a thin frame around
its nodes. A container with its own forward or its own graph is a thick frame that says why.

(torch.fx's FxGraphDrawer needs pydot. It draws one graph, without the containers around its nodes,
the graphs inside it, the reasons why a container keeps its forward, or the states of the sites.)
"""

from __future__ import annotations

import operator
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fxfault.functional import begin_forward, fault_inject
from fxfault.passes.dot_text import (
    LABEL_WIDTH,
    attributes,
    digraph,
    node_attributes,
    quoted,
    svg_of,
)
from fxfault.passes.inspection import Inspection, SiteRow, inspect
from fxfault.passes.layer_quantisers import called_module, sites_struck_inside
from fxfault.passes.stored_sites import reads_words
from fxfault.passes.tracing.containers import joined
from fxfault.passes.tracing.traced_module import TracedModule


def to_dot(model: nn.Module) -> str:
    """Draw a model in the DOT language.

    >>> import fxfault
    >>> from brevitas.nn import QuantReLU
    >>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4))
    >>> text = to_dot(fxfault.transform(model, {"enabled": True, "probability": 5.0}))
    >>> text.startswith('digraph "Sequential" {'), "random 5 %" in text
    (True, True)

    Args:
        model: the result of `fxfault.transform`.

    Raises:
        SiteError: the model was not transformed.
    """
    drawing = _Drawing(inspect(model))
    lines = drawing.module(model, "")
    return digraph(type(model).__name__, drawing.inspection.headline, lines, drawing.edges)


def to_svg(model: nn.Module) -> str:
    """Draw a model as an SVG picture, with Graphviz's `dot`.

    Args:
        model: the result of `fxfault.transform`.

    Raises:
        SiteError: the model was not transformed.
        FxFaultError: Graphviz is not installed, or fails.
    """
    return svg_of(to_dot(model))


@dataclass
class _Frame:
    """A traced container around the lines of its nodes, with the containers inside it."""

    label: str = ""
    lines: list[str] = field(default_factory=list)
    frames: dict[str, _Frame] = field(default_factory=dict)


class _Drawing:
    """Draws the parts of a model as lines of DOT, and collects the edges."""

    def __init__(self, inspection: Inspection) -> None:
        # Outside of frames: an edge in one would pull its nodes into it.
        self.edges: list[str] = []
        self.inspection = inspection
        self.containers = {c.path: c for c in inspection.containers if c.handling != "traced"}
        self.sites = {site.name: site for site in inspection.sites}
        self.targets = {site.module_path for site in inspection.sites}
        self.drawn: set[int] = set()
        self.names = 0

    # -- modules ------------------------------------------------------------------------

    def module(self, module: nn.Module, path: str, caller: str | None = None) -> list[str]:
        """Draw the inside of a module: its graphs, or the sites that its own code reaches.

        Args:
            module: the model, or a container with its own forward or graph.
            path: the path of the module in the model.
            caller: the node of the module; None for the model itself.
        """
        self.drawn.add(id(module))
        if isinstance(module, TracedModule):
            graphs = [partial(self._graph, module, graph, path, caller) for graph in module.graphs]
            if len(graphs) == 1:
                return graphs[0]()
            modes = zip(("in eval mode", "in train mode"), graphs, strict=True)
            return [line for mode, graph in modes for line in self._cluster(mode, graph, "dotted")]
        if caller is None:
            return self._kept_frame(path, partial(self._own_forward, module, path))
        return self._insides(module, path, caller)

    def _own_forward(self, module: nn.Module, path: str, caller: str | None = None) -> list[str]:
        """A node for a module whose graph is not that of the model, and what it reaches."""
        label = [type(module).__name__, path or "the model"]
        node, line = self._node("own forward or graph", label)
        if caller is None:
            return [line, *self._insides(module, path, node)]
        self._edge(caller, node, dashed=True)
        return [line, *self.module(module, path, node)]

    def _insides(self, module: nn.Module, path: str, caller: str) -> list[str]:
        """Draw what a module's own code may reach, with dashed lines."""
        lines = self._struck_inside(module, caller)
        for name, child in module.named_children():
            full = joined(path, name)
            if id(child) in self.drawn:
                continue
            is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))
            if full not in self.containers or is_list:
                lines += self._insides(child, full, caller)
            else:
                lines += self._kept_frame(full, partial(self._own_forward, child, full, caller))
        return lines

    def _struck_inside(self, module: nn.Module, caller: str) -> list[str]:
        """Draw the sites that a layer strikes itself."""
        lines = []
        for site in sites_struck_inside(module):
            kind, label = self._fault_label(self.sites[site.name])
            node, line = self._node(kind, [site.module_type, *label])
            lines.append(line)
            self._edge(caller, node, dashed=True)
        return lines

    # -- graphs -------------------------------------------------------------------------

    def _graph(
        self, module: TracedModule, graph: Graph, path: str, caller: str | None
    ) -> list[str]:
        """Draw the nodes of a graph in the frames of their containers, and its edges."""
        root = _Frame()
        ids: dict[Node, str] = {}
        for node in graph.nodes:
            if _is_state(node) or reads_words(node):
                continue
            kind, label = self._describe(module, node, path)
            ids[node], line = self._node(kind, label, node.format_node() or "")
            frame = _frame_of(root, _stack(node), path)
            frame.lines += self._block(module, node, path, ids[node], line)
        lines = self._framed(root)
        for node, node_id in ids.items():
            for source in node.all_input_nodes:
                if source in ids:
                    self._edge(ids[source], node_id, dashed=node.target is begin_forward)
            if node.op == "placeholder" and caller is not None:
                self._edge(caller, node_id, dashed=True)
        return lines

    def _block(
        self, module: TracedModule, node: Node, path: str, node_id: str, line: str
    ) -> list[str]:
        """The line of a node; for a container with its own forward or graph, its whole frame."""
        full = joined(path, str(node.target))
        if node.op != "call_module":
            return [line]
        child = called_module(module, str(node.target))
        if id(child) in self.drawn:  # It was drawn at its first call.
            return [line]
        if full not in self.containers:
            self.drawn.add(id(child))
            return [line, *self._struck_inside(child, node_id)]
        return self._kept_frame(full, lambda: [line, *self.module(child, full, node_id)])

    def _describe(self, module: TracedModule, node: Node, path: str) -> tuple[str, list[str]]:
        """The kind of a node and the lines of its label."""
        target: Any = node.target
        if node.op in ("placeholder", "output"):
            return "input or output", [f"input {target}" if node.op == "placeholder" else "output"]
        if node.op == "call_module":
            full = joined(path, target)
            child = called_module(module, target)
            label = [type(child).__name__, full]
            if full in self.targets:
                return "fault target", label
            return ("own forward or graph" if full in self.containers else "layer"), label
        if target is fault_inject:
            state: Any = node.args[1]
            site = operator.attrgetter(state.target)(module)
            return self._fault_label(self.sites[site.name])
        if target is begin_forward:
            return "operation", ["begin_forward", "numbers the samples"]
        if node.op == "get_attr":
            return "operation", [f"self.{target}"]
        return "operation", [_call(node)]

    def _framed(self, frame: _Frame) -> list[str]:
        lines = list(frame.lines)
        for inner in frame.frames.values():
            lines += self._cluster(inner.label, partial(self._framed, inner), "solid")
        return lines

    def _fault_label(self, site: SiteRow) -> tuple[str, list[str]]:
        rate = "" if site.probability is None else f" {site.probability:g} %"
        label = [f"FAULT {site.index}: {site.name}", f"{site.fault_model}{rate}"]
        if site.armed:
            return "fault, armed", label
        return "fault, not armed", [*label, f"not armed: {site.why_unarmed}"]

    # -- lines --------------------------------------------------------------------------

    def _node(self, kind: str, label: list[str], tooltip: str = "") -> tuple[str, str]:
        self.names += 1
        name = f"n{self.names}"
        return name, f"  {name} [{node_attributes(kind, label, tooltip)}];"

    def _edge(self, source: str, target: str, dashed: bool) -> None:
        style = ' [style="dashed"]' if dashed else ""
        self.edges.append(f"  {source} -> {target}{style};")

    def _cluster(
        self, label: str, draw: Callable[[], list[str]], style: str, **more: str
    ) -> list[str]:
        """A frame around what a function draws."""
        self.names += 1
        head = f"  subgraph cluster_{self.names} {{"
        defaults = {"labeljust": "l", "fontsize": "9", "color": "#999999", "style": style}
        text = quoted(label, line_end="\\l")
        lines = [f"  graph [label={text}, {attributes({**defaults, **more})}];", *draw()]
        return [head, *("  " + line for line in lines), "  }"]

    def _kept_frame(self, path: str, draw: Callable[[], list[str]]) -> list[str]:
        container = self.containers[path]
        handling = "own graph" if container.handling == "own graph" else "kept with its own forward"
        label = "\n".join(textwrap.wrap(f"{handling}: {container.reason}", 44))
        return self._cluster(label, draw, "bold", color="#6a3fa0", fontcolor="#4b2a78")


def _is_state(node: Node) -> bool:
    """Whether a node only passes the state of a site to the operation that uses it."""
    users = {user.target for user in node.users}
    return node.op == "get_attr" and bool(users) and users <= {fault_inject, begin_forward}


def _stack(node: Node) -> Mapping[str, Any]:
    """The containers that a node comes from; a fault comes from those of what it strikes."""
    if node.target is fault_inject:
        node = node.args[0]  # type: ignore[assignment]
    return node.meta.get("nn_module_stack", {})


def _frame_of(root: _Frame, stack: Mapping[str, Any], path: str) -> _Frame:
    frame = root
    for key, (name, kind) in stack.items():
        full = joined(path, name)
        label = f"{getattr(kind, '__name__', kind)} {full}"
        frame = frame.frames.setdefault(key, _Frame(label))
    return frame


class _Value:
    """Stands for a value from the graph in the text of a call."""

    def __repr__(self) -> str:
        return "·"


_VALUE: Any = _Value()


def _call(node: Node) -> str:
    """An operation with its literal arguments; a dot stands for each value from the graph."""
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", "?"))
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _VALUE)
    values = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return textwrap.shorten(f"{name}({', '.join(values)})", LABEL_WIDTH, placeholder=" …")
