"""Remove the fault sites of a transformed model.

This is the exact inverse of `fxfault.passes.insert`: it leaves the text of the graph that tracing
gave.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxfault.functional import begin_forward, fault_inject
from fxfault.passes.layer_outputs import uninstall
from fxfault.passes.layer_quantisers import remove_struck
from fxfault.passes.stored_sites import erase_words
from fxfault.passes.tracing.own_forward import give_forward_back
from fxfault.passes.tracing.traced_module import TracedModule
from fxfault.sites.fault_sites import ATTRIBUTE_NAMES, FaultSites


@dataclass(frozen=True)
class StripFaults(PassBase):
    """Remove every fault site; a model without sites stays as it is."""

    def call(self, graph_module: nn.Module) -> PassResult:
        """Strip the model, in place."""
        modified = False
        for module in list(graph_module.modules()):
            modified |= uninstall(module)
            modified |= remove_struck(module)
            modified |= give_forward_back(module)
            if isinstance(module, TracedModule) and _strip_graphs(module):
                module.recompile()
                modified = True
            for name in ("_number", "_begins"):
                module.__dict__.pop(name, None)
            for name in ATTRIBUTE_NAMES:
                if isinstance(module.__dict__.get(name), FaultSites):
                    del module.__dict__[name]
        return PassResult(graph_module, modified)


def _strip_graphs(module: TracedModule) -> bool:
    stripped = False
    for graph in module.graphs:
        stripped |= erase_words(graph)
        for target in (fault_inject, begin_forward):
            for node in graph.find_nodes(op="call_function", target=target):
                state = node.args[1] if target is fault_inject else node.args[0]
                if target is fault_inject:
                    node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
                graph.erase_node(state)
                stripped = True
    return stripped
