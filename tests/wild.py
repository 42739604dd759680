"""Compares a transformed model with the eager one, clean and struck.

The oracle is independent of the passes: the eager model, with the layers' own `pack_output`
flipping the lowest bit of what every target quantised.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantReLU, QuantSigmoid, QuantTanh
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.quant_tensor import IntQuantTensor, QuantTensor
from torch import Tensor, nn

import fxfault
from fxfault.passes import containers_of

ALL_HIT = {
    "enabled": True,
    "probability": 100.0,
    "apply_during": "both",
    "seed": 3,
    "injection_type": "lsb_flip",
}


X = torch.linspace(-1, 1, 32).reshape(4, 8)


TARGETS = (QuantIdentity, QuantReLU, QuantHardTanh, QuantSigmoid, QuantTanh)


@contextlib.contextmanager
def lowest_bits_flipped() -> Iterator[None]:
    """Strike every target of eager models, exactly once for each call."""
    original = QuantNonLinearActLayer.pack_output

    def pack_output(self: Any, output: Any) -> Any:
        is_target = isinstance(self, TARGETS)
        if is_target and isinstance(output, IntQuantTensor):
            code = torch.round(output.value / output.scale + output.zero_point).long() ^ 1
            value = (code - output.zero_point) * output.scale
            output = output._replace(value=value.to(output.value.dtype))
        return original(self, output)

    QuantNonLinearActLayer.pack_output = pack_output
    try:
        yield
    finally:
        QuantNonLinearActLayer.pack_output = original


def alike(a: Any, b: Any) -> bool:
    """Same type, same structure, same bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, QuantTensor):
        return torch.equal(a.value, b.value)
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if dataclasses.is_dataclass(a):
        return alike(vars(a), vars(b))
    return bool(a == b)


@dataclasses.dataclass(frozen=True)
class Call:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, model: nn.Module) -> Any:
        torch.manual_seed(5)
        return model(*self.args, **self.kwargs)


def check(build: Callable[[], nn.Module], *inputs: Any) -> None:
    """Compare clean and struck outputs of a sequence of calls, in evaluation and training."""
    calls = [i if isinstance(i, Call) else Call((i,)) for i in inputs or (X, 2 * X)]
    for training in (False, True):
        eager, model = (built(build).train(training) for _ in range(2))
        faulty = fxfault.transform(model, ALL_HIT)
        for struck in (False, True):
            faulty.faults.enabled = struck
            for call in calls:
                with lowest_bits_flipped() if struck else contextlib.nullcontext():
                    expected = call(eager)
                got = call(faulty)
                where = f"training={training} struck={struck}: {containers_of(faulty)}"
                assert alike(got, expected), where


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def act(**options: Any) -> QuantIdentity:
    return QuantIdentity(bit_width=4, **options)


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), act())


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.act = act()


def net(forward: Callable[..., Any], setup: Callable[[Any], Any] | None = None) -> type[nn.Module]:
    """A network with `linear` and `act`, what `setup` adds, and the given forward."""

    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            if setup is not None:
                setup(self)

    Net.forward = forward  # type: ignore[method-assign]
    return Net


def with_block(**more: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A setup that adds `block`, and attributes that are made from the network."""

    def setup(self: Any) -> None:
        self.block = block()
        for name, make in more.items():
            setattr(self, name, make(self))

    return setup


class Kept(nn.Module):
    """Control flow on values: keeps its own forward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 1e9:
            return x
        return self.inner(x)


@functools.singledispatch
def doubled_if_quantised(x: Any) -> Any:
    return x


@doubled_if_quantised.register
def _(x: IntQuantTensor) -> Any:
    return x.value * 2
