"""The words that a layer's memory holds: its quantised weight and bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from brevitas.nn.mixin.parameter import QuantBiasMixin, QuantWeightMixin
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from brevitas.proxy.groupwise_int_parameter_quant import GroupwiseWeightQuantProxyFromInjector
from brevitas.proxy.parameter_quant import BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn


class _Kind(NamedTuple):
    parameter: str
    quantiser: str
    layer: type
    integer: type


# Where a layer has its struck quantisers; see `fxfault.passes.layer_quantisers`.
STRUCK = "_struck_quantisers"

KINDS = {
    "weights": _Kind("weight", "weight_quant", QuantWeightMixin, WeightQuantProxyFromInjector),
    "biases": _Kind("bias", "bias_quant", QuantBiasMixin, BiasQuantProxyFromInjector),
}
"""The memories: the parameter, its quantiser, and their classes in Brevitas."""


def has_memory(layer: nn.Module, kind: str) -> bool:
    """Whether a layer has a weight or bias that Brevitas can quantise.

    Args:
        layer: any module.
        kind: `weights` or `biases`.
    """
    found = KINDS[kind]
    return isinstance(layer, found.layer) and layer._parameters.get(found.parameter) is not None


def why_no_words(layer: nn.Module, kind: str) -> str | None:
    """Why a layer's weight or bias has no integer words that faults could strike; None if it has.

    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 4, bias=True)
    >>> why_no_words(layer, "weights") is None, why_no_words(layer, "biases")
    (True, 'its bias is not quantised')

    Args:
        layer: a layer for which `has_memory` holds.
        kind: `weights` or `biases`.
    """
    parameter, quantiser, _, integer = KINDS[kind]
    proxy: Any = layer._modules[quantiser]
    if not proxy.is_quant_enabled:
        return f"its {parameter} is not quantised"
    if isinstance(proxy, GroupwiseWeightQuantProxyFromInjector):
        return f"the quantiser of its {parameter} is groupwise"
    if not isinstance(proxy, integer):
        kind_of = type(proxy).__name__
        return f"the quantiser of its {parameter} is not an integer one ({kind_of})"
    return None


def needs_input(layer: nn.Module, kind: str) -> bool:
    """Whether the words depend on the layer's quantised input, so that only the layer has them."""
    if kind == "weights":
        return bool(layer._modules["weight_quant"].requires_quant_input)  # type: ignore[union-attr]
    return bool(layer._modules["input_quant"].is_quant_enabled)  # type: ignore[union-attr]


def runs_brevitas_forward(layer: nn.Module) -> bool:
    """Whether a layer's forward is Brevitas's own, which asks for the weight and bias once."""
    own = type(layer).forward
    return own.__module__.startswith("brevitas.nn.") and "forward" not in layer.__dict__


def channel_dim(layer: Any, kind: str) -> int:
    """The dimension of the output channels in a layer's weight or bias."""
    if kind == "biases":
        return 0
    return int(layer.output_channel_dim) % max(1, layer.weight.dim())


def clean_weight(layer: Any) -> Any:
    """The quantised weight of a layer, as its memory stores it.

    Args:
        layer: a layer with a weight quantiser.

    Returns:
        An `IntQuantTensor` of the shape of the weight.
    """
    constants = layer._constants() if hasattr(layer, "_constants") else None
    if constants is not None:  # Of a frozen layer.
        return constants.quantised
    proxy = layer._modules["weight_quant"]
    # Not `layer.quant_weight()` of a layer whose words faults strike, as that strikes them.
    return proxy(layer.weight) if proxy.is_quant_enabled else layer.quant_weight()


def clean_bias(layer: Any, input: Any, weight: Any) -> Any:
    """The quantised bias of a layer, as its memory stores it.

    Args:
        layer: a layer with a bias quantiser.
        input: the layer's input, whose scale may be part of the bias's scale.
        weight: the layer's quantised weight.

    Returns:
        An `IntQuantTensor` of the shape of the bias.
    """
    if isinstance(layer, QuantWeightBiasInputOutputLayer):
        input = layer.unpack_input(input)
    return layer._modules["bias_quant"](layer.bias, input, weight)


def same_memory(first: Any, second: Any, kind: str) -> bool:
    """Whether two layers read the same words: one parameter, and quantisers that agree."""
    parameter, quantiser = KINDS[kind][:2]
    if first._parameters[parameter] is not second._parameters[parameter]:
        return False
    if first._modules[quantiser] is second._modules[quantiser]:
        return True
    if kind == "biases":
        return False  # Their scales come from the inputs of two layers.
    with torch.no_grad():
        words = [clean_weight(layer) for layer in (first, second)]
    return all(
        torch.equal(getattr(words[0], name), getattr(words[1], name))
        for name in ("value", "scale", "zero_point", "bit_width")
        if isinstance(getattr(words[0], name), Tensor)
    )


def peeked_weight(layer: Any) -> Any:
    """The quantised weight of a layer, read without a change of the layer; None if that is unsafe.

    Args:
        layer: a layer whose weight has integer words.
    """
    proxy = layer._modules["weight_quant"]
    if layer.training or proxy.requires_quant_input or proxy.cache_inference_quant_weight:
        return None
    with torch.no_grad():  # A copy, as some quantisers clip the weight in place.
        return proxy(layer._parameters["weight"].detach().clone())
