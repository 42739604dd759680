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

from fxfault.errors import SiteError
from fxfault.quantisers.stored_words import KINDS, MEMORY
from fxfault.sites.site import FaultSite
from fxfault.strike.calls import strike_call


class StoredWord:
    """Stands in for the quantiser of a layer's weight or bias, and strikes the words it makes."""

    def __init__(self, memory: LayerMemory, kind: str, site: FaultSite | None) -> None:
        """Stand in for a quantiser.

        Args:
            memory: the memory of the layer.
            kind: `weights` or `biases`.
            site: the site of these words; None: they are not struck, but the graph gives them.
        """
        self.memory, self.kind, self.site = memory, kind, site

    @property
    def quantiser(self) -> Any:
        """The quantiser of Brevitas."""
        return self.memory.layer[0]._modules[KINDS[self.kind].quantiser]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the words: those that the graph has given to the layer, or struck ones."""
        given = self._taken()
        return self._strike(self.quantiser(*args, **kwargs)) if given is None else given

    def struck(self, words: Any) -> Any:
        """Return the words for clean ones that are already known."""
        given = self._taken()
        return self._strike(words) if given is None else given

    def _taken(self) -> Any:
        """What the graph gives to the present call; None if it gives nothing."""
        given = self.memory.given.get(self.kind)
        if given is not None:
            self.memory.left.discard(self.kind)
        return given

    def _strike(self, words: Any) -> Any:
        return words if self.site is None else strike_call(words, self.site)

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
        left: the kinds of those words that the layer has not asked for yet.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Make the memory of a layer of ours; nothing is struck yet."""
        self.layer: list[Any] = [layer]  # In a list, so that nothing takes it for a child.
        self.words: dict[str, StoredWord] = {}
        self.in_graph: set[str] = set()
        self.given: dict[str, Any] = {}
        self.left: set[str] = set()

    def add(self, kind: str, site: FaultSite | None) -> None:
        """Strike the words of a kind by a site from now on; None: only accept them."""
        word = self.words[kind] = StoredWord(self, kind, site)
        self.layer[0].__dict__[KINDS[kind].quantiser] = word

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
        given = {"weights": weight, "biases": bias}
        given = {kind: words for kind, words in given.items() if words is not None}
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
        for kind in sorted(self.left):
            word = self.words[kind]
            if word.site is not None and word.site.armed:
                raise SiteError(
                    f"site {word.site.name}: its {type(self.layer[0]).__name__} did not ask "
                    f"{KINDS[kind].quantiser} for the struck words; transform the model again if "
                    "its quantisers or methods were replaced, and export it without faults"
                )


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
    words = memory.words.items()
    return [word.site for kind, word in words if word.site and kind not in memory.in_graph]


def called_module(module: nn.Module, target: str) -> nn.Module:
    """The module that a graph calls, and not the `StoredWord` that stands in for it.

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
    memory = memory_of(called_module(module, path) if path else module)
    words = memory.words.values() if memory is not None else ()
    sites = [word.site for word in words if KINDS[word.kind].quantiser == name]
    return sites[0] if sites else None
