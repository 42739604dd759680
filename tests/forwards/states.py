"""Forwards over sequences and time, and those that keep state or read settings."""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from forwards.table import (
    FLAT,
    ITERATES,
    NONE,
    NUMBER,
    Base,
    Call,
    act,
    change,
    dense,
    entry,
    flat,
    rows,
)
from torch import Tensor, nn

# -- sequences and time -----------------------------------------------------------------


class Leaky(nn.Module):
    """A spiking neuron with its membrane potential as state."""

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.threshold, self.act = 0.9, 1.0, act()

    def init_leaky(self) -> float:
        return 0.0

    def forward(self, current: Tensor, mem: Any) -> tuple[Tensor, Tensor]:
        mem = self.beta * mem + current
        spikes = (mem > self.threshold).float()
        return self.act(spikes + mem), mem - spikes * self.threshold


@entry(FLAT, changes=(change("num_steps", 2), lambda m: setattr(m.lif, "beta", 0.5)))
class SnnLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.num_steps = nn.Linear(8, 8), Leaky(), 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, spikes, potentials = self.lif.init_leaky(), [], []
        for _ in range(self.num_steps):
            spk, mem = self.lif(self.fc(x), mem)
            spikes.append(spk)
            potentials.append(mem)
        return torch.stack(spikes, dim=0), torch.stack(potentials, dim=0)


@entry(
    Call(lambda n: (rows(5, n, 8),)),
    Call(lambda n: (rows(3, n, 8),)),
    kept={"": NUMBER},
)
class TimeMajor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act = nn.Linear(16, 8), act()

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.size(1), 8)
        outputs = []
        for step in range(x.size(0)):
            state = self.act(self.cell(torch.cat([x[step], state], 1)))
            outputs.append(state)
        return torch.stack(outputs)


@entry(
    Call(lambda n: (rows(n, 4, 8), torch.arange(n) % 4 + 1)),
    kept={"": "converts a value to an array or a tensor"},
)
class SortedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.act = nn.GRU(8, 8, batch_first=True), act()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths, order = lengths.sort(descending=True)
        packed = nn.utils.rnn.pack_padded_sequence(x[order], lengths, batch_first=True)
        _, hidden = self.rnn(packed)
        return self.act(hidden[-1])[order.argsort()]


@entry(FLAT)
class Recurrent(nn.Module):
    """One block, used repeatedly."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norms = dense(), nn.ModuleList(nn.LayerNorm(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + self.block(norm(x))
        return self.block(x)


# -- state and settings -----------------------------------------------------------------

STATE = {"calls": 0}
SETTINGS = types.SimpleNamespace(gain=2.0)
WIDTHS = [1, 2, 3]
CACHE: dict[int, Tensor] = {}
CALLS = 0


def reset() -> None:
    global CALLS
    CALLS, SETTINGS.gain, ClassCounter.calls = 0, 2.0, 0
    STATE.update(calls=0)
    WIDTHS[:] = [1, 2, 3]
    CACHE.clear()
    Settings.gain = 2.0
    ClosureCounter.tick = staticmethod(counter())
    ones.cache_clear()


@entry(kept={"": "changes the global CALLS"}, reset=reset)
class GlobalCounter(Base):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return self.act(self.linear(x)) * CALLS


@entry(kept={"": "changes STATE"}, reset=reset)
class GlobalTable(Base):
    def forward(self, x: Tensor) -> Tensor:
        STATE["calls"] += 1
        return self.act(self.linear(x)) * STATE["calls"]


@entry(kept={"": "changes ClassCounter.calls"}, reset=reset)
class ClassCounter(Base):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        ClassCounter.calls += 1
        return self.act(self.linear(x)) * ClassCounter.calls


def counter() -> Callable[[], int]:
    calls = 0

    def tick() -> int:
        nonlocal calls
        calls += 1
        return calls

    return tick


@entry(kept={"": "changes calls"}, reset=reset)
class ClosureCounter(Base):
    tick = staticmethod(counter())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.tick()


@entry(changes=(lambda m: setattr(SETTINGS, "gain", 3.0),), reset=reset)
class ConfigurationObject(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * SETTINGS.gain


@entry(changes=(lambda m: WIDTHS.append(4),), reset=reset)
class ModuleConstant(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        return torch.stack([F.max_pool1d(x, k, stride=1).mean(-1) for k in WIDTHS])


@entry(kept={"": "while tracing"}, reset=reset)
class GlobalCache(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * mask_of(8)


def mask_of(width: int) -> Tensor:
    if width not in CACHE:
        CACHE[width] = torch.ones(width) * (len(CACHE) + 1)
    return CACHE[width]


@functools.lru_cache
def ones(width: int) -> Tensor:
    return torch.ones(width)


@entry(kept={"": "reads ones, a _lru_cache_wrapper"}, reset=reset)
class LruCache(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * ones(8)


@entry(
    changes=(
        lambda m: setattr(Settings, "gain", 3.0),
        change("gain", 4.0),
        lambda m: delattr(m, "gain"),
    ),
    reset=reset,
)
class Settings(Base):
    gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.gain


@entry(changes=(lambda m: setattr(m.act, "gain", 2.0), lambda m: setattr(m, "bias", 1.0)))
class AskedByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x)) * getattr(self.act, "gain", 1.0)
        return x + self.bias if hasattr(self, "bias") else x


@entry(changes=(lambda m: m.gains.append(nn.Parameter(torch.ones(8))),))
class ParameterGains(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.ParameterList([torch.ones(8), torch.full((8,), 2.0)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        return sum(x * gain for gain in self.gains) / len(self.gains)


@entry(changes=(change("activation", torch.tanh), change("activation", F.relu)))
class PartialActivation(Base):
    def __init__(self) -> None:
        super().__init__()
        self.activation = functools.partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.activation(self.linear(x)))


@entry(
    changes=(
        change("temperature", 2.0),
        change("temperature", 2),
        change("temperature", torch.tensor(3.0)),
    )
)
class Temperature(Base):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.act(self.linear(x)) / self.temperature, -1)


class Kind(enum.Flag):
    DOUBLE = enum.auto()
    SHIFTED = enum.auto()


@entry(changes=(change("mode", "b"), change("kind", Kind.DOUBLE | Kind.SHIFTED)))
class Dispatch(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mode, self.kind = "a", Kind.DOUBLE
        self.table = {"a": self.forward_a, "b": self.forward_b}

    def forward_a(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))

    def forward_b(self, x: Tensor) -> Tensor:
        return self.linear(self.act(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.table[self.mode](x)
        x = x * 2 if Kind.DOUBLE in self.kind else x
        return x + 1 if self.kind & Kind.SHIFTED else x


@entry(changes=(lambda m: setattr(m, "block", types.MethodType(lambda s, x: s.act(x) * 5, m)),))
class MethodReplaced(Base):
    def block(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * 2


def halved(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs) / 2

    return wrapper


@entry(kept={"": "decorated"})
class Decorated(Base):
    @halved
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


@entry(kept={"": "decorated"})
class WithoutGradient(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Parent(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


@entry(FLAT)
class SuperForward(Parent):
    def __init__(self) -> None:
        super().__init__()
        self.second = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(super().forward(x) * 2)


@entry(kept={"": "imports torch"})
class TryImport(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:
            from torch.nn.functional import no_such_function as softplus
        except ImportError:
            softplus = F.softplus
        return self.act(softplus(self.linear(x)))


@entry(FLAT, Call(lambda n: (flat(n),), {"mode": "plus"}), Call(lambda n: (flat(n), None)))
class WalrusAndMatch(Base):
    def forward(self, x: Tensor, mode: str | None = "twice") -> Tensor:
        x = self.act(y := self.linear(x))
        match mode:
            case "twice":
                return x * 2 + y
            case "plus":
                return x + 1
            case _:
                return x


@entry(changes=(change("_scale", 3.0),))
class PropertyBased(Base):
    _scale = 2.0

    @property
    def scale(self) -> float:
        return self._scale * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.scale


@entry(changes=(lambda m: setattr(m.inner.linear, "out_features", 3),))
class Delegation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Parent()

    def __getattr__(self, name: str) -> Any:
        if name in ("linear", "act"):
            return getattr(super().__getattr__("inner"), name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.linear.out_features


@entry(FLAT, Call(lambda n: (flat(n),), {"scale": 3.0}), kept={"": ITERATES})
class KeywordsPassedOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.inner(x, **kwargs)


class Scaled(Base):
    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        return self.act(self.linear(x)) * scale


@entry(FLAT, Call(lambda n: (flat(n), flat(n))), kept={"": ITERATES})
class SeveralInputs(Base):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.act(sum(self.linear(x) for x in inputs))


class Maybe(nn.Module):
    def forward(self, x: Tensor) -> Tensor | None:
        return x if self.training else None


@entry(kept={"": NONE})
class SubBlockOfNone(Base):
    def __init__(self) -> None:
        super().__init__()
        self.extra = Maybe()

    def forward(self, x: Tensor) -> Tensor:
        extra = self.extra(x)
        x = self.act(self.linear(x))
        return x if extra is None else x + extra


@entry(FLAT)
class QuantStubs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = act(return_quant_tensor=True)
        self.linear = qnn.QuantLinear(8, 8, weight_bit_width=4, return_quant_tensor=False)
        self.dequant = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.linear(self.quant(x)))


@entry(FLAT, kept={"": "default that may change"})
class MutableDefault(Base):
    def forward(self, x: Tensor, seen: tuple[list[int], ...] = ([],)) -> Tensor:
        return self.act(self.linear(x)) * (len(seen[0]) + 1)


def same_type(samples: int) -> tuple[Tensor]:
    return (flat(samples).half(),)


@entry(Call(same_type), changes=(lambda m: m.linear.double(),))
class ParameterType(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x.to(next(self.linear.parameters()).dtype)).float())
