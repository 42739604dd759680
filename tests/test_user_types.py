"""What a type checker finds in a user's script: everything, and no name that is not there."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """\
import fxfault
from fxfault.lightning import FaultAwareTraining
from torch import nn

faulty = fxfault.transform(nn.Linear(2, 2), {"enabled": True})
reveal_type(faulty)  # FaultyModule
reveal_type(faulty.faults)  # FaultSites
reveal_type(faulty.faults[0])  # FaultSite
reveal_type(fxfault.freeze(faulty).faults)  # FaultSites
reveal_type(fxfault.inspect(faulty).headline)  # str
reveal_type(fxfault.evaluate(faulty, []))  # EvaluationResult
reveal_type(fxfault.sweep(faulty, [], rates=[1, 2]).results[0].mean)  # float
reveal_type(fxfault.rank_layers(faulty, []).names)  # tuple[str, ...]
reveal_type(fxfault.run_study("digits_study", "a.sqlite").store)  # Path
reveal_type(fxfault.campaign.Study.from_yaml("digits_study"))  # Study
reveal_type(fxfault.__version__)  # str
reveal_type(FaultAwareTraining({}).statistics)  # FaultStatistics | None
fxfault.evaluate(faulty, [], runs="3")  # error: arg-type
fxfault.nothing  # error: attr-defined
"""
SETTINGS = """\
[mypy]
strict = true
[mypy-torch.*,brevitas.*,lightning.*,numpy.*,pydantic.*,yaml.*,matplotlib.*,scipy.*,pandas.*]
follow_imports = skip
ignore_missing_imports = true
[mypy-fxfault.*]
ignore_errors = true
"""


def install(folder: Path) -> None:
    """Put the packages where an installation puts them."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for line in settings["options"]["package_dir"].split("\n"):
        if line:
            package, source = map(str.strip, line.split("="))
            shutil.copytree(
                ROOT / source,
                folder.joinpath(*package.split(".")),
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )


def test_a_type_checker_finds_everything(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    install(tmp_path / "installed")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "script.py"],
        cwd=tmp_path,
        env={"MYPYPATH": "installed", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    wanted = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(SCRIPT.splitlines(), start=1)
        if "  # " in line
    }
    found = {}
    for line in run.stdout.splitlines():
        match = re.match(r"script\.py:(\d+): (note|error): (.*)", line)
        if match is None:
            continue
        number, kind, text = int(match[1]), match[2], match[3]
        if kind == "error":
            found[number] = f"error: {text.rpartition('[')[2].rstrip(']')}"
        else:
            shown = text.removeprefix('Revealed type is "').removesuffix('"')
            found[number] = re.sub(r"\b[\w.]+\.(\w+)", r"\1", shown)
    assert found == wanted, run.stdout + run.stderr
