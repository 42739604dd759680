"""Code as users write it: the transformed model does what the eager one does, and is struck once.

The oracle is independent of the passes: the eager model, with the layers' own `pack_output`
flipping the lowest bit of what every target quantised.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import random
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brevitas.nn import QuantHardTanh, QuantIdentity, QuantLinear, QuantReLU
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.quant_tensor import IntQuantTensor, QuantTensor
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import fxfault
from fxfault.passes import containers_of
from fxfault.passes.tracing.model_tracer import ModelTracer

# Older torch says so once, the first time that Brevitas unpacks an input.
pytestmark = pytest.mark.filterwarnings("ignore:Named tensors")

ALL_HIT = {
    "enabled": True,
    "probability": 100.0,
    "apply_during": "both",
    "seed": 3,
    "injection_type": "lsb_flip",
}
SOME_HIT = {"enabled": True, "probability": 30.0, "apply_during": "both", "seed": 3}
X = torch.linspace(-1, 1, 32).reshape(4, 8)


# -- the oracle and the comparison ------------------------------------------------------


@contextlib.contextmanager
def lowest_bits_flipped() -> Iterator[None]:
    """Strike every target of eager models, exactly once for each call."""
    original = QuantNonLinearActLayer.pack_output

    def pack_output(self: Any, output: Any) -> Any:
        is_target = isinstance(self, (QuantIdentity, QuantReLU, QuantHardTanh))
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
        eager, model = (_built(build).train(training) for _ in range(2))
        faulty = fxfault.transform(model, ALL_HIT)
        for struck in (False, True):
            faulty.faults.enabled = struck
            for call in calls:
                with lowest_bits_flipped() if struck else contextlib.nullcontext():
                    expected = call(eager)
                got = call(faulty)
                where = f"training={training} struck={struck}: {containers_of(faulty)}"
                assert alike(got, expected), where


def _built(build: Callable[[], nn.Module]) -> nn.Module:
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


class Traced(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.act = act()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.inner(x)) * 2


# -- every target is struck, once -------------------------------------------------------


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
        eager = _built(build)
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


# -- values, types, None ----------------------------------------------------------------


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


@functools.singledispatch
def doubled_if_quantised(x: Any) -> Any:
    return x


@doubled_if_quantised.register
def _(x: IntQuantTensor) -> Any:
    return x.value * 2


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


# -- effects of a forward ---------------------------------------------------------------


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


# -- training and evaluation ------------------------------------------------------------


def _bn_eval(self: Any, x: Tensor) -> Any:
    self.norm.eval()
    return self.norm(self.act(x))


MODES: dict[str, Callable[..., Any]] = {
    "and": lambda s, x: s.act(x) * 2 if s.training and s.norm is not None else s.act(x),
    "not": lambda s, x: s.act(x) * 2 if not s.training else s.act(x),
    "key": lambda s, x: s.act(x) * {True: 2, False: 1}[s.training],
    "number": lambda s, x: s.act(x) * float(s.training),
    "is True": lambda s, x: s.act(x) * 2 if s.training is True else s.act(x),
    "equals True": lambda s, x: s.act(x) * 2 if s.training == True else s.act(x),  # noqa: E712
    "isinstance bool": lambda s, x: (
        s.act(x) * 2 if isinstance(s.training, bool) and s.training else s.act(x)
    ),
    "of a leaf": lambda s, x: s.act(x) * 2 if s.norm.training else s.act(x),
    "of the target": lambda s, x: s.act(x) * 2 if s.act.training else s.act(x),
    "of a block": lambda s, x: s.act(x) * 2 if s.block.training else s.act(x),
    "of a leaf, handed on": lambda s, x: F.batch_norm(
        s.act(x), s.norm.running_mean, s.norm.running_var, training=s.norm.training
    ),
    "set in the forward": _bn_eval,
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("question", MODES)
def test_mode_is_asked_anew_in_each_forward(question: str, nested: bool) -> None:
    def setup(self: Any) -> None:
        self.norm, self.block = nn.BatchNorm1d(8), block()

    def build() -> nn.Module:
        model = net(MODES[question], setup)()
        return nn.Sequential(model) if nested else model

    for first in (True, False):
        eager, model = _built(build).train(first), _built(build).train(first)
        faulty = fxfault.transform(model, ALL_HIT)
        faulty.faults.enabled = False
        for mode in (first, not first, first):
            assert alike(faulty.train(mode)(X), eager.train(mode)(X)), (first, mode)


def test_train_method_that_keeps_normalisation_frozen_is_respected() -> None:
    class Frozen(Base):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.norm.eval()
            return self

        def forward(self, x: Tensor) -> Any:
            return self.norm(self.act(x))

    check(Frozen)


def test_removing_gives_the_model_back_with_its_frozen_parts_frozen() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), act()).train()
    model[1].eval()
    injector = fxfault.FaultInjector()
    back = injector.remove(injector.inject(model, fxfault.FaultInjectionConfig(**ALL_HIT)))
    assert back is model
    assert [m.training for m in back] == [True, False, True]


def test_stripping_keeps_the_mode_of_each_part() -> None:
    faulty = fxfault.transform(nn.Sequential(nn.BatchNorm1d(8), block()), ALL_HIT).train()
    faulty[1].eval()
    stripped = fxfault.strip(faulty)
    assert (stripped.training, stripped[0].training, stripped[1].training) == (True, True, False)


# -- changes after the transform --------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "change"),
    [
        (lambda s, x: s.linear(s.act(x)), lambda m: setattr(m, "linear", nn.Identity())),
        (lambda s, x: s.act(x) @ s.linear.weight, lambda m: m.linear.weight.data.zero_()),
        (
            lambda s, x: s.block(x),
            lambda m: m.block[1].register_forward_hook(lambda module, args, output: output * 2),
        ),
        (
            lambda s, x: s.block(x),
            lambda m: m.register_forward_hook(lambda module, args, output: output * 2),
        ),
    ],
    ids=[
        "layer",
        "parameter",
        "hook on a target",
        "hook on the model",
    ],
)
def test_change_made_after_the_transform_is_seen(
    forward: Callable[..., Any], change: Callable[[Any], Any]
) -> None:
    build = net(forward, with_block(gain=lambda self: 1.0))
    eager, faulty = _built(build), fxfault.transform(_built(build), ALL_HIT)
    faulty.faults.enabled = False
    for model in (eager, faulty):
        model(X)
        change(model)
    assert alike(faulty(X), eager(X))


def test_parts_of_a_transformed_model_called_from_outside_return_what_they_did() -> None:
    model = net(lambda self, x: self.block(x), with_block())().eval()
    faulty = fxfault.transform(model, ALL_HIT)
    faulty.faults.enabled = False
    assert alike(faulty.block(X), model.block(X))
    assert alike(faulty.block[1](X)[0], model.block[1](X)[0])


# -- hooks ------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [lambda m, a, o: o * 2, lambda m, a, o: o[0]])
def test_hook_of_a_target_sees_what_the_layer_returns(hook: Callable[..., Any]) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), act())
        model[1].register_forward_hook(hook)
        return model

    eager, faulty = _built(build), fxfault.transform(_built(build), ALL_HIT)
    faulty.faults.enabled = False
    assert alike(faulty(X), eager(X))


def test_pre_hook_of_the_model_changes_its_keywords() -> None:
    def build() -> nn.Module:
        model = net(lambda self, x, gain=1.0: self.act(x) * gain)()
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "gain": 3.0}), with_kwargs=True
        )
        return model

    check(build)


# -- gradients and contexts -------------------------------------------------------------


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 7


def _partly_frozen(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        x = self.linear(x)
    return self.block(x)


def _island(self: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", enabled=False):
        x = self.linear(x)
    return self.block(x)


class NoGradient(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.act(self.linear(x))


GRADIENTS: dict[str, Callable[[], nn.Module]] = {
    "autograd function": net(lambda self, x: Sign.apply(self.block(self.linear(x))), with_block()),
    "no_grad": net(_partly_frozen, with_block()),
    "no_grad decorator": lambda: nn.Sequential(nn.Linear(8, 8), NoGradient(), nn.Linear(8, 8)),
    "autocast island": net(_island, with_block()),
}


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_are_those_of_the_eager_model_wherever_it_was_transformed(
    kind: str, around: Callable[[], Any]
) -> None:
    eager, model = _built(GRADIENTS[kind]), _built(GRADIENTS[kind])
    with around():
        faulty = fxfault.transform(model, ALL_HIT)
    faulty.faults.enabled = False
    outputs = []
    for each in (eager, faulty):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast island"):
            outputs.append(each(X))
        outputs[-1].float().sum().backward()
    assert alike(outputs[1], outputs[0])
    for (name, expected), got in zip(eager.named_parameters(), faulty.parameters(), strict=True):
        assert alike(got.grad, expected.grad), name


@pytest.mark.parametrize(
    ("place", "reentrant"),
    [(place, reentrant) for place in ("traced", "kept", "outer") for reentrant in (False, True)],
)
def test_checkpointing_recomputes_the_same_faults(place: str, reentrant: bool) -> None:
    def build(checkpointed: bool) -> nn.Module:
        def setup(self: Any) -> None:
            self.block = nn.Sequential(block(), block())
            self.out = nn.Linear(8, 8)

        def forward(self: Any, x: Tensor) -> Any:
            if place == "kept" and x.sum() > 1e9:
                return x
            x = self.linear(x)
            inside = checkpointed and place != "outer"
            y = checkpoint(self.block, x, use_reentrant=reentrant) if inside else self.block(x)
            return self.out(y)

        return net(forward, setup)()

    settings = {**SOME_HIT, "gradient_mode": "zero_faulty"}
    results = []
    for checkpointed in (False, True):
        faulty = fxfault.transform(_built(lambda c=checkpointed: build(c)), settings)
        statistics = faulty.faults.new_statistics()
        x = X.clone().requires_grad_()
        outer = checkpointed and place == "outer"
        y = checkpoint(faulty, x, use_reentrant=reentrant) if outer else faulty(x)
        (y * torch.linspace(1, 2, 8)).sum().backward()
        counts = [s.total_activations for s in statistics.layer_stats.values()]
        counts = [count for count in counts if count]  # Of sites that the forward reaches.
        faulty.faults.clock.begin(1)
        results.append((y, x.grad, counts, faulty.faults.clock.first_sample))
    assert alike(results[1], results[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_not_traced_away(reentrant: bool) -> None:
    """The layers of the block run again in the backward, which is what saves the memory."""

    def setup(self: Any) -> None:
        self.block = nn.Sequential(block(), block())

    def forward(self: Any, x: Tensor) -> Any:
        return checkpoint(self.block, self.linear(x), use_reentrant=reentrant)

    faulty = fxfault.transform(_built(net(forward, setup)), SOME_HIT)
    runs = []
    linear = next(m for m in faulty.block.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda *_: runs.append(1))
    y = faulty(X.clone().requires_grad_())
    assert len(runs) == 1
    y.sum().backward()
    assert len(runs) == 2
    assert "kept" in str(fxfault.inspect(faulty))


# -- state ------------------------------------------------------------------------------


def test_empty_buffer_slot_does_not_part_the_tables_of_the_two_models() -> None:
    def setup(self: Any) -> None:
        self.register_buffer("ema", None)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self: Any, x: Tensor) -> Any:
        self.ema = x.mean(0)
        self.calls = self.calls + 1
        return self.act(x)

    model = net(forward, setup)()
    faulty = fxfault.transform(model, ALL_HIT)
    faulty(X)
    assert torch.equal(model.calls, faulty.calls)
    assert model.ema is faulty.ema
    faulty.double()
    assert model.calls.dtype == faulty.calls.dtype == torch.float64


@pytest.mark.parametrize("name", ["graph", "code", "meta", "graphs", "print_readable"])
@pytest.mark.parametrize("kind", ["layer", "buffer", "tensor", "method"])
def test_names_that_graph_modules_use_stay_the_models(name: str, kind: str) -> None:
    def setup(self: Any) -> None:
        if kind == "layer":
            self.add_module(name, nn.Linear(8, 8))
        elif kind == "buffer":
            self.register_buffer(name, torch.eye(8) * 2)
        elif kind == "tensor":
            setattr(self, name, torch.eye(8) * 2)

    def forward(self: Any, x: Tensor) -> Any:
        used = getattr(self, str(name))
        return used(self.act(x)) if callable(used) else self.act(x) @ used

    kind_of_net = net(forward, setup)
    if kind == "method":
        setattr(kind_of_net, name, lambda self, x: self.linear(x))
    eager, faulty = _built(kind_of_net), fxfault.transform(_built(kind_of_net), ALL_HIT)
    faulty.faults.enabled = False
    assert alike(faulty(X), eager(X))
    if kind == "method":
        assert alike(getattr(faulty, name)(X), getattr(eager, name)(X))


def test_plain_attribute_called_meta_is_kept() -> None:
    model = net(lambda self, x: self.act(x), lambda self: setattr(self, "meta", {"a": 1}))()
    faulty = fxfault.transform(model, ALL_HIT)
    assert faulty.meta == {"a": 1}
    assert fxfault.strip(faulty).meta == {"a": 1}


def test_layer_called_faults_below_a_graph_of_its_own() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.faults(self.act(x)) * (2 if self.training else 1)

    inner = net(forward, lambda self: setattr(self, "faults", nn.Linear(8, 8)))
    check(lambda: nn.Sequential(nn.Linear(8, 8), inner()))


def test_classes_that_register_their_subclasses_do_not_see_ours() -> None:
    registry: dict[str, type] = {}

    class Registered(nn.Module):
        def __init_subclass__(cls, *, tag: str) -> None:
            registry[cls.__name__] = cls

    class Net(Registered, tag="t"):
        def __init__(self) -> None:
            super().__init__()
            self.act = act()

        def forward(self, x: Tensor) -> Any:
            return self.act(x)

    check(Net)
    assert registry == {"Net": Net}


def test_classes_with_slots_metaclasses_and_delegation() -> None:
    class Slotted(Base):
        __slots__ = ("gain",)

        def __init__(self) -> None:
            super().__init__()
            self.gain = 2.0

        def forward(self, x: Tensor) -> Any:
            return self.act(x) * self.gain

    class Abstract(Base, abc.ABC):
        @abc.abstractmethod
        def forward(self, x: Tensor) -> Any: ...

    class Delegating(Abstract):
        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("linear"), name)

        def forward(self, x: Tensor) -> Any:
            return self.act(x) * self.in_features

    check(Delegating)
    check(Slotted)


def test_graph_modules_lazy_layers_scripts_and_parametrizations_work() -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, QuantIdentity) or super().is_leaf_module(m, module_qualified_name)

    def graph_module() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), act(), block())
        return torch.fx.GraphModule(model, Leaves().trace(model))

    def parametrized() -> nn.Module:
        model = net(
            lambda self, x: self.act(self.linear(x) @ self.weight),
            lambda self: setattr(self, "weight", nn.Parameter(torch.randn(8, 8))),
        )()
        parametrize.register_parametrization(model, "weight", nn.Tanh())
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), model)

    for build in (
        graph_module,
        parametrized,
        lambda: nn.Sequential(graph_module(), nn.Linear(8, 8)),
        lambda: nn.Sequential(nn.LazyLinear(8), act()),
    ):
        check(build)


def test_transformed_model_works_inside_a_bigger_one() -> None:
    inner = nn.Sequential(nn.Linear(8, 8), act())
    faulty = fxfault.transform(inner, {**SOME_HIT, "apply_during": "train"})
    outer = nn.Sequential(faulty, nn.Linear(8, 2))
    keys = [key for key in outer.state_dict() if key.startswith("0.")]
    assert keys == [f"0.{key}" for key in inner.state_dict()]
    assert not outer.eval()[0].faults[0].armed
    twin = copy.deepcopy(outer).train()
    assert twin[0].faults[0].armed
    assert not faulty.faults[0].armed
    assert alike(twin(X), outer.train()(X))


# -- the batch --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "calls"),
    [
        (torch.tensor(2.0), "by position"),
        (torch.ones(1), "by position"),
        (torch.ones(8), "by position"),
        (torch.ones(8), "by keyword"),
    ],
    ids=["scalar", "one number", "vector", "vector by keyword"],
)
@pytest.mark.parametrize("kept", [False, True])
def test_batch_is_found_behind_an_input_without_one(extra: Tensor, calls: str, kept: bool) -> None:
    def forward(self: Any, scale: Tensor, x: Tensor) -> Any:
        if kept and x.sum() > 1e9:
            return x
        return self.act(x) * scale

    faulty = fxfault.transform(net(forward)(), SOME_HIT).eval()

    def run(x: Tensor) -> Any:
        return faulty(extra, x) if calls == "by position" else faulty(x=x, scale=extra)

    together = run(X)
    faulty.faults.reset()
    assert torch.equal(torch.cat([run(sample) for sample in X.split(1)]), together)


def test_two_calls_in_one_outer_forward_have_faults_of_their_own() -> None:
    faulty = fxfault.transform(block(), SOME_HIT).eval()
    first, second = faulty(X), faulty(X)
    assert not torch.equal(first, second)
    faulty.faults.reset()
    assert torch.equal(torch.cat([first, second]), faulty(torch.cat([X, X])))


@pytest.mark.parametrize(
    "build", [block, act, lambda: Kept(block())], ids=["graph", "lone", "kept"]
)
def test_forward_method_of_the_model_moves_the_clock_and_strikes(
    build: Callable[[], nn.Module],
) -> None:
    faulty = fxfault.transform(_built(build), SOME_HIT).eval()
    expected = [faulty(X) for _ in range(2)]
    faulty.faults.reset()
    assert alike([faulty.forward(X) for _ in range(2)], expected)


# -- threads and failures ---------------------------------------------------------------


def test_threads_may_transform_at_once() -> None:
    problems: list[Any] = []
    factory, call = torch.zeros, nn.Module.__call__

    # Made beforehand: weights are drawn from the global generator, which tracing watches.
    models = [nn.Sequential(block(), block()) for _ in range(12)]

    def work() -> None:
        try:
            for _ in range(4):
                faulty = fxfault.transform(models.pop(), ALL_HIT)
                problems.extend(c for c in containers_of(faulty) if c.handling != "traced")
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = torch.zeros is not factory or nn.Module.__call__ is not call
    torch.zeros, nn.Module.__call__ = factory, call  # type: ignore[method-assign]
    assert not left
    assert problems == []


def test_other_threads_go_on_undisturbed_while_a_model_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems: list[str] = []
    tracing, seen = threading.Event(), threading.Event()
    other = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def work() -> None:
        tracing.wait(10)
        try:
            if type(torch.zeros(3)) is not Tensor:
                problems.append("a symbolic value from torch.zeros")
            if type(other(X)) is not Tensor:
                problems.append("a symbolic value from a model")
        except Exception as error:
            problems.append(repr(error))
        seen.set()

    record = ModelTracer.create_proxy

    def pausing(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracing.set()
        seen.wait(10)
        return record(self, *args, **kwargs)

    # As if it were of torch: the tracer reads all other code, and refuses what this one does.
    scope = {**globals(), "__name__": "torch.pausing"}
    hidden = types.FunctionType(pausing.__code__, scope, closure=pausing.__closure__)
    monkeypatch.setattr(ModelTracer, "create_proxy", hidden)
    thread = threading.Thread(target=work)
    thread.start()
    faulty = fxfault.transform(net(lambda self, x: self.act(x))(), ALL_HIT)
    thread.join()
    assert problems == []
    assert [c.handling for c in containers_of(faulty)] == ["traced"]


def test_interrupt_while_tracing_leaves_torch_and_the_model_as_they_were() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        self.calls.append(1)
        raise KeyboardInterrupt

    model = net(forward, lambda self: setattr(self, "calls", []))()
    factory, call, lookup = torch.zeros, nn.Module.__call__, nn.Module.__getattr__
    with pytest.raises(KeyboardInterrupt):
        fxfault.transform(model, ALL_HIT)
    assert (torch.zeros, nn.Module.__call__, nn.Module.__getattr__) == (factory, call, lookup)
    assert model.training is True
    assert model.calls == []
