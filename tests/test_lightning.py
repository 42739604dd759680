"""`FaultAwareTraining` on LightningModules that know nothing of faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import forked
import lightning_tasks as tasks
import pytest
import torch
import yaml
from brevitas.nn import QuantReLU
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_tasks import BATCH, Task, keep, loader, network
from torch import Tensor, nn

import fxfault
from fxfault import ConfigError, FxFaultError, SiteError
from fxfault.sites.fault_sites import FaultSites
from fxfault.training import FaultAwareTraining

pytestmark = [
    # Lightning 2.6 asks torch 2.13 an old question.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Brevitas shares a `TensorClamp` between networks, and with it the mode of any other test.
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
    # The run that goes on from a checkpoint writes none.
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*ModelCheckpoint"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]

MakeTrainer = Callable[..., Trainer]
BOTH = {"enabled": True, "probability": 20.0, "apply_during": "both", "seed": 7}
HALF = {**BOTH, "apply_during": "train", "step_interval": 0.5}


@pytest.fixture
def trainer(tmp_path: Path) -> MakeTrainer:
    """Give a function that makes a quiet Trainer of some callbacks."""

    def make(*callbacks: Callback, **options: Any) -> Trainer:
        saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        defaults: dict[str, Any] = {
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": saves,
            "default_root_dir": tmp_path,
            "callbacks": list(callbacks),
        }
        return Trainer(**{**defaults, **options})

    return make


class Watch(Callback):
    """Notes something about the faults after each training step."""

    def __init__(self, note: Callable[[FaultSites, FaultAwareTraining], Any]) -> None:
        self.note = note
        self.notes: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        (aware,) = (c for c in trainer.callbacks if isinstance(c, FaultAwareTraining))
        assert aware.faults is not None
        self.notes.append(self.note(aware.faults, aware))


def clean_codes(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return net[0](inputs).int()  # type: ignore[index]


def batches(samples: int = 4 * BATCH, batch: int = BATCH) -> list[Tensor]:
    return [inputs for inputs, _ in loader(samples, batch)]


# -- putting the faulty network in and taking it out ---------------------------------------


def test_the_network_is_struck_while_training_and_is_itself_again_afterwards(
    trainer: MakeTrainer,
) -> None:
    task = Task()
    net, before = task.net, [p.detach().clone() for p in task.parameters()]
    callback = FaultAwareTraining({**BOTH, "apply_during": "train"})
    trainer(callback).fit(task, loader())
    assert task.net is net
    assert type(net) is nn.Sequential
    for inputs, codes in zip(batches(), keep(task).codes(), strict=True):
        assert 0.05 < (codes != clean_codes(net, inputs)).float().mean() < 0.4
    assert all(not torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    assert callback.faults is None


def test_optimisers_and_strategy_see_the_faulty_network_with_the_same_parameters(
    trainer: MakeTrainer,
) -> None:
    seen: dict[str, Any] = {}

    class Looks(Task):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            seen.update(net=self.net, names=[name for name, _ in self.named_parameters()])
            return super().configure_optimizers()

    task = Looks()
    parameters = dict(task.named_parameters())
    running = trainer(FaultAwareTraining(BOTH))
    running.fit(task, loader())
    assert len(seen["net"].faults) == 2
    assert seen["names"] == list(parameters)
    for optimised, own in zip(
        running.optimizers[0].param_groups[0]["params"], parameters.values(), strict=True
    ):
        assert optimised is own


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_network_is_put_back_after_an_error_and_after_ctrl_c(
    trainer: MakeTrainer, error: type[BaseException]
) -> None:
    class Fails(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 2:
                raise error("stop")
            return loss

    task = Fails()
    net, callback = task.net, FaultAwareTraining(BOTH)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((RuntimeError, SystemExit)):
            trainer(callback).fit(task, loader())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C from then on.
    assert task.net is net
    assert callback.faults is None
    state = callback.state_dict()  # What Lightning saves after an error.
    assert state["clock"]["step"] == 2
    assert state["epoch"]["total_activations"] == 3 * BATCH * (6 + 16)


def test_the_network_is_put_back_where_the_device_fails(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("device-side assert")

    task = Task()
    net = task.net
    monkeypatch.setattr(fxfault.FaultStatistics, "to_dict", fails)
    monkeypatch.setattr(task, "training_step", fails)
    with pytest.raises(RuntimeError, match="device-side assert"):
        trainer(FaultAwareTraining(BOTH)).fit(task, loader())
    assert task.net is net


def test_modes_of_layers_are_left_as_they_were(trainer: MakeTrainer) -> None:
    task = Task(network(batch_norm=True))
    task.net[3].eval()
    modes = {name: module.training for name, module in task.named_modules()}
    with pytest.warns(UserWarning, match="eval mode"):
        trainer(FaultAwareTraining(BOTH)).fit(task, loader(), loader())
    assert {name: module.training for name, module in task.named_modules()} == modes
    assert int(task.net[3].num_batches_tracked) == 0


def test_batch_statistics_are_trained_too(trainer: MakeTrainer) -> None:
    task = Task(network(batch_norm=True))
    trainer(FaultAwareTraining(BOTH)).fit(task, loader())
    assert int(task.net[3].num_batches_tracked) == 4


def test_disabled_changes_nothing_at_all(trainer: MakeTrainer) -> None:
    plain, with_callback = Task(), Task()
    trainer().fit(plain, loader(), loader())
    callback = FaultAwareTraining({**BOTH, "enabled": False}, log_statistics=True)
    running = trainer(callback, Watch(lambda *_: None), max_epochs=0)
    running.fit(Task(), loader())
    running = trainer(callback)
    running.fit(with_callback, loader(), loader())
    assert set(running.callback_metrics) == {"val_loss"}
    assert callback.state_dict() == {}
    assert callback.statistics is None
    for a, b in zip(plain.state_dict().values(), with_callback.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(keep(plain).seen, keep(with_callback).seen, strict=True):
        assert torch.equal(a[1], b[1])


def test_a_network_made_in_the_modules_own_hooks_is_found(trainer: MakeTrainer) -> None:
    class Late(Task):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            del self.net

        def configure_model(self) -> None:
            self.net = network()

    task = Late()
    callback = FaultAwareTraining(BOTH)
    running = trainer(callback)
    running.fit(task, loader())
    assert callback.statistics.total_injections > 0
    assert running.optimizers[0].param_groups[0]["params"][0] is task.net[2].weight
    assert type(task.net) is nn.Sequential


def test_a_network_that_setup_makes_anew_is_struck_and_kept(trainer: MakeTrainer) -> None:
    class Anew(Task):
        def setup(self, stage: str) -> None:
            self.net = self.made = network()

    task = Anew()
    callback = FaultAwareTraining(BOTH)
    trainer(callback).fit(task, loader())
    assert callback.statistics.total_injections > 0
    assert task.net is task.made
    assert type(task.net) is nn.Sequential


def test_a_nested_network_is_named_by_its_path_and_replaced_wherever_it_is(
    trainer: MakeTrainer,
) -> None:
    class Nested(Task):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict({"student": network(), "teacher": network()}))
            self.alias = self.net["student"]

        def forward(self, x: Tensor) -> Tensor:
            assert self.alias is self.net["student"]
            return self.net["student"](x) + self.net["teacher"](x)

    task = Nested()
    student = task.net["student"]
    trainer(FaultAwareTraining(BOTH, network="net.student")).fit(task, loader())
    assert task.net["student"] is task.alias is student
    for inputs, struck, clean in zip(
        batches(), student[1].codes(), task.net["teacher"][1].codes(), strict=True
    ):
        assert torch.equal(clean, clean_codes(student, inputs))
        assert not torch.equal(struck, clean)


@pytest.mark.parametrize(
    ("children", "path", "error", "message"),
    [
        ({"net": nn.Linear(6, 3)}, None, SiteError, r"QuantReLU.*net \(Linear\), loss"),
        ({"net": network(), "ema": network()}, None, ConfigError, "one as `network`: net, ema"),
        ({"net": network()}, "nett", ConfigError, "no child 'nett'; did you mean 'net'"),
        ({"net": network()}, "", ConfigError, "no child ''.*allowed: net"),
        ({"net": nn.Linear(6, 3)}, "model", ConfigError, r"'model'.*net \(Linear\)"),
        (
            {"net": nn.ModuleList([network(), network()])},
            "net",
            ConfigError,
            r"ModuleList, which has no forward; allowed: net\.0, net\.1",
        ),
        ({"net": nn.Linear(6, 3)}, "net", FxFaultError, "QuantReLU"),
    ],
)
def test_a_network_that_cannot_be_found_is_a_clear_error(
    trainer: MakeTrainer,
    children: dict[str, nn.Module],
    path: str | None,
    error: type[Exception],
    message: str,
) -> None:
    task = Task()
    for name, child in children.items():
        setattr(task, name, child)
    with pytest.raises(error, match=message):
        trainer(FaultAwareTraining(BOTH, network=path)).fit(task, loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg": {"probability": 101}}, "probability"),
        ({"cfg": 5}, r"cfg: got 5 \(int\)"),
        ({"cfg": "nowhere.yaml"}, "nowhere.yaml"),
        ({"cfg": BOTH, "network": 3}, r"network: got 3 \(int\)"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FaultAwareTraining(**settings)


def test_the_configuration_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "fat.yaml").write_text(yaml.safe_dump({"fault_injection": BOTH}))
    assert FaultAwareTraining(tmp_path / "fat.yaml").config.probability == 20.0
    assert FaultAwareTraining(fxfault.FaultInjectionConfig(**BOTH)).config.seed == 7


def test_a_network_that_no_step_calls_as_a_whole_is_an_error(trainer: MakeTrainer) -> None:
    class InParts(Task):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.net:
                x = layer(x)
            return x

    with pytest.raises(SiteError, match="InParts never called 'net' in training mode"):
        trainer(FaultAwareTraining(BOTH)).fit(InParts(), loader())
    with pytest.raises(SiteError, match="InParts never called 'net', and"):
        trainer(FaultAwareTraining(BOTH)).test(InParts(), loader(), verbose=False)


def test_a_device_is_asked_at_the_end_of_an_epoch_whether_all_was_sound(
    trainer: MakeTrainer,
) -> None:
    def spoil(faults: FaultSites, _: Any) -> None:
        faults[1].seen.sound = torch.tensor(False)  # What a forward on a GPU leaves there.

    with pytest.raises(SiteError, match=r"site 4: .* are not integer codes"):
        trainer(FaultAwareTraining(BOTH), Watch(spoil)).fit(Task(), loader())


def test_lightning_that_is_missing_is_a_clear_error() -> None:
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "import fxfault\n"
        "try:\n"
        "    from fxfault.training import FaultAwareTraining\n"
        "except fxfault.FxFaultError as error:\n"
        "    print(error)\n"
        "print([m for m in ('lightning.pytorch', 'torchmetrics') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'install it with pip install "fxfault[train]"' in run.stdout
    assert run.stdout.strip().endswith("[]")


# -- checkpoints -----------------------------------------------------------------------------


def test_checkpoints_have_the_same_keys_and_load_into_the_plain_module(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    saved = {}
    for name, callbacks in (("plain", []), ("faulty", [FaultAwareTraining(BOTH)])):
        task, save = Task(network(batch_norm=True)), ModelCheckpoint(tmp_path / name)
        trainer(*callbacks, save).fit(task, loader(), loader())
        saved[name] = torch.load(save.best_model_path, weights_only=True)
        weights = task.state_dict()
    assert list(saved["plain"]["state_dict"]) == list(saved["faulty"]["state_dict"])
    plain = Task(network(batch_norm=True))
    plain.load_state_dict(saved["faulty"]["state_dict"])
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
    loaded = Task.load_from_checkpoint(
        save.best_model_path, weights_only=True, net=network(batch_norm=True)
    )
    assert torch.equal(loaded.net[2].weight, task.net[2].weight)
    with pytest.warns(UserWarning, match="add the following callbacks"):
        trainer(max_epochs=2).fit(plain, loader(), ckpt_path=save.best_model_path)


class Snapshot(Callback):
    """Remembers the weights, and the faults, when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights = {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.optimiser = trainer.optimizers[0].state_dict()["state"]


CURRICULUM = [{"epoch": 0, "probability": 5.0}, {"epoch": 3, "probability": 50.0}]


@pytest.mark.parametrize("when", ["train_epoch_end", "validation_end"])
@pytest.mark.parametrize("seed", [7, None])
def test_four_epochs_are_two_and_two_resumed_bit_for_bit(
    trainer: MakeTrainer, tmp_path: Path, when: str, seed: int | None
) -> None:
    config = {**BOTH, "step_interval": 0.5, "seed": seed, "interpolate": "linear"}
    config["curriculum"] = CURRICULUM
    at_end = when == "train_epoch_end"

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=at_end)

    straight, whole = Task(network(batch_norm=True)), FaultAwareTraining(config)
    trainer(whole, saver(), max_epochs=4).fit(straight, loader(), loader())
    resumed, rest = Task(network(batch_norm=True)), FaultAwareTraining(config)
    trainer(rest, max_epochs=4).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt"
    )
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for mode, count in ((True, 8), (False, 8)):
        ends = keep(straight).codes(mode)[-count:]
        for a, b in zip(ends, keep(resumed).codes(mode)[-count:], strict=True):
            assert torch.equal(a, b)
    assert rest.state_dict()["clock"] == whole.state_dict()["clock"]
    assert_same_counts(rest, whole)


def assert_same_counts(one: FaultAwareTraining, other: FaultAwareTraining) -> None:
    for a, b in zip(
        one.statistics.layer_stats.values(), other.statistics.layer_stats.values(), strict=True
    ):
        assert (a.injected_count, a.total_activations) == (b.injected_count, b.total_activations)
        assert (a.sample_count, a.rmse_count) == (b.sample_count, b.rmse_count)
        assert a.avg_rmse == pytest.approx(b.avg_rmse)
    assert one.statistics.total_injections > 0


class Resumable:
    """A loader that goes on where it stood, in the sense in which Lightning asks for it."""

    def __init__(self) -> None:
        self.batches = list(loader(8 * BATCH))
        self.given = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.given %= len(self)
        for batch in self.batches[self.given :]:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


@pytest.mark.parametrize("step", [13, 16])
def test_a_run_goes_on_in_the_middle_of_an_epoch(
    trainer: MakeTrainer, tmp_path: Path, step: int
) -> None:
    config = {**HALF, "curriculum": CURRICULUM, "interpolate": "linear"}
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    straight, whole = Task(), FaultAwareTraining(config)
    noisy = Watch(lambda _, aware: aware.noisy_step)
    running = trainer(whole, noisy, saver, max_epochs=3)
    running.fit(straight, Resumable())
    resumed, rest = Task(), FaultAwareTraining(config)
    again = Watch(lambda _, aware: aware.noisy_step)
    going_on = trainer(rest, again, max_epochs=3)
    going_on.fit(resumed, Resumable(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert again.notes == noisy.notes[step:]
    assert len(again.notes) == 24 - step
    assert {False, True} == set(noisy.notes[13:16]) == set(noisy.notes[16:])
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert going_on.callback_metrics["fault_rate"] == running.callback_metrics["fault_rate"]
    assert_same_counts(rest, whole)


def test_a_layer_that_a_drawn_seed_chose_is_chosen_again(
    trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**BOTH, "seed": None, "mode": "layer", "injection_layer": -1}
    armed = {}
    for seed in range(10):
        armed[fxfault.transform(network(), {**config, "seed": seed}).faults[0].selected] = seed
    chosen = []
    saver = [ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5)]
    for selected, savers, path in ((True, saver, None), (False, [], tmp_path / "step=5.ckpt")):
        monkeypatch.setattr("secrets.randbits", lambda _, seed=armed[selected]: seed)
        watch = Watch(lambda faults, _: [site.selected for site in faults])
        trainer(FaultAwareTraining(config), watch, *savers).fit(Task(), Resumable(), ckpt_path=path)
        chosen += watch.notes
    assert chosen == [[True, False]] * (8 + 3)


def test_a_run_that_has_nothing_left_to_do_keeps_the_state(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    before, after = FaultAwareTraining(BOTH), FaultAwareTraining(BOTH)
    trainer(before, ModelCheckpoint(tmp_path, "last")).fit(Task(), loader())
    trainer(after).fit(Task(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert after.state_dict() == before.state_dict()
    assert after.state_dict()["clock"]["step"] == 4


def test_a_state_taken_during_validation_is_that_of_training(trainer: MakeTrainer) -> None:
    class Takes(Callback):
        def __init__(self) -> None:
            self.states: list[dict[str, Any]] = []

        def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
            self.states.append(callback.state_dict())

    callback, takes = FaultAwareTraining(BOTH), Takes()
    trainer(callback, takes, val_check_interval=3, num_sanity_val_steps=0).fit(
        Task(), loader(), loader()
    )
    assert [state["clock"]["step"] for state in takes.states] == [3] * 4
    elements = 3 * BATCH * (6 + 16)
    assert [state["epoch"]["total_activations"] for state in takes.states] == [elements] * 4


def test_settings_of_a_resumed_run_are_those_it_is_given_now(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer(FaultAwareTraining(HALF), ModelCheckpoint(tmp_path, "last")).fit(Task(), loader())
    callback = FaultAwareTraining({**HALF, "step_interval": 1.0})
    watch = Watch(lambda faults, aware: (faults.clock.epoch, aware.noisy_step))
    trainer(callback, watch, max_epochs=2).fit(Task(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert watch.notes == [(1, True)] * 4


def test_a_checkpoint_of_another_network_is_refused(trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer(FaultAwareTraining(BOTH), ModelCheckpoint(tmp_path, "last")).fit(Task(), loader())
    task = Task(nn.Sequential(*network(), QuantReLU(max_val=3.0, **tasks.CONSTANT)))
    with pytest.raises(FxFaultError, match="2 layers cannot be added to those of 3 layers"):
        trainer(FaultAwareTraining(BOTH), max_epochs=2).fit(
            task, loader(), ckpt_path=tmp_path / "last.ckpt"
        )


# -- schedules -------------------------------------------------------------------------------


def test_epochs_steps_and_samples_are_numbered_from_the_start_of_each_epoch(
    trainer: MakeTrainer,
) -> None:
    watch = Watch(
        lambda faults, _: (faults.clock.epoch, faults.clock.step, faults.clock.first_sample)
    )
    trainer(FaultAwareTraining(BOTH), watch, max_epochs=2).fit(Task(), loader(), loader())
    assert watch.notes == [(epoch, step + 1, step * BATCH) for epoch in (0, 1) for step in range(4)]


def test_faults_of_an_epoch_are_those_of_a_loop_that_numbers_it_so(trainer: MakeTrainer) -> None:
    task = Task()
    trainer(FaultAwareTraining(BOTH), max_epochs=2, num_sanity_val_steps=2).fit(
        task, loader(), loader()
    )
    faulty = fxfault.transform(network(), BOTH).train()
    faulty.faults.start_epoch(1)
    for inputs, codes in zip(batches(), keep(task).codes()[4:], strict=True):
        faulty(inputs)
        assert torch.equal(faulty[1].seen[-1][1], codes)


def test_clean_and_noisy_steps_are_told(trainer: MakeTrainer) -> None:
    task, watch = Task(), Watch(lambda _, aware: aware.noisy_step)
    callback = FaultAwareTraining({**HALF, "epoch_interval": 2})
    trainer(callback, watch, max_epochs=3).fit(task, loader(8 * BATCH))
    struck = [
        not torch.equal(codes, clean_codes(task.net, inputs))
        for inputs, codes in zip(batches(8 * BATCH) * 3, keep(task).codes(), strict=True)
    ]
    assert watch.notes == struck
    assert not any(struck[8:16])
    assert {True, False} == set(struck[:8])


def test_without_probability_no_step_is_noisy(trainer: MakeTrainer) -> None:
    watch = Watch(lambda _, aware: aware.noisy_step)
    trainer(FaultAwareTraining({**BOTH, "probability": 0}), watch).fit(Task(), loader())
    assert watch.notes == [False] * 4


def test_a_curriculum_is_followed(trainer: MakeTrainer) -> None:
    watch = Watch(lambda faults, _: faults[0].probability)
    config = {**BOTH, "curriculum": CURRICULUM, "interpolate": "linear"}
    trainer(FaultAwareTraining(config), watch, max_epochs=4).fit(Task(), loader(BATCH))
    assert watch.notes == pytest.approx([5.0, 20.0, 35.0, 50.0])


def test_each_micro_batch_of_accumulated_gradients_is_a_step(trainer: MakeTrainer) -> None:
    watch = Watch(lambda faults, _: faults.clock.step)
    running = trainer(FaultAwareTraining(HALF), watch, accumulate_grad_batches=2)
    running.fit(Task(), loader())
    assert watch.notes == [1, 2, 3, 4]
    assert running.global_step == 2


# -- training and evaluation -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply_during", "train", "evaluate"),
    [("train", True, False), ("eval", False, True), ("both", True, True)],
)
def test_faults_strike_in_the_phases_that_they_are_asked_in(
    trainer: MakeTrainer, apply_during: str, train: bool, evaluate: bool
) -> None:
    task, callback = Task(), FaultAwareTraining({**BOTH, "apply_during": apply_during})
    running = trainer(callback, num_sanity_val_steps=0)
    running.fit(task, loader(), loader())
    assert struck(task, training=True) is train
    assert struck(task, training=False) is evaluate
    for run in (running.validate, running.test):
        keep(task).seen.clear()
        metrics = run(task, loader(), verbose=False)
        assert struck(task, training=False) is evaluate
        assert any("fault_rate" in name for name in metrics[0]) is evaluate
        assert (callback.statistics.total_injections > 0) is evaluate
    keep(task).seen.clear()
    running.predict(task, loader())
    assert struck(task, training=False) is evaluate
    assert type(task.net) is nn.Sequential


def struck(task: Task, training: bool) -> bool:
    """Whether faults reached every batch, or none."""
    inputs = batches()
    found = {
        not torch.equal(codes, clean_codes(task.net, inputs[i % 4]))
        for i, codes in enumerate(keep(task).codes(training))
    }
    assert len(found) == 1
    return found.pop()


def test_every_validation_has_the_same_faults_and_shifts_none_of_training(
    trainer: MakeTrainer,
) -> None:
    often, never = Task(), Task()
    options = {"max_epochs": 2, "num_sanity_val_steps": 3}
    trainer(FaultAwareTraining(BOTH), val_check_interval=2, **options).fit(
        often, loader(), loader()
    )
    trainer(FaultAwareTraining(BOTH), limit_val_batches=0, **options).fit(never, loader())
    for a, b in zip(keep(often).codes(), keep(never).codes(), strict=True):
        assert torch.equal(a, b)
    evaluated = keep(often).codes(training=False)
    sanity, passes = evaluated[:3], [evaluated[i : i + 4] for i in range(3, 19, 4)]
    assert len(evaluated) == 3 + 4 * 4
    for one in passes:
        for a, b in zip(passes[0], one, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(sanity, passes[0][:3], strict=True):
        assert torch.equal(a, b)


def test_validation_numbers_its_samples_from_zero_whatever_training_evaluates(
    trainer: MakeTrainer,
) -> None:
    class Peeks(Task):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.eval()
            self(batch[0])
            self.train()

    task, callback = Peeks(), FaultAwareTraining(BOTH)
    trainer(callback, num_sanity_val_steps=0).fit(task, loader(), loader())
    faulty = fxfault.transform(network(), BOTH).eval()
    for inputs, codes in zip(batches(), keep(task).codes(training=False)[4:], strict=True):
        faulty(inputs)
        assert torch.equal(faulty[1].seen[-1][1], codes)


def test_settings_changed_during_validation_stay(trainer: MakeTrainer) -> None:
    class Changes(Task):
        def on_validation_epoch_end(self) -> None:
            self.net.faults.clock.step_interval = 0.0

    watch = Watch(lambda _, aware: aware.noisy_step)
    trainer(FaultAwareTraining(BOTH), watch, val_check_interval=2, num_sanity_val_steps=0).fit(
        Changes(), loader(), loader()
    )
    assert watch.notes == [True, True, False, False]


# -- statistics --------------------------------------------------------------------------------


def test_the_realised_fault_rate_is_logged(trainer: MakeTrainer) -> None:
    task, callback = Task(), FaultAwareTraining(BOTH)
    running = trainer(callback)
    running.fit(task, loader(), loader())
    logged = {name: float(value) for name, value in running.callback_metrics.items()}
    assert set(logged) == {"val_loss", "fault_rate", "val_fault_rate"}
    faulty = fxfault.transform(network(), BOTH).train()
    statistics = faulty.faults.new_statistics()
    for inputs in batches():
        faulty(inputs)
    elements = 4 * BATCH * (6 + 16)
    assert statistics.total_activations == elements
    assert logged["fault_rate"] == pytest.approx(100 * statistics.total_injections / elements)
    # Training and validation count once each, the sanity check does not.
    assert callback.statistics.total_activations == 2 * elements
    assert [layer.sample_count for layer in callback.statistics.layer_stats.values()] == [8, 8]


def test_the_fault_rate_is_that_of_noisy_steps_of_one_epoch(trainer: MakeTrainer) -> None:
    class Rates(Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
            self.rates.append(float(trainer.callback_metrics["fault_rate"]))

    rates = Rates()
    config = {**HALF, "epoch_interval": 2, "probability": 100}
    trainer(FaultAwareTraining(config), rates, max_epochs=3).fit(Task(), loader(8 * BATCH))
    assert rates.rates == [100.0, 0.0, 100.0]


def test_statistics_of_each_site_are_logged_where_asked(trainer: MakeTrainer) -> None:
    callback = FaultAwareTraining({**BOTH, "layers": ["0"]}, log_statistics=True)
    running = trainer(callback)
    running.fit(Task(), loader(), loader())
    logged = {name: float(value) for name, value in running.callback_metrics.items()}
    names = {"0/rate", "0/rmse", "0/cosine", "4/rate"}
    for prefix in ("", "val_"):
        start = f"{prefix}faults/"
        assert {name[len(start) :] for name in logged if name.startswith(start)} == names
        assert logged[f"{start}4/rate"] == 0.0
    layer = callback.statistics.layer_stats[0]
    for name, both in (
        ("rate", layer.injection_rate),
        ("rmse", layer.avg_rmse),
        ("cosine", layer.avg_cosine_similarity),
    ):
        train, evaluated = logged[f"faults/0/{name}"], logged[f"val_faults/0/{name}"]
        assert train != evaluated
        assert (train + evaluated) / 2 == pytest.approx(both)


def test_the_fault_rate_can_be_monitored(trainer: MakeTrainer, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="fault_rate", save_on_train_epoch_end=True)
    trainer(FaultAwareTraining(BOTH), saver).fit(Task(), loader())
    assert 15 < float(saver.best_model_score) < 25


# -- precision ---------------------------------------------------------------------------------


def test_faults_are_exact_in_mixed_precision(trainer: MakeTrainer) -> None:
    config = {**BOTH, "probability": 100, "injection_type": "msb_flip", "apply_during": "train"}
    task = Task()
    trainer(FaultAwareTraining(config), precision="bf16-mixed").fit(task, loader())
    for inputs, codes in zip(batches(), keep(task).codes(), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            clean = clean_codes(task.net, inputs)
        # A signed word of four bits: the most significant one is worth -8.
        assert torch.equal(codes.int(), torch.where(clean < 0, clean + 8, clean - 8).int())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in task.parameters())


def test_codes_that_the_precision_cannot_hold_are_a_clear_error(trainer: MakeTrainer) -> None:
    net = network()
    net[4] = QuantReLU(bit_width=12, max_val=3.0, **tasks.CONSTANT)
    with pytest.raises(SiteError, match=r"site 4: 12-bit codes do not fit torch\.bfloat16"):
        trainer(FaultAwareTraining(BOTH), precision="bf16-true").fit(Task(net), loader())


# -- several processes -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_two_processes(tmp_path_factory.mktemp("given"), "given")


def run_two_processes(folder: Path, seed: str) -> Path:
    environment = {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0"}
    train = partial(tasks.train, seed=None if seed == "drawn" else 7)
    with forked.Forked(train, folder, 2, environment=environment) as run:
        try:
            assert run.wait(120) == 0, run.stderr
        finally:
            stop_group(run.pid)
    return folder


def stop_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_two_processes_strike_like_one_on_the_joined_batch(
    two_processes: Path, tmp_path: Path
) -> None:
    tasks.train(tmp_path, processes=1, seed=7)
    one = torch.load(tmp_path / "1_0.pt", weights_only=True)
    two = [torch.load(two_processes / f"2_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(one["codes"]) == 8
    for name in ("codes", "validation"):
        for joined, *parts in zip(one[name], two[0][name], two[1][name], strict=True):
            assert torch.equal(joined, torch.cat(parts))
    for joined, *parts in zip(
        one["gradients"], two[0]["gradients"], two[1]["gradients"], strict=True
    ):
        for expected, a, b in zip(joined, *parts, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, expected, rtol=1e-5, atol=1e-7)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two[0]["weights"][name], value, rtol=1e-4, atol=1e-5)


def test_statistics_are_summed_over_processes(two_processes: Path, tmp_path: Path) -> None:
    tasks.train(tmp_path, processes=1, seed=7)
    one = torch.load(tmp_path / "1_0.pt", weights_only=True)
    for rank in (0, 1):
        two = torch.load(two_processes / f"2_{rank}.pt", weights_only=True)
        assert two["rate"] == one["rate"]
        assert two["val_rate"] == one["val_rate"]
        assert two["statistics"]["total_injections"] == one["statistics"]["total_injections"]
        assert two["statistics"]["total_activations"] == one["statistics"]["total_activations"]
    assert one["rate"] > 10


def test_processes_share_a_seed_that_was_drawn(tmp_path: Path) -> None:
    run_two_processes(tmp_path, "drawn")
    seeds = {torch.load(tmp_path / f"2_{rank}.pt", weights_only=True)["seed"] for rank in (0, 1)}
    assert len(seeds) == 1


def test_network_is_checked_on_example_inputs_and_trains_as_without_them(
    trainer: MakeTrainer,
) -> None:
    losses = []
    for examples in (None, next(iter(loader()))[0]):
        torch.manual_seed(0)
        watch = Watch(
            lambda faults, aware: (faults.checked, faults[0].seen.arrangement is not None)
        )
        task = Task()
        aware = FaultAwareTraining(BOTH, example_inputs=examples)
        trainer(aware, watch).fit(task, loader())
        losses.append(sum(float(p.detach().sum()) for p in task.parameters()))
        text = "" if examples is None else "bit for bit the given model in eval and train mode"
        assert watch.notes[0] == (text, examples is not None)
    assert losses[0] == losses[1]
