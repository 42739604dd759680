"""See whether the tensors and switches that a settled layer depends on have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


class Watch:
    """Sees whether the values at some places are still the same.

    A tensor has changed if it or its memory was replaced, or if it was written to. Writes in
    place through `.data` are not seen, because torch does not count them.

    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> watch = Watch([(layer._parameters, "weight")])
    >>> watch.unchanged()
    True
    >>> with torch.no_grad():
    ...     _ = layer.weight.mul_(2)
    >>> watch.unchanged()
    False
    """

    def __init__(self, places: Iterable[tuple[dict[str, Any], str]]) -> None:
        """Note the present values.

        Args:
            places: dictionaries with a key each; a value is a tensor, or an object that is
                replaced rather than changed.
        """
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self._others: list[tuple[dict[str, Any], str, Any]] = []
        for table, key in places:
            value = table.get(key)
            if isinstance(value, Tensor):
                self._tensors.append((table, key, value, value._version, value.data_ptr()))
            else:
                self._others.append((table, key, value))

    def unchanged(self) -> bool:
        """Whether all values are the same as before."""
        for table, key, tensor, version, address in self._tensors:
            if (
                table.get(key) is not tensor
                or tensor._version != version
                or tensor.data_ptr() != address
            ):
                return False
        for table, key, value in self._others:  # Not `all`, which takes longer.  # noqa: SIM110
            if table.get(key) is not value:
                return False
        return True


def tensors_below(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """The places of all parameters, buffers and parts of a quantiser."""
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            yield from ((table, key) for key in table)
        # These tell which of two tensors is the scale, and whether the quantiser only observes.
        yield from ((part.__dict__, k) for k in ("counter", "observer_only") if k in part.__dict__)
    children: dict[str, Any] = module._modules
    yield from ((children, key) for key in children)  # Loading a state replaces them.


_SWITCHES = (
    "_export_mode",
    "_is_quant_enabled",
    "disable_quant",
    "is_signed",
    "skip_create_quant_tensor",
    "cache_inference_quant_act",
    "cache_inference_quant_bias",
    "_cache_inference_quant_weight",
)


def switches_of(*modules: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """The places of the switches that say how modules compute."""
    for module in modules:
        yield from ((module.__dict__, name) for name in _SWITCHES if name in module.__dict__)
