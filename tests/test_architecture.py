"""Which package may import which, and what importing costs."""

from __future__ import annotations

import ast
import doctest
import json
import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = house.ROOT
FOLDERS = ("fxfault", "passes", "cli")


def test_every_import_leads_down() -> None:
    assert house.upward(house.imports()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = [arrow for arrow in house.imports() if not arrow.types_only]
    assert house.circles({(arrow.importer, arrow.imported) for arrow in arrows}) == []
    assert house.circles({("a", "b"), ("b", "c"), ("c", "a")}) == [["a", "b", "c"]]


def test_the_rule_sees_an_import_that_leads_up() -> None:
    up = house.Import("fxfault.faults.codes", "fxfault.passes.insert", types_only=False)
    assert house.upward([up]) == [up]
    door = house.Import("fxfault", "fxfault.passes.insert", types_only=False)
    assert house.upward([door]) == []


def test_the_house_is_as_small_as_it_is_meant_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert house.main() == 0
    line = capsys.readouterr().out
    _, storeys, _, circles, upward, loose = line.strip().split(", ")
    assert int(storeys.split()[0]) <= 11  # Ten, and the results between campaigns and commands.
    assert (circles, upward) == ("circles = 0", "upward = 0")
    assert int(loose.split()[0]) <= 7


@pytest.mark.parametrize(
    "path",
    [path for name, path in house.modules().items() if name not in house.DOORS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_below_the_commands_uses_the_front_door(path: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    if path.relative_to(ROOT).parts[0] != "cli":
        assert "fxfault" not in names
    assert not [n for n in names if n.partition(".")[0] in ("passes", "cli", "tests", "benchmarks")]


def test_examples_of_the_rule_are_right() -> None:
    assert doctest.testmod(house).failed == 0


def test_every_room_says_what_it_is_for() -> None:
    for name, path in house.modules().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_graphs_name_the_public_operations() -> None:
    from fxfault import functional

    assert functional.fault_inject.__module__ == "fxfault.functional"
    assert functional.begin_forward.__module__ == "fxfault.functional"


# What each module must not import, so that a command answers at once.
LIGHT = {
    "fxfault": ("torch", "brevitas", "numpy", "yaml", "pydantic"),
    "fxfault.config.fault_injection": ("torch", "brevitas"),
    "fxfault.models": ("torch", "brevitas"),
    "fxfault.data": ("torch", "torchvision", "sklearn"),
    "fxfault.campaign": ("torch", "brevitas", "numpy", "scipy", "sqlite3"),
    "fxfault.cli.campaign": ("torch", "brevitas", "matplotlib", "scipy"),
    "fxfault.cli.evaluate": ("torch", "brevitas", "matplotlib"),
    "fxfault.cli.main": ("torch", "brevitas", "matplotlib", "lightning", "scipy", "yaml"),
    "fxfault.cli.inspect": ("torch", "brevitas", "matplotlib"),
    "fxfault.cli.train": ("torch", "brevitas", "lightning", "matplotlib"),
    "fxfault.functional": ("torchvision", "sklearn", "matplotlib", "onnx"),
}
# Each module is imported in a copy of a process that has imported none of them.
IMPORT_EACH = """
import importlib, json, os, sys
for module, heavy in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        importlib.import_module(module)
        print(module, [name for name in heavy if name in sys.modules], flush=True)
        os._exit(0)
    os.wait()
"""


def test_importing_stays_light() -> None:
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(LIGHT)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"{module} []" for module in LIGHT], run.stderr


def test_parts_of_two_installations_are_refused(tmp_path: Path) -> None:
    from conftest import why_mixed

    package, passes = str(ROOT / "fxfault" / "__init__.py"), str(ROOT / "passes" / "__init__.py")
    assert why_mixed({"fxfault": package, "fxfault.passes": passes}) is None
    installed = str(tmp_path / "fxfault" / "__init__.py")
    beside = str(tmp_path / "fxfault" / "passes" / "__init__.py")
    assert why_mixed({"fxfault": installed, "fxfault.passes": beside}) is None
    mixed = why_mixed({"fxfault": package, "fxfault.passes": beside})
    assert mixed is not None
    assert "\n" not in mixed
    assert mixed.startswith(f"fxfault comes from {ROOT}, but fxfault.passes from {tmp_path}")


def test_every_public_name_can_be_imported() -> None:
    import fxfault

    for name in fxfault.__all__:
        assert getattr(fxfault, name) is not None
    assert set(fxfault.__all__) <= set(dir(fxfault))
    assert fxfault.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fxfault.nonsense  # noqa: B018


# -- assertions -----------------------------------------------------------------------------

# What may be called in an assertion, as it changes nothing: `python -O` leaves assertions out.
HARMLESS = {"all", "any", "callable", "hasattr", "isinstance", "issubclass", "len", "set", "type"}


def effects(source: str) -> list[int]:
    """Lines of assertions that do more than look."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            for part in ast.walk(node):
                called = isinstance(part, ast.Call) and getattr(part.func, "id", "") not in HARMLESS
                if called or isinstance(part, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)):
                    lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("folder", [*FOLDERS, "benchmarks", "examples"])
def test_no_assertion_has_an_effect(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in effects(path.read_text(encoding="utf-8"))
    }
    assert found == set()
    assert effects("assert trials.pop() == 3") == effects("assert (x := 3)") == [1]
