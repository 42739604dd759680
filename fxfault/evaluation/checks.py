"""See, on the first data, that a network takes it, and that faults did not change the network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fxfault.errors import FOREIGN, DataError, FxFaultError
from fxfault.evaluation.full.predictions import check_dense
from fxfault.messages import quote_error
from fxfault.passes.checking import check

if TYPE_CHECKING:
    from torch import nn


def try_model(model: nn.Module, batches: Iterable[tuple[Any, Any]], device: torch.device) -> int:
    """Run one batch, so that a network that does not take the data is found out at once.

    Returns:
        How much work the batch was: about its multiply-add operations.

    Raises:
        DataError: the network fails; its error is quoted.
    """
    images, _ = next(iter(batches))
    work: list[int] = []

    def count(layer: Any, args: Any, output: Any) -> None:
        values = getattr(output, "value", output)  # a QuantTensor has them there
        if isinstance(values, torch.Tensor):
            work.append(values.numel() * layer.weight[0].numel())

    layers = [m for m in model.modules() if getattr(getattr(m, "weight", None), "ndim", 0) > 1]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            check_dense(model(images.to(device)))
    except FxFaultError:
        raise
    except FOREIGN as error:  # a network may fail in any way
        raise DataError(
            f"the model fails on a batch of the data set, shape {tuple(images.shape)}: "
            f"{quote_error(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return sum(work)


def check_model(
    faulty: nn.Module,
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    device: torch.device,
    most: int,
    modes: Sequence[str] = ("eval",),
) -> list[str]:
    """Compare a transformed model with the given one on the first batches; see `fxfault.check`.

    Args:
        faulty: what `fxfault.transform` returned; it may be changed.
        model: what it was made from.
        batches: of inputs and labels.
        device: where the models are.
        most: batches to look at.
        modes: to compare in.

    Returns:
        What a user should know of it, a sentence each.

    Raises:
        TransformError: the two differ, and nothing can be done about it.
        SiteError: a layer was called and not struck.
    """
    notes: dict[str, None] = {}
    for images, _ in itertools.islice(batches, most):
        found = check(faulty, model, images.to(device), modes=modes, measure=False)
        for kept in found.kept:
            name = kept.path or kept.type
            notes[f"{name} runs its own Python forward: {kept.reason}"] = None
        for mode, why in found.not_compared.items():
            notes[f"the network could not be checked in {mode} mode: {why}"] = None
    return list(notes)
