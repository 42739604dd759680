"""`fxfault-eval` as a user runs it: what it prints, and its figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_evaluate.tools import FAST, document, table, write_config
from commands import Run

import fxfault
from fxfault.campaign import FaultEvaluation
from fxfault.evaluation import FullRunner, accuracy
from fxfault.experiment import load_experiment
from fxfault.experiment import parts as experiment_parts

# -- what it prints -----------------------------------------------------------------------


ONE_RUN = r"\(one run: no interval; two runs or more have one\)"


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

Verdict:
- The costliest cell(?s:.*?)more trials would give one\.

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

Verdict:
- The costliest cell is random at 2\.5% in all sites together: (?s:.*?) \(no interval\)
(?s:.*?)
- 1 of 2 cells has one trial and no interval of the accuracy: more trials would give one\.

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
    run = command(*FAST, "--layers", "0,features.5", "--layers", "class*", "--probability", "1")
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
    assert command("--config", config, "--batch-size", "250", "--layers", "3").status == 0
    assert document("fault_eval_random_2.json")["results"][0]["run_layers"] == [3]


# -- the figures --------------------------------------------------------------------------


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
        *FAST, "--per-layer", "--probability", "20", "--layers", "features.*", "--csv", "l.csv"
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
