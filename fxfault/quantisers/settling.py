"""Settle a quantiser: find its constants, and check that they give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from brevitas.core.bit_width import BitWidthConst, BitWidthParameter, BitWidthStatefulConst
from brevitas.core.function_wrapper import (
    CeilSte,
    FloorSte,
    Identity,
    RoundSte,
    StochasticRoundSte,
    TensorClamp,
    TensorClampSte,
)
from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, IntQuant, RescalingIntQuant
from brevitas.core.quant.delay import _DelayQuant
from brevitas.core.scaling import (
    ConstScaling,
    IntScaling,
    ParameterFromRuntimeStatsScaling,
    ParameterScaling,
    PowerOfTwoIntScaling,
)
from brevitas.core.zero_point import (
    ParameterFromRuntimeZeroPoint,
    ParameterZeroPoint,
    ZeroZeroPoint,
)
from brevitas.nn import QuantEmbedding
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from fxfault.faults.bits import same_bits
from fxfault.quantisers.constants import (
    ActivationConstants,
    BinarySteps,
    IntegerSteps,
    Settled,
    WeightConstants,
)
from fxfault.quantisers.quant_tensors import OWN_FORWARD, own_class, plain
from fxfault.quantisers.stored_words import STRUCK
from fxfault.quantisers.watch import Watch, switches_of, tensors_below

_SCALES = (ConstScaling, ParameterScaling, ParameterFromRuntimeStatsScaling)
_CLAMPS = (TensorClamp, TensorClampSte)
_ROUNDINGS = {RoundSte: "round_", FloorSte: "floor_", CeilSte: "ceil_"}


class Unsettled(Exception):
    """Why a quantiser has no settled form."""


def _settle(
    layer: nn.Module, proxies: list[nn.Module], find: Callable[[Any], Any], keys: tuple[str, ...]
) -> Settled:
    """Find the constants of a layer, and watch what they depend on."""
    parameters: dict[str, Any] = layer._parameters
    places = [(parameters, key) for key in keys]
    places += [place for proxy in proxies for place in tensors_below(proxy)]
    places += switches_of(*proxies)
    for name in ("input_quant", "output_quant"):
        proxy = layer._modules.get(name)
        if proxy is not None:
            children: dict[str, Any] = proxy._modules
            places.append((children, "fused_activation_quant_proxy"))
    try:
        values = [table.get(key) for table, key in places]
        if any(isinstance(value, Tensor) and value.is_inference() for value in values):
            raise Unsettled("its tensors were made in inference mode")
        watch = Watch(places)
        with torch.no_grad(), torch.inference_mode(False):
            constants = find(layer)
        if not watch.unchanged():
            raise Unsettled("its quantiser changes its parameters or settings")
    except Unsettled as error:
        return Settled(None, str(error), Watch(places))
    # The user gets the scale with a QuantTensor and might write to it.
    own = [(vars(constants), k) for k, v in vars(constants).items() if isinstance(v, Tensor)]
    return Settled(constants, "", Watch([*places, *own]))


def settle_weights(layer: Any) -> Settled:
    """Settle a layer with quantised weights."""
    # Not as attributes, which faults may stand in for.
    proxies = [layer._modules.get(f"{name}_quant") for name in ("weight", "bias")]
    found = [proxy for proxy in proxies if isinstance(proxy, nn.Module)]
    return _settle(layer, found, _weight_constants, ("weight", "bias"))


def _weight_constants(layer: Any) -> WeightConstants:
    proxy = layer._modules["weight_quant"]
    _require_brevitas(layer, "forward", "forward_impl", "quant_weight", "inner_forward_impl")
    if not isinstance(layer, (QuantWeightBiasInputOutputLayer, QuantEmbedding)):
        raise Unsettled("the layer around it quantises its weights")
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise Unsettled("its weights are computed in each forward")
    if not isinstance(proxy, WeightQuantProxyFromInjectorBase):
        raise Unsettled(f"its weight quantiser is a {type(proxy).__name__}")
    if not proxy.is_quant_enabled:
        raise Unsettled("its weights are not quantised")
    if proxy.requires_quant_input:
        raise Unsettled("its weight quantiser depends on the input")
    if proxy.cache_inference_quant_weight or layer.__dict__.get("_export_mode"):
        raise Unsettled("Brevitas caches or exports its weights")
    _require_settled(proxy)
    # Quantise copies: some quantisers clip the weights in place.
    weight = layer._parameters["weight"].detach()
    quantised, again = (proxy(weight.clone()) for _ in range(2))
    if not same_bits(plain(quantised), plain(again)):
        raise Unsettled("its weight quantiser draws random numbers")
    quantised = quantised.detach()
    constants = WeightConstants(quantised, plain(quantised))
    if isinstance(layer, QuantWeightBiasInputOutputLayer):
        _settle_output(layer, constants)
    return constants


def _settle_output(layer: Any, constants: WeightConstants) -> None:
    proxies = (layer.input_quant, layer.output_quant)
    constants.plain_output = not any(_has_effect(proxy) for proxy in proxies)
    bias, proxy = layer._parameters.get("bias"), layer._modules["bias_quant"]
    if bias is None or not proxy.is_quant_enabled:
        constants.bias = bias
        return
    if proxy.requires_input_scale or proxy.cache_inference_quant_bias or proxy.export_mode:
        constants.bias_needs_input = True
        return
    _require_settled(proxy)
    constants.bias = plain(proxy(bias.detach().clone())).detach()


def settle_activation(layer: Any) -> Settled:
    """Settle an activation layer."""
    return _settle(layer, [layer.act_quant], _activation_constants, ())


def _activation_constants(layer: Any) -> ActivationConstants:
    proxy = layer.act_quant
    _require_brevitas(layer, "forward", "unpack_input", "pack_output")
    if type(proxy) is not ActQuantProxyFromInjector:
        raise Unsettled(f"its quantiser is a {type(proxy).__name__}")
    if not proxy.is_quant_enabled:
        raise Unsettled("its quantiser is disabled")
    if _has_effect(layer.input_quant):
        raise Unsettled("it also quantises its input")
    if proxy.cache_inference_quant_act or proxy.skip_create_quant_tensor or proxy.export_mode:
        raise Unsettled("Brevitas caches or exports its output")
    _require_settled(proxy)
    fused = proxy.fused_activation_quant_proxy
    quantiser = fused.tensor_quant
    tensor = next(quantiser.buffers())
    probe = torch.zeros(1, device=tensor.device)
    scale, zero_point, bit_width = (tensor.detach() for tensor in quantiser(probe)[1:])
    steps = _steps(fused.activation_impl, quantiser, scale, zero_point, bit_width)
    _compare(steps, fused, _probe_values(scale, bit_width))
    is_signed = bool(proxy.is_signed)
    signed, off = torch.tensor(is_signed), torch.tensor(False)
    return ActivationConstants(
        steps, scale.dtype, scale, zero_point, bit_width, signed, off, is_signed
    )


def _steps(
    activation: nn.Module, quantiser: Any, scale: Tensor, zero_point: Tensor, bit_width: Tensor
) -> Callable[[Tensor], Tensor]:
    if scale.dtype not in (torch.float32, torch.float64) or not bool((scale > 0).all()):
        raise Unsettled("its scale is not positive float32 or float64")
    function = None if isinstance(activation, (Identity, nn.Identity)) else activation
    if type(quantiser) in (BinaryQuant, ClampedBinaryQuant):
        _require_types(quantiser, scaling_impl=_SCALES, tensor_clamp_impl=_CLAMPS)
        return BinarySteps(scale, -scale, function)
    if type(quantiser) is not RescalingIntQuant:
        raise Unsettled(f"its quantiser is a {type(quantiser).__name__}")
    integer = quantiser.int_quant
    _require_types(
        quantiser,
        int_quant=(IntQuant,),
        scaling_impl=_SCALES,
        int_scaling_impl=(IntScaling, PowerOfTwoIntScaling),
        zero_point_impl=(ZeroZeroPoint, ParameterZeroPoint, ParameterFromRuntimeZeroPoint),
        msb_clamp_bit_width_impl=(BitWidthConst, BitWidthStatefulConst, BitWidthParameter),
    )
    _require_types(
        integer,
        float_to_int_impl=tuple(_ROUNDINGS),
        tensor_clamp_impl=_CLAMPS,
        input_view_impl=(Identity, nn.Identity),
    )
    if zero_point.dtype != scale.dtype or zero_point.shape not in ((), scale.shape):
        raise Unsettled("the shapes of its zero point and its scale differ")
    low, high = (float(bound(bit_width)) for bound in (integer.min_int, integer.max_int))
    shifted = bool((zero_point != 0).any())
    rounds = type(integer.float_to_int_impl) is RoundSte
    rectified = type(function) is nn.ReLU and low == 0 < high and rounds and not shifted
    return IntegerSteps(
        scale=scale,
        zero_point=zero_point,
        low=low,
        high=high,
        shifted=shifted,
        rectified=rectified,
        rounding=_ROUNDINGS[type(integer.float_to_int_impl)],
        activation=None if rectified else function,
    )


def _require_types(module: nn.Module, **allowed: tuple[type, ...]) -> None:
    """Require that the parts of a quantiser are of known kinds, or absent."""
    for name, kinds in allowed.items():
        part = module._modules.get(name)
        if part is not None and type(part) not in kinds:
            raise Unsettled(f"its {name} is a {type(part).__name__}")


def _require_brevitas(layer: nn.Module, *methods: str) -> None:
    """Require a layer in eval mode that runs Brevitas's own methods."""
    for name in methods:
        method = getattr(own_class(layer), name, None)
        ours = name in ("pack_output", "unpack_input") or (
            name == "forward" and STRUCK in layer.__dict__
        )
        own = name in layer.__dict__ and not ours
        own |= name == "forward" and OWN_FORWARD in layer.__dict__
        if own or (method is not None and not method.__module__.startswith("brevitas.nn.")):
            raise Unsettled(f"it has a {name} of its own")
    if layer.training:
        raise Unsettled("it is in training mode")


def _require_settled(proxy: nn.Module) -> None:
    """Require a quantiser whose known code computes the same in each forward."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        raise Unsettled("there are forward hooks on all modules")
    for part in proxy.modules():
        kind = type(part)
        known = kind.__module__.startswith(("brevitas.core.", "brevitas.proxy.", "torch.nn."))
        own_activation = kind.__module__.startswith("brevitas.nn.")
        if not (known or own_activation) or "forward" in part.__dict__:
            raise Unsettled(f"its quantiser has an unknown part, a {kind.__name__}")
        if part._forward_hooks or part._forward_pre_hooks:
            raise Unsettled("there are forward hooks in its quantiser")
        if part.training:
            raise Unsettled("its quantiser is in training mode")
        if isinstance(part, (_DelayQuant, StochasticRoundSte)):
            raise Unsettled(f"its quantiser has a {kind.__name__}")
        if part.__dict__.get("init_done") is False:
            raise Unsettled("its quantiser takes its scale from the first forward")


def _has_effect(proxy: Any) -> bool:
    """Whether the quantiser of an input or output is enabled."""
    return proxy.fused_activation_quant_proxy is not None


def _probe_values(scale: Tensor, bit_width: Tensor) -> Tensor:
    """Values at, between and beyond the codes, both zeros, infinities and NaN."""
    reach = min(2.0 ** float(bit_width), 2.0**12) + 2
    codes = torch.arange(-reach, reach, 0.25, dtype=scale.dtype, device=scale.device)
    tiny = torch.finfo(scale.dtype).tiny
    infinity, nan = float("inf"), float("nan")
    odd = [0.0, -0.0, tiny, -tiny, infinity, -infinity, nan, 1e30, -1e30]
    special = torch.tensor(odd, dtype=scale.dtype, device=scale.device)
    factor = scale.flatten()[0]
    return torch.cat([codes * factor, codes * (1 + 1e-7) * factor, special])


def _compare(steps: Callable[[Tensor], Tensor], brevitas: Any, values: Tensor) -> None:
    """Require that the steps give the same bits as Brevitas."""
    if not same_bits(steps(values), brevitas(values)[0]):
        raise Unsettled("fewer operations do not give the same bits")
