"""Build a network by its name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fxfault.data.options import is_positive, is_size
from fxfault.errors import DataError
from fxfault.factories import call_factory
from fxfault.messages import nearest, one_line

if TYPE_CHECKING:
    from torch import nn

MAX_BIT_WIDTH = 16


# Module and class of each network.
_BUILT_IN = {
    "quant_cnv": ("fxfault.models.cnv", "QuantCNV"),
    "quant_digits": ("fxfault.models.digits_net", "QuantDigits"),
    "quant_lenet": ("fxfault.models.lenet", "QuantLeNet"),
    "quant_lfc": ("fxfault.models.finn_mlp", "QuantLFC"),
    "quant_resnet20": ("fxfault.models.resnet", "QuantResNet20"),
    "quant_tfc": ("fxfault.models.finn_mlp", "QuantTFC"),
}


def model_names() -> tuple[str, ...]:
    """Names of the built-in networks, sorted.

    >>> model_names()
    ('quant_cnv', 'quant_digits', 'quant_lenet', 'quant_lfc', 'quant_resnet20', 'quant_tfc')
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

    >>> net = build_model(
    ...     "quant_digits", num_classes=10, in_channels=1, image_size=(8, 8),
    ...     weight_bit_width=4, act_bit_width=4,
    ... )
    >>> sum(parameter.numel() for parameter in net.parameters())
    23103

    Args:
        name: one of `model_names()`, or `package.module:factory` for your own network. The module
            is searched in the current folder first; the factory is called as
            `factory(**kwargs)`, without the sizes and widths below.
        num_classes: width of the output, at least 2.
        in_channels: channels of the images, at least 1.
        image_size: height and width of the images, in pixels.
        weight_bit_width: bits of every weight, 1 to 16; 1 is binary (-1, +1).
        act_bit_width: bits of every activation but the quantised input, 1 to 16.
        kwargs: further arguments; the built-in networks take `input_bit_width`, the bits of the
            quantised input (default: 8).

    Raises:
        DataError: the name is unknown, a value is out of range, the network does not take images
            of this size, or a user's factory cannot be used.
    """
    options = dict(kwargs or {})
    if ":" in name:
        return _build_from_factory(name, options)
    if name not in _BUILT_IN:
        raise DataError(
            f"model {name!r} is unknown{nearest(name, model_names())}: name one of "
            f"{', '.join(model_names())}, or your own as package.module:factory"
        )
    _check_integer("num_classes", num_classes, 2)
    _check_integer("in_channels", in_channels, 1)
    _check_integer("weight_bit_width", weight_bit_width, 1, MAX_BIT_WIDTH)
    _check_integer("act_bit_width", act_bit_width, 1, MAX_BIT_WIDTH)
    if not is_size(image_size):
        raise DataError(
            f"model: image_size is {image_size!r}; it must be a height and a width in pixels, "
            f"such as (32, 32)"
        )
    return _build_built_in(
        name,
        options,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=tuple(image_size),
        weight_bit_width=weight_bit_width,
        act_bit_width=act_bit_width,
    )


def _build_built_in(name: str, options: dict[str, Any], **settings: Any) -> nn.Module:
    module, class_name = _BUILT_IN[name]
    network = getattr(importlib.import_module(module), class_name)
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
        _check_integer("input_bit_width", options["input_bit_width"], 1, MAX_BIT_WIDTH)
    return network(**settings, **options)


def _build_from_factory(name: str, options: dict[str, Any]) -> nn.Module:
    from torch import nn

    network = call_factory(name, what="model", kwargs=options)
    if not isinstance(network, nn.Module):
        what = f"model {name!r}: the factory returned"
        if isinstance(network, type) and issubclass(network, nn.Module):
            made = network.__name__
            raise DataError(f"{what} the class {made}; let it return a network: {made}(...)")
        raise DataError(
            f"{what} {one_line(repr(network))} of type {type(network).__name__}; it must return a "
            "torch.nn.Module"
        )
    return network


def _check_integer(key: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise a `DataError` if a value is not an integer in a range.

    >>> _check_integer("act_bit_width", 0, 1, 16)
    Traceback (most recent call last):
    fxfault.errors.DataError: model: act_bit_width is 0; it must be an integer from 1 to 16
    """
    if not is_positive(value) or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise DataError(f"model: {key} is {value!r}; it must be an integer {allowed}")
