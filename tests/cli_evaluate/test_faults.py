"""`fxfault eval` as a user runs it: faults by number, several faults, and each layer in turn."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_evaluate.tools import FAST, document, svg_text, table, write_config
from commands import Run

from fxfault.campaign import Cell, Study
from fxfault.campaign.driver import run_study
from fxfault.campaign.records.store import Store
from fxfault.cli import evaluate
from fxfault.experiment import load_experiment
from fxfault.results.reports.campaign_findings import read_findings

# -- faults that are no probability -------------------------------------------------------


def test_numbers_of_faults_are_said_everywhere(command: Callable[..., Run]) -> None:
    argv = ["--num-faults", "0,2,40", "--layers", "features.*", "--csv", "k.csv", "--plot", "k.svg"]
    run = command(*FAST, *argv)
    assert run.status == 0, run.err
    assert "  Faults per sample: 0, 2, 40\n" in run.out
    assert "\nEvaluating with 2 faults per sample...\n  Accuracy: " in run.out
    assert "  Realised fault rate: 0.0558036% (1000 of 1792000 values)" in run.out
    assert re.search(r"      Faults \|   Accuracy .*\n-+\n +k = 0 \| .*\n +k = 2 \| ", run.out)
    results = document()["results"]
    assert [entry["num_faults"] for entry in results] == [0, 2, 40]
    assert {entry["probability"] for entry in results} == {None}
    counts = [entry["statistics"]["total_injections"] for entry in results]
    assert counts == [0, 500 * 2, 500 * 40]
    assert results[0]["degradation"] == 0 < results[2]["degradation"]
    assert [(row["probability"], row["num_faults"]) for row in table("k.csv")] == [
        ("", "0"),
        ("", "2"),
        ("", "40"),
    ]
    assert "Faults per sample (logarithmic)" in svg_text(Path("k.svg").read_bytes())


def test_a_configuration_with_a_number_of_faults(command: Callable[..., Run]) -> None:
    config = write_config(fault_injection={"num_faults": 3, "probability": 5.0})
    argv = ("--config", config, "--batch-size", "250")
    run = command(*argv, "--per-layer", "--plot", "r.svg")
    assert "Evaluating with 3 faults per sample...\n" in run.out
    assert {entry["num_faults"] for entry in document()["per_layer"]} == {3}
    assert "3 faults per sample" in svg_text(Path("r.svg").read_bytes())
    command(*argv, "--sweep", "1,2")  # It takes the place of the configuration's.
    swept = document("fault_eval_random_2.json")
    assert [entry["probability"] for entry in swept["results"]] == [1.0, 2.0]
    assert swept["config"]["fault_injection"]["num_faults"] is None


def test_a_configuration_with_several_faults(command: Callable[..., Run]) -> None:
    several = [
        {"injection_type": "msb_flip", "probability": 2.0, "layers": ["features.*"]},
        {"injection_type": "random", "num_faults": 4, "layers": "input_quant"},
    ]
    config = write_config(fault_injection={"faults": several, "probability": 5.0})
    argv = ("--config", config, "--batch-size", "250")
    run = command(*argv, "--csv", "s.csv", "--plot", "s.svg")
    assert run.status == 0, run.err
    assert "  Fault 1: msb_flip at 2 % (layers: features.*)\n  Fault 2: random, 4 " in run.out
    assert "Evaluating with the faults of the configuration...\n" in run.out
    found = document("fault_eval_faults.json")
    (entry,) = found["results"]
    assert (entry["probability"], entry["num_faults"]) == (None, None)
    assert entry["statistics"]["layers"]["0"]["injected_count"] == 4 * 500
    assert entry["degradation"] > 0
    (row,) = table("s.csv")
    assert (row["layer"], row["probability"], row["num_faults"]) == ("all", "", "")
    text = svg_text(Path("s.svg").read_bytes())
    assert "msb_flip at 2 % + random, 4 a sample" in text
    for options in (["--probability", "0"], ["--layers", "0"], ["--per-layer"], ["--num-faults=1"]):
        run = command(*argv, *options)
        assert run.status == 2
        assert run.err.startswith(f"error: {options[0].split('=')[0]}: own.yaml has `faults`")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-faults", "1,5000"], "num_faults: got 5000, allowed: up to the 3712 elements"),
        (["--num-faults", "1,2", "--per-layer"], "--per-layer takes one number of faults"),
    ],
)
def test_numbers_of_faults_that_cannot_be(
    command: Callable[..., Run], options: list[str], message: str, tmp_path: Path
) -> None:
    run = command(*FAST, *options)
    assert run.status == 2
    assert message in run.err
    assert "Evaluating with" not in run.out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["-1", "1,,2", "1.5", "1,1"])
def test_what_is_no_number_of_faults(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main([*FAST, f"--num-faults={text}"])
    assert capsys.readouterr().err.startswith("error: --num-faults: ")


# -- a small campaign ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rate"),
    [(("--probability", "20"), ("probability", 20.0)), (("--num-faults", "9"), ("num_faults", 9))],
)
def test_a_study_of_each_layer_has_the_same_trials(
    command: Callable[..., Run], options: tuple[str, str], rate: tuple[str, Any]
) -> None:
    name, value = rate
    config = write_config(fault_injection={"track_statistics": False})
    argv = ["--config", config, "--batch-size", "250", "--per-layer", "--num-runs", "3"]
    run = command(*argv, *options)
    study = {
        **{
            key: load_experiment("digits").to_dict()[key]
            for key in ("dataset", "model", "quantization", "checkpoint")
        },
        "training": {"batch_size": 125},
        "seed": 42,
        "axes": {"layers": ["each", "all"], name: value},
        "trials": 3,
    }
    run_study(Study.from_dict(study), "study.sqlite")
    with Store.open("study.sqlite") as store:
        findings = read_findings(Path("study.sqlite"))
        rows = {Cell.from_key(key).place: store.rows(key) for key in store.cells()}
    found = document()
    entries = {entry["name"]: entry for entry in found["per_layer"]}
    entries["all"] = found["results"][0]
    assert rows.keys() == entries.keys()
    assert len(rows) == 6
    for place, entry in entries.items():
        assert entry["runs"] == [100 * row.correct / row.samples for row in rows[place]]
        assert entry["injection_rate"] == pytest.approx(
            100 * sum(r.faults for r in rows[place]) / sum(r.elements for r in rows[place])
        )
    ranked = [(site.name, site.rank, [site.rank_low, site.rank_high]) for site in findings.ranked]
    assert ranked == [(e["name"], e["rank"], e["rank_interval"]) for e in found["per_layer"]]
    for index, cell in enumerate(findings.summary.cells):
        for key, estimate in (("interval", "measure"), ("sdc_interval", "sdc")):
            of_study = findings.summary[estimate]
            ends = [of_study.low[index], of_study.high[index]]
            assert entries[cell.place][key] == pytest.approx(ends)
    place, low, high = ranked[0][0], *ranked[0][2]
    assert re.search(rf"^ +1 \| .* \| +{low}-{high} \| {place}$", run.out, flags=re.MULTILINE)


def test_intervals_need_scipy_which_is_said_before_the_work(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    run = command(*FAST)
    assert run.status == 2
    assert "intervals need scipy" in run.err
    assert 'pip install "fxfault[cli]"' in run.err
    assert (run.out, os.listdir(tmp_path)) == ("", [])


@pytest.mark.parametrize(
    "options", [("--cache-memory", "much"), ("--cache-memory", "-1"), ("--verify", "101")]
)
def test_amounts_that_are_none_are_refused(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        evaluate.main([*FAST, *options])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {options[0]}: ")
