"""Insert a `fault_inject` call after every fault target of a traced model.

Before::

    relu = self.relu(conv1)
    conv2 = self.conv2(relu)

After::

    relu = self.relu(conv1)
    faults_relu = self.faults.relu
    fault_inject = fxfault_functional_fault_inject(relu, faults_relu)
    conv2 = self.conv2(fault_inject)

and, once at the top of the model's graph, `begin_forward(self.faults, x)`, which numbers
the samples. Targets that a container calls by its own Python code get the same function
as a forward hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxfault.config import FaultInjectionConfig
from fxfault.errors import TransformError
from fxfault.functional import begin_forward, fault_inject
from fxfault.passes.sharing import holds, shell
from fxfault.passes.traced_module import TracedModule
from fxfault.quant_tensors import (
    hand_on_quant_tensor,
    is_activation,
    read_quantiser,
    why_unsupported,
)
from fxfault.sites import ATTRIBUTE_NAMES, FaultSite, FaultSites


@dataclass(frozen=True)
class InsertFaults(PassBase):
    """Insert fault sites into what `fxfault.passes.trace` returned.

    Attributes:
        config: what the sites do; `targets` must be those that the model was traced with.
    """

    config: FaultInjectionConfig

    def requires(self, graph_module: nn.Module) -> None:
        """The model must not carry sites already."""
        if any(isinstance(vars(graph_module).get(n), FaultSites) for n in ATTRIBUTE_NAMES):
            raise TransformError(
                f"{type(graph_module).__name__} already has fault sites; change them through "
                "`model.faults`, or call fxfault.strip(model) before transforming it again"
            )

    def call(self, graph_module: nn.Module) -> PassResult:
        """Insert the sites, in place."""
        plan = _Plan(graph_module, self.config)
        plan.walk(graph_module, "", in_root_graph=True)
        if plan.problems and self.config.unsupported == "error":
            raise TransformError(
                f"faults cannot strike {_listed(plan.problems)}. Enable an integer quantiser "
                "there, or set `unsupported: skip`"
            )
        if not plan.by_name:
            raise TransformError(f"no fault can strike: {_listed(plan.sites.skipped)}")
        plan.rewrite()
        return PassResult(graph_module, len(plan.sites) > 0)


def _listed(problems: dict[str, str], most: int = 5) -> str:
    shown = [f"{path} ({why})" for path, why in list(problems.items())[:most]]
    more = [f"{len(problems) - most} more"] if len(problems) > most else []
    return ", ".join(shown + more)


class FaultHook:
    """Strikes the output of a layer that a container calls by its own Python code."""

    def __init__(self, site: FaultSite) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Take the layer's output and return it with faults."""
        return fault_inject(output, self.site)


class BeginHook:
    """Moves the clock before a model that keeps its own forward."""

    def __init__(self, sites: FaultSites) -> None:
        self.sites = sites

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """See the model's inputs; they go on as they are."""
        begin_forward(self.sites, *args, *kwargs.values())


class _Plan:
    """The places where faults can strike, found in the order of execution."""

    def __init__(self, root: nn.Module, config: FaultInjectionConfig) -> None:
        self.root = root
        self.config = config
        self.sites = FaultSites(config)
        self.problems: dict[str, str] = {}
        self.attribute = next(n for n in ATTRIBUTE_NAMES if not hasattr(root, n))
        self.graph_places: list[tuple[TracedModule, Graph, Node, str]] = []
        self.hook_places: list[tuple[nn.Module, str, nn.Module, FaultSite]] = []
        self.by_name: dict[str, tuple[FaultSite, str]] = {}
        self.visited: set[int] = set()

    def is_target(self, module: nn.Module) -> bool:
        return is_activation(module, tuple(self.config.targets))

    # -- select -------------------------------------------------------------------------

    def walk(self, module: nn.Module, path: str, in_root_graph: bool = False) -> None:
        if id(module) in self.visited:
            return
        self.visited.add(id(module))
        if isinstance(module, TracedModule):
            for graph in module.graphs:
                self._walk_graph(module, graph, path, in_root_graph)
        elif self.is_target(module):
            self._add_hooked(module, "", module, path or type(module).__name__)
        else:
            for name, child in module.named_children():
                full = f"{path}.{name}" if path else name
                if self.is_target(child):
                    self._add_hooked(module, name, child, full)
                elif holds(child, self.is_target):
                    self.walk(child, full)

    def _walk_graph(
        self, module: TracedModule, graph: Graph, path: str, in_root_graph: bool
    ) -> None:
        calls: dict[str, int] = {}
        for node in graph.find_nodes(op="call_module"):
            child = module.get_submodule(node.target)
            full = f"{path}.{node.target}" if path else node.target
            if not self.is_target(child):
                self.walk(child, full)
                continue
            calls[full] = calls.get(full, 0) + 1
            name = full if calls[full] == 1 else f"{full}@{calls[full]}"
            if self._supported(full, child):
                site = self._site(name, full, child)
                site.counts_calls |= not in_root_graph
                self.graph_places.append((module, graph, node, name))

    def _add_hooked(self, parent: nn.Module, name: str, child: nn.Module, full: str) -> None:
        if self._supported(full, child, parent) and full not in self.by_name:
            site = self._site(full, full, child)
            site.counts_calls = True
            self.hook_places.append((parent, name, child, site))

    def _supported(self, path: str, module: nn.Module, parent: nn.Module | None = None) -> bool:
        why = why_unsupported(module)
        if why is not None:
            self.sites.skipped[path] = why
            # A layer of Brevitas (attention, LSTM) holds a QuantIdentity for every value that
            # could be quantised; one left without a quantiser is not a target of the user's.
            if parent is None or not type(parent).__module__.startswith("brevitas.nn."):
                self.problems[path] = why
        return why is None

    def _site(self, name: str, path: str, module: nn.Module) -> FaultSite:
        if name not in self.by_name:
            kind = type(module).__name__
            self.by_name[name] = self.sites.add(name, path, kind, read_quantiser(module))
        return self.by_name[name][0]

    # -- rewrite ------------------------------------------------------------------------

    def rewrite(self) -> None:
        in_graphs = {id(m.get_submodule(str(node.target))) for m, _, node, _ in self.graph_places}
        hooked: dict[int, nn.Module] = {}
        for parent, name, child, site in self.hook_places:
            target = child
            if id(child) in in_graphs:  # A graph calls it too, and strikes there by itself.
                target = hooked.setdefault(id(child), shell(child))
                parent._modules = {**parent._modules, name: target}
            _reach_scale(target, site)
            target.register_forward_hook(FaultHook(site))
        for module, graph, node, name in self.graph_places:
            self._rewrite_node(module, graph, node, name)
        self._begin()
        for part in self.root.modules():
            if isinstance(part, TracedModule):
                part.__dict__[self.attribute] = self.sites
                part.recompile()

    def _rewrite_node(self, module: TracedModule, graph: Graph, node: Node, name: str) -> None:
        site, attribute = self.by_name[name]
        layer = module.get_submodule(str(node.target))
        _reach_scale(layer, site)
        alone = len(node.users) == 1 and site.layer in (None, layer)
        site.layer = layer if alone else None
        with graph.inserting_after(node):
            state = graph.create_node("get_attr", f"{self.attribute}.{attribute}")
        with graph.inserting_after(state):
            struck = graph.call_function(fault_inject, (node, state))
        node.replace_all_uses_with(struck, delete_user_cb=lambda user: user is not struck)

    def _begin(self) -> None:
        self.root.__dict__[self.attribute] = self.sites
        if not isinstance(self.root, TracedModule):
            self.root.register_forward_pre_hook(BeginHook(self.sites), with_kwargs=True)
            return
        for graph in self.root.graphs:
            inputs = graph.find_nodes(op="placeholder")
            first = next(n for n in graph.nodes if n.op != "placeholder")
            with graph.inserting_before(first):
                state = graph.create_node("get_attr", self.attribute)
                graph.call_function(begin_forward, (state, *inputs))


def _reach_scale(layer: Any, site: FaultSite) -> None:
    """Let the layer hand its scale to the site; the site hands on what was asked for.

    The layer is an object of ours (see `fxfault.passes.sharing`), not the model's.
    """
    site.unwrap = not layer.return_quant_tensor
    if site.unwrap:
        hand_on_quant_tensor(layer)
