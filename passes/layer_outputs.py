"""What stands in for the last step of an activation layer that faults strike.

A Brevitas activation layer ends its forward with `self.pack_output(quantised)`, which takes the
scale away where a plain tensor was asked for. Our copies of the layers carry a `LayerOutput` in
its place. It sees to the law that each call of the layer meets exactly one strike:

- the graph calls the layer: the word is handed over to the `fault_inject` node that follows;
- the graph calls it and it has forward hooks: it strikes the word itself, before its hooks see
  it, and the node lets the result pass;
- Python code calls it (a container that keeps its own forward, or that runs it in place of its
  graph): it strikes the word itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import _global_forward_hooks

from fxfault.errors import SiteError
from fxfault.quantisers.quant_tensors import IntQuantTensor, plain
from fxfault.strike.calls import strike_call
from fxfault.strike.moments import recomputing

if TYPE_CHECKING:
    from fxfault.sites.fault_sites import FaultSites
    from fxfault.sites.site import FaultSite

_METHOD = "pack_output"


class LayerOutput:
    """The last step of one activation layer.

    Attributes:
        sites: the sites of the layer's calls in one run, in the order of the calls, by the number
            of the traced module whose graph calls it (None: Python code does) and by whether
            the graph is one for training only.
        graphs: the numbers among those.
        kept: what was handed over to the graph and not taken yet.
    """

    def __init__(self, layer: Any, faults: FaultSites) -> None:
        """Stand in for the last step of a layer of ours.

        Args:
            layer: Brevitas activation layer.
            faults: the sites of the model.
        """
        self.layer = [layer]  # In a list, so that nothing takes it for a child.
        self.faults = faults
        self.sites: dict[tuple[int | None, bool], list[FaultSite]] = {}
        self.graphs: frozenset[int] = frozenset()
        self.kept: Any = None
        self.done = False
        self._kept_in = -1
        self._calls: tuple[Any, int] = (None, 0)

    @property
    def returns_quant_tensor(self) -> bool:
        """Whether the layer returns a QuantTensor, and not its plain value."""
        return bool(self.layer[0].return_quant_tensor)

    @property
    def strikes_itself(self) -> bool:
        """Whether the layer strikes its own output in the graph too, because of its hooks."""
        return bool(self.layer[0]._forward_hooks or _global_forward_hooks)

    def add(self, site: FaultSite, graph: int | None = None, training: bool = False) -> None:
        """Add the site of the next call.

        Args:
            site: that strikes it.
            graph: number of the traced module; None where Python code calls the layer.
            training: whether the graph is one for training only.
        """
        self.sites.setdefault((graph, training), []).append(site)
        if graph is not None:
            self.graphs |= {graph}

    def __call__(self, output: Any) -> Any:
        """Take what the quantiser gave; return what the layer is to return."""
        if self.faults.running not in self.graphs or self.strikes_itself:
            return self._strike(output)
        if torch.compiler.is_dynamo_compiling():
            # The graph strikes; QuantTensors reach it as such.
            if isinstance(output, IntQuantTensor) and not self.returns_quant_tensor:
                self.kept = output
            return self._packed(output)
        here = self._sites_in_graph()
        same_forward = self.kept is not None and self._kept_in == self.faults.clock.forward
        if same_forward and here[0].armed:
            raise SiteError(
                f"site {here[0].name}: its layer was called and not struck; a container "
                "reaches it past the graph. Transform the model again, and report it if that does "
                "not help"
            )
        self.hand_over(output)
        return self._packed(output)

    def hand_over(self, output: Any) -> None:
        """Keep a word for the graph's `fault_inject`."""
        self.kept, self.done = output, False
        self._kept_in = self.faults.clock.forward

    def take(self, value: Any) -> Any:
        """What the graph's `fault_inject` has to strike, for the value that came to it.

        Returns:
            The QuantTensor that the value is, or came out of; None where the layer has struck it.
        """
        kept, self.kept = self.kept, None
        if kept is not None:
            is_same = kept is value or getattr(kept, "value", None) is value
            return kept if is_same else value
        struck, self.done = self.done, False
        return None if struck else value

    def take_compiled(self, value: Any) -> tuple[Any, bool]:
        """The same in code that is being compiled.

        Returns:
            The QuantTensor that a plain value came out of, or the value; whether the layer has
            struck it.
        """
        kept, self.kept = self.kept, None
        struck, self.done = self.done, False
        return (kept if kept is not None and kept.value is value else value), struck

    def forget(self) -> None:
        """Forget what a forward that was broken off has left."""
        self.kept, self.done = None, False

    def _sites_in_graph(self) -> list[FaultSite]:
        """The sites of the layer in the graph that runs; empty where none runs that calls it."""
        running = self.faults.running
        training = self.faults.clock.training and self.sites.get((running, True))
        return training or self.sites.get((running, False), [])

    def _all_sites(self) -> list[FaultSite]:
        """The sites of the layer wherever it is called, each once, in the order of the calls."""
        chosen = {
            key: self.sites.get((key[0], self.faults.clock.training), sites)
            for key, sites in self.sites.items()
        }
        found = {id(site): site for sites in chosen.values() for site in sites}
        return list(found.values())

    def _packed(self, output: Any) -> Any:
        return output if self.returns_quant_tensor else plain(output)

    def _strike(self, output: Any) -> Any:
        """Strike a word by the site of this call; more calls than sites are the last one's."""
        here = self._sites_in_graph()
        sites = here or self._all_sites()
        number = 0 if torch.compiler.is_dynamo_compiling() else self._count()
        if here:
            number %= len(sites)
        site = sites[min(number, len(sites) - 1)]
        struck = strike_call(output, site, max(0, number + 1 - len(sites)))
        self.done = True
        return self._packed(struck)

    def _count(self) -> int:
        """Number of this call in the forward, from 0; apart for what a backward repeats."""
        now = (self.faults.clock.forward, self.faults.running, recomputing())
        before, calls = self._calls
        number = calls if before == now else 0
        self._calls = (now, number + 1)
        return number


def install(layer: Any, output: LayerOutput) -> None:
    """Let a layer of ours end its forward with `output`."""
    layer.__dict__[_METHOD] = output


def installed(layer: Any) -> LayerOutput | None:
    """What a layer ends its forward with, if it is one of ours."""
    output = layer.__dict__.get(_METHOD)
    return output if isinstance(output, LayerOutput) else None


def site_struck_inside(layer: Any) -> FaultSite | None:
    """The site of a layer that only Python code calls; None where a graph does, or none."""
    output = installed(layer)
    if output is None or list(output.sites) != [(None, False)]:
        return None
    return output.sites[None, False][0]


def uninstall(layer: Any) -> bool:
    """Take it off again; returns whether there was one."""
    if installed(layer) is None:
        return False
    del layer.__dict__[_METHOD]
    return True
