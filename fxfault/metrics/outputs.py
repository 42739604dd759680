"""Find the tensor that a metric is about in what a network returns, and match it with targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from fxfault.errors import DataError
from fxfault.messages import OWN_TASK, described, nearest
from fxfault.metrics.sums import finite_samples
from fxfault.quantisers.quant_tensors import QuantTensor

Output = str | int | None
"""The name of an item of the outputs, its number, or None for the first tensor."""


def refusal(metric: str, found: str, expected: str) -> DataError:
    """The error for outputs or targets that a metric cannot use.

    >>> print(refusal("top1", "outputs of shape (4,)", "scores of shape (samples, classes)"))
    top1: got outputs of shape (4,); expected scores of shape (samples, classes) (see 'your own \
task', docs/your-own-task.md)
    """
    return DataError(f"{metric}: got {found}; expected {expected} ({OWN_TASK})")


def tensor_of(outputs: Any, output: Output = None, *, metric: str) -> Tensor:
    """Take the tensor that counts out of the outputs of a network, without its gradient.

    See `tensor_in`.

    >>> both = {"out": torch.zeros(2, 3), "aux": (torch.ones(2), torch.ones(4))}
    >>> tensor_of(both, metric="top1").shape, tensor_of(both, "aux.1", metric="top1").shape
    (torch.Size([2, 3]), torch.Size([4]))

    Returns:
        The tensor, detached.

    Raises:
        DataError: there is no such item, or no tensor in it.
    """
    return tensor_in(outputs, output, metric=metric).detach()


def tensor_in(outputs: Any, output: Output = None, *, metric: str) -> Tensor:
    """Take the tensor that counts out of the outputs of a network.

    A QuantTensor gives its values. Of a tuple, list, mapping, dataclass or `ModelOutput`, the first
    tensor counts, unless `output` names an item; dots lead further in.

    Args:
        outputs: what the network returns for a batch.
        output: the item that counts.
        metric: name of the metric, for messages.

    Raises:
        DataError: there is no such item, or no tensor in it.
    """
    item = outputs if output is None else item_of(outputs, output, metric=metric)
    found = _first(item)
    if found is None:
        raise refusal(metric, f"outputs without a tensor: {described(item)}", "a tensor")
    if found.layout != torch.strided or found.device.type == "meta":
        kind = f"a tensor of layout {found.layout} on {found.device}"
        raise refusal(metric, kind, "a dense one with values")
    return found


def item_of(outputs: Any, output: str | int, *, metric: str) -> Any:
    """Take a named item out of the outputs of a network; see `tensor_of`.

    Raises:
        DataError: there is no such item.
    """
    item = outputs
    names = [output] if isinstance(output, int) else output.split(".")
    for name in names:
        inside = items_of(item)
        if isinstance(name, int):
            values = list(inside.values())
            if not -len(values) <= name < len(values):
                raise _no_item(metric, output, outputs, inside)
            item = values[name]
        elif name in inside:
            item = inside[name]
        else:
            raise _no_item(metric, output, outputs, inside)
    return item


def items_of(value: Any) -> dict[str, Any]:
    """The items of a container by their names, or by their numbers as text; empty for a tensor."""
    if isinstance(value, (Tensor, QuantTensor)):
        return {}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return {str(number): item for number, item in enumerate(value)}
    return {}


def matched(outputs: Tensor, targets: Any, *, metric: str, golden: bool = False) -> Tensor:
    """The targets as a tensor of the shape and on the device of the outputs.

    A last dimension of one may be missing on either side; nothing is broadcast.

    Args:
        outputs: real numbers, shape (samples, ...).
        targets: a tensor or what becomes one, of the same shape.
        metric: name of the metric, for messages.
        golden: whether the targets are outputs without faults, which need not be finite.

    Raises:
        DataError: the shapes differ, the numbers are not real, or a target is not finite.
    """
    check_samples(outputs, metric=metric)
    found = as_tensor(targets, metric=metric)
    shape = tuple(outputs.shape)
    if found.shape != outputs.shape:
        alike = (*shape, 1) == tuple(found.shape) or shape == (*found.shape, 1)
        if not alike:
            raise refusal(
                metric, f"outputs {described(outputs)}, targets {described(found)}", "equal shapes"
            )
        found = found.reshape(shape)
    if found.is_complex() or outputs.is_complex():
        kinds = f"outputs {described(outputs)}, targets {described(found)}"
        raise refusal(metric, kinds, "real numbers")
    if not golden and not bool(found.isfinite().all()):
        wrong = int((~finite_samples(found)).nonzero()[0])
        raise refusal(
            metric, f"a target that is not finite in sample {wrong} of a batch", "numbers"
        )
    return found.to(outputs.device)


def as_tensor(targets: Any, *, metric: str) -> Tensor:
    """The targets as a tensor.

    Raises:
        DataError: they do not make one.
    """
    if isinstance(targets, QuantTensor):
        targets = targets.value
    try:
        return torch.as_tensor(targets).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise refusal(metric, f"targets that are a {described(targets)}", "a tensor") from error


def check_samples(outputs: Tensor, *, metric: str) -> None:
    """Refuse outputs without a dimension for the samples.

    Raises:
        DataError: they have none.
    """
    if outputs.dim() == 0:
        found = f"outputs {described(outputs)}"
        raise refusal(metric, found, "a first dimension for the samples")


def _first(value: Any) -> Tensor | None:
    if isinstance(value, QuantTensor):
        return value.value
    if isinstance(value, Tensor):
        return value
    found = (_first(item) for item in items_of(value).values())
    return next((tensor for tensor in found if tensor is not None), None)


def _no_item(metric: str, output: str | int, outputs: Any, inside: dict[str, Any]) -> DataError:
    near = nearest(output, inside) if isinstance(output, str) else ""
    return refusal(metric, f"outputs {described(outputs)}", f"an item {output!r} in them{near}")
