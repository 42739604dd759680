"""Brevitas's activation layers and its integer QuantTensor: what a fault site asks about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, TernaryQuant
from brevitas.core.quant.delay import _DelayQuant
from brevitas.core.quant.float import FloatQuant
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.proxy.float_runtime_quant import ActFloatQuantProxyFromInjector
from brevitas.proxy.groupwise_float_parameter_quant import (
    GroupwiseWeightFloatQuantProxyFromInjector,
)
from brevitas.proxy.groupwise_float_runtime_quant import GroupwiseActFloatQuantProxyFromInjector
from brevitas.proxy.groupwise_int_parameter_quant import GroupwiseWeightQuantProxyFromInjector
from brevitas.proxy.groupwise_int_runtime_quant import GroupwiseActQuantProxyFromInjector
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from brevitas.quant_tensor import FloatQuantTensor
from brevitas.quant_tensor import IntQuantTensor as IntQuantTensor  # Others import it from here.
from brevitas.quant_tensor import QuantTensor as QuantTensor
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils.hooks import RemovableHandle

_GROUPED = (
    GroupwiseActFloatQuantProxyFromInjector,
    GroupwiseActQuantProxyFromInjector,
    GroupwiseWeightFloatQuantProxyFromInjector,
    GroupwiseWeightQuantProxyFromInjector,
)

_WITH_WORDS = (
    ActFloatQuantProxyFromInjector,
    ActQuantProxyFromInjector,
    GroupwiseActFloatQuantProxyFromInjector,
)

SHARED_EXPONENT = "shared exponent"

# A pickled or copied layer has another one.
_THIS_PROCESS = object()


@dataclass(frozen=True)
class Quantiser:
    """The facts about a site's quantiser that a QuantTensor does not carry.

    Attributes:
        narrow_range: whether one extreme code is left out.
        binary: whether the codes are -1 and +1.
        bit_width: the constant bit width; None if it is learned or otherwise varies.
        word: what a word holds: an `integer`, a `minifloat` of Brevitas, the `ieee` float that a
            plain tensor is made of, or the `shared exponent` that scales a group of elements.
        group: what the words are in a groupwise tensor: its `elements`, or its `scales`; None for
            any other tensor.
        keeps_codes: whether it makes of its own codes the same codes: it rounds to the nearest
            and applies no function before, but perhaps a ReLU.
        rectifies: whether it applies a ReLU before.
    """

    narrow_range: bool
    binary: bool
    bit_width: int | None
    word: str = "integer"
    group: str | None = field(default=None, repr=False)
    keeps_codes: bool = field(default=True, repr=False)
    rectifies: bool = field(default=False, repr=False)


def is_of_type(module: nn.Module, patterns: tuple[str, ...]) -> bool:
    """Whether a module's class, or one that it derives from, has a name that fits a pattern.

    >>> is_of_type(nn.ReLU(), ("*ReLU",)), is_of_type(nn.ReLU(), ("Conv*", "Linear"))
    (True, False)
    """
    kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, object)]
    return any(fnmatchcase(kind.__name__, p) for kind in kinds for p in patterns)


def why_unsupported(module: nn.Module) -> str | None:
    """Why a layer's output has no words that faults could strike; None if it has.

    >>> from brevitas.nn import QuantReLU
    >>> why_unsupported(QuantReLU()) is None, why_unsupported(QuantReLU(act_quant=None))
    (True, 'its quantiser is disabled')
    """
    if not isinstance(module, QuantNonLinearActLayer):
        return "it is not a Brevitas activation layer"
    proxy = module.act_quant
    return "its quantiser is groupwise" if is_grouped(proxy) else why_wordless(proxy)


def why_wordless(proxy: Any) -> str | None:
    """Why a quantiser of activations makes no words that faults could strike; None if it does.

    Args:
        proxy: a quantiser of Brevitas, such as `layer.input_quant`.
    """
    if not proxy.is_quant_enabled:
        return "its quantiser is disabled"
    if not isinstance(proxy, _WITH_WORDS):
        return f"its quantiser is neither integer nor minifloat ({type(proxy).__name__})"
    return None


def is_grouped(proxy: Any) -> bool:
    """Whether a quantiser of weights or activations gives groups of elements a scale of their own.

    >>> from brevitas.nn import QuantLinear
    >>> from brevitas.quant.mx_quant_ocp import MXInt8Weight
    >>> layer = QuantLinear(32, 1, bias=False, weight_quant=MXInt8Weight)
    >>> is_grouped(layer.weight_quant), is_grouped(layer.input_quant)
    (True, False)
    """
    return isinstance(proxy, _GROUPED)


def only_observes(layer: Any, name: str = "act_quant") -> bool:
    """Whether a layer's quantiser takes statistics and quantises nothing.

    `calibration_mode` of Brevitas 0.13 leaves a quantiser like this if several layers share it.

    Args:
        layer: any module, or None.
        name: the attribute of the layer that has the quantiser.
    """
    quantiser = getattr(layer, name, None)
    parts = quantiser.modules() if isinstance(quantiser, nn.Module) else ()
    return any(getattr(part, "observer_only", False) is True for part in parts)


# Where the forward waits that the root of a transformed model has of its own, not of its class.
OWN_FORWARD = "_fxfault_own_forward"


def own_class(layer: nn.Module) -> Any:
    """The class that a layer had before it was frozen, or became the root of a transformed model.

    See `fxfault.quantisers.frozen_layers` and `fxfault.passes.tracing.own_forward`.
    """
    kind = type(layer)
    kind = vars(kind).get("_source_class", kind)
    return getattr(kind, "source", kind)


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a layer has a forward other than Brevitas's or that of a frozen layer."""
    source = own_class(layer)
    return source.forward is not QuantNonLinearActLayer.forward


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first floating-point parameter; float32 if it has none."""
    found = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(found, torch.float32)


def ieee_words(dtype: torch.dtype) -> Quantiser:
    """What stands for the quantiser of a plain float tensor, whose words are its bits.

    >>> ieee_words(torch.float32)
    Quantiser(narrow_range=False, binary=False, bit_width=32, word='ieee')
    """
    return Quantiser(False, False, torch.finfo(dtype).bits, word="ieee")


def output_type(module: nn.Module) -> type | None:
    """The type that a layer returns; None if that is not certain."""
    if why_unsupported(module) is not None or has_own_forward(module):
        return None
    if not module.return_quant_tensor:
        return torch.Tensor
    is_float = isinstance(module.act_quant, ActFloatQuantProxyFromInjector)
    return FloatQuantTensor if is_float else IntQuantTensor


def makes_private_tensor(layer: Any, kept: dict[Any, Any]) -> bool:
    """Whether the caller alone can see the tensor that a layer returns.

    This holds if the layer is Brevitas's own, quantises now, keeps no cache, and has no forward
    hook anywhere in it.

    Args:
        layer: an activation layer.
        kept: a cache for this layer; empty at first.
    """
    proxy = layer._modules["act_quant"]  # As an attribute it takes longer, and each strike asks.
    if proxy.export_mode or proxy.cache_inference_quant_act or not proxy.is_quant_enabled:
        return False
    # Looking at every part takes longer than the rest of a strike. Look again only if a hook was
    # added anywhere or a part was exchanged since, or if this is another process.
    quantiser = proxy._modules["fused_activation_quant_proxy"]
    parts = (proxy, quantiser, quantiser._modules["tensor_quant"])
    now = (_THIS_PROCESS, RemovableHandle.next_id, *parts)
    if kept.get("without hooks") != now:
        if not _has_no_hook(layer):
            return False
        kept["without hooks"] = now
    return not _global_forward_hooks


def _has_no_hook(layer: nn.Module) -> bool:
    """Whether a layer is Brevitas's own, and no part of it passes the tensor to a hook."""
    if not type(layer).__module__.startswith("brevitas.nn."):
        return False
    modules = [layer]
    for module in modules:  # The list grows; `layer.modules()` takes six times as long.
        if module._forward_hooks or isinstance(module, _DelayQuant):
            return False
        modules.extend(filter(None, module._modules.values()))
    return True


def plain(x: Any) -> Any:
    """The dequantised value of a QuantTensor of any kind; any other value unchanged."""
    return x.value if isinstance(x, QuantTensor) else x


def read_quantiser(module: Any) -> Quantiser:
    """Read the constants of a supported activation layer's quantiser.

    >>> from brevitas.nn import QuantIdentity
    >>> read_quantiser(QuantIdentity(bit_width=4, narrow_range=True))
    Quantiser(narrow_range=True, binary=False, bit_width=4, word='integer')
    """
    return read_proxy(module.act_quant)


def read_proxy(proxy: Any) -> Quantiser:
    """Read the constants of a quantiser of activations, weights or biases."""
    group = "elements" if is_grouped(proxy) else None
    floats = [part for part in proxy.modules() if isinstance(part, FloatQuant)]
    if floats:
        fields = (_width_of(floats[0], "exponent"), _width_of(floats[0], "mantissa"))
        width = sum(fields) + bool(proxy.is_signed)
        return Quantiser(False, False, bit_width=width, word="minifloat", group=group)
    parts = list(proxy.modules())
    ternary = any(isinstance(part, TernaryQuant) for part in parts)
    constants = [part for part in parts if isinstance(part, BitWidthConst)]
    roundings = [_name_of(getattr(part, "float_to_int_impl", None), "RoundSte") for part in parts]
    fused = getattr(proxy, "fused_activation_quant_proxy", None)
    activation = _name_of(getattr(fused, "activation_impl", None), "Identity")
    return Quantiser(
        narrow_range=ternary or bool(proxy.is_narrow_range),
        binary=any(isinstance(part, (BinaryQuant, ClampedBinaryQuant)) for part in parts),
        bit_width=round(float(constants[0]())) if constants else None,
        group=group,
        keeps_codes=set(roundings) <= {"RoundSte"} and activation in ("Identity", "ReLU"),
        rectifies=activation == "ReLU",
    )


def _width_of(quantiser: Any, field: str) -> int:
    """How many bits a field of a float has; Brevitas 0.13 has another name for it than 0.12."""
    name = f"{field}_bit_width"
    return round(float((getattr(quantiser, f"{name}_impl", None) or getattr(quantiser, name))()))


def _name_of(part: Any, default: str) -> str:
    """The class name of a part of a quantiser, TorchScript or not."""
    if part is None:
        return default
    return str(getattr(part, "original_name", type(part).__name__))


def _quantiser_of(layer: nn.Module, name: str) -> Any:
    """The part of a layer's quantiser that has scale and bit width; None if absent."""
    fused = getattr(getattr(layer, name, None), "fused_activation_quant_proxy", None)
    return getattr(fused, "tensor_quant", None)


def learned_bit_width(layer: nn.Module, name: str = "act_quant") -> int | None:
    """The bit width that a quantiser of a layer has learned so far; None if it learns none.

    Args:
        layer: a layer of Brevitas.
        name: the attribute of the layer that has the quantiser.
    """
    quantiser = _quantiser_of(layer, name)
    width = getattr(quantiser, "msb_clamp_bit_width_impl", None)
    if width is None:
        return None
    with torch.no_grad():
        return round(float(width()))


def settled_scale(layer: nn.Module, name: str = "act_quant") -> Tensor | None:
    """The scale of a layer's quantiser, if it is a constant or a parameter in use; else None.

    Only the part that computes the scale runs. `act_quant.scale()` would quantise a number, which
    changes training flags and counts down `quant_delay_steps`.

    Args:
        layer: a layer of Brevitas.
        name: the attribute of the layer that has the quantiser.
    """
    quantiser = _quantiser_of(layer, name)
    scaling: Any = getattr(quantiser, "scaling_impl", None)
    kind = type(scaling).__name__
    if kind == "ParameterFromRuntimeStatsScaling":  # A parameter, once its statistics are complete.
        settled = scaling.counter > scaling.collect_stats_steps
    else:
        settled = kind in ("ConstScaling", "ParameterScaling")
    if not settled:
        return None
    with torch.no_grad():
        if isinstance(quantiser, FloatQuant):
            return None  # The format of the float is part of its scale.
        if hasattr(quantiser, "int_scaling_impl"):
            bit_width = quantiser.msb_clamp_bit_width_impl()
            scale: Tensor = scaling(bit_width, quantiser.int_scaling_impl(bit_width))
        else:  # Binary and ternary quantisers.
            scale = scaling(quantiser.bit_width())
    return scale
