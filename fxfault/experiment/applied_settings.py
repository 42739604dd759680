"""Select the settings of an experiment that its network and evaluation read.

A resolved experiment has a value for every setting. Showing a default that nothing reads could be
wrong: a user's own network with 4-bit words would be shown with `act_bit_width: 8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfault.experiment.sections import ExperimentConfig

# Sections that an evaluation does not read, and the keys that it reads of two others.
_UNREAD = ("seed", "optimizer", "scheduler")
_READ = {"training": ("batch_size",), "checkpoint": ("path",)}
_FOR_TRAINING = ("epoch_interval", "step_interval", "curriculum", "interpolate", "gradient_mode")
# Keys that `faults` or the axes of a study replace.
_DECIDED_ELSEWHERE = ("injection_type", "probability", "num_faults", "bit", "burst_length")


def applied(settings: Mapping[str, Any], evaluation: bool = True) -> dict[str, Any]:
    """Remove from a resolved experiment the defaults that nothing reads.

    Values other than the defaults stay, read or not. The result is the same experiment, as a file
    without these keys has their defaults.

    >>> own = {"model": {"name": "mine:net", "kwargs": {}}, "quantization": {"act_bit_width": 8}}
    >>> applied(own)
    {'model': {'name': 'mine:net', 'kwargs': {}}}
    >>> applied({**own, "model": {"name": "quant_lenet"}})["quantization"]
    {'act_bit_width': 8}

    Args:
        settings: output of `ExperimentConfig.to_dict` or `Study.to_dict`.
        evaluation: whether the settings are for an evaluation, which does not train.

    Returns:
        The mapping without these keys and without sections that became empty.
    """
    defaults = ExperimentConfig().to_dict()
    found: dict[str, Any] = {}
    for name, section in settings.items():
        if isinstance(section, Mapping) and name in defaults:
            unread = _unread(name, settings, evaluation)
            section = {
                key: value
                for key, value in section.items()
                if key not in unread or value != (defaults[name] or {}).get(key)
            }
            if not section:
                continue
        found[name] = section
    return found


def _unread(name: str, settings: Mapping[str, Any], evaluation: bool) -> tuple[str, ...]:
    section = settings[name]
    if name == "quantization" and is_own(settings):
        return tuple(section)
    if not evaluation:
        return ()
    if name in _UNREAD:
        return tuple(section)
    if name in _READ:
        return tuple(key for key in section if key not in _READ[name])
    if name != "fault_injection":
        return ()
    units = () if section.get("hw_mask") else ("frequency_value",)
    layer = () if section.get("mode") == "layer" else ("injection_layer",)
    several = section.get("faults") is not None or "axes" in settings
    rates = _DECIDED_ELSEWHERE if several else ()
    return (*_FOR_TRAINING, *units, *layer, *rates)


def is_own(settings: Mapping[str, Any]) -> bool:
    """Whether the network is the user's own, which ignores the section `quantization`."""
    return ":" in str((settings.get("model") or {}).get("name", ""))
