"""The tools that are compared, each as its own documentation uses it.

MRFI and PyTorchFI strike the float twin of quant_cnv.

MRFI draws as many positions as a Poisson number says, anew in each forward, and sets them to
random values: `RandomPositionByRate` with `UniformRandom`. What it does for integer faults, which
is to quantise every activation by its own dynamic range first, has a row of its own.

PyTorchFI strikes the neurons that were declared, which are drawn here, at the same rate, before
any time is taken; it strikes outputs of layers that have weights, so those of convolutions and
linear layers stand for the activations. Its forward alone counts; what declaring them takes is
printed beside it, though other faults mean declaring again.
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import time
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
from benchmarks.overhead import transformed
from fxfault.functional import begin_forward, fault_inject
from fxfault.models.cnv import CONVOLUTIONS, HIDDEN_FEATURES

CLASSES = 10


class Stopwatch:
    """Adds up the time between starts and stops."""

    def __init__(self) -> None:
        self._started = self._seconds = 0.0

    def start(self, *_: Any) -> None:
        """Go on; also a hook."""
        self._started = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """Rest; also a hook."""
        self._seconds += time.perf_counter() - self._started

    def read(self) -> float:
        """The seconds since it was last read."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are timed."""

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            self.start()
            result = function(*args)
            self.stop()
            return result

        return call


@dataclass(frozen=True)
class Struck:
    """A network with faults.

    Attributes:
        run: one forward.
        watch: of the time in what was inserted into it.
        elements: that faults can strike in it.
        hits: how many they strike, on average.
        before: what must run before a forward with other faults and is not in `run`, or None.
        version: of the tool, where it is not fxfault's.
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
        name: for the table.
        package: what is installed and imported.
        strike: gives the float twin with faults, for images and a rate in percent.
        turns_fewer: how many times fewer turns it gets: the slower, the fewer.
    """

    name: str
    package: str
    strike: Callable[[nn.Module, Tensor, float], Struck]
    turns_fewer: int = 1


def why_missing(tool: Tool) -> str | None:
    """Why a tool cannot be measured; None if it can."""
    try:
        importlib.import_module(tool.package)
    except ModuleNotFoundError as error:
        if error.name == tool.package:
            return f"not installed (pip install {tool.package})"
        return f"{tool.package} needs {error.name}, which is not installed"
    return None


def float_twin(images: Tensor) -> nn.Module:
    """An ordinary network of the topology of quant_cnv, in eval mode, normalised to the images."""
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
    """Faults in the frozen network, as `fxfault-eval` runs it."""
    net: Any = transformed(model, percent)
    with torch.no_grad():
        net(images)
    elements = len(images) * sum(site.elements for site in net.faults)
    watch = Stopwatch()
    calls = {function: watch.timed(function) for function in (begin_forward, fault_inject)}
    frozen: Any = fxfault.freeze(net)
    for node in frozen.graph.nodes:
        node.target = calls.get(node.target, node.target)
    frozen.recompile()
    return Struck(lambda: frozen(images), watch, elements, elements * percent / 100)


def strike_by_wrapper(model: nn.Module, images: Tensor, percent: float, elements: int) -> Struck:
    """The wrapper written to the specification, at the same activations."""
    net, watch = dense_wrapper.inject(model, percent), Stopwatch()
    for module in net.modules():
        if isinstance(module, dense_wrapper.QuantFaultInjectionLayer):
            module.register_forward_pre_hook(watch.start)
            module.register_forward_hook(watch.stop)
    return Struck(lambda: net(images), watch, elements, elements * percent / 100)


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
    elements = _elements(twin, images, nn.Hardtanh)
    _hook(twin, watch.start, nn.Hardtanh)  # Hooks run in the order in which they were set.
    net = mrfi.MRFI(twin, config)
    _hook(twin, watch.stop, nn.Hardtanh)
    version = metadata.version("mrfi")
    return Struck(lambda: net(images), watch, elements, elements * percent / 100, version=version)


def _hook(model: nn.Module, hook: Callable[..., None], *kinds: type[nn.Module]) -> list[Any]:
    """Set a hook on the outputs of all layers of some kinds."""
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    return [layer.register_forward_hook(hook) for layer in layers]


def _elements(model: nn.Module, images: Tensor, *kinds: type[nn.Module]) -> int:
    """Elements of the outputs of all layers of some kinds."""
    sizes: list[int] = []
    hooks = _hook(model, lambda layer, args, output: sizes.append(output.numel()), *kinds)
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


# -- PyTorchFI ---------------------------------------------------------------------------


def strike_by_pytorchfi(twin: nn.Module, images: Tensor, percent: float) -> Struck:
    """Set declared neurons to values that were drawn."""
    # It would set a format for the whole program's messages, if nobody had set one.
    logging.getLogger().addHandler(logging.NullHandler())
    core: Any = importlib.import_module("pytorchfi.core")
    batch, *shape = images.shape
    kinds: list[type[nn.Module]] = [nn.Conv2d, nn.Linear]
    watch, twin = Stopwatch(), copy.deepcopy(twin)
    # Hooks run in the order in which they were set. A copy of a method would copy the watch.
    _hook(twin, lambda *_: watch.start(), *kinds)
    injector = core.fault_injection(twin, batch, input_shape=shape, layer_types=kinds)
    shapes = [(batch, *output[1:]) for output in injector.get_output_size()]
    neurons = _draw_neurons(shapes, percent / 100)
    net = injector.declare_neuron_fi(**neurons)
    _hook(net, watch.stop, *kinds)

    def run() -> Any:
        injector.reset_current_layer()  # It counts the layers that it comes by.
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
    """Draw neurons of layers' outputs and values for them, as PyTorchFI takes them."""
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
