"""Training for other tasks: a metric chooses the best epoch, and any loss is made small."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tasks
import torch
import torch.nn.functional as F
import yaml
from cli_train.tools import in_folder, read_checkpoint
from commands import Run
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from fxfault.cli import evaluate, train
from fxfault.errors import ConfigError, DataError
from fxfault.experiment import ExperimentConfig
from fxfault.metrics.metric import make_metric
from fxfault.training import Learner
from fxfault.training.batches import samples_and_collate
from fxfault.training.losses import LOSSES, make_loss
from fxfault.training.objective import Objective
from fxfault.training.run import TrainingResult
from fxfault.training.run import train as run_training

# -- factories and functions that the experiments of these tests name ---------------------------


def new_segmenter() -> nn.Module:
    return tasks.Segmenter(tasks.Kit(quantised=True))


def new_stereo_net() -> nn.Module:
    return tasks.StereoNet(tasks.Kit(quantised=True))


def new_denoiser() -> nn.Module:
    return tasks.Denoiser(tasks.Kit(quantised=True))


def new_row_model() -> nn.Module:
    return tasks.RowModel(tasks.Kit(quantised=True))


def next_token(outputs: Any, targets: Tensor) -> Tensor:
    logits = outputs["logits"]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def take_stereo(batch: Any) -> Any:
    left, right, shift = batch
    return (left,), {"right": right}, shift


def lost(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).flatten(1).sum(1) * torch.nan


def size_of_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """A value that does not depend on the network, but on the sample."""
    return targets.double().abs().flatten(1).mean(1)


def pair_of_numbers(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros(2, 2)


def constant(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.detach().sum()


def by_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    raise KeyError("depth")


class ScaledLoss(nn.Module):
    """A loss that is a class with an argument and a buffer."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(outputs, targets)


class LearnedLoss(ScaledLoss):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


NAME = __name__
FAULTS = {"enabled": True, "probability": 2.0, "apply_during": "both", "seed": 3}
STEREO: dict[str, Any] = {
    "model": {"name": f"{NAME}:new_stereo_net"},
    "dataset": {"name": "tasks:stereo"},
    "metric": {"name": "rmse", "unit": "px"},
    "training": {"loss": "mse", "epochs": 3},
}
SEGMENTED: dict[str, Any] = {
    "model": {"name": f"{NAME}:new_segmenter"},
    "dataset": {"name": "tasks:segmented"},
    "metric": {"name": "mean_iou", "kwargs": {"ignore_index": 255}},
    "training": {"loss_kwargs": {"ignore_index": 255}, "epochs": 2},
}
DENOISED: dict[str, Any] = {
    "model": {"name": f"{NAME}:new_denoiser"},
    "dataset": {"name": "tasks:noisy"},
    "metric": {"name": "psnr", "kwargs": {"data_range": 1.0}},
    "training": {"loss": f"{NAME}:ScaledLoss", "loss_kwargs": {"scale": 2.0}, "epochs": 2},
}
LANGUAGE: dict[str, Any] = {
    "model": {"name": f"{NAME}:new_row_model"},
    "dataset": {"name": "tasks:rows"},
    "metric": {"name": "perplexity", "kwargs": {"shift": True}},
    "training": {"loss": f"{NAME}:next_token", "epochs": 2},
}


def content(sections: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An experiment, under faults, with changes by the names of sections."""
    made: dict[str, Any] = {
        "fault_injection": FAULTS,
        "optimizer": {"learning_rate": 0.01},
        "seed": {"value": 5},
        **sections,
    }
    for name, values in changes.items():
        made[name] = {**made.get(name, {}), **values} if isinstance(values, dict) else values
    made["training"] = {"batch_size": 64, "validation_fraction": 0.2, **made["training"]}
    return made


def experiment(sections: dict[str, Any], **changes: Any) -> ExperimentConfig:
    return ExperimentConfig.from_dict(content(sections, **changes))


def train_network(config: ExperimentConfig, network: nn.Module, *data: Any) -> TrainingResult:
    result = run_training(config, network, *data)
    assert result is not None
    return result


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folder(tmp_path, monkeypatch)


@pytest.fixture
def command(run_command: Callable[..., Run]) -> Callable[..., Run]:
    return partial(run_command, train.main)


def write(sections: dict[str, Any], **changes: Any) -> None:
    Path("task.yaml").write_text(yaml.safe_dump(content(sections, **changes)), encoding="utf-8")


def rows_of(folder: str) -> list[dict[str, float]]:
    text = Path(folder, "metrics.csv").read_text(encoding="utf-8")
    return [
        {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]


# -- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "column", "unit", "better", "bound"),
    [
        (STEREO, "rmse", " px", min, 1.2),
        (SEGMENTED, "mean_iou", "%", max, 40.0),
        (DENOISED, "psnr", " dB", max, 13.0),
        (LANGUAGE, "perplexity", "", min, 3.5),
    ],
    ids=["regression", "segmentation", "denoising", "language"],
)
def test_a_task_is_trained_and_its_metric_chooses_the_best_epoch(
    command: Callable[..., Run],
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    column: str,
    unit: str,
    better: Callable[[Sequence[float]], float],
    bound: float,
) -> None:
    write(sections)
    run = command("--config", "task.yaml", "--out", "run")
    assert (run.status, run.err) == (0, "")
    value = rf"[\d.]+{unit}"
    line = rf"loss [\d.]+, validation {column} {value} \({value} under faults\), \d+ of"
    epochs = sections["training"]["epochs"]
    assert len(re.findall(line, run.out)) == epochs, run.out
    assert re.search(rf"Test {column}: {value} \(weights of epoch \d, the best in clean", run.out)
    assert re.search(rf"Test {column} under faults: {value}\n", run.out)

    rows = rows_of("run")
    assert f"val_{column}" in rows[0]
    assert not [name for name in rows[0] if "accuracy" in name]
    values = [row[f"val_{column}"] for row in rows]
    best = read_checkpoint("run/best.ckpt")["fxfault"]["rows"][-1]
    assert best[f"val_{column}"] == better(values)
    # What was trained is worth something: the test value is on the right side of the bound.
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert better([record[f"test_{column}"], bound]) == record[f"test_{column}"]
    assert record["metric"]["name"] == column
    assert Path("run/curve.png").read_bytes().startswith(b"\x89PNG")

    # The number of the test is that of an evaluation of the same weights.
    argv = [
        "--config",
        "run/config.yaml",
        "--checkpoint",
        "run/best.ckpt",
        "--output",
        "found.json",
    ]
    assert evaluate.main([*argv, "--no-progress"]) == 0
    capsys.readouterr()
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert found["baseline"] == record[f"test_{column}"]


def test_training_makes_the_metric_better() -> None:
    torch.manual_seed(0)
    result = train_network(
        experiment(STEREO, training={"epochs": 6}),
        new_stereo_net(),
        tasks.stereo("train"),
        tasks.stereo("test"),
    )
    assert result.rows[-1]["val_rmse"] < 0.6 * result.rows[0]["val_rmse"]
    # A guess of the mean of -2 to 2 pixels has a root mean squared error of 1.41 pixels.
    assert result.test_value < 0.9 < 1.41
    assert result.metric.name == "rmse"


def test_validation_is_what_the_metric_says_of_those_samples() -> None:
    """The value of the last epoch is that of its weights for the samples held out."""
    from fxfault.training.batches import split_validation

    torch.manual_seed(0)
    config = experiment(SEGMENTED, checkpoint={"save_best": False})
    data = tasks.segmented("train")
    result = train_network(config, new_segmenter(), data, tasks.segmented("test"))
    _, held_out = split_validation(data, 0.2, seed=5)
    metric = make_metric("mean_iou", {"ignore_index": 255}).collected()
    with torch.no_grad():
        for batch in DataLoader(held_out, batch_size=50):  # in other batches
            metric.add(result.network(batch["image"]), batch["target"])
    assert result.rows[-1]["val_mean_iou"] == metric.value()


def test_a_metric_where_less_is_better_and_one_where_more_is_choose_opposite_epochs() -> None:
    chosen = {}
    for higher in (True, False):
        torch.manual_seed(0)
        config = experiment(STEREO, metric={"name": "mae", "higher_is_better": higher})
        result = train_network(
            config, new_stereo_net(), tasks.stereo("train"), tasks.stereo("test")
        )
        values = [row["val_mae"] for row in result.rows]
        chosen[higher] = result.best["val_mae"]
        assert chosen[higher] == (max if higher else min)(values)
    assert chosen[True] > chosen[False]


def test_the_best_can_be_chosen_under_faults_and_a_lost_value_is_the_worst() -> None:
    torch.manual_seed(0)
    config = experiment(STEREO, checkpoint={"best_by": "faulty"})
    result = train_network(config, new_stereo_net(), tasks.stereo("train"), tasks.stereo("test"))
    values = [row["faulty_val_rmse"] for row in result.rows]
    assert result.best["faulty_val_rmse"] == min(values)
    objective = Objective.of(config, new_stereo_net())
    assert objective.rank(float("nan")) < objective.rank(1e300) < objective.rank(0.1)


def test_top1_as_a_metric_trains_as_the_accuracy_does() -> None:
    from fxfault.data import build_dataset, dataset_facts
    from fxfault.models import build_model

    values = []
    for metric in ({}, {"metric": {"name": "top1"}}):
        torch.manual_seed(0)
        facts = dataset_facts("digits")
        network = build_model(
            "quant_digits",
            num_classes=facts.num_classes,
            in_channels=facts.in_channels,
            image_size=facts.image_size,
            weight_bit_width=4,
            act_bit_width=4,
        )
        config = experiment({**metric, "training": {"epochs": 1, "batch_size": 256}})
        data = (build_dataset("digits", split) for split in ("train", "test"))
        result = train_network(config, network, *data)
        column = "val_top1" if metric else "val_accuracy"
        row = result.rows[0]
        values.append(
            (row["train_loss"], row["val_loss"], row["faulty_val_loss"], row[column],
             row[f"faulty_{column}"], result.test_value, result.faulty_test_value)
        )  # fmt: skip
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0][:3] == values[1][:3]


def test_a_stopped_run_goes_on_as_if_nothing_had_been(command: Callable[..., Run]) -> None:
    write(STEREO, training={"epochs": 2})
    whole = command("--config", "task.yaml", "--out", "whole")
    assert whole.status == 0
    first = command(
        "--config", "task.yaml", "--out", "part", "--set", "training.epochs=1",
        "--set", "scheduler.name=none",
    )  # fmt: skip
    assert first.status == 0
    again = command("--resume", "--out", "part", "--set", "training.epochs=2")
    assert again.status == 0, again.err

    def timeless(folder: str) -> list[dict[str, float]]:
        return [{**row, "seconds": 0.0} for row in rows_of(folder)]

    assert timeless("part") == timeless("whole")
    other = command("--resume", "--out", "part", "--set", "training.loss=l1")
    assert other.status == 2
    assert "training.loss was 'mse' and is 'l1'" in other.err


def test_a_function_for_batches_serves_training_and_calibration_too() -> None:
    torch.manual_seed(0)
    config = experiment(
        STEREO,
        dataset={"name": "tasks:stereo", "batch": f"{NAME}:take_stereo"},
        training={"epochs": 1, "calibrate": "faulty"},
    )
    result = train_network(config, new_stereo_net(), tasks.stereo("train"), tasks.stereo("test"))
    assert result.calibrated == 2
    assert result.test_value < 3


def test_a_dry_run_tries_a_task(command: Callable[..., Run]) -> None:
    write(DENOISED)
    run = command("--config", "task.yaml", "--dry-run")
    assert (run.status, run.err) == (0, "")
    assert "all run" in run.out


# -- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"metric": {"name": "rmsee"}}, ["metric.name", "'rmsee'", "did you mean 'rmse'"]),
        ({"metric": {"name": "nowhere:rmse"}}, ["nowhere"]),
        ({"metric": {"name": f"{NAME}:lost"}}, ["'lost'", "is nan for sample 0", "finite number"]),
        ({"metric": {"name": f"{NAME}:pair_of_numbers"}},
         ["'pair_of_numbers'", "tensor of shape (2, 2)", "value for each sample"]),
        ({"metric": {"name": f"{NAME}:broken"}}, ["'broken'", "KeyError", "depth"]),
        ({"metric": {"name": "cosine"}}, ["metric: cosine", "without faults", "targets"]),
        ({"training": {"loss": "msee"}}, ["training.loss", "'msee'", "did you mean 'mse'"]),
        ({"training": {"loss": "nowhere:loss"}}, ["training.loss", "nowhere"]),
        ({"training": {"loss": f"{NAME}:constant"}}, ["training.loss", "no gradient", "detach"]),
        ({"training": {"loss": f"{NAME}:by_sample"}},
         ["training.loss", "float32 (64,)", "without dimensions"]),
        ({"training": {"loss": f"{NAME}:broken"}}, ["training.loss", "KeyError", "depth"]),
        ({"training": {"loss": f"{NAME}:LearnedLoss"}}, ["training.loss", "has parameters"]),
        ({"training": {"loss": "cross_entropy"}}, ["labels: got", "float32"]),
        ({"training": {"loss": "bce_with_logits"}}, ["training.loss", "target outside of 0 to 1"]),
        ({"training": {"loss_kwargs": {"reduction": "sum"}}},
         ["training.loss_kwargs.reduction", "mse does not take it", "output"]),
        ({"training": {"loss_kwargs": {"output": "depth"}}}, ["training.loss", "'depth'"]),
        ({"training": {"flip": True}}, ["training.flip", "not their targets", "rmse"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    command: Callable[..., Run], changes: dict[str, Any], parts: list[str]
) -> None:
    write(STEREO, **{key: {**STEREO[key], **value} for key, value in changes.items()})
    run = command("--config", "task.yaml", "--out", "run")
    assert run.status == 2
    assert re.fullmatch(r"error: .+\n", run.err), run.err
    assert all(part in run.err for part in parts), run.err


def test_several_processes_cannot_share_a_metric_of_all_data(command: Callable[..., Run]) -> None:
    write(SEGMENTED)
    run = command("--config", "task.yaml", "--out", "run", "--devices", "2")
    assert run.status == 2
    assert "devices: got 2, but metric 'mean_iou' gives one number for all data" in run.err
    assert not Path("run").exists()


def test_several_processes_measure_every_sample_once() -> None:
    """259 samples are held out: three batches of both processes, the last one of 1 sample."""
    from fxfault.training.batches import split_validation

    module = "tests.test_training_tasks"
    changes: dict[str, Any] = {"metric": {"name": f"{module}:size_of_targets"}}
    write(STEREO, **changes, model={"name": f"{module}:new_stereo_net"}, training={"epochs": 1})
    root = Path(__file__).parent.parent
    argv = [sys.executable, "-m", "fxfault.cli.train", "--config", "task.yaml", "--out", "run"]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    run = subprocess.run(
        [*argv, "--devices", "2", "--set", "training.batch_size=43", "--no-progress"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    _, held_out = split_validation(tasks.stereo("train"), 0.2, seed=5)
    assert held_out is not None
    sizes = [abs(float(held_out[number][2])) for number in range(len(held_out))]  # type: ignore[arg-type]
    (row,) = rows_of("run")
    assert len(sizes) == 259
    for column in ("val_size_of_targets", "faulty_val_size_of_targets"):
        assert row[column] == pytest.approx(sum(sizes) / len(sizes), rel=1e-12)


def test_a_loader_that_chooses_its_samples_is_refused() -> None:
    data = tasks.stereo("train")
    assert samples_and_collate(data) == (data, None)
    given, collate = samples_and_collate(DataLoader(data, shuffle=True))
    assert given is data
    assert collate is not None
    sampler = WeightedRandomSampler([1.0] * len(data), len(data))
    with pytest.raises(DataError, match="chooses its samples by a WeightedRandomSampler"):
        samples_and_collate(DataLoader(data, sampler=sampler))


def test_images_are_not_moved_without_their_targets() -> None:
    """Without a metric, a sample that is no pair of an image and a class is refused, too."""
    config = experiment(
        {**SEGMENTED, "metric": None},
        training={"flip": True},
        fault_injection={"enabled": False},
    )
    with pytest.raises(DataError, match=r"training\.shift, training\.flip: a sample is dict of"):
        train_network(config, new_segmenter(), tasks.segmented("train"), tasks.segmented("test"))


# -- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_by_name_is_that_of_torch_and_nothing_is_broadcast(name: str) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(6, 4, requires_grad=True)
    if LOSSES[name].of_classes:
        targets = torch.tensor([0, 1, 2, 3, 0, 1])
        wrong: Any = torch.rand(6, 4)  # which torch reads as the probabilities of classes
    else:
        targets, wrong = torch.rand(6, 4), torch.rand(4)  # which torch would broadcast
    expected = LOSSES[name].function(outputs, targets)
    found = make_loss(name)(outputs, targets)
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found, outputs)
    (other,) = torch.autograd.grad(expected, outputs)
    assert torch.equal(gradient, other)
    with pytest.raises(DataError):
        make_loss(name)(outputs, wrong)


def test_losses_take_their_arguments() -> None:
    scores, classes = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2, 255, 1], [2, 2, 0, 1, 255]])
    found = make_loss("cross_entropy", {"ignore_index": 255, "weight": [1, 2, 3]})
    expected = F.cross_entropy(
        scores, classes, weight=torch.tensor([1.0, 2.0, 3.0]), ignore_index=255
    )
    with torch.no_grad():
        assert torch.equal(found({"aux": 1, "out": scores}, classes), expected)
        with pytest.raises(DataError, match="target 255 in sample 0"):
            make_loss("cross_entropy")(scores, classes)
        smoothed = make_loss("cross_entropy")(scores[:, :, 0], classes[:, 0], smoothing=0.1)
    assert smoothed == F.cross_entropy(scores[:, :, 0], classes[:, 0], label_smoothing=0.1)


def test_targets_without_a_last_dimension_of_one_fit() -> None:
    outputs, targets = torch.randn(5, 1), torch.randn(5)
    with torch.no_grad():
        found = make_loss("l1")(outputs, targets)
    assert found == (outputs[:, 0] - targets).abs().mean()


def test_a_learner_refuses_a_metric_that_needs_the_golden_run() -> None:
    with pytest.raises(ConfigError, match="metric: changed_decisions compares"):
        Learner(new_stereo_net(), experiment(STEREO, metric={"name": "changed_decisions"}))
