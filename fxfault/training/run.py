"""Train a network from an experiment file with PyTorch Lightning, as `fxfault train` does."""

from __future__ import annotations

import dataclasses
import io
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from fxfault.bundled.files import BUNDLED
from fxfault.errors import ConfigError, DataError
from fxfault.evaluation.full.predictions import accuracy
from fxfault.experiment.sections import ExperimentConfig
from fxfault.files.access import expanded
from fxfault.files.sources import TRAINING, Sources
from fxfault.models.checkpoints import CheckpointInfo, load_checkpoint, most_bytes
from fxfault.passes.transform import transform
from fxfault.training.batch_norm import batch_norms, calibrate_batch_norm
from fxfault.training.batches import Shard, TrainingLoader, evaluation_loader, split_validation
from fxfault.training.calibration import restore_calibration
from fxfault.training.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Record,
    Row,
    read_checkpoint,
)
from fxfault.training.callbacks import Interrupted as Interrupted
from fxfault.training.classifier import Classifier, TrainingBatches
from fxfault.training.event_file import EventFile
from fxfault.training.fault_aware import FaultAwareTraining
from fxfault.training.generators import preserved_generators
from fxfault.training.lightning_fit import fit
from fxfault.training.lightning_import import Callback
from fxfault.training.run_folder import BEST, CALIBRATED, EVENTS, LAST, RunFolder

# Number of samples on which the faulty network is compared with the given one before training.
_EXAMPLES = 12


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Attributes:
        network: the network with the best weights, or with the last ones if the best are not kept;
            in eval mode, on the device it was trained on.
        rows: measurements of each epoch.
        best: row of the best epoch; None if the best is not kept.
        calibrated: number of batch norms whose statistics were recomputed at the end.
        test_accuracy: accuracy without faults, in percent.
        faulty_test_accuracy: accuracy under the faults of the configuration, in percent; None if
            they do not strike during evaluation.
        seconds: duration of this session, without sessions before a stop.
    """

    network: nn.Module
    rows: list[Row]
    best: Row | None
    calibrated: int
    test_accuracy: float
    faulty_test_accuracy: float | None
    seconds: float


def check_trainable(config: ExperimentConfig) -> None:
    """Check that the sections of an experiment agree for training.

    >>> from fxfault.experiment import load_experiment
    >>> check_trainable(load_experiment("digits", {"training.validation_fraction": 0}))
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: checkpoint.save_best: the best is chosen by validation, but \
training.validation_fraction is 0; raise it, or set save_best to false

    Raises:
        ConfigError: sections contradict each other.
    """
    batch = None if config.dataset is None else config.dataset.batch
    for key, given in (("metric", config.metric), ("dataset.batch", batch)):
        if given is not None:
            raise ConfigError(
                f"{key}: training is that of a classifier on pairs of an image and a class, and "
                "measures its accuracy; leave it out here, and give it to an evaluation or a study"
            )
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
    """Raise a `ConfigError` if `training.calibrate` finds no batch norm in a network."""
    if config.training.calibrate != "none" and not batch_norms(network):
        raise ConfigError(
            f"training.calibrate: {type(network).__name__} has no batch norm with running "
            "statistics; set it to none"
        )


def load_initial_weights(
    config: ExperimentConfig, network: nn.Module, folder: Path | None = None
) -> CheckpointInfo | None:
    """Load the checkpoint `checkpoint.init_from` into a network before training.

    Loading ends the calibration of scales that Brevitas calibrates in the first steps of training.
    If `fxfault train` saved the checkpoint before that end, the calibration continues from there.

    Args:
        config: the experiment.
        network: the network, changed in place.
        folder: folder that a relative path starts from; default: the current folder.

    Returns:
        The loaded weights; None if `init_from` is not set, which leaves the network unchanged.

    Raises:
        DataError: the checkpoint cannot be loaded; the message names `checkpoint.init_from`.
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
    Sources(folder, {info.path: info.sha256}, TRAINING)  # It must be the same at both reads.
    return info


def _calibration_in(path: str, folder: Path, most: int) -> dict[str, Any]:
    """State of calibrating quantisers, if `fxfault train` saved one in the checkpoint."""
    if path.startswith(BUNDLED):
        return {}
    try:
        state = read_checkpoint(folder / expanded(path), most)["fxfault"]["calibration"]
    except DataError:  # `fxfault train` did not write it: its scales are calibrated.
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

    A held-out part of the training data decides which epoch is the best; the test data is used
    once, with the chosen weights. The function restores the global random generators; numbers that
    the network draws from them (dropout) depend on their state at the call or, in a resumed run, in
    the checkpoint.

    Training starts from the weights of the network or of `checkpoint.init_from`; `checkpoint.path`
    is ignored, as it is for evaluation.

    Args:
        config: the experiment; the sections `dataset`, `model` and `quantization` are not read.
        network: network that gives class scores, trained in place.
        training_data: map-style data set of (image, label).
        test_data: map-style data set of (image, label).
        folder: folder of checkpoints, metrics and events; None writes nothing.
        resume: whether to continue from the folder's `last.ckpt`.
        device: `cpu`, `cuda` or `cuda:N`.
        devices: number of processes; Lightning starts the program again for each but the first.
        callbacks: further callbacks, called before those that write.
        stop: called after each step; if it returns true, the training saves and raises
            `Interrupted`.
        one_batch: whether to run only one batch each of training, validation and test, to try
            whether they work; the measurements are meaningless then.
        sources: checkpoints that the weights come from, if the caller loaded them.

    Returns:
        The result; None in all processes but the first.

    Raises:
        ConfigError: sections contradict each other.
        DataError: the data, the network or the checkpoint cannot be used.
        TrainingError: the loss is not finite, the folder cannot be written, or a checkpoint that
            the training depends on was replaced.
        Interrupted: `stop` returned true; the state was saved.
    """
    check_trainable(config)
    check_network(config, network)
    sources = Sources(Path.cwd(), {}, TRAINING) if sources is None else sources
    info = None if resume else load_initial_weights(config, network, sources.folder)
    if info is not None:
        sources.note(info.path, info.sha256)
    started = time.perf_counter()
    fraction = config.training.validation_fraction
    training, validation = split_validation(training_data, fraction, config.seed.value)
    faulty = _make_faulty(config, test_data) if config.fault_injection.enabled else None
    files, record = AtomicCheckpointIO(most_bytes(network)), Record(config, folder)
    kept = folder if config.checkpoint.enabled else None
    saved = Checkpoints(config, record, kept, stop, files, sources)
    last, step = None, None
    if resume:
        last, step = checkpoint_to_resume(config, folder, devices, files.most)
    device = torch.device(device)
    explaining = nullcontext() if folder is None else folder.explaining_os_errors()
    if kept is not None:
        kept.remove(CALIBRATED)  # Its weights are not those that this run will end with.
    with explaining:
        trainer = fit(
            Classifier(network, config, faulty),
            TrainingBatches(config, training, validation),
            last,
            device=device,
            devices=devices,
            max_epochs=1 if one_batch else config.training.epochs,
            limit_train_batches=1 if one_batch else None,
            limit_val_batches=0 if validation is None else 1 if one_batch else None,
            gradient_clip_val=config.training.gradient_clip,
            callbacks=[*([] if faulty is None else [faulty]), record, *callbacks, saved],
            plugins=[files],
            logger=[] if folder is None else [EventFile(folder.file(EVENTS), step)],
        )
    if not trainer.is_global_zero:
        return None
    network.to(device).eval()
    _load_best(network, saved)
    norms = calibrate(config, network, training_data, one_batch=one_batch)
    if norms and kept is not None:
        content = io.BytesIO()
        torch.save({"state_dict": network.state_dict()}, content)
        kept.write(CALIBRATED, content.getvalue())
    tests = evaluation_loader(test_data, config.training.batch_size, Shard())
    tested: Any = [next(iter(tests))] if one_batch else tests
    faulty_accuracy = None
    test_accuracy = accuracy(network, tested, device)
    if config.needs_faulty_validation:
        faulty_accuracy = accuracy(_with_faults(config, network), tested, device)
    result = TrainingResult(
        network=network,
        rows=record.rows,
        best=saved.best,
        calibrated=norms,
        test_accuracy=test_accuracy,
        faulty_test_accuracy=faulty_accuracy,
        seconds=time.perf_counter() - started,
    )
    sources.check()  # for changes since the last checkpoint
    return result


def calibrate(
    config: ExperimentConfig,
    network: nn.Module,
    training_data: Dataset[Any],
    *,
    one_batch: bool = False,
) -> int:
    """Recompute the statistics of batch norms, as `training.calibrate` says.

    The batches are those of one more epoch in one process, of `training.batch_size`: without the
    samples held out for validation, and augmented as in training. `faulty` means the faults of the
    configuration itself, not those of a curriculum, in every batch.

    Args:
        config: experiment with sections `training`, `seed` and `fault_injection`.
        network: the network; only the running statistics of its batch norms change.
        training_data: as for `train`.
        one_batch: whether to use only the first batch, to try whether it works.

    Returns:
        Number of batch norms whose statistics changed; 0 for `none`.

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
    return calibrate_batch_norm(_with_faults(config, network), some, faults="faulty")


def _with_faults(config: ExperimentConfig, network: nn.Module) -> nn.Module:
    """The network under the faults of the configuration itself, without its curriculum."""
    faults = dataclasses.replace(
        config.fault_injection, curriculum=None, verbose=False, track_statistics=False
    )
    return transform(network, faults)


def _make_faulty(config: ExperimentConfig, test_data: Dataset[Any]) -> FaultAwareTraining:
    # Test images, as reading the training data may draw the random numbers of training.
    some = range(min(len(test_data), _EXAMPLES))  # type: ignore[arg-type]
    with preserved_generators():
        images = [test_data[number][0] for number in some]
    faults = config.fault_injection
    return FaultAwareTraining(
        faults,
        network="network",
        log_statistics=faults.track_statistics,
        example_inputs=torch.stack(images) if images else None,
    )


def checkpoint_to_resume(
    config: ExperimentConfig, folder: RunFolder | None, devices: int, most: int
) -> tuple[Path, int]:
    """Find the checkpoint from which a training with `devices` processes resumes.

    Returns:
        Path of the checkpoint and number of training steps before it.

    Raises:
        ConfigError: `folder` is None, the run has more epochs than `training.epochs`, or it used
            another number of processes.
        DataError: the checkpoint cannot be read.
    """
    if folder is None:
        raise ConfigError("resume: there is no folder to continue from; give the folder of the run")
    path = folder.file(LAST)
    checkpoint = read_checkpoint(path, most)
    state = checkpoint["fxfault"]
    if state.get("processes", devices) != devices:
        # Each takes batches of `batch_size`: another number trains on other batches.
        raise ConfigError(
            f"devices: got {devices}, but {path} was trained by {state['processes']} process(es); "
            f"continue with the same number"
        )
    done = len(state["rows"])
    if done > config.training.epochs:
        raise ConfigError(
            f"training.epochs: got {config.training.epochs}, but {path} has {done} epochs behind "
            f"it; give at least as many"
        )
    return path, checkpoint["global_step"]


def _load_best(network: nn.Module, saved: Checkpoints) -> None:
    if saved.best_weights is not None:
        network.load_state_dict(saved.best_weights)
    elif saved.best is not None and saved.folder is not None:
        info = load_checkpoint(saved.folder.file(BEST), network)
        saved.sources.note(info.path, saved.best_content)
        saved.sources.note(info.path, info.sha256)
