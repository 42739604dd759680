"""What a graph depends on besides its inputs: when it changes, the forward runs as Python code.

Each row is one way to read something that a trace would freeze, and to change it afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import io
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from wild import ALL_HIT, Base, X, alike, block, lowest_bits_flipped, net

import fxfault
from fxfault.errors import TransformError
from fxfault.passes import containers_of

pytestmark = pytest.mark.filterwarnings("ignore:Named tensors")
HERE = sys.modules[__name__]
GAIN = 2.0
BOX = [2.0]


class Gain:
    gain = 2.0

    def value(self) -> float:
        return self.gain


class Number(int):
    gain = 2.0


class Member(enum.Enum):
    ONE = 1


class Parent(Base):
    def forward(self, x: Tensor) -> Any:
        return self.act(self.linear(x))


class Child(Parent):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 2


class Ticking(Base):
    ticks = 2

    @classmethod
    def count(cls) -> int:
        return cls.ticks

    def forward(self, x: Tensor) -> Any:
        return self.act(x) * self.count()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Parent()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def scaled(x: Any, gain: float = 2.0) -> Any:
    return x * gain * scaled.gain  # type: ignore[attr-defined]


scaled.gain = 1.0  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Row:
    build: Callable[[], nn.Module]
    change: Callable[[Any], Any]


def row(forward: Callable[..., Any], change: Callable[[Any], Any], **attributes: Any) -> Row:
    """A network with the given forward and attributes, each made by a function."""

    def setup(self: Any) -> None:
        for name, make in attributes.items():
            setattr(self, name, make(self))

    return Row(net(forward, setup), change)


def put(owner: Any, name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(owner, name, value)


def own(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, value)


def times_five(self: Any, x: Tensor) -> Any:
    return self.act(x) * 5


CHANGES = {
    "-0.0 of numpy": row(
        lambda s, x: 1 / (s.act(x) * 0 + float(s.g)),
        own("g", np.float32(-0.0)),
        g=lambda s: np.float32(0.0),
    ),
    "1 and 1.0 in a list": row(
        lambda s, x: s.act(x).long() * s.g[0], own("g", [1.0]), g=lambda s: [1]
    ),
    "global": row(lambda s, x: s.act(x) * GAIN, put(HERE, "GAIN", 3.0)),
    "list of a closure": row(lambda s, x: s.act(x) * BOX[0], lambda m: BOX.append(BOX.pop() + 1)),
    "class": row(lambda s, x: s.act(x) * Gain.gain, put(Gain, "gain", 3.0)),
    "class in a list": row(
        lambda s, x: s.act(x) * s.k[0].gain, put(Gain, "gain", 3.0), k=lambda s: [Gain]
    ),
    "object made in the forward": row(
        lambda s, x: s.act(x) * Gain().value(), put(Gain, "gain", 3.0)
    ),
    "method of an object made in the forward": row(
        lambda s, x: s.act(x) * Gain().value(), put(Gain, "value", lambda self: 7.0)
    ),
    "module by getattr": row(lambda s, x: s.act(x) * HERE.GAIN, put(HERE, "GAIN", 3.0)),
    "module that is handed on": row(
        lambda s, x: (lambda k: s.act(x) * k.GAIN)(HERE), put(HERE, "GAIN", 3.0)
    ),
    "attribute of a member": row(
        lambda s, x: s.act(x) * getattr(s.k, "gain", 1.0),
        put(Member.ONE, "gain", 3.0),
        k=lambda s: Member.ONE,
    ),
    "attribute of a number": row(
        lambda s, x: s.act(x) * s.k.gain, put(Number, "gain", 3.0), k=lambda s: Number(1)
    ),
    "attribute of a function": row(lambda s, x: scaled(s.act(x)), put(scaled, "gain", 3.0)),
    "default of a function": row(
        lambda s, x: scaled(s.act(x)), put(scaled, "__defaults__", (9.0,))
    ),
    "code of a function": row(
        lambda s, x: scaled(s.act(x)),
        put(scaled, "__code__", (lambda x, gain=2.0: x * gain * 7).__code__),
    ),
    "attribute that comes": row(
        lambda s, x: s.act(x) * (2 if hasattr(s, "k") else 1), own("k", None)
    ),
    "attribute of a layer that comes": row(
        lambda s, x: s.act(x) * getattr(s.linear, "k", 1.0), lambda m: setattr(m.linear, "k", 3.0)
    ),
    "attribute of a layer of a layer": row(
        lambda s, x: s.act(x) * s.block[0].in_features,
        lambda m: setattr(m.block[0], "in_features", 3),
        block=lambda s: block(),
    ),
    "bias of a layer": row(
        lambda s, x: s.act(x) + (0 if s.linear.bias is None else s.linear.bias),
        lambda m: setattr(m.linear, "bias", None),
    ),
    "number of layers": row(
        lambda s, x: s.act(x) * len(s.k),
        lambda m: m.k.append(nn.ReLU()),
        k=lambda s: nn.ModuleList([nn.ReLU()]),
    ),
    "name of a layer": row(
        lambda s, x: s.act(x) * (2 if "b" in s.k else 1),
        lambda m: m.k.update({"b": nn.ReLU()}),
        k=lambda s: nn.ModuleDict({"a": nn.ReLU()}),
    ),
    "number of parameters": row(
        lambda s, x: s.act(x) * len(list(s.parameters())), own("k", nn.Parameter(torch.ones(1)))
    ),
    "type of a parameter": row(
        lambda s, x: s.act(x).to(next(s.linear.parameters()).dtype), lambda m: m.linear.double()
    ),
    "number of a parameter": row(
        lambda s, x: s.act(x) * float(list(s.linear.parameters())[1].sum()),
        lambda m: m.linear.bias.data.add_(1),
    ),
    "layer of which a list has another": row(
        lambda s, x: s.k[0](s.act(x)) + s.linear(x),
        own("linear", nn.Identity()),
        k=lambda s: [s.linear],
    ),
    "gradients": row(
        lambda s, x: s.act(x) * (2 if torch.is_grad_enabled() else 1),
        lambda m: torch.set_grad_enabled(False),
    ),
    "method on the instance": row(
        lambda s, x: s.value(x),
        lambda m: setattr(m, "value", types.MethodType(times_five, m)),
        value=lambda s: functools.partial(lambda s, x: s.act(x), s),
    ),
    "forward of the class": Row(Parent, put(Parent, "forward", times_five)),
    "forward of a part's class": Row(Outer, put(Parent, "forward", times_five)),
    "forward of a part": Row(
        Outer, lambda m: setattr(m.inner, "forward", types.MethodType(times_five, m.inner))
    ),
    "forward of the parent": Row(Child, put(Parent, "forward", times_five)),
    "call of a part's class": Row(
        Outer, put(Parent, "__call__", lambda s, x: nn.Module.__call__(s, x) * 3)
    ),
    "class of a class method": Row(Ticking, put(Ticking, "ticks", 3)),
    "class attribute on the instance": Row(Ticking, own("count", lambda: 7)),
}


@pytest.fixture(autouse=True)
def state_put_back() -> Any:
    """Put classes, functions and settings back."""
    kinds = [Gain, Number, Parent, Child, Ticking, HERE]
    before = [(kind, dict(vars(kind))) for kind in kinds]
    function = (scaled.__defaults__, scaled.__code__, scaled.gain)  # type: ignore[attr-defined]

    def put_back() -> None:
        for kind, values in before:
            for name in [n for n in vars(kind) if vars(kind)[n] is not values.get(n, before)]:
                if not name.startswith("__") or name == "__call__":
                    setattr(kind, name, values[name]) if name in values else delattr(kind, name)
        scaled.__defaults__, scaled.__code__, scaled.gain = function  # type: ignore[attr-defined]
        BOX[:] = [2.0]
        vars(Member.ONE).pop("gain", None)
        torch.set_grad_enabled(True)

    yield put_back
    put_back()


HOW: dict[str, Callable[[Any], Any]] = {
    "disabled": lambda faulty: faulty,
    "struck": lambda faulty: faulty,
    "copy": copy.deepcopy,
    "shallow copy": copy.copy,
    "stripped": fxfault.strip,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("how", HOW)
def test_change_after_the_transform_is_seen(name: str, how: str, state_put_back: Any) -> None:
    faulty = fxfault.transform(_built(name), ALL_HIT)
    faulty.faults.enabled = how == "struck"
    faulty = HOW[how](faulty)
    with lowest_bits_flipped() if how == "struck" else contextlib.nullcontext():
        expected = _before_and_after(_built(name), CHANGES[name].change)
    state_put_back()
    got = _before_and_after(faulty, CHANGES[name].change)
    assert alike(got, expected), containers_of(faulty)
    assert not alike(got[0], got[1]), "the change has changed nothing"


class Branching(Base):
    """Keeps its own forward, as what a tracer knows of its input does not tell which way to go."""

    gain = 2.0

    def forward(self, x: Tensor, *, more: Tensor | None = None) -> Any:
        x = self.act(x) * self.gain
        return x if x.sum() > 1e9 else self.linear(x)


def _as_attribute(model: nn.Module) -> None:
    model.forward = types.MethodType(Branching.forward, model)  # type: ignore[method-assign]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("prepare", [lambda model: None, _as_attribute])
def test_a_root_that_keeps_its_forward_is_copied_with_it(
    how: str, freeze: bool, prepare: Callable[[nn.Module], None]
) -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    prepare(model)
    faulty = fxfault.transform(model, ALL_HIT)
    assert [part.handling for part in containers_of(faulty)] == ["kept"]
    assert isinstance(faulty, Branching)
    faulty = fxfault.freeze(faulty) if freeze else faulty
    again = HOW[how](faulty)
    struck = how == "struck"
    if how != "stripped":
        again.faults.enabled = struck
    model.gain = again.gain = 5.0
    with torch.no_grad(), lowest_bits_flipped() if struck else contextlib.nullcontext():
        expected = model(X)
    with torch.no_grad():
        assert torch.equal(again(X), expected)
    assert again is faulty or faulty.gain == 2.0
    assert (type(again) is Branching) == (how == "stripped")
    assert ("forward" in vars(again)) == (how == "stripped" and prepare is _as_attribute)


def test_the_forward_of_a_copy_moves_its_own_clock() -> None:
    faulty = fxfault.transform(Branching().eval(), ALL_HIT)
    twin = copy.deepcopy(faulty)
    for _ in range(2):
        twin(X)
    assert twin.faults is not faulty.faults
    assert (twin.faults.clock.forward, faulty.faults.clock.forward) == (2, 0)


@pytest.mark.filterwarnings("ignore")
def test_a_root_that_keeps_its_forward_is_not_saved_whole() -> None:
    faulty = fxfault.transform(Branching(), ALL_HIT)
    with pytest.raises(TransformError, match=r"Branching: .* save model\.state_dict\(\)"):
        torch.save(faulty, io.BytesIO())
    with pytest.raises(TransformError, match=r"Branching: .* cannot become TorchScript"):
        torch.jit.script(faulty)


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CHANGES[name].build().eval()


def _before_and_after(model: nn.Module, change: Callable[[Any], Any]) -> list[Any]:
    before = model(X)
    change(model)
    return [before, model(X)]


EFFECTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "list": lambda s, x: (BOX.append(1.0), s.act(x) * len(BOX))[1],
    "class": lambda s, x: (setter(Gain, "gain", Gain.gain + 1), s.act(x) * Gain.gain)[1],
    "attribute of a function": lambda s, x: (tick(), s.act(x) * scaled.gain)[1],
}


def setter(owner: Any, name: str, value: Any) -> None:
    if owner is Gain:
        owner.gain = value


def tick() -> None:
    scaled.gain += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("effect", EFFECTS)
def test_effect_outside_happens_in_each_forward_and_not_in_transform(
    effect: str, nested: bool
) -> None:
    model = net(EFFECTS[effect])().eval()
    model = nn.Sequential(block(), model).eval() if nested else model
    faulty = fxfault.transform(model, ALL_HIT)
    assert (BOX, Gain.gain, scaled.gain) == ([2.0], 2.0, 1.0)  # type: ignore[attr-defined]
    faulty.faults.enabled = False
    first, second = faulty(X), faulty(X)
    assert not alike(first, second)
    reasons = [c.reason for c in containers_of(faulty) if c.handling == "kept"]
    assert [reason.startswith("its forward changes ") for reason in reasons] == [True]


def test_question_before_a_long_block_is_asked() -> None:
    """Python tells of the prefix of a jump over more than 255 words, and not of the jump."""

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    lines = "\n".join("        y = y * 1.5 - x" for _ in range(120))
    scope: dict[str, Any] = {}
    head = "def forward(self, x):\n    y = self.act(x)\n    m = self.nothing(x)\n    if m is None:"
    source = f"{head}\n{lines}\n    return y"
    exec(source, scope)
    model = net(scope["forward"], lambda s: setattr(s, "nothing", Nothing()))().eval()
    faulty = fxfault.transform(model, ALL_HIT)
    faulty.faults.enabled = False
    assert alike(faulty(X), model(X))


def test_names_that_our_own_code_uses_are_free_for_models() -> None:
    """Reading bytecode makes `dis.Instruction` tuples, whose fields have such names."""

    def setup(self: Any) -> None:
        for name in ("positions", "argval", "offset", "opname"):
            setattr(self, name, nn.Parameter(torch.ones(8)))

    def forward(self: Any, x: Tensor) -> Any:
        x = self.act(x).flatten(1) * self.positions
        return x.clone() * self.argval + self.offset + self.opname

    faulty = fxfault.transform(net(forward, setup)(), ALL_HIT)
    assert [c.handling for c in containers_of(faulty)] == ["traced"]


def test_table_of_attributes_that_a_forward_reads_is_read_in_each_forward() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.act(x) * self.__dict__["gain"]

    model = net(forward, lambda self: setattr(self, "gain", 2.0))().eval()
    faulty: Any = fxfault.transform(model, ALL_HIT)
    faulty.faults.enabled = False
    once = faulty(X)
    faulty.gain = 6.0
    assert torch.equal(faulty(X), once * 3)
