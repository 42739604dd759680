"""Draw a transformed model as a Graphviz picture with its fault sites marked.

Each node of the graph is one node of the picture, except that the two nodes of a site
(`self.faults.relu` and the call that uses it) are one. A traced container is a thin frame around
its nodes. A container with its own forward or its own graph is a thick frame that says why.

(torch.fx's FxGraphDrawer needs pydot, and draws one graph without containers or sites' states.)
"""

from __future__ import annotations

import operator
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from fxfault.passes.layer_outputs import site_struck_inside
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
    drawing.module(model, "")
    title = drawing.inspection.headline
    return digraph(type(model).__name__, title, drawing.lines, drawing.edges)


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
    """A traced container around its nodes.

    Attributes:
        label: class name and path; empty for the graph itself.
        lines: the lines of the nodes.
        frames: the containers inside, by their keys in `nn_module_stack`.
    """

    label: str = ""
    lines: list[str] = field(default_factory=list)
    frames: dict[str, _Frame] = field(default_factory=dict)


class _Drawing:
    """Collects the lines of a drawing while it walks through a model."""

    def __init__(self, inspection: Inspection) -> None:
        self.lines: list[str] = []
        self.edges: list[
            str
        ] = []  # Outside of frames: an edge in one would pull its nodes into it.
        self.inspection = inspection
        self.containers = {c.path: c for c in inspection.containers if c.handling != "traced"}
        self.sites = {site.name: site for site in inspection.sites}
        self.targets = {site.module_path for site in inspection.sites}
        self.drawn: set[int] = set()
        self.names = 0
        self.depth = 1

    # -- modules ------------------------------------------------------------------------

    def module(self, module: nn.Module, path: str, caller: str | None = None) -> None:
        """Draw the inside of a module: its graphs, or the sites that its own code reaches.

        Args:
            module: the model, or a container with its own forward or graph.
            path: the path of the module in the model.
            caller: the node of the module; None for the model itself.
        """
        self.drawn.add(id(module))
        if not isinstance(module, TracedModule):
            self._own_forward(module, path, caller)
            return
        for graph, mode in zip(module.graphs, ("in eval mode", "in train mode"), strict=False):
            if len(module.graphs) == 1:
                self._graph(module, graph, path, caller)
            else:
                with self._cluster(mode, "dotted"):
                    self._graph(module, graph, path, caller)

    def _own_forward(self, module: nn.Module, path: str, caller: str | None) -> None:
        if caller is not None:
            self._insides(module, path, caller)
            return
        with self._kept_frame(path):
            self._insides(module, path, self._container_node(module, path))

    def _insides(self, module: nn.Module, path: str, caller: str) -> None:
        """Draw what a module's own code may reach, with dashed lines."""
        site = site_struck_inside(module)
        if site is not None:
            kind, label = self._fault_label(self.sites[site.name])
            self._edge(caller, self._node(kind, [site.module_type, *label]), dashed=True)
        for name, child in module.named_children():
            full = joined(path, name)
            if id(child) in self.drawn:
                continue
            if not self._is_special(child, full):
                self._insides(child, full, caller)
                continue
            with self._kept_frame(full):
                node = self._container_node(child, full)
                self._edge(caller, node, dashed=True)
                self.module(child, full, node)

    def _is_special(self, module: nn.Module, path: str) -> bool:
        return path in self.containers and not isinstance(module, (nn.ModuleList, nn.ModuleDict))

    def _container_node(self, module: nn.Module, path: str) -> str:
        return self._node("own forward or graph", [type(module).__name__, path or "the model"])

    # -- graphs -------------------------------------------------------------------------

    def _graph(self, module: TracedModule, graph: Graph, path: str, caller: str | None) -> None:
        """Draw the nodes of a graph in the frames of their containers, and its edges."""
        root = _Frame()
        ids: dict[Node, str] = {}
        for node in graph.nodes:
            if _is_state(node):
                continue
            kind, label = self._describe(module, node, path)
            ids[node] = self._next_id()
            line = f"{ids[node]} [{node_attributes(kind, label, node.format_node() or '')}];"
            frame = _frame_of(root, _stack(node), path)
            frame.lines += self._block(module, node, path, ids[node], line)
        self._emit(root)
        for node, node_id in ids.items():
            for source in node.all_input_nodes:
                if source in ids:
                    self._edge(ids[source], node_id, dashed=node.target is begin_forward)
            if node.op == "placeholder":
                self._edge(caller, node_id, dashed=True)

    def _block(
        self, module: TracedModule, node: Node, path: str, node_id: str, line: str
    ) -> list[str]:
        """The line of a node; for a container with its own forward or graph, its whole frame."""
        full = joined(path, str(node.target))
        if node.op != "call_module" or full not in self.containers:
            return [line]
        child = module.get_submodule(str(node.target))
        if id(child) in self.drawn:  # It was drawn at its first call.
            return [line]
        outer, self.lines = self.lines, []
        with self._kept_frame(full):
            self._line(line)
            self.module(child, full, node_id)
        block, self.lines = self.lines, outer
        return block

    def _describe(self, module: TracedModule, node: Node, path: str) -> tuple[str, list[str]]:
        """The kind of a node and the lines of its label."""
        target: Any = node.target
        if node.op in ("placeholder", "output"):
            return "input or output", [f"input {target}" if node.op == "placeholder" else "output"]
        if node.op == "call_module":
            full = joined(path, target)
            child = module.get_submodule(target)
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

    def _emit(self, frame: _Frame) -> None:
        for line in frame.lines:
            self._line(line)
        for inner in frame.frames.values():
            with self._cluster(inner.label, "solid"):
                self._emit(inner)

    def _fault_label(self, site: SiteRow) -> tuple[str, list[str]]:
        rate = "" if site.probability is None else f" {site.probability:g} %"
        label = [f"FAULT {site.index}: {site.name}", f"{site.fault_model}{rate}"]
        if site.armed:
            return "fault, armed", label
        return "fault, not armed", [*label, f"not armed: {site.why_unarmed}"]

    # -- lines --------------------------------------------------------------------------

    def _node(self, kind: str, label: list[str]) -> str:
        name = self._next_id()
        self._line(f"{name} [{node_attributes(kind, label)}];")
        return name

    def _edge(self, source: str | None, target: str, dashed: bool = False) -> None:
        if source is not None:
            style = ' [style="dashed"]' if dashed else ""
            self.edges.append(f"  {source} -> {target}{style};")

    def _next_id(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def _line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    @contextmanager
    def _cluster(self, label: str, style: str, **more: str) -> Iterator[None]:
        self.names += 1
        self._line(f"subgraph cluster_{self.names} {{")
        self.depth += 1
        defaults = {"labeljust": "l", "fontsize": "9", "color": "#999999", "style": style}
        text = quoted(label, line_end="\\l")
        self._line(f"graph [label={text}, {attributes({**defaults, **more})}];")
        yield
        self.depth -= 1
        self._line("}")

    @contextmanager
    def _kept_frame(self, path: str) -> Iterator[None]:
        container = self.containers[path]
        handling = "own graph" if container.handling == "own graph" else "kept with its own forward"
        label = "\n".join(textwrap.wrap(f"{handling}: {container.reason}", 44))
        with self._cluster(label, "bold", color="#6a3fa0", fontcolor="#4b2a78"):
            yield


def _is_state(node: Node) -> bool:
    """Whether a node only passes the state of a site to the operation that uses it."""
    users = {user.target for user in node.users}
    return node.op == "get_attr" and bool(users) and users <= {fault_inject, begin_forward}


def _stack(node: Node) -> Mapping[str, Any]:
    """The containers that a node comes from; a fault comes from those of its activation."""
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
