"""Transform a network, and check on the first data that it takes them and keeps its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fxfault.data.batches import take_apart
from fxfault.errors import FOREIGN, DataError, FxFaultError
from fxfault.evaluation.full.predictions import check_dense
from fxfault.messages import quote_error
from fxfault.passes.checking import check
from fxfault.passes.transform import transform
from fxfault.sites.fault_sites import faults_of

if TYPE_CHECKING:
    from torch import nn

    from fxfault.config.fault_injection import FaultInjectionConfig
    from fxfault.evaluation.full.predictions import OnNote
    from fxfault.metrics.metric import Metric


def insert_faults(
    model: nn.Module,
    config: FaultInjectionConfig,
    batches: Iterable[Any],
    device: torch.device,
    metric: Metric | None = None,
    *,
    on_note: OnNote,
    on_work: Callable[[int], None] = lambda operations: None,
) -> nn.Module:
    """Try a network on a batch, transform it, and compare the two on that batch.

    Args:
        model: the network, in eval mode and on `device`.
        config: the faults.
        batches: batches, see `fxfault.data.batches`.
        device: the device of the model.
        metric: what is measured; by default the accuracy of a classifier.
        on_note: called with notes for the user, a sentence each.
        on_work: called with what `try_model` returns.

    Raises:
        FxFaultError: as `try_model`, `fxfault.transform` and `check_model`.
    """
    on_work(try_model(model, batches, device, metric))
    faulty = transform(model, config)
    for note in [
        *faults_of(faulty).number_notes(),
        *check_model(faulty, model, batches, device, most=1),
    ]:
        on_note(note)
    return faulty


def try_model(
    model: nn.Module, batches: Iterable[Any], device: torch.device, metric: Metric | None = None
) -> int:
    """Run one batch, to find at once a network that does not take the data.

    Args:
        model: the network.
        batches: batches, see `fxfault.data.batches`.
        device: the device of the model.
        metric: what is measured; by default the accuracy of a classifier.

    Returns:
        About the number of multiply-add operations of the batch.

    Raises:
        DataError: the network fails; the message quotes its error.
    """
    batch = take_apart(next(iter(batches)))
    work: list[int] = []

    def count(layer: Any, args: Any, output: Any) -> None:
        values = getattr(output, "value", output)  # the values of a QuantTensor
        if isinstance(values, torch.Tensor):
            work.append(values.numel() * layer.weight[0].numel())

    layers = [m for m in model.modules() if getattr(getattr(m, "weight", None), "ndim", 0) > 1]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            moved = batch.to(device)
            output = model(*moved.inputs, **moved.keywords)
            if metric is None:
                check_dense(output)
    except FxFaultError:
        raise
    except FOREIGN as error:  # a network may fail in any way
        shapes = shapes_of(batch.inputs, batch.keywords)
        raise DataError(
            f"the model fails on a batch of the data set, {shapes}: {quote_error(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return sum(work)


def shapes_of(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Write the shapes of what a network gets, for a message.

    >>> shapes_of([torch.zeros(4, 3)], {"mask": torch.zeros(4)})
    'shapes (4, 3), mask: (4,)'

    Args:
        inputs: the arguments of the forward by position.
        keywords: those by name.
    """
    named = [("", x) for x in inputs]
    named += [(f"{name}: ", x) for name, x in keywords.items()]
    shapes = [f"{name}{tuple(getattr(x, 'shape', ()))}" for name, x in named]
    return f"shape{'' if len(shapes) == 1 else 's'} {', '.join(shapes)}"


def check_model(
    faulty: nn.Module,
    model: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    most: int,
    modes: Sequence[str] = ("eval",),
) -> list[str]:
    """Compare a transformed model with the given one on the first batches; see `fxfault.check`.

    Args:
        faulty: the transformed model, which the check may change.
        model: the given model.
        batches: batches, see `fxfault.data.batches`.
        device: the device of the models.
        most: largest number of batches to compare.
        modes: modes to compare in.

    Returns:
        Notes for the user, a sentence each.

    Raises:
        TransformError: the two differ, and the check cannot mend it.
        SiteError: a layer was called but not struck.
    """
    notes: dict[str, None] = {}
    for given in itertools.islice(batches, most):
        batch = take_apart(given).to(device)
        named = batch.keywords
        found = check(faulty, model, *batch.inputs, modes=modes, measure=False, **named)
        for kept in found.kept:
            name = kept.path or kept.type
            notes[f"{name} runs its own Python forward: {kept.reason}"] = None
        for mode, why in found.not_compared.items():
            notes[f"the network could not be checked in {mode} mode: {why}"] = None
    return list(notes)
