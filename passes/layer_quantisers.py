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

from fxfault.errors import SiteError
from fxfault.passes.layer_outputs import site_struck_inside
from fxfault.quantisers.stored_words import KINDS, STRUCK
from fxfault.sites.site import FaultSite
from fxfault.strike.calls import strike_call, strike_inside
from fxfault.strike.groups import strike_groups


class StruckQuantiser:
    """Stands in for a quantiser of a layer, and strikes the words that it makes."""

    def __init__(
        self,
        owner: LayerQuantisers,
        name: str,
        site: FaultSite | None,
        scales: FaultSite | None = None,
    ) -> None:
        """Stand in for a quantiser.

        Args:
            owner: the struck quantisers of the layer.
            name: the attribute of the layer that has the quantiser, such as `input_quant`.
            site: the site of these words; None: they are not struck, but the graph gives them.
            scales: the site of the scales of a groupwise quantiser; None for any other.
        """
        self.owner, self.name, self.site, self.scales = owner, name, site, scales

    @property
    def sites(self) -> tuple[FaultSite, ...]:
        """The sites of these words."""
        return tuple(site for site in (self.site, self.scales) if site is not None)

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
        given = self._taken()
        if given is not None:
            return given
        words = self.quantiser(*args, **kwargs)
        if self.site is None or self.scales is not None or self.site.stored is not None:
            return self._strike(words)
        return strike_inside(words, args[0] if args else kwargs["x"], self.site)

    def struck(self, words: Any) -> Any:
        """Return the words of a weight or bias for clean ones that are already known."""
        given = self._taken()
        return self._strike(words) if given is None else given

    def _taken(self) -> Any:
        """What the graph gives to the present call; None if it gives nothing."""
        given = self.owner.given.get(self.name)
        if given is not None:
            self.owner.left.discard(self.name)
        return given

    def _strike(self, words: Any) -> Any:
        if self.site is not None and self.scales is not None:
            return strike_groups(words, self.site, self.scales)
        return words if self.site is None else strike_call(words, self.site)

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
        left: the attributes of those words that the layer has not asked for yet.
        fast_mode: the layer's `fast_mode` before `run_own_cell`; None if that was not called.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Prepare a layer of ours; nothing is struck yet."""
        self.layer: list[Any] = [layer]  # In a list, so that nothing takes it for a child.
        self.struck: dict[str, StruckQuantiser] = {}
        self.in_graph: set[str] = set()
        self.given: dict[str, Any] = {}
        self.left: set[str] = set()
        self.fast_mode: bool | None = None

    def add(self, name: str, site: FaultSite | None, scales: FaultSite | None = None) -> None:
        """Strike the words of a quantiser by a site from now on; None: only accept them.

        Args:
            name: the attribute of the layer that has the quantiser.
            site: the site of the words, or of the elements of groups.
            scales: the site of the scales of the groups.
        """
        stand_in = self.struck[name] = StruckQuantiser(self, name, site, scales)
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

        Raises:
            SiteError: the layer did not ask for struck words.
        """
        layer = self.layer[0]
        given = {"weight_quant": weight, "bias_quant": bias}
        given = {name: words for name, words in given.items() if words is not None}
        # A hook may have changed the input or the parameters since the graph read the words.
        if not given or layer._forward_pre_hooks:
            return type(layer).forward(layer, *args, **kwargs)
        self.given, self.left = given, set(given)
        try:
            output = type(layer).forward(layer, *args, **kwargs)
        finally:
            self.given = {}
        if self.left:
            self._refuse_if_armed()
        return output

    def _refuse_if_armed(self) -> None:
        """Refuse a forward without the faults that the graph has struck; an export asks for none.

        Raises:
            SiteError: faults strike words that the layer did not ask for.
        """
        for name in sorted(self.left):
            site = self.struck[name].site
            if site is not None and site.armed:
                raise SiteError(
                    f"site {site.name}: its {type(self.layer[0]).__name__} did not ask {name} for "
                    "the struck words; transform the model again if its quantisers or methods "
                    "were replaced, and export it without faults"
                )


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
        own = (one for name, one in struck.struck.items() if name not in in_graph)
        sites += [site for one in own for site in one.sites]
    return sorted(sites, key=lambda site: site.index)


def called_module(module: nn.Module, target: str) -> nn.Module:
    """The module that a graph calls, and not the `StruckQuantiser` that stands in for it.

    Args:
        module: the module that has the graph.
        target: the path of the called module.
    """
    found: Any = module
    for name in target.split("."):
        child = found._modules.get(name)
        found = getattr(found, name) if child is None else child
    return found  # type: ignore[no-any-return]


def site_of_quantiser(module: nn.Module, target: str) -> FaultSite | None:
    """The site whose words a graph gets by a call of the quantiser; None if it calls none.

    Args:
        module: the module that has the graph.
        target: the path of the called module.
    """
    path, _, name = target.rpartition(".")
    struck = struck_of(called_module(module, path) if path else module)
    stand_in = None if struck is None else struck.struck.get(name)
    return None if stand_in is None else stand_in.site
