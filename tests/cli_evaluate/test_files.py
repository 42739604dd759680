"""`fxfault eval` as a user runs it: what it writes, tables and pictures among it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_evaluate.tools import FAST, document, svg_text, table
from commands import Run

from fxfault.campaign import Cell, FaultEvaluation
from fxfault.campaign.cell_result import CellResult
from fxfault.campaign.fault_evaluation import rank
from fxfault.cli import evaluate
from fxfault.evaluation.rows import TrialRow
from fxfault.experiment import load_experiment
from fxfault.experiment import parts as experiment_parts
from fxfault.results.pictures import plots
from fxfault.results.pictures.ranking import ranking_picture

DOCS = Path(__file__).parents[2] / "docs"


def save_weights(name: str = "weights.pt") -> str:
    model, _ = experiment_parts.load_model(load_experiment("digits"), "bundled:digits")
    torch.save(model.state_dict(), name)
    return name


# -- what it writes -----------------------------------------------------------------------


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
    assert found["command"] == "fxfault eval --config digits --batch-size 250 --probability 1"
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

    monkeypatch.setattr("fxfault.results.outputs.write_atomically", full)
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


# -- pictures -----------------------------------------------------------------------------


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
    text = svg_text(ranking_picture(rank(layer_results(100)), 95.0, "svg"))
    assert "the 40 weakest of 100" in text
    assert "block.99" in text
    assert "block.59" not in text
    few = svg_text(ranking_picture(rank(layer_results(40)), 95.0, "svg"))
    assert "weakest of" not in few
    assert "block.0" in few


@pytest.mark.parametrize(
    ("probabilities", "scale"), [((0, 1, 50), True), ((0.001, 1), True), ((0, 5, 10), False)]
)
def test_probabilities_far_apart_are_drawn_on_a_logarithmic_axis(
    probabilities: tuple[float, ...], scale: bool
) -> None:
    results = [result_of({"probability": p}, 90.0 - p / 2, 89.0 - p / 2) for p in probabilities]
    text = svg_text(plots.sweep_picture(results, "random", 10.0, "svg"))
    assert ("logarithmic" in text) is scale
    assert all(format(p, "g") in text.split() for p in probabilities)
    assert "golden, no faults (90.00%)" in text
    assert "mean of 2 runs, 95% interval" in text


@pytest.mark.parametrize("runs", [1, 2])
def test_a_single_rate_is_drawn_as_bars_with_its_interval(runs: int) -> None:
    result = result_of({"probability": 5.0}, *[80.0, 82.0][:runs])
    text = svg_text(plots.sweep_picture([result], "random", None, "svg"))
    assert "golden, no faults (90.00%)" in text
    assert f"random at 5% fault probability ({result.mean:.2f}%)" in text
    said = "mean of 2 runs, 95% interval" if runs == 2 else "one run, so no interval"
    assert said in text


@pytest.mark.parametrize(("mean", "shown"), [(20.0, True), (85.0, False)])
def test_the_chance_level_is_drawn_where_accuracy_comes_near_it(mean: float, shown: bool) -> None:
    result = result_of({"probability": 5.0}, mean)
    for results in ([result], [result, result_of({"probability": 1.0}, 85.0)]):
        text = svg_text(plots.sweep_picture(results, "random", 10.0, "svg"))
        assert ("chance (10%)" in text) is shown


def test_ties_share_a_rank_and_one_run_says_that_it_has_no_interval(
    command: Callable[..., Run],
) -> None:
    run = command(*FAST, "--per-layer", "--probability", "0")
    assert {(entry["rank"], *entry["rank_interval"]) for entry in document()["per_layer"]} == {
        (1, 1, 5)
    }
    assert "No site lost accuracy.\n" in run.out
    assert "; one run: no interval; two runs or more have one)" in run.out
    picture = command(*FAST, "--per-layer", "--probability", "0", "--plot", "p.svg")
    assert picture.status == 0
    assert "No site lost accuracy" in svg_text(Path("p.svg").read_bytes())
