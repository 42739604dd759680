"""Sites that are quantisers inside layers: which there are, also after a layer was replaced."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas_names import float_quant
from inner_quantisers.tools import (
    NAMES,
    SIGNED,
    WARNINGS,
    Words,
    calibrated,
    images,
    residual,
    struck,
)
from torch import Tensor, nn
from zoo import Recurrent

import fxfault
from fxfault.errors import SiteError, TransformError
from fxfault.passes.layer_quantisers import StruckQuantiser

pytestmark = WARNINGS


def test_targets_choose_the_layers() -> None:
    net = residual()
    of_layers = {
        "QuantReLU": ("relu",),
        "QuantConv2d": ("a.input_quant", "a.output_quant", "b.input_quant"),
        "QuantEltwiseAdd": ("add.input_quant", "add.output_quant"),
        "QuantLinear": ("fc.input_quant",),
        "QuantInputOutputLayer": tuple(name for name in NAMES if name != "relu"),
    }
    for target, names in of_layers.items():
        assert struck(net, targets=[target]).faults.names == names
    assert struck(net, targets=list(of_layers)).faults.names == NAMES == struck(net).faults.names
    lstm = struck(calibrated(Recurrent(), torch.randn(5, 3, 8)), targets=["QuantLSTM"])
    assert len(lstm.faults) == 12
    with pytest.raises(TransformError, match="it is not a Brevitas activation layer"):
        struck(nn.Sequential(qnn.QuantReLU(), nn.Linear(2, 2)), targets=["Linear"])


def test_weights_and_activations_stand_in_execution_order() -> None:
    net = residual()
    faulty = struck(net, memory=["weights", "activations"], probability=5.0)

    assert faulty.faults.names[:4] == ("a.input_quant", "a.weight", "a.output_quant", "relu")
    fxfault.check(faulty, net, images())
    assert not torch.equal(faulty(images()), net(images()))
    only = struck(net, memory="weights")
    assert not any(site.is_inner for site in only.faults)


def test_a_network_without_inner_quantisers_has_the_same_sites_and_layers() -> None:
    net = nn.Sequential(qnn.QuantIdentity(), qnn.QuantConv2d(3, 4, 3), qnn.QuantReLU()).eval()
    faulty = struck(net)

    assert faulty.faults.names == ("0", "2")
    assert faulty.get_submodule("1") is net[1]
    assert faulty.faults.edges is None


def test_minifloats_inside_layers_are_struck() -> None:
    layer = qnn.QuantLinear(
        8, 4, bias=False, input_quant=float_quant.Fp8e4m3ActPerTensorFloat
    ).eval()
    x = torch.randn(3, 8)
    faulty = struck(nn.Sequential(layer).eval(), injection_type="bit_flip", bit=7)
    with torch.no_grad():
        found, clean = faulty(x), layer(x)
    assert faulty.faults.names == ("0.input_quant",)
    assert bool(clean.any())
    torch.testing.assert_close(found, -clean)  # Bit 7 is the sign of each word.


def test_coupled_gates_without_a_quantised_sigmoid_are_refused() -> None:
    net = qnn.QuantLSTM(8, 4, coupled_input_forget_gates=True, sigmoid_quant=None)
    with pytest.raises(TransformError, match=r"layers\.0\.0 \(its input and forget gates are cou"):
        struck(nn.Sequential(net))


def test_a_layer_that_python_code_calls_twice_draws_twice(words: Words) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = qnn.QuantLinear(8, 8, bias=False, input_quant=SIGNED)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                x = self.fc(x) * 0 + x
            return self.fc(x)  # type: ignore[no-any-return]

    net = calibrated(Branching(), torch.randn(16, 8))
    faulty = struck(net, probability=50.0)
    words.run(faulty, torch.randn(16, 8))
    first, second = (
        used.value != clean.value
        for used, clean in zip(
            words.used["fc.input_quant"], words.clean["fc.input_quant"], strict=True
        )
    )

    assert not torch.equal(first, second)


# -- surgery ----------------------------------------------------------------------------------


def test_a_new_layer_is_struck_in_place_of_the_old_one() -> None:
    faulty = struck(residual(), layers="fc.*")
    new = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED, input_bit_width=4)
    calibrated(nn.Sequential(new), torch.randn(8, 144))
    faulty.fc = new
    found = faulty(images())
    assert faulty.faults["fc.input_quant"].bit_width == 4
    faulty.faults.enabled = False
    assert not torch.equal(found, faulty(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"fc\.input_quant: its layer was replaced.*its quantiser is disabled"),
        (
            {"input_quant": SIGNED, "output_quant": SIGNED},
            r"output_quant: a QuantLinear was put into the model after transform",
        ),
    ],
)
def test_a_new_layer_with_other_quantisers_is_refused(
    options: dict[str, Any], message: str
) -> None:
    faulty = struck(residual())
    faulty.fc = qnn.QuantLinear(144, 5, bias=True, **options).eval()
    with pytest.raises(SiteError, match=message):
        faulty(images())


@pytest.mark.parametrize("memory", ["activations", ["activations", "weights"]])
def test_a_new_quantiser_in_a_layer_is_struck_in_place_of_the_old_one(memory: Any) -> None:
    faulty = struck(residual(), memory=memory, layers="fc.*")
    faulty(images())
    other = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED, input_bit_width=4)
    calibrated(nn.Sequential(other), torch.randn(8, 144))
    faulty.fc.input_quant = other.input_quant
    site = faulty.faults["fc.input_quant"]
    faulty.faults.select("fc.input_quant")

    found = faulty(images())

    assert isinstance(faulty.fc.input_quant, StruckQuantiser)
    assert site.bit_width == 4
    faulty.faults.enabled = False
    assert not torch.equal(found, faulty(images()))


def test_a_quantiser_without_a_site_that_is_put_into_a_layer_is_refused() -> None:
    faulty = struck(residual())
    other = qnn.QuantLinear(144, 5, bias=True, output_quant=SIGNED)
    faulty.fc.output_quant = other.output_quant
    with pytest.raises(SiteError, match=r"output_quant: a QuantLinear was put into the model"):
        faulty(images())
    faulty.faults.enabled = False
    faulty(images())


def test_a_layer_with_a_new_quantiser_may_replace_another_if_only_weights_are_struck() -> None:
    faulty = struck(residual(), memory="weights")
    new = qnn.QuantLinear(144, 5, bias=True, input_quant=SIGNED, output_quant=SIGNED)
    faulty.fc = calibrated(nn.Sequential(new), torch.randn(8, 144))[0]
    found = faulty(images())
    faulty.faults.enabled = False
    assert not torch.equal(found, faulty(images()))


# -- models of Brevitas's own flow ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_layerwise_quantize_has_a_site_for_each_layer_that_computes() -> None:
    from brevitas.graph.quantize import layerwise_quantize

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )
    quantised = calibrated(layerwise_quantize(net), images())
    faulty = struck(quantised, probability=10.0)

    assert faulty.faults.names == ("0.input_quant", "2.input_quant", "4.input_quant")
    assert fxfault.check(faulty, quantised, images()).not_called == ()
    assert not torch.equal(faulty(images()), quantised(images()))
