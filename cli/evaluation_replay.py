"""The lists of faults that `fxfault eval` strikes: `--replay` and `faults: {replay: FILE}`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from fxfault.config.entries import FaultEntry
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.results.calls.armed import with_lists

_BESIDE = (
    *("probability", "sweep", "num_faults", "injection_type", "bit", "mode", "layers", "per_layer"),
    "seed",
)


def with_replay(options: argparse.Namespace, config: FaultInjectionConfig) -> FaultInjectionConfig:
    """Take the faults of `--replay` in place of those of the configuration; read all lists.

    Raises:
        ConfigError: a list cannot be read, or an option says what the list says.
    """
    if options.replay is not None:
        values = {name: getattr(options, name) for name in _BESIDE}
        # A value may be 0, which equals False.
        given = [name for name, value in values.items() if value is not None and value is not False]
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{names}: given beside --replay, whose list says all; leave it out")
        config = _only(config, str(options.replay), options.memory or config.memories)
    return with_lists(config)


def _only(
    config: FaultInjectionConfig, file: str, memories: tuple[str, ...]
) -> FaultInjectionConfig:
    """The configuration with the faults of a list, which is about some memories, and no others."""
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config)}
    own = {field.name for field in dataclasses.fields(FaultEntry)} & defaults.keys()
    changes = {key: defaults[key] for key in (*own, "hw_mask", "mode", "injection_layer")}
    memory: Any = memories[0] if len(memories) == 1 else memories
    entry = FaultEntry(replay=file, memory=memory)
    return dataclasses.replace(config, **changes, faults=(entry,))


def files_of(config: FaultInjectionConfig) -> dict[str, str]:
    """The files of the lists, by what messages call them."""
    files = [entry.replay for entry in config.entries() if entry.replay is not None]
    return {f"list of faults {number}": file for number, file in enumerate(files, start=1)}
