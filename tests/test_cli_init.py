"""`fxfault init`: the configuration that it writes is valid, runs, and replaces nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import Run

from fxfault.cli import main as front
from fxfault.experiment import load_experiment

CODE = """
import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from torch import nn
from torch.utils.data import TensorDataset


def build(width=4):
    torch.manual_seed(0)
    return nn.Sequential(
        QuantIdentity(bit_width=8, scaling_impl_type="const", min_val=-1.0, max_val=1.0),
        QuantLinear(6, width, bias=False, weight_bit_width=4),
        QuantReLU(bit_width=3, scaling_impl_type="const", max_val=2.0),
        nn.Linear(width, 3),
    )


def needs(width):
    return build(width)


def weights_only():
    return nn.Sequential(QuantLinear(6, 3, bias=False, weight_bit_width=5))


def plain():
    return nn.Sequential(nn.Linear(6, 3))


class Rows(TensorDataset):
    num_classes = 3

    def __init__(self, split):
        drawn = torch.Generator().manual_seed(3)
        super().__init__(torch.rand(30, 6, generator=drawn), torch.arange(30) % 3)
"""


@pytest.fixture
def command(
    run_command: Callable[..., Run], tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Run]:
    """Give a function that runs `fxfault` in a folder with a module of the user's."""
    (tmp_path / f"own_{tmp_path.name}.py").write_text(CODE, encoding="utf-8")

    def run(*argv: str) -> Run:
        named = [word.replace("own:", f"own_{tmp_path.name}:") for word in argv]
        return run_command(front.main, *named)

    return run


def test_with_data_the_file_runs_as_it_is(command: Callable[..., Run]) -> None:
    run = command("init", "own:build", "--data", "own:Rows")
    assert (run.status, run.err) == (0, "")
    assert "sites: 2 in activations, 1 in weights\n" in run.out
    assert run.out.endswith("Next: fxfault eval fxfault.yaml\n")
    run = command("eval", "fxfault.yaml", "--no-progress")
    assert (run.status, run.err) == (0, "")
    assert "\nWeights: as the factory made them\n" in run.out
    assert "Note: no checkpoint: the weights are as own_" in run.out
    found = json.loads(Path("fault_eval_random.json").read_text(encoding="utf-8"))["checkpoint"]
    assert (found["path"], found["weights"]) == (None, "as the factory made them")
    assert len(found["sha256"]) == 64


def test_other_weights_have_another_sum(command: Callable[..., Run]) -> None:
    sums = set()
    for width in ("4", "5"):
        command("init", "own:build", "--data", "own:Rows", "--output", f"{width}.yaml")
        argv = ["--set", f"model.kwargs.width={width}", "--output", f"{width}.json"]
        assert command("eval", f"{width}.yaml", *argv, "--no-progress").status == 0
        written = json.loads(Path(f"{width}.json").read_text(encoding="utf-8"))
        sums.add(written["checkpoint"]["sha256"])
    assert len(sums) == 2


def test_the_file_lists_the_sites_with_their_widths(command: Callable[..., Run]) -> None:
    command("init", "own:build", "--set", "model.kwargs.width=5")
    text = Path("fxfault.yaml").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines()]
    assert ["#", "1", "2", "QuantReLU", "3", "bits"] in rows
    assert ["#", "0", "1.weight", "QuantLinear", "4", "bits"] in rows
    assert "#   name: my_package.data:make\n" in text
    experiment = load_experiment("fxfault.yaml")
    assert experiment.model is not None
    assert experiment.model.kwargs == {"width": 5}
    assert experiment.dataset is None
    assert command("inspect", "fxfault.yaml").status == 0


def test_every_comment_that_is_a_key_is_allowed(command: Callable[..., Run]) -> None:
    """Whoever removes the signs of a suggested section gets a valid file."""
    command("init", "own:build")
    lines = Path("fxfault.yaml").read_text(encoding="utf-8").splitlines()
    starts = ("# dataset:", "#   name:", "# checkpoint:", "#   path:", "# metric:")
    freed = [line[2:] if line.startswith(starts) else line for line in lines]
    Path("freed.yaml").write_text("\n".join(freed), encoding="utf-8")
    assert set(yaml.safe_load("\n".join(freed))) >= {"dataset", "checkpoint", "metric"}
    experiment = load_experiment("freed.yaml")
    assert experiment.checkpoint.path == "weights.pt"
    assert experiment.dataset is not None


def test_a_network_with_quantised_weights_alone(command: Callable[..., Run]) -> None:
    assert command("init", "own:weights_only", "--data", "own:Rows").status == 0
    assert load_experiment("fxfault.yaml").fault_injection.memory == "weights"
    assert command("eval", "fxfault.yaml", "--no-progress").status == 0


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["mylab.net"], ["MODEL: 'mylab.net' has no colon", "'mylab:net'"]),
        (["quant_digits"], ["MODEL: quant_digits is a built-in network"]),
        (["own:biuld"], ["no 'biuld' (did you mean 'build'?)"]),
        (["own:needs"], ["missing 1 required", "give its arguments in model.kwargs"]),
        (["own:plain"], ["has no quantised activation", "it has Linear, Sequential."]),
        (["own:build", "--data", "mylab.rows"], ["--data: 'mylab.rows' has no colon"]),
        (["own:build", "--data", "digits"], ["the model fails on a batch of the data set"]),
        (["own:build", "--output", "no/f.yaml"], ["the folder no does not exist"]),
        (["own:build", "--set", "model.kwarg.width=3"], ["--set model.kwarg", "'kwargs'"]),
        ([], ["the following arguments are required: MODEL"]),
    ],
)
def test_what_it_refuses(command: Callable[..., Run], argv: list[str], parts: list[str]) -> None:
    run = command("init", *argv)
    assert (run.status, run.out) == (2, "")
    assert run.err.count("\n") == 1
    assert all(part in run.err for part in parts), run.err
    assert not Path("fxfault.yaml").exists()


def test_it_replaces_nothing(command: Callable[..., Run]) -> None:
    Path("fxfault.yaml").write_text("mine", encoding="utf-8")
    run = command("init", "own:build")
    assert (run.status, run.err.count("\n")) == (2, 1)
    assert "--output: fxfault.yaml is already there" in run.err
    assert Path("fxfault.yaml").read_text(encoding="utf-8") == "mine"
