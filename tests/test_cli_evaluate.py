"""`fxfault-eval` as a user runs it: what it prints, what it writes, and how it stops."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
import torch
import yaml
from torch import nn

import fxfault
from fxfault import passes
from fxfault.campaign import Cell, FaultEvaluation, Study
from fxfault.campaign.driver import run_study
from fxfault.campaign.fault_evaluation import CellResult
from fxfault.campaign.records.store import Store
from fxfault.cli import evaluate
from fxfault.cli.pictures import plots
from fxfault.cli.reports.campaign_findings import read_findings
from fxfault.cli.terminal import process_setup, progress
from fxfault.cli.terminal.text import percent, points
from fxfault.errors import DataError
from fxfault.evaluation import FullRunner, accuracy
from fxfault.evaluation.incremental import runner as incremental
from fxfault.evaluation.rows import TrialRow
from fxfault.evaluation.trials import Trials
from fxfault.experiment import load_experiment
from fxfault.experiment import parts as experiment_parts
from fxfault.models import build_model

DOCS = Path(__file__).parent.parent / "docs"
FAST = ["--config", "digits", "--batch-size", "250"]


class Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Run]:
    """Give a function that runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Run:
        status = evaluate.main(argv)
        return Run(status, *capsys.readouterr())

    return run


def document(name: str = "fault_eval_random.json") -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(name).read_text(encoding="utf-8").splitlines()))


def write_config(**sections: Any) -> str:
    content = load_experiment("digits").to_dict()
    for name, section in sections.items():
        content[name] = {**(content[name] or {}), **section}
    Path("own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return "own.yaml"


def save_weights(name: str = "weights.pt") -> str:
    model, _ = experiment_parts.load_model(load_experiment("digits"), "bundled:digits")
    torch.save(model.state_dict(), name)
    return name


# -- what it prints -------------------------------------------------------------------------


ONE_RUN = r"\(one run: no interval; give --num-runs 2 or more\)"


def test_one_probability_is_printed_in_the_form_of_the_specification(
    command: Callable[..., Run],
) -> None:
    run = command(*FAST, "--probability", "10.0")
    assert (run.status, run.err) == (0, "")
    expected = r"""Using device: cpu
Dataset: digits \(2 test batches, 500 samples\)
Model: quant_digits
Loading checkpoint: bundled:digits
Seed: 42

Fault Injection Configuration:
  Injection layers: 5
  Mode: full_model
  Injection type: random
  Probability: 10.0%

={60}
Evaluating baseline \(no faults\)\.\.\.
Baseline accuracy: 99\.\d\d%

={60}
Evaluating with 10.0% fault probability\.\.\.

Results:
  Baseline accuracy:   99\.\d\d%
  Fault accuracy:      [23]\d\.\d\d%
  Accuracy degradation: \+[67]\d\.\d\d points
  With 95% intervals: accuracy [23]\d\.\d\d ONE, SDC rate [67]\d\.\d\d \[\d\d\.\d\d, \d\d\.\d\d\]
  Realised fault rate: (10|9\.9)[\d.]*% \(\d+ of 1856000 values\)

={90}
FAULT INJECTION STATISTICS
={90}
Layer    Injected     Total          Rate \(%\)     RMSE         Cos Sim \(%\) Site
-{90}
(\d  .*\n){5}-{90}
TOTAL    \d+ +1856000 +[\d.]+
={90}

Results saved to: fault_eval_random\.json
"""
    assert re.fullmatch(expected.replace("ONE", ONE_RUN), run.out), run.out


def test_a_sweep_is_printed_in_the_form_of_the_specification(command: Callable[..., Run]) -> None:
    run = command(*FAST, "--sweep", "0,2.5")
    expected = r"""
={60}

Evaluating with probability 0%\.\.\.
  Accuracy: 99\.\d\d%
  With 95% intervals: accuracy 99\.\d\d \[98\.\d\d, 100\.00\], SDC rate 0\.00 \[0\.00, 0\.76\]
  Realised fault rate: 0% \(0 of 1856000 values\)

Evaluating with probability 2\.5%\.\.\.
  Accuracy: \d\d\.\d\d%
  With 95% intervals: accuracy \d\d\.\d\d ONE, SDC rate \d\d\.\d\d \[\d+\.\d\d, \d\d\.\d\d\]
  Realised fault rate: 2\.\d+% \(\d+ of 1856000 values\)

={60}
Sweep Summary:
 Probability \|   Accuracy \| Degradation \(points\)
-{48}
        0\.0% \|     99\.\d\d% \|                \+0\.00
        2\.5% \|     \d\d\.\d\d% \|               \+1\d\.\d\d

Results saved to: fault_eval_random\.json
"""
    assert re.search(expected.replace("ONE", ONE_RUN), run.out), run.out
    assert "STATISTICS" not in run.out


def test_several_runs_are_printed_with_their_standard_deviation(
    command: Callable[..., Run],
) -> None:
    run = command(*FAST, "--sweep", "2", "--num-runs", "3")
    (result,) = document()["results"]
    assert f"  Accuracy: {result['mean']:.2f}% (std: {result['std']:.2f}%)" in run.out
    assert f"| {result['mean']:.2f}% ± {result['std']:.2f}% |" in run.out
    assert "  Runs: 3 (± is their sample standard deviation)" in run.out


def test_what_the_run_changes_in_the_configuration_is_said(command: Callable[..., Run]) -> None:
    config = write_config(fault_injection={"enabled": False, "apply_during": "train", "seed": None})
    run = command("--config", config, "--batch-size", "250")
    assert "Note: `enabled: true` for this run: the configuration says false" in run.out
    assert "Note: `apply_during: eval` for this run: the configuration says train" in run.out
    seed = document()["seed"]
    assert f"Seed: {seed} (drawn; repeat with --seed {seed})" in run.out
    assert document()["config"]["fault_injection"]["apply_during"] == "eval"
    first = document()["results"]
    command("--config", config, "--batch-size", "250", "--seed", str(seed))
    assert document()["results"] == first


@pytest.mark.parametrize("during", ["eval", "both"])
def test_nothing_is_said_where_nothing_is_changed(
    command: Callable[..., Run], tmp_path: Path, during: str
) -> None:
    config = write_config(fault_injection={"apply_during": during})
    run = command("--config", config, "--batch-size", "250", "--probability", "0")
    assert "Note:" not in run.out


def test_without_statistics_no_table_but_hits_are_counted(
    command: Callable[..., Run],
) -> None:
    config = write_config(fault_injection={"track_statistics": False})
    run = command("--config", config, "--batch-size", "250", "--probability", "1")
    assert "STATISTICS" not in run.out
    (untracked,) = document()["results"]
    assert document()["statistics"] is untracked["statistics"] is None
    command(*FAST, "--probability", "1", "--output", "tracked.json")
    (tracked,) = document("tracked.json")["results"]
    assert untracked["injection_rate"] == tracked["injection_rate"] > 0.9
    assert tracked["injection_rate"] == tracked["statistics"]["overall_injection_rate"]
    assert f"Realised fault rate: {tracked['injection_rate']:.6g}%" in run.out


def test_verbose_logs_to_stderr(command: Callable[..., Run]) -> None:
    config = write_config(fault_injection={"verbose": True})
    run = command("--config", config, "--batch-size", "250", "--probability", "1")
    assert "Fault injection enabled: 5 injection layers added" in run.err
    assert "Fault injection enabled" not in run.out


def test_selected_layers_are_named(command: Callable[..., Run]) -> None:
    run = command(*FAST, "--layer", "0,features.5", "--layer", "class*", "--probability", "1")
    assert "Injection layers: 3 of 5 (input_quant, features.5, classifier.2)" in run.out
    selected = [layer["selected"] for layer in document()["injection_layers"]]
    assert selected == [True, False, True, False, True]
    counts = document()["statistics"]["layers"].values()
    assert [layer["total_activations"] > 0 for layer in counts] == selected


def test_hw_mask_is_said(command: Callable[..., Run]) -> None:
    config = write_config(fault_injection={"hw_mask": True, "frequency_value": 64})
    run = command("--config", config, "--batch-size", "250", "--probability", "1")
    assert "Hardware mask: 64 parallel units" in run.out
    # ceil(64 * 1 %) is one unit of 64, in layers of a multiple of 64 elements.
    assert document()["results"][0]["injection_rate"] == pytest.approx(100 / 64)


def test_layer_mode_tells_the_layer_of_each_run(command: Callable[..., Run]) -> None:
    run = command(*FAST, "--mode", "layer", "--num-runs", "4", "--probability", "20")
    struck = document()["results"][0]["run_layers"]
    assert "Mode: layer (one drawn for each run)" in run.out
    assert f"Layer of each run: {', '.join(map(str, struck))}" in run.out
    assert len(set(struck)) > 1


def test_layer_flag_limits_what_layer_mode_draws_from(command: Callable[..., Run]) -> None:
    config = write_config(fault_injection={"mode": "layer", "injection_layer": 0})
    assert command("--config", config, "--batch-size", "250").status == 0
    assert document()["results"][0]["run_layers"] == [0]
    assert command("--config", config, "--batch-size", "250", "--layer", "3").status == 0
    assert document("fault_eval_random_2.json")["results"][0]["run_layers"] == [3]


# -- the figures ----------------------------------------------------------------------------


def test_results_are_those_of_the_library(command: Callable[..., Run]) -> None:
    command(*FAST, "--sweep", "1,10", "--num-runs", "2", "--injection-type", "msb_flip")
    experiment = load_experiment("digits")
    model, _ = experiment_parts.load_model(experiment, "bundled:digits")
    data = experiment_parts.open_test_data(experiment)
    batches = experiment_parts.Batches(data.dataset, 64)
    faults = {"enabled": True, "apply_during": "eval", "seed": 42, "injection_type": "msb_flip"}
    evaluation = FaultEvaluation(FullRunner(fxfault.transform(model, faults), batches), num_runs=2)
    assert evaluation.baseline() == accuracy(model, batches)
    found = document("fault_eval_msb_flip.json")
    assert found["baseline"] == evaluation.baseline()
    for entry, result in zip(found["results"], evaluation.sweep([1, 10]), strict=True):
        assert entry["runs"] == list(result.runs)
        assert (entry["mean"], entry["std"]) == (result.mean, result.std)
        assert entry["degradation"] == result.degradation > 0


def test_the_same_command_writes_the_same_bytes(command: Callable[..., Run]) -> None:
    argv = [*FAST, "--sweep", "1,5", "--csv", "a.csv", "--plot", "a.svg"]
    names = ("fault_eval_random.json", "a.csv", "a.svg")
    command(*argv)
    first = [Path(name).read_bytes() for name in names]
    command(*argv)
    assert [Path(name).read_bytes() for name in names] == first


def test_another_seed_draws_other_faults_and_the_batch_size_does_not(
    command: Callable[..., Run],
) -> None:
    runs = []
    for flags in (["--seed", "1"], ["--seed", "2"], ["--seed", "1", "--batch-size", "99"]):
        command(*FAST, "--probability", "5", "--num-runs", "2", *flags, "--output", "r.json")
        runs.append(document("r.json")["results"][0]["runs"])
    assert runs[0] != runs[1]
    assert runs[0] == runs[2]


def test_per_layer_ranks_each_site_and_gives_all_together_too(command: Callable[..., Run]) -> None:
    run = command(
        *FAST, "--per-layer", "--probability", "20", "--layer", "features.*", "--csv", "l.csv"
    )
    found = document()
    assert len(found["results"]) == 1
    assert found["results"][0]["degradation"] > 0
    assert {entry["name"] for entry in found["per_layer"]} == {
        "features.2",
        "features.5",
        "features.9",
    }
    costs = [entry["degradation"] for entry in found["per_layer"]]
    assert costs == sorted(costs, reverse=True)
    ranked = re.findall(r"^ +(\d) \| +(\d) \| .* \| ([\w.]+\.\d)$", run.out, flags=re.MULTILINE)
    assert ranked == [
        (str(place), str(entry["index"]), entry["name"])
        for place, entry in enumerate(found["per_layer"], start=1)
    ]
    rows = table("l.csv")
    assert [row["layer"] for row in rows] == ["all", *(str(e["index"]) for e in found["per_layer"])]


# -- what it writes -------------------------------------------------------------------------


def keys_of(value: Any, path: str) -> set[str]:
    """The paths of all keys, as docs/eval-json.md writes them."""
    opaque = ("config", "model.kwargs", "dataset.kwargs")
    if path in opaque or not isinstance(value, (dict, list)):
        return {path}
    if isinstance(value, list):
        return {path}.union(*(keys_of(item, f"{path}[]") for item in value)) - {f"{path}[]"}
    names = {key: "*" if path.endswith((".layers", "skipped")) else key for key in value}
    below = (keys_of(value[key], f"{path}.{name}".lstrip(".")) for key, name in names.items())
    own = {path} if path.endswith(("statistics", ".layers")) else set()
    return own.union(*below)


def documented_keys() -> set[str]:
    text = (DOCS / "eval-json.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([\w.*\[\]]+)` \|", text, flags=re.MULTILINE))


def test_the_documentation_names_exactly_the_keys_that_are_written(
    command: Callable[..., Run],
) -> None:
    command(*FAST, "--per-layer", "--probability", "1")
    written = keys_of({**document(), "skipped": {"some.layer": "why"}}, "")
    same_as_statistics = ("results[].statistics.", "per_layer[].statistics.")
    own = {key for key in written if not key.startswith(same_as_statistics)}
    assert own == documented_keys()
    for prefix, like in zip(same_as_statistics, ("", "layers.*."), strict=True):
        parts = {key.removeprefix(prefix) for key in written if key.startswith(prefix)}
        whole = {key.removeprefix(f"statistics.{like}") for key in own}
        assert parts
        assert parts <= whole


def test_the_json_says_what_was_evaluated(command: Callable[..., Run]) -> None:
    command(*FAST, "--probability", "1")
    found = document()
    assert found["schema"] == "fxfault-eval/1"
    assert found["complete"] is True
    assert found["command"] == "fxfault-eval --config digits --batch-size 250 --probability 1"
    assert re.fullmatch("[0-9a-f]{64}", found["checkpoint"]["sha256"])
    assert (found["seed"], found["device"], found["device_name"]) == (42, "cpu", None)
    assert found["versions"]["torch"] == torch.__version__
    assert found["dataset"]["samples"] == 500
    assert [layer["bit_width"] for layer in found["injection_layers"]] == [8, 4, 4, 4, 4]
    assert found["config"]["fault_injection"]["probability"] == 1.0
    assert found["per_layer"] is None
    assert found["statistics"] == found["results"][0]["statistics"]


def test_output_stands_in_the_current_folder(command: Callable[..., Run]) -> None:
    """Not beside the checkpoint, as the specification has it: folders of weights are shared."""
    Path("weights").mkdir()
    file = save_weights("weights/best.pth")
    run = command(*FAST, "--checkpoint", file, "--probability", "1")
    assert "Results saved to: fault_eval_random.json\n" in run.out
    assert document()["checkpoint"]["path"] == file
    assert os.listdir("weights") == ["best.pth"]


SECOND_FILE = "fault_eval_random_2.json (fault_eval_random.json is kept: it holds something else)"


@pytest.fixture(scope="module")
def one_percent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results of an evaluation of one percent."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("one_percent"))
        assert evaluate.main([*FAST, "--probability", "1"]) == 0
        return Path("fault_eval_random.json").read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        ["--probability", "2"],
        ["--sweep", "1,2"],
        ["--probability", "1", "--num-runs", "2"],
        ["--probability", "1", "--per-layer"],
        ["--probability", "1", "--seed", "1"],
        ["--probability", "1", "--checkpoint", "bundled:digits_fat"],
        ["--num-faults", "1"],
    ],
    ids=" ".join,
)
def test_another_evaluation_gets_another_file(
    command: Callable[..., Run], one_percent: bytes, other: list[str]
) -> None:
    Path("fault_eval_random.json").write_bytes(one_percent)
    run = command(*FAST, *other)
    assert f"Results saved to: {SECOND_FILE}\n" in run.out
    assert Path("fault_eval_random.json").read_bytes() == one_percent
    assert sorted(os.listdir()) == ["fault_eval_random.json", "fault_eval_random_2.json"]


def test_the_same_evaluation_again_takes_the_place_of_its_own(
    command: Callable[..., Run], one_percent: bytes
) -> None:
    Path("fault_eval_random.json").write_bytes(one_percent)
    for _ in range(2):
        run = command(*FAST, "--probability", "2")
        assert f"Results saved to: {SECOND_FILE}\n" in run.out
    assert "Results saved to: fault_eval_random.json\n" in command(*FAST, "--probability", "1").out
    found = document()
    found["command"] = json.loads(one_percent)["command"]
    assert found == json.loads(one_percent)
    assert sorted(os.listdir()) == ["fault_eval_random.json", "fault_eval_random_2.json"]


def test_weights_that_were_trained_anew_are_another_evaluation(command: Callable[..., Run]) -> None:
    file = save_weights("best.pth")
    command(*FAST, "--checkpoint", file, "--probability", "1")
    state = torch.load(file, weights_only=True)
    state["classifier.3.bias"] += 1
    torch.save(state, file)
    run = command(*FAST, "--checkpoint", file, "--probability", "1")
    assert "Results saved to: fault_eval_random_2.json (" in run.out


def test_files_that_are_no_evaluation_are_kept(command: Callable[..., Run]) -> None:
    """Whatever has the name: notes, another schema, nothing, a folder, a link, a pipe."""
    names = ["fault_eval_random.json", *(f"fault_eval_random_{n}.json" for n in range(2, 9))]
    contents = ["my notes", "[]", "", '{"schema": "fxfault-eval/0"}', "[" * 100_000]
    for name, content in zip(names, contents, strict=False):
        Path(name).write_text(content, encoding="utf-8")
    Path(names[5]).mkdir()
    Path(names[6]).symlink_to("nowhere.json")
    os.mkfifo(names[7])
    argv = [*FAST, "--probability", "1", "--csv", "fault_eval_random_9.json"]
    run = command(*argv)
    assert (run.status, run.err) == (0, "")
    assert "Results saved to: fault_eval_random_10.json (fault_eval_random.json is" in run.out
    for name, content in zip(names, contents, strict=False):
        assert Path(name).read_text(encoding="utf-8") == content
    assert not Path("nowhere.json").exists()
    assert document("fault_eval_random_10.json")["complete"] is True


def test_a_name_that_is_taken_while_it_works_is_left_alone(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations that run at once in one folder both keep their results."""
    evaluated = FaultEvaluation.baseline

    def baseline(self: FaultEvaluation) -> float:
        Path("fault_eval_random.json").write_text("of another", encoding="utf-8")
        return evaluated(self)

    monkeypatch.setattr(FaultEvaluation, "baseline", baseline)
    assert "saved to: fault_eval_random_2.json (" in command(*FAST, "--probability", "1").out
    assert Path("fault_eval_random.json").read_text(encoding="utf-8") == "of another"


def test_weights_that_are_replaced_while_it_evaluates_are_said_at_the_end(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_weights("best.pth")
    loaded, evaluated = Path(file).read_bytes(), FaultEvaluation.baseline

    def baseline(self: FaultEvaluation) -> float:
        Path(file).write_bytes(b"others")
        return evaluated(self)

    monkeypatch.setattr(FaultEvaluation, "baseline", baseline)
    run = command(*FAST, "--checkpoint", file, "--probability", "1")
    assert run.status == 2
    assert re.fullmatch(
        r"error: checkpoint 'best\.pth' was replaced while the evaluation ran \(.*\): the "
        r"written results are those of the old file; .*\n",
        run.err,
    )
    written = document("fault_eval_random.json")
    assert written["checkpoint"]["sha256"] == hashlib.sha256(loaded).hexdigest()


def test_a_full_disk_leaves_no_empty_file(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fxfault.cli.terminal.outputs.write_atomically", full)
    run = command(*FAST, "--probability", "1")
    assert (run.status, "No space left" in run.err) == (2, True)
    assert os.listdir() == []


def test_an_interrupted_evaluation_gives_way_to_a_whole_one_and_not_the_other_way_round(
    command: Callable[..., Run],
    interrupt_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    argv = [*FAST, "--sweep", "1,2"]
    interrupt_after(2)
    assert command(*argv).status == 130
    assert document()["complete"] is False
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*argv).status == 0
    assert document()["complete"] is True
    interrupt_after(2)
    run = command(*argv)
    assert (run.status, "saved to: fault_eval_random_2.json (" in run.out) == (130, True)
    assert document()["complete"] is True


def test_an_existing_output_is_replaced_and_a_link_stays_a_link(
    command: Callable[..., Run],
) -> None:
    Path("real.json").write_text("old", encoding="utf-8")
    Path("link.json").symlink_to("real.json")
    command(*FAST, "--probability", "1", "--output", "link.json")
    assert Path("link.json").is_symlink()
    assert document("real.json")["complete"] is True


@pytest.mark.parametrize(
    ("name", "start"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.PDF", b"%PDF")]
)
def test_pictures_are_of_the_format_that_their_name_says(
    command: Callable[..., Run], name: str, start: bytes
) -> None:
    run = command(*FAST, "--sweep", "0,1,30", "--plot", name)
    assert f"Picture saved to: {name}" in run.out
    assert Path(name).read_bytes().startswith(start)


def test_csv_has_one_row_for_each_probability(command: Callable[..., Run]) -> None:
    command(*FAST, "--sweep", "0,5", "--num-runs", "2", "--csv", "t.csv")
    rows = table("t.csv")
    for row, entry in zip(rows, document()["results"], strict=True):
        assert row["layer"] == "all"
        for key in ("probability", "mean", "std", "degradation", "injection_rate"):
            assert float(row[key]) == pytest.approx(entry[key], rel=1e-9)
        assert [float(row["run_0"]), float(row["run_1"])] == entry["runs"]


# -- pictures -------------------------------------------------------------------------------


def svg_text(picture: bytes) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)<", picture.decode()))


def result_of(rate: dict[str, Any], *accuracies: float, index: int | None = None) -> CellResult:
    """A result of trials on 1,000 samples, of which 900 are right without faults."""
    layers = None if index is None else [f"block.{index}"]
    cell = Cell.of(injection_type="random", layers=layers, **rate)
    counts = {"samples": 1000, "golden_correct": 900, "sdc": 9, "critical_sdc": 7, "top5": None}
    seen = {"faults": 60, "elements": 1200, "struck": 30, "masked": 21, "seconds": 0.1}
    rows = [
        TrialRow(cell=cell.key, trial=k, correct=round(10 * reached), **counts, **seen)
        for k, reached in enumerate(accuracies)
    ]
    return CellResult(cell=cell, rows=tuple(rows), index=index)


def layer_results(number: int, **rate: Any) -> list[CellResult]:
    """Of sites struck alone, the most vulnerable, which is the last one, first."""
    rate = rate or {"probability": 5.0}
    return [result_of(rate, 90.0 - i / 2, 80, index=i) for i in reversed(range(number))]


def test_a_ranking_of_many_sites_shows_the_worst_and_says_so() -> None:
    text = svg_text(plots.ranking_picture(layer_results(100), "svg"))
    assert "the 40 most vulnerable of 100" in text
    assert "block.99" in text
    assert "block.59" not in text
    few = svg_text(plots.ranking_picture(layer_results(40), "svg"))
    assert "most vulnerable" not in few
    assert "block.0" in few


@pytest.mark.parametrize(
    ("probabilities", "scale"),
    [((0, 1, 50), True), ((0.001, 1), True), ((0, 5, 10), False), ((5,), False), ((0,), False)],
)
def test_probabilities_far_apart_are_drawn_on_a_logarithmic_axis(
    probabilities: tuple[float, ...], scale: bool
) -> None:
    results = [result_of({"probability": p}, 90.0 - p / 2, 89.0 - p / 2) for p in probabilities]
    text = svg_text(plots.sweep_picture(results, "random", 10.0, "svg"))
    assert ("logarithmic" in text) is scale
    assert all(format(p, "g") in text.split() for p in probabilities)
    assert "golden, no faults (90.00%)" in text
    assert "mean ± std of 2 runs" in text


@pytest.mark.parametrize(("mean", "shown"), [(20.0, True), (85.0, False)])
def test_the_chance_level_is_drawn_where_accuracy_comes_near_it(mean: float, shown: bool) -> None:
    result = result_of({"probability": 5.0}, mean)
    text = svg_text(plots.sweep_picture([result], "random", 10.0, "svg"))
    assert ("chance (10%)" in text) is shown


def test_ties_share_a_rank_and_one_run_says_that_it_has_no_interval(
    command: Callable[..., Run],
) -> None:
    run = command(*FAST, "--per-layer", "--probability", "0")
    assert {(entry["rank"], *entry["rank_interval"]) for entry in document()["per_layer"]} == {
        (1, 1, 5)
    }
    assert "No site lost accuracy.\n" in run.out
    assert "; one run: no interval; give --num-runs 2 or more)" in run.out
    picture = command(*FAST, "--per-layer", "--probability", "0", "--plot", "p.svg")
    assert picture.status == 0
    assert "No site lost accuracy" in svg_text(Path("p.svg").read_bytes())


# -- a network and data of the user's own ---------------------------------------------------

OWN = """
import torch
from brevitas.nn import QuantIdentity, QuantLinear
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.quant = QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.linear = QuantLinear(6, width, bias=True)

    def forward(self, x):
        return self.linear(self.quant(x)), "auxiliary"

def net(width):
    torch.manual_seed(0)
    made = Net(width).train()
    made(torch.randn(32, 6))
    return made

def data(split, size):
    g = torch.Generator().manual_seed(size)
    return torch.utils.data.TensorDataset(
        torch.randn(size, 6, generator=g), torch.randint(4, (size,), generator=g)
    )
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """Give a function that writes a configuration which names factories in the folder."""
    module = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(OWN, encoding="utf-8")

    def write(**faults: Any) -> str:
        content = {
            "dataset": {"name": f"{module}:data", "kwargs": {"size": 30}},
            "model": {"name": f"{module}:net", "kwargs": {"width": 4}},
            "fault_injection": {"probability": 50.0, "track_statistics": True, **faults},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        made = build_model(
            f"{module}:net",
            num_classes=2,
            in_channels=1,
            image_size=(1, 1),
            weight_bit_width=8,
            act_bit_width=8,
            kwargs={"width": 4},
        )
        torch.save({"state_dict": made.state_dict()}, tmp_path / "own.pt")
        return "own.yaml"

    return write


def test_factories_in_the_current_folder(
    command: Callable[..., Run], own: Callable[..., str]
) -> None:
    run = command("--config", own(), "--checkpoint", "own.pt", "--plot", "own.png")
    assert run.status == 0, run.err
    found = document()
    assert found["dataset"]["num_classes"] is None  # and no chance level in the picture
    assert found["results"][0]["statistics"]["total_activations"] == 30 * 6
    assert [layer["name"] for layer in found["injection_layers"]] == ["quant"]


def test_the_seed_section_is_honoured(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "manual_seed", asked.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    config = write_config(seed={"value": 7, "deterministic": True})
    assert command("--config", config, "--batch-size", "250", "--probability", "1").status == 0
    assert asked == [7, ((True,), {"warn_only": True})]
    asked.clear()
    config = write_config(seed={"enabled": False, "deterministic": True})
    assert command("--config", config, "--batch-size", "250", "--probability", "1").status == 0
    assert asked == []


# -- progress -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "flags", "shown"),
    [(True, [], True), (True, ["--no-progress"], False), (False, [], False)],
)
def test_a_bar_is_shown_on_a_terminal_alone(
    command: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    flags: list[str],
    shown: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    run = command(*FAST, "--probability", "1", *flags)
    assert ("samples/s]" in run.err) is shown
    assert "samples/s]" not in run.out
    assert "Accuracy degradation" in run.out


def test_without_tqdm_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    made = progress.Progress(wanted=True)
    made.start(10)
    made.advance(5)
    made.say("line")
    made.close()
    assert capsys.readouterr() == ("line\n", "")


# -- incremental runs -----------------------------------------------------------------------


@pytest.fixture
def untracked(command: Callable[..., Run]) -> str:
    """A configuration without statistics, with which runs are incremental."""
    return write_config(fault_injection={"track_statistics": False})


@pytest.mark.parametrize("options", [("--cache-memory", "0"), ("--cache-memory", "64K")])
def test_results_do_not_depend_on_the_memory(
    command: Callable[..., Run], untracked: str, options: tuple[str, ...]
) -> None:
    flags = ("--config", untracked, "--batch-size", "250", "--probability", "0.05", "--per-layer")
    command(*flags)
    free = document()
    assert command(*flags, *options, "--verify", "100").status == 0
    small = document()
    for key in ("baseline", "results", "per_layer"):
        assert small[key] == free[key]


def test_why_batches_are_run_whole_is_said(
    command: Callable[..., Run], untracked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxfault.evaluation.incremental import golden_run

    why = golden_run.Independence("it is a test", mixing=True)
    monkeypatch.setattr(golden_run, "independence", lambda *_: why)
    run = command("--config", untracked, "--batch-size", "250")
    assert "Note: batches are run whole: it is a test\n" in run.out


def test_statistics_make_runs_full_which_is_said_where_it_matters(
    command: Callable[..., Run],
) -> None:
    assert "every run is a full one" not in command(*FAST).out
    assert "statistics are tracked" in command(*FAST, "--verify", "5").out


def test_a_prediction_that_is_not_verified_ends_the_command(
    command: Callable[..., Run], untracked: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    evaluate_rightly = incremental.Evaluation.run

    def wrong(self: Any) -> None:
        evaluate_rightly(self)
        self.top[0] = self.top[0].flip(0)

    monkeypatch.setattr(incremental.Evaluation, "run", wrong)
    run = command("--config", untracked, "--batch-size", "250", "--verify", "100")
    assert run.status == 2
    assert run.err.startswith("error: verify: batch 0, sample 0: ")


@pytest.mark.parametrize("options", [(), ("--verify", "50")])
def test_compiled_runs_give_the_same_results(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    flags = (*FAST, "--batch-size", "150")  # The last batch is smaller.
    command(*flags)
    plain = document()
    real = passes.compilation.compile

    def quickly(model: nn.Module, *inputs: Any, **options: Any) -> Any:
        return real(model, *inputs, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(fxfault, "compile", quickly)
    run = command(*flags, "--compile", *options)
    assert "Note: compiled: without faults, the outputs for all data are bit for bit" in run.out
    assert document()["results"] == plain["results"]


def test_why_nothing_is_compiled_is_said(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = command(*FAST, "--compile")
    assert run.status == 0
    assert "Note: not compiled: torch.compile needs a C++ compiler" in run.out


def test_only_a_frozen_network_is_compiled(command: Callable[..., Run]) -> None:
    run = command(*FAST, "--compile", "--no-freeze")
    assert run.status == 2
    assert run.err.startswith("error: --compile needs a frozen network")


# -- faults that are no probability ---------------------------------------------------------


def test_numbers_of_faults_are_said_everywhere(command: Callable[..., Run]) -> None:
    argv = ["--num-faults", "0,2,40", "--layer", "features.*", "--csv", "k.csv", "--plot", "k.svg"]
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
    assert "Faults of the configuration" in text
    assert "msb_flip at 2 % + random, 4 a sample faults" in text
    for options in (["--probability", "0"], ["--layer", "0"], ["--per-layer"], ["--num-faults=1"]):
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


# -- a small campaign -----------------------------------------------------------------------


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
        for key, estimate in (("interval", "accuracy"), ("sdc_interval", "sdc")):
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


# -- Ctrl-C ---------------------------------------------------------------------------------


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give a function that sets after how many evaluations Ctrl-C is pressed."""

    def set_up(evaluations: int) -> None:
        left = [evaluations]
        golden, run = FullRunner.golden, Trials.run

        def counted(real: Callable[..., Any], *arguments: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*arguments)

        def first(self: FullRunner, on_batch: Any = None) -> Any:
            return golden(self, on_batch) if self._golden else counted(golden, self, on_batch)

        monkeypatch.setattr(FullRunner, "golden", first)
        monkeypatch.setattr(Trials, "run", lambda *arguments: counted(run, *arguments))

    return set_up


def test_ctrl_c_keeps_the_finished_probabilities(
    command: Callable[..., Run], interrupt_after: Callable[[int], None]
) -> None:
    interrupt_after(1 + 2 * 2 + 1)  # in the middle of the third probability
    argv = ["--sweep", "1,2,5,10", "--num-runs", "2", "--csv", "c.csv", "--plot", "c.png"]
    run = command(*FAST, *argv)
    assert run.status == 130
    assert (
        run.err
        == "interrupted: 2 of 4 probabilities done and kept; the JSON says complete: false\n"
    )
    assert document()["complete"] is False
    assert [entry["probability"] for entry in document()["results"]] == [1.0, 2.0]
    assert len(Path("c.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert Path("c.png").stat().st_size > 0


def test_ctrl_c_keeps_the_finished_layers(
    command: Callable[..., Run], interrupt_after: Callable[[int], None]
) -> None:
    interrupt_after(1 + 1 + 3)
    run = command(*FAST, "--per-layer", "--plot", "c.png")
    assert run.status == 130
    assert run.err == "interrupted: 3 of 5 layers done and kept; the JSON says complete: false\n"
    assert {entry["index"] for entry in document()["per_layer"]} == {0, 1, 2}


def test_ctrl_c_before_the_first_layer_draws_no_picture(
    command: Callable[..., Run], interrupt_after: Callable[[int], None], tmp_path: Path
) -> None:
    interrupt_after(2)
    assert command(*FAST, "--per-layer", "--plot", "c.png").status == 130
    assert document()["per_layer"] == []
    assert os.listdir(tmp_path) == ["fault_eval_random.json"]


@pytest.mark.parametrize("evaluations", [0, 1])
def test_ctrl_c_before_the_first_result_writes_nothing(
    command: Callable[..., Run],
    interrupt_after: Callable[[int], None],
    tmp_path: Path,
    evaluations: int,
) -> None:
    interrupt_after(evaluations)
    run = command(*FAST, "--sweep", "1,2")
    assert run == (130, run.out, "interrupted before the first result: nothing was written\n")
    assert os.listdir(tmp_path) == []


def test_a_real_interrupt(tmp_path: Path) -> None:
    argv = [*FAST, "--sweep", "0,1,2,5,10,20,50,100", "--num-runs", "8"]
    with forked.command("fxfault-eval", argv, folder=tmp_path) as process:
        for line in process.stdout:  # Lines come as they are printed, also in a pipe.
            if "probability 1%" in line:
                process.send_signal(signal.SIGINT)
                break
        assert process.wait() == 130
        err = process.stderr
    assert "1 of 8 probabilities done and kept" in err
    assert "Traceback" not in err
    assert len(document(str(tmp_path / "fault_eval_random.json"))["results"]) == 1


# -- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (10.0, 1, "10.0%"),
        (0.05, 1, "0.05%"),
        (1e-7, 1, "1e-07%"),
        (100.0, 0, "100%"),
        (12.5, 0, "12.5%"),
    ],
)
def test_percentages_keep_all_their_digits(value: float, decimals: int, text: str) -> None:
    assert percent(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"), [(5.14, "+5.14"), (-0.4, "-0.40"), (-0.001, "+0.00"), (0.0, "+0.00")]
)
def test_differences_have_a_sign_and_no_negative_zero(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_small_data_is_read_once(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    read: list[int] = []

    class Data:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            read.append(index)
            return torch.full((2,), float(index)), index

    monkeypatch.setattr(experiment_parts, "KEPT_BYTES", kept_bytes)
    batches = experiment_parts.Batches(Data(), 2)
    next(iter(batches))  # A pass that was not finished keeps nothing.
    read.clear()
    passes = [[labels.tolist() for _, labels in batches] for _ in range(3)]
    assert passes == [[[0, 1], [2, 3], [4]]] * 3
    assert read == list(range(5)) * (1 if kept_bytes else 3)


def test_data_that_fails_is_an_error_that_quotes_it() -> None:
    class Data:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            raise ZeroDivisionError("no\nluck")

    with pytest.raises(DataError, match="cannot be read: ZeroDivisionError: no luck"):
        list(experiment_parts.Batches(Data(), 2))


@pytest.mark.parametrize(
    ("operations", "environment", "threads"),
    [(1e6, {}, [1]), (1e10, {}, []), (1e6, {"OMP_NUM_THREADS": "4"}, [])],
)
def test_small_networks_run_on_one_thread_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    operations: float,
    environment: dict[str, str],
    threads: list[int],
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process_setup.fit_threads(int(operations), torch.device("cpu"))
    assert asked == threads


@pytest.mark.parametrize(
    ("argv", "status"), [(["--help"], 0), (["--confg", "digits"], 2), (["--sweep", "x"], 2)]
)
def test_help_and_a_bad_flag_do_not_import_what_is_slow(argv: list[str], status: int) -> None:
    program = (
        "import sys; from fxfault.cli.evaluate import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit as end: assert end.code == int(sys.argv[1]), end.code\n"
        "slow = {'torch', 'brevitas', 'numpy', 'matplotlib', 'tqdm', 'pydantic', 'yaml'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(status)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout) is (status == 0)


def test_help_names_every_option_of_the_specification() -> None:
    text = evaluate.make_parser().format_help()
    for flag in "config checkpoint probability injection-type mode sweep num-runs output".split():
        assert f"--{flag}" in text
    assert "--no-progress" in text
