"""What the tests of the operation share: chains of layers, and data for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantReLU
from brevitas.quant import ShiftedUint8ActPerTensorFloat
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

MODELS = ("random", "lsb_flip", "msb_flip", "full_flip")


Faulty = Callable[..., Any]


Calibrated = Callable[..., nn.Module]


def fixed_scale(bits: int = 4, **settings: Any) -> Any:
    """A quantiser of fixed scale; where signed a power of two, so that sums of it are exact."""
    return QuantIdentity(
        bit_width=bits,
        scaling_impl_type="const",
        scaling_init=2.0,
        return_quant_tensor=True,
        **settings,
    )


def chain(*layers: nn.Module) -> nn.Sequential:
    """A network in eval mode."""
    return nn.Sequential(*layers).eval()


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def value(x: Any) -> Tensor:
    return x.value if isinstance(x, IntQuantTensor) else x


def gradients_of(
    model: Any, x: Tensor, upstream: Tensor, outputs: Callable[[Any], Tensor] = value
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The output, the gradient of the input, and those of the parameters."""
    x = x.clone().requires_grad_()
    parameters = dict(model.named_parameters())
    result = outputs(model(x))
    wanted = [x, *parameters.values()]
    grads = torch.autograd.grad(result, wanted, upstream.expand_as(result), allow_unused=True)
    named = {n: g for n, g in zip(parameters, grads[1:], strict=True) if g is not None}
    return result.detach(), grads[0], named


_LEARNED: dict[str, Any] = {"collect_stats_steps": 1, "return_quant_tensor": True}


LEARNED: dict[str, Callable[[], nn.Module]] = {
    "scale": lambda: QuantIdentity(bit_width=4, **_LEARNED),
    "scale of relu": lambda: QuantReLU(bit_width=4, **_LEARNED),
    "bit width": lambda: QuantReLU(bit_width=4, bit_width_impl_type="parameter", **_LEARNED),
    "zero point": lambda: QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, **_LEARNED),
    "hard tanh": lambda: QuantHardTanh(
        bit_width=4, min_val=-1.0, max_val=1.0, return_quant_tensor=True
    ),
}


def learned(kind: str, calibrated: Calibrated) -> nn.Module:
    """An activation whose statistics are collected, so that its scale is a parameter."""
    activation = LEARNED[kind]()
    for _ in range(3):
        calibrated(activation, data(30, 40))
    return activation


RATES: dict[str, dict[str, Any]] = {
    "elements": {"probability": 20.0},
    "bits": {"probability": 20.0, "rate_unit": "bit"},
    "so many": {"num_faults": 9},
    "so many bits": {"num_faults": 30, "rate_unit": "bit"},
    "units": {"probability": 20.0, "hw_mask": True, "frequency_value": 16},
}


BIT_MODELS: list[dict[str, Any]] = [
    {"injection_type": "bit_flip"},
    {"injection_type": "stuck_at_0"},
    {"injection_type": "stuck_at_1"},
    {"injection_type": "bit_flip", "bit": 0},
    {"injection_type": "stuck_at_0", "bit": 0},
    {"injection_type": "stuck_at_1", "bit": 0},
    {"injection_type": "burst", "burst_length": 1},
    {"injection_type": "random"},
]


EVERY_KIND = [
    (model, rate)
    for model, rate in itertools.product(BIT_MODELS, RATES.values())
    # What counts bits draws each of them by itself.
    if "rate_unit" not in rate
    or ("bit" not in model and model["injection_type"] not in ("burst", "random"))
]
