"""Brevitas layers of which the quantiser is settled, and computed once instead of at every forward.

A frozen layer is an object of its own that shares parameters, buffers and quantiser with the layer
that it was made from. Weights and biases are quantised once. An activation is a division, a
rounding, a clamp and a product with constants, bit for bit what Brevitas's modules give.
Whatever has no settled form, and every forward with gradients on, is computed as before.

Besides `quant_tensors` the only file that knows Brevitas's classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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
from brevitas.nn import QuantConv1d, QuantConv2d, QuantConv3d, QuantEmbedding, QuantLinear
from brevitas.nn.mixin.parameter import QuantWeightMixin
from brevitas.nn.quant_layer import QuantNonLinearActLayer, QuantWeightBiasInputOutputLayer
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from fxfault.errors import FreezeError
from fxfault.quant_tensors import OWN_FORWARD, IntQuantTensor, own_class, plain

HOW_TO_THAW = (
    "a frozen model is for evaluation and does not train; train the model that it was frozen "
    "from, which fxfault.thaw gives back, and go on with the frozen one afterwards: they share "
    "their parameters"
)


class Unsettled(Exception):
    """Why a quantiser has no settled form."""


# -- seeing changes -------------------------------------------------------------------------


class Watch:
    """Sees whether what something was computed from is still the same.

    A parameter has changed when it was replaced, when its memory was, or when it was written
    to. Of what is written through `.data` in place torch keeps no account: that is not seen.

    >>> layer = nn.Linear(2, 2)
    >>> watch = Watch([(layer._parameters, "weight")])
    >>> watch.unchanged()
    True
    >>> with torch.no_grad():
    ...     _ = layer.weight.mul_(2)
    >>> watch.unchanged()
    False
    """

    def __init__(self, places: Iterable[tuple[dict[str, Any], str]]) -> None:
        """Note what stands at some places now.

        Args:
            places: keys of dictionaries; a value is a tensor, or anything that is replaced
                rather than changed.
        """
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self._others: list[tuple[dict[str, Any], str, Any]] = []
        for table, key in places:
            value = table.get(key)
            if isinstance(value, Tensor):
                self._tensors.append((table, key, value, value._version, value.data_ptr()))
            else:
                self._others.append((table, key, value))

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        for table, key, tensor, version, address in self._tensors:
            if (
                table.get(key) is not tensor
                or tensor._version != version
                or tensor.data_ptr() != address
            ):
                return False
        for table, key, value in self._others:  # Not `all`, which takes longer.  # noqa: SIM110
            if table.get(key) is not value:
                return False
        return True


def _tensors_below(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """The places of all parameters and buffers of a quantiser, and of its parts."""
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            yield from ((table, key) for key in table)
        # Which of two tensors is the scale; whether values are only looked at.
        yield from ((part.__dict__, k) for k in ("counter", "observer_only") if k in part.__dict__)
    children: dict[str, Any] = module._modules
    yield from ((children, key) for key in children)  # Loading a state makes them anew.


_SWITCHES = (
    "_export_mode",
    "_is_quant_enabled",
    "disable_quant",
    "is_signed",
    "skip_create_quant_tensor",
    "cache_inference_quant_act",
    "cache_inference_quant_bias",
    "_cache_inference_quant_weight",
)


def _switches_of(*modules: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    for module in modules:
        yield from ((module.__dict__, name) for name in _SWITCHES if name in module.__dict__)


# -- what is settled ------------------------------------------------------------------------


@dataclass
class Settled:
    """What a frozen layer computes with.

    Attributes:
        constants: what the quantiser gives in every forward; None where it is not settled.
        why_not: why it is not; empty if it is.
        watch: sees when that has to be found out anew.
    """

    constants: Any
    why_not: str
    watch: Watch


@dataclass
class WeightConstants:
    """Weights that are quantised, and what else of the layer is settled.

    Attributes:
        quantised: the weights as their quantiser gives them, a QuantTensor.
        value: their values.
        plain_output: whether the layer's output is the product and no more: neither input nor
            output have a quantiser.
        bias: the bias that is added, quantised; None where there is none, or where it needs
            the scale of the input.
        bias_needs_input: whether it needs the scale of the input.
        last_bias: the bias that belongs to a scale of the input, which is kept with it.
    """

    quantised: Any
    value: Tensor
    plain_output: bool = False
    bias: Tensor | None = None
    bias_needs_input: bool = False
    last_bias: tuple[Tensor, int, int, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class IntegerSteps:
    """Integer quantisation as a few operations, each of the bits that Brevitas computes.

    Brevitas: `clamp(round(act(x) / scale + zero_point)) - zero_point) * scale`.

    Attributes:
        scale, zero_point: of the dtype of the values; one number or one for each channel.
        low, high: the lowest and the highest code.
        shifted: whether the zero point is not 0. If it is, adding it still turns -0.0 into 0.0.
        rectified: whether a ReLU comes first: a clamp before the rounding is that, too.
        rounding: name of the method that rounds in place.
        activation: the activation function; None where there is none or it is that ReLU.
    """

    scale: Tensor
    zero_point: Tensor
    low: float
    high: float
    shifted: bool
    rectified: bool
    rounding: str
    activation: nn.Module | None

    def __call__(self, x: Tensor) -> Tensor:
        """The quantised values; a new tensor."""
        if self.activation is not None:
            x = self.activation(x)
        y = x / self.scale
        if self.rectified:
            y.clamp_(self.low, self.high)
        y.add_(self.zero_point)
        getattr(y, self.rounding)()
        if not self.rectified:
            y = self._clamp(y)
        if self.shifted:
            y.sub_(self.zero_point)
        return y.mul_(self.scale)

    def _clamp(self, y: Tensor) -> Tensor:
        if self.low < 0 < self.high:
            return y.clamp_(self.low, self.high)
        # `clamp_` may give either zero where a bound is zero; Brevitas keeps the sign.
        y = torch.where(y > self.high, self.high, y)
        return torch.where(y < self.low, self.low, y)


@dataclass(frozen=True)
class BinarySteps:
    """Binary quantisation: the sign, and +1 for 0; of a NaN, -1.

    Attributes:
        scale: positive; one number or one for each channel.
        minus_scale: the same, negative.
        activation: the activation function; None where there is none.
    """

    scale: Tensor
    minus_scale: Tensor
    activation: nn.Module | None

    def __call__(self, x: Tensor) -> Tensor:
        """The quantised values; a new tensor."""
        if self.activation is not None:
            x = self.activation(x)
        return torch.where(x >= 0, self.scale, self.minus_scale)


@dataclass(frozen=True)
class ActivationConstants:
    """A settled activation quantiser.

    Attributes:
        steps: compute the values.
        dtype: of the inputs that they serve.
        scale, zero_point, bit_width, signed, training: what the QuantTensor carries.
        is_signed: `signed` as a number, which a compiler can look at.
    """

    steps: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    scale: Tensor
    zero_point: Tensor
    bit_width: Tensor
    signed: Tensor
    training: Tensor
    is_signed: bool


class SettledQuantTensor(IntQuantTensor):  # type: ignore[misc]
    """What a frozen activation gives in code that is being compiled.

    Brevitas asks a QuantTensor for its signedness and mode, and two that are joined whether
    their scales agree. A compiler cannot answer what depends on a tensor's values. Here
    the first two are known, and the comparisons, which would only raise errors, are left to a run
    without a compiler.
    """

    training = False

    def check_scaling_factors_same(self, other: Any) -> None:
        """Not compared."""

    def check_zero_points_same(self, other: Any) -> None:
        """Not compared."""

    def check_bit_width_same(self, other: Any) -> None:
        """Not compared."""


# -- the layers -----------------------------------------------------------------------------


class FrozenLayer(nn.Module):
    """What frozen layers have in common; comes before the layer's own class.

    Attributes:
        what: the part of the layer that is settled.
        source: the layer's own class.
    """

    what = ""
    source: type
    _settled: Settled
    # Of Brevitas's class, which comes after.
    return_quant_tensor: bool
    inner_forward_impl: Callable[..., Any]
    bias_quant: Callable[..., Any]
    pack_output: Callable[..., Any]

    def settle(self) -> Settled:
        """Find out anew what is settled."""
        raise NotImplementedError

    def refresh(self) -> bool:
        """Bring the constants up to date; returns whether they were not."""
        if self._settled.watch.unchanged():
            return False
        self.__dict__["_settled"] = self.settle()
        return True

    def train(self, mode: bool = True) -> Any:
        """Refuse to train.

        Raises:
            FreezeError: `mode` is true.
        """
        if mode:
            raise FreezeError(f"{type(self).__name__}.train(): {HOW_TO_THAW}")
        return super().train(mode)

    def _constants(self) -> Any:
        """What to compute this forward with; None: compute it as before freezing."""
        if torch.is_grad_enabled() or self.__dict__.get("_export_mode"):
            return None
        # A compiler would ask once and for all: see `fxfault.passes.refresh`.
        if not torch.compiler.is_compiling():
            # A trace is checked without gradients, whether it was recorded with them or not, and
            # goes on with the model's parameters. That for ONNX is not, and does not.
            if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():  # type: ignore[attr-defined]
                return None
            self.refresh()
        return self._settled.constants

    def extra_repr(self) -> str:
        """What the layer says of itself, and that it is frozen."""
        return ", ".join(filter(None, [super().extra_repr(), f"frozen={self.what}"]))


class FrozenWeights(FrozenLayer):
    """A layer whose weights are quantised once."""

    what = "weights"

    def settle(self) -> Settled:
        """Find out anew what is settled."""
        return settle_weights(self)

    def quant_weight(self, quant_input: Any = None, subtensor_slice_list: Any = None) -> Any:
        """The quantised weights."""
        constants = self._constants()
        if constants is None or subtensor_slice_list is not None:
            return super().quant_weight(quant_input, subtensor_slice_list)  # type: ignore[misc]
        return constants.quantised


class FrozenProduct(FrozenWeights):
    """A convolution or linear layer, which gives a plain tensor by one call."""

    def forward(self, input: Any) -> Any:
        """Compute the product; for a QuantTensor as result, as Brevitas does."""
        constants = self._constants()
        if constants is None or not constants.plain_output or self.return_quant_tensor:
            return super().forward(input)  # type: ignore[misc]
        bias = constants.bias
        if constants.bias_needs_input:
            bias = self._scaled_bias(constants, input)
        return self.inner_forward_impl(plain(input), constants.value, bias)

    def _scaled_bias(self, constants: WeightConstants, input: Any) -> Any:
        """The bias in steps of the input's scale times the weights'."""
        kept = None if torch.compiler.is_compiling() else constants.last_bias
        if kept is not None and isinstance(input, IntQuantTensor):
            scale, version, dimensions, bias = kept
            same = input.scale is scale and scale._version == version
            if same and input.value.dim() == dimensions:
                return bias
        bias = plain(self.bias_quant(self.bias, input, constants.quantised))
        if isinstance(input, IntQuantTensor) and not torch.compiler.is_compiling():
            key = (input.scale, input.scale._version, input.value.dim())
            constants.last_bias = (*key, bias)
        return bias


class FrozenActivation(FrozenLayer):
    """An activation layer that computes its values by a few operations."""

    what = "activation"

    def settle(self) -> Settled:
        """Find out anew what is settled."""
        return settle_activation(self)

    def forward(self, input: Any) -> Any:
        """Quantise the input."""
        constants = self._constants()
        x = plain(input)
        if constants is None or not isinstance(x, Tensor) or x.dtype is not constants.dtype:
            return super().forward(input)  # type: ignore[misc]
        value = constants.steps(x)
        if not self.return_quant_tensor and "pack_output" not in self.__dict__:
            return value
        kind: Any = IntQuantTensor
        signed: bool | Tensor = constants.signed
        if torch.compiler.is_compiling():
            kind, signed = SettledQuantTensor, constants.is_signed
        return self.pack_output(
            kind(
                value,
                constants.scale,
                constants.zero_point,
                constants.bit_width,
                signed,
                constants.training,
            )
        )


@functools.cache
def _class_of(kind: Any, source: Any) -> type:
    names = {"__module__": source.__module__, "__doc__": source.__doc__, "source": source}
    new = type(source.__name__, (kind, source), names)
    new.__qualname__ = source.__qualname__
    return new


def freeze_layer(layer: nn.Module, settled: Settled) -> None:
    """Turn a layer of ours, in place, into a frozen one.

    Args:
        layer: an object of ours (see `fxfault.passes.sharing`).
        settled: what `settle` said of it.
    """
    kind: Any = _kind_of(layer)
    source: Any = type(layer)
    layer.__dict__["_settled"] = settled
    layer.__class__ = _class_of(kind, source)


def settle(layer: nn.Module) -> Settled | None:
    """What of a layer is settled; None where it is no layer that could be frozen, or is frozen.

    Nothing is changed. The layer must be in eval mode.
    """
    kind = _kind_of(layer)
    if kind is None or isinstance(layer, FrozenLayer):
        return None
    return settle_activation(layer) if kind is FrozenActivation else settle_weights(layer)


def _kind_of(layer: nn.Module) -> type[FrozenLayer] | None:
    if isinstance(layer, QuantNonLinearActLayer):
        return FrozenActivation
    if isinstance(layer, (QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear)):
        return FrozenProduct
    return FrozenWeights if isinstance(layer, QuantWeightMixin) else None


# -- settling -------------------------------------------------------------------------------


def _settle(
    layer: nn.Module, proxies: list[nn.Module], find: Callable[[Any], Any], keys: tuple[str, ...]
) -> Settled:
    """Find the constants of a layer, and what they depend on."""
    parameters: dict[str, Any] = layer._parameters
    places = [(parameters, key) for key in keys]
    places += [place for proxy in proxies for place in _tensors_below(proxy)]
    places += _switches_of(*proxies)
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
            raise Unsettled("its quantiser changes something")
    except Unsettled as error:
        return Settled(None, str(error), Watch(places))
    # Whoever gets the scale with a QuantTensor might write to it.
    own = [(vars(constants), k) for k, v in vars(constants).items() if isinstance(v, Tensor)]
    return Settled(constants, "", Watch([*places, *own]))


def settle_weights(layer: Any) -> Settled:
    """What is settled of a layer with quantised weights."""
    proxies = [getattr(layer, f"{name}_quant", None) for name in ("weight", "bias")]
    found = [proxy for proxy in proxies if isinstance(proxy, nn.Module)]
    return _settle(layer, found, _weight_constants, ("weight", "bias"))


def _weight_constants(layer: Any) -> WeightConstants:
    proxy = layer.weight_quant
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
    # Of a copy: some quantisers clip the weights in place.
    weight = layer._parameters["weight"].detach()
    quantised, again = (proxy(weight.clone()) for _ in range(2))
    if not _same_bits(plain(quantised), plain(again)):
        raise Unsettled("its weight quantiser draws random numbers")
    quantised = quantised.detach()
    constants = WeightConstants(quantised, plain(quantised))
    if isinstance(layer, QuantWeightBiasInputOutputLayer):
        _settle_output(layer, constants)
    return constants


def _settle_output(layer: Any, constants: WeightConstants) -> None:
    proxies = (layer.input_quant, layer.output_quant)
    constants.plain_output = not any(_has_effect(proxy) for proxy in proxies)
    bias, proxy = layer._parameters.get("bias"), layer.bias_quant
    if bias is None or not proxy.is_quant_enabled:
        constants.bias = bias
        return
    if proxy.requires_input_scale or proxy.cache_inference_quant_bias or proxy.export_mode:
        constants.bias_needs_input = True
        return
    _require_settled(proxy)
    constants.bias = plain(proxy(bias.detach().clone())).detach()


def settle_activation(layer: Any) -> Settled:
    """What is settled of an activation layer."""
    return _settle(layer, [layer.act_quant], _activation_constants, ())


def _activation_constants(layer: Any) -> ActivationConstants:
    proxy = layer.act_quant
    _require_brevitas(layer, "forward", "unpack_input", "pack_output")
    if type(proxy) is not ActQuantProxyFromInjector:
        raise Unsettled(f"its quantiser is a {type(proxy).__name__}")
    if not proxy.is_quant_enabled:
        raise Unsettled("its quantiser is disabled")
    if _has_effect(layer.input_quant):
        raise Unsettled("it quantises its input, too")
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
        raise Unsettled("its scale is not a positive number of 32 or 64 bits")
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
        raise Unsettled("its zero point has another shape than its scale")
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


_SCALES = (ConstScaling, ParameterScaling, ParameterFromRuntimeStatsScaling)
_CLAMPS = (TensorClamp, TensorClampSte)
_ROUNDINGS = {RoundSte: "round_", FloorSte: "floor_", CeilSte: "ceil_"}


def _require_types(module: nn.Module, **allowed: tuple[type, ...]) -> None:
    """The parts of a quantiser must be of known kinds; a part that is absent is none."""
    for name, kinds in allowed.items():
        part = module._modules.get(name)
        if part is not None and type(part) not in kinds:
            raise Unsettled(f"its {name} is a {type(part).__name__}")


def _require_brevitas(layer: nn.Module, *methods: str) -> None:
    """The layer must run Brevitas's code, and nobody's own."""
    for name in methods:
        method = getattr(own_class(layer), name, None)
        own = name in layer.__dict__ and name != "pack_output"
        own |= name == "forward" and OWN_FORWARD in layer.__dict__
        if own or (method is not None and not method.__module__.startswith("brevitas.nn.")):
            raise Unsettled(f"it has a {name} of its own")
    if layer.training:
        raise Unsettled("it is in training mode")


def _require_settled(proxy: nn.Module) -> None:
    """A quantiser must compute the same in each forward, by code that is known to."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        raise Unsettled("there are forward hooks on all modules")
    for part in proxy.modules():
        kind = type(part)
        known = kind.__module__.startswith(("brevitas.core.", "brevitas.proxy.", "torch.nn."))
        own_activation = kind.__module__.startswith("brevitas.nn.")
        if not (known or own_activation) or "forward" in part.__dict__:
            raise Unsettled(f"its quantiser has a {kind.__name__}, of which nothing is known")
        if part._forward_hooks or part._forward_pre_hooks:
            raise Unsettled("there are forward hooks in its quantiser")
        if part.training:
            raise Unsettled("its quantiser is in training mode")
        if isinstance(part, (_DelayQuant, StochasticRoundSte)):
            raise Unsettled(f"its quantiser has a {kind.__name__}")
        if part.__dict__.get("init_done") is False:
            raise Unsettled("its quantiser takes its scale from the first forward")


def _has_effect(proxy: Any) -> bool:
    """Whether the quantiser of an input or output does anything."""
    return proxy.fused_activation_quant_proxy is not None


# -- proof ----------------------------------------------------------------------------------


def _probe_values(scale: Tensor, bit_width: Tensor) -> Tensor:
    """Values at, between and beyond the codes, zeros of both signs, and what is no number."""
    reach = min(2.0 ** float(bit_width), 2.0**12) + 2
    codes = torch.arange(-reach, reach, 0.25, dtype=scale.dtype, device=scale.device)
    tiny = torch.finfo(scale.dtype).tiny
    infinity, nan = float("inf"), float("nan")
    odd = [0.0, -0.0, tiny, -tiny, infinity, -infinity, nan, 1e30, -1e30]
    special = torch.tensor(odd, dtype=scale.dtype, device=scale.device)
    factor = scale.flatten()[0]
    return torch.cat([codes * factor, codes * (1 + 1e-7) * factor, special])


def _compare(steps: Callable[[Tensor], Tensor], brevitas: Any, values: Tensor) -> None:
    """The steps must give what Brevitas gives, bit for bit."""
    if not _same_bits(steps(values), brevitas(values)[0]):
        raise Unsettled("its values cannot be computed in fewer operations with the same bits")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same to the last bit; all NaN are one."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (
        a.nan_to_num(7.0, float("inf"), float("-inf")),
        b.nan_to_num(7.0, float("inf"), float("-inf")),
    )
    return bool(torch.equal(a, b) and torch.equal(a.signbit(), b.signbit()))
