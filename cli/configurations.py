"""The configuration of a command: its file, with `--set` and the flags in place of its values.

The values of the command line replace those of the file before anything is checked, so that a flag
also mends a value that is not allowed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fxfault.config.changes import told_by_flag, with_changes
from fxfault.config.yaml_files import load_named
from fxfault.errors import ConfigError, InvalidConfigError

if TYPE_CHECKING:
    from fxfault.campaign.studies.study import Study
    from fxfault.experiment.sections import ExperimentConfig

_Made = TypeVar("_Made")
_Changes = dict[str, tuple[Any, str]]  # values and flags by key path
_FAULTS = "fault_injection"

# The keys that flags replace, by the names of the flags in the parsed options.
_KEYS = {
    "checkpoint": "checkpoint.path",
    "init": "checkpoint.init_from",
    "batch_size": "training.batch_size",
    **{
        name: f"{_FAULTS}.{name}"
        for name in ("injection_type", "bit", "memory", "mode", "layers", "seed", "probability")
    },
}


def read_experiment(options: argparse.Namespace, file: str | None = None) -> ExperimentConfig:
    """Read the experiment of a command, changed as the command line says.

    Args:
        options: the command line; flags that a command lacks change nothing.
        file: the file, if it is not `options.config`.

    Raises:
        InvalidConfigError: there is no such file, or the file with the changes is invalid.
        ConfigError: the file has `faults`, whose entries say what a flag would change.
    """
    from fxfault.experiment.sections import ExperimentConfig

    def make(content: Mapping[str, Any], source: str) -> ExperimentConfig:
        return ExperimentConfig.from_dict(content, source)

    return _read("experiments", file or options.config, options, make, _changes)


def read_study(options: argparse.Namespace) -> Study:
    """Read the study of a command, changed as the command line says.

    Raises:
        InvalidConfigError: there is no such file, or the file with the changes is invalid.
        ConfigError: the axes of the file say what a flag would change.
    """
    from fxfault.campaign.studies.study import Study

    def make(content: Mapping[str, Any], source: str) -> Study:
        return Study.from_dict(content, source)

    return _read("studies", options.config, options, make, _changes_of_study)


def _read(
    kind: str,
    file: str,
    options: argparse.Namespace,
    make: Callable[[Mapping[str, Any], str], _Made],
    changes_of: Callable[[argparse.Namespace, Mapping[Any, Any], str], _Changes],
) -> _Made:
    content, source = load_named(kind, file)
    flags = {path: f"--set {path}" for path, _ in options.set}
    try:
        content = with_changes(content, dict(options.set))
        changes = changes_of(options, content, file)
        flags.update({path: flag for path, (_, flag) in changes.items()})
        values = {path: value for path, (value, _) in changes.items()}
        return make(with_changes(content, values), source)
    except InvalidConfigError as error:
        raise told_by_flag(error, flags, source) from error


def _changes(options: argparse.Namespace, content: Mapping[Any, Any], file: str) -> _Changes:
    """What flags other than `--set` replace: values and flags by key path."""
    faults = content.get(_FAULTS)
    faults = faults if isinstance(faults, Mapping) else {}
    replay = getattr(options, "replay", None)
    if faults.get("faults") is not None and replay is None:
        _check_beside_faults(options, file)
    changes: _Changes = {}
    for name, path in _KEYS.items():
        value = getattr(options, name, None)
        if value is not None and not (name == "memory" and replay is not None):
            # YAML has lists in place of tuples.
            plain = list(value) if isinstance(value, tuple) else value
            changes[path] = (plain, f"--{name.replace('_', '-')}")
    if "fault_injection.layers" in changes:
        # --layers may not select the fixed site of the file.
        changes[f"{_FAULTS}.injection_layer"] = (-1, "--layers")
    if getattr(options, "per_layer", False):
        changes[f"{_FAULTS}.mode"] = ("full_model", "--per-layer")
    return {**changes, **_rate(options)}


def _changes_of_study(
    options: argparse.Namespace, content: Mapping[Any, Any], file: str
) -> _Changes:
    """What flags replace in a study: the sites that its axis `layers` starts from, and the bits."""
    axes, faults = content.get("axes"), content.get(_FAULTS)
    axes = axes if isinstance(axes, Mapping) else {}
    listed = isinstance(faults, Mapping) and faults.get("faults") is not None
    if listed or "faults" in axes:
        _check_beside_faults(options, file)
    axis = axes.get("layers", "all")
    values = axis if isinstance(axis, list) else [axis]
    if options.layers is not None and not all(value in ("each", "all") for value in values):
        raise ConfigError(
            f"--layers: axes.layers of {file} names sites itself; change it there, or with --set "
            "axes.layers=each, which strikes each site of --layers alone"
        )
    given = {
        f"{_FAULTS}.layers": (options.layers, "--layers"),
        "axes.bit": (options.bit, "--bit"),
    }
    return {path: change for path, change in given.items() if change[0] is not None}


def _rate(options: argparse.Namespace) -> _Changes:
    """The first of the rates of the command line, in place of that of the file."""
    from fxfault.config.fault_injection import FaultInjectionConfig

    counts: Sequence[int] = getattr(options, "num_faults", None) or ()
    if counts:
        default = FaultInjectionConfig().probability
        return {
            f"{_FAULTS}.num_faults": (counts[0], "--num-faults"),
            f"{_FAULTS}.probability": (default, "--num-faults"),
        }
    sweep: Sequence[float] = getattr(options, "sweep", None) or ()
    rate: float | None = sweep[0] if sweep else getattr(options, "probability", None)
    if rate is None:
        return {}
    flag = "--sweep" if sweep else "--probability"
    return {f"{_FAULTS}.probability": (rate, flag), f"{_FAULTS}.num_faults": (None, flag)}


def _check_beside_faults(options: argparse.Namespace, file: str) -> None:
    """Refuse the flags that each entry of `faults` sets for itself."""
    names = ("probability", "sweep", "num_faults", "injection_type", "bit", "memory", "layers")
    given = [
        f"--{name.replace('_', '-')}"
        for name in (*names, "per_layer")
        # A value may be 0, which equals False.
        if (value := getattr(options, name, None)) is not None and value is not False
    ]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: {file} has `faults`, each with its own rate, bit, memory "
            "and layers; change them there, or leave the option out"
        )
