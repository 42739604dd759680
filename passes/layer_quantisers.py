"""The quantisers inside a layer whose words faults strike.

A layer of Brevitas gets its words by calling quantisers: of its weight and bias, of its input and
output, of the gates of an LSTM. Our copy of the layer carries a `LayerQuantisers`, and a
`StruckQuantiser` in the place of each quantiser whose words are a site. Parameters, buffers and
quantisers are those of the original and are never written.

- A graph reads the words of a weight or bias, strikes them, and calls the layer with them::

      conv1_1 = self.conv1
      stored_weight = fxfault_functional_stored_weight(conv1_1)
      faults_conv1_weight = self.faults.conv1_weight
      fault_inject = fxfault_functional_fault_inject(stored_weight, faults_conv1_weight)
      conv1 = self.conv1(x, weight = fault_inject)

- All other words, and all words of layers that Python code calls, are struck where the layer asks
  for them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxfault.passes.layer_outputs import site_struck_inside
from fxfault.quantisers.stored_words import KINDS, STRUCK
from fxfault.sites.site import FaultSite
from fxfault.strike.calls import strike_call, strike_inside


class StruckQuantiser:
    """Stands in for a quantiser of a layer, and strikes the words that it makes."""

    def __init__(self, owner: LayerQuantisers, name: str, site: FaultSite) -> None:
        """Stand in for a quantiser.

        Args:
            owner: the struck quantisers of the layer.
            name: the attribute of the layer that has the quantiser, such as `input_quant`.
            site: the site of these words.
        """
        self.owner, self.name, self.site = owner, name, site

    @property
    def quantiser(self) -> Any:
        """The quantiser of Brevitas."""
        return self.owner.layer[0]._modules[self.name]

    @property
    def tensor_quant(self) -> Any:
        """The quantiser without its activation function, which the cell of an LSTM asks for."""
        return self.quantiser.fused_activation_quant_proxy.tensor_quant

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the words: those that the graph has given to the layer, or struck ones."""
        given = self.owner.given.get(self.name)
        if given is not None:
            return given
        words = self.quantiser(*args, **kwargs)
        if self.site.stored is not None:
            return strike_call(words, self.site)
        return strike_inside(words, args[0] if args else kwargs["x"], self.site)

    def struck(self, words: Any) -> Any:
        """Return the words of a weight or bias for clean ones that are already known."""
        given = self.owner.given.get(self.name)
        return strike_call(words, self.site) if given is None else given

    def __getattr__(self, name: str) -> Any:
        """Answer for the quantiser, whose switches the layer reads."""
        if name.startswith("__") or "owner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.quantiser, name)


class LayerQuantisers:
    """The struck quantisers of one layer.

    Attributes:
        layer: a list with our copy of the layer.
        struck: what stands in for its quantisers, by the attribute of the layer.
        in_graph: the kinds of memory whose words a graph strikes, before it calls the layer.
        given: the words that the graph gives to the present call, by the attribute of the layer.
        fast_mode: the layer's `fast_mode` before `run_own_cell`; None if that was not called.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Prepare a layer of ours; nothing is struck yet."""
        self.layer: list[Any] = [layer]  # In a list, so that nothing takes it for a child.
        self.struck: dict[str, StruckQuantiser] = {}
        self.in_graph: set[str] = set()
        self.given: dict[str, Any] = {}
        self.fast_mode: bool | None = None

    def add(self, name: str, site: FaultSite) -> None:
        """Strike the words of a quantiser by a site from now on."""
        stand_in = self.struck[name] = StruckQuantiser(self, name, site)
        self.layer[0].__dict__[name] = stand_in

    def run_own_cell(self) -> None:
        """Let a recurrent layer run its cell, and not a fast copy of it with other quantisers."""
        self.fast_mode = self.layer[0].__dict__["fast_mode"]
        self.layer[0].__dict__["fast_mode"] = False

    def forward(self, *args: Any, weight: Any = None, bias: Any = None, **kwargs: Any) -> Any:
        """Run the layer with the words that the graph has struck.

        Args:
            args: the layer's inputs.
            weight: the words of the weight; None: the layer's own, struck here.
            bias: the words of the bias; None: the layer's own, struck here.
            kwargs: the layer's named inputs.
        """
        layer = self.layer[0]
        if weight is None and bias is None:
            return type(layer).forward(layer, *args, **kwargs)
        self.given = {"weight_quant": weight, "bias_quant": bias}
        try:
            return type(layer).forward(layer, *args, **kwargs)
        finally:
            self.given = {}


def struck_of(layer: nn.Module) -> LayerQuantisers | None:
    """The struck quantisers of a layer; None if it has none."""
    return layer.__dict__.get(STRUCK)


def install_struck(layer: nn.Module) -> LayerQuantisers:
    """Prepare a layer of ours, or return what `struck_of` has for it."""
    struck = struck_of(layer)
    if struck is None:
        struck = layer.__dict__[STRUCK] = LayerQuantisers(layer)
    return struck


def accept_words(layer: nn.Module, kind: str) -> None:
    """Let a graph call a layer of ours with struck words of a kind of memory."""
    struck = install_struck(layer)
    struck.in_graph.add(kind)
    layer.__dict__["forward"] = struck.forward


def remove_struck(layer: nn.Module) -> bool:
    """Remove the struck quantisers of a layer; returns whether there were any."""
    struck = struck_of(layer)
    if struck is None:
        return False
    # Not by `struck.layer`: this one may be a copy that shares its attributes so far.
    for name in struck.struck:
        layer.__dict__.pop(name, None)
    if struck.fast_mode is not None:
        layer.__dict__["fast_mode"] = struck.fast_mode
    layer.__dict__.pop("forward", None)
    del layer.__dict__[STRUCK]
    return True


def sites_struck_inside(layer: nn.Module) -> list[FaultSite]:
    """The sites of words that a layer strikes itself, not a graph, in the order of the sites."""
    output, struck = site_struck_inside(layer), struck_of(layer)
    sites = [] if output is None else [output]
    if struck is not None:
        in_graph = {KINDS[kind].quantiser for kind in struck.in_graph}
        sites += [one.site for name, one in struck.struck.items() if name not in in_graph]
    return sorted(sites, key=lambda site: site.index)
