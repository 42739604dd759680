"""Small networks with forwards in the style of public code of this field.

Each entry names the calls to make, and the changes between them after the transform. If its forward
cannot be traced, `kept` gives the expected reason: no forward is kept without one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, nn

BRANCH, TYPE, ITERATES = "branches on a value", "type of a value", "iterates over a value"
NUMBER, WITH, NONE = "value as a number", "`try` or a `with`", "compares a value by identity"


@dataclass(frozen=True)
class Call:
    """The arguments of one call, built for a number of samples each time."""

    args: Callable[[int], tuple[Any, ...]]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, samples: int) -> Any:
        torch.manual_seed(5)
        made = {k: v(samples) if callable(v) else v for k, v in self.kwargs.items()}
        return model(*self.args(samples), **made)


@dataclass(frozen=True)
class Forward:
    """A network, and the calls and changes to try.

    Attributes:
        name: name of the entry.
        build: builds the network.
        calls: calls to make before and after each change.
        changes: changes to the transformed model.
        kept: part of the reason why a container keeps its own forward, by the container's path.
        reset: restores state outside the network.
    """

    name: str
    build: Callable[[], nn.Module]
    calls: tuple[Call, ...]
    changes: tuple[Callable[[Any], Any], ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    reset: Callable[[], Any] = lambda: None

    def __call__(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()


TABLE: list[Forward] = []


def entry(*calls: Call, **options: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Add a class of networks to the table."""

    def add(kind: type[nn.Module]) -> type[nn.Module]:
        TABLE.append(Forward(kind.__name__, kind, calls or (FLAT,), **options))
        return kind

    return add


def change(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, value)


def rows(samples: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed))


def flat(samples: int) -> Tensor:
    return rows(samples, 8)


FLAT = Call(lambda n: (rows(n, 8),))
IMAGE = Call(lambda n: (rows(n, 3, 8, 8),))
TEXT = Call(lambda n: (torch.arange(n * 4).reshape(n, 4) % 16,))


def act(**options: Any) -> qnn.QuantIdentity:
    return qnn.QuantIdentity(bit_width=4, **options)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=qnn.QuantConv2d(inputs, outputs, 3, stride=stride, padding=1, weight_bit_width=4),
            norm=nn.BatchNorm2d(outputs),
            act=act(),
        )
    )


def dense(inputs: int = 8, outputs: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), act())


class Base(nn.Module):
    """A linear layer and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), act()
