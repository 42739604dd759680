"""Read the faults that a caller gives: as an object, as a mapping, or as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.messages import got


def read_config(given: Any, name: str, **defaults: Any) -> FaultInjectionConfig:
    """Read and check a configuration.

    >>> read_config({"probability": 5}, "config", enabled=True).enabled
    True
    >>> read_config(5, "config")
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: config: got 5 (int), allowed: a FaultInjectionConfig, its mapping, \
or the path of a YAML file

    Args:
        given: the configuration, its mapping, or the path of a YAML file.
        name: name of the argument, for the error.
        defaults: values for keys that a mapping does not have.

    Raises:
        ConfigError: a value is not allowed, or the file cannot be read.
    """
    if isinstance(given, (str, os.PathLike)):
        return FaultInjectionConfig.from_yaml(given)
    if isinstance(given, Mapping):
        return FaultInjectionConfig.from_dict({**defaults, **given})
    if not isinstance(given, FaultInjectionConfig):
        allowed = "a FaultInjectionConfig, its mapping, or the path of a YAML file"
        raise ConfigError(f"{name}: got {got(given)}, allowed: {allowed}")
    given.validate()
    return given
