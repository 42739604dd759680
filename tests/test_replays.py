"""Incremental runs of forwards that stay Python code are full runs, or are not used."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8ActPerTensorFloat
from torch import Tensor, nn

import fxfault
from fxfault.data.batches import Batch, take_apart
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.full.model_state import disabled
from fxfault.evaluation.incremental.call_values import Arguments, KeptValue, NotKept
from fxfault.evaluation.incremental.replays import ReplayRun
from fxfault.faults.bits import same_bits
from fxfault.metrics import make_metric
from fxfault.passes.segments import split_at_sites
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.live_values import leaves_of

Batches = list[tuple[Tensor, Tensor]]
WIDTH = 6


def batches_of(samples: int, batch: int, seed: int = 7) -> Batches:
    inputs = torch.randn(samples, WIDTH, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(samples, dtype=torch.int64)
    return list(zip(inputs.split(batch), labels.split(batch), strict=True))


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return inner


def act() -> nn.Module:
    return QuantReLU(bit_width=4, scaling_impl_type="const", max_val=3.0)


class Top(nn.Module):
    """Keeps its own forward, as it is decorated."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 4)

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(WIDTH, WIDTH), act()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) - 0.5 * x


class Weights(nn.Module):
    """A layer with a quantised weight, input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = QuantLinear(
            WIDTH, WIDTH, bias=True, weight_bit_width=4, input_quant=Int8ActPerTensorFloat
        )
        self.act = act()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) - 0.5 * x


class Nested(nn.Module):
    """A container of others, with a forward of some kind."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Branches(Nested):
    """Asks the whole batch for a value; another order of calls depends on it."""

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.parts) if x.sum() > 0 else list(self.parts)[::-1]
        for part in parts:
            x = part(x)
        return x


class Loops(Nested):
    """Calls its parts as often as values ask for."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x.abs().mean() > 0.8)):
            x = super().forward(x)
        return x


class Twice(Nested):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x) + x)


class Optional(Nested):
    """Asks about an optional argument, as attention masks are."""

    @decorated
    def forward(self, x: Tensor, mask: Tensor | None = None, again: bool = True) -> Tensor:
        if mask is not None:
            x = x * mask
        x = super().forward(x)
        return self.forward(x, mask=(x > 0).to(x.dtype), again=False) if again else x


class Quietly(Nested):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x).relu_() - 0.25


class WritesToResults(Nested):
    """Writes into what its parts return."""

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            y = part(x)
            y += x
            x = y.mul_(0.5)
        return x


class OwnCall(Nested):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x + 0.125)


@dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """In the manner of the outputs of transformers."""

    hidden: Any = None
    other: Any = None

    def __post_init__(self) -> None:
        self.update(hidden=self.hidden, other=self.other)


class Returns(Nested):
    """Returns a value of some structure from a module inside."""

    def __init__(self, kind: str, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.inside = Returned(kind)

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        found = self.inside(x)
        leaves = [leaf for leaf in leaves_of(found) if isinstance(leaf, Tensor)]
        if isinstance(found, Output):
            assert found.hidden is found["hidden"]
            leaves = [found.hidden, found["other"]]
        leaves[0].add_(0.5)
        if len(leaves) == 1 or leaves[1].shape != x.shape:
            return super().forward(leaves[0])
        return super().forward(leaves[0] + leaves[1])


class Returned(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.act = kind, Leaf()

    @decorated
    def forward(self, x: Tensor) -> Any:
        y = self.act(x)
        both = torch.cat([y, x], 1)
        views = both[:, :WIDTH], both[:, WIDTH:]
        whole = torch.stack([y, y])
        return {
            "dict": lambda: {"hidden": y, "none": None, "names": ["a"]},
            "record": lambda: Output(y, x.clone()),
            "views": lambda: views,
            "overlapping": lambda: (whole, whole[0])[::-1],
            "transposed": lambda: (y.t().contiguous().t(), 3),
            "expanded": lambda: [y.clone(), y[:1].clone().expand(len(y), WIDTH)],
        }[self.kind]()


KINDS = ("dict", "record", "views", "overlapping", "transposed", "expanded")
CONTAINERS = (Nested, Branches, Loops, Twice, Optional, Quietly, WritesToResults, OwnCall)


def drawn_network(seed: int) -> nn.Module:
    """A random tree of containers, over a few leaves, some of which occur twice."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    leaves = [Leaf() if draw.random() < 0.7 else Weights() for _ in range(draw.randint(2, 4))]
    leaves.append(Weights())

    def part(depth: int) -> nn.Module:
        if depth == 0 or draw.random() < 0.25:
            return draw.choice(leaves)
        parts = [part(depth - 1) for _ in range(draw.randint(1, 2))]
        kind = draw.randrange(len(CONTAINERS) + 1)
        if kind == len(CONTAINERS):
            return Returns(draw.choice(KINDS), *parts)
        return CONTAINERS[kind](*parts)

    return Top(*(part(2) for _ in range(draw.randint(1, 3))), leaves[-1])


def transformed(model: nn.Module, **changes: Any) -> Any:
    with torch.no_grad():
        for inputs, _ in batches_of(32, 16, seed=1):
            model.train()(inputs)  # Scales.
    config = {"enabled": True, "probability": 1.0, "apply_during": "eval", "seed": 4, **changes}
    return fxfault.transform(model.eval(), {"unsupported": "skip", **config})


def strike(faults: FaultSites, percent: float, fault_model: str, site: int | None) -> None:
    faults.set_probability(percent)
    faults.set_fault_model(fault_model)
    for candidate in faults:
        candidate.selected = site is None or candidate.index == site


def assert_same(model: Any, data: Any, runner: IncrementalRunner) -> None:
    expected, found = FullRunner(model, data).run(), runner.run()
    assert torch.equal(found.top, expected.top)
    assert torch.equal(found.labels, expected.labels)
    assert found.struck is not None
    assert expected.struck is not None
    assert torch.equal(found.struck, expected.struck)


def replays_of(runner: IncrementalRunner) -> ReplayRun:
    runner.golden()
    assert isinstance(runner._golden, ReplayRun), runner.why_full
    return runner._golden


def scores(model: Any, data: Any) -> list[Tensor]:
    """The outputs of full runs; predictions alone would hide small differences."""
    found, first = [], 0
    with torch.no_grad():
        for given in data:
            batch = take_apart(given, forward=model.forward).mapped(torch.clone)
            with model.faults.samples(torch.arange(first, first + batch.samples)):
                found.append(model(*batch.inputs, **batch.keywords))
            first += batch.samples
    return found


# -- the law: incremental is full -----------------------------------------------------------


def assert_law(model: Any, data: Any, memory: int | None, each: int = 1) -> ReplayRun | None:
    """All sites, and every `each`-th alone, at several rates: outputs are those of full runs."""
    runner = IncrementalRunner(model, data, cache_memory=memory)
    runner.golden()
    kept = runner._golden
    if not isinstance(kept, ReplayRun):
        assert kept is None
        return None
    outputs: dict[int, Tensor] = {}
    plain = kept._forward

    def noted(model: Any, given: Batch, batch: int, *more: Any) -> Any:
        outputs[batch] = plain(model, given, batch, *more)
        return outputs[batch]

    kept._forward = noted  # type: ignore[method-assign]
    with disabled(model.faults):
        golden = scores(model, data)
    rates = [(0.5, "random"), (100.0, "lsb_flip")]
    for site in (None, *range(0, len(model.faults), each)):
        for trial, (percent, fault_model) in enumerate(rates):
            strike(model.faults, percent, fault_model, site)
            model.faults.reset(trial=trial)
            outputs.clear()
            if trial:
                runner.run()
            else:
                assert_same(model, data, runner)
            for batch, output in enumerate(scores(model, data)):
                assert same_bits(outputs.get(batch, golden[batch]), output), (site, percent, batch)
    return kept


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int) -> None:
    memory = ("activations", "weights") if seed % 3 == 0 else ("activations",)
    model = transformed(drawn_network(seed), memory=list(memory))
    data = batches_of(samples=11, batch=4)
    kept = assert_law(model, data, memory=1500 if seed % 4 == 3 else None)
    assert kept is not None
    assert any(call.kept is not None for log in kept.logs if log for call in log.calls)


class Mixed(nn.Module):
    """A block with two inputs, one of them by name."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.act = block, act()

    @decorated
    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return self.block(x) + 0.5 * self.act(other)


class Two(nn.Module):
    """Two inputs, which meet in the first block and in a later one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        body = drawn_network(seed)
        self.first, self.body, self.last = Mixed(Leaf()), body, Mixed(body.blocks[0])
        self.head = nn.Linear(WIDTH, 4)

    @decorated
    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        right = left.neg() if right is None else right
        x = self.first(left, other=right)
        for block in self.body.blocks:
            x = block(x)
        return self.head(self.last(x, other=left))


class OfOne(Two):
    """Takes both in one dict, and changes it: its own, as batches are copied."""

    @decorated
    def forward(self, both: dict[str, Tensor]) -> Tensor:
        right = both.pop("right")
        return Two.forward(self, both["left"], right)


class Traced(nn.Module):
    """The same without code that stays: a graph with two inputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.left, self.right, self.head = Leaf(), Leaf(), nn.Linear(WIDTH, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.left(left) * self.right(right))


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "tuple": lambda x, z, y: Batch((x, z), {}, y, len(x)),
    "keywords": lambda x, z, y: {"left": x, "right": z, "label": y},
    "both": lambda x, z, y: Batch((x,), {"right": z}, y, len(x)),
    "nested": lambda x, z, y: ({"left": x, "right": z}, y),
    "one dict": lambda x, z, y: Batch(({"left": x, "right": z},), {}, y, len(x)),
    "traced": lambda x, z, y: Batch((x, z), {}, y, len(x)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_networks_with_several_inputs(form: str, seed: int) -> None:
    kind = {"one dict": OfOne, "traced": Traced}.get(form, Two)
    network = kind(seed)
    data = [
        FORMS[form](x, z, y)
        for (x, y), (z, _) in zip(batches_of(11, 4), batches_of(11, 4, seed=8), strict=True)
    ]
    with torch.no_grad():
        for given in data:
            batch = take_apart(given, forward=network.forward).mapped(torch.clone)
            network.train()(*batch.inputs, **batch.keywords)  # Scales.
    settings = {"enabled": True, "probability": 1.0, "apply_during": "eval", "seed": 4}
    has_words = seed % 2 and form != "traced"  # of weights, which `Weights` has
    memory = ["activations", "weights"] if has_words else ["activations"]
    model = fxfault.transform(network.eval(), {**settings, "unsupported": "skip", "memory": memory})
    kept = assert_law(model, data, memory=1500 if seed == 2 else None, each=3)
    assert kept is not None
    assert any(call.kept is not None for log in kept.logs if log for call in log.calls)
    told = "several inputs" if form != "one dict" else "several inputs (dict)"
    assert told in kept.why_whole


@pytest.mark.parametrize("name", ["cosine", "l2", "perplexity"])
def test_metrics_of_kept_forwards_are_those_of_full_runs(name: str) -> None:
    model = transformed(drawn_network(1))
    data: Any = batches_of(samples=11, batch=4)
    if name == "perplexity":  # One number for all data, of one token each.
        model, data = transformed(OneToken(drawn_network(1))), [(x, y[:, None]) for x, y in data]
    runners = [
        kind(model, data, metric=make_metric(name)) for kind in (FullRunner, IncrementalRunner)
    ]
    replays_of(runners[1])  # type: ignore[arg-type]
    values = set()
    for site in (None, 0, len(model.faults) - 1):
        strike(model.faults, 20.0, "random", site)
        for trial in range(3):
            model.faults.reset(trial=trial)
            full, found = (runner.run() for runner in runners)
            assert found.value == full.value
            assert found.records is full.records is None or same_bits(found.records, full.records)
            values.add(full.value)
    assert len(values) > 1


class OneToken(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.inner(x)
        return scores[:, None] if float(scores.detach().sum()) > -1e9 else scores


# -- adversaries: equal to a full run, or not used, and it says why ---------------------------


PLACE: dict[str, Any] = {}


class Writer(nn.Module):
    """Writes what another module reads, to a place that is not its result."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        PLACE["seen"] = x.mean(1, keepdim=True)
        return self.leaf(x)


class Reader(nn.Module):
    def __init__(self, cleans_up: bool) -> None:
        super().__init__()
        self.leaf, self.cleans_up = Leaf(), cleans_up

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        seen = PLACE.pop("seen") if self.cleans_up else PLACE["seen"]
        return self.leaf(x + seen[: len(x)])


class Remembers(nn.Module):
    """Keeps its last input in an attribute, and nobody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()
        self.last: Any = None

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return self.leaf(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()
        self.register_buffer("calls", torch.zeros(()))

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[operator]
        return self.leaf(x)


class DrawsNumbers(nn.Module):
    """Dropout with numbers of a generator that its network starts anew in each forward."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        super().__init__()
        self.leaf, self.generators = Leaf(), generators

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.leaf(x) * torch.rand(x.shape, generator=self.generators[0])


class SeedsFirst(Top):
    def __init__(self) -> None:
        self_generators = [torch.Generator()]
        super().__init__(DrawsNumbers(self_generators), Leaf(), DrawsNumbers(self_generators))
        self.generators = self_generators

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        self.generators[0].manual_seed(3)
        return super().forward(x)


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.leaf(x + torch.randn(x.shape))


class WritesToInput(nn.Module):
    """Its result is not all that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        y = self.leaf(x)
        x += y
        return y


class UsesBoth(Nested):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.0
        y = self.parts[0](x)
        return self.parts[1](x + y)


class Fills(nn.Module):
    """Appends to a list of its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    @decorated
    def forward(self, x: Tensor, found: list[Tensor]) -> Tensor:
        found.append(self.leaf(x))
        return found[-1] * 0.5


class GetsFilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fills, self.leaf = nn.ModuleList([Fills(), Fills()]), Leaf()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for fills in self.fills:
            x = fills(x, found)
        return self.leaf(x + sum(found))


class ReturnsView(nn.Module):
    """Returns a view of its input, into which the caller writes."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    @decorated
    def forward(self, x: Tensor) -> Any:
        return self.leaf(x), x[:, :3]


class WritesToView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.view, self.leaf = ReturnsView(), Leaf()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.0
        y, part = self.view(x)
        part.mul_(2.0)
        return self.leaf(x + y)


class RepeatsWhileFaulty(nn.Module):
    """Calls a part again if values are large, as they are under faults only."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.other = Leaf(), Leaf()

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        y = self.leaf(x.clamp(-1, 1) * 0.1)
        z = self.other(y)
        if y.max() > 0.9:
            z = self.other(self.leaf(z))
        return z


USED = [
    Top(UsesBoth(WritesToInput(), Leaf()), Leaf()),
    Top(Leaf(), GetsFilled()),
    Top(Leaf(), WritesToView(), Leaf()),
    Top(Leaf(), RepeatsWhileFaulty(), Leaf()),
    Top(OwnCall(Leaf(), Leaf()), Leaf()),
]
NOT_USED = [
    (Top(Writer(), Leaf(), Reader(False)), "other effects than their results"),
    (Top(Writer(), Leaf(), Reader(True)), "other effects than their results"),
    (Top(Remembers(), Leaf()), "its forward changes self.last"),
    (Top(Counts(), Leaf()), "changes parameters or buffers"),
    (SeedsFirst(), "other effects than their results"),
    (Top(Leaf(), Noise()), "gives other results each time"),
]


@pytest.mark.parametrize("model", USED, ids=lambda model: type(model.blocks[1]).__name__)
def test_calls_that_do_more_than_return_run_again(model: nn.Module) -> None:
    kept = assert_law(transformed(model), batches_of(samples=11, batch=4), memory=None)
    assert kept is not None
    assert any(call.kept is not None for log in kept.logs if log for call in log.calls)


@pytest.mark.parametrize(("model", "why"), NOT_USED, ids=lambda x: x if isinstance(x, str) else "")
def test_hidden_effects_make_runs_full(model: nn.Module, why: str) -> None:
    faulty, data = transformed(model), batches_of(samples=11, batch=4)
    runner = IncrementalRunner(faulty, data)
    runner.golden()
    assert str(runner.why_full).startswith("every run is a full one: ")
    assert why in str(runner.why_full)
    if "other results" not in why and "buffers" not in why:
        strike(faulty.faults, 5.0, "random", 1)
        assert_same(faulty, data, runner)


def test_hooks_make_runs_full_whenever_they_come() -> None:
    model, data = transformed(Top(Leaf(), Leaf())), batches_of(8, 4)
    runner = IncrementalRunner(model, data)
    strike(model.faults, 20.0, "msb_flip", 1)
    assert_same(model, data, runner)
    assert "run whole" in str(runner.why_full)
    model.blocks[0].register_forward_hook(lambda module, inputs, output: -output)
    assert_same(model, data, runner)
    assert "hooks" in str(runner.why_full)


# -- what runs, and what does not -------------------------------------------------------------


def counting(model: Any) -> dict[str, int]:
    """Counts the calls of linear layers from now on; not by hooks, which would be noticed."""
    calls: dict[str, int] = {}
    for path, module in model.named_modules():
        if type(module) is nn.Linear:

            def forward(x: Tensor, path: str = path, module: Any = module) -> Tensor:
                calls[path] = calls.get(path, 0) + 1
                return nn.functional.linear(x, module.weight, module.bias)

            module.forward = forward
    return calls


def test_only_what_comes_after_the_struck_site_runs() -> None:
    model = transformed(Top(Leaf(), Nested(Leaf(), Leaf()), Leaf()))
    data = batches_of(8, 4)
    calls = counting(model)
    runner = IncrementalRunner(model, data)
    assert sum(len(log.strikes) for log in replays_of(runner).logs if log) == 2 * 4
    expected = {
        0: {"blocks.1.parts.0.linear", "blocks.1.parts.1.linear", "blocks.2.linear", "head"},
        1: {"blocks.1.parts.1.linear", "blocks.2.linear", "head"},
        2: {"blocks.2.linear", "head"},
        3: {"head"},
    }
    for site, names in expected.items():
        strike(model.faults, 100.0, "msb_flip", site)
        calls.clear()
        runner.run()
        assert calls == dict.fromkeys(names, 2)


def test_a_batch_that_nothing_hits_does_not_run() -> None:
    model = transformed(Top(Leaf(), Leaf()), num_faults=None)
    data = batches_of(40, 4)
    calls = counting(model)
    runner = IncrementalRunner(model, data)
    runner.golden()
    strike(model.faults, 1.0, "random", 0)
    calls.clear()
    done: list[int] = []
    made = runner.run(done.append)
    assert made.struck is not None
    hit = sum(bool(part.any()) for part in made.struck.split(4))
    assert 0 < hit < 10
    assert calls["head"] == hit
    assert sum(done) == 40


def test_without_memory_whole_forwards_run() -> None:
    model = transformed(Top(Leaf(), Leaf()))
    data = batches_of(8, 4)
    calls = counting(model)
    runner = IncrementalRunner(model, data, cache_memory=0)
    runner.golden()
    strike(model.faults, 100.0, "random", 1)
    calls.clear()
    assert_same(model, data, runner)
    assert calls == dict.fromkeys(("blocks.0.linear", "blocks.1.linear", "head"), 4)


def test_the_outermost_calls_are_kept_first() -> None:
    """A block's result stands for all that runs in it; within memory, the choice is the same."""
    model = transformed(Top(Nested(Leaf(), Leaf()), Nested(Leaf(), Leaf())))
    data = batches_of(8, 4)
    one = 4 * WIDTH * 4  # Bytes of a result, for a batch of 4.
    for results, names in (
        (1, ["blocks.0"]),
        (2, ["blocks.0", "blocks.0.parts.0"]),
        (3, ["blocks.0", "blocks.0.parts.0", "blocks.1.parts.0"]),
    ):
        kept = replays_of(IncrementalRunner(model, data, cache_memory=2 * results * one))
        for log in kept.logs:
            assert log is not None
            assert [c.path for c in log.calls if c.kept is not None] == names


def test_batches_of_another_order_run_in_full() -> None:
    model = transformed(Top(Branches(Leaf(), Leaf()), Leaf()))
    data = batches_of(16, 4)
    sums = [bool(inputs.sum() > 0) for inputs, _ in data]
    assert len(set(sums)) == 2
    kept = assert_law(model, data, memory=None)
    assert kept is not None
    assert {log is None for log in kept.logs} == {False, True}


def test_replaced_parameters_are_noticed() -> None:
    model = transformed(Top(Leaf(), Leaf()))
    data = batches_of(8, 4)
    runner = IncrementalRunner(model, data)
    strike(model.faults, 20.0, "msb_flip", 1)
    assert_same(model, data, runner)
    with torch.no_grad():
        model.blocks[0].linear.weight.mul_(-1.5)
    assert_same(model, data, runner)


def test_replaced_attributes_are_noticed() -> None:
    """Python code reads them, and no graph guards them."""

    class Scales(Nested):
        factor = 1.0

        @decorated
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.factor)

    model = transformed(Top(Scales(Leaf()), Leaf()))
    data = batches_of(8, 4)
    runner = IncrementalRunner(model, data)
    strike(model.faults, 20.0, "msb_flip", 1)
    assert_same(model, data, runner)
    first = runner._golden
    assert_same(model, data, runner)
    assert runner._golden is first
    model.blocks[0].factor = -3.0
    assert_same(model, data, runner)
    assert runner._golden is not first


def test_a_graph_before_a_kept_network_takes_the_same_way() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.top = QuantIdentity(bit_width=8), Top(Leaf(), Leaf(), Leaf())

        def forward(self, x: Tensor) -> Tensor:
            return self.top(self.first(x))

    model = transformed(Wrapped())
    assert len(split_at_sites(model)) == 2
    kept = assert_law(model, batches_of(11, 4), memory=None)
    assert kept is not None
    assert {c.path for log in kept.logs if log for c in log.calls if c.kept} > {"top.blocks.1"}


# -- kept results -----------------------------------------------------------------------------


def kept(result: Any, *args: Any) -> KeptValue:
    value = KeptValue(result, Arguments(args, {}), frozenset())
    value.keep()
    return value


def test_copies_have_the_shapes_strides_and_shared_memory_of_the_result() -> None:
    memory = torch.arange(24.0)
    x = torch.zeros(3)
    result = (memory[2:8].view(2, 3).t(), {"a": memory[4:], "b": x}, [None, 3, "text"])
    value = kept(result, x)
    memory.zero_()
    a, named, rest = value.give((x,), {})
    assert torch.equal(a, torch.arange(2.0, 8.0).view(2, 3).t())
    assert (a.stride(), a.storage_offset()) == ((1, 3), 2)
    assert named["b"] is x
    named["a"].fill_(7.0)
    assert a[2, 0] == 7.0
    assert rest == [None, 3, "text"]
    again, *_ = value.give((x,), {})
    assert torch.equal(again, torch.arange(2.0, 8.0).view(2, 3).t())


def test_records_and_quant_tensors_are_copied() -> None:
    record = Output(torch.ones(2), None)
    made = kept(record).give((), {})
    assert type(made) is Output
    assert made.hidden is made["hidden"]
    assert torch.equal(made.hidden, torch.ones(2))
    quantised = QuantIdentity(bit_width=4, return_quant_tensor=True).eval()(torch.rand(5))
    copy = kept(quantised).give((), {})
    assert type(copy) is type(quantised)
    assert all(map(torch.equal, copy, quantised))


@pytest.mark.parametrize(
    "result",
    [
        iter([1]),
        {1, 2},
        torch.ones(2, requires_grad=True),
        nn.Parameter(torch.ones(2)),
        torch.ones(2).to_sparse(),
    ],
)
def test_other_results_are_not_kept(result: Any) -> None:
    with pytest.raises(NotKept):
        kept(result)


def test_arguments_tell_whether_they_were_changed() -> None:
    x, found, named = torch.zeros(2), [1], {"cache": Output(torch.zeros(1))}
    changes: list[Callable[[], Any]] = [
        lambda: x.add_(1),
        lambda: found.append(2),
        lambda: named.update(more=3),
        lambda: named["cache"].hidden.add_(1),
        lambda: setattr(named["cache"], "other", 4),
    ]
    for change in changes:
        arguments = Arguments((x, found), named)
        assert not arguments.changed
        change()
        assert arguments.changed
    with pytest.raises(NotKept):
        Arguments((iter([1]),), {})
