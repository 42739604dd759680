"""Code as users write it: the transformed model does what the eager one does, and is struck once.

Forwards with all sorts of values and types, and what they leave behind.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import functools
import random
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear
from brevitas.quant_tensor import IntQuantTensor, QuantTensor
from torch import Tensor, nn
from torch.nn.utils import parametrize
from wild import (
    ALL_HIT,
    Base,
    Call,
    Kept,
    X,
    act,
    alike,
    block,
    built,
    check,
    doubled_if_quantised,
    net,
    with_block,
)

import fxfault

# Older torch says so once, the first time that Brevitas unpacks an input.
pytestmark = pytest.mark.filterwarnings("ignore:Named tensors")


# -- the oracle and the comparison --------------------------------------------------------


class Traced(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.act = act()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.inner(x)) * 2


# -- every target is struck, once ---------------------------------------------------------


def test_kept_inside_traced_inside_kept_is_struck_once() -> None:
    check(lambda: Kept(Traced(Kept(Traced(block())))))


@pytest.mark.parametrize("quant_tensor", [False, True])
def test_activation_shared_by_two_kept_containers_is_struck_once(quant_tensor: bool) -> None:
    def setup(self: Any) -> None:
        shared = act(return_quant_tensor=quant_tensor)
        self.a, self.b = Kept(shared), Kept(shared)

    check(net(lambda self, x: (self.a(x), self.b(x)), setup))


def test_activation_shared_by_a_graph_and_two_kept_containers_is_struck_once() -> None:
    def setup(self: Any) -> None:
        self.a, self.b = Kept(self.act), Kept(self.act)

    check(net(lambda self, x: (self.a(x), self.b(x), self.act(x)), setup))


def test_kept_container_that_reaches_a_shared_activation_through_a_list_is_struck() -> None:
    class ByList(nn.Module):
        def __init__(self, shared: nn.Module) -> None:
            super().__init__()
            self.registered = shared
            self.layers = [shared]

        def forward(self, x: Tensor) -> Any:
            if x.sum() > 1e9:
                return x
            return self.layers[0](x)

    def setup(self: Any) -> None:
        self.other = ByList(self.act)

    check(net(lambda self, x: (self.other(x), self.act(x)), setup))


Pair = collections.namedtuple("Pair", "first")


REFERENCES = {
    "list in dict": lambda m: {"k": [(m.block,)]}["k"][0][0],
    "bound method": lambda m: m.block.forward,
    "partial": lambda m: functools.partial(m.block),
    "partial of a bound method": lambda m: functools.partial(m.block.forward),
    "closure": lambda m: lambda x: m.block(x),
    "namespace": lambda m: types.SimpleNamespace(__call__=m.block, f=m.block),
    "ordered dict": lambda m: collections.OrderedDict(f=m.block),
    "named tuple": lambda m: Pair(m.block),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_block_that_is_reached_through_a_reference_is_struck(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        reference = self.reference
        if isinstance(reference, types.SimpleNamespace):
            reference = reference.f
        elif isinstance(reference, (collections.OrderedDict, Pair)):
            reference = next(iter(reference.values() if isinstance(reference, dict) else reference))
        return reference(x)

    check(net(forward, with_block(reference=REFERENCES[kind])))


def test_block_called_by_its_forward_method_is_struck() -> None:
    check(net(lambda self, x: self.block.forward(self.linear(x)), with_block()))


def test_activation_called_by_its_forward_method_is_struck() -> None:
    check(net(lambda self, x: self.act.forward(self.linear(x))))


class InstanceForward(Base):
    """`self.forward = self.variant`, a way to choose an implementation."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.variant

    def variant(self, x: Tensor) -> Any:
        return self.act(self.linear(x)) * 3

    def forward(self, x: Tensor) -> Any:
        return self.act(x)


@pytest.mark.parametrize("nested", [False, True])
def test_forward_set_on_the_instance_is_the_one_that_runs(nested: bool) -> None:
    check(lambda: nn.Sequential(InstanceForward()) if nested else InstanceForward())


class OwnCall(Base):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * 2)

    def forward(self, x: Tensor) -> Any:
        return self.act(x)


@pytest.mark.parametrize("nested", [False, True])
def test_call_that_the_class_overrides_runs(nested: bool) -> None:
    check(lambda: nn.Sequential(OwnCall()) if nested else OwnCall())


def test_call_that_a_leaf_overrides_runs_once() -> None:
    class Doubling(nn.Linear):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x * 2)

    check(lambda: nn.Sequential(Doubling(8, 8), act()))


def test_subclass_of_a_target_that_works_on_its_own_output_runs_when_disabled() -> None:
    class First(QuantIdentity):
        def forward(self, x: Any) -> Any:
            return super().forward(x)[0]

    model = nn.Sequential(First(bit_width=4)).eval()
    faulty = fxfault.transform(model, ALL_HIT)
    faulty.faults.enabled = False
    assert alike(faulty(X), model(X))


@pytest.mark.parametrize("where", ["root", "block"])
def test_compiled_module_is_struck(where: str) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), block())
        (model if where == "root" else model[1]).compile(backend="eager")
        return model.eval()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas breaks graphs, and torch says so.
        eager = built(build)
        faulty = fxfault.transform(eager, ALL_HIT)
        assert not torch.equal(faulty(X), eager(X))


def test_wrapper_of_torch_compile_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), torch.compile(block(), backend="eager"))
    with pytest.raises(
        fxfault.TransformError, match=r"1 was made by torch\.compile; transform the model"
    ):
        fxfault.transform(model, ALL_HIT)


def test_parametrization_that_is_a_target_is_struck() -> None:
    def build() -> nn.Module:
        model = net(
            lambda self, x: self.linear(x) @ self.weight,
            lambda self: setattr(self, "weight", nn.Parameter(torch.randn(8, 8))),
        )()
        parametrize.register_parametrization(model, "weight", act())
        return model

    check(build)


def test_model_around_a_transformed_model_is_refused() -> None:
    inner = fxfault.transform(block(), ALL_HIT)
    with pytest.raises(fxfault.TransformError, match="already has fault sites"):
        fxfault.transform(nn.Sequential(inner, act()), ALL_HIT)


def test_two_transformed_twins_of_one_model_are_independent() -> None:
    model = block().eval()
    first, second = (fxfault.transform(model, ALL_HIT) for _ in range(2))
    second.faults.enabled = False
    expected = model(X)
    assert torch.equal(second(X), expected)
    assert not torch.equal(first(X), expected)
    assert torch.equal(fxfault.strip(first)(X), expected)


# -- values, types, None ------------------------------------------------------------------


def test_optional_input_that_is_left_out_is_none() -> None:
    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.act(x) if mask is None else self.act(x) * mask

    check(net(forward), X, Call((X, None)), Call((X, 3 * X)), Call((), {"mask": X, "x": X}))


def test_optional_input_of_which_none_is_replaced_silently() -> None:
    def forward(self: Any, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            x = x * 2
        return self.act(x)

    check(net(forward), X, Call((X, X)))


def test_optional_entry_of_a_dict_input() -> None:
    def forward(self: Any, batch: dict[str, Tensor]) -> Any:
        mask = batch.get("mask")
        return self.act(batch["x"]) if mask is None else self.act(batch["x"]) * mask

    check(net(forward), Call(({"x": X},)), Call(({"x": X, "mask": 2 * X},)))


def test_leaf_that_may_return_none() -> None:
    class Maybe(nn.Module):
        def forward(self, x: Tensor) -> Tensor | None:
            return x if self.training else None

    def forward(self: Any, x: Tensor) -> Any:
        y = self.maybe(x)
        return self.act(x) if y is None else self.act(y) * 2

    check(net(forward, lambda self: setattr(self, "maybe", Maybe())))


class Mode(enum.Enum):
    A = 1
    B = 2


def test_default_that_is_compared_by_identity() -> None:
    def forward(self: Any, x: Tensor, mode: Mode = Mode.A) -> Any:
        return self.act(x) if mode is Mode.A else self.act(x) * 2

    check(net(forward), X, Call((X, Mode.B)))


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "isinstance": lambda y: y.value * 2 if isinstance(y, QuantTensor) else y,
    "__class__": lambda y: y.value * 2 if y.__class__ is IntQuantTensor else y,
    "hasattr": lambda y: y.value * 2 if hasattr(y, "scale") else y,
    "getattr": lambda y: getattr(y, "value", y) * 2,
    "singledispatch": doubled_if_quantised,
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("quant_tensor", [False, True])
def test_question_about_the_type_of_a_value(question: str, quant_tensor: bool) -> None:
    def setup(self: Any) -> None:
        self.act = act(return_quant_tensor=quant_tensor)

    check(net(lambda self, x: QUESTIONS[question](self.act(x)), setup))


def test_attribute_that_is_tried_and_absent() -> None:
    def forward(self: Any, x: Any) -> Any:
        x = self.linear(x)
        try:
            return self.act(x.value)
        except AttributeError:
            return self.act(x)

    check(net(forward))


def test_failure_that_the_forward_handles_itself_does_not_hide_the_refusal() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        try:
            scale = int(x.shape[0])
        except Exception:
            scale = 1
        return self.act(x) * scale

    check(net(forward))


class Attributed(dict):
    __getattr__ = dict.__getitem__


class OwnList(list):
    pass


@dataclasses.dataclass
class Output:
    y: Tensor
    n: int = 3


@pytest.mark.parametrize(
    "pack",
    [
        lambda y: {"a": [y, (y,)], "none": None, "text": "t"},
        lambda y: collections.OrderedDict(out=y),
        lambda y: Attributed(out=y),
        lambda y: Pair(y),
        lambda y: Output(y),
        lambda y: OwnList([y]),
    ],
    ids=["dict", "OrderedDict", "subclass of dict", "namedtuple", "dataclass", "subclass of list"],
)
def test_output_has_the_type_of_the_eager_one(pack: Callable[[Tensor], Any]) -> None:
    check(net(lambda self, x: pack(self.act(x))))


def test_inputs_by_keyword_and_by_star() -> None:
    def through(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def inner(self: Any, x: Tensor, *, scale: float = 2.0) -> Any:
        return self.act(x) * scale

    calls = X, Call((), {"x": X}), Call((X,), {"scale": 3.0})
    check(net(inner), *calls)
    check(net(through, lambda self: setattr(self, "inner", net(inner)())), *calls)


def test_inputs_with_names_that_generated_code_uses() -> None:
    def forward(self: Any, input: Tensor, faults: Tensor, torch: Tensor) -> Any:
        return self.act(input) + faults + torch

    check(net(forward), Call((), {"input": X, "faults": X, "torch": X}))


def test_input_that_is_a_dataclass_or_a_quant_tensor() -> None:
    check(net(lambda self, x: self.act(x.y) + x.n), Output(X))
    quantised = act(return_quant_tensor=True).eval()(X)
    check(lambda: nn.Sequential(act(return_quant_tensor=True), QuantLinear(8, 8), act()), quantised)


def test_batch_size_may_change_from_call_to_call() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        batch, width = x.shape
        return self.act(x.view(batch, 2, width // 2)).flatten(1)

    check(net(forward), X, X[:1], X)
    faulty = fxfault.transform(net(forward)().eval(), ALL_HIT)
    assert faulty(X[:0]).shape == (0, 8)


@pytest.mark.parametrize("kept", [False, True])
def test_leaf_that_fills_a_list_of_its_caller(kept: bool) -> None:
    class Collect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = act() if kept else nn.Identity()

        def forward(self, x: Tensor, features: list[Tensor]) -> Tensor:
            if kept and x.sum() > 1e9:
                return x
            features.append(self.own(x) * 2)
            return x

    def forward(self: Any, x: Tensor) -> Any:
        features: list[Tensor] = []
        x = self.collect(x, features)
        return self.act(x), features

    check(net(forward, lambda self: setattr(self, "collect", Collect())))


def test_loops_over_module_lists_and_dicts() -> None:
    class Stack(nn.ModuleList):
        def forward(self, x: Tensor) -> Any:
            for layer in self:
                x = layer(x)
            return x

    def setup(self: Any) -> None:
        self.stack = Stack([block(), act()])
        self.layers = nn.ModuleList([block(), block()])
        self.heads = nn.ModuleDict({"a": act(), "b": act()})

    def forward(self: Any, x: Tensor) -> Any:
        x = self.stack(x)
        for i in range(len(self.layers)):
            x = self.layers[i](x)
        return {name: head(x) for name, head in self.heads.items()}

    check(net(forward, setup))


# -- effects of a forward -----------------------------------------------------------------


def _counts_in_namespace(self: Any, x: Tensor) -> Any:
    self.state.n += 1
    return self.act(x) * self.state.n


def _appends(self: Any, x: Tensor) -> Any:
    self.state.append(1)
    return self.act(x) * len(self.state)


def _counts_in_counter(self: Any, x: Tensor) -> Any:
    self.state["n"] += 1
    return self.act(x) * self.state["n"]


def _counts_in_nested_dict(self: Any, x: Tensor) -> Any:
    self.state["a"]["n"] += 1
    return self.act(x) * self.state["a"]["n"]


def _adds_in_place(self: Any, x: Tensor) -> Any:
    self.state.add_(1)
    return self.act(x) + self.state


def _draws(self: Any, x: Tensor) -> Any:
    return self.act(x) * self.state.random()


EFFECTS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "attribute of an object": (_counts_in_namespace, lambda: types.SimpleNamespace(n=0)),
    "deque": (_appends, lambda: collections.deque(maxlen=2)),
    "Counter": (_counts_in_counter, collections.Counter),
    "nested dict": (_counts_in_nested_dict, lambda: {"a": {"n": 0}}),
    "plain tensor in place": (_adds_in_place, lambda: torch.zeros(8)),
    "generator of its own": (_draws, lambda: random.Random(0)),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_effect_of_the_forward_happens_in_each_forward(effect: str) -> None:
    forward, state = EFFECTS[effect]
    check(net(forward, lambda self: setattr(self, "state", state())))


@pytest.mark.parametrize("effect", EFFECTS)
def test_effect_of_the_forward_does_not_happen_in_transform(effect: str) -> None:
    forward, state = EFFECTS[effect]
    model = net(forward, lambda self: setattr(self, "state", state()))()

    def snapshot() -> Any:
        state = model.state.getstate() if isinstance(model.state, random.Random) else model.state
        return copy.deepcopy(state)

    before = snapshot()
    fxfault.transform(model, ALL_HIT)
    after = snapshot()
    assert torch.equal(after, before) if isinstance(after, Tensor) else after == before


def test_buffer_that_is_updated_in_the_forward() -> None:
    def in_place(self: Any, x: Tensor) -> Any:
        y = self.act(x)
        self.ema.mul_(0.9).add_(y.detach().mean(0) * 0.1)
        return y - self.ema

    def anew(self: Any, x: Tensor) -> Any:
        y = self.act(x)
        self.ema = self.ema * 0.9 + y.detach().mean(0) * 0.1
        return y - self.ema

    for forward in (in_place, anew):
        check(net(forward, lambda self: self.register_buffer("ema", torch.zeros(8))))


def test_effect_on_a_child_happens_in_each_forward() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        self.linear.calls += 1
        return self.act(x) * self.linear.calls

    check(net(forward, lambda self: setattr(self.linear, "calls", 0)))


def test_effect_of_a_block_called_by_its_forward_method_happens_in_each_forward() -> None:
    def count(self: Any, x: Tensor) -> Any:
        self.calls += 1
        return self.act(x) * self.calls

    counting = net(count, lambda self: setattr(self, "calls", 0))
    build = net(
        lambda self, x: self.inner.forward(x), lambda self: setattr(self, "inner", counting())
    )
    check(build)


@pytest.mark.parametrize("cache", ["lru_cache", "dict"])
def test_cache_outside_the_model_is_not_poisoned(cache: str) -> None:
    known: dict[int, Tensor] = {}

    @functools.lru_cache
    def remembered(n: int) -> Tensor:
        return torch.ones(n)

    def from_dict(n: int) -> Tensor:
        if n not in known:
            known[n] = torch.ones(n)
        return known[n]

    ones = remembered if cache == "lru_cache" else from_dict
    model = net(lambda self, x: self.act(x) * ones(8))()
    faulty = fxfault.transform(model, ALL_HIT)
    assert type(ones(8)) is Tensor
    assert type(model(X)) is Tensor
    assert type(faulty(X)) is Tensor
