"""The tools that are compared, each used as its own documentation says.

MRFI and PyTorchFI strike the float twin of quant_cnv.

In each forward, MRFI draws new positions, with a Poisson number of them, and sets them to random
values: `RandomPositionByRate` with `UniformRandom`. For integer faults it first quantises every
activation by its own dynamic range; this has its own row.

PyTorchFI strikes declared neurons. They are drawn here, at the same rate, before the timing starts.
PyTorchFI strikes outputs of layers with weights, so the outputs of convolutions and linear layers
stand for the activations. Only its forward counts. The time to declare the neurons is printed
separately, although other faults mean declaring again.
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxfault
from benchmarks import dense_wrapper
from benchmarks.measuring import Run
from benchmarks.networks import Stopwatch, hook, outputs_of, transformed
from fxfault.models.cnv import CONVOLUTIONS, HIDDEN_FEATURES

CLASSES = 10


@dataclass(frozen=True)
class Struck:
    """A network with faults.

    Attributes:
        run: one forward.
        watch: stopwatch of the time in the inserted code.
        elements: number of elements that faults can strike.
        hits: mean number of elements that they strike.
        before: the preparation of a forward with other faults, which is not in `run`, or None.
        version: version of the tool; None for fxfault and the wrapper.
    """

    run: Run
    watch: Stopwatch
    elements: int
    hits: float
    before: Run | None = None
    version: str | None = None


@dataclass(frozen=True)
class Tool:
    """Another tool.

    Attributes:
        name: name in the table.
        package: package to install and import.
        strike: returns the float twin with faults, for images and a rate in percent.
        turns_fewer: divisor of the number of turns: a slow tool gets fewer.
    """

    name: str
    package: str
    strike: Callable[[nn.Module, Tensor, float], Struck]
    turns_fewer: int = 1


def why_missing(tool: Tool) -> str | None:
    """Return why a tool cannot be measured; None if it can."""
    return why_no_tool(tool.package)


def why_no_tool(package: str) -> str | None:
    """Return why a package cannot be used; None if it can."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            return f"not installed (pip install {package})"
        return f"{package} needs {error.name}, which is not installed"
    return None


def float_twin(images: Tensor) -> nn.Module:
    """Build a float network with the topology of quant_cnv, in eval mode, normalised to images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    width = images.shape[1]
    for channels, has_pooling in CONVOLUTIONS:
        layers += [nn.Conv2d(width, channels, 3, bias=False), nn.BatchNorm2d(channels)]
        layers.append(nn.Hardtanh())
        if has_pooling:
            layers.append(nn.MaxPool2d(2))
        width = channels
    layers.append(nn.Flatten())
    for features in HIDDEN_FEATURES:
        layers += [nn.Linear(width, features, bias=False), nn.BatchNorm1d(features)]
        layers.append(nn.Hardtanh())
        width = features
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    with torch.no_grad():
        model(images)
    return model.eval()


# -- quant_cnv ---------------------------------------------------------------------------


def strike_by_fxfault(model: nn.Module, images: Tensor, percent: float) -> Struck:
    """Strike the frozen network, as `fxfault eval` runs it."""
    net: Any = transformed(model, percent)
    with torch.no_grad():
        net(images)
    elements = len(images) * sum(site.elements for site in net.faults)
    watch, frozen = Stopwatch(), fxfault.freeze(net)
    watch.time_calls(frozen)
    run = functools.partial(frozen, images)
    return Struck(run, watch, elements, elements * percent / 100)


def strike_by_wrapper(model: nn.Module, images: Tensor, percent: float, elements: int) -> Struck:
    """Strike the same activations with the wrapper written to the specification."""
    net, watch = dense_wrapper.inject(model, percent), Stopwatch()
    for module in net.modules():
        if isinstance(module, dense_wrapper.QuantFaultInjectionLayer):
            module.register_forward_pre_hook(watch.start)
            module.register_forward_hook(watch.stop)
    run = functools.partial(net, images)
    return Struck(run, watch, elements, elements * percent / 100)


# -- MRFI --------------------------------------------------------------------------------


def strike_by_mrfi(twin: nn.Module, images: Tensor, percent: float) -> Struck:
    """Set random positions of the activations to random values."""
    values = {"method": "UniformRandom", "low": -1, "high": 1}
    return _by_mrfi(twin, images, percent, {"error_mode": values})


def strike_by_quantising_mrfi(twin: nn.Module, images: Tensor, percent: float) -> Struck:
    """Quantise the activations to 2 bits; set random positions to random integers."""
    quantisation = {"method": "SymmericQuantization", "dynamic_range": "auto", "bit_width": 2}
    integers = {"method": "IntRandomBit", "bit_width": 2, "signed": True}
    return _by_mrfi(twin, images, percent, {"quantization": quantisation, "error_mode": integers})


def _by_mrfi(twin: nn.Module, images: Tensor, percent: float, what: dict[str, Any]) -> Struck:
    mrfi: Any = importlib.import_module("mrfi")
    rate = {"method": "RandomPositionByRate", "poisson": True, "rate": percent / 100}
    place = {"type": "activation_out", "enabled": True, "module_type": ["Hardtanh"]}
    config = mrfi.EasyConfig({"faultinject": [{**place, "selector": rate, **what}]})
    watch, twin = Stopwatch(), copy.deepcopy(twin)
    elements = sum(output.numel() for output in outputs_of(twin, images, nn.Hardtanh))
    hook(twin, watch.start, nn.Hardtanh)  # Hooks run in the order in which they were set.
    net = mrfi.MRFI(twin, config)
    hook(twin, watch.stop, nn.Hardtanh)
    version = metadata.version("mrfi")
    run = functools.partial(net, images)
    return Struck(run, watch, elements, elements * percent / 100, version=version)


# -- PyTorchFI ---------------------------------------------------------------------------


def strike_by_pytorchfi(twin: nn.Module, images: Tensor, percent: float) -> Struck:
    """Set declared neurons to drawn values."""
    # Without a handler, PyTorchFI would set a format for all log messages of the program.
    logging.getLogger().addHandler(logging.NullHandler())
    core: Any = importlib.import_module("pytorchfi.core")
    batch, *shape = images.shape
    kinds: list[type[nn.Module]] = [nn.Conv2d, nn.Linear]
    watch, twin = Stopwatch(), copy.deepcopy(twin)
    # Hooks run in the order in which they were set. A copy of a method would copy the watch.
    hook(twin, lambda *_: watch.start(), *kinds)
    injector = core.fault_injection(twin, batch, input_shape=shape, layer_types=kinds)
    shapes = [(batch, *output[1:]) for output in injector.get_output_size()]
    neurons = _draw_neurons(shapes, percent / 100)
    net = injector.declare_neuron_fi(**neurons)
    hook(net, watch.stop, *kinds)

    def run() -> Any:
        injector.reset_current_layer()  # It counts the layers that it passes.
        return net(images)

    return Struck(
        run,
        watch,
        elements=sum(int(np.prod(shape)) for shape in shapes),
        hits=len(neurons["value"]),
        before=lambda: injector.declare_neuron_fi(**neurons),
        version=metadata.version("pytorchfi"),
    )


def _draw_neurons(shapes: list[tuple[int, ...]], rate: float) -> dict[str, list[Any]]:
    """Draw neurons of the layers' outputs and values for them, in PyTorchFI's format."""
    random = np.random.default_rng(0)
    names = ("batch", "dim1", "dim2", "dim3")
    neurons: dict[str, list[Any]] = {name: [] for name in (*names, "layer_num", "value")}
    for layer, shape in enumerate(shapes):
        elements = int(np.prod(shape))
        count = int(random.binomial(elements, rate))
        places = np.unravel_index(random.choice(elements, count, replace=False), shape)
        columns = [place.tolist() for place in places]
        columns += [[None] * count] * (len(names) - len(shape))
        for name, column in zip(names, columns, strict=True):
            neurons[name] += column
        neurons["layer_num"] += [layer] * count
        neurons["value"] += random.uniform(-1, 1, count).tolist()
    return neurons


TOOLS = (
    Tool("MRFI", "mrfi", strike_by_mrfi),
    Tool("MRFI, quantising", "mrfi", strike_by_quantising_mrfi, turns_fewer=2),
    Tool("PyTorchFI", "pytorchfi", strike_by_pytorchfi, turns_fewer=8),
)


@dataclass(frozen=True)
class Flip:
    """One bit of one weight of a float network.

    Attributes:
        layer: path of the layer.
        number: number of the layer among those with weights.
        index: position of the weight in its tensor.
        bit: number of the bit, 0 the lowest.
        value: the weight with this bit flipped.
    """

    layer: str
    number: int
    index: tuple[int, ...]
    bit: int
    value: float


def flips_of_weights(twin: nn.Module, count: int) -> list[Flip]:
    """Draw bits of the weights of convolutions and linear layers, each weight once."""
    rng = np.random.default_rng(0)
    kinds = (nn.Conv2d, nn.Linear)
    layers = [(path, layer) for path, layer in twin.named_modules() if isinstance(layer, kinds)]
    flips: dict[tuple[str, tuple[int, ...]], Flip] = {}
    while len(flips) < count:
        number = int(rng.integers(len(layers)))
        path, layer = layers[number]
        index = tuple(int(rng.integers(size)) for size in layer.weight.shape)
        bit = int(rng.integers(30))  # A flip of the highest exponent bit ends in infinities.
        weight = np.float32(layer.weight.detach()[index])
        value = (weight.view(np.uint32) ^ np.uint32(1 << bit)).view(np.float32)
        flips[path, index] = Flip(path, number, index, bit, float(value))
    return list(flips.values())


def declare_weights(twin: nn.Module, images: Tensor, flips: list[Flip]) -> nn.Module:
    """Let PyTorchFI set the struck weights to their values."""
    logging.getLogger().addHandler(logging.NullHandler())
    core: Any = importlib.import_module("pytorchfi.core")
    batch, *shape = images.shape
    kinds: list[type[nn.Module]] = [nn.Conv2d, nn.Linear]
    injector = core.fault_injection(twin, batch, input_shape=shape, layer_types=kinds)
    places = [(*flip.index, *[None] * (4 - len(flip.index))) for flip in flips]
    names = ("k", "dim1", "dim2", "dim3")
    declared: nn.Module = injector.declare_weight_fi(
        layer_num=[flip.number for flip in flips],
        value=[flip.value for flip in flips],
        **{name: [place[n] for place in places] for n, name in enumerate(names)},
    )
    return declared
