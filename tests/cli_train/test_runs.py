"""`fxfault train` as a user runs it: what it prints and writes, where it starts, and dry runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cli_train.tools import DIGITS, FAST, Trained, _environment, record, table
from commands import Run
from fuzz import tiny

from fxfault.campaign import Study
from fxfault.cli import evaluate, inspect
from fxfault.cli.training_report import LONGEST_PLAN, plan_lines
from fxfault.cli.training_run import resume_command
from fxfault.errors import ConfigError
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import load_model
from fxfault.metrics import ACCURACY
from fxfault.results.pictures.plots import training_picture
from fxfault.training.run_folder import RunFolder

FILES = [
    "best.ckpt", "config.yaml", "curve.png", "last.ckpt", "metrics.csv", "run.json", "tensorboard",
]  # fmt: skip


# -- a run --------------------------------------------------------------------------------


def test_a_run_prints_its_epochs_and_writes_its_folder(trained: Trained) -> None:
    run, folder = trained
    assert (run.status, run.err) == (0, "")
    expected = r"""Using device: cpu
Dataset: digits \(1167 training, 130 validation, 500 test samples\)
Model: fuzz\.tiny:network
Starting from: random weights
Seed: 42 \(of the faults: 42\)
Run folder: run

Fault Injection Configuration:
  Injection layers: 2
  Mode: full_model
  Injection type: random
  Probability: [\d.]+%
  Apply during: both \(also in a second validation\)
  Noisy steps: [\d.]+%, .*
  Gradient mode: \w+

(Epoch \d/1: loss [\d.]+, accuracy [\d.]+%, validation [\d.]+% \([\d.]+% under faults\), """
    expected += r"""\d of 4 steps noisy, [\d.]+ s
){2}
Test accuracy: [\d.]+% \(.*\)
Test accuracy under faults: [\d.]+%
Run saved to: run
"""
    assert re.fullmatch(expected, run.out), run.out
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert [row["epoch"] for row in table(folder)] == ["0", "1"]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_holds_what_repeats_the_run(command: Callable[..., Run]) -> None:
    settings = ["--set", "fault_injection.seed=null", "--set", "seed.enabled=false"]
    first = command(*FAST, *settings, "--out", "one")
    assert first.status == 0
    found = record("one")
    assert found["complete"]
    assert found["epochs"] == 2
    assert found["versions"]["torch"] == torch.__version__
    assert found["sessions"][0]["command"].startswith("fxfault train --config digits_fat --set ")
    assert found["repeat"] == "fxfault train one/config.yaml"
    resolved = yaml.safe_load(Path("one/config.yaml").read_text(encoding="utf-8"))
    assert resolved["seed"] == {"enabled": True, "value": found["seed"], "deterministic": False}
    assert resolved["fault_injection"]["seed"] == found["fault_seed"]
    again = command("--config", "one/config.yaml", "--out", "two")
    assert again.status == 0
    assert table("one") == table("two")
    assert found["test_accuracy"] == record("two")["test_accuracy"]


def test_a_checkpoint_can_be_evaluated(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.copied_to("run")
    argv = ["--config", "run/config.yaml", "--checkpoint", "run/best.ckpt", "--probability", "0"]
    assert evaluate.main(argv) == 0
    accuracy = re.search(r"Baseline accuracy: ([\d.]+)%", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy.group(1)) == pytest.approx(record("run")["test_accuracy"], abs=0.005)


def test_several_values_can_be_set_and_the_last_counts(command: Callable[..., Run]) -> None:
    run = command(
        *FAST, "--set", "training.epochs=1", "--out", "whole",
        "--set", "scheduler={name: multistep, milestones: [1]}",
    )  # fmt: skip
    assert run.status == 0, run.err
    whole = yaml.safe_load(Path("whole/config.yaml").read_text(encoding="utf-8"))
    assert whole["scheduler"]["milestones"] == [1]
    run = command(
        *FAST, "--set", "training.epochs=1", "--out", "run",
        "--set", "scheduler.name=multistep", "--set", "scheduler.milestones=[1, 5]",
        "--set", "optimizer.learning_rate=1e-3",
    )  # fmt: skip
    assert run.status == 0
    resolved = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    assert resolved["training"]["epochs"] == 1
    assert resolved["scheduler"]["milestones"] == [1, 5]
    assert resolved["optimizer"]["learning_rate"] == 0.001


def test_a_bar_shows_loss_accuracy_and_noise(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    slow = [*FAST, "--set", "training.batch_size=32", "--set", "fault_injection.step_interval=0.5"]
    shown = command(*slow).err
    states = re.findall(r"Epoch \d/1: .*?loss [\d.]+, accuracy [\d.]+%, (noisy|clean)", shown)
    assert states
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert command(*FAST, "--set", "training.epochs=1", "--no-progress").err == ""


# -- dry run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["fat_training", "fault_injection_example", "quant_cnv_w2a2_cifar10"]
)
def test_dry_run_of_the_specifications_examples(command: Callable[..., Run], name: str) -> None:
    size = "dataset.kwargs={size: 8, image_size: 32}"
    run = command("--config", name, "--dry-run", "--set", "dataset.name=fake", "--set", size)
    assert (run.status, run.err) == (0, "")
    assert "One batch of training, validation and test: all run." in run.out
    assert re.search(r"\n0-299 +0.01 to ", run.out)
    assert list(Path().iterdir()) == []


def test_dry_run_prints_the_plan_of_each_epoch(command: Callable[..., Run]) -> None:
    run = command(
        *FAST, "--dry-run", "--set", "training.epochs=4",
        "--set", "fault_injection.step_interval=0.25",
        "--set", "fault_injection.curriculum=[{epoch: 1, probability: 2}, "
        "{epoch: 3, probability: 8, epoch_interval: 2}]",
        "--set", "fault_injection.interpolate=linear",
        "--set", "scheduler.name=none", "--set", "scheduler.warmup_epochs=0",
        "--set", "fault_injection.probability=4", "--set", "optimizer.learning_rate=0.5",
    )  # fmt: skip
    assert run.status == 0, run.err
    lines = [line.split() for line in run.out.splitlines()[-4:]]
    assert lines == [
        ["0", "0.5", "4%", "0.25", "random", "yes"],
        ["1", "0.5", "2%", "0.25", "random", "yes"],
        ["2", "0.5", "5%", "0.25", "random", "yes"],
        ["3", "0.5", "8%", "0.25", "random", "no"],
    ]


def test_a_long_plan_is_shortened() -> None:
    steady = load_experiment("fat_training", {"fault_injection.epoch_interval": 5})
    (line,) = plan_lines(steady)[2:]
    assert line.split()[0] == "0-299"
    assert line.endswith("60 of 300 (every 5th)")
    points = [{"epoch": 0, "probability": 0}, {"epoch": 299, "probability": 30}]
    changes = {"fault_injection.curriculum": points, "fault_injection.interpolate": "linear"}
    lines = plan_lines(load_experiment("fat_training", changes))[2:]
    assert len(lines) == LONGEST_PLAN - 1
    assert "(282 more)" in lines[-3]
    assert lines[-1].split()[:4] == ["299", "2.74e-07", "30%", "0.5"]
    assert len(plan_lines(load_experiment("digits"))[2:]) == 1


# -- where training starts, and what it ends with -----------------------------------------


def weights(path: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("network."): value for key, value in saved.items()}


def digits_weights(name: str = "bundled:digits") -> dict[str, Any]:
    network, _ = load_model(load_experiment("digits"), name)
    return dict(network.state_dict())


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def own(**checkpoint: Any) -> str:
    """A file of the user's own: a copy of `digits` with another section `checkpoint`."""
    content = load_experiment("digits").to_dict()
    content["training"].update(epochs=1, batch_size=256)
    # No step moves a weight by a bit.
    content["optimizer"].update(name="sgd", learning_rate=1e-30, weight_decay=0.0, momentum=0.0)
    Path("own.yaml").write_text(yaml.safe_dump({**content, "checkpoint": checkpoint}))
    return "own.yaml"


def test_a_file_that_names_weights_to_evaluate_is_refused_for_training(
    fails: Callable[..., str], command: Callable[..., Run]
) -> None:
    for path in ("bundled:digits", "nowhere.pt"):
        line = fails("--config", own(path=path))
        assert f"checkpoint.path: training does not start from {path}" in line
        assert f"--init {path}" in line
    assert command("--config", own(path="x.pt"), "--set", "checkpoint.path=null").status == 0
    shutil.copy(own(path="x.pt"), "digits")  # A file goes before a bundled name.
    assert "checkpoint.path" in fails("--config", "digits")


def test_a_bundled_file_is_for_both_commands(trained: Trained) -> None:
    """Its weights are what training makes anew; the run's configuration names none."""
    run, folder = trained
    assert (run.status, run.err) == (0, "")
    assert "Starting from: random weights\n" in run.out
    assert record(folder)["start"] is None
    assert load_experiment(str(folder / "config.yaml")).checkpoint.path is None


@pytest.mark.parametrize("by", ["option", "setting", "file"])
def test_training_starts_from_the_weights_that_are_named(
    command: Callable[..., Run], by: str
) -> None:
    config = own(init_from="bundled:digits" if by == "file" else None)
    extra = {
        "option": ["--init", "bundled:digits"],
        "setting": ["--set", "checkpoint.init_from=bundled:digits"],
        "file": [],
    }[by]
    run = command("--config", config, *extra, "--out", "run")
    assert (run.status, run.err) == (0, "")
    assert re.search(r"Starting from: bundled:digits \(sha256 [0-9a-f]{12}…\)\n", run.out)
    start = record("run")["start"]
    assert (start["path"], len(start["sha256"])) == ("bundled:digits", 64)
    expected, found = digits_weights(), weights("run/last.ckpt")
    moved = {key for key in expected if not torch.equal(expected[key], found[key])}
    # Those move with each batch, whatever the learning rate.
    assert moved
    assert all("running_" in key or key.endswith("_tracked") for key in moved)
    assert found.keys() == expected.keys()  # Scales were not calibrated anew.
    assert load_experiment("run/config.yaml").checkpoint.init_from == "bundled:digits"
    if by == "option":  # The file that repeats the run is the same, however it was asked for.
        assert command("--config", "run/config.yaml", "--out", "again").status == 0
        assert same(weights("again/last.ckpt"), found)


def test_what_a_run_was_trained_to_can_be_trained_on(command: Callable[..., Run]) -> None:
    assert command(*DIGITS, "--set", "training.epochs=1", "--out", "first").status == 0
    before = weights("first/best.ckpt")
    run = command("--config", own(), "--init", "first/best.ckpt", "--out", "second")
    assert run.status == 0
    after = weights("second/last.ckpt")
    assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key
               and not key.endswith("_tracked"))  # fmt: skip


def test_a_resumed_run_goes_on_from_its_own_checkpoint(
    command: Callable[..., Run], fails: Callable[..., str]
) -> None:
    Path("start.pt").write_bytes(tiny.weights())
    command(*FAST, "--init", "start.pt", "--set", "training.epochs=1", "--out", "run")
    start = record("run")["start"]
    Path("start.pt").unlink()  # It is not read again.
    run = command("--resume", "--out", "run", "--set", "training.epochs=2")
    assert (run.status, run.err) == (0, "")
    assert "Starting from: run/last.ckpt, which started from start.pt\n" in run.out
    assert record("run")["start"] == start
    line = fails("--resume", "--out", "run", "--init", "bundled:digits")
    assert "checkpoint.init_from was 'start.pt' and is 'bundled:digits'" in line
    # `checkpoint.resume` goes on where there is something to go on with.
    asked = [*FAST, "--set", "checkpoint.resume=true", "--init", "start.pt", "--out", "run"]
    assert "(resumed)" in command(*asked).out


def test_evaluation_says_that_it_does_not_start_there(
    command: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """No command reads `init_from` and goes on in silence."""
    config = own(init_from="bundled:digits")
    assert evaluate.main(["--config", config]) == 2
    assert "(checkpoint.init_from, bundled:digits, is what training starts from)" in (
        capsys.readouterr().err
    )
    argv = ["--config", config, "--checkpoint", "bundled:digits_fat", "--probability", "0"]
    assert evaluate.main(argv) == 0
    note = "Note: `checkpoint.init_from` is ignored: it is for training; bundled:digits_fat is"
    assert note in capsys.readouterr().out
    assert inspect.main(["--config", config]) == 0
    assert "Note: `checkpoint.init_from` is ignored" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"checkpoint\.path: missing"):
        Study.from_dict({**yaml.safe_load(Path(config).read_text()), "trials": 2})


@pytest.mark.parametrize("how", ["clean", "faulty"])
def test_calibrated_weights_are_tested_and_saved_until_the_run_goes_on_without(
    command: Callable[..., Run], how: str
) -> None:
    run = command(*FAST, "--set", f"training.calibrate={how}", "--out", "run")
    assert (run.status, run.err) == (0, "")
    expected = f"1 batch norm estimated again ({how}); saved to run/calibrated.ckpt\nTest accuracy"
    assert expected in run.out
    assert record("run")["calibrated"] == 1
    argv = ["--config", "run/config.yaml", "--checkpoint", "run/calibrated.ckpt"]
    argv += ["--probability", "0"]
    assert evaluate.main(argv) == 0
    found = json.loads(Path("fault_eval_random.json").read_text(encoding="utf-8"))
    assert found["baseline"] == record("run")["test_accuracy"]
    assert Path("run/calibrated.ckpt").is_file()
    if how == "clean":
        run = command("--resume", "--out", "run", "--set", "training.calibrate=none")
        assert run.status == 0
        assert not Path("run/calibrated.ckpt").exists()


@pytest.mark.parametrize(
    ("faulty", "settings", "said"),
    [(60.0, [], True), (50.5, [], False), (60.0, ["--set", "training.calibrate=clean"], False)],
)
def test_a_network_that_is_better_under_faults_is_pointed_out(
    trained: Trained,
    command: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    faulty: float,
    settings: list[str],
    said: bool,
) -> None:
    measured = iter(SimpleNamespace(value=value, facts=ACCURACY) for value in (50.0, faulty))
    monkeypatch.setattr("fxfault.training.run.predict", lambda *_, **__: next(measured))
    trained.copied_to("run")
    run = command("--resume", *settings, "--out", "run")  # It is through, and only tested.
    mend = "fxfault train --resume --out run --set training.calibrate=clean\n"
    assert (f"for use without faults, estimate them again: {mend}" in run.out) is said


def test_a_dry_run_tries_weights_and_calibration(
    command: Callable[..., Run], fails: Callable[..., str]
) -> None:
    settings = ["--dry-run", "--set", "training.calibrate=faulty"]
    run = command(*DIGITS, *settings, "--init", "bundled:digits")
    assert "Starting from: bundled:digits (sha256" in run.out
    assert os.listdir() == []
    assert "no such file" in fails(*FAST, *settings, "--init", "no.pt")


# -- the rest -----------------------------------------------------------------------------


def test_two_processes_train_together() -> None:
    """Each has half of every batch, and all stop together."""
    argv = [sys.executable, "-m", "fxfault.cli.train", *DIGITS, "--devices", "2"]
    argv += ["--set", "training.batch_size=128", "--out", "run"]
    argv += ["--init", "bundled:digits", "--set", "training.calibrate=faulty"]
    run = subprocess.run(argv, env=_environment(), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("Using device: cpu (2 processes)") == 1
    assert [row["steps"] for row in table("run")] == ["4.0", "4.0"]
    assert record("run")["devices"] == 2
    assert record("run")["calibrated"] == 4
    assert record("run")["repeat"] == "fxfault train run/config.yaml --devices 2"


def test_a_run_of_several_processes_goes_on_as_one(
    fails: Callable[..., str], trained: Trained
) -> None:
    assert resume_command(RunFolder(Path("run")), 2).endswith("--resume --out run --devices 2")
    trained.copied_to("run")
    error = fails("--resume", "--out", "run", "--devices", "2")
    assert "devices: got 2, but run/last.ckpt was trained by 1 process" in error


def test_validation_with_fewer_samples_than_processes(fails: Callable[..., str]) -> None:
    few = ["--set", "training.validation_fraction=0.0005", "--out", "run"]
    error = fails(*FAST, *few, "--devices", "2")
    assert "1 validation samples are too few for 2 processes" in error
    assert not Path("run").exists()


def test_help_and_bad_flags_are_quick() -> None:
    code = (
        "import sys\nfrom fxfault.cli.train import main\n"
        "try:\n    main(['--help'])\nfinally:\n"
        "    loaded = [m for m in ('torch', 'lightning', 'brevitas') if m in sys.modules]\n"
        "    print('loaded:', loaded)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("loaded: []\n")
    assert "--dry-run" in run.stdout


def test_a_picture_of_one_epoch_and_of_many() -> None:
    row = {"train_loss": 1.0, "train_accuracy": 50.0, "steps": 4.0, "noisy_steps": 1.0}
    for number in (1, 30):
        rows = [{**row, "epoch": float(epoch)} for epoch in range(number)]
        assert training_picture(rows, None, "svg").startswith(b"<?xml")
    text = training_picture(
        [{**row, "epoch": 0.0, "val_accuracy": 40.0, "val_loss": 2.0}], 42.0, "svg"
    ).decode()
    assert "validation" in text
    assert "test, at the end (42.00%)" in text
    assert "Fault probability" not in text  # It is not known, and so not drawn as 0.


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"probability": 10.0, "fault_rate": 9.9}, "Fault probability (%)"),
        ({"fault_rate": 9.9}, "Hit (%)"),
    ],
)
def test_a_picture_of_a_training_says_how_often_faults_struck(
    columns: dict[str, float], label: str
) -> None:
    row = {"train_loss": 1.0, "train_accuracy": 50.0, "steps": 4.0, "noisy_steps": 1.0, "epoch": 0}
    text = training_picture([{**row, **columns}], None, "svg").decode()
    assert f">{label}</text>" in text
    assert ">0.2</text>" not in text  # An epoch is a whole number.
