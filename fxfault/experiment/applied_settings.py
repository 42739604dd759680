"""The settings of an experiment that say something: those that its network and evaluation read.

A resolved experiment has a value for every setting. Where nothing reads one and nobody gave it,
showing its default would claim something that is not so: a network of the user's own with 4-bit
words would be shown with `act_bit_width: 8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfault.experiment.sections import ExperimentConfig

# Sections that no evaluation reads, and of others the keys that it does.
_UNREAD = ("seed", "optimizer", "scheduler")
_READ = {"training": ("batch_size",), "checkpoint": ("path",)}
_FOR_TRAINING = ("epoch_interval", "step_interval", "curriculum", "interpolate", "gradient_mode")
# What `faults` or the axes of a study say instead.
_DECIDED_ELSEWHERE = ("injection_type", "probability", "num_faults", "bit", "burst_length")


def applied(settings: Mapping[str, Any], evaluation: bool = True) -> dict[str, Any]:
    """Leave out of a resolved experiment the defaults that nothing reads.

    What was given stays, read or not, and it stays the same experiment: the defaults are those
    that a file without them stands for.

    >>> own = {"model": {"name": "mine:net", "kwargs": {}}, "quantization": {"act_bit_width": 8}}
    >>> applied(own)
    {'model': {'name': 'mine:net', 'kwargs': {}}}
    >>> applied({**own, "model": {"name": "quant_lenet"}})["quantization"]
    {'act_bit_width': 8}

    Args:
        settings: as `ExperimentConfig.to_dict` or `Study.to_dict` gives them.
        evaluation: whether they are for an evaluation alone, which does not train.

    Returns:
        The same mapping without these; sections of which nothing is left are gone.
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
    """The keys of a section that nothing reads."""
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
    """Whether the network is the user's own, which is built without the section `quantization`."""
    return ":" in str((settings.get("model") or {}).get("name", ""))
