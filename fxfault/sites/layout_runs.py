"""Runs of a model on a few samples, in other orders and batches, that leave the model unchanged."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxfault.faults.random_numbers import counter_hash, stream_key, uniform_int63, uniform_open
from fxfault.sites.measuring import armed_at_zero
from fxfault.sites.site import FaultSite

if TYPE_CHECKING:
    from torch import nn

    from fxfault.sites.fault_sites import FaultSites


def orders(batch: int) -> list[Tensor]:
    """Orders for the samples: a random one that moves all of them, and neighbours exchanged."""
    places = torch.arange(batch)
    if batch < 2:
        return []
    for number in range(64):
        drawn = torch.argsort(uniform_int63(stream_key("sample layouts", number), places))
        if not (drawn == places).any():  # No sample stays.
            break
    neighbours = places.clone()
    neighbours[: batch // 2 * 2] = neighbours[: batch // 2 * 2].view(-1, 2).flip(1).flatten()
    return [drawn] if torch.equal(drawn, neighbours) else [drawn, neighbours]


def parts(batch: int, size: int) -> list[Tensor]:
    """Batches of another size: the first samples, and only others, so that each is absent once."""
    return [torch.arange(size), size + torch.arange(size) % (batch - size)]


def taken(inputs: Sequence[Any], batch: int, samples: Tensor) -> Any:
    """Take samples out of the inputs of a batch."""
    return pytree.tree_map(
        lambda x: _of_samples(x, batch, lambda x: x[samples.to(x.device)]), inputs
    )


def _of_samples(x: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Change a tensor with an entry for each sample; return anything else as it is."""
    return change(x) if isinstance(x, Tensor) and x.dim() > 0 and len(x) == batch else x


def as_batch(inputs: Sequence[Any], given: int, batch: int) -> Any:
    """Make a batch of size `batch` from one of size `given`.

    Missing samples are given ones with their entries rotated, so that no two are the same. Tensors
    with a single value would show nothing, and are replaced by random numbers.
    """
    samples = torch.arange(batch) % max(1, given)
    turns = torch.arange(batch) // max(1, given)

    def change(x: Tensor) -> Tensor:
        if x.is_floating_point() and x.numel() and bool((x == x.flatten()[0]).all()):
            counters = torch.arange(batch * x[0].numel())
            drawn = uniform_open(counter_hash(stream_key("sample layouts"), counters))
            made = (4 * drawn - 2).view(batch, *x.shape[1:])
            return made.to(x.device, x.dtype)
        made = x[samples.to(x.device)]
        if given < batch and x.dim() > 1:
            for place in range(given, batch):
                moved = made[place].flatten().roll(int(turns[place]))
                made[place] = moved.view_as(made[place])
        return made

    return pytree.tree_map(lambda x: _of_samples(x, given, change), tuple(inputs))


class _State:
    """What forwards of a model may change: buffers, and plain attributes of its modules.

    A spiking layer that keeps its membrane, or a counter, must start each run in the same state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables = [
            (table, {name: value for name, value in table.items() if _is_plain(value)})
            for module in model.modules()
            for table in (vars(module), module._buffers)
        ]
        values = [v for _, kept in self._tables for v in kept.values()]
        self._lists = [(v, list(v)) for v in values if isinstance(v, list)]
        tensors = [v for v in values if isinstance(v, Tensor) and not v.is_inference()]
        self._tensors = [(t, t.detach().clone(), t._version) for t in tensors]

    def restore(self) -> None:
        """Undo all changes."""
        for table, kept in self._tables:
            for name in [n for n, v in table.items() if n not in kept and isinstance(v, Tensor)]:
                del table[name]
            for name, value in kept.items():
                if table.get(name, self) is not value:
                    table[name] = value
        for now, before in self._lists:
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                now[:] = before
        for place, (tensor, copy, version) in enumerate(self._tensors):
            if tensor._version != version:
                tensor.copy_(copy)
                self._tensors[place] = (tensor, copy, tensor._version)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (Tensor, bool, int, float, tuple, list))


@contextmanager
def observing(sites: FaultSites) -> Iterator[Callable[..., None]]:
    """Run the model without faults within the block, and observe its activations.

    Yields:
        A function that runs the model on some inputs and calls an observer for each site; with
        `again`, it draws other random numbers than other runs. Afterwards the model is unchanged.
    """
    model = sites.clock.model
    modes = {module: module.training for module in model.modules()}

    def run(inputs: Any, observe: Callable[[FaultSite, Any], Tensor], again: bool = False) -> None:
        for site in sites:
            if site.stored is not None:
                continue  # It has no samples.
            site.observer = functools.partial(observe, site)
        try:
            with random_state_kept():  # All runs draw the same numbers.
                if again:  # But this one does not.
                    torch.rand(3), random.random(), np.random.rand()
                model(*inputs)
        finally:
            state.restore()

    try:
        with armed_at_zero(sites), torch.no_grad(), torch._C._EnableTorchFunction():
            model.eval()
            state = _State(model)
            with torch.compiler.set_stance("force_eager"):
                yield run
    finally:
        for site in sites:
            site.observer = None
        for module, training in modes.items():
            module.training = training


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global random generators after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
