"""The tutorial: its script and its commands run, and print what the page says, but for figures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from fxfault.cli import main as command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_tutorial_runs(
    run_command: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, script = blocks("python")
    (tmp_path / "mine.py").write_text(mine, "utf-8")
    pictures = ["python.png"]
    for block in blocks("console"):
        line, *printed = block.splitlines()
        words = shlex.split(line.removeprefix("$ "))
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True)
            continue
        assert words[0] == "fxfault"
        run = run_command(command.main, *words[1:])
        assert run.status == 0, run.err
        assert shape_of(printed) <= shape_of(run.out.splitlines())
        pictures += [word for word in words if word.endswith(".png")]
    (tmp_path / "script.py").write_text(script, "utf-8")
    subprocess.run([sys.executable, "script.py"], check=True)
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def shape_of(lines: list[str]) -> set[str]:
    """The lines without figures, rules and verdict; a network trained elsewhere has another one."""
    text = re.sub(r"^Verdict:\n(.+\n)*", "", "\n".join(lines), flags=re.MULTILINE)
    return {re.sub(r"[\W\d]+", " ", line).strip() for line in text.splitlines()}
