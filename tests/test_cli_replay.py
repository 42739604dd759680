"""`fxfault eval` with a list of faults: `--replay`, and `faults: {replay: FILE}`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Run
from torch import nn

import fxfault
from fxfault.cli import evaluate
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import Batches, load_model, open_test_data
from fxfault.faults import Word, get_fault_model

FAST = ("--config", "digits", "--batch-size", "250")
OTHERS = "Injection,Layer,TensorIndex,Bit\n"
ROW = '0,features.2,"(3, 1, 2)",3\n'


@pytest.fixture
def command(run_command: Callable[..., Run]) -> Callable[..., Run]:
    """Give a function that runs the command in an empty folder."""
    return functools.partial(run_command, evaluate.main)


def document(name: str = "fault_eval_faults.json") -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def faulty_digits(**settings: Any) -> tuple[nn.Module, Any]:
    """The bundled network with faults, and all of its test data in one batch."""
    experiment = load_experiment("digits")
    data = open_test_data(experiment)
    model, _ = load_model(experiment, "bundled:digits")
    config = {"enabled": True, "apply_during": "eval", "seed": 5, **settings}
    (batch,) = Batches(data.dataset, 500)
    return fxfault.transform(model.eval(), config), (batch.inputs[0], batch.targets)


@pytest.mark.parametrize("batch_size", ["64", "500"])
def test_a_listed_trial_has_the_same_accuracy(command: Callable[..., Run], batch_size: str) -> None:
    model, (images, labels) = faulty_digits(injection_type="random", probability=2.0)
    found = model.faults.listing(images, trial=17)
    model.faults.reset(trial=17)
    with torch.no_grad():
        correct = int((model(images).argmax(1) == labels).sum())
    found.to_csv("trial.csv")
    run = command("--config", "digits", "--batch-size", batch_size, "--replay", "trial.csv")
    assert (run.status, run.err) == (0, "")
    (result,) = document()["results"]
    assert result["runs"] == [100 * correct / 500]
    assert result["degradation"] > 1
    assert f"Evaluating with the replay of {Path('trial.csv').absolute()}..." in run.out
    assert sum(layer["injected_count"] for layer in result["statistics"]["layers"].values()) == len(
        found
    )


def test_the_file_may_be_named_in_the_configuration(command: Callable[..., Run]) -> None:
    Path("list.csv").write_text(OTHERS + ROW, encoding="utf-8")
    content = load_experiment("digits").to_dict()
    own = {"enabled": True, "seed": 3, "apply_during": "eval", "faults": {"replay": "list.csv"}}
    content["fault_injection"] = own
    Path("own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert command("--config", "own.yaml", "--output", "own.json").status == 0
    assert command(*FAST, "--replay", "list.csv").status == 0
    assert document("own.json")["results"][0]["runs"] == document()["results"][0]["runs"]
    shown = document()["config"]["fault_injection"]["faults"]
    assert shown == [{"replay": str(Path("list.csv").absolute())}]


def test_each_injection_is_a_run(command: Callable[..., Run]) -> None:
    flip, (images, labels) = faulty_digits(probability=0.0)
    expected = []
    for channel in (3, 5):
        found = flip.faults["features.2"]
        kept = found.observer
        word = get_fault_model("bit_flip", bit=3)

        def observe(x: Any, channel: int = channel, word: Any = word) -> Any:
            values = x.value.clone()
            codes = (values[:, channel, 1, 2] / x.scale).round().long()
            values[:, channel, 1, 2] = word.corrupt(codes, Word(4, False), None) * x.scale
            return values

        found.observer = observe
        with torch.no_grad():
            expected.append(100 * int((flip(images).argmax(1) == labels).sum()) / 500)
        found.observer = kept
    rows = ROW + '8,features.2,"(5, 1, 2)",3\n'
    Path("list.csv").write_text(OTHERS + rows, encoding="utf-8")
    assert command(*FAST, "--replay", "list.csv").status == 0
    assert document()["results"][0]["runs"] == expected
    assert (
        command(*FAST, "--replay", "list.csv", "--num-runs", "1", "--output", "a.json").status == 0
    )
    assert document("a.json")["results"][0]["runs"] == expected[:1]
    run = command(*FAST, "--replay", "list.csv", "--num-runs", "3")
    expected_error = (
        "--num-runs: got 3, allowed with these faults: up to 2, as the list has no more"
    )
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith(f"error: {expected_error}")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--probability", "0"), "--probability: given beside --replay, whose list says all"),
        (("--sweep", "1,2", "--seed", "0"), "--sweep, --seed: given beside --replay"),
        (("--num-faults", "2"), "--num-faults: given beside --replay"),
        (("--injection-type", "random"), "--injection-type: given beside --replay"),
        (("--layers", "stem"), "--layers: given beside --replay"),
        (("--mode", "layer"), "--mode: given beside --replay"),
        (("--per-layer",), "--per-layer: given beside --replay"),
        (("--output", "list.csv"), "--output: list.csv is the list of faults 1; name another file"),
        (("--num-runs", "2"), "--num-runs: got 2, allowed with these faults: up to 1, as every"),
    ],
)
def test_options_that_the_list_decides_are_refused(
    command: Callable[..., Run], options: tuple[str, ...], problem: str
) -> None:
    row = ROW.removeprefix("0,")
    Path("list.csv").write_text("Layer,TensorIndex,Bit\n" + row, encoding="utf-8")
    run = command(*FAST, "--replay", "list.csv", *options)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith(f"error: {problem}")
    assert run.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["list.csv"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Injection,Layer\n", "line 1: got the columns Injection, Layer; allowed: site, sample"),
        (OTHERS + "0,stem,1,1\n", "line 2, column Layer: no site 'stem'"),
        (OTHERS + "0,features.2,1,4\n", "line 2, column Bit: got 4, allowed: 0 to 3"),
        (
            OTHERS + ROW + "0,features.2,1024,1\n",
            "line 3, column TensorIndex: got 1024, allowed: 0",
        ),
        (OTHERS + '0,4,"(1, 2, 3)",1\n', "line 2, column TensorIndex: got (1, 2, 3), allowed: 1 c"),
        (
            OTHERS + "0,features.2,1,x\n",
            "line 2, column Bit: got 'x', allowed: a whole number from",
        ),
    ],
)
def test_a_bad_list_is_one_line_and_nothing_is_written(
    command: Callable[..., Run], text: str, problem: str
) -> None:
    Path("list.csv").write_text(text, encoding="utf-8")
    run = command(*FAST, "--replay", "list.csv")
    assert run.status == 2
    assert run.err.startswith(f"error: {Path('list.csv').absolute()}, {problem}")
    assert run.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["list.csv"]


def test_a_missing_list_is_one_line(command: Callable[..., Run]) -> None:
    run = command(*FAST, "--replay", "missing.csv")
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("error: replay: ")
    assert run.err.endswith("missing.csv: there is no such file; check the path\n")
