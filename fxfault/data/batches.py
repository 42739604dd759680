"""Take a batch apart into what the network gets and what its outputs are compared with.

The rules, for a batch of a data loader:

- A tensor is the only input.
- Of a tuple or list, the last item is the targets, and those before it are the inputs. If the
  network's forward needs as many arguments as there are items, and all are tensors, there are no
  targets. A last item that is like the first one, behind one that is like targets, is refused:
  `(ids, labels, mask)`.
- Of a mapping, a dataclass or a named tuple, the item called `labels`, `label`, `targets`,
  `target` or `y` is the targets, unless the forward needs an argument of this name. The other items
  go to the forward by their names; a single one goes first, whatever its name, unless it is one of
  `input_ids` and so on. A named tuple with names that the forward does not know is as a tuple.
- An input may be such a container in turn: `((left, right), target)` has two inputs, and
  `({"input_ids": ids, "attention_mask": mask}, labels)` has two by name.

What these rules do not settle is refused. The user then says it with a function from a batch to
(arguments, keywords, targets).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxfault.data.forward_signature import Signature, signature_of
from fxfault.errors import DataError
from fxfault.foreign import quoting
from fxfault.messages import OWN_TASK, and_more, described

TARGETS = ("labels", "label", "targets", "target", "y")
"""The names of items that are targets."""

BY_NAME = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
"""The names of token inputs, which go to a forward by name even if its signature is unknown."""

Taker = Callable[[Any], Any]
"""A user's function from a batch to (arguments, keywords, targets)."""

_SAY = (
    "say it with `dataset: {batch: package.module:function}` (in Python: `batch=function`), a "
    f"function from a batch to (arguments, keywords, targets); {OWN_TASK}"
)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a network gets for some samples, and what its outputs are compared with.

    Attributes:
        inputs: the arguments of the forward by position.
        keywords: the arguments of the forward by name.
        targets: the targets, as the data set has them; None if there are none.
        samples: number of samples.
    """

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    targets: Any
    samples: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with all tensors on a device; no dtype changes."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with all tensors changed by a function."""
        inputs, keywords, targets = (
            _map_tensors(part, change) for part in (self.inputs, self.keywords, self.targets)
        )
        return replace(self, inputs=inputs, keywords=keywords, targets=targets)


def take_apart(
    batch: Any, *, forward: Callable[..., Any] | None = None, taker: Taker | None = None
) -> Batch:
    """Take a batch apart by the rules of this module.

    >>> x, y = torch.zeros(4, 3), torch.zeros(4)
    >>> len(take_apart((x, x, y)).inputs), take_apart({"image": x, "label": y}).samples
    (2, 4)
    >>> take_apart({"input_ids": x, "attention_mask": x, "labels": y}).keywords.keys()
    dict_keys(['input_ids', 'attention_mask'])

    Args:
        batch: what the data loader gives; a `Batch` is returned as it is.
        forward: the forward of the network, of which only the signature is read.
        taker: the user's function, in place of the rules.

    Raises:
        DataError: the rules do not settle what the inputs and targets are, the tensors disagree
            about the number of samples, or the user's function fails or returns something else.
    """
    if isinstance(batch, Batch):
        return batch
    if taker is not None:
        inputs, keywords, targets = _taken(batch, taker)
    else:
        inputs, keywords, targets = _parts(batch, signature_of(forward))
    return Batch(inputs, keywords, targets, _samples_of(inputs, keywords, targets, batch))


def _taken(batch: Any, taker: Taker) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """What the user's function makes of a batch."""
    name = getattr(taker, "__name__", type(taker).__name__)
    with quoting(f"batch: {name}() fails on a batch that is {described(batch)}"):
        found = taker(batch)
    if isinstance(found, (tuple, list)) and len(found) == 3:
        inputs, keywords, targets = found
        named = isinstance(keywords, Mapping) and all(isinstance(key, str) for key in keywords)
        if isinstance(inputs, (tuple, list)) and named:
            return tuple(inputs), dict(keywords), targets
    raise DataError(
        f"batch: {name}() returned {described(found)}; expected (arguments, keywords, targets): a "
        f"tuple, a dict with names as keys, and anything ({OWN_TASK})"
    )


def _parts(batch: Any, signature: Signature) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs by position and by name, and targets."""
    items, is_named = _items(batch)
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if is_named and (found := _named_parts(items, signature, batch)) is not None:
        return found
    if not isinstance(batch, (tuple, list)) or not batch:
        raise _unclear(batch, "allowed: a tensor, tuple, list, dict, dataclass or named tuple")
    if len(batch) == 1:
        return *_inputs(batch[0], signature, batch), None
    are_inputs = all(isinstance(item, Tensor) for item in batch)
    if are_inputs and signature.needs(len(batch)) and not signature.needs(len(batch) - 1):
        return tuple(batch), {}, None
    *inputs, targets = batch
    if len(inputs) == 1:
        return *_inputs(inputs[0], signature, batch), targets
    if not signature.needs(len(inputs)):
        raise _unclear(batch, f"the forward takes {signature}, so not the first {len(inputs)}")
    place = _like_targets(inputs, targets)
    if place is not None:
        raise _unclear(
            batch,
            f"the last item would be the targets, but it is like an input, and item {place} of 1 "
            f"to {len(batch)} like the targets",
        )
    return tuple(inputs), {}, targets


def _like_targets(inputs: list[Any], targets: Any) -> int | None:
    """The place, from 1, of an input that looks like the targets while the last item does not.

    In `(ids, labels, mask)` the last item has the shape of the first. The labels have an integer
    for each sample; or they have the same shape, too, and then the mask is known by its zeros and
    ones.
    """
    first = inputs[0]
    if not isinstance(targets, Tensor) or not isinstance(first, Tensor):
        return None
    if targets.dim() < 2 or targets.shape != first.shape:
        return None
    for place, item in enumerate(inputs[1:], start=2):
        if not isinstance(item, Tensor) or item.is_floating_point() or item.is_complex():
            continue
        if item.shape in (first.shape[:1], (*first.shape[:1], 1)) and item.dtype != torch.bool:
            return place
        if item.shape == first.shape and _is_mask(targets) and not _is_mask(item):
            return place
    return None


def _is_mask(values: Tensor) -> bool:
    """Whether a tensor has zeros and ones alone."""
    return values.dtype == torch.bool or bool(((values == 0) | (values == 1)).all())


def _named_parts(
    items: dict[str, Any], signature: Signature, batch: Any
) -> tuple[tuple[Any, ...], dict[str, Any], Any] | None:
    """The parts of a batch with named items; None if a named tuple says nothing by its names."""
    names = [name for name in TARGETS if name in items and name not in signature.required]
    is_tuple = isinstance(batch, tuple)
    if is_tuple and len(names) != 1:
        return None
    if len(names) > 1:
        raise _unclear(batch, f"{and_more(names)} may all be targets")
    rest = {name: item for name, item in items.items() if name not in names}
    targets = items[names[0]] if names else None
    known_by_name = all(name in signature.named for name in rest)
    if is_tuple and len(rest) > 1 and not known_by_name and signature.needs(len(rest)):
        return tuple(rest.values()), {}, targets
    return *_named_inputs(rest, signature, batch), targets


def _inputs(item: Any, signature: Signature, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a forward, by position and by name, that one item of a batch holds."""
    if isinstance(item, Tensor) and signature.needs(1):
        return (item,), {}
    items, is_named = _items(item)
    if is_named and not isinstance(item, tuple):
        return _named_inputs(items, signature, batch)
    if not isinstance(item, (tuple, list)) or not item:
        why = f"the forward takes {signature}, and the input is {described(item)}"
        raise _unclear(batch, why)
    if signature.needs(len(item)):
        return tuple(item), {}
    if signature.needs(1):  # A list of images, say, that the network takes as one argument.
        return (item,), {}
    raise _unclear(batch, f"the forward takes {signature}, and there are {len(item)} inputs")


def _named_inputs(
    items: dict[str, Any], signature: Signature, batch: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a forward that have names."""
    if not items:
        raise _unclear(batch, "there is no input beside the targets")
    unknown = [name for name in items if not signature.takes(name)]
    if len(items) == 1:
        ((name, item),) = items.items()
        by_name = name in BY_NAME if signature.is_unknown else not unknown
        is_first = signature.positional[:1] == (name,)
        if is_first or not by_name or not isinstance(item, Tensor):
            return _inputs(item, signature, batch)
    if unknown:
        raise _unclear(batch, f"the forward takes {signature}, so not {and_more(unknown)}")
    missing = [name for name in signature.required if name not in items]
    if missing:
        raise _unclear(batch, f"the forward needs {and_more(missing)}, too")
    return (), dict(items)


def _items(value: Any) -> tuple[dict[str, Any], bool]:
    """The items of a container with names, and whether it is one."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}, True
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}, True
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True)), True
    return {}, False


def _unclear(batch: Any, why: str) -> DataError:
    return DataError(
        f"batch: got {described(batch)}; it is not clear what the network gets: {why}: {_SAY}"
    )


def _samples_of(inputs: Any, keywords: Any, targets: Any, batch: Any) -> int:
    """The number of samples, on which all tensors must agree.

    Raises:
        DataError: they do not, or no tensor tells.
    """
    tensors = [tensor for tensor in _tensors_in((inputs, keywords)) if tensor.dim()]
    if not tensors:
        raise _unclear(batch, "no tensor with a dimension for the samples is among the inputs")
    listed = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)) else None
    samples = len(tensors[0]) if listed is None else len(listed)
    sizes = {len(tensor) for tensor in tensors} if listed is None else {samples}
    sizes |= _sizes_of(targets, samples)
    if sizes != {samples}:
        raise DataError(
            f"batch: got {described(batch)}; the tensors have {and_more(map(str, sorted(sizes)))} "
            f"rows; expected a first dimension of one size, the number of samples; if one belongs "
            f"to no sample, {_SAY}"
        )
    return samples


def _sizes_of(targets: Any, samples: int) -> set[int]:
    """The numbers of samples that targets may be of; a list may have an item for each."""
    if isinstance(targets, Tensor):
        return {len(targets)} if targets.dim() else set()
    items, is_named = _items(targets)
    parts = list(items.values()) if is_named else targets
    if is_named or isinstance(targets, (tuple, list)):
        inside = set().union(*(_sizes_of(part, samples) for part in parts))
        if is_named or inside == {samples}:
            return inside
        return inside if len(targets) != samples and _tensors_in(targets) else {len(targets)}
    shape: tuple[int, ...] = getattr(targets, "shape", ())  # that of an array of NumPy
    return {int(size) for size in shape[:1]}


def _tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map_tensors(value, note)
    return found


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return _rebuilt(value, lambda item: _map_tensors(item, change))


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same kind with changed items; anything else as it is."""
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(change(item) for item in value)
    if isinstance(value, (tuple, list)):
        return type(value)(change(item) for item in value)
    if isinstance(value, Mapping):
        return {key: change(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)  # `replace` would run the checks of the class again.
        for field in fields(value):
            object.__setattr__(made, field.name, change(getattr(value, field.name)))
        return made
    return value
