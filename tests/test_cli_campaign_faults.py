"""`fxfault campaign` where a number of faults, or several faults, take the place of a rate."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign_tools import SMALL
from commands import Run

from fxfault.cli import campaign

SEVERAL = [
    {"injection_type": "msb_flip", "probability": 3.0, "layers": "features.*"},
    {"injection_type": "random", "num_faults": 2},
]
COUNTED = {
    "layers": ["each", "all"],
    "injection_type": ["random", "msb_flip"],
    "num_faults": [1, 8],
}
NAMED = {"faults": {"both": SEVERAL, "first only": SEVERAL[:1]}}


@pytest.fixture
def command(run_command: Callable[..., Run]) -> Callable[..., str]:
    """Give a function that runs the command in an empty folder; it must end well."""

    def run(*argv: str) -> str:
        status, out, err = run_command(campaign.main, *argv)
        assert (status, err) == (0, "")
        return out

    return run


def written(name: str, axes: dict[str, Any], **changes: Any) -> str:
    content = {**SMALL, "axes": axes, "trials": 3, **changes}
    del content["stop"]
    Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return name


def lines_with(text: str, *parts: str) -> list[str]:
    return [line for line in text.splitlines() if all(part in line for part in parts)]


def test_a_study_of_numbers_of_faults(command: Callable[..., str]) -> None:
    file = written("counted.yaml", COUNTED)
    assert "  all: " in command("plan", file)
    command("run", file, "--store", "s.sqlite", "--no-progress")
    assert "24 of 24" in command("status", "--store", "s.sqlite")
    report = command("report", "--store", "s.sqlite", "--figures", "pictures", "--cells")
    (row,) = lines_with(report, "all ", " msb_flip ", "| k = 8 |")
    assert "done" in row
    assert "(mean over the rates k = 1, k = 8):" in report
    assert "Layer ranking" in report
    assert "Faults per sample (logarithmic)" in Path("pictures/accuracy.svg").read_text()
    assert "k = 1, k = 8" in Path("pictures/heat_map.svg").read_text()
    command("export", "--store", "s.sqlite", "--csv", "t.csv", "--json", "t.json")
    rows = list(csv.DictReader(Path("t.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["num_faults"] for row in rows} == {"1", "8"}
    assert "probability" not in rows[0]
    for row in rows:
        assert int(row["faults"]) == int(row["num_faults"]) * int(row["samples"])
    assert json.loads(Path("t.json").read_text())["rows"][0]["num_faults"] == 1


def test_a_study_of_several_faults(command: Callable[..., str]) -> None:
    file = written("named.yaml", NAMED)
    assert "features.*" in command("plan", file)
    command("run", file, "--store", "s.sqlite", "--no-progress")
    report = command("report", "--store", "s.sqlite", "--figures", "pictures", "--cells")
    assert lines_with(report, "all ", "| both ", "| -")
    assert lines_with(report, "features.* ", "| first only ", "| -")
    assert "Layer ranking" not in report
    command("export", "--store", "s.sqlite", "--what", "cells", "--csv", "c.csv")
    rows = list(csv.DictReader(Path("c.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["faults"], row["trials"]) for row in rows] == [("both", "3"), ("first only", "3")]
    command("export", "--store", "s.sqlite", "--csv", "t.csv", "--json", "t.json")
    rows = list(csv.DictReader(Path("t.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["faults"] for row in rows] == ["both"] * 3 + ["first only"] * 3
    assert all(int(row["hits"]) > 0 for row in rows)
    listed = json.loads(Path("t.json").read_text())["rows"]
    assert [str(row["hits"]) for row in listed] == [row["hits"] for row in rows]
    # The same faults in another network are compared by their name and what they are.
    other = written("other.yaml", NAMED, quantization={"weight_bit_width": 3, "act_bit_width": 4})
    command("run", other, "--store", "o.sqlite", "--no-progress")
    compared = command("compare", "s.sqlite", "o.sqlite")
    assert lines_with(compared, "both", "3 pairs")
    assert lines_with(compared, "first only", "3 pairs")


def test_a_study_that_grew_says_so(command: Callable[..., str]) -> None:
    file = written("counted.yaml", {"layers": "all", "num_faults": [1]})
    command("run", file, "--store", "s.sqlite", "--no-progress")
    written("counted.yaml", {"layers": "all", "num_faults": [1, 2]}, trials=5)
    out = command("run", file, "--store", "s.sqlite")
    assert "s.sqlite goes on with another study, 2 differences: axes.num_faults: [1] in the" in out
    assert "trials: 3 in the store, 5 now; all of its trials are kept" in out
    assert "Finished: 2 cells, 10 trials, 7 of them in" in out
    assert "2 of 2" in command("status", "--store", "s.sqlite")
    assert "all there before" in command("resume", "--store", "s.sqlite")
