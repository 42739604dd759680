"""The command `fxfault inspect`: what it prints and writes, and what it says of bad input."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxfault.cli.inspect import main

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]

MODEL_FILE = """\
import brevitas.nn as qnn
from torch import nn


def build(width=4, branching=False):
    if branching:
        return Branching()
    return nn.Sequential(nn.Linear(width, 3), qnn.QuantReLU(), qnn.QuantIdentity(act_quant=None))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = qnn.QuantReLU()

    def forward(self, x):
        return self.act(x) if x.sum() > 0 else self.act(-x)
"""


@pytest.fixture
def command(run_command: Command) -> Command:
    """Run the command in a folder of its own; give its status, stdout and stderr."""
    return functools.partial(run_command, main)


def write_config(folder: Path, name: str = "my.yaml", **sections: Any) -> str:
    """A configuration of the digits network without a checkpoint, with changed sections."""
    config: dict[str, Any] = {
        "dataset": {"name": "digits"},
        "model": {"name": "quant_digits"},
        "fault_injection": {"enabled": True, "apply_during": "eval", "seed": 1},
    }
    for key, value in sections.items():
        config[key] = {**config.get(key, {}), **value} if value is not None else None
    (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return name


def write_model(folder: Path, **sections: Any) -> str:
    (folder / "my_model.py").write_text(MODEL_FILE, encoding="utf-8")
    kwargs = sections.pop("kwargs", {})
    model = {"name": "my_model:build", "kwargs": kwargs}
    return write_config(folder, model=model, dataset=None, **sections)


def one_line(outcome: Outcome) -> str:
    """The error message of an outcome that must be nothing else."""
    status, out, err = outcome
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def test_the_bundled_network(command: Command) -> None:
    status, out, err = command("--config", "digits")

    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "Model: quant_digits, samples of 1 x 8 x 8"
    assert lines[1].startswith("Checkpoint: bundled:digits (")
    assert lines[2] == "Faults: random 5 %, mode full_model, during eval"
    assert lines[4] == "QuantDigits: 5 sites, 5 armed in eval mode (seed 42)"
    rows = [line.split() for line in lines[7:12]]
    assert [row[1] for row in rows] == [
        *("input_quant", "features.2", "features.5", "features.9", "classifier.2")
    ]
    assert [row[4] for row in rows] == ["8", "4", "4", "4", "4"]
    assert [row[7] for row in rows] == ["64", "1024", "2048", "512", "64"]
    assert "Note:" not in out


def test_an_untrained_network_is_said_to_be_one(command: Command, tmp_path: Path) -> None:
    status, out, _ = command("--config", write_config(tmp_path))

    assert status == 0
    assert "Checkpoint: none\n" in out
    assert "Note: the network is untrained" in out


def test_a_checkpoint_of_the_configuration_need_not_be_there(
    command: Command, tmp_path: Path
) -> None:
    config = write_config(tmp_path, checkpoint={"path": "./best.pth"})

    status, out, _ = command("--config", config)

    assert status == 0
    assert "Note: there is no ./best.pth, which the configuration names as its checkpoint" in out
    assert "Note: the network is untrained" in out


def test_a_checkpoint_that_was_asked_for_must_be_there(command: Command) -> None:
    message = one_line(command("--config", "digits", "--checkpoint", "best.pth"))

    assert "checkpoint 'best.pth': there is no such file" in message


def test_layers_can_be_selected(command: Command) -> None:
    _, out, _ = command("--config", "digits", "--layers", "0,features.*", "--layers", "4")

    assert "5 armed" in out
    _, out, _ = command("--config", "digits", "--layers", "0,features.2")
    assert "2 armed" in out
    assert out.count("not selected") == 3


def test_a_layer_that_does_not_exist_lists_what_does(command: Command) -> None:
    message = one_line(command("--config", "digits", "--layers", "feature.2"))

    assert "did you mean 'features.2'?" in message
    assert "0 input_quant" in message


def test_faults_of_training_are_shown_in_train_mode(command: Command, tmp_path: Path) -> None:
    faults = {"apply_during": "train", "epoch_interval": 5, "step_interval": 0.3}

    _, out, _ = command("--config", write_config(tmp_path, fault_injection=faults))

    assert "during train, every 5 epochs, in 30 % of the steps" in out
    assert "5 armed in train mode" in out
    assert "  64  " in out


def test_disabled_faults_are_shown_as_such(command: Command, tmp_path: Path) -> None:
    _, out, _ = command("--config", write_config(tmp_path, fault_injection={"enabled": False}))

    assert "5 sites, 0 armed" in out
    assert out.count("injection is disabled") == 5


def test_code_and_diff_follow_the_table(command: Command) -> None:
    _, out, _ = command("--config", "digits", "--code", "--diff")

    table, code, diff = (out.index(start) for start in ("QuantDigits: ", "# Quant", "--- clean/"))
    assert table < code < diff
    assert "def forward(self, images" in out
    assert "+++ injected/QuantDigits" in out


def test_a_kept_forward_is_explained(command: Command, tmp_path: Path) -> None:
    config = write_model(tmp_path, kwargs={"branching": True})

    _, out, _ = command("--config", config, "--input-shape", "7")

    assert "(model)  Branching  kept  its forward branches on a value" in out


# -- samples --------------------------------------------------------------------------------


def test_without_a_data_set_no_sample_is_run(command: Command, tmp_path: Path) -> None:
    config = write_model(tmp_path, fault_injection={"unsupported": "skip"})

    status, out, _ = command("--config", config)
    assert status == 0
    assert "Note: no sample was run: name a data set in the configuration or --input-shape" in out
    assert "  2  QuantIdentity  its quantiser is disabled" in out

    _, out, _ = command("--config", config, "--input-shape", "5,4")
    assert "samples of 5 x 4" in out
    assert "  15  " in out


def test_a_data_set_of_the_users_own_shows_its_first_sample(
    command: Command, tmp_path: Path
) -> None:
    text = "import torch\n\ndef build(split):\n    return [(torch.zeros(2, 4), 0)]\n"
    (tmp_path / "my_data.py").write_text(text, encoding="utf-8")
    write_model(tmp_path)
    config = write_config(
        tmp_path,
        dataset={"name": "my_data:build"},
        model={"name": "my_model:build"},
        fault_injection={"unsupported": "skip"},
    )

    _, out, err = command("--config", config)

    assert err == ""
    assert "samples of 2 x 4" in out


def test_a_sample_that_the_model_does_not_take(command: Command) -> None:
    message = one_line(command("--config", "digits", "--input-shape", "3,8,8"))

    assert message.startswith("the model fails on one sample of zeros, shape (1, 3, 8, 8): ")
    assert message.endswith("give the shape of its input with --input-shape")


@pytest.mark.parametrize("shape", ["", "3,,2", "0", "-1", "3x3", "1.5"])
def test_a_shape_must_be_one(command: Command, shape: str) -> None:
    message = one_line(command("--config", "digits", f"--input-shape={shape}"))

    assert message == f"--input-shape: {shape!r} is not a shape such as 3,32,32"


# -- files ----------------------------------------------------------------------------------


def test_the_tables_as_json(command: Command, tmp_path: Path) -> None:
    _, out, _ = command("--config", "digits", "--json", "sites.json")

    assert out.endswith("\nTables saved to: sites.json\n")
    document = json.loads((tmp_path / "sites.json").read_text(encoding="utf-8"))
    assert document["schema"] == "fxfault-inspect/1"
    assert document["checkpoint"]["path"] == "bundled:digits"
    assert document["sample_shape"] == [1, 8, 8]
    assert document["config"]["model"]["name"] == "quant_digits"
    assert [site["elements"] for site in document["sites"]] == [64, 1024, 2048, 512, 64]


def test_the_drawing_as_dot(command: Command, tmp_path: Path) -> None:
    _, out, _ = command("--config", "digits", "--dot", "sites.dot")

    assert "Drawing saved to: sites.dot" in out
    text = (tmp_path / "sites.dot").read_text(encoding="utf-8")
    assert text.startswith('digraph "QuantDigits" {')
    assert text.count("FAULT ") == 5


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not there")
def test_the_drawing_as_svg(command: Command, tmp_path: Path) -> None:
    assert command("--config", "digits", "--svg", "sites.svg")[0] == 0

    assert ElementTree.parse(tmp_path / "sites.svg").getroot().tag.endswith("svg")


def test_without_graphviz_nothing_is_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    message = one_line(command("--config", "digits", "--svg", "a.svg", "--json", "b.json"))

    assert "install it" in message
    assert "--dot FILE" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--dot", "--svg", "--json"])
def test_a_folder_that_is_not_there_is_found_out(command: Command, flag: str) -> None:
    message = one_line(command("--config", "digits", flag, "nowhere/file"))

    assert message.startswith(f"{flag}: nowhere/file cannot be written: the folder ")
    assert message.endswith("nowhere does not exist")


def test_an_output_does_not_replace_the_configuration(command: Command, tmp_path: Path) -> None:
    config = write_config(tmp_path)

    message = one_line(command("--config", config, "--json", config))

    assert message == "--json: my.yaml is the configuration; name another file"


# -- bad input ------------------------------------------------------------------------------


def test_a_misspelt_flag_names_the_nearest(command: Command) -> None:
    message = one_line(command("--config", "digits", "--dif"))

    assert message == "unknown flag --dif (did you mean '--diff'?); see --help"


def test_a_configuration_without_a_model(command: Command) -> None:
    message = one_line(command("--config", "curriculum"))

    assert "has no section `dataset` and no section `model`" in message


def test_a_target_that_cannot_be_struck_is_an_error_unless_skipped(
    command: Command, tmp_path: Path
) -> None:
    message = one_line(command("--config", write_model(tmp_path)))

    assert "faults cannot strike 2 (its quantiser is disabled)" in message
    assert "`unsupported: skip`" in message


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--nonsense", 2)])
def test_help_and_bad_flags_import_nothing_heavy(argument: str, status: int) -> None:
    code = f"""
import sys
from fxfault.cli.inspect import main
try:
    main([{argument!r}])
except SystemExit as stop:
    assert stop.code == {status}, stop.code
assert not {{"torch", "brevitas", "numpy", "pydantic"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
