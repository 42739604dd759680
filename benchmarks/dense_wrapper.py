"""Fault injection as the specification's wrapper does it, for comparison only.

Each target layer is replaced by a module that calls it, draws a mask as large as its
output, converts the whole output to integers and back, and takes the faulty values where
the mask is set. Written to `injection_wrapper.rst` and `fault_injection.md`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

TARGETS = frozenset({"QuantIdentity", "QuantReLU", "QuantHardTanh"})


class RandomStrategy:
    """`((original_int + random_int - min_val) % range_size) + min_val` where the mask is set."""

    def inject(
        self, int_tensor: Tensor, mask: Tensor, bit_width: int, signed: bool, device: torch.device
    ) -> Tensor:
        """Apply the strategy to a whole tensor of integers."""
        low = -(2 ** (bit_width - 1)) if signed else 0
        size = 2**bit_width
        random_int = torch.randint(0, size, int_tensor.shape, device=device)
        faulty = ((int_tensor + random_int - low) % size) + low
        return torch.where(mask, faulty, int_tensor)


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

    def __init__(self, layer_id: int, probability: float, strategy: RandomStrategy) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.probability = probability
        self.strategy = strategy
        self.injection_enabled = True

    def forward(self, x: Any) -> Any:
        """Return the QuantTensor with faults."""
        if not self.injection_enabled or not isinstance(x, IntQuantTensor):
            return x
        value = x.value
        mask = torch.rand(value.shape, device=value.device) < self.probability / 100.0
        int_tensor = x.int().to(torch.int64)
        bit_width = int(x.bit_width.item())
        faulty_int = self.strategy.inject(int_tensor, mask, bit_width, x.signed, value.device)
        faulty_values = (faulty_int.to(value.dtype) - x.zero_point) * x.scale
        struck = FaultInjectionFunction.apply(value, faulty_values, mask)
        return IntQuantTensor(struck, x.scale, x.zero_point, x.bit_width, x.signed, x.training)


class InjectionWrapper(nn.Module):
    """Runs a layer and then an injection layer on what it returns."""

    def __init__(self, wrapped_layer: nn.Module, injection_layer: QuantFaultInjectionLayer) -> None:
        super().__init__()
        self.wrapped_layer = wrapped_layer
        self.injection_layer = injection_layer

    def forward(self, x: Any) -> Any:
        """Return the layer's output with faults."""
        return self.injection_layer(self.wrapped_layer(x))


def inject(model: nn.Module, probability: float) -> nn.Module:
    """A copy of a model with every target wrapped.

    Args:
        model: stays as it is.
        probability: in percent, for each element.
    """
    wrapped = copy.deepcopy(model)
    targets = [
        (parent, name, child)
        for parent in wrapped.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in TARGETS
    ]
    for layer_id, (parent, name, child) in enumerate(targets):
        layer = QuantFaultInjectionLayer(layer_id, probability, RandomStrategy())
        setattr(parent, name, InjectionWrapper(child, layer).train(child.training))
    return wrapped
