"""Which package may import which, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The package's own lazy exports reach up by name; nothing else in it may.
LAZY_EXPORTS = ROOT / "fxfault" / "__init__.py"
ALLOWED = {
    "fxfault": (),
    "passes": ("fxfault.passes",),
    "cli": ("fxfault.passes", "fxfault.cli"),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(
    "path",
    [p for folder in ALLOWED for p in sorted((ROOT / folder).rglob("*.py")) if p != LAZY_EXPORTS],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_point_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    upper = {"fxfault.passes", "fxfault.cli"} - set(ALLOWED[folder])
    names = imported(path)
    assert not [n for n in names if any(n == u or n.startswith(f"{u}.") for u in upper)]
    assert not [n for n in names if n.partition(".")[0] in ("passes", "cli", "tests", "benchmarks")]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("fxfault", ("torch", "brevitas", "numpy", "yaml", "pydantic")),
        ("fxfault.config", ("torch", "brevitas")),
        ("fxfault.models", ("torch", "brevitas")),
        ("fxfault.data", ("torch", "torchvision", "sklearn")),
        ("fxfault.campaign", ("torch", "brevitas", "numpy", "scipy", "sqlite3")),
        ("fxfault.cli.campaign", ("torch", "brevitas", "matplotlib", "scipy")),
        ("fxfault.cli.evaluate", ("torch", "brevitas", "matplotlib")),
        ("fxfault.cli.inspect", ("torch", "brevitas", "matplotlib")),
        ("fxfault.cli.train", ("torch", "brevitas", "lightning", "matplotlib")),
        ("fxfault.functional", ("torchvision", "sklearn", "matplotlib", "onnx")),
    ],
)
def test_importing_stays_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


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


@pytest.mark.parametrize("folder", [*ALLOWED, "benchmarks", "examples"])
def test_no_assertion_has_an_effect(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in effects(path.read_text(encoding="utf-8"))
    }
    assert found == set()
    assert effects("assert trials.pop() == 3") == effects("assert (x := 3)") == [1]
