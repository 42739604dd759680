"""What fxfault knows of Brevitas: its activation layers and its integer QuantTensor.

Besides `frozen_layers` and the built-in networks the only file that touches Brevitas's classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, TernaryQuant
from brevitas.core.quant.delay import _DelayQuant
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.proxy.groupwise_int_runtime_quant import GroupwiseActQuantProxyFromInjector
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from brevitas.quant_tensor import IntQuantTensor, QuantTensor
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils.hooks import RemovableHandle

__all__ = [
    "IntQuantTensor",
    "Quantiser",
    "has_own_forward",
    "is_activation",
    "learned_bit_width",
    "makes_private_tensor",
    "only_observes",
    "output_type",
    "plain",
    "read_quantiser",
    "settled_scale",
    "why_unsupported",
]

# What is pickled or copied has another one.
_THIS_PROCESS = object()


@dataclass(frozen=True)
class Quantiser:
    """What a site must know of its quantiser beyond what the QuantTensor carries.

    Attributes:
        narrow_range: whether one extreme code is left out.
        binary: whether the codes are -1 and +1.
        bit_width: the constant bit width; None where it is learned or otherwise varies.
    """

    narrow_range: bool
    binary: bool
    bit_width: int | None


def is_activation(module: nn.Module, class_names: tuple[str, ...]) -> bool:
    """Whether a module's class, or one that it derives from, has one of the names."""
    return any(kind.__name__ in class_names for kind in type(module).__mro__)


def why_unsupported(module: nn.Module) -> str | None:
    """Say why faults in a layer's output would have no integer word; None if they have.

    >>> from brevitas.nn import QuantReLU
    >>> why_unsupported(QuantReLU()) is None, why_unsupported(QuantReLU(act_quant=None))
    (True, 'its quantiser is disabled')
    """
    if not isinstance(module, QuantNonLinearActLayer):
        return "it is not a Brevitas activation layer"
    proxy = module.act_quant
    if not proxy.is_quant_enabled:
        return "its quantiser is disabled"
    if isinstance(proxy, GroupwiseActQuantProxyFromInjector):
        return "its quantiser is groupwise"
    if not isinstance(proxy, ActQuantProxyFromInjector):
        return f"its quantiser is not an integer one ({type(proxy).__name__})"
    return None


def only_observes(layer: Any) -> bool:
    """Whether a layer's quantiser takes statistics and quantises nothing.

    `calibration_mode` of Brevitas 0.13 leaves quantisers so that several layers share.
    """
    quantiser = getattr(layer, "act_quant", None)
    parts = quantiser.modules() if isinstance(quantiser, nn.Module) else ()
    return any(getattr(part, "observer_only", False) is True for part in parts)


# Where the forward waits that the root of a transformed model has of its own, not of its class.
OWN_FORWARD = "_fxfault_own_forward"


def own_class(layer: nn.Module) -> Any:
    """The class that a layer had before it was frozen, or became the root of a transformed model.

    See `fxfault.frozen_layers` and `fxfault.passes.own_forward`.
    """
    kind = type(layer)
    kind = vars(kind).get("_source_class", kind)
    return getattr(kind, "source", kind)


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a layer adds code of its own around that of Brevitas; freezing it adds none."""
    source = own_class(layer)
    return source.forward is not QuantNonLinearActLayer.forward


def output_type(module: nn.Module) -> type | None:
    """The type that a layer returns, where that is certain; None where it is not."""
    if why_unsupported(module) is not None or has_own_forward(module):
        return None
    return IntQuantTensor if module.return_quant_tensor else torch.Tensor


def makes_private_tensor(layer: Any, kept: dict[Any, Any]) -> bool:
    """Whether nothing but the caller can see the tensor that a layer returns.

    True only where the layer is Brevitas's own and, at this moment, quantises, keeps no
    cache, and no forward hook anywhere in it may have seen the tensor.

    Args:
        layer: an activation layer.
        kept: what was found out about this layer before, and now; empty at first.
    """
    proxy = layer.act_quant
    if proxy.export_mode or proxy.cache_inference_quant_act or not proxy.is_quant_enabled:
        return False
    # Looking at every part takes longer than all else of a strike: it is done again only where a
    # hook was added somewhere since, or a part exchanged. In another process nothing counts.
    quantiser = proxy.fused_activation_quant_proxy
    now = (_THIS_PROCESS, RemovableHandle.next_id, proxy, quantiser, quantiser.tensor_quant)
    if kept.get("without hooks") != now:
        if not _has_no_hook(layer):
            return False
        kept["without hooks"] = now
    return not _global_forward_hooks


def _has_no_hook(layer: nn.Module) -> bool:
    """Whether a layer is Brevitas's own, and no part of it shows the tensor to anybody."""
    if not type(layer).__module__.startswith("brevitas.nn."):
        return False
    modules = [layer]
    for module in modules:  # It grows; `layer.modules()` takes six times as long.
        if module._forward_hooks or isinstance(module, _DelayQuant):
            return False
        modules.extend(filter(None, module._modules.values()))
    return True


def plain(x: Any) -> Any:
    """The dequantised value of a QuantTensor of any kind; anything else as it is."""
    return x.value if isinstance(x, QuantTensor) else x


def read_quantiser(module: Any) -> Quantiser:
    """Read the constants of a supported activation layer's quantiser.

    >>> from brevitas.nn import QuantIdentity
    >>> read_quantiser(QuantIdentity(bit_width=4, narrow_range=True))
    Quantiser(narrow_range=True, binary=False, bit_width=4)
    """
    proxy = module.act_quant
    parts = list(proxy.modules())
    ternary = any(isinstance(part, TernaryQuant) for part in parts)
    constants = [part for part in parts if isinstance(part, BitWidthConst)]
    return Quantiser(
        narrow_range=ternary or bool(proxy.is_narrow_range),
        binary=any(isinstance(part, (BinaryQuant, ClampedBinaryQuant)) for part in parts),
        bit_width=round(float(constants[0]())) if constants else None,
    )


def _quantiser_of(layer: nn.Module) -> Any:
    """The part of a Brevitas activation layer that knows scale and bit width; None if absent."""
    fused = getattr(getattr(layer, "act_quant", None), "fused_activation_quant_proxy", None)
    return getattr(fused, "tensor_quant", None)


def learned_bit_width(layer: nn.Module) -> int | None:
    """The bit width that a layer has learned so far; None where it has none."""
    quantiser = _quantiser_of(layer)
    width = getattr(quantiser, "msb_clamp_bit_width_impl", None)
    if width is None:
        return None
    with torch.no_grad():
        return round(float(width()))


def settled_scale(layer: nn.Module) -> Tensor | None:
    """The scale, where no forward is needed to know it: a constant, or a parameter in use.

    Only the part that computes the scale is asked. `act_quant.scale()` would quantise a
    number, which changes training flags and counts down `quant_delay_steps`.
    """
    quantiser = _quantiser_of(layer)
    scaling: Any = getattr(quantiser, "scaling_impl", None)
    kind = type(scaling).__name__
    if kind == "ParameterFromRuntimeStatsScaling":  # A parameter once its statistics are in.
        settled = scaling.counter > scaling.collect_stats_steps
    else:
        settled = kind in ("ConstScaling", "ParameterScaling")
    if not settled:
        return None
    with torch.no_grad():
        if hasattr(quantiser, "int_scaling_impl"):
            bit_width = quantiser.msb_clamp_bit_width_impl()
            scale: Tensor = scaling(bit_width, quantiser.int_scaling_impl(bit_width))
        else:  # Binary and ternary quantisers.
            scale = scaling(quantiser.bit_width())
    return scale
