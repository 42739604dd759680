"""`fxfault eval`: how the accuracy of a quantised network falls under faults."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal import look
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.process_setup import let_threads_sleep

DESCRIPTION = """\
Measure how faults change the accuracy of a quantised network. They strike its activations, or what
`--memory` names, and they do so during the evaluation, whatever `apply_during` says."""

EPILOG = """\
examples:
  fxfault eval digits --sweep 0,1,2,5,10,20,50 --num-runs 5 --plot accuracy.png
  fxfault eval digits --per-layer --probability 5 --num-runs 5
  fxfault eval digits --memory weights --sweep 0.1,1,10 --num-runs 10
  fxfault eval my.yaml --checkpoint best.pth --probability 10 --injection-type msb_flip

exit status: 0 done; 2 something in the input is wrong, and nothing was written; 130 interrupted,
and the finished results are written and marked as incomplete. If somebody replaced the checkpoint
during the run, the status is 2, and the results of the old one are written."""


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    program = program or types.program("eval")
    options = types.OneLineParser.of(program, add_options).parse(argv)
    options.command = f"{program} {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return run(_evaluate, options)


def add_options(parser: types.OneLineParser) -> None:
    """Add all options, with the texts around them."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    types.add_config(parser)
    text = "trained weights (default: checkpoint.path of the configuration)"
    parser.add_argument("--checkpoint", type=types.checkpoint, metavar="FILE", help=text)
    _add_fault_options(parser)
    _add_run_options(parser)
    _add_output_options(parser)


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("faults", "these replace the values of the configuration")
    chosen = group.add_mutually_exclusive_group()
    text = "probability that a fault strikes a value, from 0 to 100"
    chosen.add_argument("--probability", type=types.percentage, metavar="PERCENT", help=text)
    text = "several probabilities, evaluated one after the other"
    chosen.add_argument("--sweep", type=types.percentages, metavar="P,P,...", help=text)
    text = (
        "exact number of hits, in place of a probability: in each sample, or in the weights, "
        "biases and parameters of each trial; they are spread over all selected sites; several "
        "numbers are evaluated one after the other"
    )
    chosen.add_argument("--num-faults", type=types.fault_counts, metavar="K,K,...", help=text)
    group.add_argument("--injection-type", metavar="NAME", help="fault model, such as msb_flip")
    types.add_bit(group)
    text = (
        "full_model: strike all selected sites; layer: strike one of them, which "
        "`injection_layer` names or else each run draws"
    )
    group.add_argument("--mode", choices=("full_model", "layer"), help=text)
    types.add_memory(group)
    types.add_layers(group, "; with --mode layer, each run draws one of them")
    text = (
        "also strike each selected site alone, and rank the sites; give one probability or number "
        "of faults for it, and no --sweep"
    )
    group.add_argument("--per-layer", action="store_true", help=text)
    text = (
        "strike exactly the faults of a list, CSV or Parquet: one that `fxfault campaign faults` "
        "wrote, or one with the columns Injection, Layer, TensorIndex and Bit"
    )
    group.add_argument("--replay", type=types.file, metavar="FILE", help=text)
    text = "seed of the faults; the same seed gives the same faults"
    group.add_argument("--seed", type=types.seed, metavar="N", help=text)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    text = (
        "trials for each probability, each with faults of its own (default: 1; with --replay, one "
        "for each injection of the list)"
    )
    group.add_argument("--num-runs", type=types.count, metavar="N", help=text)
    text = "samples in a batch (default: training.batch_size); it does not change the faults"
    group.add_argument("--batch-size", type=types.count, metavar="N", help=text)
    types.add_device(group)
    types.add_no_progress(group)
    types.add_speed_options(
        parser.add_argument_group("speed", "the results are the same with each")
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output", "an existing file of a given name is replaced")
    text = (
        "JSON with all results (default: fault_eval_TYPE.json in the current folder; if "
        "that holds another evaluation, fault_eval_TYPE_2.json and so on)"
    )
    group.add_argument("--output", type=types.file, metavar="FILE", help=text)
    group.add_argument("--csv", type=types.file, metavar="FILE", help="results as a table")
    text = (
        "picture (.png, .svg or .pdf): accuracy against probability, or with --per-layer "
        "the ranking"
    )
    group.add_argument("--plot", type=types.file, metavar="FILE", help=text)
    look.add_look(group)
    look.add_tolerance(group)


def _evaluate(options: argparse.Namespace) -> int:
    let_threads_sleep()
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.evaluation_run import evaluate

    return evaluate(options)


if __name__ == "__main__":
    sys.exit(main())
