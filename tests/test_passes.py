"""The laws of the passes, on every network of the zoo."""

from __future__ import annotations

import copy
import random
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU, QuantSigmoid
from brevitas_names import HARD_SWISH
from torch import Tensor, nn
from torch.fx.passes.infra.pass_manager import PassManager
from zoo import HAND_WRITTEN, ZOO, Attention, Chain, DataDependent, Entry, Modes, SideEffects

import fxfault
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.errors import SiteError, TransformError
from fxfault.functional import begin_forward, fault_inject
from fxfault.passes import InsertFaults, StripFaults, TracedModule, containers_of, trace
from fxfault.passes.layer_outputs import LayerOutput
from fxfault.passes.tracing.own_forward import KeepsForward
from fxfault.passes.tracing.sharing import holders, holds
from fxfault.passes.tracing.targets import rule_of
from fxfault.sites.fault_sites import FaultSites
from fxfault.strike import strikes

EVERYWHERE = {"enabled": True, "probability": 5.0, "apply_during": "both", "seed": 3}


def lints() -> bool:
    """Whether this torch finds an attribute of what is no module; torch 2.6 does not."""
    root: Any = nn.Module()
    root.part = SimpleNamespace(value=1)
    graph = torch.fx.Graph(root)
    graph.output(graph.create_node("get_attr", "part.value"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.lint()
    except RuntimeError:
        return False
    return True


LINTS = lints()
needs_lint = pytest.mark.skipif(
    not LINTS, reason=f"Graph.lint of torch {torch.__version__} takes nested attributes for missing"
)
every_network = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
hand_written = pytest.mark.parametrize("entry", HAND_WRITTEN, ids=lambda entry: entry.name)


def value(output: Any) -> Tensor:
    return output.value if hasattr(output, "value") else output


def step(model: nn.Module, entry: Entry, training: bool) -> tuple[Tensor, dict[str, Any]]:
    """Output, and gradients and state, of one forward (and backward while training)."""
    model.train(training)
    torch.manual_seed(2)
    output = value(model(entry.input()))
    gradients = {}
    if training:
        output.sum().backward()
        gradients = {
            f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None
        }
    return output, {**gradients, **model.state_dict()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    # Untrained networks overflow: a NaN equals a NaN here.
    return a.keys() == b.keys() and all(
        torch.equal(a[k].nan_to_num(7), b[k].nan_to_num(7)) for k in a
    )


@every_network
def test_transformed_network_is_bit_identical_while_injection_is_disabled(entry: Entry) -> None:
    eager, model = entry(), entry()
    keys = list(model.state_dict())
    faulty = fxfault.transform(model, EVERYWHERE)
    assert len(faulty.faults) == entry.sites
    assert list(faulty.state_dict()) == keys
    faulty.faults.enabled = False
    for training in (False, True, False):
        expected, expected_state = step(eager, entry, training)
        output, state = step(faulty, entry, training)
        assert torch.equal(output.nan_to_num(7), expected.nan_to_num(7))
        assert same(state, expected_state)


_OURS = (LayerOutput, FaultSites)


@every_network
def test_strip_gives_the_traced_graph_back(entry: Entry) -> None:
    model = entry().eval()
    traced = trace(model)
    faulty = fxfault.transform(model, EVERYWHERE)
    stripped = fxfault.strip(faulty)
    texts = [_texts(m) for m in (traced, stripped, faulty)]
    assert texts[0] == texts[1]
    if isinstance(faulty, TracedModule):
        assert texts[0] != texts[2]
        assert "fault_inject" in faulty.code
    x = entry.input()
    # Only hand-written networks change in an evaluation.
    own = copy.deepcopy if entry in HAND_WRITTEN else nn.Module.eval
    expected = value(own(model).eval()(x))
    for module in (traced, stripped):
        assert torch.equal(value(own(module).eval()(x)), expected)
    for module in stripped.modules():
        assert not isinstance(module, KeepsForward)
        assert not any(isinstance(kept, _OURS) for kept in vars(module).values())
        assert not any("Fault" in type(h).__name__ for h in module._forward_hooks.values())


def _texts(model: nn.Module) -> list[str]:
    traced = [m for m in model.modules() if isinstance(m, TracedModule)]
    for module in traced:
        if LINTS or "fault_inject" not in module.code:
            module.graph.lint()
    return [
        text
        for module in traced
        for graph in module.graphs
        for text in (str(graph), graph.python_code("self").src)
    ]


@every_network
def test_faults_reach_every_site(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = fxfault.transform(entry(), {**EVERYWHERE, "injection_type": "lsb_flip"}).train()
    faulty.faults.set_probability(100)
    for small in (strikes.SMALL, 0):  # Copied, and overwritten; see `small_tensors`.
        monkeypatch.setattr(strikes, "SMALL", small)
        statistics = faulty.faults.new_statistics()
        faulty(entry.input())
        assert len(statistics.layer_stats) == entry.sites
        for site in statistics.layer_stats.values():
            assert site.injected_count == site.total_activations > 0, site.name


@pytest.mark.usefixtures("small_tensors")
@hand_written
def test_deepcopy_is_independent_and_alike(entry: Entry) -> None:
    faulty = fxfault.transform(entry(), EVERYWHERE).eval()
    twin = copy.deepcopy(faulty)
    assert twin.faults is not faulty.faults
    assert list(twin.state_dict()) == list(faulty.state_dict())
    torch.manual_seed(0)
    first = value(faulty(entry.input()))
    torch.manual_seed(0)
    assert torch.equal(value(twin(entry.input())), first)
    twin.faults.set_probability(0)
    assert faulty.faults[0].probability == 5.0
    twin.train()
    assert not faulty.training
    for parameter in twin.parameters():
        assert all(parameter is not other for other in faulty.parameters())


@hand_written
def test_global_random_generators_stay_where_they_were(entry: Entry) -> None:
    model = entry()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    faulty = fxfault.transform(model, EVERYWHERE).eval()
    faulty.faults.set_probability(50)
    faulty(entry.input())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@hand_written
def test_transform_leaves_the_given_model_untouched(entry: Entry) -> None:
    model = entry()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    hooks = {
        name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()
    }
    types = {name: type(m) for name, m in model.named_modules()}
    fxfault.transform(model, EVERYWHERE)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[key] is old for key, old in before[name].items())
        assert len(module._forward_hooks) + len(module._forward_pre_hooks) == hooks[name]
        assert type(module) is types[name]


@hand_written
def test_module_tree_has_the_names_and_classes_of_the_original(entry: Entry) -> None:
    model = entry()
    faulty = fxfault.transform(model, EVERYWHERE)
    originals = dict(model.named_modules(remove_duplicate=False))
    result = dict(faulty.named_modules(remove_duplicate=False))
    assert list(result) == list(originals)
    assert all(isinstance(result[name], type(originals[name])) for name in originals)


@every_network
def test_modules_that_hold_a_target_are_found_in_one_pass(entry: Entry) -> None:
    model, is_target = entry(), rule_of(FaultInjectionConfig(memory=("activations", "weights")))
    expected = {id(module) for module in model.modules() if holds(module, is_target)}
    assert holders(model, is_target) == expected


def test_a_module_that_holds_itself_is_found_if_it_holds_another_target() -> None:
    model, act = nn.Sequential(nn.Sequential(nn.ReLU())), QuantReLU()
    model[0].append(model)
    for is_target in (lambda m: m is model, lambda m: m is model[0], lambda m: m is model[0][0]):
        expected = {id(module) for module in model.modules() if holds(module, is_target)}
        assert holders(model, is_target) == expected
    assert holders(act, lambda m: m is act) == set()


def test_training_one_trains_the_other() -> None:
    model = Chain()
    faulty = fxfault.transform(model, EVERYWHERE)
    faulty(torch.randn(4, 3, 8, 8)).sum().backward()
    torch.optim.SGD(faulty.parameters(), lr=0.1).step()
    assert same(model.state_dict(), faulty.state_dict())


@pytest.mark.parametrize("load_into", ["model", "faulty"])
def test_a_checkpoint_loaded_into_one_is_seen_by_the_other(load_into: str) -> None:
    # Brevitas builds the quantisers of activations anew when it loads them.
    trained = Chain()
    for _ in range(5):
        trained(3 * torch.randn(4, 3, 8, 8))
    model = Chain()
    faulty = fxfault.transform(model, EVERYWHERE)
    {"model": model, "faulty": faulty}[load_into].load_state_dict(trained.state_dict())
    faulty.faults.enabled = False
    x = torch.randn(4, 3, 8, 8)
    expected = trained.eval()(x)
    assert torch.equal(model.eval()(x), expected)
    assert torch.equal(faulty.eval()(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_moving_to_a_dtype_works(dtype: torch.dtype) -> None:
    eager = Chain().to(dtype)
    faulty = fxfault.transform(eager, {**EVERYWHERE, "injection_type": "msb_flip"}).eval()
    x = torch.randn(4, 3, 8, 8, dtype=dtype)
    output = faulty(x)
    assert output.dtype == dtype
    assert not torch.equal(output, eager.eval()(x))


def test_replicas_of_data_parallel_run() -> None:
    # What torch.nn.parallel.replicate does, without the devices that it asks for.
    faulty = fxfault.transform(Modes(), EVERYWHERE).eval()
    modules = list(faulty.modules())
    replicas = [module._replicate_for_data_parallel() for module in modules]
    for module, replica in zip(modules, replicas, strict=True):
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter)
        replica._buffers = dict(module._buffers)
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[modules.index(child)]
    x = torch.randn(4, 8)
    expected = faulty(x)
    faulty.faults.reset()
    assert torch.equal(replicas[0](x), expected)


def test_model_that_is_not_enabled_is_returned_as_it_is() -> None:
    model = Chain()
    assert fxfault.transform(model, {"enabled": False}) is model
    assert fxfault.strip(model) is model


def test_model_without_targets_is_refused_with_the_types_it_has() -> None:
    with pytest.raises(
        TransformError,
        match=r"no quantised activation in layers of the types QuantIdentity.*Linear.*`targets`",
    ):
        fxfault.transform(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), EVERYWHERE)


def test_inserting_twice_is_an_error_and_stripping_twice_is_not() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE)
    with pytest.raises(TransformError, match="already has fault sites"):
        fxfault.transform(faulty, EVERYWHERE)
    stripped = fxfault.strip(faulty)
    assert fxfault.strip(stripped) is stripped
    assert StripFaults()(stripped).modified is False


def test_a_stripped_model_can_be_transformed_again() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE)
    again = fxfault.transform(fxfault.strip(faulty), EVERYWHERE)
    assert again.code == faulty.code


def test_passes_report_whether_they_changed_the_graph() -> None:
    traced = trace(Chain())
    config = fxfault.FaultInjectionConfig(**EVERYWHERE)
    assert InsertFaults(config)(traced).modified is True
    assert StripFaults()(traced).modified is True


def test_graph_holds_one_call_a_site_and_one_that_moves_the_clock() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE)
    calls = [
        node.target for node in faulty.graph.find_nodes(op="call_function", target=fault_inject)
    ]
    assert len(calls) == 2
    assert len(faulty.graph.find_nodes(op="call_function", target=begin_forward)) == 1


@needs_lint
def test_dead_code_is_taken_out_and_the_clock_is_not() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE)
    (given,) = faulty.graph.find_nodes(op="placeholder")
    with faulty.graph.inserting_after(given):
        faulty.graph.call_function(torch.relu, (given,))
    assert faulty.graph.eliminate_dead_code()
    assert not faulty.graph.find_nodes(op="call_function", target=torch.relu)
    assert len(faulty.graph.find_nodes(op="call_function", target=begin_forward)) == 1
    assert len(faulty.graph.find_nodes(op="call_function", target=fault_inject)) == 2


def test_a_module_called_at_several_places_is_several_sites() -> None:
    model = next(entry for entry in HAND_WRITTEN if entry.name == "kept_inside")()
    assert fxfault.transform(model, EVERYWHERE).faults.names == (
        "first",
        "inner.act",
        "inner.block.1",
        "first@2",
    )


@pytest.mark.usefixtures("small_tensors")
def test_calls_of_a_kept_module_within_one_forward_have_faults_of_their_own() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = QuantIdentity(bit_width=8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.act(x)
            return first, self.act(x) if x.sum() != 0 else first

    faulty = fxfault.transform(Loop(), {**EVERYWHERE, "probability": 30.0}).eval()
    first, second = faulty(torch.ones(4, 64))
    assert not torch.equal(first, second)
    faulty.faults.reset()
    again, _ = faulty(torch.ones(4, 64))
    assert torch.equal(again, first)


def test_what_was_done_for_each_container_is_reported() -> None:
    handled = {c.path: (c.handling, c.reason) for c in containers_of(trace(Modes()))}
    assert handled == {
        "": ("traced", ""),
        "dropout": ("traced", ""),
        "branch": ("own graph", "its forward branches on self.training"),
    }


def test_forward_that_changes_an_attribute_is_kept_and_the_attribute_is_as_before() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = QuantReLU()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.act(x)

    model = Counting()
    traced = trace(model)
    assert containers_of(traced)[0].reason == "its forward changes self.calls"
    assert model.calls == traced.calls == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("data_dependent", "branches on a value"),
        ("type_question", "type of a value"),
        ("without_gradient", "`with`"),
        ("lone_activation", "it is a target"),
    ],
)
def test_untraceable_forwards_are_kept_and_say_why(name: str, reason: str) -> None:
    entry = next(entry for entry in HAND_WRITTEN if entry.name == name)
    root = containers_of(trace(entry()))[0]
    assert root.handling == "kept"
    assert reason in root.reason


def test_forward_that_draws_python_random_numbers_is_kept() -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = QuantReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x) if random.random() < 0.5 else x

    state = random.getstate()
    assert containers_of(trace(LayerDrop()))[0].reason == (
        "its forward draws random numbers outside the graph"
    )
    assert random.getstate() == state


def test_forward_that_probes_attributes_of_a_value_is_kept() -> None:
    class Probing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = QuantReLU(return_quant_tensor=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x)
            return x.value if hasattr(x, "scale") else x

    assert containers_of(trace(Probing()))[0].handling == "kept"


def test_container_with_hooks_is_kept_and_its_hooks_run() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), QuantReLU()), nn.Linear(8, 8))
    calls: list[int] = []
    model[0].register_forward_hook(lambda module, args, output: calls.append(1))
    faulty = fxfault.transform(model, EVERYWHERE)
    faulty(torch.randn(2, 8))
    assert calls == [1]
    assert [c.handling for c in containers_of(faulty)] == ["traced", "kept"]
    assert faulty.faults.names == ("0.1",)


def test_nested_mode_is_followed_where_only_a_part_is_in_evaluation() -> None:
    entry = next(entry for entry in HAND_WRITTEN if entry.name == "modes")
    eager, faulty = entry(), fxfault.transform(entry(), EVERYWHERE)
    faulty.faults.enabled = False
    for model in (eager.train(), faulty.train()):
        model.branch.eval()
        model.dropout.eval()
    x = torch.randn(4, 8)
    assert torch.equal(faulty(x), eager(x))


def test_disabled_quantiser_is_refused_or_skipped_as_asked() -> None:
    model = nn.Sequential(QuantIdentity(), nn.Linear(4, 4), QuantReLU(act_quant=None))
    with pytest.raises(TransformError, match=r"cannot strike 2 \(its quantiser is disabled\)"):
        fxfault.transform(model, EVERYWHERE)
    faulty = fxfault.transform(model, {**EVERYWHERE, "unsupported": "skip"})
    assert faulty.faults.names == ("0",)
    assert faulty.faults.skipped == {"2": "its quantiser is disabled"}


def test_model_of_which_no_target_can_be_struck_is_refused_even_when_skipping() -> None:
    with pytest.raises(TransformError, match="no fault can strike"):
        fxfault.transform(
            nn.Sequential(QuantReLU(act_quant=None)), {**EVERYWHERE, "unsupported": "skip"}
        )


def test_optional_quantisers_of_a_brevitas_layer_are_listed_not_refused() -> None:
    faulty = fxfault.transform(Attention(), EVERYWHERE)
    assert faulty.faults.skipped == {"attention.softmax_input_quant": "its quantiser is disabled"}


def test_other_activation_layers_are_targets_when_named() -> None:
    model = nn.Sequential(QuantSigmoid(), QuantReLU())
    assert fxfault.transform(model, EVERYWHERE).faults.names == ("0", "1")
    if HARD_SWISH is not None:
        others = nn.Sequential(HARD_SWISH(), QuantReLU())
        assert fxfault.transform(others, EVERYWHERE).faults.names == ("1",)
    config = {**EVERYWHERE, "targets": ["QuantSigmoid"]}
    assert fxfault.transform(model, config).faults.names == ("0",)


def test_subclasses_of_a_target_are_targets() -> None:
    class OwnReLU(QuantReLU):
        pass

    assert len(fxfault.transform(nn.Sequential(OwnReLU()), EVERYWHERE).faults) == 1


def test_attribute_called_faults_of_the_model_is_not_lost() -> None:
    model = nn.Sequential(QuantReLU())
    model.add_module("faults", nn.Linear(4, 4))
    faulty = fxfault.transform(model, EVERYWHERE)
    assert isinstance(faulty.faults, nn.Linear)
    assert len(faulty.fxfault_faults) == 1
    faulty(torch.randn(2, 4))


def test_methods_of_the_model_stay() -> None:
    class WithMethod(Chain):
        def clip(self) -> str:
            return "clipped"

    faulty = fxfault.transform(WithMethod(), EVERYWHERE)
    assert faulty.clip() == "clipped"
    assert len(faulty) == 6


def test_changing_a_probability_does_not_trace_again() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE).eval()
    graph, forward = faulty.graph, type(faulty).forward
    faulty.faults[0].set_probability(50)
    faulty(torch.randn(4, 3, 8, 8))
    assert faulty.graph is graph
    assert type(faulty).forward is forward


def test_unknown_site_is_an_error_that_lists_the_sites() -> None:
    with pytest.raises(SiteError, match=r"'layer9.\*' matches no site.*0 0, 1 3"):
        fxfault.transform(Chain(), {**EVERYWHERE, "layers": "layer9.*"})


def test_kept_forward_sees_its_own_attributes() -> None:
    eager, faulty = SideEffects(), fxfault.transform(SideEffects(), EVERYWHERE)
    faulty.faults.enabled = False
    x = torch.ones(2, 8)
    for _ in range(3):
        assert torch.equal(faulty(x), eager(x))
    assert faulty.calls == eager.calls == 3
    assert torch.equal(faulty.seen, eager.seen)


def test_data_dependent_network_takes_both_branches() -> None:
    eager = DataDependent()
    faulty = fxfault.transform(eager, EVERYWHERE).eval()
    faulty.faults.enabled = False
    eager.eval()
    for x in (torch.ones(2, 8), -torch.ones(2, 8)):
        assert torch.equal(faulty(x), eager(x))


def test_graph_runs_under_the_tools_of_torch_fx() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE).eval()
    x = torch.randn(4, 3, 8, 8)
    expected = faulty(x)
    for run in (
        torch.fx.Interpreter(faulty).run,
        torch.fx.GraphModule(faulty, faulty.graph),
        copy.copy(faulty),
    ):
        faulty.faults.reset()
        assert torch.equal(run(x), expected)


def test_passes_run_in_a_pass_manager() -> None:
    config = fxfault.FaultInjectionConfig(**EVERYWHERE)
    result = PassManager([InsertFaults(config), StripFaults()])(trace(Chain()))
    assert result.graph_module.code == trace(Chain()).code


def test_compiled_model_has_the_faults_of_the_eager_one() -> None:
    faulty = fxfault.transform(Chain(), EVERYWHERE).eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas breaks graphs, and torch says so.
        expected = faulty(x)
        faulty.faults.reset()
        assert torch.equal(torch.compile(faulty, backend="eager")(x), expected)
