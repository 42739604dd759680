"""Training looks at labels as every evaluation does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fxfault.cli import train

TEXT = """
import torch
from torch import nn
import brevitas.nn as qnn

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 48
    def __getitem__(self, i):
        return torch.randn(8, generator=torch.Generator().manual_seed(i)), LABEL

def data(split):
    return Data()

def net():
    return nn.Sequential(nn.Linear(8, 8), qnn.QuantReLU(bit_width=4), nn.Linear(8, 3))
"""


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("torch.tensor([i % 3])", None),
        ("torch.tensor([float(i % 3)])", r"error: labels: got [012]\.0 \(float32\) for sample 0 "),
        ("3 if i % 2 else 0", "error: labels: got 3 for sample "),
    ],
)
def test_labels_are_squeezed_or_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    label: str,
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"labels_{tmp_path.name}"
    Path(f"{module}.py").write_text(TEXT.replace("LABEL", label), encoding="utf-8")
    sections = {"dataset": {"name": f"{module}:data"}, "model": {"name": f"{module}:net"}}
    Path("c.yaml").write_text(yaml.safe_dump({**sections, "training": {"batch_size": 16}}))

    status = train.main(["--config", "c.yaml", "--out", "run"])

    out, err = capsys.readouterr()
    if message is None:
        assert status == 0, err
        assert float(re.findall(r"Test accuracy: ([\d.]+)%", out)[0]) <= 100
    else:
        assert status == 2
        assert re.search(message, err), err
