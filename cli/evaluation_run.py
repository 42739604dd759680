"""What an evaluation runs and writes: the configuration with its changes, and the output files."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from fxfault.bundled.files import BUNDLED
from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.fault_evaluation import with_num_faults, with_probability
from fxfault.cli.pictures.plots import check_plot
from fxfault.cli.reports.evaluation_export import is_same_evaluation
from fxfault.cli.terminal.outputs import NumberedFile, OutputFile, refuse_overwriting
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError, DataError
from fxfault.experiment.parts import check_sections
from fxfault.experiment.sections import ExperimentConfig, load_experiment
from fxfault.files.access import expanded


def read_experiment(options: argparse.Namespace) -> tuple[ExperimentConfig, list[str]]:
    """Read the configuration, change it as the command line says, and give notes on that."""
    _check_options(options)
    experiment = load_experiment(options.config)
    check_sections(experiment, ["dataset", "model"], options.config)
    path = options.checkpoint or experiment.checkpoint.path
    start = experiment.checkpoint.init_from
    if path is None:
        from_there = f" (checkpoint.init_from, {start}, is what training starts from)"
        raise ConfigError(
            f"no checkpoint: give --checkpoint FILE, or set checkpoint.path in {options.config}"
            f"{from_there if start else ''}"
        )
    # Checked here, before data is downloaded.
    if not path.startswith(BUNDLED) and not expanded(path).exists():
        raise DataError(f"checkpoint {path!r}: there is no such file; check the path")
    if experiment.fault_injection.faults is not None:
        _check_beside_faults(options)
    notes: list[str] = []
    if start is not None:
        notes.append(f"`checkpoint.init_from` is ignored: it is for training; {path} is evaluated")
    changes = _fault_changes(options, experiment.fault_injection, notes)
    faults = dataclasses.replace(experiment.fault_injection, **changes)
    faults.validate()
    size = options.batch_size or experiment.training.batch_size
    changed = dataclasses.replace(
        experiment,
        fault_injection=faults,
        checkpoint=dataclasses.replace(experiment.checkpoint, path=path),
        training=dataclasses.replace(experiment.training, batch_size=size),
    )
    return changed, notes


def _check_options(options: argparse.Namespace) -> None:
    if options.per_layer and options.sweep is not None:
        raise ConfigError("--per-layer takes one probability: give --probability, not --sweep")
    if options.per_layer and len(options.num_faults or ()) > 1:
        raise ConfigError("--per-layer takes one number of faults: give --num-faults one")
    if options.compile and not options.freeze:
        raise ConfigError("--compile needs a frozen network: leave --no-freeze out")
    wilson(0, 1)  # Raises now, and not after the work, if scipy is missing.


def _check_beside_faults(options: argparse.Namespace) -> None:
    """Refuse the options that each entry of `faults` sets for itself."""
    names = ("probability", "sweep", "num_faults", "injection_type", "layer", "per_layer")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    given += ["--probability"] if options.probability == 0 else []
    if given:
        raise ConfigError(
            f"{', '.join(given)}: {options.config} has `faults`, each with its own rate and "
            "layers; change them there, or leave the option out"
        )


def _fault_changes(
    options: argparse.Namespace, config: FaultInjectionConfig, notes: list[str]
) -> dict[str, Any]:
    given = {
        "injection_type": options.injection_type,
        "mode": "full_model" if options.per_layer else options.mode,
        "layers": options.layer,
        # --layer may not select the fixed site of the configuration.
        "injection_layer": None if options.layer is None else -1,
        "seed": options.seed,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if options.sweep is None or config.num_faults is not None:
        first = with_rates(options, config)[0]
        changes.update(probability=first.probability, num_faults=first.num_faults)
    if not config.enabled:
        notes.append("`enabled: true` for this run: the configuration says false")
        changes["enabled"] = True
    if config.apply_during == "train":
        notes.append("`apply_during: eval` for this run: the configuration says train")
        changes["apply_during"] = "eval"
    if config.curriculum is not None:
        notes.append("`curriculum` is ignored: it is for training")
        changes["curriculum"] = None
    return changes


def with_rates(
    options: argparse.Namespace, config: FaultInjectionConfig
) -> tuple[FaultInjectionConfig, ...]:
    """Give the configuration once for each rate of the command line, or as it is."""
    if options.num_faults is not None:
        return tuple(with_num_faults(config, count) for count in options.num_faults)
    if options.sweep is not None:
        return tuple(with_probability(config, value) for value in options.sweep)
    if options.probability is not None:
        return (with_probability(config, options.probability),)
    return (config,)


def claim_outputs(
    options: argparse.Namespace, experiment: ExperimentConfig
) -> dict[str, OutputFile]:
    """Check before the work that the output files can be written.

    By default the JSON goes to the current folder, not beside the checkpoint as the specification
    has it, and it replaces only an earlier result of the same evaluation.
    """
    given = {"json": options.output, "csv": options.csv, "plot": options.plot}
    if options.plot is not None:
        check_plot(options.plot)
    outputs = {
        name: OutputFile("--output" if name == "json" else f"--{name}", path)
        for name, path in given.items()
        if path is not None
    }
    checkpoint = expanded(str(experiment.checkpoint.path))
    refuse_overwriting(
        outputs.values(), {"configuration": options.config, "checkpoint": checkpoint}
    )
    if options.output is None:
        faults = experiment.fault_injection
        kind = faults.injection_type if faults.faults is None else "faults"
        default, others = Path(f"fault_eval_{kind}.json"), tuple(outputs.values())
        outputs["json"] = NumberedFile("--output", default, is_same_evaluation, others)
    return outputs
