"""What surrounds a forward: modes, changes, hooks, gradients, state, batches, threads."""

from __future__ import annotations

import abc
import contextlib
import copy
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brevitas.nn import QuantIdentity
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from wild import ALL_HIT, Base, Kept, X, act, alike, block, built, check, net, with_block

import fxfault
from fxfault.passes import containers_of
from fxfault.passes.tracing.model_tracer import ModelTracer

# Older torch says so once, the first time that Brevitas unpacks an input.
pytestmark = pytest.mark.filterwarnings("ignore:Named tensors")


SOME_HIT = {"enabled": True, "probability": 30.0, "apply_during": "both", "seed": 3}


# -- training and evaluation --------------------------------------------------------------


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
        eager, model = built(build).train(first), built(build).train(first)
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


# -- changes after the transform ----------------------------------------------------------


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
    eager, faulty = built(build), fxfault.transform(built(build), ALL_HIT)
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


# -- hooks --------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [lambda m, a, o: o * 2, lambda m, a, o: o[0]])
def test_hook_of_a_target_sees_what_the_layer_returns(hook: Callable[..., Any]) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), act())
        model[1].register_forward_hook(hook)
        return model

    eager, faulty = built(build), fxfault.transform(built(build), ALL_HIT)
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


# -- gradients and contexts ---------------------------------------------------------------


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


def test_a_forward_that_calls_an_autograd_function_is_kept_and_says_so() -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    faulty = fxfault.transform(built(GRADIENTS["autograd function"]), ALL_HIT)
    assert "its forward calls an autograd Function" in str(fxfault.inspect(faulty))
    assert torch.autograd.Function.__dict__["apply"] is apply


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_are_those_of_the_eager_model_wherever_it_was_transformed(
    kind: str, around: Callable[[], Any]
) -> None:
    eager, model = built(GRADIENTS[kind]), built(GRADIENTS[kind])
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
        faulty = fxfault.transform(built(lambda c=checkpointed: build(c)), settings)
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

    faulty = fxfault.transform(built(net(forward, setup)), SOME_HIT)
    runs = []
    linear = next(m for m in faulty.block.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda *_: runs.append(1))
    y = faulty(X.clone().requires_grad_())
    assert len(runs) == 1
    y.sum().backward()
    assert len(runs) == 2
    assert "kept" in str(fxfault.inspect(faulty))


# -- state --------------------------------------------------------------------------------


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
    eager, faulty = built(kind_of_net), fxfault.transform(built(kind_of_net), ALL_HIT)
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


# -- the batch ----------------------------------------------------------------------------


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
    faulty = fxfault.transform(built(build), SOME_HIT).eval()
    expected = [faulty(X) for _ in range(2)]
    faulty.faults.reset()
    assert alike([faulty.forward(X) for _ in range(2)], expected)


# -- threads and failures -----------------------------------------------------------------


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
