"""A forward of a transformed model as a CUDA graph, with new faults in each replay.

A CUDA graph repeats kernels with what they were launched with, so that a number of the host that
went into a forward stays what it was. What faults follow from (keys of random numbers and
the numbers of samples) is therefore read from tensors, which are filled anew before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxfault.errors import ConfigError, SiteError
from fxfault.frozen_layers import Watch
from fxfault.predictions import modules_of
from fxfault.random_numbers import known_key, signed
from fxfault.site import FaultSite
from fxfault.sites import faults_of

# Forwards before a graph is captured, as torch asks for: libraries set themselves up.
_WARM_UP = 3


class CapturedForward:
    """Runs the forwards of a model as a CUDA graph, where they are like the captured one.

    Calls give what calls of the model give, with the same faults, and move its clock alike. A
    forward with inputs of other shapes or types runs without the graph. Where a setting that the
    graph has built in was changed (weights, probability, fault model, which sites are armed), it
    is captured again; trial, seed and sample numbers are not built in.

    Attributes:
        model: that is run.
        captures: how often a graph was captured.
    """

    def __init__(self, model: nn.Module, *inputs: Tensor) -> None:
        """Capture at the first call, not now.

        Args:
            model: transformed, in eval mode, on a CUDA device.
            inputs: a batch, as the model is called with it: tensors on the device.

        Raises:
            ConfigError: the model is in training mode, or not on a CUDA device.
            SiteError: the model has no fault sites.
        """
        self.model, self.captures = model, 0
        self._faults = faults_of(model)
        if model.training:
            raise ConfigError("capture: the model is in training mode; call model.eval() first")
        if not inputs or not all(_is_on_device(x) for x in inputs):
            got = ", ".join(str(getattr(x, "device", type(x).__name__)) for x in inputs)
            raise ConfigError(f"capture: got inputs on {got or 'nothing'}, allowed: CUDA tensors")
        self._inputs = tuple(x.detach().clone() for x in inputs)
        batch, device = len(inputs[0]), inputs[0].device
        self._numbers = torch.zeros(batch, dtype=torch.int64, device=device)
        self._keys = torch.zeros(len(self._faults), 1, dtype=torch.int64, device=device)
        self._built_in: Any = None
        self._stream: Any = None
        self._outputs: Any = None
        self._weights = _watch(model)
        self._replay: Callable[[], None]

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        """Give the outputs of one forward, as tensors of their own.

        Raises:
            SiteError: faults are armed that a graph cannot hold: `num_faults`, which is drawn
                on the host, statistics, or a site that a container calls itself.
        """
        if not self._takes(inputs):
            return self.model(*inputs)
        now = self._settings()
        if now != self._built_in or not self._weights.unchanged():
            self._built_in = None  # In case that capturing fails.
            self._capture()
            self._built_in = now
        clock = self._faults.clock
        clock.begin(len(self._numbers))
        self._fill(inputs)
        self._replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, self._outputs)

    def _takes(self, inputs: tuple[Tensor, ...]) -> bool:
        if self.model.training or len(inputs) != len(self._inputs):
            return False
        return all(
            isinstance(x, Tensor) and (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
            for x, y in zip(inputs, self._inputs, strict=True)
        )

    def _settings(self) -> tuple[Any, ...]:
        """What a graph has built in; broken hardware is that of one trial."""
        clock = self._faults.clock
        armed = [site for site in self._faults if site.armed]
        broken = any(s.hw_units is not None or any(f.is_fixed for f in s.faults) for s in armed)
        run = (clock.seed, clock.trial) if broken else ()
        return (
            run,
            *[(s.index, s.faults, s.hw_units, s.statistics, s.arrangement) for s in armed],
        )

    def _fill(self, inputs: tuple[Tensor, ...]) -> None:
        """Write what this forward follows from to where the graph reads it."""
        clock, device = self._faults.clock, self._numbers.device
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        if clock.given is None:
            first = clock.first_sample
            torch.arange(first, first + len(self._numbers), device=device, out=self._numbers)
        else:
            self._numbers.copy_(clock.given)
        run = (clock.seed, clock.trial)
        if run != self._stream:
            self._keys.copy_(torch.tensor([self._keys_of(site) for site in self._faults]))
            self._stream = run

    def _keys_of(self, site: FaultSite) -> list[int]:
        """The keys of a site's random numbers, by the number of the fault."""
        key = site.clock.stream(site.name)
        more = [known_key(key, number) for number in range(1, self._keys.shape[1])]
        return [signed(part) for part in (key, *more)]

    def _capture(self) -> None:
        armed = [site for site in self._faults if site.armed]
        for site in armed:
            _check(site)
        numbers = [fault.number for site in armed for fault in site.faults]
        self._keys = self._keys.new_zeros(len(self._faults), 1 + max(numbers, default=0))
        self._stream = None
        with self._reading_tensors():
            self._outputs, self._replay = record(lambda: self.model(*self._inputs))
        self._weights = _watch(self.model)
        self.captures += 1

    @contextmanager
    def _reading_tensors(self) -> Iterator[None]:
        """Let forwards take keys and numbers from tensors; the clock does not move."""
        clock = self._faults.clock
        before = clock.given, clock.batch, clock.first_sample, clock.forward
        clock.given, clock.keys = self._numbers, self._keys
        for site in self._faults:  # What is noted in a graph must be there before it.
            if site.sound is None:
                site.sound = torch.ones((), dtype=torch.bool, device=self._numbers.device)
        try:
            yield
        finally:
            clock.keys = None
            clock.given, clock.batch, clock.first_sample, clock.forward = before


def capture(model: nn.Module, *inputs: Tensor) -> CapturedForward:
    """Let forwards of a model on a GPU run as a CUDA graph; see `CapturedForward`.

        model = fxfault.freeze(fxfault.transform(model, config)).cuda()
        forward = fxfault.capture(model, images)
        scores = forward(images)

    Args:
        model: transformed, in eval mode, on a CUDA device.
        inputs: a batch, as the model is called with it.

    Raises:
        ConfigError: the model is in training mode, or the inputs are not on a CUDA device.
        SiteError: the model has no fault sites.
    """
    return CapturedForward(model, *inputs)


def record(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Capture a CUDA graph.

    Args:
        run: launches the kernels, and reads from and writes to the same tensors each time.

    Returns:
        What `run` gives, whose tensors each replay overwrites, and the replay.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return outputs, graph.replay


def _watch(model: nn.Module) -> Watch:
    """Sees whether parameters or buffers change, from which a frozen model has made others."""
    tables = [t for m in modules_of(model) for t in (m._parameters, m._buffers)]
    return Watch((table, key) for table in tables for key in table)


def _is_on_device(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_cuda


def _check(site: FaultSite) -> None:
    why = None
    if site.counts_calls:
        why = "a container calls it, each time with faults of its own"
    elif site.statistics is not None:
        why = "its statistics are kept on the host; call model.faults.set_statistics(None)"
    elif any(fault.num_faults is not None for fault in site.faults):
        why = "`num_faults` is drawn on the host; give a probability"
    if why is not None:
        raise SiteError(f"site {site.name}: a CUDA graph cannot hold its faults: {why}")
