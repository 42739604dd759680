"""`fxfault-eval`: how the accuracy of a quantised network falls under faults."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.process_setup import let_threads_sleep

PROGRAM = "fxfault-eval"

DESCRIPTION = """\
Measure how the accuracy of a quantised network falls when faults strike its activations, or with
`--memory` its weights, biases or parameters. Faults are injected during the evaluation, even if
the configuration says `apply_during: train`."""

EPILOG = """\
examples:
  fxfault-eval --config digits --sweep 0,1,2,5,10,20,50 --num-runs 5 --plot accuracy.png
  fxfault-eval --config digits --per-layer --probability 5 --num-runs 5
  fxfault-eval --config digits --memory weights --sweep 0.1,1,10 --num-runs 10
  fxfault-eval --config my.yaml --checkpoint best.pth --probability 10 --injection-type msb_flip

exit status: 0 done; 2 something in the input is wrong, nothing was written (if the checkpoint
was replaced meanwhile, the results of the old one were written);
130 interrupted, the finished results are written and marked as incomplete."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    options = make_parser().parse(argv)
    options.command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    return run(_evaluate, options)


def make_parser() -> types.OneLineParser:
    """Make the parser of the command line."""
    parser = types.OneLineParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    types.add_config(parser)
    text = "trained weights (default: checkpoint.path of the configuration)"
    parser.add_argument("--checkpoint", type=types.checkpoint, metavar="FILE", help=text)
    _add_fault_options(parser)
    _add_run_options(parser)
    _add_output_options(parser)
    return parser


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("faults", "these replace the values of the configuration")
    chosen = group.add_mutually_exclusive_group()
    text = "probability that a fault strikes a value, from 0 to 100"
    chosen.add_argument("--probability", type=types.percentage, metavar="PERCENT", help=text)
    text = "several probabilities, evaluated one after the other"
    chosen.add_argument("--sweep", type=types.percentages, metavar="P,P,...", help=text)
    text = (
        "number of hits in each sample, or in weights, biases and parameters in each trial, "
        "spread over all selected sites, in place of a probability; several numbers are evaluated "
        "one after the other"
    )
    chosen.add_argument("--num-faults", type=types.fault_counts, metavar="K,K,...", help=text)
    group.add_argument("--injection-type", metavar="NAME", help="fault model, such as msb_flip")
    text = (
        "strike all selected sites, or one of them: `injection_layer` of the configuration, "
        "or one drawn for each run"
    )
    group.add_argument("--mode", choices=("full_model", "layer"), help=text)
    types.add_memory(group)
    types.add_layer(group, "; with --mode layer, one of them is drawn for each run")
    text = (
        "also strike each selected site alone, and rank the sites; needs a single probability "
        "or number of faults, so not --sweep"
    )
    group.add_argument("--per-layer", action="store_true", help=text)
    text = (
        "strike exactly the faults of a list: of `fxfault-campaign faults`, or with the columns "
        "Injection, Layer, TensorIndex and Bit; CSV or Parquet"
    )
    group.add_argument("--replay", type=types.file, metavar="FILE", help=text)
    text = "seed of the faults; the same seed gives the same faults"
    group.add_argument("--seed", type=types.seed, metavar="N", help=text)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    text = (
        "trials for each probability, each with its own faults (default: 1, or with a list of "
        "several injections one for each)"
    )
    group.add_argument("--num-runs", type=types.count, metavar="N", help=text)
    text = "samples in a batch (default: training.batch_size); the faults do not depend on it"
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
    types.add_look(group)
    types.add_tolerance(group)


def _evaluate(options: argparse.Namespace) -> int:
    let_threads_sleep()
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.evaluation_run import evaluate

    return evaluate(options)


if __name__ == "__main__":
    sys.exit(main())
