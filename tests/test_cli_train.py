"""`fxfault-train` as a user runs it: what it prints and writes, and how it ends."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
import torch
import yaml
from fuzz import tiny

from fxfault.campaign import Study
from fxfault.cli import evaluate, inspect, train
from fxfault.cli.pictures.plots import training_picture
from fxfault.cli.reports.training_progress import Reporter
from fxfault.cli.reports.training_report import LONGEST_PLAN, plan_lines
from fxfault.cli.training_run import resume_command
from fxfault.cli.training_session import Session
from fxfault.errors import ConfigError, DataError
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import load_model
from fxfault.training import callbacks
from fxfault.training import run as training
from fxfault.training.callbacks import AtomicCheckpointIO
from fxfault.training.run_folder import RunFolder

read_checkpoint = partial(callbacks.read_checkpoint, most=2**25)

# Digits with faults, two epochs of four steps; whatever else is tuned in the bundled file.
DIGITS = [
    "--config", "digits_fat", "--set", "training.epochs=2", "--set", "training.batch_size=256",
    "--set", "seed.value=42", "--set", "fault_injection.seed=42",
    "--set", "optimizer.learning_rate=0.003", "--set", "checkpoint.save_best=true",
    "--set", "scheduler.T_max=4",  # Else the schedule depends on the number of epochs.
]  # fmt: skip
# The same with a network of few layers: a run of it takes a third of the time.
FAST = [*DIGITS, "--set", "model.name=fuzz.tiny:network"]
FILES = [
    "best.ckpt", "config.yaml", "curve.png", "last.ckpt", "metrics.csv", "run.json", "tensorboard",
]  # fmt: skip


class Run(NamedTuple):
    status: int
    out: str
    err: str


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder, with no trace of a run that another test made."""
    monkeypatch.chdir(folder)
    for name in ("FXFAULT_RUN_FOLDER", "FXFAULT_RUN_RESUMES", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # So that what the command sets is taken away again.
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folder(tmp_path, monkeypatch)


class Trained(NamedTuple):
    """A whole run that several tests look at; they change only copies of its folder."""

    run: Run
    folder: Path

    def copied_to(self, name: str = "run") -> Path:
        """Copy the folder of the run into the test's own."""
        return Path(shutil.copytree(self.folder, name))


def train_once(factory: pytest.TempPathFactory, *more: str) -> Trained:
    base = factory.mktemp("trained")
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        in_folder(base, patched)
        status = train.main([*FAST, *more, "--out", "run"])
    return Trained(Run(status, out.getvalue(), err.getvalue()), base / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of `FAST` in the folder `run`."""
    return train_once(tmp_path_factory)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that is another training than `trained`."""
    return train_once(tmp_path_factory, "--set", "training.epochs=1", "--set", "seed.value=1")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Give a function that runs the command."""

    def run(*argv: str) -> Run:
        try:
            status = train.main(argv)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        return Run(status, *capsys.readouterr())

    return run


def table(folder: str | Path) -> list[dict[str, str]]:
    text = (Path(folder) / "metrics.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def record(folder: str | Path) -> Any:
    return json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))


# -- a run ----------------------------------------------------------------------------------


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
    assert found["sessions"][0]["command"].startswith("fxfault-train --config digits_fat --set ")
    assert found["repeat"] == "fxfault-train --config one/config.yaml"
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
        *FAST, "--set", "training.epochs=1", "--out", "run",
        "--set", "scheduler={name: multistep, milestones: [1]}",
    )  # fmt: skip
    assert run.status == 2  # A whole section is not section.key.
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


# -- dry run --------------------------------------------------------------------------------


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


# -- resuming -------------------------------------------------------------------------------


def test_a_killed_run_goes_on_as_if_nothing_had_been(command: Callable[..., Run]) -> None:
    """SIGKILL at random moments, again and again, until the training is through."""
    slow = [*FAST, "--set", "training.epochs=8", "--set", "training.batch_size=64"]
    assert command(*slow, "--out", "straight").status == 0
    chooser = random.Random(7)
    kills = 0
    argv = slow
    for _ in range(2):
        kills += _killed(argv, chooser.uniform(0.0, 0.4))
        checkpoint = read_checkpoint("run/last.ckpt")  # Whole, whenever it was.
        assert set(checkpoint["state_dict"])
        argv = ["--resume"]
    assert kills
    run = command("--resume", "--out", "run")
    assert run.status == 0, run.err
    assert table("run") == table("straight")
    left, right = (read_checkpoint(f"{name}/last.ckpt") for name in ("run", "straight"))
    for key in ("state_dict", "optimizer_states"):
        assert _same(left[key], right[key])
    assert not [path for path in Path("run").iterdir() if path.name.startswith(".")]
    assert len(record("run")["sessions"]) >= 2


def _killed(argv: list[str], seconds: float) -> bool:
    """Start the command, kill it so long after its first checkpoint; whether it still ran."""
    with forked.command("fxfault-train", [*argv, "--out", "run"]) as process:
        _wait_for(lambda: Path("run/last.ckpt").exists() or process.returncode is not None)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def test_ctrl_c_saves_and_says_how_to_go_on() -> None:
    argv = [*FAST, "--out", "run", "--set", "training.epochs=60"]
    with forked.command("fxfault-train", argv) as process:
        for line in process.stdout:
            if line.startswith("Epoch  0"):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        lines = process.stderr.splitlines()
    assert lines[0] == "stopping after this step (Ctrl-C again: at once)"
    assert re.fullmatch(
        r"interrupted: saved run/last.ckpt in epoch \d+ of 60 \(from 0\); continue with: "
        r"fxfault-train --resume --out run",
        lines[1],
    )
    assert len(lines) == 2
    assert not record("run")["complete"]
    assert read_checkpoint("run/last.ckpt")["global_step"] >= 4


def test_what_a_cluster_sends_ends_a_run_too(
    trained: Trained, command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(self: Any, trainer: Any, module: Any, *arguments: Any) -> None:
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(Reporter, "on_train_batch_end", terminate)
        run = command(*FAST, "--out", "run")
    assert run.status == 130
    assert "interrupted: saved run/last.ckpt in epoch 1 of 2" in run.err
    assert signal.getsignal(signal.SIGTERM) == handler
    assert read_checkpoint("run/last.ckpt")["global_step"] == 6
    assert command("--resume", "--out", "run").status == 0
    assert table("run") == table(trained.folder)


def test_a_second_ctrl_c_stops_at_once(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any, trainer: Any, module: Any, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Reporter, "on_train_batch_end", interrupt)
    run = command(*FAST, "--out", "run")
    assert run.status == 130
    assert run.err.splitlines()[-1] == (
        "interrupted at once; continue with: fxfault-train --resume --out run"
    )
    assert read_checkpoint("run/last.ckpt")["global_step"] == 0
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_ctrl_c_promises_nothing_that_was_not_saved(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "on_train_batch_end", interrupt)
    run = command(*FAST, "--out", "run", "--set", "checkpoint.enabled=false")
    assert (run.status, run.err) == (
        130, "interrupted at once; no checkpoint was saved, as checkpoint.enabled is false\n",
    )  # fmt: skip


def test_runs_are_numbered_and_resume_finds_the_newest_which_can_be_longer(
    trained: Trained, command: Callable[..., Run]
) -> None:
    Path("experiments/digits_fat-007").mkdir(parents=True)
    for number in ("008", "009"):
        run = command(*FAST, "--set", "training.epochs=1")
        assert f"Run folder: experiments/digits_fat-{number}\n" in run.out
    run = command(*FAST, "--resume")
    assert run.status == 0, run.err
    assert "Run folder: experiments/digits_fat-009 (resumed)" in run.out
    assert run.out.count("Epoch 1/1: ") == 1
    assert "Epoch 0" not in run.out
    assert table("experiments/digits_fat-009") == table(trained.folder)
    assert len(table("experiments/digits_fat-008")) == 1


def test_the_configuration_can_ask_to_resume(command: Callable[..., Run]) -> None:
    argv = [*FAST, "--set", "training.epochs=1", "--set", "checkpoint.resume=true"]
    first, second = command(*argv), command(*argv)
    assert (first.status, second.status) == (0, 0)
    assert "Run folder: experiments/digits_fat-001\n" in first.out
    assert "Run saved to: experiments/digits_fat-001\n" in first.out
    assert "digits_fat-001 (resumed)\n" in second.out


def test_asking_to_resume_a_run_that_was_killed_before_its_checkpoint_starts_anew(
    trained: Trained,
    command: Callable[..., Run],
) -> None:
    argv = [*FAST, "--set", "checkpoint.resume=true", "--out", "run"]
    for path in trained.copied_to("run").iterdir():
        if path.name not in ("config.yaml", "run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (Path("run") / ".last.ckpt.0123abcd").touch()  # It was killed while it wrote that.
    run = command(*argv)
    assert (run.status, run.err) == (0, "")
    assert (Path("run") / "last.ckpt").is_file()


# -- where training starts, and what it ends with -------------------------------------------


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
    measured = iter([50.0, faulty])
    monkeypatch.setattr("fxfault.training.run.accuracy", lambda *arguments: next(measured))
    trained.copied_to("run")
    run = command("--resume", *settings, "--out", "run")  # It is through, and only tested.
    mend = "fxfault-train --resume --out run --set training.calibrate=clean\n"
    assert (f"for use without faults, estimate them again: {mend}" in run.out) is said


def test_a_dry_run_tries_weights_and_calibration(
    command: Callable[..., Run], fails: Callable[..., str]
) -> None:
    settings = ["--dry-run", "--set", "training.calibrate=faulty"]
    run = command(*DIGITS, *settings, "--init", "bundled:digits")
    assert "Starting from: bundled:digits (sha256" in run.out
    assert os.listdir() == []
    assert "no such file" in fails(*FAST, *settings, "--init", "no.pt")


# -- what is wrong --------------------------------------------------------------------------


def listing() -> dict[str, bytes]:
    files = (Path(folder, name) for folder, _, names in os.walk(".") for name in names)
    return {str(file): file.read_bytes() for file in files}


@pytest.fixture
def fails(command: Callable[..., Run]) -> Callable[..., str]:
    """Give a function that runs the command, checks how it fails, and returns its one line."""

    def run(*argv: str) -> str:
        before = listing()
        result = command(*argv)
        assert result.status == 2
        assert re.fullmatch(r"error: .+\n", result.err)
        assert listing() == before
        return result.err

    return run


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["--config is missing", "--resume --out FOLDER"]),
        (["--resume"], ["--config is missing"]),
        (["--config", "digitz"], ["digitz", "no such file", "'digits'"]),
        (["--config", "digits", "--sett", "a.b=1"], ["unknown flag --sett", "--set"]),
        (["--config", "digits", "--set", "epochs=1"], ["--set", "'epochs=1'", "training.epochs=3"]),
        (["--config", "digits", "--set", "training.epochs"], ["section.key=value"]),
        (["--config", "digits", "--set", "training.epochs=[1"], ["training.epochs", "YAML"]),
        (["--config", "digits", "--set", "training.epochs=1\nx: 2"], ["more than one value"]),
        (["--config", "digits", "--set", "training.epochs=0"], ["training.epochs", "at least 1"]),
        (["--config", "digits", "--set", "training.epoch=1"], ["training.epoch", "'epochs'"]),
        (["--config", "digits", "--set", "trainig.epochs=1"], ["trainig", "'training'"]),
        (["--config", "digits", "--set", "dataset.name.x=1"], ["dataset.name is 'digits'"]),
        (["--config", "digits", "--set", "dataset.name=digitz"], ["digitz", "'digits'"]),
        (["--config", "digits", "--set", "dataset.name=fake"], ["quant_digits", "8 x 8"]),
        (["--config", "digits", "--set", "model.name=nothing:here"], ["nothing"]),
        (["--config", "digits", "--set", "training.validation_fraction=0"], ["save_best"]),
        (["--config", "digits", "--set", "training.validation_fraction=0.9999"], ["to train on"]),
        (["--config", "digits", "--set", "fault_injection.layers=x*"], ["matches no site"]),
        (["--config", "layer_analysis"], ["no section `dataset` and no section `model`"]),
        (["--config", "digits", "--device", "gpu"], ["--device", "cuda:N"]),
        (["--config", "digits", "--devices", "0"], ["--devices", "at least 1"]),
        (["--config", "digits", "--device", "cuda:1", "--devices", "2"], ["--device cuda"]),
        (["--config", "digits", "--dry-run", "--out", "x"], ["--dry-run", "--out"]),
        (["--config", "digits", "--dry-run", "--resume"], ["--dry-run", "--resume"]),
        (["--config", "digits", "--resume"], ["--resume", "no run digits-NNN", "experiments"]),
        (["--resume", "--out", "nowhere"], ["nowhere", "holds no run"]),
        (["--config", "digits", "--out", ""], ["--out", "''"]),
        (["--config", "digits", "--init", ""], ["--init", "bundled:NAME"]),
        (["--config", "digits", "--init", "no.pt"], ["checkpoint.init_from", "'no.pt'", "no such"]),
        (["--config", "digits", "--init", "bundled:digit"], ["init_from", "'bundled:digits'"]),
        (["--config", "digits", "--set", "checkpoint.path=a b"],
         ["checkpoint.path", "init_from", "--init 'a b'", "checkpoint.path=null"]),
        (["--config", "digits", "--set", "training.calibrate=mean"], ["'none', 'clean'"]),
        (["--config", "digits", "--set", "training.calibrate=faulty", "--set",
          "fault_injection.enabled=false"], ["training.calibrate", "needs faults"]),
    ],
)  # fmt: skip
def test_bad_input(fails: Callable[..., str], argv: list[str], parts: list[str]) -> None:
    line = fails(*argv)
    assert all(part in line for part in parts), line


def test_folders_that_cannot_be_used(fails: Callable[..., str], trained: Trained) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine", encoding="utf-8")
    assert "full is not empty and holds no run" in fails(*FAST, "--out", "full")
    Path("file").write_text("mine", encoding="utf-8")
    assert "file" in fails(*FAST, "--out", "file")
    assert "checkpoint.dir" in fails(*FAST, "--set", "checkpoint.dir=file")
    trained.copied_to("run")
    assert "run holds a run: continue it with --resume" in fails(*FAST, "--out", "run")


def test_resuming_what_cannot_be_resumed(fails: Callable[..., str], trained: Trained) -> None:
    trained.copied_to("run")
    resume = [*FAST, "--resume", "--out", "run"]
    line = fails(*resume, "--set", "optimizer.learning_rate=0.5", "--set", "fault_injection.seed=1")
    assert "optimizer.learning_rate was 0.003 and is 0.5" in line
    assert "fault_injection.seed was 42 and is 1" in line
    assert "1, but run/last.ckpt has 2 epochs" in fails(*resume, "--set", "training.epochs=1")
    Path("run/last.ckpt").write_bytes(Path("run/last.ckpt").read_bytes()[:1000])
    assert "checkpoint 'run/last.ckpt' cannot be read" in fails(*resume)
    Path("run/last.ckpt").unlink()
    assert "run has no last.ckpt to continue from" in fails(*resume)


def unpacking_to(path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(size))


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "large": (lambda path: os.truncate(path, 2**26), "has 64.0 MiB, allowed: up to"),
    "bomb": (lambda path: unpacking_to(path, 2**27), "unpack to 128.0 MiB, allowed: up to"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_a_last_checkpoint_that_is_too_large_is_not_read(
    fails: Callable[..., str], trained: Trained, kind: str
) -> None:
    trained.copied_to("run")
    damage, problem = NO_CHECKPOINTS[kind]
    damage(Path("run/last.ckpt"))
    line = fails("--resume", "--out", "run")
    assert "checkpoint 'run/last.ckpt'" in line
    assert problem in line
    assert "name one that fxfault-train wrote" in line


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_no_checkpoint_of_a_training(tmp_path: Path, kind: str) -> None:
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=f"is a {kind}"):
        read_checkpoint(path)


def test_a_record_that_is_a_pipe_is_not_waited_for(
    trained: Trained, command: Callable[..., Run]
) -> None:
    trained.copied_to("run")
    before = Path("run/last.ckpt").read_bytes()
    os.unlink("run/run.json")
    os.mkfifo("run/run.json")
    run = command("--resume", "--out", "run")
    assert run.status == 2
    assert re.fullmatch(r"error: run/run\.json is a pipe, expected a .*; remove it.*\n", run.err)
    assert Path("run/last.ckpt").read_bytes() == before


@pytest.mark.parametrize("moment", [(Session, "_say_start"), (Reporter, "on_train_start")])
def test_initial_weights_that_are_replaced_in_mid_run_end_it(
    trained: Trained,
    command: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    moment: tuple[type, str],
) -> None:
    """Before the training loads them once more, or after."""
    trained.copied_to("first")
    shutil.copy("first/last.ckpt", "start.ckpt")

    def replace(*arguments: Any) -> None:
        os.replace("first/best.ckpt", "start.ckpt")

    monkeypatch.setattr(*moment, replace, raising=False)
    run = command(*FAST, "--set", "training.epochs=1", "--init", "start.ckpt", "--out", "run")
    assert run.status == 2
    assert re.fullmatch(
        r"error: checkpoint 'start\.ckpt' was replaced while the training ran \(sha256 .*\n",
        run.err,
    )
    assert record("run")["complete"] is False


@pytest.mark.parametrize("resumed", [False, True])
def test_best_weights_of_another_training_are_not_tested(
    trained: Trained,
    other: Trained,
    command: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,
) -> None:
    foreign = other.folder / "best.ckpt"
    if resumed:
        trained.copied_to("run")
        os.replace("run/best.ckpt", "best.ckpt")
        shutil.copy(foreign, "run/best.ckpt")
        run = command("--resume", "--out", "run")
    else:
        load = training._load_best

        def replaced(network: Any, saved: Any) -> None:
            shutil.copy(foreign, saved.folder.file("best.ckpt"))
            load(network, saved)

        monkeypatch.setattr(training, "_load_best", replaced)
        run = command(*FAST, "--set", "training.epochs=1", "--out", "new")
    assert run.status == 2
    assert re.fullmatch(r"error: checkpoint '\w+/best\.ckpt' was replaced while .*\n", run.err)
    assert "Test accuracy" not in run.out
    if resumed:  # What the line says helps.
        os.replace("best.ckpt", "run/best.ckpt")
        assert command("--resume", "--out", "run").status == 0


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    write = AtomicCheckpointIO.save_checkpoint
    saved: list[int] = []

    def save(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        (write if len(saved) < 3 else full)(self, checkpoint, path)
        saved.append(1)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    run = command(*FAST, "--out", "run")
    assert run.status == 2
    assert re.fullmatch(
        r"error: run cannot be written: No space left on device; run/last.ckpt, written before, "
        r"is whole; .*--resume\n",
        run.err,
    )
    assert read_checkpoint("run/last.ckpt")["epoch"] == 0


def test_a_loss_that_is_not_finite_is_one_line(command: Callable[..., Run]) -> None:
    run = command(
        *FAST, "--out", "run", "--set", "optimizer.learning_rate=1e30",
        "--set", "scheduler.name=none", "--set", "scheduler.warmup_epochs=0",
        "--set", "optimizer.name=sgd",
    )  # fmt: skip
    assert run.status == 2
    assert re.fullmatch(
        r"error: the loss is (nan|inf) in epoch \d \(of 0 to 1\), step \d \(of 0 to 3\), "
        r"a (noisy|clean) step.*\n",
        run.err,
    )


def test_missing_lightning_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lightning").mkdir()
    (tmp_path / "lightning" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'lightning'\", name='lightning')",
        encoding="utf-8",
    )
    code = "import sys; from fxfault.cli.train import main; sys.exit(main(['--config', 'digits']))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**_environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: PyTorch Lightning cannot be imported")
    assert 'pip install "fxfault[train]"' in run.stderr
    assert run.stderr.count("\n") == 1


def test_another_launcher_is_refused(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "--devices N" in fails("--config", "digits")


# -- the rest -------------------------------------------------------------------------------


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
    assert record("run")["repeat"] == "fxfault-train --config run/config.yaml --devices 2"


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
