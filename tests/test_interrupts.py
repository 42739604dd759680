"""Ctrl-C: one line and status 130, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = {
    "campaign": ["run", "digits_study", "--store", "s.sqlite", "--no-progress"],
    "evaluate": ["--config", "digits", "--num-runs", "50", "--no-progress"],
    "inspect": ["--config", "digits"],
    "train": ["--config", "digits", "--out", "r", "--no-progress"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("module", ["argparse", "yaml", "torch", "torch.fx", "brevitas"])
def test_an_interrupt_while_something_is_imported_is_one_line(
    tmp_path: Path, command: str, module: str
) -> None:
    """At the first moment of an import, in which a library may swallow what is raised."""
    code = (
        "import builtins, os, runpy, signal, sys\n"
        f"sys.argv = ['fxfault-{command}', *{COMMANDS[command]!r}]\n"
        "sys.orig_argv = sys.argv\n"
        "import fxfault.cli\n"
        "plain = builtins.__import__\n"
        "def hooked(name, *rest):\n"
        f"    if name == {module!r}:\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            for _ in range(10**6): pass\n"
        "        except BaseException: pass\n"
        "    return plain(name, *rest)\n"
        "builtins.__import__ = hooked\n"
        f"from fxfault.cli.{command} import main\n"
        "sys.exit(main())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("wait", [0.15, 0.8, 2.5])
def test_an_interrupt_from_outside_is_one_line(tmp_path: Path, wait: float) -> None:
    argv = [sys.executable, "-m", "fxfault.cli.campaign", *COMMANDS["campaign"]]
    # The lines on stdout are those of a study that had begun.
    study = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    time.sleep(wait)
    study.send_signal(signal.SIGINT)
    _, said = study.communicate(timeout=60)
    assert study.returncode == 130
    assert len(said.splitlines()) == 1
    assert said.startswith("interrupted")


def test_an_interrupt_leaves_no_half_written_file(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "sys.argv = ['fxfault-eval']\nsys.orig_argv = sys.argv\n"
        "import fxfault.cli, fxfault.files.access\n"
        "os.fsync = lambda number: os.kill(os.getpid(), signal.SIGINT)\n"
        "fxfault.files.access.write_atomically('t.csv', 'content')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_imported_leaves_interrupts_alone() -> None:
    code = (
        "import signal, fxfault.cli.campaign\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"
