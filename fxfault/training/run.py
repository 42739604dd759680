"""Train a network by an experiment file, on PyTorch Lightning.

`train` is what `fxfault-train` runs. `Classifier` is an ordinary LightningModule and
`TrainingBatches` an ordinary LightningDataModule, for use with a Trainer of one's own.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

# First: see there.
from fxfault.training.lightning_import import Callback, Trainer  # isort: skip
from lightning.fabric.utilities.warnings import PossibleUserWarning

from fxfault.bundled.files import BUNDLED
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import ConfigError, DataError, FxFaultError
from fxfault.evaluation.full.predictions import accuracy
from fxfault.experiment.sections import ExperimentConfig
from fxfault.files.access import expanded
from fxfault.files.sources import TRAINING, Sources
from fxfault.foreign import told
from fxfault.models.checkpoints import CheckpointInfo, load_checkpoint, most_bytes
from fxfault.passes.transform import transform
from fxfault.training.batch_norm import batch_norms, calibrate_batch_norm
from fxfault.training.batches import Shard, TrainingLoader, evaluation_loader, split_validation
from fxfault.training.calibration import restore_calibration
from fxfault.training.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Interrupted,
    Record,
    Row,
    read_checkpoint,
)
from fxfault.training.classifier import Classifier, TrainingBatches
from fxfault.training.event_file import EventFile
from fxfault.training.fault_aware import FaultAwareTraining
from fxfault.training.generators import preserved_generators
from fxfault.training.run_folder import BEST, CALIBRATED, EVENTS, LAST, RunFolder

__all__ = [
    "Classifier",
    "Interrupted",
    "TrainingBatches",
    "TrainingResult",
    "calibrate",
    "load_initial_weights",
    "train",
]

# Samples on which the faulty network is compared with the given one before it trains.
EXAMPLES = 12


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with.

    Attributes:
        network: with the best weights, or the last ones where no best were to be kept; in
            eval mode, on the device it was trained on.
        rows: what each epoch measured.
        best: the row of the best epoch; None where no best was to be kept.
        calibrated: how many batch norms had their statistics estimated anew at the end.
        test_accuracy: of the network, without faults, in percent.
        faulty_test_accuracy: under the faults of the configuration, where it asks for faults
            while evaluating; else None.
        seconds: of this training, without what came before a stop.
    """

    network: nn.Module
    rows: list[Row]
    best: Row | None
    calibrated: int
    test_accuracy: float
    faulty_test_accuracy: float | None
    seconds: float


def check_trainable(config: ExperimentConfig) -> None:
    """Check what sections of an experiment ask of each other for training.

    >>> from fxfault.experiment import load_experiment
    >>> check_trainable(load_experiment("digits", {"training.validation_fraction": 0}))
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: checkpoint.save_best: the best is chosen by validation, but \
training.validation_fraction is 0; raise it, or set save_best to false

    Raises:
        ConfigError: they contradict each other.
    """
    kept = config.checkpoint
    if kept.save_best and config.training.validation_fraction == 0:
        raise ConfigError(
            "checkpoint.save_best: the best is chosen by validation, but "
            "training.validation_fraction is 0; raise it, or set save_best to false"
        )
    if kept.best_by == "faulty" and not config.needs_faulty_validation:
        raise ConfigError(
            "checkpoint.best_by: `faulty` needs faults while evaluating; set "
            "fault_injection.enabled to true and apply_during to both (or eval)"
        )
    if config.training.calibrate == "faulty" and not config.fault_injection.enabled:
        raise ConfigError(
            "training.calibrate: `faulty` needs faults; set fault_injection.enabled to true, or "
            "calibrate to clean"
        )


def check_network(config: ExperimentConfig, network: nn.Module) -> None:
    """Check before the work that a network has what `training.calibrate` is for.

    Raises:
        ConfigError: it has not.
    """
    if config.training.calibrate != "none" and not batch_norms(network):
        raise ConfigError(
            f"training.calibrate: {type(network).__name__} has no batch norm with running "
            "statistics; set it to none"
        )


def load_initial_weights(
    config: ExperimentConfig, network: nn.Module, folder: Path | None = None
) -> CheckpointInfo | None:
    """Load what `checkpoint.init_from` names into a network that is to be trained.

    Scales that Brevitas calibrates in the first steps of training are settled by that, as
    loading ends their calibration; where a checkpoint of `fxfault-train` was saved before they
    were, it holds how far they were, and their calibration goes on from there.

    Args:
        config: of the training.
        network: changed in place.
        folder: where a relative path starts; default: the current folder.

    Returns:
        Which weights; None where it names none, and the network is as it was.

    Raises:
        DataError: they cannot be loaded; the message says that it is those.
    """
    path = config.checkpoint.init_from
    if path is None:
        return None
    try:
        info = load_checkpoint(path, network, folder)
    except DataError as error:
        raise DataError(f"checkpoint.init_from: {error}") from error
    folder = Path.cwd() if folder is None else folder
    restore_calibration(network, _calibration_in(path, folder, most_bytes(network)))
    Sources(folder, {info.path: info.sha256}, TRAINING)  # It was read twice.
    return info


def _calibration_in(path: str, folder: Path, most: int) -> dict[str, Any]:
    """How far quantisers of the network were, if training saved it there."""
    if path.startswith(BUNDLED):
        return {}
    try:
        state = read_checkpoint(folder / expanded(path), most)["fxfault"]["calibration"]
    except DataError:  # It is not of `fxfault-train`: its scales are settled.
        return {}
    return {module.removeprefix("network."): kept for module, kept in state.items()}


def train(
    config: ExperimentConfig,
    network: nn.Module,
    training_data: Dataset[Any],
    test_data: Dataset[Any],
    *,
    folder: RunFolder | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    devices: int = 1,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] = lambda: False,
    one_batch: bool = False,
    sources: Sources | None = None,
) -> TrainingResult | None:
    """Train a network, keep its checkpoints, and test it once at the end.

    A part of the training data is held out to choose the best epoch by; the test data is
    looked at once, with the weights that were chosen. The global random generators are left
    as they were found; what the network draws from them (dropout) follows from their state
    at the call, or from the checkpoint where a run is resumed.

    Training starts from the weights that the network has, or from those of
    `checkpoint.init_from`. What `checkpoint.path` names is for evaluation and not looked at.

    Args:
        config: all sections but `dataset`, `model` and `quantization`, which made the rest.
        network: gives class scores; trained in place.
        training_data: map-style, of (image, label).
        test_data: likewise.
        folder: where checkpoints, metrics and events are written; None writes nothing.
        resume: go on from the `last.ckpt` of the folder.
        device: `cpu`, `cuda` or `cuda:N`.
        devices: processes; above 1 Lightning starts the program once more for each.
        callbacks: of the caller, called before those that write.
        stop: asked after each step; true saves and raises `Interrupted`.
        one_batch: one step, one batch of validation and one of the test; the rows and
            accuracies are then of no use.
        sources: of the weights that it starts from, where the caller loaded them before.

    Returns:
        What it ended with; None in all processes but the first.

    Raises:
        ConfigError: sections contradict each other.
        DataError: the data, the network or the checkpoint cannot be used.
        TrainingError: the loss is not finite, the folder cannot be written, or a checkpoint that
            the training depends on was replaced meanwhile.
        Interrupted: it was stopped, after saving.
    """
    check_trainable(config)
    check_network(config, network)
    sources = Sources(Path.cwd(), {}, TRAINING) if sources is None else sources
    info = None if resume else load_initial_weights(config, network, sources.folder)
    if info is not None:
        sources.note(info.path, info.sha256)
    files = AtomicCheckpointIO(most_bytes(network))
    started = time.perf_counter()
    fraction = config.training.validation_fraction
    training, validation = split_validation(training_data, fraction, config.seed.value)
    faults = config.fault_injection
    faulty = _make_faulty(faults, test_data) if faults.enabled else None
    module = Classifier(network, config, faulty)
    record = Record(config, folder)
    kept = folder if config.checkpoint.enabled else None
    saved = Checkpoints(config, record, kept, stop, files, sources)
    last = checkpoint_to_resume(config, folder, devices, files.most) if resume else None
    trainer_settings: dict[str, Any] = {
        **_devices(torch.device(device), devices),
        "callbacks": [*([] if faulty is None else [faulty]), record, *callbacks, saved],
        "max_epochs": 1 if one_batch else config.training.epochs,
        "gradient_clip_val": config.training.gradient_clip,
        "plugins": [files],
        "logger": []
        if folder is None
        else [EventFile(folder.file(EVENTS), *_step_of(last, files))],
    }
    if one_batch:
        trainer_settings.update(limit_train_batches=1, limit_val_batches=1)
    if validation is None:
        trainer_settings["limit_val_batches"] = 0
    batches = TrainingBatches(config, training, validation)
    explaining: AbstractContextManager[None] = nullcontext()
    if folder is not None:
        explaining = folder.explaining_os_errors()
    if kept is not None:
        kept.remove(CALIBRATED)  # Of other weights than those that this run will end with.
    with preserved_generators(), _quiet_lightning(), explaining:
        trainer = Trainer(
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,  # Breaks some quantised layers (Xilinx/brevitas#1245).
            **trainer_settings,
        )
        _fit(trainer, module.train(), batches, last)
    if not trainer.is_global_zero:
        return None
    device = torch.device(device)
    network.to(device).eval()
    _load_best(network, saved)
    norms = calibrate(config, network, training_data, one_batch=one_batch)
    if norms and kept is not None:
        kept.write(CALIBRATED, _weights_of(network))
    tests = evaluation_loader(test_data, config.training.batch_size, Shard())
    tested: Any = [next(iter(tests))] if one_batch else tests
    result = TrainingResult(
        network=network,
        rows=record.rows,
        best=saved.best,
        calibrated=norms,
        test_accuracy=accuracy(network, tested, device),
        faulty_test_accuracy=_faulty_accuracy(config, network, tested, device),
        seconds=time.perf_counter() - started,
    )
    sources.check()  # Whatever happened since the last checkpoint.
    return result


def calibrate(
    config: ExperimentConfig,
    network: nn.Module,
    training_data: Dataset[Any],
    *,
    one_batch: bool = False,
) -> int:
    """Do what `training.calibrate` asks: estimate statistics of batch norms anew.

    The batches are those of one more epoch (without the samples held out for validation, shifted
    and mirrored as in training), of `training.batch_size`, in one process. `faulty` are the faults
    of the configuration itself, not those of a curriculum, in every batch.

    Args:
        config: sections `training`, `seed` and `fault_injection`.
        network: changed in place; only running statistics of its batch norms are.
        training_data: what `train` was given.
        one_batch: take the first batch alone, to try whether it works.

    Returns:
        How many batch norms have other statistics now; 0 for `none`.

    Raises:
        ConfigError: no batch norm keeps running statistics.
        DataError: the network or the data fails; the error is quoted.
    """
    settings, seed = config.training, config.seed.value
    if settings.calibrate == "none":
        return 0
    training, _ = split_validation(training_data, settings.validation_fraction, seed)
    batches = TrainingLoader(training, settings, seed, Shard())
    batches.order.set_epoch(settings.epochs)
    some: Any = itertools.islice(batches, 1) if one_batch else batches
    if settings.calibrate == "clean":
        return calibrate_batch_norm(network, some, faults="clean")
    faults = dataclasses.replace(
        config.fault_injection, curriculum=None, verbose=False, track_statistics=False
    )
    return calibrate_batch_norm(transform(network, faults), some, faults="faulty")


def _weights_of(network: nn.Module) -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": network.state_dict()}, content)
    return content.getvalue()


def _make_faulty(faults: FaultInjectionConfig, test_data: Dataset[Any]) -> FaultAwareTraining:
    # Of the test data: reading the training data may draw the random numbers of training.
    some = range(min(len(test_data), EXAMPLES))  # type: ignore[arg-type]
    with preserved_generators():
        images = [test_data[number][0] for number in some]
    return FaultAwareTraining(
        faults,
        network="network",
        log_statistics=faults.track_statistics,
        example_inputs=torch.stack(images) if images else None,
    )


def _fit(trainer: Trainer, module: Classifier, batches: TrainingBatches, last: Any) -> None:
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=last, weights_only=True)
    except SystemExit as end:  # What Lightning makes of a KeyboardInterrupt.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise told(end) from end  # Somebody else's code wants to end the program.
    except torch.OutOfMemoryError as error:
        raise DataError("out of memory: lower training.batch_size") from error
    except FxFaultError as error:
        if "Original Traceback" not in str(error):
            raise
        # A loader's worker process puts its traceback into the message.
        reason = str(error).strip().splitlines()[-1].partition(": ")[2]
        raise type(error)(reason) from error


def _devices(device: torch.device, devices: int) -> dict[str, Any]:
    strategy = {"strategy": "ddp"} if devices > 1 else {}
    if device.type == "cpu":
        return {"accelerator": "cpu", "devices": devices, **strategy}
    chosen: Any = devices if devices > 1 else [device.index or 0]
    return {"accelerator": "gpu", "devices": chosen, **strategy}


def checkpoint_to_resume(
    config: ExperimentConfig, folder: RunFolder | None, devices: int = 1, most: int | None = None
) -> Path:
    """Find the checkpoint that a training goes on from.

    Args:
        config: of the training.
        folder: of the run.
        devices: processes.
        most: see `fxfault.training.callbacks.read_checkpoint`.

    Raises:
        ConfigError: there is no folder, or it has more epochs behind it than are wanted, or was
            trained by another number of processes.
        DataError: the checkpoint cannot be read.
    """
    if folder is None:
        raise ConfigError("resume: there is no folder to go on from; give the run's")
    path = folder.file(LAST)
    state = read_checkpoint(path, most)["fxfault"]
    if state.get("processes", devices) != devices:
        # Each takes batches of `batch_size`: another number trains on other batches.
        raise ConfigError(
            f"devices: got {devices}, but {path} was trained by {state['processes']} process(es), "
            f"which is also how to go on with it"
        )
    done = len(state["rows"])
    if done > config.training.epochs:
        raise ConfigError(
            f"training.epochs: got {config.training.epochs}, but {path} has {done} epochs behind "
            f"it; give at least as many"
        )
    return path


def _step_of(checkpoint: Path | None, files: AtomicCheckpointIO) -> list[int]:
    return [] if checkpoint is None else [files.load_checkpoint(checkpoint)["global_step"]]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep advice to who wrote the Trainer call from who reads the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # Lightning 2.6 on torch 2.13 uses what torch is about to drop.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        yield


def _load_best(network: nn.Module, saved: Checkpoints) -> None:
    if saved.best_weights is not None:
        network.load_state_dict(saved.best_weights)
    elif saved.best is not None and saved.folder is not None:
        info = load_checkpoint(saved.folder.file(BEST), network)
        saved.sources.note(info.path, saved.best_content)
        saved.sources.note(info.path, info.sha256)


def _faulty_accuracy(
    config: ExperimentConfig, network: nn.Module, batches: Any, device: torch.device
) -> float | None:
    if not config.needs_faulty_validation:
        return None
    faults = dataclasses.replace(config.fault_injection, curriculum=None, verbose=False)
    return accuracy(transform(network, faults), batches, device)
