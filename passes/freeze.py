"""Freeze a model for evaluation: compute once what every forward would compute again.

Before and after, the graph is the same::

    relu = self.relu(conv1)
    conv2 = self.conv2(relu)

but `self.conv2` holds its quantised weights, and `self.relu` computes its values by four or five
operations (`fxfault.frozen_layers`), bit for bit the same. Batch norm stays: folded into the
weights it would change bits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxfault.errors import FreezeError, SiteError
from fxfault.frozen_layers import (
    HOW_TO_THAW,
    FrozenLayer,
    Settled,
    freeze_layer,
    settle,
)
from fxfault.layer_outputs import LayerOutput
from fxfault.passes.own_forward import give_forward_back, keep_forward
from fxfault.passes.sharing import twin
from fxfault.passes.traced_module import twin_of_traced
from fxfault.quant_tensors import is_activation
from fxfault.sites import FaultSites, faults_of

_RECORD = "_frozen"


@dataclass(frozen=True)
class FrozenPart:
    """What became of one quantised layer.

    Attributes:
        path: of the layer in the model.
        type: its class name.
        what: `weights` or `activation`, the part that is computed once; empty where nothing is.
        why_not: why nothing is; empty where something is.
    """

    path: str
    type: str
    what: str
    why_not: str = ""


@dataclass(frozen=True)
class _Record:
    """What a frozen model remembers."""

    frozen: nn.Module
    source: nn.Module
    parts: tuple[FrozenPart, ...]


def freeze(model: nn.Module) -> nn.Module:
    """Make a model for evaluation that computes the same in less time.

    Weights and biases are quantised once, and activations whose scale, zero point and bit
    width are settled become a few operations. The outputs are bit for bit those of the model,
    faults and statistics included. What cannot be settled is computed as before;
    `frozen_parts` lists it.

    The result shares parameters and buffers with `model`, which is not changed, and has
    the same `state_dict`. Where a parameter changes (an optimizer step or `load_state_dict`, of
    either model), the next forward computes anew what depends on it. It does so without
    gradients only: a forward with gradients on runs as before freezing. The fault sites are
    copies: their settings, clock and statistics are the frozen model's own.

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
        model: in eval mode; transformed or not. Transform first and freeze the result.

    Returns:
        The frozen model; `model` itself where it is frozen already.

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
        """The model must be in eval mode."""
        if graph_module.training:
            raise FreezeError(
                f"{type(graph_module).__name__} is in training mode and freezing is for "
                "evaluation; call .eval() on it first"
            )

    def call(self, graph_module: nn.Module) -> PassResult:
        """Freeze every layer that is settled."""
        found = _look_for_layers(graph_module)
        settled = {id(layer) for layer, state in found.values() if state.constants is not None}
        targets = _targets_of(graph_module)

        def is_leaf(module: nn.Module) -> bool:
            # A struck activation has to lead to the frozen model's own sites.
            return id(module) in settled or is_activation(module, targets)

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
    """Freeze a layer; where it is the whole model, its clock is to move first all the same."""
    keeps = give_forward_back(layer)
    freeze_layer(layer, state)
    if keeps:
        keep_forward(layer)


def thaw(model: nn.Module) -> nn.Module:
    """Give back the very model that `freeze` was given, with what changed in their parameters.

    Args:
        model: what `freeze` returned; a model that is not frozen is returned as it is.

    Raises:
        FreezeError: the model was made from a frozen one (by `strip`, for instance).
    """
    record = _record_of(model)
    if record is None:
        return model
    if record.frozen is not model:
        raise FreezeError(
            f"this {type(model).__name__} was made from a frozen model; thaw what fxfault.freeze "
            "returned, and make it from that"
        )
    return record.source


def frozen_parts(model: nn.Module) -> tuple[FrozenPart, ...]:
    """What became of each quantised layer when a model was frozen, in the order of its modules.

    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> model = nn.Sequential(QuantLinear(4, 4, bias=True), QuantReLU(act_quant=None)).eval()
    >>> for part in frozen_parts(freeze(model)):
    ...     print(part)
    FrozenPart(path='0', type='QuantLinear', what='weights', why_not='')
    FrozenPart(path='1', type='QuantReLU', what='', why_not='its quantiser is disabled')

    Args:
        model: what `freeze` returned; for any other model there is nothing to tell.
    """
    record = _record_of(model)
    return () if record is None else record.parts


def refresh(model: nn.Module) -> int:
    """Compute anew what depends on parameters that have changed.

    Every forward does so by itself, except compiled code, which does not look: call this
    before it when parameters may have changed. What is written in place through
    `parameter.data` is seen by neither: freeze again.

    Args:
        model: what `freeze` returned.

    Returns:
        Number of layers that had changed.
    """
    return sum(layer.refresh() for layer in model.modules() if isinstance(layer, FrozenLayer))


def is_frozen(model: nn.Module) -> bool:
    """Whether a model is what `freeze` returned."""
    return _record_of(model) is not None


def _record_of(model: nn.Module) -> _Record | None:
    return model.__dict__.get(_RECORD)


def _look_for_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Settled]]:
    found = {path: (layer, settle(layer)) for path, layer in model.named_modules()}
    return {path: (layer, state) for path, (layer, state) in found.items() if state is not None}


def _targets_of(model: nn.Module) -> tuple[str, ...]:
    try:
        return tuple(faults_of(model).config.targets)
    except SiteError:
        return ()


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Stand for `train` in the containers of a frozen model."""
    if mode:
        raise FreezeError(f"{type(self).__name__}.train(): {HOW_TO_THAW}")
    return type(self).train(self, False)


def _give_own_sites(ours: nn.Module, new_of: dict[nn.Module, nn.Module]) -> None:
    """Let a frozen model have a clock, settings and statistics of its own.

    Its clock has to follow its own mode: the model that it was made from may be training.
    """
    try:
        sites = faults_of(ours)
    except SiteError:
        return
    kept = [sites.original, *(site.fault_model for site in sites)]
    copies: dict[int, Any] = {id(old): new for old, new in new_of.items()}
    copies.update({id(thing): thing for thing in kept})
    for module in new_of.values():
        for name, value in module.__dict__.items():
            if isinstance(value, (FaultSites, LayerOutput)):
                module.__dict__[name] = copy.deepcopy(value, copies)
