"""The last step of an activation layer that faults strike.

A Brevitas activation layer ends its forward with `self.pack_output(quantised)`, which drops the
scale if the layer returns plain tensors. Our copies of the layers carry a `LayerOutput` in its
place. It makes each call of the layer meet exactly one strike:

- If the graph calls the layer, it hands the word over to the `fault_inject` node that follows.
- If the graph calls a layer with forward hooks, it strikes the word itself, before the hooks see
  it, and the node lets the result pass.
- If Python code calls the layer (a container that keeps its own forward, or that runs it in place
  of its graph), it strikes the word itself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from brevitas.quant_tensor import QuantTensor
from torch.nn.modules.module import _global_forward_hooks

from fxfault.errors import SiteError
from fxfault.quantisers.quant_tensors import plain
from fxfault.strike.calls import strike_inside
from fxfault.strike.moments import recomputing

if TYPE_CHECKING:
    from fxfault.sites.fault_sites import FaultSites
    from fxfault.sites.site import FaultSite

_METHOD, _FLOAT = "pack_output", "_fault_output"
# The first step of such a layer, which sees its input.
_FIRST = "unpack_input"


class LayerOutput:
    """The last step of one activation layer.

    Attributes:
        sites: the sites of the layer's calls in one run, in the order of the calls. The key is the
            number of the traced module whose graph calls the layer (None for Python code), and
            whether the graph is for training only.
        graphs: the numbers of these modules.
        kept: the word that was handed over to the graph and not taken yet.
        given: the input that the word was made of, if words are followed from site to site; None
            if that does not matter.
    """

    def __init__(self, layer: Any, faults: FaultSites) -> None:
        """Stand in for the last step of a Brevitas layer of a model with these sites."""
        self.layer = [layer]  # In a list, so that nothing takes it for a child.
        self.faults = faults
        self.sites: dict[tuple[int | None, bool], list[FaultSite]] = {}
        self.graphs: frozenset[int] = frozenset()
        self.kept: Any = None
        self.given: Any = None
        self.done = False
        self._kept_in = -1
        self._calls: tuple[Any, int] = (None, 0)

    @property
    def returns_quant_tensor(self) -> bool:
        """Whether the layer returns a QuantTensor instead of its plain value."""
        return bool(self.layer[0].return_quant_tensor)

    @property
    def strikes_itself(self) -> bool:
        """Whether the layer strikes its own output in the graph too, because of its hooks."""
        return bool(self.layer[0]._forward_hooks or _global_forward_hooks)

    def install(self, layer: Any = None) -> None:
        """Let the layer of ours, or another one, end its forward with this object."""
        layer = self.layer[0] if layer is None else layer
        layer.__dict__[_METHOD] = self
        if self.faults.edges is not None:
            self.follow(layer)

    def uninstall(self, layer: Any) -> None:
        """Undo `install`."""
        del layer.__dict__[_METHOD]
        layer.__dict__.pop(_FIRST, None)

    def follow(self, layer: Any = None) -> None:
        """Note the input of the layer of ours, or another one; see `fxfault.sites.edges`."""
        layer = self.layer[0] if layer is None else layer
        if not layer.input_quant.is_quant_enabled:  # It makes words of the input.
            layer.__dict__[_FIRST] = self.see

    def see(self, given: Any) -> Any:
        """Note the input of the present call, and do what the layer does first."""
        if not torch.compiler.is_dynamo_compiling():
            self.given = given
        layer = self.layer[0]
        return type(layer).unpack_input(layer, given)

    def take_given(self) -> Any:
        """The input of the word that was made last; forgets it."""
        given, self.given = self.given, None
        return given

    def add(self, site: FaultSite, graph: int | None = None, training: bool = False) -> None:
        """Add the site of the next call; see `sites` for the key."""
        self.sites.setdefault((graph, training), []).append(site)
        if graph is not None:
            self.graphs |= {graph}

    def __call__(self, output: Any) -> Any:
        """Return the layer's output for the word that its quantiser made."""
        if self.faults.running not in self.graphs or self.strikes_itself:
            return self._strike(output)
        if torch.compiler.is_dynamo_compiling():
            # The graph strikes; QuantTensors reach it as such.
            if isinstance(output, QuantTensor) and not self.returns_quant_tensor:
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
        """The word that the graph's `fault_inject` strikes, for the value that it was given.

        Returns:
            The value's QuantTensor; None if the layer has struck it already.
        """
        kept, self.kept = self.kept, None
        if kept is not None:
            is_same = kept is value or getattr(kept, "value", None) is value
            return kept if is_same else value
        struck, self.done = self.done, False
        return None if struck else value

    def take_compiled(self, value: Any) -> tuple[Any, bool]:
        """`take` in code that is being compiled; also whether the layer has struck the word."""
        kept, self.kept = self.kept, None
        struck, self.done = self.done, False
        return (kept if kept is not None and kept.value is value else value), struck

    def forget(self) -> None:
        """Forget what an interrupted forward left."""
        self.kept, self.given, self.done = None, None, False

    def _sites_in_graph(self) -> list[FaultSite]:
        """The sites of the layer in the running graph; empty if no graph that calls it runs."""
        running = self.faults.running
        training = self.faults.clock.training and self.sites.get((running, True))
        return training or self.sites.get((running, False), [])

    def _all_sites(self) -> list[FaultSite]:
        """All sites of the layer, each once, in the order of the calls."""
        chosen = {
            key: self.sites.get((key[0], self.faults.clock.training), sites)
            for key, sites in self.sites.items()
        }
        found = {id(site): site for sites in chosen.values() for site in sites}
        return list(found.values())

    def _packed(self, output: Any) -> Any:
        return output if self.returns_quant_tensor else plain(output)

    def _strike(self, output: Any) -> Any:
        """Strike a word by the site of this call; further calls belong to the last site."""
        here = self._sites_in_graph()
        sites = here or self._all_sites()
        number = 0 if torch.compiler.is_dynamo_compiling() else self._count()
        if here:
            number %= len(sites)
        site = sites[min(number, len(sites) - 1)]
        struck = strike_inside(output, self.take_given(), site, max(0, number + 1 - len(sites)))
        self.done = True
        return self._packed(struck)

    @property
    def counted(self) -> tuple[int | None, int] | None:
        """The calls of the present forward that the layer has struck itself; None: there are none.

        The first is the number of the graph that ran, see `sites`; the second counts the calls.
        """
        when, calls = self._calls
        return None if when is None or when[0] != self.faults.clock.forward else (when[1], calls)

    def pass_over(self, running: int | None, calls: int) -> None:
        """Count calls of the present forward that are not made; see `counted`."""
        self._calls = ((self.faults.clock.forward, running, False), calls)

    def _count(self) -> int:
        """Number of this call in the forward, from 0; a recomputation starts again at 0."""
        now = (self.faults.clock.forward, self.faults.running, recomputing())
        before, calls = self._calls
        number = calls if before == now else 0
        self._calls = (now, number + 1)
        return number


class FloatOutput(LayerOutput):
    """The last step of a layer of any type, whose float output faults strike."""

    returns_quant_tensor = True  # What the layer returns is what is struck.

    def follow(self, layer: Any = None) -> None:
        """Do nothing: a plain float passes no quantiser."""

    def install(self, layer: Any = None) -> None:
        """Let a layer of ours end its forward with this object."""
        layer = self.layer[0] if layer is None else layer
        self.own_forward = layer.__dict__.get("forward")
        layer.__dict__[_FLOAT], layer.__dict__["forward"] = self, self.forward

    def uninstall(self, layer: Any) -> None:
        """Undo `install`."""
        del layer.__dict__[_FLOAT], layer.__dict__["forward"]
        if self.own_forward is not None:
            layer.__dict__["forward"] = self.own_forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, and strike its output or hand it over to the graph."""
        layer = self.layer[0]
        own = self.own_forward or functools.partial(type(layer).forward, layer)
        return self(own(*args, **kwargs))


def installed(layer: Any) -> LayerOutput | None:
    """The `LayerOutput` of a layer, if it has one."""
    output = layer.__dict__.get(_METHOD)
    output = output if isinstance(output, LayerOutput) else layer.__dict__.get(_FLOAT)
    return output if isinstance(output, LayerOutput) else None


def site_struck_inside(layer: Any) -> FaultSite | None:
    """The site of a layer that only Python code calls; None for any other layer."""
    output = installed(layer)
    if output is None or list(output.sites) != [(None, False)]:
        return None
    return output.sites[None, False][0]


def uninstall(layer: Any) -> bool:
    """Remove the `LayerOutput` of a layer; returns whether there was one."""
    output = installed(layer)
    if output is None:
        return False
    output.uninstall(layer)
    return True
