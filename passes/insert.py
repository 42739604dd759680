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
the samples. Targets that Python code calls strike their output themselves, and so do those with
forward hooks (`fxfault.passes.layer_outputs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import TransformError
from fxfault.functional import begin_forward, fault_inject
from fxfault.messages import and_more
from fxfault.passes.inner_sites import InnerSites
from fxfault.passes.layer_outputs import FloatOutput, LayerOutput, installed
from fxfault.passes.layer_quantisers import struck_of
from fxfault.passes.parameter_sites import ParameterSites
from fxfault.passes.stored_sites import StoredSites
from fxfault.passes.surgery import follow
from fxfault.passes.tracing.containers import joined
from fxfault.passes.tracing.own_forward import keep_forward
from fxfault.passes.tracing.sharing import holders, holds, replace_modules, shell
from fxfault.passes.tracing.targets import inner_rule, output_rule, rule_of
from fxfault.passes.tracing.traced_module import TracedModule
from fxfault.quantisers.quant_tensors import (
    dtype_of,
    has_own_forward,
    ieee_words,
    read_quantiser,
    why_unsupported,
)
from fxfault.sites.fault_sites import ATTRIBUTE_NAMES, FaultSites
from fxfault.sites.site import FaultSite


@dataclass(frozen=True)
class InsertFaults(PassBase):
    """Insert fault sites into what `fxfault.passes.trace` returned.

    Attributes:
        config: the configuration; `targets` must be those that the model was traced with.
        sites: an empty object to put the sites into; None: a new one.
    """

    config: FaultInjectionConfig
    sites: FaultSites | None = None

    def requires(self, graph_module: nn.Module) -> None:
        """The model must not carry sites already."""
        for path, module in graph_module.named_modules():
            if any(isinstance(vars(module).get(n), FaultSites) for n in ATTRIBUTE_NAMES):
                where = f"{type(module).__name__} at {path!r}" if path else type(module).__name__
                raise TransformError(
                    f"{where} already has fault sites; change them through `.faults`, or call "
                    "fxfault.strip on it before transforming again"
                )

    def call(self, graph_module: nn.Module) -> PassResult:
        """Insert the sites, in place."""
        sites = FaultSites(self.config) if self.sites is None else self.sites
        plan = _Plan(graph_module, self.config, sites)
        plan.walk(graph_module, "", in_root_graph=True)
        plan.parameters.add_all(graph_module)
        plan.problems |= plan.stored.problems | plan.inner.problems
        if plan.problems and self.config.unsupported == "error":
            raise TransformError(
                f"faults cannot strike {_listed(plan.problems)}. Enable an integer quantiser "
                "there, or set `unsupported: skip`"
            )
        empty = [kind for kind in self.config.memories if all(s.memory != kind for s in sites)]
        if empty:
            skipped = {k: why for k, why in sites.skipped.items() if _is_in(empty[0], k)}
            raise TransformError(
                f"{type(graph_module).__name__}: no fault can strike its {empty[0]}: "
                f"{_listed(skipped) or 'it has none that Brevitas quantises'}"
            )
        plan.rewrite()
        return PassResult(graph_module, len(plan.sites) > 0)


def _is_in(memory: str, name: str) -> bool:
    """Whether a skipped target belongs to a memory."""
    ends = {"weights": "weight", "biases": "bias"}
    return name.rpartition(".")[2] == ends[memory] if memory in ends else True


def _listed(problems: dict[str, str]) -> str:
    return and_more((f"{path} ({why})" for path, why in problems.items()), most=5)


class _Plan:
    """The places where faults can strike, found in the order of execution."""

    def __init__(self, root: nn.Module, config: FaultInjectionConfig, sites: FaultSites) -> None:
        self.root = root
        self.config = config
        self.sites = sites
        self.problems: dict[str, str] = {}
        self.graph_places: list[tuple[TracedModule, Graph, Node, str]] = []
        self.own_places: list[tuple[nn.Module, str, nn.Module, FaultSite]] = []
        self.by_name: dict[str, tuple[FaultSite, str]] = {}
        self.by_layer: dict[int, FaultSite] = {}
        self.visited: set[int] = set()
        self.stored = StoredSites(sites, config.memories)
        self.inner = InnerSites(sites, inner_rule(config))
        self.parameters = ParameterSites(sites, config.memories)
        self.dtype = dtype_of(root)
        self.is_target = rule_of(config)
        self.is_activation = output_rule(config)

    # -- select -------------------------------------------------------------------------

    def walk(self, module: nn.Module, path: str, in_root_graph: bool = False) -> None:
        if id(module) in self.visited:
            return
        self.visited.add(id(module))
        if isinstance(module, TracedModule):
            for graph in module.graphs:
                self._walk_graph(module, graph, path, in_root_graph)
            return
        self.inner.add_before(module, path)
        self._add_stored(module, path)
        self.inner.add_after(module, path)
        if self.is_activation(module):
            self._add_own(module, "", module, path or type(module).__name__)
            return
        for name, child in module.named_children():
            full = joined(path, name)
            self.inner.note_call(child, None)
            if self.is_activation(child):
                self.inner.add_before(child, full)
                self._add_own(module, name, child, full)
            elif self.is_target(child) or holds(child, self.is_target):
                self.walk(child, full)

    def _walk_graph(
        self, module: TracedModule, graph: Graph, path: str, in_root_graph: bool
    ) -> None:
        calls: dict[str, int] = {}
        for node in graph.find_nodes(op="call_module"):
            child = module.get_submodule(node.target)
            full = joined(path, str(node.target))
            self.inner.note_call(child, graph if in_root_graph else None)
            self.inner.add_before(child, full)
            if self.stored.is_target(child):
                self.stored.add_call(module, graph, node, child, full)
            self.stored.add_quantiser_call(module, str(node.target), path)
            self.inner.note_quantiser_call(module, str(node.target))
            if not self.is_activation(child):
                self.walk(child, full)
                continue
            if self.config.word == "quantised" and has_own_forward(child):
                self._add_own(module, "", child, full)
                continue
            calls[full] = calls.get(full, 0) + 1
            name = full if calls[full] == 1 else f"{full}@{calls[full]}"
            if self._supported(full, child):
                site = self._site(name, full, child)
                site.counts_calls |= not in_root_graph
                self.graph_places.append((module, graph, node, name))

    def _add_stored(self, layer: nn.Module, path: str) -> None:
        if self.stored.is_target(layer):
            self.stored.add(layer, path)

    def _add_own(self, parent: nn.Module, name: str, child: nn.Module, full: str) -> None:
        if self._supported(full, child, parent):
            # One layer is one site here, whoever calls it.
            site = self.by_layer.setdefault(id(child), self._site(full, full, child))
            site.counts_calls = True
            self.own_places.append((parent, name, child, site))

    def _supported(self, path: str, module: nn.Module, parent: nn.Module | None = None) -> bool:
        why = why_unsupported(module) if self.config.word == "quantised" else None
        if why is not None:
            self.sites.skipped[path] = why
            # A layer of Brevitas (attention, LSTM) holds a QuantIdentity for every value that
            # could be quantised; the user did not ask for one without a quantiser.
            if parent is None or not type(parent).__module__.startswith("brevitas.nn."):
                self.problems[path] = why
        return why is None

    def _site(self, name: str, path: str, module: nn.Module) -> FaultSite:
        if name not in self.by_name:
            kind = type(module).__name__
            is_ieee = self.config.word == "ieee"
            words = ieee_words(self.dtype) if is_ieee else read_quantiser(module)
            self.by_name[name] = self.sites.add(name, path, kind, words)
        return self.by_name[name][0]

    # -- rewrite ------------------------------------------------------------------------

    def rewrite(self) -> None:
        traced = [part for part in self.root.modules() if isinstance(part, TracedModule)]
        for number, part in enumerate(traced):
            part.__dict__["_number"] = number
        in_graphs = {id(m.get_submodule(str(node.target))) for m, _, node, _ in self.graph_places}
        struck: dict[int, nn.Module] = {}
        for parent, _, child, site in self.own_places:
            layer = child
            if id(child) in in_graphs:  # A graph calls it too, and strikes there by itself.
                layer = struck.setdefault(id(child), shell(child))
                replace_modules(parent, {id(child): layer})
            self._output_of(layer).add(site)
            site.output = self._output_of(layer)
        for module, graph, node, name in self.graph_places:
            self._rewrite_node(module, graph, node, name)
        self.inner.rewrite()  # First, as it asks whether the layers have a forward of their own.
        self.stored.rewrite(_free_name)
        self.parameters.install()
        self._begin()
        for part in traced:
            part.__dict__[_free_name(part)] = self.sites
            part.recompile()
        self.sites.watch_layers(self._changeable(), follow)

    def _changeable(self) -> Iterator[nn.Module]:
        """The modules that the sites must follow if children of them are replaced."""
        holding = holders(self.root, self.is_target)
        for module in self.root.modules():
            if module is self.root or id(module) in holding or struck_of(module) is not None:
                yield module

    def _output_of(self, layer: nn.Module) -> LayerOutput:
        output = installed(layer)
        if output is None:
            is_ieee = self.config.word == "ieee"
            output = (FloatOutput if is_ieee else LayerOutput)(layer, self.sites)
            self.sites.outputs.append(output)
            output.install()
        return output

    def _rewrite_node(self, module: TracedModule, graph: Graph, node: Node, name: str) -> None:
        site, attribute = self.by_name[name]
        layer = module.get_submodule(str(node.target))
        site.output = self._output_of(layer)
        site.output.add(site, module.__dict__["_number"], graph is module.train_graph)
        alone = len(node.users) == 1 and site.layer in (None, layer)
        site.layer = layer if alone and self.config.word == "quantised" else None
        with graph.inserting_after(node):
            state = graph.create_node("get_attr", f"{_free_name(module)}.{attribute}")
        with graph.inserting_after(state):
            struck = graph.call_function(fault_inject, (node, state))
        node.replace_all_uses_with(struck, delete_user_cb=lambda user: user is not struck)

    def _begin(self) -> None:
        if not isinstance(self.root, TracedModule):
            self.root.__dict__[_free_name(self.root)] = self.sites
            keep_forward(self.root)
            return
        self.root.__dict__["_begins"] = True
        for graph in self.root.graphs:
            inputs = graph.find_nodes(op="placeholder")
            first = next(n for n in graph.nodes if n.op != "placeholder")
            with graph.inserting_before(first):
                state = graph.create_node("get_attr", _free_name(self.root))
                graph.call_function(begin_forward, (state, *inputs))


def _free_name(module: nn.Module) -> str:
    """The attribute for the sites: `faults`, unless the module has something of that name."""
    return next(n for n in ATTRIBUTE_NAMES if not hasattr(module, n))
