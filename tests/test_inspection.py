"""What inspecting a transformed model shows, and that looking changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas.inject.enum import BitWidthImplType
from brevitas.quant import Uint8ActPerTensorFloatMaxInit
from brevitas.quant.binary import SignedBinaryActPerTensorConst
from brevitas.quant.ternary import SignedTernaryActPerTensorConst
from torch import Tensor, nn
from zoo import HAND_WRITTEN, Branching, Entry, KeptInside, Modes

import fxfault
from fxfault.errors import SiteError
from fxfault.faults.layouts import Arrangement
from fxfault.passes.code_text import code_of, diff
from fxfault.passes.inspection import Scale, inspect, probe

Faulty = Callable[..., Any]


def relu(bit_width: int = 4, **settings: Any) -> nn.Module:
    """A ReLU whose scale needs no calibration: 2.5 over the largest code."""
    return qnn.QuantReLU(
        act_quant=Uint8ActPerTensorFloatMaxInit, bit_width=bit_width, max_val=2.5, **settings
    )


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = relu(bit_width=8)

    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 100:
            x = x / 2
        return self.act(x)


class Small(nn.Module):
    """A kept container, a layer that is called twice, a target without quantiser."""

    def __init__(self) -> None:
        super().__init__()
        self.first = qnn.QuantHardTanh(bit_width=4, min_val=-1.0, max_val=1.0)
        self.off = qnn.QuantIdentity(act_quant=None)
        self.block = nn.Sequential(nn.Linear(6, 6), Looping())

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.block(self.off(self.first(x))))


TABLE = """\
Small: 3 sites, 2 armed in eval mode (seed 7)

  #  site         module       type           bits  signed   scale  words  % bits  fault model  prob %  state
  0  first        first        QuantHardTanh     4  yes      0.125      6    25.0  msb_flip        0.5  armed
  1  block.1.act  block.1.act  QuantReLU         8  no      0.0098      6    50.0  msb_flip        0.5  not selected
  2  first@2      first        QuantHardTanh     4  yes      0.125      6    25.0  msb_flip        0.5  armed

Samples: not measured (model.faults.measure(inputs) does it)
Containers: 2 traced, 1 kept with own forward
  block.1  Looping  kept  its forward branches on a value
Skipped targets: 1
  off  QuantIdentity  its quantiser is disabled"""  # noqa: E501


@pytest.fixture
def small(faulty: Faulty) -> Any:
    settings = {"probability": 0.5, "seed": 7, "injection_type": "msb_flip", "unsupported": "skip"}
    return faulty(Small().eval(), apply_during="eval", layers="first*", **settings)


def test_the_printed_table(small: Any) -> None:
    probe(small, torch.zeros(2, 6))

    assert str(inspect(small)) == TABLE
    assert repr(inspect(small)) == TABLE


def test_how_samples_lie_is_told_once_it_was_measured(small: Any) -> None:
    small.faults.measure(torch.randn(4, 6))

    found = inspect(small)

    assert "Samples: consecutive at all 3 sites" in str(found)
    assert [site.samples for site in found.sites] == ["consecutive"] * 3
    views = Arrangement(outer=2, pieces=2)
    small.faults[2].seen.arrangement = views
    text = str(inspect(small))
    assert "Samples: consecutive at 2 of 3 sites" in text
    assert "  first@2  every N-th row (outer=2)" in text


def test_it_is_exported_and_frozen(small: Any) -> None:
    found = fxfault.inspect(small)

    with pytest.raises(dataclasses.FrozenInstanceError):
        found.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.sites[0].probability = 1.0


def test_an_untransformed_model_is_refused() -> None:
    for look in (inspect, probe, code_of, diff):
        with pytest.raises(SiteError, match=r"Linear has no fault sites; call fxfault.transform"):
            look(nn.Linear(2, 2))


@pytest.mark.parametrize("entry", HAND_WRITTEN, ids=lambda entry: entry.name)
def test_every_network_can_be_inspected(entry: Entry, faulty: Faulty) -> None:
    model = faulty(entry())
    probe(model, entry.input())
    found = inspect(model)

    assert [site.name for site in found.sites] == list(model.faults.names)
    assert all(site.name in str(found) for site in found.sites)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    # What runs in training alone was not seen.
    unseen = [site.name for site in found.sites if site.elements is None]
    assert unseen == [name for name in model.faults.names if name.endswith("auxiliary")]


def test_the_dictionary_holds_what_the_table_shows(small: Any) -> None:
    probe(small, torch.zeros(2, 6))

    content = inspect(small).to_dict()

    assert content["model"] == "Small"
    assert content["sites"][1] == {
        "index": 1,
        "name": "block.1.act",
        "memory": "activations",
        "share": 50.0,
        "module_path": "block.1.act",
        "module_type": "QuantReLU",
        "bit_width": 8,
        "bit_width_learned": False,
        "signed": False,
        "scale": {
            "low": pytest.approx(2.5 / 255),
            "high": pytest.approx(2.5 / 255),
            "count": 1,
            "each": "channel",
        },
        "elements": 6,
        "fault_model": "msb_flip",
        "probability": 0.5,
        "why_unarmed": "not selected",
        "samples": "not measured",
        "armed": False,
    }
    assert [container["handling"] for container in content["containers"]].count("kept") == 1
    assert content["skipped"][0]["path"] == "off"


def test_a_scale_that_is_not_finite_is_null_in_the_dictionary(small: Any) -> None:
    small.faults[0].seen.scale = torch.tensor(float("nan"))
    small.first.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl = nn.Identity()

    found = inspect(small)

    assert found.to_dict()["sites"][0]["scale"] == {
        **{"low": None, "high": None, "count": 1, "each": "channel"}
    }
    assert "nan" in str(found)


# -- before the first forward ---------------------------------------------------------------


def test_before_a_forward_only_what_it_measures_is_unknown(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(qnn.QuantIdentity(), nn.Linear(4, 4), relu(3)))

    first, second = inspect(model).sites

    assert (first.bit_width, first.signed, first.scale, first.elements) == (8, True, None, None)
    assert (second.bit_width, second.signed, second.elements) == (3, False, None)
    assert second.scale is not None
    assert second.scale.low == pytest.approx(2.5 / 7)
    assert str(inspect(model)).splitlines()[3].split()[4:8] == ["8", "yes", "-", "-"]


QUANTISERS: dict[str, Callable[[], nn.Module]] = {
    "constant": lambda: qnn.QuantHardTanh(bit_width=4, min_val=-1.0, max_val=1.0),
    "binary": lambda: qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst),
    "ternary": lambda: qnn.QuantIdentity(act_quant=SignedTernaryActPerTensorConst),
    "parameter": relu,
    "calibrated": lambda: qnn.QuantReLU(bit_width=4, collect_stats_steps=2),
    "learned width": lambda: qnn.QuantReLU(
        bit_width=5, bit_width_impl_type=BitWidthImplType.PARAMETER, collect_stats_steps=2
    ),
    "per channel": lambda: qnn.QuantReLU(
        bit_width=4,
        collect_stats_steps=2,
        scaling_per_output_channel=True,
        per_channel_broadcastable_shape=(1, 3, 1, 1),
        scaling_stats_permute_dims=(1, 0, 2, 3),
    ),
}


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_settled_scale_is_the_one_that_a_forward_uses(kind: str, faulty: Faulty) -> None:
    model = faulty(nn.Sequential(nn.Identity(), QUANTISERS[kind]()))
    for _ in range(4):
        model(torch.randn(2, 3, 4, 4))
    model.eval()(torch.randn(2, 3, 4, 4))
    used = model.faults[0].scale
    model.faults[0].seen.scale = None

    scale = inspect(model).sites[0].scale

    assert scale == Scale(used.min().item(), used.max().item(), used.numel())
    assert ("per channel" in str(scale)) == (kind == "per channel")


def test_a_scale_that_was_loaded_is_shown_instead_of_the_one_last_used(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(relu()).eval())
    probe(model, torch.zeros(1, 4))
    other = nn.Sequential(
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloatMaxInit, bit_width=4, max_val=30.0)
    )
    model.load_state_dict(other.state_dict())

    scale = inspect(model).sites[0].scale

    assert scale is not None
    assert scale.low == pytest.approx(2.0)


def test_looking_changes_nothing(faulty: Faulty) -> None:
    layers = [build() for build in QUANTISERS.values()]
    delayed = qnn.QuantIdentity(bit_width=4, quant_delay_steps=3)
    model = faulty(nn.Sequential(*layers, delayed))
    layers[0].eval()  # Modes that differ within the model.
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    clock = model.faults.clock.state()
    draws = torch.get_rng_state()

    str(inspect(model)), inspect(model).to_dict(), code_of(model), diff(model)

    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert clock == model.faults.clock.state()
    assert torch.equal(draws, torch.get_rng_state())
    delays = [m.quant_delay_steps for m in model.modules() if hasattr(m, "quant_delay_steps")]
    assert delays == [3]


def test_a_learned_width_is_read_and_marked(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(QUANTISERS["learned width"]()))

    site = inspect(model).sites[0]

    assert (site.bit_width, site.bit_width_learned) == (5, True)
    assert "learned 5" in str(inspect(model))


# -- state ----------------------------------------------------------------------------------


def test_the_state_is_that_of_the_present_mode(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(relu()), apply_during="eval").eval()
    model(torch.zeros(1, 4))

    assert inspect(model).sites[0].armed
    model.train()  # The clock will hear of it in the next forward.
    site = inspect(model).sites[0]
    assert not site.armed
    assert site.why_unarmed == "apply_during is eval, the model is in train mode"
    assert "1 site, 0 armed in train mode" in str(inspect(model))


def test_a_disabled_model_says_so(small: Any) -> None:
    small.faults.enabled = False

    reasons = {site.name: site.why_unarmed for site in inspect(small).sites}

    assert reasons == {
        "first": "injection is disabled",
        "block.1.act": "not selected",
        "first@2": "injection is disabled",
    }


@pytest.mark.parametrize(
    ("settings", "fault_model", "probability"),
    [
        ({"injection_type": "bit_flip", "bit": 2, "probability": 1.0}, "bit_flip 2", 1.0),
        (
            {"injection_type": "bit_flip", "rate_unit": "bit", "probability": 1.0},
            "bit_flip at 1 % of the bits",
            None,
        ),
        ({"num_faults": 3}, "random, 3 a sample", None),
        (
            {"faults": [{"probability": 2}, {"num_faults": 1, "injection_type": "burst"}]},
            "random at 2 %; burst 2, 1 a sample",
            None,
        ),
        ({"faults": [{"probability": 2, "layers": 1}]}, "-", None),
    ],
    ids=str,
)
def test_faults_of_other_kinds_are_told(
    faulty: Faulty, settings: dict[str, Any], fault_model: str, probability: float | None
) -> None:
    two = nn.Sequential(qnn.QuantIdentity(bit_width=4), qnn.QuantIdentity(bit_width=4)).eval()
    found = inspect(faulty(two, **settings))
    assert (found.sites[0].fault_model, found.sites[0].probability) == (fault_model, probability)
    assert fault_model in str(found)


def test_hardware_units_are_part_of_the_fault_model(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(relu()), hw_mask=True, frequency_value=64)

    assert inspect(model).sites[0].fault_model == "random (hw_mask 64)"


def test_a_graph_below_a_kept_forward_has_a_reason(faulty: Faulty) -> None:
    containers = {c.path: c for c in inspect(faulty(KeptInside())).containers}

    assert containers["inner.block"].handling == "own graph"
    assert containers["inner.block"].reason == "the module that calls it keeps its own forward"


def test_a_deep_copy_shows_the_same(small: Any) -> None:
    probe(small, torch.zeros(2, 6))

    assert str(inspect(copy.deepcopy(small))) == TABLE


# -- the probe ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["convnet", "branching"])
def test_a_probe_leaves_faults_as_they_would_have_been(
    network: str, faulty: Faulty, request: pytest.FixtureRequest
) -> None:
    clean: nn.Module = request.getfixturevalue(network)
    shape = (3, 6, 6) if network == "convnet" else (12,)
    settings = {"probability": 5.0, "apply_during": "eval", "track_statistics": True, "layers": 1}
    plain, probed = (faulty(copy.deepcopy(clean), **settings) for _ in range(2))
    images = torch.randn(4, *shape)
    outputs = [model(images) for model in (plain, probed)]
    statistics = copy.deepcopy(probed.faults.statistics.to_dict())

    probe(probed, torch.zeros(7, *shape))

    assert probed.faults.statistics.to_dict() == statistics
    assert [site.selected for site in probed.faults] == [i == 1 for i in range(len(probed.faults))]
    assert all(site.elements for site in probed.faults)
    outputs += [model(images) for model in (plain, probed)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_probe_reaches_sites_that_no_fault_of_a_list_strikes(
    faulty: Faulty, convnet: nn.Module
) -> None:
    listed = [{"injection_type": "msb_flip", "probability": 3.0, "layers": "0"}]
    model = faulty(convnet, faults=listed)
    before = [site.faults for site in model.faults]
    assert [len(faults) for faults in before] == [1, 0, 0]

    probe(model, torch.randn(2, 3, 6, 6))

    assert [site.elements for site in model.faults] == [108, 64, 8]
    assert [site.faults for site in model.faults] == before


def test_a_probe_injects_nothing_and_keeps_modes_and_gradients(faulty: Faulty) -> None:
    seen: list[Tensor] = []
    model = faulty(nn.Sequential(relu(), nn.Linear(4, 4), nn.BatchNorm1d(4), relu()))
    model[1].eval()
    model[3].register_forward_hook(lambda *args: seen.append(args[-1]))
    modes = [module.training for module in model.modules()]

    probe(model, torch.randn(1, 4))

    assert modes == [module.training for module in model.modules()]
    assert int(model[2].num_batches_tracked) == 0
    assert not seen[0].requires_grad
    assert model.faults[0].probability == 100.0


def test_a_probe_that_fails_restores_all(small: Any) -> None:
    with pytest.raises(RuntimeError):
        probe(small.train(), torch.zeros(1, 5))

    assert small.training
    assert small.faults[0].probability == 0.5
    assert not small.faults[1].selected
    assert small.faults.clock.apply_during == "eval"


# -- code -----------------------------------------------------------------------------------


def test_code_of_a_traced_model_is_its_forward(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(nn.Linear(4, 4), relu()))

    assert code_of(model) == f"# Sequential\n{model.code.strip()}\n"
    assert "fault_inject" not in code_of(fxfault.strip(model))


def test_code_of_both_modes_where_they_differ(faulty: Faulty) -> None:
    text = code_of(faulty(Branching()))

    evaluation, training = text.split("\n\n")
    assert evaluation.startswith("# Branching (eval)\ndef forward")
    assert training.startswith("# Branching (train)\ndef forward")
    assert "auxiliary" not in evaluation
    assert "auxiliary" in training


def test_code_of_a_module_with_its_own_graph(faulty: Faulty) -> None:
    text = code_of(faulty(Modes()))

    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Modes",
        "# branch (eval)",
        "# branch (train)",
    ]


def test_code_names_what_keeps_its_own_forward(small: Any) -> None:
    *_, kept, hooked = code_of(small).splitlines()

    assert kept.startswith("# block.1 keeps its own forward: its forward branches")
    assert hooked == "# block.1.act: struck inside the layer"


def test_diff_goes_from_clean_to_injected_code(faulty: Faulty) -> None:
    model = faulty(nn.Sequential(nn.Linear(4, 4), relu(), nn.Linear(4, 4)))

    lines = diff(model).splitlines()

    assert lines[:2] == ["--- clean/Sequential", "+++ injected/Sequential"]
    before = [line[1:] for line in lines[3:] if line[0] in " -"]
    after = [line[1:] for line in lines[3:] if line[0] in " +"]
    assert before == fxfault.strip(model).code.strip().splitlines()
    assert after == model.code.strip().splitlines()
    assert sum("fault_inject(" in line for line in lines) == 1


def test_diff_covers_each_mode_and_each_module(faulty: Faulty) -> None:
    heads = [line for line in diff(faulty(Modes())).splitlines() if line.startswith("+++")]

    assert heads == [
        "+++ injected/Modes",
        "+++ injected/branch (eval)",
        "+++ injected/branch (train)",
    ]


def test_diff_names_sites_that_no_code_shows(branching: nn.Module, faulty: Faulty) -> None:
    lines = diff(faulty(branching)).splitlines()

    assert all(line.startswith("# ") for line in lines)
    assert lines[1:] == [
        "# first: struck inside the layer",
        "# again: struck inside the layer",
    ]
