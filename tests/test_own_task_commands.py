"""A task of the user's own from its files: tokens in dicts, a data loader, and two inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfault.campaign import Study
from fxfault.campaign.workers.plan import Plan
from fxfault.campaign.workers.trial_runner import TrialRunner
from fxfault.cli.evaluate import main

CODE = '''
import torch
from brevitas.nn import QuantReLU
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Tagger(nn.Module):
    """Gives each token scores; padding has none of its own."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.act = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=2.0)
        self.head = nn.Linear(8, 12)

    def forward(self, input_ids, attention_mask):
        hidden = self.act(self.words(input_ids)) * attention_mask[:, :, None]
        return {"logits": self.head(hidden), "pooled": hidden.mean(1)}


class Tokens(Dataset):
    def __init__(self):
        drawn = torch.Generator().manual_seed(3)
        self.ids = torch.randint(12, (20, 6), generator=drawn)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        mask = torch.ones(6)
        mask[4:] = index % 2
        return {"input_ids": self.ids[index], "attention_mask": mask, "labels": self.ids[index]}


class Triples(Tokens):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item["input_ids"], item["labels"], item["attention_mask"]


class Odd(Tokens):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item["input_ids"], item["attention_mask"], item["labels"], index


def odd(split):
    return Odd()


def tokens(split):
    return Tokens()


def triples(split):
    return Triples()


def take(batch):
    ids, labels, mask = batch
    return (ids, mask), {}, labels


def collate(items):
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def loader(split):
    return DataLoader(Tokens(), batch_size=8, collate_fn=collate, sampler=range(20))


def shuffled(split):
    return DataLoader(Tokens(), batch_size=8, shuffle=True)


def error(outputs, targets):
    """Share of wrong tokens of each sample, in percent."""
    return 100.0 * (outputs["logits"].argmax(2) != targets).double().mean(1)


error.unit, error.higher_is_better = "%", False
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = "own_task_of_this_test"
    (tmp_path / f"{name}.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(name)
    torch.manual_seed(0)
    torch.save(module.Tagger().state_dict(), "weights.pt")
    return tmp_path


def content(data: str, metric: Any, **more: Any) -> dict[str, Any]:
    own = "own_task_of_this_test"
    return {
        "dataset": {"name": f"{own}:{data}", **more},
        "model": {"name": f"{own}:Tagger"},
        "training": {"batch_size": 8},
        "checkpoint": {"path": "weights.pt"},
        **({} if metric is None else {"metric": metric}),
    }


def evaluated(capsys: pytest.CaptureFixture[str], **config: Any) -> tuple[int, str, Any]:
    faults = {"enabled": True, "apply_during": "eval", "probability": 10.0, "seed": 1}
    faults["track_statistics"] = False
    Path("e.yaml").write_text(json.dumps({**config, "fault_injection": faults}), encoding="utf-8")
    Path("out.json").unlink(missing_ok=True)
    words = ["--config", "e.yaml", "--num-runs", "3", "--no-progress", "--output", "out.json"]
    status = main(words)
    found = json.loads(Path("out.json").read_text("utf-8")) if Path("out.json").exists() else None
    captured = capsys.readouterr()
    return status, captured.out + captured.err, found


def test_dicts_triples_and_loaders_of_tokens_give_the_same_results(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "own_task_of_this_test:error"
    status, text, first = evaluated(capsys, **content("tokens", error))
    assert status == 0, text
    assert "Metric: error (%), lower is better, SDC if a sample moves by more than 0" in text
    assert "batches are run whole: its batches have several inputs" in text
    assert first["metric"]["higher_is_better"] is False
    (result,) = first["results"]
    assert result["sdc_rate"] > 0
    assert result["degradation"] == pytest.approx(result["mean"] - first["baseline"])
    taken = {"batch": "own_task_of_this_test:take"}
    for other in (content("triples", error, **taken), content("loader", error)):
        status, text, found = evaluated(capsys, **other)
        assert status == 0, text
        assert found["baseline"] == first["baseline"]
        assert found["results"] == first["results"]


@pytest.mark.parametrize(
    ("data", "metric", "message"),
    [
        ("odd", "own_task_of_this_test:error", "it is not clear what the network gets"),
        ("shuffled", "own_task_of_this_test:error", "is not what it was when it was first read"),
        ("tokens", "top1", "top1: got outputs of shape (8, 6, 12); expected scores"),
        ("tokens", None, "it must be a pair of a float tensor (the image) and an integer"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], data: str, metric: Any, message: str
) -> None:
    status, text, _ = evaluated(capsys, **content(data, metric))
    assert status == 2
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_study_of_tokens_has_rows(folder: Path) -> None:
    axes = {"injection_type": ["random"], "probability": [10.0]}
    settings = content("tokens", {"name": "perplexity", "kwargs": {"output": "logits"}})
    study = Study.from_dict({**settings, "axes": axes, "trials": 2, "seed": 1})
    runner = TrialRunner(Plan(study=study.to_dict(), device="cpu"), on_note=lambda text: None)
    facts = runner.facts()
    assert facts.fingerprint["metric"]["each"] == "sample and data"
    (cell,) = facts.cells(study)
    row = runner.run(cell, 0)
    assert (row.samples, row.correct, row.top5) == (20, None, None)
    assert row.sdc
    assert row.value != row.golden
    assert row.same_counts(runner.run(cell, 0))
