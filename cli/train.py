"""`fxfault train`: train a quantised network, clean or under faults."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.process_setup import let_threads_sleep
from fxfault.cli.terminal.progress import Progress

DESCRIPTION = """\
Train a quantised network as a configuration says, without faults or under them (fault-aware
training). Each run writes a folder: its configuration, checkpoints, metrics, TensorBoard events, a
picture of the curves, and a record that tells how to repeat it."""

EPILOG = """\
examples:
  fxfault train digits
  fxfault train digits_fat --set fault_injection.probability=5 --out runs/five
  fxfault train digits_fat --init bundled:digits --set optimizer.learning_rate=1e-3
  fxfault train my.yaml --dry-run
  fxfault train --resume --out runs/five

exit status: 0 done; 2 something in the input is wrong, the training failed, or its files cannot be
written; 130 interrupted, and what was trained is saved and can be resumed."""


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    program = program or types.program("train")
    options = types.OneLineParser.of(program, add_options).parse(argv)
    options.command = f"{program} {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return run(_train, options)


def add_options(parser: types.OneLineParser) -> None:
    """Add all options, with the texts around them."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    what = f"{types.EXPERIMENT}; with --resume --out it may be left out"
    types.add_config(parser, what, required=False)
    text = (
        "weights to start from, a file or bundled:NAME (default: checkpoint.init_from of the "
        "configuration, or else random ones); not checkpoint.path, which `fxfault eval` loads"
    )
    add("--init", type=types.checkpoint, metavar="FILE", help=text)
    types.add_bit(parser)
    types.add_layers(parser)
    text = "folder of the run (default: NAME-001, NAME-002 and so on in checkpoint.dir)"
    add("--out", type=types.folder, metavar="DIR", help=text)
    text = "continue the run in --out, or the newest run of the configuration"
    add("--resume", action="store_true", help=text)
    types.add_device(parser)
    text = (
        "processes that train together, each on a GPU of its own or on the CPU (default: 1); each "
        "takes batches of training.batch_size"
    )
    add("--devices", type=types.count, default=1, metavar="N", help=text)
    types.add_no_progress(parser)
    text = "run one batch of each phase, print the plan of all epochs, and write nothing"
    add("--dry-run", action="store_true", help=text)


def _train(options: argparse.Namespace) -> int:
    let_threads_sleep()
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.training_run import plan_run

    plan = plan_run(options)
    # Of several processes, only the first says anything.
    progress = Progress(wanted=not options.no_progress, is_silent=plan.is_helper)
    try:
        with progress.showing_logs(plan.experiment.fault_injection.verbose):
            from fxfault.cli.training_progress import quiet_lightning
            from fxfault.cli.training_session import Session

            with quiet_lightning():
                return Session(options, plan, progress).run()
    finally:
        if plan.folder is not None:
            plan.folder.release()


if __name__ == "__main__":
    sys.exit(main())
