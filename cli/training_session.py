"""One call of `fxfault train`, after its configuration was read."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxfault
from fxfault.cli.terminal.interrupts import INTERRUPTED, requesting
from fxfault.cli.terminal.process_setup import fit_threads, seed_generators
from fxfault.cli.terminal.progress import Progress
from fxfault.cli.training_progress import Reporter
from fxfault.cli.training_record import TrainingRecord
from fxfault.cli.training_report import plan_lines, result_lines, start_lines
from fxfault.cli.training_run import Run, repeat_command, resume_command
from fxfault.errors import ConfigError, TrainingError
from fxfault.evaluation.checks import check_model, try_model
from fxfault.experiment.parts import (
    batches_of,
    load_model,
    open_test_data,
    open_training_data,
    pick_device,
)
from fxfault.files.sources import TRAINING, Sources
from fxfault.models.checkpoints import most_bytes
from fxfault.results.pictures.plots import training_picture
from fxfault.sites.fault_sites import FaultSites, faults_of
from fxfault.training.batches import (
    EpochOrder,
    Shard,
    evaluation_loader,
    samples_and_collate,
    split_validation,
)
from fxfault.training.callbacks import Row
from fxfault.training.checks import check_network, check_trainable
from fxfault.training.objective import Objective, check_processes
from fxfault.training.run import (
    Interrupted,
    TrainingResult,
    checkpoint_to_resume,
    load_initial_weights,
    train,
)
from fxfault.training.run_folder import CURVE, LAST, RECORD, RunFolder


class Session:
    """One call of the command.

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
        self.objective: Objective | None = None  # what validation measures, once it is known
        self.sources = Sources(Path.cwd(), {}, TRAINING)  # The user's code may change the folder.

    def run(self) -> int:
        """Train; returns the exit status."""
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
        config = self.config
        self.device = self._pick_device()
        seed_generators(config.seed)
        test = open_test_data(config)
        self.test_data, self.training_data = test.dataset, open_training_data(config)
        self._check_sizes()
        network, _ = load_model(config, None, test.facts)
        check_network(config, network)
        self.objective = Objective.of(config, network)
        check_processes(self.objective, self.options.devices)
        self.start = self._initial_weights(network)
        batches = batches_of(config, self.test_data)
        batches.forward = network.forward
        network.to(self.device)
        metric = self.objective.judge.metric
        fit_threads(try_model(network, batches, self.device, metric), self.device)
        # Not verbose here: `train` logs the sites of the network that it trains.
        faults = dataclasses.replace(config.fault_injection, verbose=False)
        faulty = fxfault.transform(network, faults)
        if faulty is network:
            return network, None
        # On test data, as reading the training data would draw random numbers of the training.
        notes = check_model(faulty, network, batches, self.device, most=1, modes=("eval", "train"))
        for note in [*faults_of(faulty).number_notes(), *notes]:
            self.progress.note(note)
        return network, faults_of(faulty)

    def _initial_weights(self, network: nn.Module) -> dict[str, str] | None:
        """Load what training starts from, before anything is written; None if it is random."""
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
        settings = self.config.training
        samples, _ = samples_and_collate(self.training_data)
        training, validation = split_validation(
            samples, settings.validation_fraction, self.config.seed.value
        )
        parts: Any = (training, validation)
        self.sizes = [len(part) if part else 0 for part in parts]
        self.sizes.append(batches_of(self.config, self.test_data).samples)
        shard = Shard(0, self.options.devices)
        EpochOrder(samples=self.sizes[0], batch_size=settings.batch_size, seed=0, shard=shard)
        if validation is not None:
            evaluation_loader(validation, settings.batch_size, shard)

    def _pick_device(self) -> torch.device:
        device, wanted = pick_device(self.options.device), self.options.devices
        if device.type == "cuda" and wanted > torch.cuda.device_count():
            raise ConfigError(f"--devices {wanted}: there are {torch.cuda.device_count()} GPUs")
        return device

    def _say_start(self, folder: RunFolder | None, sites: FaultSites | None) -> None:
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
        if self.plan.resumes and folder is not None:
            named = self.config.checkpoint.init_from
            first = f", which started from {named}" if named else ""
            return f"{folder.path / LAST}{first}"
        if self.start is None:
            return "random weights"
        return f"{self.start['path']} (sha256 {self.start['sha256'][:12]}…)"

    def _dry_run(self, network: nn.Module, sites: FaultSites | None) -> int:
        self._say_start(None, sites)
        self._train(network, one_batch=True)
        self.progress.say("One batch of training, validation and test: all run.\n")
        self.progress.say("\n".join(plan_lines(self.config)))
        return 0

    # -- the run ----------------------------------------------------------------------------

    def _run_in(self, folder: RunFolder, network: nn.Module) -> int:
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
                result = self._train(
                    network,
                    folder=folder,
                    resume=self.plan.resumes,
                    devices=self.options.devices,
                    callbacks=[reporter],
                    stop=is_stopped,
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

    def _train(self, network: nn.Module, **more: Any) -> TrainingResult | None:
        more.update(device=self.device, sources=self.sources)
        return train(self.config, network, self.training_data, self.test_data, **more)

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
        if not self.config.checkpoint.enabled:
            return "no checkpoint was saved, as checkpoint.enabled is false"
        if not folder.file(LAST).is_file():
            return "no checkpoint was saved yet: start again"
        return f"continue with: {resume_command(folder, self.options.devices)}"

    def _finish(self, folder: RunFolder, result: TrainingResult) -> int:
        again = resume_command(folder, self.options.devices)
        self.progress.say("\n" + "\n".join(result_lines(self.config, result, folder.path, again)))
        self._draw(folder, result.test_value)
        self._write_record(folder, result)
        self.progress.say(f"Run saved to: {folder.path}")
        return 0

    # -- files ------------------------------------------------------------------------------

    def _draw(self, folder: RunFolder, test_value: float | None) -> None:
        if self.rows and self.objective is not None:
            picture = training_picture(self.rows, test_value, "png", self.objective.facts)
            folder.write(CURVE, picture)

    def _write_record(self, folder: RunFolder, result: TrainingResult | None) -> None:
        if not self.plan.is_helper:
            folder.write(RECORD, self.record.to_json(self.rows, result))
