"""Compiled code strikes as the eager model does, and is compiled once."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from zoo import ZOO, Entry

import fxfault
from fxfault.errors import SiteError
from fxfault.faults.torch_versions import whole_graphs
from fxfault.models import build_model
from fxfault.passes import compilation
from fxfault.sites import handles
from fxfault.sites.handles import Handle, owner_of

FAULTS = {
    "enabled": True,
    "probability": 20.0,
    "apply_during": "both",
    "seed": 3,
    "track_statistics": True,
}
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="Inductor needs a C++ compiler")


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    with warnings.catch_warnings():
        # Of torch, about itself; and of Brevitas, about zero points of accumulators.
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def small() -> nn.Module:
    """A calibrated network for (N, 6), with three sites; the last two share a layer."""
    torch.manual_seed(0)
    shared = QuantReLU(bit_width=3, return_quant_tensor=True)
    model = nn.Sequential(
        QuantIdentity(bit_width=8),
        QuantLinear(6, 8, bias=True, weight_bit_width=4),
        shared,
        QuantLinear(8, 8, bias=True, weight_bit_width=4),
        shared,
        QuantLinear(8, 5, bias=True, weight_bit_width=4),
    )
    with torch.no_grad():
        model.train()(torch.randn(16, 6))
    return model.eval()


def float_weights() -> nn.Module:
    """A calibrated network for (N, 6), with two sites; unfrozen, too, it is one graph."""
    torch.manual_seed(0)
    act = QuantIdentity(bit_width=8, scaling_impl_type="const", min_val=-4.0, max_val=4.0)
    model = nn.Sequential(act, nn.Linear(6, 8), QuantReLU(bit_width=4), nn.Linear(8, 5))
    with torch.no_grad():
        model.train()(torch.randn(16, 6))
    return model.eval()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1))


def value(output: Any) -> Any:
    return getattr(output, "value", output)


def compiled(model: nn.Module, backend: Any = "aot_eager") -> Callable[..., Any]:
    return torch.compile(model, fullgraph=True, backend=backend)


# -- the same faults ------------------------------------------------------------------------


def check_same(model: nn.Module, x: Tensor, backend: str) -> None:
    """Frozen and compiled, a network must do what it does unfrozen, twice, without a break."""
    faulty = fxfault.transform(model, FAULTS)
    frozen = fxfault.freeze(faulty)
    run = compiled(frozen, backend)
    with torch.no_grad(), whole_graphs():
        for _ in range(2):
            assert torch.equal(value(run(x)), value(faulty(x)))
    assert frozen.faults.statistics.to_dict() == faulty.faults.statistics.to_dict()
    assert frozen.faults.statistics.total_injections > 0


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("quant_digits", 1, 8), ("quant_resnet20", 3, 8)]
)
def test_built_in_networks_compile_as_one_graph(name: str, channels: int, side: int) -> None:
    torch.manual_seed(0)
    model = build_model(
        name,
        num_classes=10,
        in_channels=channels,
        image_size=(side, side),
        weight_bit_width=4,
        act_bit_width=4,
    )
    x = torch.randn(3, channels, side, side)
    with torch.no_grad():
        model(x)
    check_same(model.eval(), x, "eager")


WHOLE = ["chain", "lone_activation", "modes", "branching", "type_question", "without_gradient"]
WHOLE += ["tfc_1w1a", "tfc_2w2a", "cnv_1w1a", "resnet12_4w4a"]


@pytest.mark.parametrize("entry", [e for e in ZOO if e.name in WHOLE], ids=lambda e: e.name)
def test_network_of_others_compiles_as_one_graph(entry: Entry) -> None:
    model, x = entry(), entry.input()
    with torch.no_grad():
        model.train()(x)
    check_same(model.eval(), x, "eager")


def test_unfrozen_network_has_the_same_faults() -> None:
    """In several graphs: Brevitas's own code asks for values."""
    faulty: Any = fxfault.transform(small(), FAULTS)
    with torch.no_grad():
        found = torch.compile(faulty, backend="aot_eager")(images())
        faulty.faults.reset()
        assert torch.equal(found, faulty(images()))


# -- compiled once --------------------------------------------------------------------------

Change = Callable[[Any], Any]
CHANGES: list[Change] = [
    lambda faults: faults.set_probability(50.0),
    lambda faults: faults[1].set_probability(0.0),
    lambda faults: faults.set_fault_model("msb_flip"),
    lambda faults: faults.reset(trial=7),
    lambda faults: faults.reset(first_sample=1000),
    lambda faults: faults.select([2]),
    lambda faults: setattr(faults, "enabled", False),
    lambda faults: setattr(faults, "enabled", True),
    lambda faults: faults.select(None),
    lambda faults: setattr(faults.clock, "seed", 11),
    lambda faults: setattr(faults.clock, "apply_during", "train"),
    lambda faults: setattr(faults.clock, "apply_during", "both"),
    lambda faults: faults.new_statistics(),
    lambda faults: faults.set_statistics(None),
    lambda faults: faults.shard(rank=1, world_size=2),
]


def test_nothing_that_changes_between_forwards_is_compiled_again() -> None:
    faulty = fxfault.transform(small(), FAULTS)
    frozen: Any = fxfault.freeze(faulty)
    counter = CompileCounterWithBackend("aot_eager")
    run, x = compiled(frozen, counter), images()
    outputs = []
    with torch.no_grad():
        for change in CHANGES:
            for model in (faulty, frozen):
                change(model.faults)
            outputs.append(run(x))
            assert torch.equal(outputs[-1], faulty(x))
        with frozen.faults.samples(torch.tensor([5, 5, 9, 0])):
            run(x)
    assert counter.frame_count == 1
    assert len({tuple(output.flatten().tolist()) for output in outputs}) > 8  # Something changed.


def test_parameters_may_change() -> None:
    model = small()
    frozen = fxfault.freeze(fxfault.transform(model, FAULTS))
    run = compiled(frozen)
    with torch.no_grad():
        before = run(images())
        model[1].weight.mul_(-1)
        fxfault.passes.refresh(frozen)
        frozen.faults.reset()
        after = run(images())
        frozen.faults.reset()
        assert torch.equal(after, frozen(images()))
    assert not torch.equal(before, after)


# -- which sites are meant ------------------------------------------------------------------


def test_copies_have_sites_of_their_own() -> None:
    frozen: Any = fxfault.freeze(fxfault.transform(small(), FAULTS))
    twin = copy.deepcopy(frozen)
    twin.faults.reset(trial=5)
    run = torch.compile(lambda model, x: model(x), fullgraph=True, backend="aot_eager")
    x = images()
    with torch.no_grad():
        mixed = [run(model, x) for model in (frozen, twin, frozen, twin)]
        for model in (frozen, twin):
            model.faults.reset()
        expected = [model(x) for model in (frozen, twin, frozen, twin)]
    assert all(map(torch.equal, mixed, expected))
    assert not torch.equal(mixed[0], mixed[1])


def test_handle_follows_its_owner_and_goes_with_it() -> None:
    class Owner:
        def __init__(self) -> None:
            self.handle = Handle(self)

    owner: Any = Owner()
    number = owner.handle.number
    other = copy.deepcopy(owner)
    assert owner_of(number) is owner
    assert owner_of(other.handle.number) is other
    del owner
    gc.collect()
    assert int(number) not in handles._handles


def test_handle_that_was_pickled_has_a_number_of_its_own() -> None:
    handle = Handle([1])
    again = pickle.loads(pickle.dumps(handle))
    assert owner_of(again.number) == [1]
    assert owner_of(again.number) is not owner_of(handle.number)


# -- nothing is dropped or swapped ----------------------------------------------------------


class Unused(nn.Module):
    """One output is not used; a container calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = QuantIdentity(bit_width=8)
        self.twice = Twice()

    def forward(self, x: Tensor) -> Tensor:
        self.dropped(x)
        return self.twice(x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = QuantReLU(bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:  # Not traced: our container keeps this forward.
            return x
        late = self.act(x)
        early = self.act(x + 1)
        return early - late


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
@pytest.mark.parametrize("gradients", [False, True], ids=["in place", "with gradients"])
def test_every_strike_takes_place_and_in_order(backend: str, gradients: bool) -> None:
    model = Unused()
    with torch.no_grad():
        model(images())
    faulty: Any = fxfault.transform(model.eval(), {**FAULTS, "probability": 100.0})
    run = compiled(faulty, backend)
    found, expected = [], []
    for outputs, call in ((found, run), (expected, faulty)):
        faulty.faults.reset()
        statistics = faulty.faults.new_statistics()
        for _ in range(2):
            x = images().requires_grad_(gradients)
            with torch.set_grad_enabled(gradients):
                outputs.append(call(x).detach())
        outputs.append([entry.injected_count for entry in statistics.layer_stats.values()])
    assert found[-1] == expected[-1] == [2 * 4 * 6, 2 * 2 * 4 * 6]
    assert all(map(torch.equal, found[:-1], expected[:-1]))
    assert not torch.equal(found[0], found[1])


def test_clean_values_stay_where_they_are_used() -> None:
    act = QuantIdentity(bit_width=8, return_quant_tensor=True)
    act(images())
    act.eval()
    faulty: Any = fxfault.transform(nn.Sequential(act), {**FAULTS, "probability": 100.0})
    quantised = act(images()).detach()

    def both(x: Tensor) -> Any:
        struck = fxfault.functional.fault_inject(quantised, faulty.faults[0])
        return struck.value + 0 * x, quantised.value * 1

    kept = quantised.value.clone()
    with torch.no_grad():
        struck, clean = torch.compile(both, fullgraph=True, backend="aot_eager")(images())
    assert torch.equal(clean, kept)
    assert torch.equal(quantised.value, kept)
    assert not torch.equal(struck, kept)


# -- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_gradients_are_those_of_the_eager_model(mode: str) -> None:
    faulty: Any = fxfault.transform(float_weights(), {**FAULTS, "gradient_mode": mode})
    gradients = []
    for call in (compiled(faulty), faulty):
        faulty.faults.reset()
        x = images().requires_grad_()
        faulty.zero_grad()
        output = call(x)
        output.square().sum().backward()
        grads = [p.grad.clone() for p in faulty.parameters() if p.grad is not None]
        gradients.append([output.detach(), x.grad, *grads])
    assert len(gradients[0]) == len(gradients[1]) > 4
    assert all(map(torch.equal, *gradients))


def test_zero_faulty_stops_gradients_exactly_at_hits() -> None:
    act = QuantIdentity(bit_width=8, scaling_impl_type="const", min_val=-4.0, max_val=4.0).eval()
    settings = {**FAULTS, "gradient_mode": "zero_faulty", "injection_type": "msb_flip"}
    faulty = fxfault.transform(nn.Sequential(act), settings)
    x = images(64).clamp(-3.9, 3.9).requires_grad_()
    output = compiled(faulty)(x)
    output.sum().backward()
    assert x.grad is not None
    hit = output != act(x)  # Most significant bits that flip always show.
    assert torch.equal(x.grad == 0, hit)
    assert 0 < int(hit.sum()) < hit.numel()


@pytest.fixture
def arguments() -> tuple[Any, ...]:
    """What the operators are called with for the site of a model, which is kept alive."""
    act = QuantIdentity(bit_width=8, return_quant_tensor=True)
    act(images())
    act.eval()
    faulty: Any = fxfault.transform(nn.Sequential(act), FAULTS)
    x = act(images()).detach()
    fxfault.functional.begin_forward(faulty.faults, images())
    handle = faulty.faults.clock.handle.number
    return faulty, x, (x.scale, x.zero_point, x.bit_width, x.signed_t, handle, 0)


@pytest.mark.parametrize("keep_hits", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operator_with_a_gradient_is_sound(
    arguments: Any, keep_hits: bool, requires_grad: bool
) -> None:
    _, x, others = arguments
    values = x.value.clone().requires_grad_(requires_grad)
    # Gradients are not numerical ones: a strike is a jump.
    torch.library.opcheck(torch.ops.fxfault.strike.default, (values, *others, keep_hits))


def test_operators_in_place_are_sound(arguments: Any) -> None:
    _, x, others = arguments
    handle = others[-2]
    operators = torch.ops.fxfault
    torch.library.opcheck(operators.strike_.default, (x.value.clone(), *others))
    torch.library.opcheck(operators.begin_forward_.default, (handle, [images()]))
    torch.library.opcheck(operators.keep_.default, (handle, torch.zeros(0, dtype=torch.bool)))


def test_value_without_a_word_is_refused_in_compiled_code() -> None:
    faulty: Any = fxfault.transform(float_weights(), FAULTS)
    faulty[0].act_quant.disable_quant = True
    run = torch.compile(faulty, backend="aot_eager")
    with torch.no_grad(), pytest.raises(SiteError, match="site 0: expected an IntQuantTensor"):
        run(images())
    faulty.faults.enabled = False
    with torch.no_grad():
        assert torch.equal(run(images()), faulty(images()))


# -- fxfault.compile ------------------------------------------------------------------------


def test_compile_leaves_the_sites_as_they_were_and_takes_other_batches() -> None:
    faulty: Any = fxfault.transform(small(), FAULTS)
    frozen: Any = fxfault.freeze(faulty)
    with torch.no_grad():
        faulty(images())
        frozen(images())
    counter = CompileCounterWithBackend("aot_eager")
    made = fxfault.compile(frozen, images(), backend=counter)
    assert made.model is frozen
    assert made.compiled
    assert made.difference is None
    assert str(made).endswith("for the first batch are bit for bit those without torch.compile")
    with torch.no_grad():
        for batch in (4, 4, 7, 1, 5):
            assert torch.equal(frozen(images(batch)), faulty(images(batch)))
    assert torch.equal(frozen(images()), faulty(images()))  # With gradients on.
    assert counter.frame_count == 1
    assert frozen.faults.statistics.to_dict() == faulty.faults.statistics.to_dict()
    assert fxfault.thaw(frozen) is faulty


def test_compiled_model_follows_parameters_and_hooks() -> None:
    source = small()
    model: Any = fxfault.compile(source, images(), backend="aot_eager").model
    with torch.no_grad():
        source[5].bias.add_(1)
        assert torch.equal(model(images()), source(images()))
        handle = model.register_forward_hook(lambda module, args, output: output * 2)
        assert torch.equal(model(images()), source(images()) * 2)
        handle.remove()
        twin = copy.deepcopy(model)
        assert twin._compiled_call_impl is None
        assert torch.equal(twin(images()), model(images()))


def test_batch_that_a_model_is_made_for_is_the_one_that_is_compiled() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = QuantReLU(scaling_impl_type="const", max_val=2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x).reshape(-1, 6) * (1.0 if x.shape[0] == 4 else 2.0)

    model = Fixed().eval()
    counter = CompileCounterWithBackend("aot_eager")
    made = fxfault.compile(model, images(), backend=counter)
    assert made.compiled
    counter.frame_count = 0
    with torch.no_grad():
        for batch in (4, 5):
            assert torch.equal(made.model(images(batch)), model(images(batch)))
    assert counter.frame_count == 0


def test_what_cannot_be_compiled_runs_all_the_same() -> None:
    entry = next(e for e in ZOO if e.name == "data_dependent")
    model, x = entry(), entry.input()
    faulty = fxfault.transform(model.eval(), FAULTS)
    made = fxfault.compile(faulty, x, backend="aot_eager")
    assert not made.compiled
    assert str(made).startswith("not compiled: torch.compile failed: Data-dependent branching")
    with torch.no_grad():
        assert torch.equal(made.model(x), faulty(x))


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    made = fxfault.compile(small(), images())
    assert str(made) == (
        "not compiled: torch.compile needs a C++ compiler, and there is no no-such-compiler "
        "(see CXX)"
    )


def test_other_bits_are_reported() -> None:
    def rounds_otherwise(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            outputs = list(graph(*args))
            outputs[0] = outputs[0].clone()
            outputs[0][0, :2] += 0.25
            return outputs

        return run

    made = fxfault.compile(small(), images(), backend=rounds_otherwise)
    assert made.difference == compilation.Difference(2, 20, pytest.approx(0.25))
    assert "2 of 20 values differ, by at most 0.25)" in str(made)


# -- Inductor -------------------------------------------------------------------------------


@needs_compiler
def test_inductor_gives_the_faults_of_the_eager_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from its cache on disk, where another model left the same graph."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for seed in (3, 4):
        torch._dynamo.reset()
        counters = torch._dynamo.utils.counters
        counters.clear()
        faulty: Any = fxfault.transform(small(), {**FAULTS, "seed": seed})
        made = fxfault.compile(faulty, images())
        assert made.compiled, made
        assert made.difference is None
        with torch.no_grad():
            for batch in (4, 6):
                assert torch.equal(made.model(images(batch)), faulty(images(batch)))
        expected = "fxgraph_cache_miss" if seed == 3 else "fxgraph_cache_hit"
        assert counters["inductor"][expected] == 1
