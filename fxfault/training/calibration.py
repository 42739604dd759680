"""What a quantiser that is still calibrating holds beside its `state_dict`.

For the first steps of training, Brevitas's runtime quantisers count steps in Python attributes
and average statistics in tensors that `state_dict()` leaves out or replaces (brevitas 0.13,
`ParameterFromRuntimeStatsScaling`), and loading a `state_dict` ends the calibration. A training
that goes on from a checkpoint must go on calibrating where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

# Steps counted, quantisation delayed, statistics taken: Python values in Brevitas's modules.
_COUNTERS = ("counter", "init_done", "quant_delay_steps")


def calibration_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Give the counters and the tensors of all calibrating modules, by the path of the module.

    >>> from brevitas.nn import QuantIdentity
    >>> layer = QuantIdentity(bit_width=8).train()
    >>> _ = layer(torch.ones(3))
    >>> [state["counter"] for state in calibration_state(layer).values() if "counter" in state]
    [1]

    Args:
        model: any network; the result is empty where nothing calibrates.
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
    """Set back what `calibration_state` gave; call it after `load_state_dict`.

    Args:
        model: a network of the same structure.
        state: counters and tensors, by the path of the module.
    """
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
