"""Bad input to `fxfault eval`: a clear line for each problem, status 2, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from fxfault.cli import evaluate
from fxfault.errors import ConfigError
from fxfault.experiment import load_experiment
from fxfault.experiment import parts as experiment_parts
from fxfault.results import outputs

Fails = Callable[..., str]


@pytest.fixture
def fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fails:
    """Give a function that runs a command, checks how it fails, and returns its one line."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> str:
        before = listing()
        try:
            status = evaluate.main(argv)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        err = capsys.readouterr().err
        assert status == 2
        assert err.startswith("error: ")
        assert all(line.startswith("error: ") for line in err.splitlines())
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert listing() == before
        return err

    return run


def listing() -> dict[str, bytes]:
    files = (Path(folder, name) for folder, _, names in os.walk(".") for name in names)
    return {str(file): file.read_bytes() for file in files if "__pycache__" not in file.parts}


def write_config(name: str = "own.yaml", **sections: Any) -> str:
    """The digits experiment with some keys changed; a section that is None is left out."""
    content = load_experiment("digits").to_dict()
    for key, section in sections.items():
        content[key] = None if section is None else {**content[key], **section}
    Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return name


# -- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--sweep", "0,1,x"], ["--sweep", "item 3 of 3", "'x'", "from 0 to 100"]),
        (["--sweep", "0,,1"], ["--sweep", "item 2 of 3", "''"]),
        (["--sweep", "5,101"], ["--sweep", "item 2 of 2", "'101'"]),
        (["--sweep", "5,nan"], ["--sweep", "'nan'"]),
        (["--sweep", "5,1,5.0"], ["--sweep", "item 3 of 3", "'5.0' is there twice"]),
        (["--sweep", ""], ["--sweep", "item 1 of 1"]),
        (["--probability", "100.5"], ["--probability", "'100.5'", "from 0 to 100"]),
        (["--probability=-1"], ["--probability", "'-1'", "from 0 to 100"]),
        (["--probability", "inf"], ["--probability", "'inf'"]),
        (["--probability", "10%"], ["--probability", "'10%'"]),
        (["--num-runs", "0"], ["--num-runs", "'0'", "at least 1"]),
        (["--num-runs", "2.5"], ["--num-runs", "'2.5'", "integer"]),
        (["--batch-size", "-3"], ["--batch-size", "'-3'", "at least 1"]),
        (["--seed", "-1"], ["--seed", "'-1'", "from 0"]),
        (["--seed", str(2**63)], ["--seed", "2**63 - 1"]),
        (["--mode", "all"], ["--mode", "'all'", "full_model"]),
        (["--device", "gpu"], ["--device", "'gpu'", "cuda:N"]),
        (["--layers", "1,,2"], ["--layers", "'1,,2'", "empty item"]),
        (["--output", ""], ["--output", "''"]),
        (["--probabilty", "5"], ["unknown flag --probabilty", "did you mean '--probability'?"]),
        (["--prob", "5"], ["unknown flag --prob"]),
        (["digits", "more"], ["unrecognized arguments: more"]),
        (["more"], ["FILE is 'more' and --config is 'digits': give one of them"]),
        (["--layer", "1"], ["unknown flag --layer", "did you mean '--layers'?"]),
        (["--bit", "32"], ["--bit", "'32'", "from 0 to 31"]),
        (["--bit", "3"], ["--bit: got 3 (int)", "injection_type of 'bit_flip'"]),
        (["--set", "epochs"], ["--set", "'epochs'", "KEY=VALUE"]),
        (["--set", "epochs=3"], ["--set epochs: unknown key", "it belongs in training"]),
        (["--set", "training.epoch=3"], ["--set training.epoch", "did you mean 'epochs'?"]),
        (["--sweep", "1", "--probability", "2"], ["--probability", "--sweep"]),
        (["--sweep", "1,2", "--per-layer"], ["--per-layer", "--probability", "--sweep"]),
        (["--injection-type", "randm"], ["'randm'", "'lsb_flip'", "did you mean 'random'?"]),
    ],
)
def test_a_bad_command_line(fails: Fails, argv: list[str], parts: list[str]) -> None:
    line = fails("--config", "digits", *argv)
    assert all(part in line for part in parts), line


def test_no_configuration(fails: Fails) -> None:
    assert "--config" in fails()


# -- the configuration ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("fault_injection: {probabilty: 5}", ["fault_injection.probabilty", "'probability'"]),
        ("fault_injection: {probability: '5'}", ["fault_injection.probability", "'5' (str)"]),
        ("fault_injection: {probability: 500}", ["fault_injection.probability", "0 to 100"]),
        ("fault_injection: {injection_type: no}", ["injection_type", "booleans", "quotes"]),
        ("seed: {value: 1}\nseed: {value: 2}", ["seed", "1", "2"]),
        ("datset: {name: digits}", ["datset: unknown key", "'dataset'"]),
        ("dataset: [", ["bad.yaml"]),
        ("", ["bad.yaml", "empty"]),
        (
            "fault_injection: {probabilty: 5, mode: all}",
            [
                "error: bad.yaml: fault_injection.probabilty",
                "\nerror: bad.yaml: fault_injection.mode",
            ],
        ),
    ],
)
def test_a_bad_configuration(fails: Fails, text: str, parts: list[str]) -> None:
    Path("bad.yaml").write_text(text, encoding="utf-8")
    line = fails("--config", "bad.yaml", "--checkpoint", "bundled:digits")
    assert all(part in line for part in parts), line


def test_a_configuration_that_is_not_there(fails: Fails) -> None:
    assert "(did you mean 'digits'?)" in fails("--config", "digts")
    assert "no such file" in fails("--config", "configs/absent.yaml")


def test_a_network_in_place_of_its_configuration(fails: Fails) -> None:
    line = fails("my_nets.small:make")
    assert "no such file" in line
    assert "`fxfault init my_nets.small:make` writes" in line


def test_a_configuration_without_data_and_model_tells_what_to_add(fails: Fails) -> None:
    line = fails("--config", "layer_analysis", "--checkpoint", "bundled:digits")
    assert "layer_analysis has no section `dataset` and no section `model`" in line
    assert "`dataset: {name: digits}` and `model: {name: quant_digits}`" in line
    line = fails("--config", write_config(model=None))
    assert "own.yaml has no section `model`; add for instance" in line


def test_sections_are_checked_by_the_parts_too() -> None:
    experiment = load_experiment("layer_analysis")
    with pytest.raises(ConfigError, match="no section `dataset` and no section `model`"):
        experiment_parts.load_model(experiment, None)
    with pytest.raises(ConfigError, match="no section `dataset`"):
        experiment_parts.open_test_data(experiment)


# -- weights --------------------------------------------------------------------------------


def test_no_checkpoint_named(fails: Fails) -> None:
    line = fails("--config", write_config(checkpoint={"path": None}))
    assert "--checkpoint FILE" in line
    assert "checkpoint.path in own.yaml" in line


def test_a_checkpoint_that_is_not_there_is_found_out_first(fails: Fails) -> None:
    # Neither the data, which is not there either, nor the folder of the output is looked at.
    line = fails("--config", "quant_cnv_w2a2_cifar10")
    assert "./experiments/quant_cnv/best.pth" in line
    assert "there is no such file" in line
    assert "'bundled:digit'" in fails("--config", "digits", "--checkpoint", "bundled:digit")


class RunsCode:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def digits_state() -> dict[str, Any]:
    model, _ = experiment_parts.load_model(load_experiment("digits"), "bundled:digits")
    return dict(model.state_dict())


def with_a_broken_scale() -> dict[str, Any]:
    state = digits_state()
    scale = next(key for key in state if key.startswith("features.2") and "scaling" in key)
    return {**state, scale: torch.full_like(state[scale], float("nan"))}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (lambda: nn.Linear(2, 2).state_dict(), ["missing keys", "unexpected keys (weight, bias)"]),
        (with_a_broken_scale, ["NaN", "features.2"]),
        (lambda: {"weights": RunsCode()}, ["refused", "Python objects"]),
        (lambda: {"epoch": 3}, ["no weights"]),
    ],
    ids=["another-architecture", "nan-scale", "code", "no-weights"],
)
def test_a_checkpoint_that_cannot_be_used(
    fails: Fails, content: Callable[[], Any], parts: list[str]
) -> None:
    torch.save(content(), "bad.pt")
    line = fails("--config", "digits", "--checkpoint", "bad.pt")
    assert all(part in line for part in ["'bad.pt'", *parts]), line
    assert not Path("executed").exists()


def test_a_file_that_is_no_checkpoint(fails: Fails) -> None:
    Path("text.pt").write_text("hello", encoding="utf-8")
    assert "not a PyTorch checkpoint" in fails("--config", "digits", "--checkpoint", "text.pt")
    Path("folder").mkdir()
    assert "is a folder" in fails("--config", "digits", "--checkpoint", "folder")


# -- data and model -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "parts"),
    [
        ({"name": "cifar10", "kwargs": {"download": False}}, ["cifar10", "download is false"]),
        ({"name": "image_folder", "root": "absent"}, ["image_folder", "absent"]),
        ({"name": "digit"}, ["'digit' is unknown", "'digits'"]),
        ({"name": "absent_module:factory"}, ["no module 'absent_module'"]),
        ({"name": "fake"}, ["quant_digits", "8 x 8", "32 x 32"]),
    ],
)
def test_data_that_cannot_be_used(fails: Fails, dataset: dict[str, Any], parts: list[str]) -> None:
    line = fails("--config", write_config(dataset=dataset))
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"name": "quant_digit"}, ["'quant_digit' is unknown", "quant_digits"]),
        ({"name": "collections:OrderedDict"}, ["torch.nn.Module"]),
        ({"name": "quant_digits", "kwargs": {"bits": 3}}, ["unknown key 'bits'"]),
    ],
)
def test_a_model_that_cannot_be_built(
    fails: Fails, model: dict[str, Any], parts: list[str]
) -> None:
    line = fails("--config", write_config(model=model))
    assert all(part in line for part in parts), line


def test_a_model_that_does_not_take_the_data(fails: Fails) -> None:
    model = {"name": "torch.nn:Linear", "kwargs": {"in_features": 3, "out_features": 2}}
    torch.save(nn.Linear(3, 2).state_dict(), "linear.pt")
    line = fails("--config", write_config(model=model), "--checkpoint", "linear.pt")
    assert "the model fails on a batch of the data set, shape (64, 1, 8, 8): RuntimeError" in line


def test_a_model_without_targets(fails: Fails) -> None:
    model = {"name": "torch.nn:Linear", "kwargs": {"in_features": 8, "out_features": 2}}
    torch.save(nn.Linear(8, 2).state_dict(), "linear.pt")
    line = fails("--config", write_config(model=model), "--checkpoint", "linear.pt")
    assert "QuantReLU" in line
    assert "Linear" in line


# -- sites and device -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("layer1.*", "'layer1.*' matches no site"),
        ("featres.2", "did you mean 'features.2'?"),
        ("5", "no site 5"),
        ("0,9", "no site 9"),
    ],
)
def test_a_layer_that_matches_nothing(fails: Fails, layer: str, part: str) -> None:
    line = fails("--config", "digits", "--layers", layer)
    assert part in line
    assert "the 5 sites are: 0 input_quant, 1 features.2" in line


def test_an_injection_layer_that_is_not_there(fails: Fails) -> None:
    config = write_config(fault_injection={"mode": "layer", "injection_layer": 12})
    assert "no site 12" in fails("--config", config)


def test_cuda_asked_for_and_absent(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = fails("--config", "digits", "--device", "cuda")
    assert "finds no CUDA device; use --device cpu" in line


def test_a_cuda_device_that_is_not_there(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = fails("--config", "digits", "--device", "cuda:2")
    assert "there are: cuda:0, cuda:1" in line


def test_out_of_memory(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("fxfault.evaluation.full.runner.predict", full)
    assert "use smaller batches (--batch-size" in fails("--config", "digits")


# -- outputs, found out before the evaluation -----------------------------------------------


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is evaluated."""
    monkeypatch.setattr(
        "fxfault.evaluation.full.runner.predict", lambda *a, **k: pytest.fail("evaluated")
    )


@pytest.mark.usefixtures("unused")
@pytest.mark.parametrize("flag", ["--output", "--csv", "--plot"])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("absent/r.png", "does not exist"),
        ("file/r.png", "is no folder"),
        ("folder.png", "is a folder"),
        ("device.png", "is no regular file"),
        ("x" * 300 + ".png", "too long"),
    ],
)
def test_an_output_that_cannot_be_written(fails: Fails, flag: str, name: str, part: str) -> None:
    Path("file").write_text("", encoding="utf-8")
    Path("folder.png").mkdir()
    Path("device.png").symlink_to(os.devnull)
    line = fails("--config", "digits", flag, name)
    assert flag in line
    assert part in line


@pytest.mark.usefixtures("unused")
def test_a_folder_that_may_not_be_written(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "Permission denied" in fails("--config", "digits", "--output", "r.json")


@pytest.mark.usefixtures("unused")
def test_a_write_protected_output(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r.json").write_text("kept", encoding="utf-8")
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert "write-protected" in fails("--config", "digits", "--output", "r.json")


@pytest.mark.usefixtures("unused")
@pytest.mark.parametrize("name", ["p.gif", "p", ".png"])
def test_a_picture_of_no_known_format(fails: Fails, name: str) -> None:
    line = fails("--config", "digits", "--plot", name)
    assert ".png, .svg, .pdf" in line


@pytest.mark.usefixtures("unused")
def test_a_picture_without_matplotlib(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = fails("--config", "digits", "--plot", "p.png")
    assert 'pip install "fxfault[cli]"' in line


@pytest.mark.usefixtures("unused")
def test_outputs_do_not_overwrite_inputs_or_each_other(fails: Fails) -> None:
    config = write_config()
    assert "is the configuration" in fails("--config", config, "--output", config)
    torch.save(digits_state(), "w.pt")
    argv = ["--config", config, "--checkpoint", "w.pt", "--csv", "./w.pt"]
    assert "is the checkpoint" in fails(*argv)
    line = fails("--config", config, "--output", "same", "--csv", "same")
    assert "is the file of --output too" in line


def test_a_disk_that_is_full_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = outputs.OutputFile("--plot", tmp_path / "p.png")
    file.write(b"old")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for content in (b"new", "new"):
        with pytest.raises(ConfigError, match=r"--plot: .*p\.png cannot be written: No space left"):
            file.write(content)
    assert os.listdir(tmp_path) == ["p.png"]
    assert (tmp_path / "p.png").read_bytes() == b"old"


# -- in a process of its own ----------------------------------------------------------------


def test_the_command_fails_the_same_way_from_a_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fxfault.cli.evaluate", "--config", "layer_analysis"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: layer_analysis has no section")
    assert os.listdir(tmp_path) == []
