"""Training by an experiment: what it keeps, how it goes on after a stop, and how it ends."""

from __future__ import annotations

import csv
import errno
import math
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from torch import nn
from torch.utils.data import Subset, TensorDataset

import fxfault
from fxfault.data import build_dataset
from fxfault.errors import ConfigError, DataError, TrainingError
from fxfault.experiment import ExperimentConfig, load_experiment
from fxfault.experiment.training_sections import SchedulerConfig, TrainingConfig
from fxfault.models.checkpoints import load_checkpoint
from fxfault.training import Learner, TrainingBatches, callbacks, train
from fxfault.training.batches import (
    Augmented,
    EpochOrder,
    Shard,
    TrainingLoader,
    evaluation_loader,
    shifted,
    split_validation,
)
from fxfault.training.calibration import calibration_state, restore_calibration
from fxfault.training.callbacks import AtomicCheckpointIO
from fxfault.training.checks import check_trainable
from fxfault.training.lightning_import import Callback, Trainer
from fxfault.training.optimizers import build_optimizer, build_scheduler, learning_rate, rate_factor
from fxfault.training.run import Interrupted, calibrate, load_initial_weights
from fxfault.training.run_folder import BEST, CALIBRATED, LAST, METRICS, RunFolder

read_checkpoint = partial(callbacks.read_checkpoint, most=2**25)

FAULTY = {
    "fault_injection.apply_during": "both",
    "fault_injection.probability": 10.0,
    "fault_injection.step_interval": 0.5,
}


class Net(nn.Module):
    """A quantised network with all that a resumed training can get wrong.

    Dropout draws from torch's generator, batch norm has buffers, and both activations
    calibrate their scales over the first steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            QuantIdentity(bit_width=8, return_quant_tensor=True),
            QuantLinear(64, 16, bias=False, weight_bit_width=4),
            nn.BatchNorm1d(16),
            QuantReLU(bit_width=4, return_quant_tensor=False),
            nn.Dropout(0.1),
            QuantLinear(16, 10, bias=True, weight_bit_width=4),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(images)
        return scores


def config(**changes: Any) -> ExperimentConfig:
    """Digits for four epochs of six steps, with what `changes` name by their last part."""
    settings = {
        "training.epochs": 4,
        "training.batch_size": 64,
        "training.shift": 1,
        "training.flip": True,
        "optimizer.learning_rate": 0.01,
        **FAULTY,
    }
    return load_experiment("digits", {**settings, **changes})


def digits(split: Any, number: int = 450) -> Any:
    return Subset(build_dataset("digits", split), range(number))


def run(
    experiment: ExperimentConfig, folder: Path | None = None, net: Any = None, **settings: Any
) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    if folder is not None:
        folder.mkdir(exist_ok=True)
    return train(
        experiment,
        (net or Net)(),
        digits("train"),
        digits("test", 100),
        folder=None if folder is None else RunFolder(folder),
        **settings,
    )


class StopAt(Callback):
    """Asks for a stop in a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.place = (epoch, step)
        self.reached = False

    def on_train_batch_end(self, trainer: Any, module: Any, *arguments: Any) -> None:
        self.reached = self.reached or (trainer.current_epoch, arguments[-1]) == self.place


def stopped(experiment: ExperimentConfig, folder: Path, epoch: int, step: int) -> None:
    stop = StopAt(epoch, step)
    with pytest.raises(Interrupted):
        run(experiment, folder, callbacks=[stop], stop=lambda: stop.reached)


def same(left: Any, right: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def untimed(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_same_run(one: Path, other: Path) -> None:
    """All that matters in two last checkpoints is equal, and so are the tables."""
    for name in (LAST, BEST):
        left, right = read_checkpoint(one / name), read_checkpoint(other / name)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert same(left[key], right[key]), f"{name}: {key}"
        for key in ("calibration", "generators", "totals"):
            assert same(left["fxfault"][key], right["fxfault"][key]), f"{name}: {key}"
        assert untimed(left["fxfault"]["rows"]) == untimed(right["fxfault"]["rows"])
        clocks = [c["callbacks"]["FaultAwareTraining"]["clock"] for c in (left, right)]
        assert clocks[0] == clocks[1]
    assert untimed(table(one)) == untimed(table(other))


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / METRICS).read_text(encoding="utf-8").splitlines()))


# -- going on after a stop ------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nobody stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("straight")
    run(config(), folder)
    return folder


@pytest.mark.parametrize(
    ("epoch", "step"),
    [(2, 5), (1, 2), (0, 0), (3, 4)],
    ids=["after an epoch", "within one", "at the first step", "before the last step"],
)
def test_a_stopped_training_goes_on_as_if_nothing_had_been(
    straight: Path, tmp_path: Path, epoch: int, step: int
) -> None:
    stopped(config(), tmp_path, epoch, step)
    # Other numbers come from the generators of a new process; `run` seeds them alike.
    torch.rand(7)
    run(config(), tmp_path, resume=True)
    check_same_run(straight, tmp_path)


def test_a_training_can_be_stopped_and_go_on_twice(straight: Path, tmp_path: Path) -> None:
    stopped(config(), tmp_path, 0, 3)
    stop = StopAt(2, 1)
    with pytest.raises(Interrupted):
        run(config(), tmp_path, resume=True, callbacks=[stop], stop=lambda: stop.reached)
    run(config(), tmp_path, resume=True)
    check_same_run(straight, tmp_path)


def test_going_on_from_the_checkpoint_before_the_first_step(straight: Path, tmp_path: Path) -> None:
    class Die(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(config(), tmp_path, callbacks=[Die()])
    run(config(), tmp_path, resume=True)
    check_same_run(straight, tmp_path)


def test_a_resumed_training_is_not_the_same_by_chance(straight: Path, tmp_path: Path) -> None:
    """With other faults, or without the saved generators, it would differ."""
    run(config(**{"fault_injection.seed": 43}), tmp_path)
    weights = [read_checkpoint(path / LAST)["state_dict"] for path in (straight, tmp_path)]
    assert not same(*weights)


def test_workers_and_an_extra_epoch_change_nothing_before(straight: Path, tmp_path: Path) -> None:
    run(config(**{"training.num_workers": 1, "training.epochs": 1}), tmp_path)
    rows = [read_checkpoint(path / LAST)["fxfault"]["rows"] for path in (straight, tmp_path)]
    assert untimed(rows[0][:1]) == untimed(rows[1])


def test_going_on_with_another_number_of_processes_is_refused(straight: Path) -> None:
    with pytest.raises(ConfigError, match=r"devices: got 2, but .*last\.ckpt was trained by 1"):
        train(config(), Net(), digits("train"), digits("test"), folder=RunFolder(straight),
              resume=True, devices=2)  # fmt: skip


def test_a_finished_training_is_tested_again_and_left_alone(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    result = run(config(), folder, resume=True)
    assert len(result.rows) == 4
    check_same_run(straight, folder)


def test_the_callers_generators_are_left_alone(tmp_path: Path) -> None:
    experiment = config(**{"training.epochs": 1})
    before: list[Any] = []

    class Look(Callback):
        def on_fit_start(self, *arguments: Any) -> None:
            before.append(torch.get_rng_state())

    run(experiment, callbacks=[Look()])
    assert torch.equal(before[0], torch.get_rng_state())


# -- what it gives and writes ---------------------------------------------------------------


def test_best_and_last_are_what_the_rows_say(straight: Path) -> None:
    last, best = read_checkpoint(straight / LAST), read_checkpoint(straight / BEST)
    rows = last["fxfault"]["rows"]
    ranks = [(row["val_accuracy"], -row["val_loss"]) for row in rows]
    assert last["epoch"] == 3
    assert best["epoch"] == ranks.index(max(ranks))


def test_a_checkpoint_loads_into_the_plain_network(straight: Path) -> None:
    net = Net()
    info = load_checkpoint(straight / BEST, net)
    assert set(info.keys) == set(Net().state_dict()) | {
        key for key in info.keys if key.endswith("scaling_impl.value")
    }
    saved = read_checkpoint(straight / BEST)["state_dict"]
    weights = net.state_dict()
    assert all(torch.equal(saved[f"network.{key}"], weights[key]) for key in weights)


def test_a_checkpoint_of_a_module_of_ones_own_loads_too(tmp_path: Path) -> None:
    """Whatever the attribute is called, and whatever wraps the network."""
    for wrapped in ("model.net.{}", "_orig_mod.network.{}", "network._orig_mod.{}", "module.{}"):
        net, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
        state = {wrapped.format(key): value for key, value in net.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "own.ckpt")
        load_checkpoint(tmp_path / "own.ckpt", fresh)
        assert same(net.state_dict(), fresh.state_dict())
    torch.save({"a.weight": torch.zeros(2, 3), "b.bias": torch.zeros(2)}, tmp_path / "no.pt")
    with pytest.raises(DataError, match=r"2 unexpected keys \(a\.weight, b\.bias\)"):
        load_checkpoint(tmp_path / "no.pt", nn.Linear(3, 2))


def test_the_network_has_the_best_weights_and_is_in_eval_mode(straight: Path) -> None:
    network = run(config()).network
    best = read_checkpoint(straight / BEST)["state_dict"]
    assert isinstance(network, Net)
    assert not any(module.training for module in network.modules())
    weights = network.state_dict()
    assert all(torch.equal(best[f"network.{key}"], weights[key]) for key in weights)


def test_validation_has_the_same_faults_in_each_epoch_of_a_curriculum() -> None:
    """Those of the configuration: epochs are compared by it, and training goes on as planned."""
    points = [{"epoch": 0, "probability": 0.0}, {"epoch": 1, "probability": 5.0}]
    experiment = config(
        **{
            "fault_injection.curriculum": points,
            "fault_injection.probability": 100.0,
            "fault_injection.step_interval": 1.0,
            "optimizer.learning_rate": 0.05,
        }
    )
    result = run(experiment)
    first, second, *_ = result.rows
    assert first["fault_rate"] == 0
    assert 4 < second["fault_rate"] < 6
    # Every value is replaced, which leaves guessing.
    assert all(row["faulty_val_accuracy"] < 30 for row in result.rows)
    assert result.faulty_test_value < 30 < 50 < result.test_value


def test_faults_strike_in_the_steps_that_are_counted(straight: Path) -> None:
    rows = read_checkpoint(straight / LAST)["fxfault"]["rows"]
    assert all(row["steps"] == 6 for row in rows)
    noisy = sum(row["noisy_steps"] for row in rows)
    assert 4 <= noisy <= 20  # of 24, each with a chance of one half
    assert all(9 < row["fault_rate"] < 11 for row in rows if row["noisy_steps"])
    assert all(row["faulty_val_accuracy"] <= row["val_accuracy"] for row in rows[2:])


def test_without_faults_in_training_no_step_is_noisy() -> None:
    result = run(config(**{"fault_injection.apply_during": "eval", "training.epochs": 1}))
    assert result.rows[0]["noisy_steps"] == 0
    assert result.rows[0]["probability"] == 0
    assert result.faulty_test_value is not None


def test_without_faults_at_all_nothing_is_said_of_them() -> None:
    result = run(config(**{"fault_injection.enabled": False, "training.epochs": 1}))
    assert "fault_rate" not in result.rows[0]
    assert "faulty_val_accuracy" not in result.rows[0]
    assert result.faulty_test_value is None


def test_last_weights_are_kept_where_no_best_is_wanted(tmp_path: Path) -> None:
    experiment = config(
        **{"checkpoint.save_best": False, "training.validation_fraction": 0, "training.epochs": 1}
    )
    result = run(experiment, tmp_path)
    assert result.best is None
    assert not (tmp_path / BEST).exists()
    assert "val_accuracy" not in result.rows[0]
    assert (tmp_path / LAST).exists()


def test_checkpoints_can_be_turned_off(tmp_path: Path) -> None:
    result = run(config(**{"checkpoint.enabled": False, "training.epochs": 1}), tmp_path)
    assert result.best is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, "tensorboard"]


def test_events_hold_the_columns_of_the_table(straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    rows = table(straight)
    for column in ("train_loss", "val_accuracy", "faulty_val_accuracy", "fault_rate"):
        logged = [event.value for event in events.Scalars(column)]
        assert logged == pytest.approx([float(row[column]) for row in rows], rel=1e-5)


def test_best_by_faulty_looks_at_the_accuracy_under_faults(tmp_path: Path) -> None:
    result = run(config(**{"checkpoint.best_by": "faulty"}))
    accuracies = [row["faulty_val_accuracy"] for row in result.rows]
    assert result.best["faulty_val_accuracy"] == max(accuracies)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.validation_fraction": 0}, "checkpoint.save_best"),
        ({"metric": "rmse"}, r"training\.shift: it moves images and not their targets.* rmse"),
        (
            {"training.loss": "mse", "training.label_smoothing": 0.1},
            r"training\.label_smoothing: only `cross_entropy` .* mse",
        ),
        (
            {"checkpoint.best_by": "faulty", "fault_injection.apply_during": "train"},
            "checkpoint.best_by",
        ),
    ],
)
def test_sections_that_contradict_each_other(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_trainable(config(**changes))


# -- ending badly ---------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path: Path) -> None:
    class Poison(Callback):
        """Makes the images of a step infinite."""

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if (trainer.current_epoch, index) == (1, 2):
                batch[0].fill_(math.inf)

    with pytest.raises(
        TrainingError, match=r"loss is nan in epoch 1 \(of 0 to 3\), step 2 \(of 0 to 5\), a noisy"
    ):
        run(config(**{"fault_injection.step_interval": 1.0}), tmp_path, callbacks=[Poison()])
    last = read_checkpoint(tmp_path / LAST)
    assert last["epoch"] == 0
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_clean_step_is_called_clean() -> None:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            batch[0].fill_(math.nan)

    experiment = config(**{"fault_injection.apply_during": "eval"})
    with pytest.raises(
        TrainingError, match=r"epoch 0 \(of 0 to 3\), step 0 \(of 0 to 5\), a clean step"
    ):
        run(experiment, callbacks=[Poison()])


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    write = AtomicCheckpointIO.save_checkpoint

    def save(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if len(saved) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, checkpoint, path)
        saved.append(1)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    with pytest.raises(TrainingError, match=r"cannot be written: No space left.*is whole") as error:
        run(config(), tmp_path)
    assert "\n" not in str(error.value)
    assert read_checkpoint(tmp_path / LAST)["epoch"] == 0
    load_checkpoint(tmp_path / BEST, Net())


def test_a_failing_write_leaves_the_file_before(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO(2**25).save_checkpoint({"fxfault": 1}, path)

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO(2**25).save_checkpoint({"fxfault": 2}, path)
    assert read_checkpoint(path) == {"fxfault": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_vanishes_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Remove(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                shutil.rmtree(folder)

    with pytest.raises(TrainingError, match=r"run, is gone"):
        run(config(), folder, callbacks=[Remove()])
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", None])
def test_a_broken_checkpoint_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / LAST
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"last\.ckpt"):
        run(config(), tmp_path, resume=True)


def test_a_network_that_fails_in_training_mode_is_quoted() -> None:
    class Failing(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("not today")
            return super().forward(images)

    experiment = config(**{"fault_injection.enabled": False})
    with pytest.raises(DataError, match=r"training step.*\(64, 1, 8, 8\).*not today"):
        run(experiment, net=Failing)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_fails_is_quoted_in_one_line(workers: int) -> None:
    class Failing(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            raise ValueError("no such scan")

    data = Failing(torch.zeros(100, 1, 8, 8))
    experiment = config(**{"training.num_workers": workers, "fault_injection.enabled": False})
    with pytest.raises(DataError, match=r"^the data set cannot be read: .*no such scan") as error:
        train(experiment, Net(), data, data)
    assert "\n" not in str(error.value)


# -- its parts ------------------------------------------------------------------------------


def test_a_classifier_works_with_a_trainer_of_ones_own(tmp_path: Path) -> None:
    experiment = config(**{"fault_injection.enabled": False})
    module = Learner(Net(), experiment)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        accelerator="cpu", limit_val_batches=0,
    )  # fmt: skip
    from fxfault.training.lightning_fit import quiet_lightning

    with quiet_lightning():
        trainer.fit(module, datamodule=TrainingBatches(experiment, digits("train"), None))
    assert trainer.global_step == 7
    assert module.epoch_metrics()["steps"] == 7


def test_a_classifier_logs_what_callbacks_of_ones_own_look_for(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from fxfault.training.lightning_fit import quiet_lightning

    best = ModelCheckpoint(tmp_path, "best", monitor="val_accuracy", mode="max")
    trainer = Trainer(
        max_epochs=1, logger=False, callbacks=[best], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, accelerator="cpu",
    )  # fmt: skip
    experiment = config(**{"fault_injection.enabled": False})
    module = Learner(Net(), experiment)
    batches = TrainingBatches(experiment, digits("train"), digits("test", 100))
    with quiet_lightning():
        trainer.fit(module, datamodule=batches)
    assert Path(best.best_model_path).is_file()
    metrics = module.epoch_metrics()
    names = {"train_loss", "train_accuracy", "noisy_steps", "val_loss", "val_accuracy"}
    assert set(trainer.callback_metrics) == names
    for name in names:
        assert float(trainer.callback_metrics[name]) == pytest.approx(metrics[name])


def test_calibration_goes_on_where_it_was() -> None:
    torch.manual_seed(0)
    images = [torch.randn(8, 1, 8, 8) * (i + 1) for i in range(4)]
    whole, first, second = Net().train(), Net().train(), Net().train()
    for net in (first, second):
        net.load_state_dict(whole.state_dict(), strict=False)
        restore_calibration(net, calibration_state(whole))
    for batch in images:
        whole(batch)
    for batch in images[:2]:
        first(batch)
    second.load_state_dict(first.state_dict())
    assert not same(calibration_state(first), calibration_state(second))  # Brevitas ends it.
    restore_calibration(second, calibration_state(first))
    for batch in images[2:]:
        second(batch)
    assert same(calibration_state(whole), calibration_state(second))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimisers_have_their_settings(name: str) -> None:
    experiment = load_experiment(
        "digits", {"optimizer": {"name": name, "weight_decay": 0.1, "learning_rate": 0.5}}
    )
    optimizer = build_optimizer(experiment.optimizer, nn.Linear(2, 2).parameters())
    assert type(optimizer).__name__.lower() == name
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["weight_decay"] == 0.1
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


@pytest.mark.parametrize(
    ("settings", "peer"),
    [
        ({"name": "cosine"}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12)),
        (
            {"name": "cosine", "T_max": 5},
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        ),
        (
            {"name": "step", "step_size": 3, "gamma": 0.5},
            lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
        ),
        (
            {"name": "multistep", "milestones": [2, 7]},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 7]),
        ),
        ({"name": "none"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedules_are_torchs_without_warm_up(settings: Any, peer: Callable[[Any], Any]) -> None:
    experiment = ExperimentConfig.from_dict(
        {"scheduler": settings, "training": {"epochs": 12}, "optimizer": {"learning_rate": 0.1}}
    )
    parameters = [nn.Parameter(torch.zeros(1))]
    own, other = (torch.optim.SGD(parameters, lr=0.1) for _ in range(2))
    ours, theirs = build_scheduler(experiment, own), peer(other)
    for epoch in range(12):
        rate = own.param_groups[0]["lr"]
        assert rate == pytest.approx(other.param_groups[0]["lr"], abs=1e-12)
        assert rate == pytest.approx(learning_rate(experiment, epoch))
        for optimizer, schedule in ((own, ours), (other, theirs)):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("name", ["cosine", "step", "none"])
def test_warm_up_rises_to_the_schedule(name: Any) -> None:
    factor = rate_factor(SchedulerConfig(name=name, warmup_epochs=4), epochs=20)
    assert [factor(epoch) for epoch in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_validation_is_drawn_by_the_seed() -> None:
    data = digits("train", 100)
    training, validation = split_validation(data, 0.2, seed=1)
    again, _ = split_validation(data, 0.2, seed=1)
    other, _ = split_validation(data, 0.2, seed=2)
    assert validation is not None
    assert sorted([*training.indices, *validation.indices]) == list(range(100))
    assert len(validation) == 20
    assert training.indices == again.indices != other.indices


def test_validation_leaves_something_to_train_on() -> None:
    with pytest.raises(DataError, match="validation_fraction"):
        split_validation(digits("train", 1), 0.1, seed=0)


def test_several_processes_see_the_batches_of_one() -> None:
    def batches(batch_size: int, shard: Shard) -> list[list[tuple[int, int]]]:
        return list(EpochOrder(samples=50, batch_size=batch_size, seed=3, shard=shard))

    joined = batches(8, Shard())
    parts = [batches(4, Shard(rank, 2)) for rank in range(2)]
    assert [left + right for left, right in zip(*parts, strict=True)] == joined
    assert len(joined) == 6


def test_the_order_differs_between_epochs_and_covers_the_data() -> None:
    order = EpochOrder(samples=40, batch_size=8, seed=3, shard=Shard())
    first = [index for batch in order for _, index in batch]
    order.set_epoch(1)
    second = [index for batch in order for _, index in batch]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    order = EpochOrder(samples=5, batch_size=64, seed=0, shard=Shard())
    assert [len(batch) for batch in order] == [5]
    with pytest.raises(DataError, match="too few for 8 processes"):
        EpochOrder(samples=5, batch_size=64, seed=0, shard=Shard(0, 8))


def test_a_loader_goes_on_within_an_epoch() -> None:
    def loader() -> TrainingLoader:
        return TrainingLoader(digits("train", 100), TrainingConfig(batch_size=16), 5, Shard())

    whole, half, rest = list(loader()), loader(), loader()
    batches = iter(half)
    for _ in range(2):
        next(batches)
    rest.load_state_dict(half.state_dict())
    assert same([list(batch) for batch in rest], [list(batch) for batch in whole[2:]])
    assert same([list(batch) for batch in rest], [list(batch) for batch in whole])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_sample_once(world_size: int) -> None:
    data = digits("train", 23)
    parts = [evaluation_loader(data, 4, Shard(rank, world_size)) for rank in range(world_size)]
    batches = [batch for part in parts for batch in part.batch_sampler]
    assert sorted(index for batch in batches for index in batch) == list(range(23))


@pytest.mark.parametrize("size", [7, 16, 17, 23])
def test_sharded_evaluation_numbers_samples_as_one_process_does(size: int) -> None:
    """Also where the last batch cannot be shared equally: the faults follow the numbers."""
    for rank in range(3):
        faulty: Any = fxfault.transform(QuantIdentity(), {"enabled": True, "seed": 1}).eval()
        faulty.faults.shard(rank, 3)
        for batch in evaluation_loader(digits("train", size), 2, Shard(rank, 3)).batch_sampler:
            faulty(torch.ones(len(batch), 1))
            first = faulty.faults.clock.first_sample
            assert batch == list(range(first, first + len(batch)))


def test_evaluation_needs_a_sample_for_each_process() -> None:
    with pytest.raises(DataError, match="1 validation samples are too few for 2 processes"):
        evaluation_loader(digits("train", 1), 4, Shard(0, 2))


def test_augmentation_follows_seed_epoch_and_sample() -> None:
    data = digits("train", 50)
    settings = TrainingConfig(shift=2, flip=True)

    def seen(seed: int, epoch: int) -> torch.Tensor:
        augmented = Augmented(data, settings, seed)
        return torch.stack([augmented[epoch, index][0] for index in range(50)])

    assert torch.equal(seen(1, 0), seen(1, 0))
    assert not torch.equal(seen(1, 0), seen(1, 1))
    assert not torch.equal(seen(1, 0), seen(2, 0))


def test_augmentation_draws_all_shifts_and_mirrors_alike() -> None:
    image = torch.zeros(1, 5, 7)
    image[0, 2, 3] = 1
    image[0, 2, 4] = 2
    data = [(image, 0)] * 3000
    augmented = Augmented(data, TrainingConfig(shift=1, flip=True), 0)  # type: ignore[arg-type]
    seen: dict[tuple[int, ...], int] = {}
    for index in range(3000):
        moved = augmented[0, index][0][0]
        places = (moved == 1).nonzero()[0].tolist() + (moved == 2).nonzero()[0].tolist()
        seen[tuple(places)] = seen.get(tuple(places), 0) + 1
    assert len(seen) == 18
    assert all(abs(number - 3000 / 18) < 60 for number in seen.values())


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-2, 1), (0, -3), (9, 0), (2, 2)])
def test_shifting_is_padding_and_cutting(down: int, right: int) -> None:
    image = torch.arange(1.0, 31).view(1, 5, 6)
    padded = nn.functional.pad(image, (9, 9, 9, 9))
    expected = padded[:, 9 - down : 14 - down, 9 - right : 15 - right]
    assert torch.equal(shifted(image, down, right), expected)


# -- statistics of batch norm, and where training starts ---------------------------------------

STATISTICS = {f"body.3.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
CLEAN, FAULTY_TOO = {"training.calibrate": "clean"}, {"training.calibrate": "faulty"}


def weights(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("network."): value for key, value in saved.items()}


def differing(left: dict[str, Any], right: dict[str, Any]) -> set[str]:
    assert left.keys() == right.keys()
    return {key for key in left if not torch.equal(left[key], right[key])}


@pytest.mark.parametrize("how", [CLEAN, FAULTY_TOO], ids=["clean", "faulty"])
def test_calibration_changes_statistics_alone_and_only_at_the_end(
    straight: Path, tmp_path: Path, how: Any
) -> None:
    result = run(config(**how), tmp_path)
    check_same_run(straight, tmp_path)  # What resumes the run has none of it.
    assert not (straight / CALIBRATED).exists()
    calibrated = weights(tmp_path / CALIBRATED)
    assert result.calibrated == 1
    assert differing(weights(tmp_path / BEST), calibrated) == STATISTICS
    assert differing(dict(result.network.state_dict()), calibrated) == set()
    net = Net()
    load_checkpoint(tmp_path / CALIBRATED, net)
    assert differing(dict(net.state_dict()), calibrated) == set()


def test_clean_and_faulty_statistics_differ(tmp_path: Path) -> None:
    found = []
    for name, how in {"a": CLEAN, "b": FAULTY_TOO}.items():
        run(config(**how, **{"training.epochs": 1}), tmp_path / name)
        found.append(weights(tmp_path / name / CALIBRATED))
    assert differing(*found) == STATISTICS - {"body.3.num_batches_tracked"}


def test_a_resumed_training_is_calibrated_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    for how in (CLEAN, FAULTY_TOO):
        folder, other = (tmp_path / f"{how['training.calibrate']}{part}" for part in "ab")
        run(config(**how), folder)
        stopped(config(**how), other, 2, 3)
        assert not (other / CALIBRATED).exists()
        run(config(**how), other, resume=True)
        assert differing(weights(folder / CALIBRATED), weights(other / CALIBRATED)) == set()


def test_calibration_can_be_asked_for_afterwards(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    run(config(**CLEAN), folder, resume=True)
    run(config(**CLEAN), tmp_path / "anew")
    found = [weights(path / CALIBRATED) for path in (folder, tmp_path / "anew")]
    assert differing(*found) == set()


def test_without_files_the_network_is_calibrated_all_the_same(tmp_path: Path) -> None:
    off = {"checkpoint.enabled": False, "training.epochs": 1}
    plain, calibrated = (run(config(**off, **how)).network for how in ({}, CLEAN))
    found = differing(dict(plain.state_dict()), dict(calibrated.state_dict()))
    assert found == STATISTICS - {"body.3.num_batches_tracked"}  # one epoch of batches each
    run(config(**off, **CLEAN), tmp_path)
    assert not (tmp_path / CALIBRATED).exists()


def test_calibration_that_cannot_be_is_refused_before_the_work() -> None:
    changes = {**FAULTY_TOO, "fault_injection.enabled": False}
    with pytest.raises(ConfigError, match=r"training\.calibrate: `faulty` needs faults"):
        check_trainable(config(**changes))
    net = nn.Sequential(nn.Flatten(), QuantReLU(), QuantLinear(64, 10, bias=True))
    with pytest.raises(ConfigError, match=r"training\.calibrate: Sequential has no batch norm"):
        run(config(**CLEAN), net=lambda: net)


def test_the_benchmark_calibrates_as_training_does() -> None:
    short = {"training.epochs": 1}
    network = run(config(**short)).network
    calibrate(config(**short, **FAULTY_TOO), network, digits("train"))
    at_once = run(config(**short, **FAULTY_TOO)).network
    assert differing(dict(network.state_dict()), dict(at_once.state_dict())) == set()


def test_weights_to_start_from_settle_their_scales(straight: Path, tmp_path: Path) -> None:
    """A scale that calibrates has no entry in a state_dict before the first step."""
    still = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e-30, "training.epochs": 1}
    still |= {"optimizer.weight_decay": 0.0, "fault_injection.enabled": False}
    before = weights(straight / LAST)
    torch.save(before, tmp_path / "alone.pt")
    start = {"checkpoint.init_from": str(tmp_path / "alone.pt"), "checkpoint.save_best": False}
    after = dict(run(config(**still, **start)).network.state_dict())
    assert differing(before, after) == STATISTICS
    scales = [key for key in after if key.endswith("scaling_impl.value")]
    assert len(scales) == 2


def test_scales_that_were_calibrating_go_on_to(tmp_path: Path) -> None:
    """What starts from a run that was stopped is what that run was."""
    stopped(config(), tmp_path, 0, 3)
    net = Net()
    load_initial_weights(config(**{"checkpoint.init_from": str(tmp_path / LAST)}), net)
    kept = read_checkpoint(tmp_path / LAST)["fxfault"]["calibration"]
    found = calibration_state(net)
    assert {f"network.{path}": state for path, state in found.items()}.keys() == kept.keys()
    assert all(same(found[path.removeprefix("network.")], kept[path]) for path in kept)
    assert any(state.get("counter") == 4 for state in found.values())


def test_a_resumed_training_does_not_start_again(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    run(config(**{"checkpoint.init_from": "nowhere.pt"}), folder, resume=True)
    check_same_run(straight, folder)
    with pytest.raises(DataError, match=r"checkpoint\.init_from: checkpoint 'nowhere\.pt': there"):
        run(config(**{"checkpoint.init_from": "nowhere.pt"}))
