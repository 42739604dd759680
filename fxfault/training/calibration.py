"""Save and restore quantisers that are still calibrating.

For the first steps of training, Brevitas's runtime quantisers count steps in Python attributes
and average statistics in tensors that `state_dict()` leaves out or replaces (brevitas 0.13,
`ParameterFromRuntimeStatsScaling`), and loading a `state_dict` ends the calibration. A resumed
training must continue the calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

# Python attributes of Brevitas's modules that hold the progress of the calibration.
_COUNTERS = ("counter", "init_done", "quant_delay_steps")


def calibration_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Copy the counters and tensors of all calibrating modules, by module path.

    >>> from brevitas.nn import QuantIdentity
    >>> layer = QuantIdentity(bit_width=8).train()
    >>> _ = layer(torch.ones(3))
    >>> [state["counter"] for state in calibration_state(layer).values() if "counter" in state]
    [1]
    """
    return {
        path: {
            **{name: getattr(module, name) for name in _counters(module)},
            "tensors": {name: tensor.detach().clone() for name, tensor in _tensors(module)},
        }
        for path, module in model.named_modules()
        if _counters(module)
    }


def restore_calibration(model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore the output of `calibration_state`; call this after `load_state_dict`."""
    for path, module in model.named_modules():
        kept = state.get(path)
        if kept is None:
            continue
        for name in _counters(module):
            setattr(module, name, kept[name])
        with torch.no_grad():
            for name, tensor in _tensors(module):
                tensor.copy_(kept["tensors"][name])


def _counters(module: nn.Module) -> list[str]:
    return [name for name in _COUNTERS if isinstance(getattr(module, name, None), int)]


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
