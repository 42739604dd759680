"""Make the faults of a configuration ready for an evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from fxfault.config.entries import FaultEntry
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError
from fxfault.files.access import expanded
from fxfault.sites.replay_lists import replay_of


def armed(config: FaultInjectionConfig) -> tuple[FaultInjectionConfig, list[str]]:
    """Let faults strike in an evaluation, whatever the configuration says of training.

    >>> config, notes = armed(FaultInjectionConfig(apply_during="eval"))
    >>> config.enabled, notes
    (True, ['`enabled: true` for this run: the configuration says false'])

    Returns:
        The configuration, and a sentence on each value that was replaced.
    """
    changes: dict[str, Any] = {}
    notes = []
    if not config.enabled:
        notes.append("`enabled: true` for this run: the configuration says false")
        changes["enabled"] = True
    if config.apply_during == "train":
        notes.append("`apply_during: eval` for this run: the configuration says train")
        changes["apply_during"] = "eval"
    if config.curriculum is not None:
        notes.append("`curriculum` is ignored: it is for training")
        changes["curriculum"] = None
    return dataclasses.replace(config, **changes), notes


def with_lists(config: FaultInjectionConfig) -> FaultInjectionConfig:
    """Read all lists of faults, and name them by absolute paths.

    The user's code may change the folder.

    Raises:
        ConfigError: a list cannot be read.
    """
    if not isinstance(config.faults, (list, tuple)):
        return config
    entries = [_with_absolute_path(entry) for entry in config.entries()]
    for entry in entries:
        if entry.replay is not None:
            replay_of(entry.replay)
    return dataclasses.replace(config, faults=tuple(entries))


def _with_absolute_path(entry: FaultEntry) -> FaultEntry:
    if entry.replay is None:
        return entry
    return dataclasses.replace(entry, replay=os.path.abspath(expanded(entry.replay)))


def runs_of(wanted: int | None, config: FaultInjectionConfig, name: str) -> int:
    """The number of runs: one by default, or one for each injection of a list.

    Args:
        wanted: the number that the user gives, or None.
        config: the faults.
        name: what errors call the number.

    Raises:
        ConfigError: there are fewer injections, or each run would be the same.
    """
    lists = [replay_of(entry.replay) for entry in config.entries() if entry.replay is not None]
    injections = max((len(found.injections) for found in lists), default=0)
    runs = wanted or max(1, injections)
    if not lists or runs <= max(1, injections) or len(lists) < len(_striking(config)):
        return runs
    why = (
        "the list has no more injections" if injections else "every run has the faults of the list"
    )
    raise ConfigError(
        f"{name}: got {wanted}, allowed with these faults: up to {max(1, injections)}, as {why}"
    )


def _striking(config: FaultInjectionConfig) -> Sequence[FaultEntry]:
    return [entry for entry in config.entries() if entry.strikes]
