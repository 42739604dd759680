"""The words that a layer's memory holds: its quantised weight and bias."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from brevitas.nn.mixin.parameter import QuantBiasMixin, QuantWeightMixin
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from brevitas.proxy.float_parameter_quant import (
    BiasFloatQuantProxyFromInjector,
    WeightFloatQuantProxyFromInjector,
)
from brevitas.proxy.groupwise_float_parameter_quant import (
    GroupwiseWeightFloatQuantProxyFromInjector,
)
from brevitas.proxy.parameter_quant import BiasQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxfault.faults.float_words import IEEE_DTYPES


class _Kind(NamedTuple):
    parameter: str
    quantiser: str
    layer: type
    words: tuple[type, ...]


# Where a layer has its struck quantisers; see `fxfault.passes.layer_quantisers`.
STRUCK = "_struck_quantisers"

KINDS = {
    "weights": _Kind(
        *("weight", "weight_quant", QuantWeightMixin),
        (
            GroupwiseWeightFloatQuantProxyFromInjector,
            WeightFloatQuantProxyFromInjector,
            WeightQuantProxyFromInjector,
        ),
    ),
    "biases": _Kind(
        *("bias", "bias_quant", QuantBiasMixin),
        (BiasQuantProxyFromInjector, BiasFloatQuantProxyFromInjector),
    ),
}
"""The memories: the parameter, its quantiser, and their classes in Brevitas."""


def has_memory(layer: nn.Module, kind: str) -> bool:
    """Whether a layer has a weight or bias that Brevitas can quantise.

    Args:
        layer: any module.
        kind: `weights` or `biases`.
    """
    found = KINDS[kind]
    if not isinstance(layer, found.layer):
        return False
    return layer._parameters.get(found.parameter) is not None or _is_computed(layer, kind)


def _is_computed(layer: Any, kind: str) -> bool:
    """Whether a parametrization or a hook (pruning, weight norm) computes a weight or bias."""
    parameter = KINDS[kind].parameter
    by_hook = isinstance(layer.__dict__.get(parameter), Tensor)
    return by_hook or parametrize.is_parametrized(layer, parameter)


def why_no_words(layer: nn.Module, kind: str) -> str | None:
    """Why a layer's weight or bias has no words that faults could strike; None if it has.

    >>> from brevitas.nn import QuantLinear
    >>> layer = QuantLinear(4, 4, bias=True)
    >>> why_no_words(layer, "weights") is None, why_no_words(layer, "biases")
    (True, 'its bias is not quantised')

    Args:
        layer: a layer for which `has_memory` holds.
        kind: `weights` or `biases`.
    """
    parameter, quantiser, _, words = KINDS[kind]
    proxy: Any = layer._modules[quantiser]
    if not proxy.is_quant_enabled:
        return f"its {parameter} is not quantised"
    if _is_computed(layer, kind):
        return f"its {parameter} is computed in each forward, by a parametrization or a hook"
    if not isinstance(proxy, words):
        name = type(proxy).__name__
        return f"the quantiser of its {parameter} is neither integer nor minifloat ({name})"
    return None


def needs_input(layer: nn.Module, kind: str) -> bool:
    """Whether the words depend on the layer's quantised input, so that only the layer has them."""
    if kind == "weights":
        return bool(layer._modules["weight_quant"].requires_quant_input)  # type: ignore[union-attr]
    return bool(layer._modules["input_quant"].is_quant_enabled)  # type: ignore[union-attr]


def runs_brevitas_forward(layer: nn.Module) -> bool:
    """Whether a layer gets its words by Brevitas's own code, which quantises its parameters."""
    for name in ("forward", "forward_impl", "quant_weight"):
        method = getattr(type(layer), name, None)
        if name in layer.__dict__:
            return False
        if method is not None and not method.__module__.startswith("brevitas.nn."):
            return False
    return True


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
    if kind == "biases" or any(needs_input(layer, kind) for layer in (first, second)):
        return False  # Their scales come from the inputs of two layers.
    with torch.no_grad():  # Copies, as a first forward or a forward in training may change them.
        words = [clean_weight(copy.deepcopy(layer).eval()) for layer in (first, second)]
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


def float_tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The float parameters and buffers that a module itself holds and that `state_dict` has.

    >>> list(float_tensors_of(nn.BatchNorm1d(3)))
    ['weight', 'bias', 'running_mean', 'running_var']

    Args:
        module: any module.

    Returns:
        The tensors of at least one element in float32, float16 or bfloat16, by name.
    """
    held = {**module._parameters, **module._buffers}
    return {
        name: tensor
        for name, tensor in held.items()
        if tensor is not None
        and name not in module._non_persistent_buffers_set
        and tensor.dtype in IEEE_DTYPES
        and tensor.numel()
    }
