"""The memory of a layer whose weight or bias faults strike.

A layer of Brevitas gets its words by calling its weight quantiser and its bias quantiser. Our copy
of the layer carries a `LayerMemory`, and a `StoredWord` in the place of each quantiser whose words
are a site. Parameters, buffers and quantisers are those of the original and are never written.

- A graph reads the words, strikes them, and calls the layer with them::

      conv1_1 = self.conv1
      stored_weight = fxfault_functional_stored_weight(conv1_1)
      faults_conv1_weight = self.faults.conv1_weight
      fault_inject = fxfault_functional_fault_inject(stored_weight, faults_conv1_weight)
      conv1 = self.conv1(x, weight = fault_inject)

- If Python code calls the layer, the words are struck where the layer asks for them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxfault.quantisers.stored_words import KINDS, MEMORY
from fxfault.sites.site import FaultSite
from fxfault.strike.calls import strike_call


class StoredWord:
    """Stands in for the quantiser of a layer's weight or bias, and strikes the words it makes."""

    def __init__(self, memory: LayerMemory, kind: str, site: FaultSite) -> None:
        """Stand in for a quantiser.

        Args:
            memory: the memory of the layer.
            kind: `weights` or `biases`.
            site: the site of these words.
        """
        self.memory, self.kind, self.site = memory, kind, site

    @property
    def quantiser(self) -> Any:
        """The quantiser of Brevitas."""
        return self.memory.layer[0]._modules[KINDS[self.kind].quantiser]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the words: those that the graph has given to the layer, or struck ones."""
        given = self.memory.given.get(self.kind)
        return strike_call(self.quantiser(*args, **kwargs), self.site) if given is None else given

    def struck(self, words: Any) -> Any:
        """Return the words for clean ones that are already known."""
        given = self.memory.given.get(self.kind)
        return strike_call(words, self.site) if given is None else given

    def __getattr__(self, name: str) -> Any:
        """Answer for the quantiser, whose switches the layer reads."""
        if name.startswith("__") or "memory" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.quantiser, name)


class LayerMemory:
    """The struck words of one layer.

    Attributes:
        layer: a list with our copy of the layer.
        words: what stands in for its quantisers, by the kind of memory.
        in_graph: the kinds whose words a graph strikes, before it calls the layer with them.
        given: the words that the graph gives to the present call, by the kind of memory.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Make the memory of a layer of ours; nothing is struck yet."""
        self.layer: list[Any] = [layer]  # In a list, so that nothing takes it for a child.
        self.words: dict[str, StoredWord] = {}
        self.in_graph: set[str] = set()
        self.given: dict[str, Any] = {}

    def add(self, kind: str, site: FaultSite) -> None:
        """Strike the words of a kind by a site from now on."""
        word = self.words[kind] = StoredWord(self, kind, site)
        self.layer[0].__dict__[KINDS[kind].quantiser] = word

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
        self.given = {"weights": weight, "biases": bias}
        try:
            return type(layer).forward(layer, *args, **kwargs)
        finally:
            self.given = {}


def memory_of(layer: nn.Module) -> LayerMemory | None:
    """The memory of a layer; None if nothing strikes its words."""
    return layer.__dict__.get(MEMORY)


def install_memory(layer: nn.Module) -> LayerMemory:
    """Give a layer of ours a memory, or return the one that it has."""
    memory = memory_of(layer)
    if memory is None:
        memory = layer.__dict__[MEMORY] = LayerMemory(layer)
    return memory


def accept_words(layer: nn.Module, kind: str) -> None:
    """Let a graph call a layer of ours with struck words of a kind."""
    memory = install_memory(layer)
    memory.in_graph.add(kind)
    layer.__dict__["forward"] = memory.forward


def remove_memory(layer: nn.Module) -> bool:
    """Remove the memory of a layer; returns whether there was one."""
    memory = memory_of(layer)
    if memory is None:
        return False
    for kind in memory.words:
        del layer.__dict__[KINDS[kind].quantiser]
    layer.__dict__.pop("forward", None)
    del layer.__dict__[MEMORY]
    return True


def sites_struck_inside(layer: nn.Module) -> list[FaultSite]:
    """The sites of words that a layer strikes where it asks for them, not a graph."""
    memory = memory_of(layer)
    if memory is None:
        return []
    return [word.site for kind, word in memory.words.items() if kind not in memory.in_graph]
