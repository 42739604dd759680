"""The loss that a training minimises: one of torch's by its name, or the user's own.

Those of torch are checked first: a loss that broadcasts its targets, or that reads real numbers as
the probabilities of classes, trains a network for something else without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxfault.errors import FOREIGN, ConfigError, DataError, FxFaultError
from fxfault.evaluation.full.judging import plain
from fxfault.evaluation.full.labels import labels_of
from fxfault.factories import find_factory
from fxfault.foreign import quoting
from fxfault.messages import OWN_TASK, described, got, nearest, quote_error
from fxfault.metrics.decisions import check_scores, classes_of
from fxfault.metrics.outputs import Output, matched, refusal, tensor_in

CROSS_ENTROPY = "cross_entropy"


@dataclass(frozen=True)
class _Known:
    """A loss of torch.

    Attributes:
        function: the function.
        of_classes: whether its targets are numbers of classes, and not real numbers.
        options: arguments that may be set beside `output`.
    """

    function: Callable[..., Tensor]
    of_classes: bool
    options: tuple[str, ...] = ()


LOSSES: dict[str, _Known] = {
    CROSS_ENTROPY: _Known(F.cross_entropy, True, ("ignore_index", "weight")),
    "nll": _Known(F.nll_loss, True, ("ignore_index", "weight")),
    "mse": _Known(F.mse_loss, False),
    "l1": _Known(F.l1_loss, False),
    "smooth_l1": _Known(F.smooth_l1_loss, False, ("beta",)),
    "huber": _Known(F.huber_loss, False, ("delta",)),
    "bce_with_logits": _Known(F.binary_cross_entropy_with_logits, False, ("weight", "pos_weight")),
}
"""The losses of `torch.nn.functional` that a configuration may name; each is a mean."""

_TENSORS = ("weight", "pos_weight")


class Loss:
    """A number for the outputs and targets of a batch, which training makes small.

    >>> loss = make_loss("mse")
    >>> loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Take the name for messages, and a function of outputs, targets and `smoothing`."""
        self.name, self._function = name, function

    def __call__(self, outputs: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Measure a batch.

        Args:
            outputs: outputs of the network.
            targets: targets of the batch, on the same device.
            smoothing: share of each label that is spread over all classes.

        Returns:
            The loss, a scalar tensor that gradients go through.

        Raises:
            DataError: the loss cannot use the outputs or targets, or gives no scalar.
        """
        try:
            found = self._function(outputs, targets, smoothing)
        except (FxFaultError, torch.OutOfMemoryError):
            raise
        except FOREIGN as error:
            raise DataError(f"training.loss {self.name!r}: {quote_error(error)}") from error
        if not isinstance(found, Tensor) or found.dim() or not found.is_floating_point():
            raise DataError(
                f"training.loss {self.name!r}: it returned {described(found)}; expected a real "
                f"tensor without dimensions, such as a mean over the batch ({OWN_TASK})"
            )
        return found

    def check_gradient(self, found: Tensor) -> None:
        """Refuse a value of a training step that no gradient goes through.

        Raises:
            DataError: it has none.
        """
        if not found.requires_grad:
            raise DataError(
                f"training.loss {self.name!r}: its value has no gradient; compute it from the "
                f"outputs by differentiable operations, without detach() or item() ({OWN_TASK})"
            )


def make_loss(name: str, kwargs: Mapping[str, Any] | None = None) -> Loss:
    """Make a loss.

    Args:
        name: one of `LOSSES`, or `package.module:function` or `package.module:Class`.
        kwargs: further arguments of each call of the function, or of the class when it is made.

    Raises:
        ConfigError: there is no such loss, or it does not take an argument.
        DataError: the user's function or class cannot be imported or made.
    """
    kwargs = dict(kwargs or {})
    if ":" in name:
        return Loss(name, _own(name, kwargs))
    if name not in LOSSES:
        raise ConfigError(
            f"training.loss: got {got(name)}, allowed: {', '.join(LOSSES)}, or your own as "
            f"package.module:function{nearest(name, LOSSES)}; {OWN_TASK}"
        )
    known, output = LOSSES[name], kwargs.pop("output", None)
    for key in kwargs:
        if key not in known.options:
            raise ConfigError(
                f"training.loss_kwargs.{key}: {name} does not take it; allowed: "
                f"{', '.join(('output', *known.options))}"
            )
    for key in set(_TENSORS) & kwargs.keys():
        with quoting(f"training.loss_kwargs.{key}"):
            kwargs[key] = torch.as_tensor(kwargs[key], dtype=torch.float32)
    of = _of_classes if known.of_classes else _of_values
    return Loss(name, of(name, known.function, kwargs, output))


def _own(name: str, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """A function or class of the user's own."""
    function: Any = find_factory(name, what="training.loss")
    if isinstance(function, type):
        with quoting(f"training.loss {name!r}: {function.__name__}({', '.join(kwargs)})"):
            function = function(**kwargs)
        kwargs = {}
    if not callable(function):
        raise DataError(f"training.loss {name!r}: an object of the class cannot be called")
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise DataError(
            f"training.loss {name!r}: it has parameters, which the optimiser would not train; put "
            "them into the network"
        )

    def call(outputs: Any, targets: Any, smoothing: float) -> Any:
        outputs = plain(outputs)
        if isinstance(function, nn.Module):  # Its buffers, such as weights of classes.
            function.to(_device_of(outputs))
        return function(outputs, targets, **kwargs)

    return call


def _device_of(outputs: Any) -> torch.device:
    return tensor_in(outputs, metric="training.loss").device


def _on(device: torch.device, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in kwargs.items()
    }


def _of_classes(
    name: str, function: Callable[..., Tensor], kwargs: dict[str, Any], output: Output
) -> Callable[..., Any]:
    """A loss whose targets are numbers of classes, for each sample or for each of its places."""
    ignored = kwargs.get("ignore_index")
    where = f"training.loss {name!r}"

    def call(outputs: Any, targets: Any, smoothing: float) -> Tensor:
        scores = tensor_in(outputs, output, metric=where)
        if scores.dim() == 2 and ignored is None:
            classes = labels_of(targets, classes=scores.shape[-1])
        else:
            check_scores(scores, "(samples, classes, ...)", metric=where)
            classes = classes_of(targets, scores[:, 0], scores.shape[1], ignored, metric=where)
        options = _on(scores.device, kwargs)
        if name == CROSS_ENTROPY:
            options["label_smoothing"] = smoothing
        return function(scores, classes, **options)

    return call


def _of_values(
    name: str, function: Callable[..., Tensor], kwargs: dict[str, Any], output: Output
) -> Callable[..., Any]:
    """A loss whose targets are numbers of the shape of the outputs."""
    where = f"training.loss {name!r}"

    def call(outputs: Any, targets: Any, smoothing: float) -> Tensor:
        values = tensor_in(outputs, output, metric=where)
        expected = matched(values, targets, metric=where).to(values.dtype)
        if name == "bce_with_logits" and bool(((expected < 0) | (expected > 1)).any()):
            raise refusal(where, "a target outside of 0 to 1", "probabilities, such as 0 and 1")
        return function(values, expected, **_on(values.device, kwargs))

    return call
