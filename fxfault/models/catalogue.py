"""Build a network by its name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fxfault.errors import DataError
from fxfault.factories import call_factory
from fxfault.messages import nearest, one_line

if TYPE_CHECKING:
    from torch import nn

MAX_BIT_WIDTH = 16


class _BuiltIn(NamedTuple):
    module: str
    attribute: str


_BUILT_IN: dict[str, _BuiltIn] = {
    "quant_cnv": _BuiltIn("fxfault.models.cnv", "QuantCNV"),
    "quant_digits": _BuiltIn("fxfault.models.digits_net", "QuantDigits"),
    "quant_lenet": _BuiltIn("fxfault.models.lenet", "QuantLeNet"),
    "quant_resnet20": _BuiltIn("fxfault.models.resnet", "QuantResNet20"),
}


def model_names() -> tuple[str, ...]:
    """The names of the built-in networks, sorted.

    Example:
        >>> model_names()
        ('quant_cnv', 'quant_digits', 'quant_lenet', 'quant_resnet20')
    """
    return tuple(sorted(_BUILT_IN))


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    weight_bit_width: int,
    act_bit_width: int,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an untrained network, in training mode and on the CPU.

    Args:
        name: one of `model_names()`, or `package.module:factory` for a network of the
            user's own. The module is looked for in the current folder first, and the
            factory is called as `factory(**kwargs)`: the sizes and widths below are for
            the built-in networks only.
        num_classes: width of the output, at least 2.
        in_channels: channels of the images, at least 1.
        image_size: height and width of the images, in pixels.
        weight_bit_width: bits of every weight, 1 to 16; 1 is binary (-1, +1).
        act_bit_width: bits of every activation but the quantised input (8 bits), 1 to 16.
        kwargs: further arguments, such as `input_bit_width`.

    Raises:
        DataError: an unknown name, a value out of range, an image size that the network
            does not take, or a user's factory that cannot be used.

    Example:
        >>> net = build_model(
        ...     "quant_digits", num_classes=10, in_channels=1, image_size=(8, 8),
        ...     weight_bit_width=4, act_bit_width=4,
        ... )
        >>> sum(parameter.numel() for parameter in net.parameters())
        23103
    """
    options = dict(kwargs or {})
    if ":" in name:
        return _build_from_factory(name, options)
    if name not in _BUILT_IN:
        raise DataError(
            f"model {name!r} is unknown{nearest(name, model_names())}: name one of "
            f"{', '.join(model_names())}, or your own as package.module:factory"
        )
    _check_at_least("num_classes", num_classes, 2)
    _check_at_least("in_channels", in_channels, 1)
    _check_bit_width("weight_bit_width", weight_bit_width)
    _check_bit_width("act_bit_width", act_bit_width)
    return _build_built_in(
        name,
        options,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=_as_image_size(image_size),
        weight_bit_width=weight_bit_width,
        act_bit_width=act_bit_width,
    )


def _build_built_in(name: str, options: dict[str, Any], **settings: Any) -> nn.Module:
    """Build one of ours after checking that it takes every option."""
    network = getattr(importlib.import_module(_BUILT_IN[name].module), _BUILT_IN[name].attribute)
    allowed = [key for key in inspect.signature(network).parameters if key not in settings]
    for key in options:
        if key in settings:
            raise DataError(f"model {name!r}: {key} is not for kwargs, it is a setting of its own")
        if key not in allowed:
            raise DataError(
                f"model {name!r}: kwargs has an unknown key {key!r}"
                f"{nearest(str(key), allowed)}; allowed: {', '.join(allowed)}"
            )
    if "input_bit_width" in options:
        _check_bit_width("input_bit_width", options["input_bit_width"])
    module: nn.Module = network(**settings, **options)
    return module


def _build_from_factory(name: str, options: dict[str, Any]) -> nn.Module:
    """Call the user's factory and check what it returned."""
    from torch import nn

    network = call_factory(name, what="model", kwargs=options)
    if not isinstance(network, nn.Module):
        raise DataError(
            f"model {name!r}: the factory returned {one_line(repr(network))} of type "
            f"{type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def _check_at_least(key: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"model: {key} is {value!r}; it must be an integer of at least {least}")


def _check_bit_width(key: str, value: object) -> None:
    """Refuse what is not a whole number of bits.

    Example:
        >>> _check_bit_width("act_bit_width", 0)
        Traceback (most recent call last):
        fxfault.errors.DataError: model: act_bit_width is 0; it must be an integer from 1 to 16
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_BIT_WIDTH:
        raise DataError(
            f"model: {key} is {value!r}; it must be an integer from 1 to {MAX_BIT_WIDTH}"
        )


def _as_image_size(value: object) -> tuple[int, int]:
    """Read a height and a width.

    Example:
        >>> _as_image_size([28, 28])
        (28, 28)
    """
    sides = list(value) if isinstance(value, (list, tuple)) else []
    is_pair = len(sides) == 2 and all(
        isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides
    )
    if not is_pair:
        raise DataError(
            f"model: image_size is {value!r}; it must be a height and a width in pixels, "
            f"such as (32, 32)"
        )
    return sides[0], sides[1]
