"""Batches of every form are taken apart by the stated rules, or refused in one line."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxfault.data.batches import Batch, take_apart
from fxfault.errors import DataError

X, X2, Y = torch.zeros(4, 3), torch.ones(4, 2), torch.arange(4)
Y2, BOXES = torch.arange(2), torch.zeros(2, 4)
BINARY, TOKENS = X > 0, torch.arange(28).reshape(4, 7)
IDS, MASK = torch.ones(4, 7, dtype=torch.int64), torch.ones(4, 7, dtype=torch.bool)


def one(x: Tensor, scale: float = 1.0) -> Tensor:
    return x * scale


def two(left: Tensor, right: Tensor) -> Tensor:
    return left


def text(input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Tensor:
    return input_ids


def text_of_options(input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> None:
    return None


def anything(*inputs: Any, **named: Any) -> None:
    return None


def by_name(*, x: Tensor) -> Tensor:
    return x


class Pair(NamedTuple):
    left: Tensor
    right: Tensor
    label: Tensor


class Views(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Sample:
    image: Tensor
    target: Tensor
    note: int = field(default=3, init=False)


@dataclass
class Plain:
    x: Tensor
    y: Tensor


def is_same(found: Any, expected: Any) -> bool:
    """Whether two structures hold the very same tensors."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            is_same(found[key], value) for key, value in expected.items()
        )
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(map(is_same, found, expected))
    return found is expected


TAKEN: dict[str, tuple[Any, Any, tuple[Any, ...], dict[str, Any], Any]] = {
    # name: batch, forward, inputs, keywords, targets
    "tensor": (X, None, (X,), {}, None),
    "tuple of one": ((X,), one, (X,), {}, None),
    "pair": ((X, Y), None, (X,), {}, Y),
    "list, as a loader gives it": ([X, Y], one, (X,), {}, Y),
    "triple": ((X, X2, Y), None, (X, X2), {}, Y),
    "mask before labels of tokens": ((TOKENS, MASK, IDS), None, (TOKENS, MASK), {}, IDS),
    "mask before binary labels of tokens": ((TOKENS, MASK, MASK), None, (TOKENS, MASK), {}, MASK),
    "a picture of zeros and ones": ((X, X2, BINARY), None, (X, X2), {}, BINARY),
    "triple of two inputs": ((X, X2, Y), two, (X, X2), {}, Y),
    "pair that a forward needs": ((X, X2), two, (X, X2), {}, None),
    "pair of anything": ((X, Y), anything, (X,), {}, Y),
    "nested inputs": (((X, X2), Y), two, (X, X2), {}, Y),
    "nested inputs without targets": (((X, X2),), two, (X, X2), {}, None),
    "nested targets": ((X, (Y, X2)), one, (X,), {}, (Y, X2)),
    "dict of targets": ((X, {"boxes": X2, "labels": Y}), one, (X,), {}, {"boxes": X2, "labels": Y}),
    "list of targets": ((X, [{"a": BOXES}] * 4), one, (X,), {}, [{"a": BOXES}] * 4),
    "targets are text": ((X, ["a", "b", "c", "d"]), one, (X,), {}, ["a", "b", "c", "d"]),
    "one image as an argument": (([X, X2], Y2), one, ([X, X2],), {}, Y2),
    "dict": ({"image": X, "label": Y}, one, (X,), {}, Y),
    "dict, forward unknown": ({"pixel_values": X, "labels": Y}, None, (X,), {}, Y),
    "dict without targets": ({"image": X}, one, (X,), {}, None),
    "dict, first by name": ({"x": X, "y": Y}, one, (X,), {}, Y),
    "dict by names alone": ({"x": X, "y": Y}, by_name, (), {"x": X}, Y),
    "dict of two": ({"left": X, "right": X2, "y": Y}, two, (), {"left": X, "right": X2}, Y),
    "dict of several in one": ({"inputs": (X, X2), "y": Y}, two, (X, X2), {}, Y),
    "dict in a dict": (
        {"inputs": {"left": X, "right": X2}, "targets": Y},
        two,
        (),
        {"left": X, "right": X2},
        Y,
    ),
    "tokens": (
        {"input_ids": IDS, "attention_mask": MASK, "labels": Y},
        text,
        (),
        {"input_ids": IDS, "attention_mask": MASK},
        Y,
    ),
    "tokens, forward unknown": ({"input_ids": IDS, "labels": Y}, None, (), {"input_ids": IDS}, Y),
    "tokens in a pair": (
        ({"input_ids": IDS, "attention_mask": MASK}, Y),
        text_of_options,
        (),
        {"input_ids": IDS, "attention_mask": MASK},
        Y,
    ),
    "BatchEncoding": (UserDict(input_ids=IDS, labels=Y), text, (IDS,), {}, Y),
    "ordered": (OrderedDict(image=X, target=Y), anything, (), {"image": X}, Y),
    "a target that the forward needs": (
        {"x": X, "y": X2},
        lambda x, y: x,
        (),
        {"x": X, "y": X2},
        None,
    ),
    "dataclass": (Plain(X, Y), one, (X,), {}, Y),
    "named tuple by names": (Pair(X, X2, Y), two, (), {"left": X, "right": X2}, Y),
    "named tuple by places": (Pair(X, X2, Y), lambda a, b: a, (X, X2), {}, Y),
    "named tuple of inputs": (Views(X, X2), lambda a, b: a, (X, X2), {}, None),
    "named tuple as a pair": (Views(X, Y), one, (X,), {}, Y),
    "targets None": ((X, None), one, (X,), {}, None),
    "a number for all": (
        {"x": X, "scale": torch.tensor(2.0), "y": Y},
        one,
        (),
        {"x": X, "scale": ...},
        Y,
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_batch_is_taken_apart(name: str) -> None:
    batch, forward, inputs, keywords, targets = TAKEN[name]
    found = take_apart(batch, forward=forward)
    if name == "a number for all":
        keywords = {"x": X, "scale": batch["scale"]}
    assert is_same(found.inputs, inputs)
    assert is_same(found.keywords, keywords)
    assert is_same(found.targets, targets) or found.targets == targets
    assert found.samples == (2 if name == "one image as an argument" else 4)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "an index beside the label": ((X, Y, Y), one, "the forward takes (x, scale=...)"),
    "labels before a mask": ((IDS, Y, MASK), two, "item 2 of 1 to 3 like the targets"),
    "labels before a mask, forward unknown": ((IDS, Y, MASK.float()), None, "item 2 of 1 to 3"),
    "labels in a column": ((IDS, Y[:, None], MASK.bool()), anything, "item 2 of 1 to 3 like"),
    "labels of tokens before a mask": ((TOKENS, TOKENS, MASK), None, "item 2 of 1 to 3 like"),
    "an optional input": ((IDS, MASK, Y), text, "the forward takes (input_ids, attention_mask"),
    "three of four inputs": ((X, X, X, Y), two, "the forward takes (left, right)"),
    "two kinds of targets": ({"x": X, "label": Y, "target": Y}, one, "label, target may all be"),
    "a name that is not taken": ({"x": X, "path": ["a"] * 4, "y": Y}, one, "so not path"),
    "a missing input": ({"left": X, "y": Y}, two, "the forward takes (left, right)"),
    "two names, a third missing": (
        {"a": X, "b": X, "y": Y},
        lambda a, b, c: a,
        "the forward needs c, too",
    ),
    "targets alone": ({"labels": Y}, None, "there is no input beside the targets"),
    "text": ("picture.png", one, "allowed: a tensor, tuple, list, dict, dataclass"),
    "an object": (object(), None, "allowed: a tensor, tuple, list, dict, dataclass"),
    "a class": (Sample, None, "allowed: a tensor, tuple, list, dict, dataclass"),
    "an array": (np.zeros((4, 3)), one, "allowed: a tensor, tuple, list, dict, dataclass"),
    "an array as the input": ((np.zeros((4, 3)), Y), one, "the input is float64 (4, 3)"),
    "nothing": ((), one, "empty tuple"),
    "a dataclass with more": (Sample(X, Y), one, "so not image, note"),
    "no samples": ((torch.tensor(1.0), Y), one, "no tensor with a dimension for the samples"),
    "by name alone": ((X, Y), by_name, "the forward takes (x)"),
    "fewer labels": ((X, Y[:3]), one, "the tensors have 3, 4 rows"),
    "fewer labels in a list": ((X, [1, 2, 3]), one, "the tensors have 3, 4 rows"),
    "fewer labels in an array": ((X, np.zeros(3)), one, "the tensors have 3, 4 rows"),
    "fewer boxes": ((X, [{"a": BOXES}] * 3), one, "the tensors have 2, 4 rows"),
    "inputs that disagree": ((X, X2[:2], Y), two, "the tensors have 2, 4 rows"),
    "keywords that disagree": (
        {"input_ids": IDS, "attention_mask": MASK[:1], "y": Y},
        text,
        "the tensors have 1, 4 rows",
    ),
    "nested targets that disagree": ((X, (Y, {"a": Y[:1]})), one, "the tensors have 1, 4 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused_in_one_line(name: str) -> None:
    batch, forward, why = REFUSED[name]
    with pytest.raises(DataError) as error:
        take_apart(batch, forward=forward)
    text = str(error.value)
    assert text.startswith("batch: got ")
    assert why in text
    assert "say it with `dataset: {batch: package.module:function}`" in text
    assert "docs/your-own-task.md" in text
    assert "\n" not in text
    assert "tensor(" not in text
    assert len(text) < 500


def test_the_user_can_say_it() -> None:
    def with_index(batch: Any) -> Any:
        image, label, _ = batch
        return [image], {"scale": 2.0}, label

    found = take_apart((X, Y, Y), forward=one, taker=with_index)
    assert is_same((found.inputs, found.targets), ((X,), Y))
    assert found.keywords == {"scale": 2.0}
    assert found.samples == 4


@pytest.mark.parametrize(
    "answer", [None, (X, Y), ((X,), Y, {}), (X, {}, Y), ((X,), {0: X}, Y), {"inputs": X}]
)
def test_what_a_function_of_the_user_returns_is_checked(answer: Any) -> None:
    def mine(batch: Any) -> Any:
        return answer

    with pytest.raises(DataError, match=r"batch: mine\(\) returned .*expected \(arguments, key"):
        take_apart((X, Y), taker=mine)


def test_an_error_of_a_function_of_the_user_is_quoted() -> None:
    def mine(batch: Any) -> Any:
        return batch["image"]

    with pytest.raises(DataError, match=r"batch: mine\(\) fails on a batch .*: TypeError: "):
        take_apart((X, Y), taker=mine)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float64])
def test_no_dtype_changes(dtype: torch.dtype) -> None:
    batch = take_apart(({"input_ids": IDS.to(dtype)}, X.to(dtype)), forward=text).to("cpu")
    assert batch.inputs[0].dtype == dtype
    assert batch.targets.dtype == dtype


def test_a_batch_moves_as_a_whole() -> None:
    sample = Sample(X, Y)
    batch = Batch((X, [X, {"a": X}]), {"view": Views(X, X2)}, (sample, None, "a"), 4)
    moved = batch.to("meta")
    assert moved.inputs[0].is_meta
    assert moved.inputs[1][1]["a"].is_meta
    assert isinstance(moved.keywords["view"], Views)
    assert moved.keywords["view"].second.is_meta
    assert moved.targets[0].image.is_meta
    assert moved.targets[0].note == 3
    assert moved.targets[1:] == (None, "a")
    assert moved.samples == 4
    assert not sample.image.is_meta


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_batch_of_any_size_is_taken_alike(batch_size: int) -> None:
    data = TensorDataset(torch.randn(10, 1, 8, 8), torch.arange(10))
    found = [take_apart(batch, forward=one) for batch in DataLoader(data, batch_size)]
    assert sum(batch.samples for batch in found) == 10
    assert torch.cat([batch.targets for batch in found]).tolist() == list(range(10))


def test_a_module_tells_its_arguments_by_its_forward() -> None:
    class Net(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    make: Callable[..., Any] = Net().forward
    assert len(take_apart((X, X), forward=make).inputs) == 2
    assert len(take_apart((X, X), forward=nn.Sequential().forward).inputs) == 1
    graph = torch.fx.symbolic_trace(Net())
    assert len(take_apart((X, X), forward=graph.forward).inputs) == 2


def test_what_is_apart_already_stays() -> None:
    batch = take_apart((X, Y))
    assert take_apart(batch, forward=two) is batch
