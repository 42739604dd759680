"""Freeze a model for evaluation: compute once what every forward would compute again.

The graph stays the same::

    relu = self.relu(conv1)
    conv2 = self.conv2(relu)

but `self.conv2` keeps its quantised weights, and `self.relu` computes its values with four or five
operations (`fxfault.quantisers.frozen_layers`) that give the same bits. Batch norm is not folded
into the weights, because that would change bits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxfault.errors import FreezeError
from fxfault.passes.layer_outputs import LayerOutput
from fxfault.passes.layer_quantisers import LayerQuantisers, StruckQuantiser
from fxfault.passes.sites_of_model import sites_or_none
from fxfault.passes.tracing.own_forward import give_forward_back, keep_forward
from fxfault.passes.tracing.sharing import twin
from fxfault.passes.tracing.targets import copied_rule
from fxfault.passes.tracing.traced_module import twin_of_traced
from fxfault.quantisers.constants import Settled
from fxfault.quantisers.frozen_layers import HOW_TO_THAW, FrozenLayer, freeze_layer, settle
from fxfault.quantisers.watch import Watch
from fxfault.sites.fault_sites import FaultSites

_RECORD = "_frozen"
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class FrozenPart:
    """The result of freezing for one quantised layer.

    Attributes:
        path: the path of the layer in the model.
        type: the class name of the layer.
        what: the part that is frozen, `weights` or `activation`; empty if none is.
        why_not: why no part is frozen; empty if one is.
    """

    path: str
    type: str
    what: str
    why_not: str = ""


@dataclass(frozen=True)
class _Record:
    """A frozen model, the model that it was made from, and its parts."""

    frozen: nn.Module
    source: nn.Module
    parts: tuple[FrozenPart, ...]


def freeze(model: M) -> M:
    """Make a faster model for evaluation that computes the same.

    Weights and biases are quantised once, and activations whose scale, zero point and bit
    width are settled become a few operations. The outputs are the same as the model's bit for bit,
    faults and statistics included. Layers that cannot be settled are computed as before;
    `frozen_parts` lists them.

    The result shares parameters and buffers with `model`, which is not changed, and has
    the same `state_dict`. If a parameter changes (by an optimizer step or `load_state_dict`, of
    either model), the next forward computes again what depends on it. All this holds for forwards
    without gradients; those with gradients on run as before freezing. The fault sites are copies:
    the frozen model has its own settings, clock and statistics.

    >>> import fxfault, torch
    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(4, 4, bias=True), QuantReLU(bit_width=4)).eval()
    >>> frozen = fxfault.freeze(model)
    >>> x = torch.randn(8, 4)
    >>> with torch.no_grad():
    ...     torch.equal(frozen(x), model(x))
    True
    >>> fxfault.thaw(frozen) is model
    True

    Args:
        model: a model in eval mode. To inject faults, transform first and freeze the result.

    Returns:
        The frozen model; `model` itself if it is frozen already.

    Raises:
        FreezeError: the model is in training mode.
    """
    if _record_of(model) is not None:
        return model
    freeze_layers: Any = FreezeLayers()
    return freeze_layers(model).graph_module


@dataclass(frozen=True)
class FreezeLayers(PassBase):
    """Freeze the quantised layers of a model; the result is a new object, with the same graphs."""

    def requires(self, graph_module: nn.Module) -> None:
        """Require a model in eval mode."""
        if graph_module.training:
            raise FreezeError(
                f"{type(graph_module).__name__} is in training mode and freezing is for "
                "evaluation; call .eval() on it first"
            )

    def call(self, graph_module: nn.Module) -> PassResult:
        """Freeze every layer that is settled."""
        found = _settled_layers(graph_module)
        settled = {id(layer) for layer, state in found.values() if state.constants is not None}
        sites = sites_or_none(graph_module)
        is_struck = None if sites is None else copied_rule(sites.config)

        def is_leaf(module: nn.Module) -> bool:
            # What is struck must belong to the frozen model's own sites.
            return id(module) in settled or (is_struck is not None and is_struck(module))

        ours = twin(graph_module, is_leaf, new_object=twin_of_traced)
        new_of = dict(zip(graph_module.modules(), ours.modules(), strict=True))
        _give_own_sites(ours, new_of)
        parts = []
        for path, (layer, state) in found.items():
            if state.constants is not None:
                _freeze(new_of[layer], state)
            what = getattr(new_of[layer], "what", "")
            parts.append(FrozenPart(path, type(layer).__name__, what, state.why_not))
        for old, new in new_of.items():
            if old is not new and not isinstance(new, FrozenLayer):
                new.__dict__["train"] = MethodType(_train, new)
        ours.__dict__[_RECORD] = _Record(ours, graph_module, tuple(parts))
        return PassResult(ours, bool(settled))


def _freeze(layer: nn.Module, state: Settled) -> None:
    """Freeze a layer; if it is the whole model, its forward still moves the clock first."""
    keeps = give_forward_back(layer)
    freeze_layer(layer, state)
    if keeps:
        keep_forward(layer)


def thaw(model: M) -> M:
    """Return the model object that `freeze` was given; its parameters are those of the frozen one.

    Args:
        model: the result of `freeze`; a model that is not frozen is returned as it is.

    Raises:
        FreezeError: the model was made from a frozen one (by `strip`, for instance).
    """
    record = _record_of(model)
    if record is None:
        return model
    if record.frozen is not model:
        raise FreezeError(
            f"this {type(model).__name__} was made from a frozen model; thaw the model that "
            "fxfault.freeze returned, and make it from that"
        )
    return cast(M, record.source)


def frozen_parts(model: nn.Module) -> tuple[FrozenPart, ...]:
    """The results of freezing for each quantised layer, in the order of the modules.

    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(4, 4, bias=True), QuantReLU(act_quant=None)).eval()
    >>> for part in frozen_parts(freeze(model)):
    ...     print(part)
    FrozenPart(path='0', type='QuantLinear', what='weights', why_not='')
    FrozenPart(path='1', type='QuantReLU', what='', why_not='its quantiser is disabled')

    Args:
        model: the result of `freeze`; for any other model there are none.
    """
    record = _record_of(model)
    return () if record is None else record.parts


def refresh(model: nn.Module) -> int:
    """Compute again what depends on parameters that have changed.

    Every forward does this itself, except in compiled code: call this function before compiled
    code runs if parameters may have changed. Neither sees writes in place through
    `parameter.data`; freeze again after those.

    Args:
        model: the result of `freeze`.

    Returns:
        Number of layers that had changed.
    """
    return sum(layer.refresh() for layer in model.modules() if isinstance(layer, FrozenLayer))


def is_frozen(model: nn.Module) -> bool:
    """Whether a model is what `freeze` returned."""
    return _record_of(model) is not None


def _record_of(model: nn.Module) -> _Record | None:
    return model.__dict__.get(_RECORD)


def _settled_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Settled]]:
    """Each layer that may be frozen, with its settled values, by path."""
    found = {path: (layer, settle(layer)) for path, layer in model.named_modules()}
    sites = sites_or_none(model)
    if sites is not None and "parameters" in sites.config.memories:
        struck = Settled(None, "faults strike its parameters", Watch(()))
        found = {path: (layer, state and struck) for path, (layer, state) in found.items()}
    return {path: (layer, state) for path, (layer, state) in found.items() if state is not None}


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Replace `train` in the containers of a frozen model."""
    if mode:
        raise FreezeError(f"{type(self).__name__}.train(): {HOW_TO_THAW}")
    return type(self).train(self, False)


def _give_own_sites(ours: nn.Module, new_of: dict[nn.Module, nn.Module]) -> None:
    """Give a frozen model a clock, settings and statistics of its own.

    Its clock must follow its own mode: the model that it was made from may be training.
    """
    sites = sites_or_none(ours)
    if sites is None:
        return
    kept = [sites.original, *(fault.model for site in sites for fault in site.faults)]
    copies: dict[int, Any] = {id(old): new for old, new in new_of.items()}
    copies.update({id(thing): thing for thing in kept})
    for module in new_of.values():
        for name, value in module.__dict__.items():
            owner = value.__self__ if isinstance(value, MethodType) else value
            if isinstance(owner, (FaultSites, LayerOutput, LayerQuantisers, StruckQuantiser)):
                module.__dict__[name] = copy.deepcopy(value, copies)
