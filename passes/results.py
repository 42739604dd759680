"""Run a model once, and keep its outputs, buffers and gradients to compare them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.faults.bits import same_bits
from fxfault.passes.tracing.side_effects import Snapshot, random_states_kept


@dataclass(frozen=True)
class Call:
    """The inputs of a forward; calling it runs a model on copies of them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        """Call a model."""
        again = self.copied()
        return model(*again.args, **again.kwargs)

    def copied(self) -> Call:
        """The same inputs in other tensors, which a model may write to."""
        return Call(_copied(self.args), _copied(dict(self.kwargs)))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return getattr(type(value), "_make", type(value))([_copied(item) for item in value])
    if type(value) is list:
        return [_copied(item) for item in value]
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


def results_of(model: nn.Module, call: Call, training: bool) -> Any:
    """Run a model once and restore it.

    Args:
        model: the model.
        call: the inputs.
        training: whether to run a copy in training mode, forward and backward, or one forward of
            the model itself in eval mode.

    Returns:
        Outputs and buffers, and in training mode gradients, as plain containers of copied tensors.
    """
    return _results_of_copy(model, call) if training else _results_in_place(model, call)


def _results_in_place(model: nn.Module, call: Call) -> Any:
    with _unchanged(model), torch.no_grad():
        model.eval()
        return _kept(call(model)), _by_name(model.named_buffers())


def _results_of_copy(model: nn.Module, call: Call) -> Any:
    with random_states_kept(), torch.enable_grad():
        twin = copy.deepcopy(model).train()
        output = call(twin)
        wanted = {n: p for n, p in twin.named_parameters() if p.requires_grad}
        total = _weighted_sum(output)
        gradients: Any = [None] * len(wanted)
        if total is not None and wanted:
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        by_name = zip(wanted, gradients, strict=True)
        return _kept(output), _by_name(twin.named_buffers()), _by_name(by_name)


def _by_name(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values by name, in an order that is the same for a copy of a graph module."""
    return {name: _kept(value) for name, value in sorted(values, key=lambda pair: pair[0])}


def _weighted_sum(output: Any) -> Tensor | None:
    """A number to which each value of an output contributes with another weight."""
    total = None
    tensors: list[Tensor] = []
    _mapped(output, tensors.append)
    for x in tensors:
        if x.is_floating_point() and x.requires_grad:
            weights = torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device)
            part = (x.reshape(-1) * weights).sum()
            total = part if total is None else total + part.to(total.dtype)
    return total


def _kept(value: Any) -> Any:
    """The value with copies of its tensors, which the next forward may write to."""
    return _mapped(value, lambda tensor: tensor.detach().clone())


def _mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Plain containers of the results of a function for each tensor in a value."""
    if isinstance(value, Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, function) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def alike(a: Any, b: Any) -> bool:
    """Whether two results have the same structure and the same bits."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return same_bits(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    # Objects that do not define equality cannot be compared.
    compares: Any = type(a).__eq__
    return compares is object.__eq__ or bool(a == b)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers, attributes and random states afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    tables = [(module, dict(module._buffers)) for module, _ in modes]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    before = Snapshot(model)
    with random_states_kept():
        try:
            yield
        finally:
            before.restore()
            for module, table in tables:
                module._buffers.update(table)
            with torch.no_grad():
                for buffer, value in values:
                    if not same_bits(buffer, value):
                        buffer.copy_(value)
            for module, training in modes:
                module.training = training
