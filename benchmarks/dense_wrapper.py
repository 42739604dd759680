"""Fault injection as the specification's wrapper does it, for comparison only.

A module replaces each target layer. It calls the layer, draws a mask as large as its output,
converts the whole output to integers and back, and takes the faulty values under the mask. The
source is the specification's `injection_wrapper.rst` and `fault_injection.md`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

TARGETS = frozenset({"QuantIdentity", "QuantReLU", "QuantHardTanh"})


def random_faults(codes: Tensor, mask: Tensor, bit_width: int, signed: bool) -> Tensor:
    """`((code + random - min) % size) + min` where the mask is set, for a whole tensor."""
    low = -(2 ** (bit_width - 1)) if signed else 0
    size = 2**bit_width
    random = torch.randint(0, size, codes.shape, device=codes.device)
    return torch.where(mask, ((codes + random - low) % size) + low, codes)


class FaultInjectionFunction(torch.autograd.Function):
    """Forward: `torch.where(mask, faulty_values, x)`; backward: straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, faulty_values: Tensor, mask: Tensor) -> Tensor:
        """Take the faulty values where the mask is set."""
        return torch.where(mask, faulty_values, x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Pass all gradients."""
        return grad_output, None, None


class QuantFaultInjectionLayer(nn.Module):
    """Injects faults into the QuantTensor that it receives."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Any) -> Any:
        """Return the QuantTensor with faults."""
        if not isinstance(x, IntQuantTensor):
            return x
        value = x.value
        mask = torch.rand(value.shape, device=value.device) < self.probability / 100.0
        codes = x.int().to(torch.int64)
        faulty = random_faults(codes, mask, int(x.bit_width.item()), x.signed)
        faulty_values = (faulty.to(value.dtype) - x.zero_point) * x.scale
        struck = FaultInjectionFunction.apply(value, faulty_values, mask)
        return IntQuantTensor(struck, x.scale, x.zero_point, x.bit_width, x.signed, x.training)


class InjectionWrapper(nn.Module):
    """Runs a layer and then an injection layer on its output."""

    def __init__(self, wrapped_layer: nn.Module, injection_layer: QuantFaultInjectionLayer) -> None:
        super().__init__()
        self.wrapped_layer = wrapped_layer
        self.injection_layer = injection_layer

    def forward(self, x: Any) -> Any:
        """Return the layer's output with faults."""
        return self.injection_layer(self.wrapped_layer(x))


def inject(model: nn.Module, probability: float) -> nn.Module:
    """Return a copy of a model with every target wrapped.

    Args:
        model: the original, which does not change.
        probability: chance that an element is hit, in percent.
    """
    wrapped = copy.deepcopy(model)
    targets = [
        (parent, name, child)
        for parent in wrapped.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in TARGETS
    ]
    for parent, name, child in targets:
        layer = QuantFaultInjectionLayer(probability)
        setattr(parent, name, InjectionWrapper(child, layer).train(child.training))
    return wrapped
