"""`fxfault init`: a first configuration for a network of the user's own."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.process_setup import let_threads_sleep

if TYPE_CHECKING:
    from torch import nn

    from fxfault.experiment.sections import ExperimentConfig
    from fxfault.passes.inspection import Inspection

DESCRIPTION = """\
Write a configuration for a network of your own, with comments and a list of the sites that faults
can strike. The network is built for that; with --data one batch is run."""

EPILOG = """\
examples:
  fxfault init my_package.nets:build --data my_package.data:test_set
  fxfault init my_package.nets:build --set model.kwargs.width=32 --output small.yaml

exit status: 0 done; 2 something in the input is wrong, and nothing was written."""

# What the file says of the faults, apart from their memory.
_FAULTS = {
    "enabled": True,
    "apply_during": "eval",
    "injection_type": "random",
    "probability": 1.0,
    "seed": 42,
}


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    program = program or types.program("init")
    parser = types.OneLineParser(prog=program)
    add_options(parser)
    options = parser.parse(argv)
    options.command = f"{program} {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return run(_init, options)


def add_options(parser: types.OneLineParser) -> None:
    """Add all options, with the texts around them."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    text = "what makes your network: package.module:factory, such as my_package.nets:build"
    add("model", metavar="MODEL", help=text)
    text = "what gives your data: package.module:factory, or the name of a built-in data set"
    add("--data", metavar="DATA", help=text)
    types.add_set(parser, "put a value into the file, such as model.kwargs.width=32")
    text = "the file to write, which must not be there (default: fxfault.yaml)"
    add("--output", type=types.file, default=Path("fxfault.yaml"), metavar="FILE", help=text)


def _init(options: argparse.Namespace) -> int:
    let_threads_sleep()
    from fxfault.experiment.first_file import first_file
    from fxfault.files.access import write_atomically

    output: Path = options.output
    _refuse_to_replace(output)
    target = Path(os.path.abspath(output))  # The user's code may change the folder.
    content, experiment = _experiment(options)
    inspections = _inspected(experiment)
    sites = [site for inspection in inspections for site in inspection.sites]
    memories = [site.memory for site in sites]
    first = {} if "activations" in memories or not memories else {"memory": memories[0]}
    content["fault_injection"] = {**_FAULTS, **first, **content.get("fault_injection", {})}
    skipped = [target.path for inspection in inspections for target in inspection.skipped]
    text = first_file(options.command, shlex.quote(str(output)), content, sites, skipped)
    _refuse_to_replace(target)
    write_atomically(target, text)
    kinds = ", ".join(f"{memories.count(kind)} in {kind}" for kind in dict.fromkeys(memories))
    print(f"Model: {options.model}, sites: {kinds}")
    print(f"Configuration saved to: {output}")
    if experiment.dataset is None:
        print(f"Next: name your data in {output}, then run: fxfault eval {output}")
    else:
        print(f"Next: fxfault eval {output}")
    return 0


def _refuse_to_replace(output: Path) -> None:
    from fxfault.errors import ConfigError

    if os.path.lexists(output):
        raise ConfigError(f"--output: {output} is already there; name another file, or remove it")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: the folder {output.parent} does not exist; make it first")


def _experiment(options: argparse.Namespace) -> tuple[dict[str, Any], ExperimentConfig]:
    """The sections of the file without its faults, as written and as checked."""
    from fxfault.config.changes import told_by_flag, with_changes
    from fxfault.errors import ConfigError, InvalidConfigError
    from fxfault.experiment.sections import ExperimentConfig
    from fxfault.models import model_names

    if options.model in model_names():
        raise ConfigError(
            f"MODEL: {options.model} is a built-in network, and this is for your own, as "
            "package.module:factory; `fxfault eval digits` evaluates a built-in one"
        )
    content: dict[str, Any] = {"model": {"name": options.model}}
    if options.data is not None:
        content["dataset"] = {"name": options.data}
    flags = {"model.name": "MODEL", "dataset.name": "--data"}
    flags.update({path: f"--set {path}" for path, _ in options.set})
    try:
        content = with_changes(content, dict(options.set))
        faults = {**_FAULTS, **(content.get("fault_injection") or {})}
        return content, ExperimentConfig.from_dict({**content, "fault_injection": faults})
    except InvalidConfigError as error:
        raise told_by_flag(error, flags) from error


def _inspected(experiment: ExperimentConfig) -> list[Inspection]:
    """Build the network, run it on a batch if there is data, and find the sites of each memory."""
    import dataclasses

    import fxfault
    from fxfault.cli.terminal.process_setup import seed_generators
    from fxfault.errors import SiteError, TransformError
    from fxfault.experiment.parts import load_model
    from fxfault.passes.inspection import inspect

    seed_generators(experiment.seed)
    model, _ = load_model(experiment, experiment.checkpoint.path)
    if experiment.dataset is not None:
        _try(model, experiment)
    found: list[Inspection] = []
    refusals = []
    for memory in ("activations", "weights", "biases"):
        changes: Any = {"memory": memory, "layers": None, "unsupported": "skip"}
        faults = dataclasses.replace(experiment.fault_injection, **changes)
        try:
            found.append(inspect(fxfault.transform(model, faults)))
        except (SiteError, TransformError) as error:  # It has no words of this kind.
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _try(model: nn.Module, experiment: ExperimentConfig) -> None:
    """Check that the network takes the data, which also settles what it learns at first."""
    import torch

    from fxfault.evaluation.checks import try_model
    from fxfault.experiment.parts import batches_of, load_metric, open_test_data

    batches = batches_of(experiment, open_test_data(experiment).dataset)
    batches.forward = model.forward
    try_model(model, batches, torch.device("cpu"), load_metric(experiment))


if __name__ == "__main__":
    sys.exit(main())
