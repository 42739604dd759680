"""Trials of a study by fxfault, by plain hooks, by MRFI and by PyTorchFI.

A trial evaluates all data while faults strike the output of one layer. Each contender has the same
network in memory, the same batches and the same threads. It draws new faults for each trial, as
many on average as the rate asks for, and counts them.

**fxfault** runs a trial as a study does (`fxfault.evaluation.trials`), with its defaults: the
frozen network, incrementally. The fault-free run that it starts from happens once, before all
trials.

**Plain hooks** are what a user writes without a tool: a forward hook on the layer and a loop over
the batches. The hook draws gaps between hits (one NumPy call; the cost follows the hits, not the
elements), reads these values only, flips one bit of each in its code or its float word, and writes
them in place. For a quantised layer the code is the value over the scale that the layer's
QuantTensor has. The network is as Brevitas built it, in eval mode without gradients.

**MRFI** sets hooks by its configuration: `RandomPositionByRate` (a Poisson number of positions)
with `FloatRandomBitFlip`. A wrapped selector counts the positions.

**PyTorchFI** sets neurons to values. Both are drawn as for plain hooks, and declared for each batch
anew, which copies the network: that is its way to other faults.

MRFI and PyTorchFI do not support Brevitas, so they strike a float network
(`benchmarks.peers_tools`), on which fxfault and plain hooks also run.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import fxfault
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.evaluation import IncrementalRunner
from fxfault.evaluation.trials import Trials

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """What a trial counted.

    Attributes:
        faults: number of hit elements.
        changed: number of samples with another prediction, or none, under faults.
    """

    faults: int
    changed: int


class Contender(Protocol):
    """Runs trials of one network on one set of data."""

    version: str
    """Version of the tool; empty if it has none."""

    def aim(self, site: int, rate: float) -> None:
        """Prepare trials that strike one layer; this is not timed.

        Args:
            site: number of the struck layer.
            rate: probability that an element is hit, 0 to 1.
        """

    def trial(self, number: int) -> Outcome:
        """Run a trial with faults of its own."""

    def release(self) -> None:
        """Undo `aim`."""


class ByFxfault:
    """Trials of fxfault, incremental and frozen.

    Attributes:
        names: names of the sites.
        why_full: why a trial does more than faults make necessary; None if it does not.
    """

    version = metadata.version("fxfault")

    def __init__(self, model: nn.Module, data: Batches, **settings: Any) -> None:
        self._settings = {"enabled": True, "apply_during": "eval", "seed": 0, **settings}
        self._settings["injection_type"] = "bit_flip"
        faulty = fxfault.freeze(fxfault.transform(model, self._settings))
        runner = IncrementalRunner(faulty, data)
        self.trials = Trials(runner)
        self.names = self.trials.faults.names
        self.why_full = runner.why_full

    def aim(self, site: int, rate: float) -> None:
        """See `Contender.aim`."""
        config = FaultInjectionConfig(**self._settings, probability=100 * rate)
        self.trials.set(config, [self.names[site]])

    def trial(self, number: int) -> Outcome:
        """See `Contender.trial`."""
        row = self.trials.run("", number)
        return Outcome(row.faults, row.sdc + row.due)

    def release(self) -> None:
        """See `Contender.release`."""


class Looping:
    """The evaluation loop of all other contenders."""

    version = ""

    def __init__(self, model: nn.Module, data: Batches) -> None:
        self.data, self.faults = data, 0
        self._golden = [self._predicted(model(images)) for images, _ in data]

    def trial(self, number: int) -> Outcome:
        """See `Contender.trial`."""
        self.faults, changed = 0, 0
        self.begin(number)
        for (images, _), golden in zip(self.data, self._golden, strict=True):
            changed += int((self._predicted(self.forward(images)) != golden).sum())
        return Outcome(self.faults, changed)

    def aim(self, site: int, rate: float) -> None:
        """See `Contender.aim`."""
        raise NotImplementedError

    def begin(self, number: int) -> None:
        """Seed the random numbers of a trial."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Any:
        """Run a batch under faults."""
        raise NotImplementedError

    def release(self) -> None:
        """See `Contender.release`."""

    @staticmethod
    def _predicted(output: Any) -> Tensor:
        scores: Tensor = getattr(output, "value", output)
        # As in fxfault: no prediction if scores are not finite.
        best = scores.max(1)
        return best.indices.masked_fill(~best.values.isfinite(), -1)


def hits(random: np.random.Generator, elements: int, rate: float) -> Tensor:
    """Draw the elements that are hit, each with probability `rate`, by the gaps between them.

    >>> hits(np.random.default_rng(0), 5, 1.0)
    tensor([0, 1, 2, 3, 4])
    """
    expected = elements * rate
    found, last = [], -1
    while last < elements:
        gaps = random.geometric(rate, int(expected + 5 * expected**0.5 + 10))
        found.append(last + np.cumsum(gaps))
        last = int(found[-1][-1])
    places = np.concatenate(found)
    return torch.from_numpy(places[: np.searchsorted(places, elements)])


def flip_codes(output: Any, places: Tensor, random: np.random.Generator) -> None:
    """Flip one random bit of the codes of a QuantTensor at some places."""
    values, width = output.value.view(-1), int(output.bit_width)
    codes = (values[places] / output.scale).round().int()
    flipped = codes ^ _one_bit(len(places), width, random)
    if output.signed:
        half = 1 << (width - 1)
        flipped = ((flipped + half) & (2 * half - 1)) - half
    values[places] = flipped * output.scale


def flip_floats(output: Tensor, places: Tensor, random: np.random.Generator) -> None:
    """Flip one random bit of float32 values at some places."""
    words = output.view(-1).view(torch.int32)
    words[places] ^= _one_bit(len(places), 32, random)


def _one_bit(count: int, width: int, random: np.random.Generator) -> Tensor:
    bits = np.left_shift(1, random.integers(width, size=count)).astype(np.uint32)
    return torch.from_numpy(bits.view(np.int32))


class ByHooks(Looping):
    """Trials of a hook and a loop."""

    def __init__(self, model: nn.Module, data: Batches, layers: Sequence[nn.Module]) -> None:
        super().__init__(model, data)
        self.forward = model  # type: ignore[method-assign]
        self._layers, self._random = layers, np.random.default_rng(0)
        self._handles: list[Any] = []

    def begin(self, number: int) -> None:
        """See `Looping.begin`."""
        self._random = np.random.default_rng(number)

    def aim(self, site: int, rate: float) -> None:
        """See `Contender.aim`."""

        def strike(layer: nn.Module, args: Any, output: Any) -> None:
            is_quantised = hasattr(output, "scale")
            elements = (output.value if is_quantised else output).numel()
            places = hits(self._random, elements, rate)
            self.faults += len(places)
            if len(places):
                (flip_codes if is_quantised else flip_floats)(output, places, self._random)

        self._handles.append(self._layers[site].register_forward_hook(strike))

    def release(self) -> None:
        """See `Contender.release`."""
        while self._handles:
            self._handles.pop().remove()


class ByMrfi(Looping):
    """Trials of MRFI."""

    def __init__(self, model: nn.Module, data: Batches, paths: Sequence[str]) -> None:
        super().__init__(model, data)
        self.version = metadata.version("mrfi")
        self._mrfi: Any = importlib.import_module("mrfi")
        select = importlib.import_module("mrfi.selector").RandomPositionByRate

        def counting(shape: Any, **options: Any) -> Any:
            places = select(shape, **options)
            self.faults += len(places)
            return places

        self._mrfi.add_function("CountedByRate", counting)
        self._model, self._paths = model, paths

    def aim(self, site: int, rate: float) -> None:
        """See `Contender.aim`."""
        entry = {
            "type": "activation_out",
            "enabled": True,
            "module_fullname": [self._paths[site]],
            "selector": {"method": "CountedByRate", "rate": rate, "poisson": True},
            "error_mode": {"method": "FloatRandomBitFlip"},
        }
        config = self._mrfi.EasyConfig({"faultinject": [entry]})
        # It never removes its hooks.
        self.forward = self._mrfi.MRFI(copy.deepcopy(self._model), config)  # type: ignore[method-assign]

    def begin(self, number: int) -> None:
        """See `Looping.begin`; MRFI draws from torch's and NumPy's global generators."""
        torch.manual_seed(number)
        np.random.seed(number)


class ByPytorchfi(Looping):
    """Trials of PyTorchFI."""

    def __init__(
        self, model: nn.Module, data: Batches, kinds: Sequence[type[nn.Module]], layers: int
    ) -> None:
        super().__init__(model, data)
        self.version = metadata.version("pytorchfi")
        # Without a handler, PyTorchFI would set a format for all log messages of the program.
        logging.getLogger().addHandler(logging.NullHandler())
        core: Any = importlib.import_module("pytorchfi.core")
        (images, _), *_ = data
        # It declares faults for batches of one size.
        self._batch, shape = len(images), list(images.shape[1:])
        with torch.no_grad():
            self._injector = core.fault_injection(
                model, self._batch, input_shape=shape, layer_types=list(kinds)
            )
        self._shapes = [(self._batch, *size[1:]) for size in self._injector.get_output_size()]
        assert len(self._shapes) == layers
        self._site, self._rate = 0, 0.0
        self._random = np.random.default_rng(0)

    def aim(self, site: int, rate: float) -> None:
        """See `Contender.aim`."""
        self._site, self._rate = site, rate

    def begin(self, number: int) -> None:
        """See `Looping.begin`."""
        self._random = np.random.default_rng(number)

    def forward(self, images: Tensor) -> Any:
        """See `Looping.forward`."""
        shape = self._shapes[self._site]
        places = hits(self._random, int(np.prod(shape)), self._rate).numpy()
        count = len(places)
        self.faults += count
        columns = [column.tolist() for column in np.unravel_index(places, shape)]
        columns += [[None] * count] * (4 - len(shape))
        declared = self._injector.declare_neuron_fi(
            **dict(zip(("batch", "dim1", "dim2", "dim3"), columns, strict=True)),
            layer_num=[self._site] * count,
            value=self._random.uniform(-1, 1, count).tolist(),
        )
        self._injector.reset_current_layer()  # It counts the layers that it passes.
        return declared(images)
