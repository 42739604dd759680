"""`fxfault train` as a user runs it: what is wrong ends with one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_train.tools import FAST, Trained, _environment, read_checkpoint, record, train_once
from commands import Run

from fxfault.cli.training_progress import Reporter
from fxfault.cli.training_session import Session
from fxfault.errors import DataError
from fxfault.training.callbacks import AtomicCheckpointIO


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that is another training than `trained`."""
    return train_once(tmp_path_factory, "--set", "training.epochs=1", "--set", "seed.value=1")


# -- what is wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["no configuration: give FILE", "--resume --out FOLDER"]),
        (["--resume"], ["no configuration: give FILE"]),
        (["--config", "digitz"], ["digitz", "no such file", "'digits'"]),
        (["--config", "digits", "--sett", "a.b=1"], ["unknown flag --sett", "--set"]),
        (["--config", "digits", "--set", "epochs=1"], ["--set epochs", "belongs in training"]),
        (["--config", "digits", "--set", "training.epochs"], ["KEY=VALUE"]),
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
    assert "name one that fxfault train wrote" in line


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

        def replace(*arguments: Any) -> None:
            shutil.copy(foreign, "new/best.ckpt")

        # Of all that it is told, this is the last: the best weights are saved by then.
        monkeypatch.setattr(Reporter, "on_fit_end", replace)
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
