"""What all tests of quantisers inside layers need."""

from __future__ import annotations

import pytest
from brevitas.quant_tensor import IntQuantTensor, QuantTensor
from inner_quantisers.tools import (
    Words,
)


@pytest.fixture(autouse=True)
def quant_cat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `QuantCat` run: Brevitas 0.13 calls a function that it has moved."""
    monkeypatch.setattr(QuantTensor, "cat", staticmethod(IntQuantTensor.cat), raising=False)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    return Words(monkeypatch)
