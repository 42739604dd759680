"""Which tensor of a network's outputs counts, and what a metric says about itself."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU
from torch import Tensor

from fxfault.errors import DataError
from fxfault.messages import described
from fxfault.metrics.classification import top1
from fxfault.metrics.declared import declared
from fxfault.metrics.distance import l2
from fxfault.metrics.outputs import tensor_of
from fxfault.metrics.segmentation import MeanIoU

SCORES, OTHER = torch.randn(4, 3), torch.zeros(4, 2)
LABELS = torch.tensor([0, 1, 2, 0])


@dataclass
class Result:
    note: str
    scores: Tensor
    other: Tensor


class Policy(NamedTuple):
    policy: Tensor
    value: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """As that of Hugging Face: a mapping with attributes."""

    @property
    def logits(self) -> Any:
        return self["logits"]


@pytest.mark.parametrize(
    "outputs",
    [
        SCORES,
        (SCORES, OTHER),
        [SCORES],
        {"out": SCORES, "aux": OTHER},
        {"note": "a", "deep": [None, (SCORES, OTHER)]},
        Result("a", SCORES, OTHER),
        Policy(SCORES, OTHER),
        ModelOutput(loss=None, logits=SCORES, hidden_states=(OTHER,)),
        SCORES.clone().requires_grad_(),
    ],
    ids=lambda outputs: type(outputs).__name__,
)
def test_the_first_tensor_counts(outputs: Any) -> None:
    found = tensor_of(outputs, metric="top1")
    assert torch.equal(found, SCORES)
    assert not found.requires_grad
    assert top1(outputs, LABELS).tolist() == top1(SCORES, LABELS).tolist()


def test_a_quant_tensor_gives_its_values() -> None:
    for layer in (QuantIdentity(return_quant_tensor=True), QuantReLU(return_quant_tensor=True)):
        quantised = layer.train()(SCORES)
        assert tensor_of(quantised, metric="l2").tolist() == quantised.value.tolist()
        within = {"out": quantised, "aux": OTHER}
        assert tensor_of(within, metric="l2").tolist() == quantised.value.tolist()
        assert tensor_of(within, "out", metric="l2").tolist() == quantised.value.tolist()
        assert l2(within, within).tolist() == [0.0] * 4


def test_an_item_is_found_by_name_number_and_path() -> None:
    outputs = {"heads": [OTHER, {"scores": SCORES}], "Result": Result("a", OTHER, SCORES), 7: OTHER}
    for name in ("heads.1.scores", "heads.1", "Result.other"):
        assert tensor_of(outputs, name, metric="top1") is not OTHER
        assert torch.equal(tensor_of(outputs, name, metric="top1"), SCORES)
    assert torch.equal(tensor_of((OTHER, SCORES), 1, metric="top1"), SCORES)
    assert torch.equal(tensor_of((OTHER, SCORES), -1, metric="top1"), SCORES)
    assert torch.equal(tensor_of(Policy(OTHER, SCORES), "value", metric="top1"), SCORES)
    assert top1((OTHER, SCORES), LABELS, output=1).tolist() == top1(SCORES, LABELS).tolist()
    with pytest.raises(DataError, match="top1: got target 2 "):  # two classes only
        top1((OTHER, SCORES), LABELS)


@pytest.mark.parametrize("name", ["score", "heads.2", 2, -3, "heads.scores.0"])
def test_an_item_that_is_not_there_is_named(name: Any) -> None:
    outputs = {"scores": SCORES, "heads": [OTHER, OTHER]}
    with pytest.raises(DataError) as error:
        tensor_of(outputs, name, metric="top1")
    text = str(error.value)
    assert f"expected an item {name!r} in them" in text
    assert "scores: float32 (4, 3), heads: list of 2 float32 (4, 2)" in text
    assert ("did you mean 'scores'" in text) == (name == "score")


def test_a_description_is_short_and_has_no_values() -> None:
    batch = {f"item{n}": [{"a": SCORES, "b": ["x", 1, None]}, SCORES] for n in range(40)}
    text = described([batch, batch, (batch, SCORES)])
    assert len(text) < 1500
    assert described({"a": torch.full((2,), 12345)}) == "dict of a: int64 (2,)"
    assert described(Result("secret", SCORES, OTHER)) == (
        "Result of note: str, scores: float32 (4, 3), other: float32 (4, 2)"
    )
    assert described(Policy(SCORES, OTHER)) == (
        "Policy of policy: float32 (4, 3), value: float32 (4, 2)"
    )
    assert described(({}, [], ())) == "tuple of (empty dict, empty list, empty tuple)"


def test_what_is_declared_is_an_attribute_of_functions_classes_and_instances() -> None:
    @declared(higher_is_better=False, unit="m", tolerance=0.5, needs_golden=True)
    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    found: Any = metric
    kinds = (found.higher_is_better, found.unit, found.tolerance, found.needs_golden)
    assert kinds == (False, "m", 0.5, True)
    instance: Any = MeanIoU()
    assert (instance.unit, instance.higher_is_better) == ("%", True)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_tolerance_is_a_distance(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"tolerance: got .*; allowed: 0 or more"):
        declared(higher_is_better=True, tolerance=tolerance)
