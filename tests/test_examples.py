"""The examples run, and their steps are those that the seed draws."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fxfault.faults.random_numbers import uniform_float

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STEPS = 20  # in an epoch of 1,297 images, 64 in a batch
CHANCE = 10.0  # percent, of ten classes


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed_accuracy(text: str, which: str) -> float:
    found = re.search(rf"^accuracy {which} faults: ([0-9.]+) %$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_plain_loop_has_the_noisy_steps_of_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = example("plain_loop").main(2)
    drawn = [uniform_float(42, "step", epoch, s) < 0.5 for epoch in (0, 1) for s in range(STEPS)]
    assert noisy == sum(drawn)
    assert 0 < noisy < len(drawn)
    text = capsys.readouterr().out
    assert "Injected 5 fault injection layers\n" in text
    assert f"{noisy} of {len(drawn)} steps were noisy\n" in text
    assert CHANCE < printed_accuracy(text, "under") < printed_accuracy(text, "without")
    assert printed_accuracy(text, "without") > 50


def test_minimal_loop_draws_its_steps_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = example("minimal_loop").main(2)
    assert noisy == [uniform_float(7, "step", 0, step) < 0.3 for step in range(2 * STEPS)]
    assert set(noisy) == {False, True}
    text = capsys.readouterr().out
    assert CHANCE < printed_accuracy(text, "under") < printed_accuracy(text, "without")
    assert printed_accuracy(text, "without") > 50


@pytest.mark.parametrize("name", ["plain_loop", "minimal_loop"])
def test_examples_run_as_scripts(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "1"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert f"of {STEPS} steps were noisy" in capsys.readouterr().out
