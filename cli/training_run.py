"""What a training runs: its configuration, its folder, and the run that it resumes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxfault.cli.configurations import read_experiment
from fxfault.config.yaml_files import is_bundled
from fxfault.errors import ConfigError
from fxfault.experiment.parts import check_sections
from fxfault.experiment.sections import ExperimentConfig
from fxfault.files.access import expanded
from fxfault.messages import flat
from fxfault.training.run_folder import CONFIG, LAST, RunFolder

PROGRAM = ("fxfault", "train")

# The first process tells the processes that Lightning starts which run they belong to.
_FOLDER_VARIABLE = "FXFAULT_RUN_FOLDER"
_RESUMES_VARIABLE = "FXFAULT_RUN_RESUMES"

# Keys that may change when a run is resumed, as they change nothing that was trained so far.
_FREE = (
    "training.epochs",
    "training.num_workers",
    "training.calibrate",
    "dataset.root",
    *(f"checkpoint.{key}" for key in ("enabled", "dir", "save_best", "best_by", "resume", "path")),
)


@dataclass(frozen=True)
class Run:
    """A training that is to be run.

    Attributes:
        experiment: the configuration, with all seeds.
        source: the name of the configuration in messages.
        folder: the existing folder of the run; None for a new run.
        resumes: whether the run continues from its last checkpoint.
        is_helper: whether Lightning started this process beside the first one.
    """

    experiment: ExperimentConfig
    source: str
    folder: RunFolder | None = None
    resumes: bool = False
    is_helper: bool = False

    def make_folder(self, out: Path | None) -> RunFolder:
        """Give the folder of the resumed run, or make a new one, with the configuration in it."""
        folder = self.folder
        if folder is None:
            parent = expanded(self.experiment.checkpoint.dir)
            name = Path(self.source).stem
            folder = RunFolder.create(out) if out else RunFolder.create_next(parent, name)
        if not self.is_helper:
            folder.write_config(self.experiment)
            os.environ[_FOLDER_VARIABLE] = os.path.abspath(folder.path)
            os.environ[_RESUMES_VARIABLE] = str(int(self.resumes))
        return folder


def plan_run(options: argparse.Namespace) -> Run:
    """Read the configuration, and find the folder of a run to resume."""
    if _FOLDER_VARIABLE in os.environ and _local_rank() > 0:
        folder = RunFolder(Path(os.environ[_FOLDER_VARIABLE]))
        resumes = os.environ.get(_RESUMES_VARIABLE) == "1"
        return Run(folder.read_config(), str(folder.path), folder, resumes, is_helper=True)
    _check_options(options)
    changes = dict(options.set)
    if options.config is None:
        folder = RunFolder.open(options.out)
        source = str(folder.path / CONFIG)
        experiment = _without_path(read_experiment(options, source), changes, is_own=True)
        return _resumed(experiment, source, folder)
    experiment = read_experiment(options)
    experiment = _without_path(
        experiment, changes, is_own=is_bundled("experiments", options.config)
    )
    check_sections(experiment, ["dataset", "model"], options.config)
    resumed = None if options.dry_run else _folder_to_resume(options, experiment)
    if resumed is not None:
        return _resumed(experiment, options.config, resumed)
    return Run(_with_seeds(experiment, None), options.config)


def _without_path(
    experiment: ExperimentConfig, changes: dict[str, Any], is_own: bool
) -> ExperimentConfig:
    """Refuse `checkpoint.path`, which the user may have meant as the start of the training.

    In a file that fxfault wrote (`is_own`: a bundled experiment, or that of a run) it is only
    removed: it names the weights that `fxfault eval` loads, and that training makes again.
    """
    path = experiment.checkpoint.path
    if path is not None and ("checkpoint.path" in changes or not is_own):
        raise ConfigError(
            f"checkpoint.path: training does not start from {path}, which is for fxfault eval to "
            f"load; to fine-tune, name it checkpoint.init_from (or --init {shlex.quote(path)}); to "
            "start from random weights, leave it out (or --set checkpoint.path=null)"
        )
    checkpoint = dataclasses.replace(experiment.checkpoint, path=None)
    return dataclasses.replace(experiment, checkpoint=checkpoint)


def resume_command(folder: RunFolder, devices: int) -> str:
    """The command line that resumes a run."""
    return shlex.join([*PROGRAM, "--resume", "--out", str(folder.path), *_devices(devices)])


def repeat_command(folder: RunFolder, devices: int) -> str:
    """The command line that repeats a run."""
    return shlex.join([*PROGRAM, str(folder.path / CONFIG), *_devices(devices)])


def _devices(number: int) -> list[str]:
    return ["--devices", str(number)] if number > 1 else []


def _check_options(options: argparse.Namespace) -> None:
    if options.config is None and not (options.resume and options.out):
        raise ConfigError(
            "no configuration: give FILE, or --config FILE; or continue a run with --resume --out "
            "FOLDER"
        )
    for flag, given in (
        ("--resume", options.resume),
        ("--out", options.out is not None),
        ("--devices", options.devices > 1),
    ):
        if options.dry_run and given:
            raise ConfigError(f"--dry-run writes nothing and runs in one process: leave {flag} out")
    if options.devices > 1 and options.device.startswith("cuda:"):
        raise ConfigError(f"--device {options.device} is one device: give --device cuda")
    if "TORCHELASTIC_RUN_ID" in os.environ or _local_rank() > 0:
        raise ConfigError(
            "started by torchrun or another launcher: start fxfault train itself with --devices N"
        )


def _local_rank() -> int:
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if text.isdecimal() else 0


def _folder_to_resume(
    options: argparse.Namespace, experiment: ExperimentConfig
) -> RunFolder | None:
    if not (options.resume or experiment.checkpoint.resume):
        return None
    if options.out is not None:
        can_go_on = (options.out / CONFIG).is_file() and (options.out / LAST).is_file()
        return RunFolder.open(options.out) if options.resume or can_go_on else None
    parent, name = expanded(experiment.checkpoint.dir), Path(options.config).stem
    newest = RunFolder.newest(parent, name)
    if newest is None and options.resume:
        raise ConfigError(
            f"--resume: no run {name}-NNN with a checkpoint in {parent}; name its folder with --out"
        )
    return newest


def _resumed(experiment: ExperimentConfig, source: str, folder: RunFolder) -> Run:
    recorded = folder.read_config()
    experiment = _with_seeds(experiment, recorded)
    then, now = flat(recorded.to_dict()), flat(experiment.to_dict())
    differing = [
        f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not key.startswith(_FREE)
    ]
    if differing:
        raise ConfigError(
            f"--resume: {folder.path} was trained with another configuration: "
            f"{'; '.join(differing)}; start a new run, or leave FILE, --set and --init out"
        )
    return Run(experiment, source, folder, resumes=True)


def _with_seeds(
    experiment: ExperimentConfig, recorded: ExperimentConfig | None
) -> ExperimentConfig:
    """Draw the missing seeds, so that the run can be repeated and resumed."""
    seed, faults = experiment.seed, experiment.fault_injection
    if not seed.enabled:
        value = recorded.seed.value if recorded else secrets.randbits(32)
        seed = dataclasses.replace(seed, enabled=True, value=value)
    if faults.seed is None:
        drawn = recorded.fault_injection.seed if recorded else secrets.randbits(63)
        faults = dataclasses.replace(faults, seed=drawn)
    return dataclasses.replace(experiment, seed=seed, fault_injection=faults)
