"""The quantisers of activations that a layer calls itself: `input_quant`, those of an LSTM."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from brevitas.nn.mixin.base import QuantRecurrentLayerMixin
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.nn.quant_rnn import QuantRecurrentStackBase
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from torch import nn

from fxfault.quantisers.quant_tensors import is_grouped
from fxfault.quantisers.stored_words import STRUCK

# The parts of a recurrent layer belong to these classes.
_WHOLE = {
    "_QuantLSTMLayer": "QuantLSTM",
    "_QuantLSTMCell": "QuantLSTM",
    "_QuantRNNLayer": "QuantRNN",
    "_QuantRNNCell": "QuantRNN",
}
# The cell of an LSTM with `coupled_input_forget_gates` has these and does not call them.
_OF_A_FORGET_GATE = ("forget_acc_quant", "forget_sigmoid_quant")


def is_named(module: nn.Module, class_names: Collection[str]) -> bool:
    """Whether a module's class, or one that it derives from, has one of the names.

    The parts of a `QuantLSTM` or `QuantRNN` have its name, too.
    """
    kind: Any = type(module)
    return not _names_of(kind).isdisjoint(class_names)


@functools.lru_cache(maxsize=1024)
def _names_of(kind: type) -> frozenset[str]:
    names = [base.__name__ for base in kind.__mro__]
    return frozenset([*names, *(_WHOLE[name] for name in names if name in _WHOLE)])


def quantisers_inside(layer: nn.Module) -> dict[str, Any]:
    """The quantisers of activations that a layer of Brevitas calls itself, by their attributes.

    The `act_quant` of an activation layer is not among them, unless it is groupwise: its word is
    the layer's output.

    >>> from brevitas.nn import QuantLinear, QuantReLU
    >>> list(quantisers_inside(QuantLinear(2, 2, bias=False))), list(quantisers_inside(QuantReLU()))
    (['input_quant', 'output_quant'], ['input_quant'])

    Args:
        layer: any module.

    Returns:
        Enabled and disabled ones.
    """
    left_out: tuple[str, ...] = ()
    if isinstance(layer, QuantNonLinearActLayer):
        left_out = () if is_grouped(layer.act_quant) else ("act_quant",)
    elif layer.__dict__.get("cifg"):
        left_out = _OF_A_FORGET_GATE
    elif layer.__dict__.get("quantize_output_only"):  # As the layer below has done it.
        left_out = ("io_quant",)
    return {name: one for name, one in _quantisers_of(layer).items() if name not in left_out}


def _quantisers_of(layer: nn.Module) -> dict[str, Any]:
    kind: Any = type(layer)
    if not _is_of_brevitas(kind):
        return {}
    return {
        name: child
        for name, child in layer._modules.items()
        if isinstance(child, ActQuantProxyFromInjectorBase)
    }


@functools.cache
def _is_of_brevitas(kind: type) -> bool:
    return any(base.__module__.startswith("brevitas.nn.") for base in kind.__mro__)


def makes_words_inside(layer: nn.Module) -> bool:
    """Whether a layer makes words by quantisers of activations that it calls itself."""
    if not quantisers_inside(layer):
        return False
    return STRUCK in layer.__dict__ or any(
        quantiser.is_quant_enabled for quantiser in quantisers_inside(layer).values()
    )


def gives_word(module: nn.Module) -> bool:
    """Whether the word of a layer, if it has one, is its output."""
    if isinstance(module, QuantNonLinearActLayer):
        return not is_grouped(module.act_quant)
    return not isinstance(module, QuantRecurrentStackBase) and not _quantisers_of(module)


def why_not_struck(layer: nn.Module) -> str | None:
    """Why faults cannot strike inside a recurrent layer; None if they can, or for another layer."""
    if not isinstance(layer, QuantRecurrentLayerMixin):
        return None
    cell: Any = layer._modules["cell"]
    if isinstance(cell, torch.jit.ScriptModule):
        return "its cell is TorchScript"
    if cell.__dict__.get("cifg") and not cell.input_sigmoid_quant.is_quant_enabled:
        return "its input and forget gates are coupled, and `sigmoid_quant` is disabled"
    return None
