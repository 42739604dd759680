"""`fxfault campaign faults`: the list of a stored trial, and what it refuses."""

from __future__ import annotations

import csv
import functools
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Run

from fxfault.campaign import Study
from fxfault.campaign.driver import run_study
from fxfault.campaign.records.store import Store
from fxfault.campaign.trial_faults import list_trial
from fxfault.cli import campaign, evaluate
from fxfault.sites.fault_list import COLUMNS

SECTIONS: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "model": {"name": "quant_digits"},
    "checkpoint": {"path": "bundled:digits"},
    "training": {"batch_size": 100},
}
AXES = {"probability": [1.0, 3.0], "injection_type": ["random", "stuck_at_1"]}
CELLS = "1 all random 1%, 2 all random 3%, 3 all stuck_at_1 1%, 4 all stuck_at_1 3%"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a store with four cells of two trials."""
    path = tmp_path_factory.mktemp("store") / "study.sqlite"
    study = {**SECTIONS, "seed": 3, "axes": AXES, "trials": 2}
    run_study(Study.from_dict(study), path)
    return path.read_bytes()


@pytest.fixture
def command(stored: bytes, run_command: Callable[..., Run]) -> Callable[..., Run]:
    """Give a function that runs `fxfault campaign faults` on the store in its folder."""
    Path("study.sqlite").write_bytes(stored)
    return functools.partial(run_command, campaign.main, "faults", "--store", "study.sqlite")


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(name).read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("cell", [1, 4])
def test_a_listed_trial_replays_with_its_counts(
    command: Callable[..., Run], capsys: pytest.CaptureFixture[str], cell: int
) -> None:
    run = command("--cell", str(cell), "--trial", "1", "--csv", "faults.csv")
    with Store.open("study.sqlite") as store:
        row = store.rows(store.cells()[cell - 1])[1]
    words = CELLS.split(", ")[cell - 1].removeprefix(f"{cell} ")
    listed = rows("faults.csv")
    assert (run.status, run.err) == (0, "")
    assert run.out == (
        f"Trial 1 of {words}: {len(listed):,} hits at 5 sites\nFaults saved to: faults.csv\n"
    )
    assert len(listed) == row.faults
    assert len({line["sample"] for line in listed}) == row.struck
    assert list(listed[0]) == list(COLUMNS)
    content = {**SECTIONS, "fault_injection": {"enabled": True}}
    Path("own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    options = ["--batch-size", "70", "--replay", "faults.csv", "--output", "eval.json"]
    assert evaluate.main(["--config", "own.yaml", *options]) == 0
    (result,) = json.loads(Path("eval.json").read_text())["results"]
    assert result["mean"] == 100 * row.correct / row.samples
    assert result["sdc_rate"] == pytest.approx(100 * row.sdc / row.samples)
    assert row.sdc > 0


def test_a_cell_has_a_number_words_and_a_key(command: Callable[..., Run]) -> None:
    with Store.open("study.sqlite") as store:
        key = store.cells()[1]
    texts = []
    for name in ("2", "all random 3%", key):
        assert command("--cell", name, "--csv", "faults.csv").status == 0
        texts.append(Path("faults.csv").read_bytes())
    assert texts[0] == texts[1] == texts[2]
    command("--cell", "1", "--csv", "faults.csv")
    assert Path("faults.csv").read_bytes() != texts[0]


def test_a_trial_need_not_be_stored(command: Callable[..., Run]) -> None:
    run = command("--cell", "1", "--trial", "7", "--csv", "faults.csv")
    note = "Note: trial 7 is not in study.sqlite: its counts are not compared\n"
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith(note)


def test_parquet_and_csv_are_the_same_list(command: Callable[..., Run]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    command("--cell", "1", "--csv", "faults.csv", "--parquet", "faults.parquet")
    table = parquet.read_table("faults.parquet").to_pylist()
    shown = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table]
    assert shown == rows("faults.csv")


def test_the_only_cell_needs_no_name(tmp_path: Path) -> None:
    axes = {"layers": ["classifier.2"], "num_faults": [2], "injection_type": ["bit_flip"]}
    study = {**SECTIONS, "seed": 3, "axes": axes, "trials": 1}
    run_study(Study.from_dict(study), tmp_path / "one.sqlite")
    begun: list[int] = []
    done: list[int] = []
    found = list_trial(tmp_path / "one.sqlite", on_start=begun.append, on_batch=done.append)
    assert len(found.listing) == 1000
    assert {place.name for place in found.listing.places} == {"classifier.2"}
    assert (begun, done, found.is_stored) == ([500], [100] * 5, True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "name at least one file to write: --csv or --parquet"),
        (
            ("--csv", "a.csv"),
            f"study.sqlite: name one cell, by its number; its 4 cells are: {CELLS}",
        ),
        (
            ("--csv", "a.csv", "--cell", "5"),
            "study.sqlite: no cell '5'; its 4 cells are: 1 all ran",
        ),
        (
            ("--csv", "a.csv", "--cell", "0"),
            "study.sqlite: no cell '0'; its 4 cells are: 1 all ran",
        ),
        (
            ("--csv", "a.csv", "--cell", "all"),
            "study.sqlite: no cell 'all'; its 4 cells are: 1 all",
        ),
        (
            ("--csv", "study.sqlite", "--cell", "1"),
            "--csv: study.sqlite is the store; name another",
        ),
        (("--csv", "no/a.csv", "--cell", "1"), "--csv: no/a.csv cannot be written: the folder"),
        (("--csv", "a.csv", "--trial", "-1"), "--trial: '-1' is not a whole number from 0"),
        (("--csv", "a.csv", "--trial", "x"), "--trial: 'x' is not a whole number from 0"),
        (("--csv", "a.csv", "--parquet", "a.csv"), "--parquet: a.csv is the file of --csv too"),
    ],
)
def test_bad_options_are_one_line(
    command: Callable[..., Run], options: tuple[str, ...], problem: str
) -> None:
    run = command(*options)
    assert (run.status, run.out) == (2, "")
    assert problem in run.err
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    assert not [path.name for path in Path().iterdir() if path.name.startswith("a.")]


def test_a_store_that_is_missing_is_one_line(command: Callable[..., Run]) -> None:
    Path("study.sqlite").unlink()
    run = command("--csv", "a.csv")
    assert run.status == 2
    assert run.err.count("\n") == 1
    assert not Path("a.csv").exists()


def test_a_trial_with_other_counts_is_refused(command: Callable[..., Run]) -> None:
    with sqlite3.connect("study.sqlite") as connection:
        connection.execute("UPDATE trials SET sdc = sdc + 1 WHERE trial = 1")
    run = command("--cell", "1", "--trial", "1", "--csv", "a.csv")
    assert run.status == 2
    assert "trial 1 of all random 1% has other counts now" in run.err
    assert run.err.count("\n") == 1
    assert not Path("a.csv").exists()


def test_another_network_is_refused(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxfault.campaign.records import fingerprint

    monkeypatch.setattr(fingerprint, "of_state", lambda model: "another")
    run = command("--cell", "1", "--csv", "a.csv")
    assert run.status == 2
    assert "holds trials of something else" in run.err
    assert not Path("a.csv").exists()
