"""Networks and data sets that do what nobody expects, made by factories of a configuration."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from brevitas.nn import QuantIdentity
from torch import nn

ENDS: dict[str, Any] = {
    "exit": lambda: sys.exit(0),
    "exit_hard": lambda: os._exit(0),
    "exit_text": lambda: sys.exit("done"),
    "pipe": lambda: _raise(BrokenPipeError()),
    "raise": lambda: _raise(ValueError("only\nsometimes")),
    "assert": lambda: _raise(AssertionError()),
    "stop": lambda: _raise(StopIteration()),
    "recursion": lambda: ENDS["recursion"](),
    "memory": lambda: _raise(MemoryError()),
    "generator": lambda: _raise(GeneratorExit()),
    "unprintable": lambda: _raise(Unprintable()),
    "terminal": lambda: _raise(ValueError("\x1b[2J\u202e" + "9" * 10_000)),
}


class Unprintable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raise(error: BaseException) -> None:
    raise error


def small() -> nn.Module:
    """A network for images of the digits, with so few modules that a command takes no time."""
    return nn.Sequential(
        QuantIdentity(bit_width=4), nn.Conv2d(1, 2, 3, stride=3), nn.Flatten(), nn.Linear(8, 10)
    )


class Network(nn.Module):
    """The small network, which ends in some way after so many forwards."""

    def __init__(self, how: str, after: int = 0) -> None:
        super().__init__()
        self.how, self.after, self.count = how, after, 0
        self.net = small()

    def forward(self, images: torch.Tensor) -> Any:
        self.__dict__["count"] += 1
        scores = self.net(images)
        if self.count <= self.after:
            return scores
        if self.how in ENDS:
            ENDS[self.how]()
        return ANSWERS[self.how](scores)


ANSWERS: dict[str, Any] = {
    "fine": lambda scores: scores,
    "complex": lambda scores: scores.to(torch.complex64),
    "empty": lambda scores: scores[:, :0],
    "none": lambda scores: None,
    "text": lambda scores: "scores",
    "one_row": lambda scores: scores[:1],
    "flat": lambda scores: scores.flatten(),
    "dict": lambda scores: {"scores": scores},
    "no_tuple": lambda scores: (),
    "sparse": lambda scores: scores.to_sparse(),
    "meta": lambda scores: scores.to("meta"),
    "bool": lambda scores: scores > 0,
}


class Data:
    """A data set of 40 samples, which is wrong in some way."""

    num_classes = 10

    def __init__(self, split: str, how: str = "fine", n: Any = 40) -> None:
        self.how, self.n = how, n

    def __len__(self) -> Any:
        return self.n

    def __getitem__(self, index: int) -> Any:
        image, label = torch.zeros(1, 8, 8), index % 10
        if index < 20 or self.how == "fine":
            return image, label
        if self.how in ENDS:
            ENDS[self.how]()
        return ITEMS[self.how](image, label)


ITEMS: dict[str, Any] = {
    "short": lambda image, label: _raise(IndexError("no such sample")),
    "ragged": lambda image, label: (image[:, :4], label),
    "no_pair": lambda image, label: image,
    "none": lambda image, label: (None, label),
    "no_label": lambda image, label: (image, None),
    "text_label": lambda image, label: (image, "seven"),
    "far_label": lambda image, label: (image, 10**6),
    "negative_label": lambda image, label: (image, -1),
    "half_label": lambda image, label: (image, 0.5),
    "huge_label": lambda image, label: (image, 2**70),
}


def not_a_network() -> Any:
    return 3


def exits_when_made(**kwargs: Any) -> Any:
    sys.exit(0)
