"""`fxfault inspect`: the sites that a configuration gives a network, and what the pass did."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.colours import coloured
from fxfault.cli.terminal.console import run

if TYPE_CHECKING:
    from torch import nn

    from fxfault.experiment.sections import ExperimentConfig
    from fxfault.models.checkpoints import CheckpointInfo
    from fxfault.passes.inspection import Inspection
    from fxfault.results.outputs import OutputFile

SCHEMA = "fxfault-inspect/1"

DESCRIPTION = """\
Show where the faults of a configuration strike: all sites of the network in a table, and how each
of its modules was handled. To measure the sites, one sample of zeros is run without faults, and a
few of random numbers, which show which elements belong to which sample."""

EPILOG = """\
examples:
  fxfault inspect digits
  fxfault inspect digits --diff
  fxfault inspect digits --memory weights,activations
  fxfault inspect my.yaml --layers 'layer1.*' --svg sites.svg --json sites.json

exit status: 0 done; 2 something in the input is wrong, and nothing was written."""


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    program = program or types.program("inspect")
    return run(_inspect, types.OneLineParser.of(program, add_options).parse(argv))


def add_options(parser: types.OneLineParser) -> None:
    """Add all options, with the texts around them."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    types.add_config(parser)
    text = (
        "trained weights (default: checkpoint.path of the configuration; without any, the "
        "untrained network is shown)"
    )
    parser.add_argument("--checkpoint", type=types.checkpoint, metavar="FILE", help=text)
    types.add_bit(parser)
    types.add_memory(parser)
    types.add_layers(parser)
    text = "shape of one sample, such as 3,32,32 (default: that of the data set)"
    parser.add_argument("--input-shape", type=_shape, metavar="N,N,...", help=text)
    group = parser.add_argument_group("output", "an existing file is replaced")
    add = group.add_argument
    add("--code", action="store_true", help="print the generated code too")
    add("--diff", action="store_true", help="print what the faults changed in that code")
    add("--dot", type=types.file, metavar="FILE", help="drawing in Graphviz's DOT language")
    add("--svg", type=types.file, metavar="FILE", help="drawing as a picture; needs Graphviz")
    add("--json", type=types.file, metavar="FILE", help="the tables as JSON")


def _shape(text: str) -> tuple[int, ...]:
    """Read the shape of one sample.

    >>> _shape("3, 32, 32")
    (3, 32, 32)
    """
    sizes = [item.strip() for item in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 3,32,32")
    return tuple(map(int, sizes))


# -- the command ----------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> int:
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.passes.code_text import code_of, diff
    from fxfault.passes.drawing import to_dot, to_svg
    from fxfault.passes.inspection import inspect

    experiment, notes = _read_experiment(options)
    outputs = _claim_outputs(options, experiment)
    shape = options.input_shape or _sample_shape(experiment)
    model, checkpoint = _make_faulty_model(experiment, notes)
    _run_one_sample(model, shape, notes)
    model.train(experiment.fault_injection.apply_during == "train")
    inspection = inspect(model)
    parts = [_headline(experiment, shape, checkpoint, notes), str(inspection)]
    parts += [code_of(model)] if options.code else []
    parts += [diff(model)] if options.diff else []
    contents = {
        "dot": lambda: to_dot(model),
        "svg": lambda: to_svg(model),
        "json": lambda: _to_json(experiment, shape, checkpoint, inspection),
    }
    made = {name: contents[name]() for name in outputs}
    print(coloured("\n\n".join(part.rstrip("\n") for part in parts)))
    for name, output in outputs.items():
        output.write(made[name])
        print(f"{'Tables' if name == 'json' else 'Drawing'} saved to: {output.path}")
    return 0


def _read_experiment(options: argparse.Namespace) -> tuple[ExperimentConfig, list[str]]:
    """Read the configuration, change it as the command line says, and give notes on that."""
    from fxfault.bundled.files import BUNDLED
    from fxfault.cli.configurations import read_experiment
    from fxfault.files.access import expanded

    experiment = read_experiment(options)
    notes: list[str] = []
    path = experiment.checkpoint.path
    is_there = path is None or path.startswith(BUNDLED) or expanded(path).exists()
    if options.checkpoint is None and not is_there:
        notes.append(f"there is no {path}, which the configuration names as its checkpoint")
        path = None
    if experiment.checkpoint.init_from is not None:
        notes.append("`checkpoint.init_from` is ignored: it is for training")
    checkpoint = dataclasses.replace(experiment.checkpoint, path=path)
    return dataclasses.replace(experiment, checkpoint=checkpoint), notes


def _claim_outputs(
    options: argparse.Namespace, experiment: ExperimentConfig
) -> dict[str, OutputFile]:
    """Check before the work that the output files can be written."""
    from fxfault.files.access import expanded
    from fxfault.results.outputs import OutputFile, refuse_overwriting

    outputs = {
        name: OutputFile(f"--{name}", path)
        for name in ("dot", "svg", "json")
        if (path := getattr(options, name)) is not None
    }
    inputs: dict[str, str | Path] = {"configuration": options.config}
    if experiment.checkpoint.path is not None:
        inputs["checkpoint"] = expanded(experiment.checkpoint.path)
    refuse_overwriting(outputs.values(), inputs)
    return outputs


def _sample_shape(experiment: ExperimentConfig) -> tuple[int, ...] | None:
    """The shape of one sample; None if the configuration names no data set."""
    from fxfault.data import build_dataset, dataset_facts

    data = experiment.dataset
    if data is None:
        return None
    if ":" in data.name:  # A data set of the user's own need not tell its sizes.
        dataset = build_dataset(data.name, "test", root=data.root, kwargs=data.kwargs)
        return tuple(dataset[0][0].shape)
    facts = dataset_facts(data.name, root=data.root, kwargs=data.kwargs)
    return (facts.in_channels, *facts.image_size)


def _make_faulty_model(
    experiment: ExperimentConfig, notes: list[str]
) -> tuple[nn.Module, CheckpointInfo | None]:
    import fxfault
    from fxfault.cli.terminal.process_setup import seed_generators
    from fxfault.experiment.parts import load_model
    from fxfault.sites.fault_sites import faults_of

    config = experiment.fault_injection
    seed_generators(experiment.seed)
    model, checkpoint = load_model(experiment, experiment.checkpoint.path)
    if checkpoint is None:
        notes.append("the network is untrained: scales and learned widths are initial ones")
    faulty = fxfault.transform(model, dataclasses.replace(config, enabled=True))
    faults_of(faulty).enabled = config.enabled
    notes += faults_of(faulty).number_notes()
    return faulty, checkpoint


def _run_one_sample(model: nn.Module, shape: tuple[int, ...] | None, notes: list[str]) -> None:
    """Run a sample, so that every site sees its activation."""
    import torch

    import fxfault
    from fxfault.errors import FOREIGN, DataError, FxFaultError
    from fxfault.messages import quote_error
    from fxfault.passes.inspection import probe
    from fxfault.sites.fault_sites import faults_of

    if shape is None:
        notes.append("no sample was run: name a data set in the configuration or --input-shape")
        return
    try:
        sample = torch.zeros(1, *shape)
        fxfault.check(model, faults_of(model).original, sample, modes=("eval",))
        probe(model, sample)
        faults_of(model).measure_layouts(sample)
    except FxFaultError:
        raise
    except FOREIGN as error:  # The user's network may fail in any way.
        raise DataError(
            f"the model fails on one sample of zeros, shape {(1, *shape)}: {quote_error(error)}; "
            "give the shape of its input with --input-shape"
        ) from error


# -- text -----------------------------------------------------------------------------------


def _headline(
    experiment: ExperimentConfig,
    shape: tuple[int, ...] | None,
    checkpoint: CheckpointInfo | None,
    notes: Sequence[str],
) -> str:
    assert experiment.model is not None
    config = experiment.fault_injection
    sample = "" if shape is None else f", samples of {' x '.join(map(str, shape))}"
    weights = "none" if checkpoint is None else f"{checkpoint.path} ({checkpoint.sha256[:12]}…)"
    lines = [
        f"Model: {experiment.model.name}{sample}",
        f"Checkpoint: {weights}",
        f"Faults: {_fault_words(config)}",
        *(f"Note: {note}" for note in notes),
    ]
    return "\n".join(lines)


def _fault_words(config: Any) -> str:
    faults = "; ".join(str(entry).replace(" at ", " ") for entry in config.entries())
    words = [faults, f"mode {config.mode}", f"during {config.apply_during}"]
    if config.apply_during != "eval":
        if config.epoch_interval > 1:
            words.append(f"every {config.epoch_interval} epochs")
        if config.step_interval < 1:
            words.append(f"in {100 * config.step_interval:g} % of the steps")
        if config.curriculum is not None:
            words.append(f"a curriculum of {len(config.curriculum)} points")
    return ", ".join(words)


def _to_json(
    experiment: ExperimentConfig,
    shape: tuple[int, ...] | None,
    checkpoint: CheckpointInfo | None,
    inspection: Inspection,
) -> str:
    from fxfault.experiment.applied_settings import applied

    weights = None
    if checkpoint is not None:
        weights = {"path": checkpoint.path, "sha256": checkpoint.sha256}
    document = {
        "schema": SCHEMA,
        "config": applied(experiment.to_dict(), evaluation=False),
        "checkpoint": weights,
        "sample_shape": None if shape is None else list(shape),
        **inspection.to_dict(),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
