"""`fxfault-train`: train a quantised network, clean or under faults."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fxfault.cli.terminal import arguments as types
from fxfault.cli.terminal.console import run
from fxfault.cli.terminal.interrupts import INTERRUPTED, requesting
from fxfault.cli.terminal.process_setup import fit_threads, let_threads_sleep, seed_generators
from fxfault.cli.terminal.progress import Progress
from fxfault.files.sources import TRAINING, Sources

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.cli.training_run import Run
    from fxfault.sites.fault_sites import FaultSites
    from fxfault.training.callbacks import Row
    from fxfault.training.run import TrainingResult
    from fxfault.training.run_folder import RunFolder

PROGRAM = "fxfault-train"

DESCRIPTION = """\
Train a quantised network as a configuration file says; if it asks for faults in training, they
strike the activations (fault-aware training). Each run writes a folder: configuration,
checkpoints, metrics, TensorBoard events, a picture of the curves, and all that repeats the run."""

EPILOG = """\
examples:
  fxfault-train --config digits
  fxfault-train --config digits_fat --set fault_injection.probability=5 --out runs/five
  fxfault-train --config digits_fat --init bundled:digits --set optimizer.learning_rate=1e-3
  fxfault-train --config my.yaml --dry-run
  fxfault-train --resume --out runs/five

exit status: 0 done; 2 something in the input is wrong, the training failed, or its files cannot
be written; 130 interrupted, what was trained is saved and can be resumed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process; returns its status."""
    options = make_parser().parse(argv)
    options.command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    return run(_train, options)


def make_parser() -> types.OneLineParser:
    """Make the parser of the command line."""
    parser = types.OneLineParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    text = (
        "configuration file, or the name of a bundled one, such as digits; "
        "with --resume --out, the default is that of the run"
    )
    add("--config", metavar="FILE", help=text)
    add(
        "--set",
        type=types.setting,
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a value of the configuration; VALUE is YAML; may be repeated",
    )
    text = (
        "fine-tune: start from these weights, a file or bundled:NAME (default: "
        "checkpoint.init_from of the configuration, or else random weights); a configuration of "
        "yours must not have checkpoint.path, which is for fxfault-eval"
    )
    add("--init", type=types.checkpoint, metavar="FILE", help=text)
    text = "folder of the run (default: NAME-001, NAME-002 and so on in checkpoint.dir)"
    add("--out", type=types.folder, metavar="DIR", help=text)
    text = "continue the run in --out, or the newest run of the configuration"
    add("--resume", action="store_true", help=text)
    types.add_device(parser)
    text = (
        "number of processes that train together, each on its own GPU or on the CPU (default: "
        "1); each takes batches of training.batch_size"
    )
    add("--devices", type=types.count, default=1, metavar="N", help=text)
    types.add_no_progress(parser)
    text = "run one batch of each phase, print the plan of all epochs, and write nothing"
    add("--dry-run", action="store_true", help=text)
    return parser


# -- the command ----------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    let_threads_sleep()
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.training_run import plan_run

    plan = plan_run(options)
    # Of several processes, only the first says anything.
    progress = Progress(wanted=not options.no_progress, is_silent=plan.is_helper)
    try:
        with progress.showing_logs(plan.experiment.fault_injection.verbose):
            from fxfault.cli.reports.training_progress import quiet_lightning

            with quiet_lightning():
                return _Command(options, plan, progress).run()
    finally:
        if plan.folder is not None:
            plan.folder.release()


class _Command:
    """One call of the command, after its configuration was read.

    Attributes:
        rows: measurements of the finished epochs.
        sources: the files that the training starts from.
    """

    def __init__(self, options: argparse.Namespace, plan: Run, progress: Progress) -> None:
        self.options = options
        self.plan = plan
        self.config = plan.experiment
        self.progress = progress
        self.rows: list[Row] = []
        self.sources = Sources(Path.cwd(), {}, TRAINING)  # Before code of the user's may leave it.

    def run(self) -> int:
        from fxfault.training.run import check_trainable
        from fxfault.training.run_folder import RunFolder

        check_trainable(self.config)
        with ExitStack() as stack:
            if not (self.plan.folder or self.options.dry_run or self.options.out is None):
                stack.enter_context(RunFolder.reserved(self.options.out))
            network, sites = self._prepare()
            if self.options.dry_run:
                return self._dry_run(network, sites)
            folder = self.plan.make_folder(self.options.out)
        try:
            self._say_start(folder, sites)
            return self._run_in(folder, network)
        finally:
            folder.release()

    # -- before -----------------------------------------------------------------------------

    def _prepare(self) -> tuple[nn.Module, FaultSites | None]:
        """Open the data and build the network, and try both before anything is written."""
        import fxfault
        from fxfault.evaluation.checks import check_model, try_model
        from fxfault.experiment.parts import (
            Batches,
            load_model,
            open_test_data,
            open_training_data,
        )
        from fxfault.sites.fault_sites import faults_of
        from fxfault.training.run import check_network

        config = self.config
        self.device = self._pick_device()
        seed_generators(config.seed)
        test = open_test_data(config)
        self.test_data, self.training_data = test.dataset, open_training_data(config)
        self._check_sizes()
        network, _ = load_model(config, None, test.facts)
        check_network(config, network)
        self.start = self._initial_weights(network)
        batches = Batches(self.test_data, config.training.batch_size)
        network.to(self.device)
        fit_threads(try_model(network, batches, self.device), self.device)
        # Not verbose here: `train` logs the sites of the network that it trains.
        faults = dataclasses.replace(config.fault_injection, verbose=False)
        faulty = fxfault.transform(network, faults)
        if faulty is network:
            return network, None
        # On test data, as reading the training data would draw random numbers of the training.
        notes = check_model(faulty, network, batches, self.device, most=1, modes=("eval", "train"))
        for note in notes:
            self.progress.note(note)
        return network, faults_of(faulty)

    def _initial_weights(self, network: nn.Module) -> dict[str, str] | None:
        """Load what training starts from, before anything is written; None if it is random."""
        from fxfault.models.checkpoints import most_bytes
        from fxfault.training.run import checkpoint_to_resume, load_initial_weights

        config, plan = self.config, self.plan
        if plan.resumes:
            most = most_bytes(network)
            checkpoint_to_resume(config, plan.folder, self.options.devices, most)
        info = None if plan.resumes else load_initial_weights(config, network, self.sources.folder)
        if info is not None:
            self.sources.note(info.path, info.sha256)
        return None if info is None else {"path": info.path, "sha256": info.sha256}

    def _check_sizes(self) -> None:
        """Check that there are enough samples for each split."""
        from fxfault.training.batches import EpochOrder, Shard, evaluation_loader, split_validation

        settings = self.config.training
        training, validation = split_validation(
            self.training_data, settings.validation_fraction, self.config.seed.value
        )
        sizes = [len(part) if part else 0 for part in (training, validation, self.test_data)]  # type: ignore[arg-type]
        self.sizes = sizes
        shard = Shard(0, self.options.devices)
        EpochOrder(samples=sizes[0], batch_size=settings.batch_size, seed=0, shard=shard)
        if validation is not None:
            evaluation_loader(validation, settings.batch_size, shard)

    def _pick_device(self) -> torch.device:
        import torch

        from fxfault.errors import ConfigError
        from fxfault.experiment.parts import pick_device

        device, wanted = pick_device(self.options.device), self.options.devices
        if device.type == "cuda" and wanted > torch.cuda.device_count():
            raise ConfigError(f"--devices {wanted}: there are {torch.cuda.device_count()} GPUs")
        return device

    def _say_start(self, folder: RunFolder | None, sites: FaultSites | None) -> None:
        from fxfault.cli.reports.training_report import start_lines

        several = f" ({self.options.devices} processes)" if self.options.devices > 1 else ""
        place = None
        if folder is not None:
            place = f"{folder.path}{' (resumed)' if self.plan.resumes else ''}"
        lines = start_lines(
            self.config,
            sites,
            self.sizes,
            device=f"{self.device}{several}",
            beginning=self._beginning(folder),
            folder=place,
        )
        self.progress.say("\n".join(lines))

    def _beginning(self, folder: RunFolder | None) -> str:
        from fxfault.training.run_folder import LAST

        if self.plan.resumes and folder is not None:
            named = self.config.checkpoint.init_from
            first = f", which started from {named}" if named else ""
            return f"{folder.path / LAST}{first}"
        if self.start is None:
            return "random weights"
        return f"{self.start['path']} (sha256 {self.start['sha256'][:12]}…)"

    def _dry_run(self, network: nn.Module, sites: FaultSites | None) -> int:
        from fxfault.cli.reports.training_report import plan_lines
        from fxfault.training.run import train

        self._say_start(None, sites)
        train(
            self.config,
            network,
            self.training_data,
            self.test_data,
            device=self.device,
            one_batch=True,
            sources=self.sources,
        )
        self.progress.say("One batch of training, validation and test: all run.\n")
        self.progress.say("\n".join(plan_lines(self.config)))
        return 0

    # -- the run ----------------------------------------------------------------------------

    def _run_in(self, folder: RunFolder, network: nn.Module) -> int:
        from fxfault.cli.reports.training_progress import Reporter
        from fxfault.cli.reports.training_record import TrainingRecord
        from fxfault.cli.training_run import repeat_command
        from fxfault.errors import TrainingError
        from fxfault.training.run import Interrupted, train

        self.record = TrainingRecord(
            command=self.options.command,
            repeat=repeat_command(folder, self.options.devices),
            start=self.start,
            config=self.config,
            device=self.device,
            devices=self.options.devices,
        )
        if self.plan.resumes:
            self.record.continue_from(folder)
        self._write_record(folder, None)
        reporter = Reporter(self.progress)
        say = self.progress.say
        try:
            with requesting(
                lambda: say("stopping after this step (Ctrl-C again: at once)", error=True)
            ) as is_stopped:
                result = train(
                    self.config,
                    network,
                    self.training_data,
                    self.test_data,
                    folder=folder,
                    resume=self.plan.resumes,
                    device=self.device,
                    devices=self.options.devices,
                    callbacks=[reporter],
                    stop=is_stopped,
                    sources=self.sources,
                )
        except Interrupted as stop:
            self.rows = reporter.rows
            return self._interrupted(folder, stop.epoch)
        except KeyboardInterrupt:
            say(f"interrupted at once; {self._how_to_continue(folder)}", error=True)
            return INTERRUPTED
        except TrainingError:
            if self.plan.is_helper:
                return 0  # The first process says it; with another status it would be killed.
            raise
        if result is None:
            return 0
        self.rows = result.rows
        return self._finish(folder, result)

    def _interrupted(self, folder: RunFolder, epoch: int) -> int:
        if self.plan.is_helper:
            return 0
        self._draw(folder, None)
        saved = ""
        if self.config.checkpoint.enabled:
            epochs = f"{self.config.training.epochs} (from 0)"
            saved = f"saved {folder.path / 'last.ckpt'} in epoch {epoch} of {epochs}; "
        self.progress.say(f"interrupted: {saved}{self._how_to_continue(folder)}", error=True)
        self._write_record(folder, None)
        return INTERRUPTED

    def _how_to_continue(self, folder: RunFolder) -> str:
        from fxfault.cli.training_run import resume_command
        from fxfault.training.run_folder import LAST

        if not self.config.checkpoint.enabled:
            return "no checkpoint was saved, as checkpoint.enabled is false"
        if not folder.file(LAST).is_file():
            return "no checkpoint was saved yet: start again"
        return f"continue with: {resume_command(folder, self.options.devices)}"

    def _finish(self, folder: RunFolder, result: TrainingResult) -> int:
        from fxfault.cli.reports.training_report import result_lines
        from fxfault.cli.training_run import resume_command

        again = resume_command(folder, self.options.devices)
        self.progress.say("\n" + "\n".join(result_lines(self.config, result, folder.path, again)))
        self._draw(folder, result.test_accuracy)
        self._write_record(folder, result)
        self.progress.say(f"Run saved to: {folder.path}")
        return 0

    # -- files ------------------------------------------------------------------------------

    def _draw(self, folder: RunFolder, test_accuracy: float | None) -> None:
        from fxfault.cli.pictures.plots import training_picture
        from fxfault.training.run_folder import CURVE

        if self.rows:
            folder.write(CURVE, training_picture(self.rows, test_accuracy, "png"))

    def _write_record(self, folder: RunFolder, result: TrainingResult | None) -> None:
        from fxfault.training.run_folder import RECORD

        if not self.plan.is_helper:
            folder.write(RECORD, self.record.to_json(self.rows, result))


if __name__ == "__main__":
    sys.exit(main())
