"""A network and a study that are small enough for a case in milliseconds."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from brevitas.nn import QuantLinear, QuantReLU
from torch import nn

SECTIONS: dict[str, Any] = {
    "dataset": {"name": "fake", "kwargs": {"size": 8, "image_size": 8, "in_channels": 1}},
    "model": {"name": "fuzz.tiny:network"},
    "training": {"batch_size": 8},
    "checkpoint": {"path": "w.pt"},
}
STUDY: dict[str, Any] = {
    **SECTIONS,
    "seed": 7,
    "axes": {"layers": ["each", "all"], "injection_type": "random", "probability": [5.0, 20.0]},
    "trials": 2,
}


@cache
def _template() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        QuantReLU(bit_width=4),
        QuantLinear(64, 10, bias=True, weight_bit_width=4),
        nn.BatchNorm1d(10),
        QuantReLU(bit_width=4),
    )
    with torch.no_grad():
        model.train()(torch.randn(4, 1, 8, 8))
    return model.eval()


def network(**settings: Any) -> nn.Module:
    """A calibrated network for (N, 1, 8, 8) and ten classes."""
    return copy.deepcopy(_template())


def state() -> dict[str, torch.Tensor]:
    """What a checkpoint of it holds."""
    return {key: value.clone() for key, value in _template().state_dict().items()}


@cache
def weights() -> bytes:
    """A checkpoint of it."""
    file = io.BytesIO()
    torch.save(_template().state_dict(), file)
    return file.getvalue()


@contextlib.contextmanager
def inside(folder: str | Path) -> Iterator[None]:
    """Let a folder be the current one for a while."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@cache
def store_files() -> dict[str, dict[str, bytes]]:
    """The files of a finished store, by its state: closed, or being written."""
    from fxfault.campaign import Study
    from fxfault.campaign.driver import run_study
    from fxfault.campaign.records.store import Store

    with tempfile.TemporaryDirectory() as folder, inside(folder):
        Path("w.pt").write_bytes(weights())
        store = Path("s.sqlite")
        run_study(Study.from_dict(STUDY), store)
        closed = {store.name: store.read_bytes()}
        with Store.open(store, write=True) as opened:
            rows = opened.rows()
            opened.extend(opened.study, opened.fingerprint)
            opened.register([rows[0].cell])
            names = [store.name, f"{store.name}-wal"]
            written = {name: Path(name).read_bytes() for name in names}
    return {"closed": closed, "written": written}
