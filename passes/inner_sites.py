"""Insert the sites of the quantisers inside layers; see `fxfault.passes.insert`."""

from __future__ import annotations

from typing import Any

from brevitas.nn import QuantCat, QuantEltwiseAdd
from brevitas.nn.mixin.base import QuantRecurrentLayerMixin
from brevitas.nn.quant_layer import QuantInputOutputLayer, QuantNonLinearActLayer
from torch import nn
from torch.fx import Graph

from fxfault.passes.layer_quantisers import install_struck, struck_of
from fxfault.passes.stored_sites import SCALES
from fxfault.passes.tracing.containers import joined
from fxfault.passes.tracing.targets import Rule
from fxfault.quantisers.grouped_tensors import read_scales
from fxfault.quantisers.inner_quantisers import quantisers_inside, why_not_struck
from fxfault.quantisers.quant_tensors import dtype_of, is_grouped, read_proxy, why_wordless
from fxfault.quantisers.stored_words import runs_brevitas_forward
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite

_LAST = "output_quant"


class InnerSites:
    """The quantisers of activations inside layers, found in the order of execution.

    Attributes:
        problems: why enabled quantisers have no words that faults could strike, by their names.
    """

    def __init__(self, sites: FaultSites, is_target: Rule) -> None:
        """Look for the quantisers that layers call themselves.

        Args:
            sites: gets the sites.
            is_target: says of a layer whether the configuration strikes inside it.
        """
        self.sites, self.is_target = sites, is_target
        self.problems: dict[str, str] = {}
        # The layers are kept, so that no other one gets the id of one.
        self._found: dict[tuple[int, str], tuple[nn.Module, FaultSite | None]] = {}
        self._scales: dict[FaultSite, FaultSite] = {}
        self._recurrent: list[Any] = []
        self._refused: list[nn.Module] = []
        # By layer: the graphs that call it, one for each call; None stands for Python code.
        self._callers: dict[int, list[Graph | None]] = {}

    def add_before(self, layer: nn.Module, path: str) -> None:
        """Add the sites of the words that a layer makes before it computes."""
        if isinstance(layer, QuantRecurrentLayerMixin):
            self._add_recurrent(layer, path)
        for name in self._names(layer):
            if name != _LAST:
                self._add(layer, path, name)

    def add_after(self, layer: nn.Module, path: str) -> None:
        """Add the site of the word that a layer makes of its result."""
        if _LAST in self._names(layer):
            self._add(layer, path, _LAST)

    def note_call(self, layer: nn.Module, graph: Graph | None) -> None:
        """Note a call of a layer by a graph of the model, or by other code (None)."""
        self._callers.setdefault(id(layer), []).append(graph)

    def note_quantiser_call(self, module: nn.Module, target: str) -> None:
        """Note that a graph calls a quantiser of a layer by itself.

        Args:
            module: the module that has the graph.
            target: what the graph calls.
        """
        path, _, name = target.rpartition(".")
        layer = module.get_submodule(path)
        if name in quantisers_inside(layer):
            self.note_call(layer, None)

    def rewrite(self) -> None:
        """Let the layers strike the words."""
        for layer, site in self._found.values():
            if site is not None:
                site.counts_calls = not self._is_called_once(layer, site)
                if site in self._scales:
                    self._scales[site].counts_calls = site.counts_calls
        for (_, name), (layer, site) in self._found.items():
            if site is not None:
                install_struck(layer).add(name, site, self._scales.get(site))
        for layer in self._recurrent:
            if struck_of(layer._modules["cell"]) is not None:
                install_struck(layer).run_own_cell()
        if any(site is not None for _, site in self._found.values()):
            self.sites.follow_words()

    def _names(self, layer: nn.Module) -> list[str]:
        is_refused = any(layer is other for other in self._refused)
        return list(quantisers_inside(layer)) if self.is_target(layer) and not is_refused else []

    def _is_called_once(self, layer: nn.Module, site: FaultSite) -> bool:
        """Whether a forward of the model calls a quantiser once."""
        callers = self._callers.get(id(layer), [None])
        if None in callers or len({id(graph) for graph in callers}) < len(callers):
            return False
        if isinstance(layer, (QuantEltwiseAdd, QuantCat)) and site.part != _LAST:
            return False
        known = (QuantInputOutputLayer, QuantNonLinearActLayer)
        return isinstance(layer, known) and runs_brevitas_forward(layer)

    def _add_recurrent(self, layer: Any, path: str) -> None:
        if not (self.is_target(layer) or self.is_target(layer._modules["cell"])):
            return
        why = why_not_struck(layer)
        if why is not None:
            self._refused += [layer, layer._modules["cell"]]
            self.problems[path] = self.sites.skipped[path] = why
        elif all(layer is not other for other in self._recurrent):
            self._recurrent.append(layer)

    def _add(self, layer: nn.Module, path: str, name: str) -> None:
        quantiser = quantisers_inside(layer)[name]
        # Layers of Brevitas have a quantiser for every value that could be quantised.
        if (id(layer), name) in self._found or not quantiser.is_quant_enabled:
            return
        full, site = joined(path or type(layer).__name__, name), None
        why, kind = why_wordless(quantiser), type(layer).__name__
        if why is None:
            site, _ = self.sites.add(full, path, kind, read_proxy(quantiser), part=name)
            if is_grouped(quantiser):
                facts = read_scales(quantiser, dtype_of(layer))
                scales, _ = self.sites.add(joined(full, SCALES), path, kind, facts, part=name)
                self._scales[site] = scales
        else:
            self.problems[full] = self.sites.skipped[full] = why
        self._found[id(layer), name] = (layer, site)
