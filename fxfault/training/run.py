"""Train a network from an experiment file with PyTorch Lightning, as `fxfault train` does."""

from __future__ import annotations

import dataclasses
import inspect
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
from torch.utils.data import DataLoader, Dataset, default_collate

from fxfault.bundled.files import BUNDLED
from fxfault.data.guarded import Guarded, samples_of
from fxfault.errors import ConfigError, DataError
from fxfault.evaluation.full.predictions import predict
from fxfault.evaluation.rows import value_under_faults
from fxfault.experiment.sections import ExperimentConfig
from fxfault.files.access import expanded
from fxfault.files.sources import TRAINING, Sources
from fxfault.metrics.facts import MetricFacts
from fxfault.models.checkpoints import CheckpointInfo, load_checkpoint, most_bytes
from fxfault.passes.transform import transform
from fxfault.training.batch_norm import calibrate_batch_norm
from fxfault.training.batches import (
    Shard,
    TrainingLoader,
    evaluation_loader,
    samples_and_collate,
    split_validation,
)
from fxfault.training.calibration import restore_calibration
from fxfault.training.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Record,
    Row,
    read_checkpoint,
)
from fxfault.training.callbacks import Interrupted as Interrupted
from fxfault.training.checks import check_network, check_trainable
from fxfault.training.event_file import EventFile
from fxfault.training.fault_aware import FaultAwareTraining
from fxfault.training.generators import preserved_generators
from fxfault.training.learner import Learner, TrainingBatches
from fxfault.training.lightning_fit import fit
from fxfault.training.lightning_import import Callback
from fxfault.training.objective import Objective, Taken, check_processes
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
        metric: what validation and test measure.
        test_value: its value for the test data without faults, such as the accuracy in percent.
        faulty_test_value: that under the faults of the configuration, NaN if they leave none; None
            if they do not strike during evaluation.
        seconds: duration of this session, without sessions before a stop.
    """

    network: nn.Module
    rows: list[Row]
    best: Row | None
    calibrated: int
    metric: MetricFacts
    test_value: float
    faulty_test_value: float | None
    seconds: float


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
        network: the network, trained in place; it gives class scores, unless `metric` and
            `training.loss` name another task.
        training_data: map-style data set, or a data loader for its samples and collate function;
            samples are (image, label), or what `fxfault.data.batches` takes apart.
        test_data: the same for the test; a loader gives its own batches.
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
    samples, collate = samples_and_collate(training_data)
    training, validation = split_validation(samples, fraction, config.seed.value)
    objective = Objective.of(config, network)
    check_processes(objective, devices)
    faulty = None
    if config.fault_injection.enabled:
        faulty = _make_faulty(config, test_data, objective)
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
            Learner(network, config, faulty),
            TrainingBatches(config, training, validation, collate),
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
    clean, under_faults = _test(config, network, test_data, objective, device, one_batch)
    result = TrainingResult(
        network=network,
        rows=record.rows,
        best=saved.best,
        calibrated=norms,
        metric=clean.facts,
        test_value=clean.value,
        faulty_test_value=under_faults,
        seconds=time.perf_counter() - started,
    )
    sources.check()  # for changes since the last checkpoint
    return result


def _test(
    config: ExperimentConfig,
    network: nn.Module,
    test_data: Any,
    objective: Objective,
    device: torch.device,
    one_batch: bool,
) -> tuple[Any, float | None]:
    """The result of the test without faults, and the value under faults, if they strike there."""
    loader: Any = test_data
    if not isinstance(test_data, DataLoader):
        loader = evaluation_loader(test_data, config.training.batch_size, Shard())
    tested: Any = [next(iter(loader))] if one_batch else loader
    tested, judge = Taken(tested, objective), objective.judge
    clean = predict(network, tested, device, judge=judge)
    if not config.needs_faulty_validation:
        return clean, None
    faulty = predict(_with_faults(config, network), tested, device, judge=judge, golden=clean)
    if judge.metric is None:
        return clean, faulty.value
    return clean, value_under_faults(clean, faulty)


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
    samples, collate = samples_and_collate(training_data)
    training, _ = split_validation(samples, settings.validation_fraction, seed)
    batches = TrainingLoader(training, settings, seed, Shard(), collate)
    batches.order.set_epoch(settings.epochs)
    some: Any = itertools.islice(batches, 1) if one_batch else batches
    some = Taken(some, Objective.of(config, network))
    if settings.calibrate == "clean":
        return calibrate_batch_norm(network, some, faults="clean")
    return calibrate_batch_norm(_with_faults(config, network), some, faults="faulty")


def _with_faults(config: ExperimentConfig, network: nn.Module) -> nn.Module:
    """The network under the faults of the configuration itself, without its curriculum."""
    faults = dataclasses.replace(
        config.fault_injection, curriculum=None, verbose=False, track_statistics=False
    )
    return transform(network, faults)


def _make_faulty(
    config: ExperimentConfig, test_data: Any, objective: Objective
) -> FaultAwareTraining:
    faults = config.fault_injection
    return FaultAwareTraining(
        faults,
        network="network",
        log_statistics=faults.track_statistics,
        example_inputs=_examples(test_data, objective),
    )


def _examples(test_data: Any, objective: Objective) -> tuple[Any, ...] | None:
    """The arguments of a forward for some samples; None if some can be given by name only."""
    # Of the test data, as reading the training data may draw the random numbers of training.
    with preserved_generators():
        if isinstance(test_data, DataLoader):
            given = next(iter(test_data))
        else:
            some = range(min(samples_of(test_data), _EXAMPLES))
            if not some:
                return None
            given = default_collate([Guarded(test_data)[number] for number in some])
    batch = objective.take(given)
    if not batch.keywords:
        return batch.inputs
    try:
        found = inspect.signature(objective.forward).bind(*batch.inputs, **batch.keywords)
    except (TypeError, ValueError):
        return None
    return None if found.kwargs else found.args


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
