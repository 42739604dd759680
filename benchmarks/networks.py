"""The networks that several benchmarks strike, and what they measure in one."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxfault
from fxfault.functional import begin_forward, fault_inject
from fxfault.models import build_model

BATCH = 64


def settled(
    name: str, bits: int, shape: tuple[int, int, int], samples: int = BATCH
) -> tuple[nn.Module, Tensor]:
    """Build a clean network in eval mode, with scales and normalisation from one random batch.

    Args:
        name: a built-in network.
        bits: bit width of weights and activations.
        shape: channels, height and width of an image.
        samples: number of random images to return.

    Returns:
        The network, and images of shape (samples, *shape).
    """
    torch.manual_seed(0)
    model = build_model(
        name,
        num_classes=10,
        in_channels=shape[0],
        image_size=shape[1:],
        weight_bit_width=bits,
        act_bit_width=bits,
    )
    images = torch.randn(samples, *shape)
    with torch.no_grad():
        model(images[:BATCH])
    return model.eval(), images


def quant_cnv(samples: int = BATCH) -> tuple[nn.Module, Tensor]:
    """The CNV network with 2-bit weights and activations, and images of 32 x 32."""
    return settled("quant_cnv", 2, (3, 32, 32), samples)


def quant_digits() -> tuple[nn.Module, Tensor]:
    """The small network for digits with 4 bits, and a batch of images of 8 x 8."""
    return settled("quant_digits", 4, (1, 8, 8))


def transformed(model: nn.Module, percent: float, **settings: Any) -> Any:
    """Insert sites that strike in evaluation, with a probability in percent."""
    config = {"enabled": True, "probability": percent, "apply_during": "eval", "seed": 0}
    return fxfault.transform(model, {**config, **settings})


def outputs_of(model: nn.Module, images: Tensor, *kinds: type[nn.Module]) -> list[Any]:
    """Run a model once and collect the outputs of all layers of some kinds."""
    seen: list[Any] = []
    hooks = hook(model, lambda layer, args, output: seen.append(output), *kinds)
    with torch.no_grad():
        model(images)
    for handle in hooks:
        handle.remove()
    return seen


def hook(model: nn.Module, function: Callable[..., None], *kinds: type[nn.Module]) -> list[Any]:
    """Set a forward hook on all layers of some kinds."""
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    return [layer.register_forward_hook(function) for layer in layers]


class Stopwatch:
    """Adds up the time between starts and stops; both methods also serve as hooks."""

    def __init__(self) -> None:
        self._started = self._seconds = 0.0

    def start(self, *_: Any) -> None:
        """Start, or continue."""
        self._started = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """Stop, and add the time since the start."""
        self._seconds += time.perf_counter() - self._started

    def read(self) -> float:
        """Return the seconds since the last call, and reset them."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def time_calls(self, net: Any, functions: Any = (begin_forward, fault_inject)) -> None:
        """Time the calls that fxfault inserted into a network, which is changed."""
        calls = {function: self._timed(function) for function in functions}
        for node in net.graph.nodes:
            node.target = calls.get(node.target, node.target)
        net.recompile()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            self.start()
            result = function(*args)
            self.stop()
            return result

        return call
