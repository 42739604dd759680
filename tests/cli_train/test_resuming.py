"""`fxfault train` as a user runs it: how it stops, and goes on."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from cli_train.tools import FAST, Trained, read_checkpoint, record, table
from commands import Run

from fxfault.cli.training_progress import Reporter

# -- resuming -----------------------------------------------------------------------------


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
        r"fxfault train --resume --out run",
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
        "interrupted at once; continue with: fxfault train --resume --out run"
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
