"""`fxfault-train`: train a quantised network, clean or under faults."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.cli import arguments as types
from fxfault.cli.console import run
from fxfault.cli.interrupts import INTERRUPTED
from fxfault.cli.progress import Progress
from fxfault.sources import TRAINING, Sources

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.cli.training_run import Run
    from fxfault.run_folder import RunFolder
    from fxfault.sites import FaultSites
    from fxfault.training import TrainingResult
    from fxfault.training_callbacks import Row

PROGRAM = "fxfault-train"
_MOST_RECORD = 2**24  # bytes of run.json, which grows with each --resume

# Percentage points by which accuracy under faults may be the higher one by chance.
ODDLY_BETTER = 1.0

DESCRIPTION = """\
Train a quantised network by a configuration file; where it asks for faults while training, they
strike its activations (fault-aware training). Each run writes a folder: configuration,
checkpoints, metrics, TensorBoard events, a picture of the curves, and what repeats it."""

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
    """Run the command; see `fxfault-train --help`.

    Args:
        argv: the command line without the program; default: that of the process.

    Returns:
        The exit status.
    """
    options = make_parser().parse(argv)
    options.command = shlex.join([PROGRAM, *(sys.argv[1:] if argv is None else argv)])
    return run(_train, options)


def make_parser() -> types.OneLineParser:
    """The command's options."""
    parser = types.OneLineParser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="configuration file, or the name of a bundled one, such as digits; "
        "with --resume --out, the run's own is the default",
    )
    add(
        "--set",
        type=types.setting,
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a value that takes the place of the configuration's, as YAML; may be repeated",
    )
    add(
        "--init",
        type=types.checkpoint,
        metavar="FILE",
        help="fine-tune: start from these weights, a file or bundled:NAME (default: "
        "checkpoint.init_from of the configuration, or else random weights); "
        "checkpoint.path is for fxfault-eval, and refused where a file of yours has it",
    )
    add(
        "--out",
        type=types.folder,
        metavar="DIR",
        help="folder of the run (default: NAME-001 and so on in checkpoint.dir)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, or with the newest run of the configuration",
    )
    add(
        "--device",
        type=types.device,
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is one)",
    )
    add(
        "--devices",
        type=types.count,
        default=1,
        metavar="N",
        help="processes that train together, on a GPU each or on the CPU (default: 1); each "
        "takes batches of training.batch_size",
    )
    add("--no-progress", action="store_true", help="show no progress bar")
    add(
        "--dry-run",
        action="store_true",
        help="run one batch of each phase, print the plan of all epochs, and write nothing",
    )
    return parser


# -- the command ----------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    # Read when torch is imported; see `fxfault-eval`.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported here, so that --help and a bad flag need neither torch nor brevitas.
    from fxfault.cli.training_run import plan_run

    plan = plan_run(options)
    progress = Progress(wanted=not (options.no_progress or plan.is_helper))
    if plan.is_helper:
        progress.say = _say_nothing  # type: ignore[method-assign]
    verbose = plan.experiment.fault_injection.verbose
    try:
        with progress.showing_logs(verbose), _quiet_lightning():
            return _Command(options, plan, progress).run()
    finally:
        if plan.folder is not None:
            plan.folder.release()


def _say_nothing(text: str = "", *, error: bool = False) -> None:
    """Several processes say everything once."""


class _Command:
    """One call of the command, after its configuration was read.

    Attributes:
        rows: what the epochs measured, as far as they got.
        sources: what the training starts from.
    """

    def __init__(self, options: argparse.Namespace, plan: Run, progress: Progress) -> None:
        self.options = options
        self.plan = plan
        self.config = plan.experiment
        self.progress = progress
        self.rows: list[Row] = []
        self.sources = Sources(Path.cwd(), {}, TRAINING)  # Before code of the user's may leave it.

    def run(self) -> int:
        from fxfault.run_folder import RunFolder
        from fxfault.training import check_trainable

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
        """Open the data and build the network, and try both out."""
        import fxfault
        from fxfault.cli import experiment_setup as setup
        from fxfault.sites import faults_of
        from fxfault.training import check_network

        config = self.config
        assert config.dataset is not None
        assert config.model is not None
        self.device = self._pick_device()
        setup.seed_generators(config.seed)
        test = setup.open_test_data(config)
        self.test_data, self.training_data = test.dataset, setup.open_training_data(config)
        self._split()
        network, _ = setup.load_model(config, None, test.facts)
        check_network(config, network)
        self.start = self._beginning_of(network)
        batches = setup.Batches(self.test_data, config.training.batch_size)
        network.to(self.device)
        work = setup.try_model(network, batches, self.device)
        setup.fit_threads(work, self.device)
        # Quiet: what is verbose is said of the network that is trained.
        faults = dataclasses.replace(config.fault_injection, verbose=False)
        faulty = fxfault.transform(network, faults)
        if faulty is not network:
            # On test data: reading the training data would draw the random numbers of training.
            for note in setup.check_model(
                faulty, network, batches, self.device, most=1, modes=("eval", "train")
            ):
                self.progress.say(f"Note: {note}")
        return network, faults_of(faulty) if faulty is not network else None

    def _beginning_of(self, network: nn.Module) -> dict[str, str] | None:
        """Load what training starts from, so that it is known before anything is written."""
        from fxfault.checkpoints import most_bytes
        from fxfault.training import checkpoint_to_resume, load_initial_weights

        config, plan = self.config, self.plan
        if plan.resumes:
            most = most_bytes(network)
            checkpoint_to_resume(config, plan.folder, self.options.devices, most)
        info = None if plan.resumes else load_initial_weights(config, network, self.sources.folder)
        if info is not None:
            self.sources.note(info.path, info.sha256)
        return None if info is None else {"path": info.path, "sha256": info.sha256}

    def _split(self) -> None:
        """Find out before anything is written whether there is enough to train on."""
        from fxfault.training_data import EpochOrder, Shard, evaluation_loader, split_validation

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
        from fxfault.cli.experiment_setup import pick_device
        from fxfault.errors import ConfigError

        device = pick_device(self.options.device)
        if device.type == "cuda" and self.options.devices > 1:
            import torch

            if self.options.devices > torch.cuda.device_count():
                raise ConfigError(
                    f"--devices {self.options.devices}: there are {torch.cuda.device_count()} GPUs"
                )
        return device

    def _say_start(self, folder: RunFolder | None, sites: FaultSites | None) -> None:
        from fxfault.cli.training_report import fault_lines

        config, say = self.config, self.progress.say
        assert config.dataset is not None
        assert config.model is not None
        several = f" ({self.options.devices} processes)" if self.options.devices > 1 else ""
        say(f"Using device: {self.device}{several}")
        training, validation, test = self.sizes
        sizes = f"{training} training, {validation} validation, {test} test samples"
        say(f"Dataset: {config.dataset.name} ({sizes})")
        say(f"Model: {config.model.name}")
        say(f"Starting from: {self._beginning(folder)}")
        say(f"Seed: {config.seed.value} (of the faults: {config.fault_injection.seed})")
        if folder is not None:
            resumed = " (resumed)" if self.plan.resumes else ""
            say(f"Run folder: {folder.path}{resumed}")
        say("\n" + "\n".join(fault_lines(config, sites)) + "\n")

    def _beginning(self, folder: RunFolder | None) -> str:
        from fxfault.run_folder import LAST

        if self.plan.resumes and folder is not None:
            named = self.config.checkpoint.init_from
            first = f", which started from {named}" if named else ""
            return f"{folder.path / LAST}{first}"
        if self.start is None:
            return "random weights"
        return f"{self.start['path']} (sha256 {self.start['sha256'][:12]}…)"

    def _dry_run(self, network: nn.Module, sites: FaultSites | None) -> int:
        from fxfault.cli.training_report import plan_lines
        from fxfault.training import train

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
        from fxfault.cli.training_progress import Reporter
        from fxfault.errors import TrainingError
        from fxfault.training import Interrupted, train

        self.started = time.time()
        earlier = self._earlier_record(folder)
        self.sessions = list(earlier.get("sessions", ()))
        if self.plan.resumes:
            named = self.config.checkpoint.init_from
            unknown = None if named is None else {"path": named, "sha256": None}
            self.start = earlier.get("start", unknown)
        self._write_record(folder, None)
        reporter = Reporter(self.progress)
        say = self.progress.say
        try:
            with _stopping_on_signals(self.progress) as stopped:
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
                    stop=stopped,
                    sources=self.sources,
                )
        except Interrupted as stop:
            self.rows = reporter.rows
            return self._interrupted(folder, f"in epoch {stop.epoch}")
        except KeyboardInterrupt:
            say(f"interrupted at once; {self._going_on(folder)}", error=True)
            return INTERRUPTED
        except TrainingError:
            if self.plan.is_helper:
                return 0  # The first process says it; another status would have it killed.
            raise
        if result is None:
            return 0
        self.rows = result.rows
        return self._finish(folder, result)

    def _interrupted(self, folder: RunFolder, where: str) -> int:
        if self.plan.is_helper:
            return 0
        self._draw(folder, None)
        saved = ""
        if self.config.checkpoint.enabled:
            epochs = f"{self.config.training.epochs} (from 0)"
            saved = f"saved {folder.path / 'last.ckpt'} {where} of {epochs}; "
        self.progress.say(f"interrupted: {saved}{self._going_on(folder)}", error=True)
        self._write_record(folder, None)
        return INTERRUPTED

    def _going_on(self, folder: RunFolder) -> str:
        from fxfault.cli.training_run import resume_command
        from fxfault.run_folder import LAST

        if not self.config.checkpoint.enabled:
            return "no checkpoint was saved, as checkpoint.enabled is false"
        if not folder.file(LAST).is_file():
            return "no checkpoint was saved yet: start anew"
        return f"go on with: {resume_command(folder, self.options.devices)}"

    def _finish(self, folder: RunFolder, result: TrainingResult) -> int:
        from fxfault.run_folder import CALIBRATED

        say = self.progress.say
        which = "last epoch's weights"
        if result.best is not None:
            by = self.config.checkpoint.best_by
            which = f"weights of epoch {result.best['epoch']:.0f}, the best in {by} validation"
        say()
        if result.calibrated:
            how = self.config.training.calibrate
            which += f", batch norm calibrated {how}"
            counted = f"{result.calibrated} batch norm{'s' * (result.calibrated > 1)}"
            kept = f"; saved to {folder.path / CALIBRATED}" * self.config.checkpoint.enabled
            say(f"Statistics of {counted} estimated anew ({how}){kept}")
        say(f"Test accuracy: {result.test_accuracy:.2f}% ({which})")
        if result.faulty_test_accuracy is not None:
            say(f"Test accuracy under faults: {result.faulty_test_accuracy:.2f}%")
            self._say_whose_statistics(folder, result)
        self._draw(folder, result.test_accuracy)
        self._write_record(folder, result)
        say(f"Run saved to: {folder.path}")
        return 0

    def _say_whose_statistics(self, folder: RunFolder, result: TrainingResult) -> None:
        """Point out what makes a network worse without faults than under them."""
        from fxfault.batch_norm import batch_norms
        from fxfault.cli.training_run import resume_command

        faulty = result.faulty_test_accuracy
        if faulty is None or result.calibrated or not batch_norms(result.network):
            return
        if faulty > result.test_accuracy + ODDLY_BETTER:
            mend = "train with --set training.calibrate=clean"
            if self.config.checkpoint.enabled:
                again = resume_command(folder, self.options.devices)
                mend = f"estimate them anew: {again} --set training.calibrate=clean"
            self.progress.say(
                "Note: it is better under faults, as its batch norms have the statistics of noisy "
                f"steps; for use without faults, {mend}"
            )

    # -- files ------------------------------------------------------------------------------

    def _draw(self, folder: RunFolder, test_accuracy: float | None) -> None:
        from fxfault.cli.plots import training_picture
        from fxfault.run_folder import CURVE

        if self.rows:
            folder.write(CURVE, training_picture(self.rows, test_accuracy, "png"))

    def _earlier_record(self, folder: RunFolder) -> dict[str, Any]:
        """What run.json says of the run that is resumed."""
        from fxfault.run_folder import RECORD

        if not self.plan.resumes:
            return {}
        try:
            record = json.loads(folder.read(RECORD, _MOST_RECORD))
        except (OSError, ValueError):
            return {}  # Killed before it was written, or edited: nothing of the result is in it.
        sound = isinstance(record, dict) and isinstance(record.get("sessions"), list)
        return record if sound else {}

    def _write_record(self, folder: RunFolder, result: TrainingResult | None) -> None:
        """Write run.json: all that is needed to repeat the run, and what came of it."""
        import torch

        from fxfault.cli.training_report import to_json
        from fxfault.cli.training_run import repeat_command
        from fxfault.run_folder import RECORD

        if self.plan.is_helper:
            return
        is_cuda = self.device.type == "cuda"
        session = {
            "command": self.options.command,
            "started": datetime.datetime.fromtimestamp(self.started, datetime.timezone.utc)
            .replace(microsecond=0)
            .isoformat(),
            "seconds": round(time.time() - self.started, 3),
        }
        record: dict[str, Any] = {
            "complete": result is not None,
            "repeat": repeat_command(folder, self.options.devices),
            "start": self.start,
            "seed": self.config.seed.value,
            "fault_seed": self.config.fault_injection.seed,
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if is_cuda else None,
            "devices": self.options.devices,
            "threads": torch.get_num_threads(),
            "sessions": [*self.sessions, session],
            "epochs": len(self.rows),
            "last": self.rows[-1] if self.rows else None,
        }
        if result is not None:
            record["best"] = result.best
            record["calibrated"] = result.calibrated
            record["test_accuracy"] = result.test_accuracy
            record["faulty_test_accuracy"] = result.faulty_test_accuracy
        folder.write(RECORD, to_json(record))


@contextmanager
def _stopping_on_signals(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C, or SIGTERM, end the training after the step; a second one at once."""
    requests: list[int] = []

    def request(number: int, frame: Any) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)
        progress.say("stopping after this step (Ctrl-C again: at once)", error=True)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, request)
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice and notices away; errors are still raised."""
    # First, as it sets its own levels when it is imported; a missing one is an error here.
    importlib.import_module("fxfault.lightning_import")
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
